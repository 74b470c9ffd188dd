"""The training loop: the same for threads, processes and Slurm tasks."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from algorithms import Collectives, DistributedOptimizer, Purpose
from harness import checkpoint, store
from harness.build import build_optimizer, num_steps_of
from harness.clock import Clock
from harness.evaluate import Score, evaluate
from harness.order import worker_batches
from harness.partition import class_counts, worker_shards
from harness.precision import MixedPrecision
from harness.recorder import Recorder
from harness.schedule import learning_rate_factor
from harness.spec import RunConfig
from harness.store import Event, Heartbeat, Result, TrafficEntry
from harness.tasks.task import Samples, find_task, split_sizes

CHECK_EVERY = 25
"""Steps between two looks at the loss: for divergence, heartbeat and checkpoint."""

SLOW_STEP_SECONDS = 0.2
"""Where a step takes longer, workers ask each other at every step whether to stop, and not only at every look."""


class Preempted(RuntimeError):
    """The run was asked to stop; its state is saved, and another attempt can go on from there."""


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often checkpoints are written, and by which attempt; the folder belongs to the run."""

    folder: Path
    every_seconds: float
    attempt: str


def train(
    config: RunConfig,
    model: nn.Module,
    samples: Samples,
    collectives: Collectives,
    recorder: Recorder | None,
    checkpoints: Checkpoints,
    stop_requested: Callable[[], bool] | None = None,
) -> None:
    """Train one worker's replica from the newest checkpoint, or from the start, to a recorded result.

    Args:
        stop_requested: asked between steps, by all workers or by none; where it is true for one, all of them stop.

    Raises:
        Preempted: a stop was requested, and is possible now that the state is saved.
        RuntimeError: the bits sent are not those of the method's closed form.
    """
    run = _Run(config, model, samples, collectives, recorder, checkpoints, stop_requested)
    batches = samples.training_batches(
        worker_batches(
            config.seed,
            run.num_train,
            collectives.rank,
            config.num_workers,
            config.batch_size,
            range(run.step, run.num_steps),
            run.shard,
        ),
        config.seed,
        collectives.rank,
        run.step,
    )
    model.train()
    while run.step < run.num_steps and run.diverged_at is None:
        run.clock.switch("data")
        inputs, labels = next(batches)
        run.clock.switch("compute")
        run.set_learning_rate()
        run.optimizer.zero_grad()
        loss = run.precision.loss(model, inputs, labels)
        run.precision.step(loss, run.optimizer)
        run.losses += run.precision.tally(loss)
        run.step += 1
        if run.step % CHECK_EVERY == 0 or run.step in run.evaluation_steps:
            run.check()
        elif run.steps_are_slow and run.stop_requested is not None:
            run.agree_to_stop()
        if run.step in run.evaluation_steps and run.diverged_at is None:
            run.score()
        run.save_if_due()
    run.finish()


