"""The training loop: the same for stacked workers, threads, processes and Slurm tasks."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from algorithms import Collectives, DistributedOptimizer, Purpose, SoloCollectives, StackedCollectives
from harness.records import store
from harness.records.recorder import Recorder
from harness.records.store import Event, Heartbeat, Result, TrafficEntry
from harness.spec import RunConfig
from harness.tasks.task import Batch, Samples, TensorSamples, find_task, split_sizes
from harness.tasks.transfer import on_its_way, to_device
from harness.train import checkpoint
from harness.train.build import build_optimizer, num_steps_of
from harness.train.clock import Clock
from harness.train.evaluate import Score, evaluate, worker_accuracies
from harness.train.memory_format import check_format, format_of
from harness.train.order import worker_batches
from harness.train.partition import class_counts, worker_shards
from harness.train.precision import MixedPrecision
from harness.train.prefetch import Prefetched
from harness.train.schedule import learning_rate_factor
from harness.train.stacked import Replicas, batched_backward

CHECK_EVERY = 25
"""Steps between two looks at the loss: for divergence, heartbeat and checkpoint."""

STOP_SECONDS = 0.2
"""So often, or at every step where one takes longer, workers ask each other whether to stop."""


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
    model: nn.Module | Replicas,
    samples: Samples,
    collectives: Collectives,
    recorder: Recorder | None,
    checkpoints: Checkpoints,
    stop_requested: Callable[[], bool] | None = None,
) -> None:
    """Train one worker's replica from the newest checkpoint, or from the start, to a recorded result.

    Args:
        model: the worker's, or all workers' replicas, which go with `StackedCollectives`.
        stop_requested: asked between steps, by all workers or by none; where it is true for one, all of them stop.

    Raises:
        Preempted: a stop was requested, and is possible now that the state is saved.
        RuntimeError: the bits sent are not those of the method's closed form.
    """
    run = _Run(config, model, samples, collectives, recorder, checkpoints, stop_requested)
    for each in run.models:
        each.train()
    batches = run.batches()
    while run.step < run.num_steps and run.diverged_at is None:
        run.clock.switch("data")
        batch = next(batches)
        run.clock.switch("compute")
        run.set_learning_rate()
        run.optimizer.zero_grad()
        losses = run.backward(batch)
        run.prepare(batches)
        run.precision.step(run.optimizer)
        run.losses += run.precision.tally(losses)
        run.step += 1
        if run.step % CHECK_EVERY == 0 or run.step in run.evaluation_steps:
            run.check()
        elif run.stop_requested is not None and run.step % run.ask_every == 0:
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
        model: nn.Module | Replicas,
        samples: Samples,
        collectives: Collectives,
        recorder: Recorder | None,
        checkpoints: Checkpoints,
        stop_requested: Callable[[], bool] | None,
    ) -> None:
        self.config, self.samples = config, samples
        self.models = model.models if isinstance(model, Replicas) else [model]
        self.collectives, self.recorder, self.checkpoints = collectives, recorder, checkpoints
        self.stop_requested = stop_requested
        self.num_train, self.num_evaluation = split_sizes(find_task(config.task.name), config.task)
        self.per_epoch, self.num_steps = num_steps_of(config)
        self.evaluation_steps = evaluation_steps(config, self.per_epoch)
        trained = nn.ParameterList(model.stacked) if isinstance(model, Replicas) else model
        self.optimizer: DistributedOptimizer = build_optimizer(config, trained, collectives, self.num_steps)
        if isinstance(model, Replicas):
            model.attach()
        stacks = isinstance(model, Replicas) and config.precision == "fp32" and isinstance(samples, TensorSamples)
        self.batched = batched_backward(model) if stacks and isinstance(model, Replicas) else None
        self.step = 0
        device = self.optimizer.flat.parameters.device
        self.precision = MixedPrecision(config.precision, device)
        zero = torch.zeros(2, dtype=torch.float64, device=device)
        self.losses = collectives.packed([zero] * len(self.models))
        """Sum and number of each worker's losses since the last evaluation."""
        shards = worker_shards(config.partition, samples.train_labels, config.num_workers, config.seed)
        self.shards = None if shards is None else [shards[rank] for rank in collectives.own_ranks]
        num_classes = find_task(config.task.name).num_classes
        self.class_counts = None if shards is None else class_counts(shards, samples.train_labels, num_classes)
        self.train_loss: float | None = None
        self.last_score: Score | None = None
        self.diverged_at: int | None = None
        self.save_due = self.stopping = False
        self.ask_every = 1
        """Steps between two questions whether to stop; the first look says how many there may be."""
        self.answer: Callable[[], Tensor] | None = None
        """Of the last such question, on its way from a GPU."""
        self.clock = Clock(collectives, device)
        self._resume()
        self.first_step = self.looked_at_step = self.step
        self.started = self.saved = self.looked = time.monotonic()

    def _resume(self) -> None:
        loaded = checkpoint.load(self.checkpoints.folder, self._savers)
        if loaded is not None:
            self.step, state = loaded
            check_format(state.get("memory_format", "contiguous"), self.models[0], self.checkpoints.folder)
            for model, saved in zip(self.models, state["models"], strict=True):
                model.load_state_dict(saved)
            self.optimizer.load_state_dict(state["optimizer"])
            self.losses.copy_(state["losses"])
            self.precision.load_state_dict(state["precision"])
            self.collectives.traffic.load_state_dict(state["traffic"])
            self.clock = Clock(self.collectives, self.losses.device, state["clock_seconds"])
        if self.recorder is not None:
            self.recorder.begin(self.step)

    def _state(self) -> dict[str, Any]:
        return {
            "memory_format": format_of(self.models[0]),
            "models": [model.state_dict() for model in self.models],
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "precision": self.precision.state_dict(),
            "traffic": self.collectives.traffic.state_dict(),
            "clock_seconds": self.clock.seconds,
        }

    @property
    def _savers(self) -> Collectives:
        """Who writes checkpoints together: workers that are stacked are one process, and write one file."""
        return SoloCollectives() if isinstance(self.collectives, StackedCollectives) else self.collectives

    def batches(self) -> Iterator[list[Batch]]:
        """The batches of the workers at this end, step by step; a joint one where they go through all at once."""
        config, ranks, steps = self.config, self.collectives.own_ranks, range(self.step, self.num_steps)
        shards: Sequence[Tensor | None] = self.shards or [None] * len(ranks)
        indices = [
            worker_batches(config.seed, self.num_train, rank, config.num_workers, config.batch_size, steps, shard)
            for rank, shard in zip(ranks, shards, strict=True)
        ]
        if self.batched is not None:
            joined = (torch.cat(each) for each in zip(*indices, strict=True))
            return ([batch] for batch in self.samples.training_batches(joined, config.seed, 0, self.step))
        sources = [
            self.samples.training_batches(own, config.seed, rank, self.step)
            for rank, own in zip(ranks, indices, strict=True)
        ]
        batches = (list(each) for each in zip(*sources, strict=True))
        device = self.losses.device
        return Prefetched(batches, device) if device.type == "cuda" else batches

    def prepare(self, batches: Iterator[list[Batch]]) -> None:
        """On a GPU, make the next batches ready beside the backward pass, for which a step with loss scaling waits."""
        if isinstance(batches, Prefetched):
            self.clock.switch("data")
            batches.prepare()
            self.clock.switch("compute")

    def backward(self, batches: list[Batch]) -> Tensor:
        """Forward and backward passes of the workers at this end; their mean losses, packed."""
        if self.batched is not None:
            return self.batched(*batches[0])
        losses = []
        for model, (inputs, labels) in zip(self.models, batches, strict=True):
            loss = self.precision.loss(model, inputs, labels)
            self.precision.backward(loss)
            losses.append(loss.detach())
        return self.collectives.packed(losses)

    def set_learning_rate(self) -> None:
        factor = learning_rate_factor(self.config.schedule, self.step, self.per_epoch, self.config.num_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor

    def check(self) -> None:
        """Look at the mean loss over workers: all of them find divergence, and mean to save, at the same step."""
        now = time.monotonic()
        wants_checkpoint = self.recorder is not None and now - self.saved >= self.checkpoints.every_seconds
        step_seconds = (now - self.looked) / (self.step - self.looked_at_step)
        self.looked, self.looked_at_step, self.answer = now, self.step, None
        totals = self._total([wants_checkpoint, self._wants_stop(), step_seconds], self.losses)
        self.train_loss = (totals[0] / totals[1]).item()
        savers, stoppers, seconds = totals[2:].tolist()
        if not math.isfinite(self.train_loss):
            self.diverged_at = self.step
        self.stopping = stoppers > 0
        self.save_due = (savers > 0 or self.stopping) and self.step < self.num_steps
        if not isinstance(self.collectives, StackedCollectives):  # whose workers are asked as one, for nothing
            self.ask_every = max(1, min(CHECK_EVERY, int(STOP_SECONDS * self.collectives.world_size / seconds)))
        self._beat_if_due()

    def agree_to_stop(self) -> None:
        """Between two looks: stop at this step if one of the workers must.

        What a GPU has answered is read at the next question, so that nobody waits for it.
        """
        if isinstance(self.collectives, StackedCollectives):
            self.stopping = self._wants_stop()
        else:
            now = on_its_way(self._total([self._wants_stop()]))
            before, self.answer = self.answer, now
            heard = before if self.losses.is_cuda else now
            self.stopping = heard is not None and heard().item() > 0
        self.save_due = self.stopping and self.step < self.num_steps
        self._beat_if_due()

    def _total(self, values: list[float], before: Tensor | None = None) -> Tensor:
        """Sums over all workers of what each has `before`, and of these values, float64."""
        sent = to_device(torch.tensor(values, dtype=torch.float64), self.losses.device)
        own = sent.expand(*self.losses.shape[:-1], -1)
        totals = own.clone() if before is None else torch.cat([before, own], dim=-1)
        self.collectives.all_reduce_sum_(totals, Purpose.CONTROL)
        return self.collectives.common(totals)

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
        checkpoint.save(folder, self.step, self._state(), self._savers, attempt, allowed)
        self.clock.switch("compute")
        self.saved = time.monotonic()
        if self.stopping:
            raise Preempted(f"asked to stop; saved at step {self.step} of {self.num_steps}")

    def score(self) -> None:
        """Score the workers' average and record it."""
        self.clock.switch("evaluate")
        sizes = self.num_evaluation, self.num_train
        score = evaluate(self.config, self.models, self.optimizer, self.precision, self.samples, *sizes)
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
            digest = parameters_sha256(self.collectives.common(self.optimizer.flat.parameters))
        self.clock.switch("evaluate")
        own = worker_accuracies(self.models, self.precision, self.collectives, self.samples, self.num_evaluation)
        self.clock.switch("compute")
        if self.recorder is not None:
            self.recorder.finish(self._result(self.recorder, digest, own))
            checkpoint.discard(self.checkpoints.folder)

    def _result(self, recorder: Recorder, digest: str, own: list[float]) -> Result:
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
            traffic={purpose.value: TrafficEntry(**asdict(entry)) for purpose, entry in traffic.entries.items()},
            expected_traffic={key: TrafficEntry(**asdict(entry)) for key, entry in expected.training().items()},
            overall_ratio=32 * numel * self.step / traffic.training_bits if traffic.training_bits else None,
            clock_seconds=self.clock.seconds,
            wall_seconds=self.clock.wall_seconds,
            parameters_sha256=digest,
            class_counts=self.class_counts,
            worker_accuracy=own if score else None,
        )


def evaluation_steps(config: RunConfig, per_epoch: int) -> set[int]:
    """The steps, counted from 1, after which the average is scored; the last one is always among them."""
    scores = config.evaluation.num_scores or config.evaluation.per_epoch * config.num_epochs
    return {round(number * per_epoch * config.num_epochs / scores) for number in range(1, scores + 1)} - {0}


def parameters_sha256(parameters: Tensor) -> str:
    """Digest of the parameters' bytes: two runs with the same digest ended the same, to the bit."""
    return hashlib.sha256(parameters.detach().cpu().numpy().tobytes()).hexdigest()