class _Run:
    """The state of one worker's training, and what happens between steps."""

    def __init__(
        self,
        config: RunConfig,
        model: nn.Module,
        samples: Samples,
        collectives: Collectives,
        recorder: Recorder | None,
        checkpoints: Checkpoints,
        stop_requested: Callable[[], bool] | None,
    ) -> None:
        self.config, self.model, self.samples = config, model, samples
        self.collectives, self.recorder, self.checkpoints = collectives, recorder, checkpoints
        self.stop_requested = stop_requested
        self.num_train, self.num_evaluation = split_sizes(find_task(config.task.name), config.task)
        self.per_epoch, self.num_steps = num_steps_of(config)
        self.evaluation_steps = evaluation_steps(config, self.per_epoch)
        self.optimizer: DistributedOptimizer = build_optimizer(config, model, collectives, self.num_steps)
        self.step = 0
        device = self.optimizer.flat.parameters.device
        self.precision = MixedPrecision(config.precision, device)
        self.losses = torch.zeros(2, dtype=torch.float64, device=device)
        """Sum and number of this worker's losses since the last evaluation."""
        shards = worker_shards(config.partition, samples.train_labels, config.num_workers, config.seed)
        self.shard = None if shards is None else shards[collectives.rank]
        num_classes = find_task(config.task.name).num_classes
        self.class_counts = None if shards is None else class_counts(shards, samples.train_labels, num_classes)
        self.train_loss: float | None = None
        self.last_score: Score | None = None
        self.diverged_at: int | None = None
        self.save_due = self.stopping = False
        self.steps_are_slow = True
        """Until the first look says more."""
        self.clock = Clock(collectives)
        self._resume()
        self.first_step = self.looked_at_step = self.step
        self.started = self.saved = self.looked = time.monotonic()

    def _resume(self) -> None:
        loaded = checkpoint.load(self.checkpoints.folder, self.collectives)
        if loaded is not None:
            self.step, state = loaded
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.losses.copy_(state["losses"])
            self.precision.load_state_dict(state["precision"])
            self.collectives.traffic.load_state_dict(state["traffic"])
            self.clock = Clock(self.collectives, state["clock_seconds"])
        if self.recorder is not None:
            self.recorder.begin(self.step)

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "precision": self.precision.state_dict(),
            "traffic": self.collectives.traffic.state_dict(),
            "clock_seconds": self.clock.seconds,
        }

    def set_learning_rate(self) -> None:
        factor = learning_rate_factor(self.config.schedule, self.step, self.per_epoch, self.config.num_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor

    def check(self) -> None:
        """Look at the mean loss over workers: all of them find divergence, and mean to save, at the same step."""
        now = time.monotonic()
        wants_checkpoint = self.recorder is not None and now - self.saved >= self.checkpoints.every_seconds
        step_seconds = (now - self.looked) / (self.step - self.looked_at_step)
        self.looked, self.looked_at_step = now, self.step
        more = self.losses.new_tensor([wants_checkpoint, self._wants_stop(), step_seconds])
        totals = torch.cat([self.losses, more])
        self.collectives.all_reduce_sum_(totals, Purpose.CONTROL)
        self.train_loss = (totals[0] / totals[1]).item()
        savers, stoppers, seconds = totals[2:].tolist()
        if not math.isfinite(self.train_loss):
            self.diverged_at = self.step
        self.stopping = stoppers > 0
        self.save_due = (savers > 0 or self.stopping) and self.step < self.num_steps
        self.steps_are_slow = seconds / self.collectives.world_size > SLOW_STEP_SECONDS
        self._beat_if_due()

    def agree_to_stop(self) -> None:
        """Between two looks, where they are far apart: stop at this step if one of the workers must."""
        stoppers = self.losses.new_tensor([self._wants_stop()])
        self.collectives.all_reduce_sum_(stoppers, Purpose.CONTROL)
        self.stopping = stoppers.item() > 0
        self.save_due = self.stopping and self.step < self.num_steps
        self._beat_if_due()

    def _wants_stop(self) -> bool:
        return self.stop_requested is not None and self.stop_requested()

    def _beat_if_due(self) -> None:
        if self.recorder is not None and (self.recorder.heartbeat_is_due() or self.step == self.num_steps):
            self._beat(self.recorder)

    def save_if_due(self) -> None:
        """Save, after the score of the same step: a resumed run would not make it again. Then stop, if that is why."""
        if not self.save_due or self.diverged_at is not None:
            return
        self.save_due = False
        self.clock.switch("checkpoint")
        folder, attempt = self.checkpoints.folder, self.checkpoints.attempt
        allowed = (lambda: None) if self.recorder is None else self.recorder.check_is_newest
        checkpoint.save(folder, self.step, self._state(), self.collectives, attempt, allowed)
        self.clock.switch("compute")
        self.saved = time.monotonic()
        if self.stopping:
            raise Preempted(f"asked to stop; saved at step {self.step} of {self.num_steps}")

    def score(self) -> None:
        """Score the workers' average and record it."""
        self.clock.switch("evaluate")
        score = evaluate(self.config, self.model, self.optimizer, self.samples, self.num_evaluation, self.num_train)
        self.clock.switch("compute")
        self.losses.zero_()
        if not math.isfinite(score.loss):
            self.diverged_at = self.step
            return
        self.last_score = score
        if self.recorder is not None:
            self.recorder.event(self._event(score))

    def _event(self, score: Score) -> Event:
        assert self.train_loss is not None
        return Event(
            step=self.step,
            epoch=self.step / self.per_epoch,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            train_loss=self.train_loss,
            test_loss=score.loss,
            test_correct=score.correct,
            test_count=score.count,
            test_accuracy=score.accuracy,
            bits_sent=self.collectives.traffic.training_bits,
            error_norm=score.error_norm,
            worker_distance=score.worker_distance,
            wall_seconds=self.clock.wall_seconds,
        )

    def _beat(self, recorder: Recorder) -> None:
        seconds = time.monotonic() - self.started
        rate = (self.step - self.first_step) / seconds
        recorder.heartbeat(
            Heartbeat(
                attempt=recorder.attempt,
                time=time.time(),
                step=self.step,
                num_steps=self.num_steps,
                epoch=self.step / self.per_epoch,
                loss=self.train_loss,
                accuracy=self.last_score.accuracy if self.last_score else None,
                images_per_second=rate * self.config.batch_size * self.config.num_workers,
                megabytes_sent=self.collectives.traffic.training_bits / 8e6,
                seconds_left=(self.num_steps - self.step) / rate if rate else None,
            )
        )

    def finish(self) -> None:
        """Check the bits of every worker against the closed form, and record the result."""
        expected = self.optimizer.expected_traffic(self.optimizer.num_steps)
        if expected.training() != self.collectives.traffic.training():
            raise RuntimeError(
                f"worker {self.collectives.rank} sent {self.collectives.traffic.training()} where the closed form of "
                f"{self.config.algorithm} says {expected.training()}"
            )
        with self.optimizer.consensus():
            digest = parameters_sha256(self.optimizer.flat.parameters)
        self.clock.switch("compute")
        if self.recorder is not None:
            self.recorder.finish(self._result(self.recorder, digest))

    def _result(self, recorder: Recorder, digest: str) -> Result:
        score = self.last_score if self.diverged_at is None else None
        traffic = self.collectives.traffic
        expected = self.optimizer.expected_traffic(self.optimizer.num_steps)
        numel = self.optimizer.flat.layout.numel
        return Result(
            version=store.VERSION,
            run_id=recorder.run_id,
            attempt=recorder.attempt,
            status="done" if score else "diverged",
            diverged_at_step=self.diverged_at,
            num_steps=self.step,
            num_parameters=numel,
            world_size=self.collectives.world_size,
            train_loss=self.train_loss if score else None,
            test_loss=score.loss if score else None,
            test_correct=score.correct if score else None,
            test_count=score.count if score else None,
            test_accuracy=score.accuracy if score else None,
            traffic={k.value: TrafficEntry(bits=v.bits, collectives=v.collectives) for k, v in traffic.entries.items()},
            expected_traffic={
                k: TrafficEntry(bits=v.bits, collectives=v.collectives) for k, v in expected.training().items()
            },
            overall_ratio=32 * numel * self.step / traffic.training_bits if traffic.training_bits else None,
            clock_seconds=self.clock.seconds,
            wall_seconds=self.clock.wall_seconds,
            parameters_sha256=digest,
            class_counts=self.class_counts,
        )


def evaluation_steps(config: RunConfig, per_epoch: int) -> set[int]:
    """The steps, counted from 1, after which the average is scored; the last one is always among them."""
    scores = config.evaluation.num_scores or config.evaluation.per_epoch * config.num_epochs
    return {round(number * per_epoch * config.num_epochs / scores) for number in range(1, scores + 1)} - {0}


def parameters_sha256(parameters: Tensor) -> str:
    """Digest of the parameters' bytes: two runs with the same digest ended the same, to the bit."""
    return hashlib.sha256(parameters.detach().cpu().numpy().tobytes()).hexdigest()
