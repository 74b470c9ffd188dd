"""The training loop, the same for all kinds of workers: steps, looks between them, and what is
recorded of a run."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from cser_bench.algorithms import Collectives, Purpose, StackedCollectives
from cser_bench.harness.records import store
from cser_bench.harness.records.recorder import Recorder
from cser_bench.harness.records.store import Event, Heartbeat, Result, TrafficEntry
from cser_bench.harness.tasks.pairs import PairSamples
from cser_bench.harness.tasks.task import to_device
from cser_bench.harness.train import checkpoint
from cser_bench.harness.train.evaluate import Score, evaluate, worker_accuracies
from cser_bench.harness.train.training import Job, Preempted, StopRequested, Training

CHECK_EVERY = 25
"""Steps between two looks at the loss: for divergence, heartbeat and checkpoint."""

STOP_SECONDS = 2.0
"""So often, or at every step where one takes longer, workers ask each other whether to stop, which
waits for a GPU."""


def train(job: Job, collectives: Collectives, stop_requested: StopRequested | None = None) -> None:
    """Train the workers at this end from the newest checkpoint, or from the start, to a recorded
    result.

    Raises Preempted where `stop_requested` is true for a worker, once the state is saved.
    """
    training = Training(job, collectives, stop_requested)
    if training.recorder is not None:
        training.recorder.begin(training.step)
    monitor = Monitor(training)
    per_epoch, num_epochs = training.schedule_length
    scored = training.config.evaluation.steps(num_epochs, per_epoch)
    while training.step < training.num_steps and training.diverged_at is None:
        training.take_step()
        monitor.after_step(training.step in scored)
        if training.step in scored and training.diverged_at is None:
            record_score(training)
        monitor.save_if_due()
    record_result(training)


class Monitor:
    """Watches one worker's training. What it finds, all workers find at the same step."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._save_due = self._stopping = False
        self._ask_every = 1
        """Steps between two questions whether to stop; the first look says how many there may
        be."""
        self._first_step = self._looked_at_step = training.step
        self._started = self._saved = self._looked = time.monotonic()

    def after_step(self, scored: bool) -> None:
        """Look, where it is time or the average is about to be scored; else ask at times whether to
        stop."""
        training, saves = self._training, False
        if scored or training.step % CHECK_EVERY == 0:
            saves = self._look()
        elif training.stop_requested is not None and training.step % self._ask_every == 0:
            alone = isinstance(training.collectives, StackedCollectives)
            self._stopping = (
                self._wants_stop() if alone else self._total([self._wants_stop()]).item() > 0
            )
        else:
            return
        self._save_due = (saves or self._stopping) and training.step < training.num_steps
        recorder = training.recorder
        if recorder is not None and (
            recorder.heartbeat_is_due() or training.step == training.num_steps
        ):
            recorder.heartbeat(self._heartbeat(recorder))

    def _look(self) -> bool:
        """Look at the mean loss over workers, and whether one of them is to stop; whether one means
        to save."""
        training, collectives, now = self._training, self._training.collectives, time.monotonic()
        every = 60 * training.job.checkpoint_minutes
        wants_checkpoint = training.recorder is not None and now - self._saved >= every
        step_seconds = (now - self._looked) / (training.step - self._looked_at_step)
        self._looked, self._looked_at_step = now, training.step
        totals = self._total(
            [wants_checkpoint, self._wants_stop(), step_seconds], training.losses
        ).tolist()
        loss_sum, num_losses, savers, stoppers, seconds = totals
        training.train_loss = loss_sum / num_losses if num_losses else math.nan
        if not math.isfinite(training.train_loss):
            training.diverged_at = training.step
        self._stopping = stoppers > 0
        if not isinstance(
            collectives, StackedCollectives
        ):  # whose workers are asked as one, for nothing
            self._ask_every = max(
                1, min(CHECK_EVERY, int(STOP_SECONDS * collectives.world_size / seconds))
            )
        return bool(savers > 0)

    def _total(self, values: list[float], before: Tensor | None = None) -> Tensor:
        """Sums over all workers of what each has `before`, and of these values, float64."""
        losses = self._training.losses
        sent = to_device(torch.tensor(values, dtype=torch.float64), losses.device)
        own = sent.expand(*losses.shape[:-1], -1)
        totals = own.clone() if before is None else torch.cat([before, own], dim=-1)
        self._training.collectives.all_reduce_sum_(totals, Purpose.CONTROL)
        return totals[0]

    def _wants_stop(self) -> bool:
        stop_requested = self._training.stop_requested
        return stop_requested is not None and stop_requested()

    def save_if_due(self) -> None:
        """Save, after the score of the same step: a resumed run would not make it. Then raise
        Preempted if asked."""
        training, recorder = self._training, self._training.recorder
        if not self._save_due or training.diverged_at is not None:
            return
        self._save_due = False
        training.clock.switch("checkpoint")
        training.save((lambda: None) if recorder is None else recorder.check_is_newest)
        training.clock.switch("compute")
        self._saved = time.monotonic()
        if self._stopping:
            raise Preempted(f"asked to stop; saved at step {training.step} of {training.num_steps}")

    def _heartbeat(self, recorder: Recorder) -> Heartbeat:
        training, config = self._training, self._training.config
        rate = (training.step - self._first_step) / (time.monotonic() - self._started)
        return Heartbeat(
            attempt=recorder.attempt,
            time=time.time(),
            step=training.step,
            num_steps=training.num_steps,
            images_per_second=rate * config.batch_size * config.num_workers,
            seconds_left=(training.num_steps - training.step) / rate if rate else None,
        )


def record_score(training: Training) -> None:
    """Score the workers' average and record it; a loss that is not finite makes the run diverge."""
    training.clock.switch("evaluate")
    sizes = training.num_evaluation, training.num_train
    score = evaluate(
        training.config,
        training.models,
        training.optimizer,
        training.precision,
        training.samples,
        *sizes,
    )
    training.clock.switch("compute")
    training.losses.zero_()
    if not math.isfinite(score.loss):
        training.diverged_at = training.step
        return
    training.score = score
    if training.recorder is not None:
        event = Event(
            step=training.step,
            epoch=training.step / training.per_epoch,
            learning_rate=training.optimizer.param_groups[0]["lr"],
            bits_sent=training.collectives.traffic.training_bits,
            error_norm=score.error_norm,
            worker_distance=score.worker_distance,
            wall_seconds=training.clock.wall_seconds,
            **_scores(training.train_loss, score),
        )
        training.recorder.event(event)


def _scores(train_loss: float | None, score: Score | None) -> dict[str, Any]:
    """What an event and a result say alike; nothing of a run that diverged."""
    said = {
        f"test_{key}": getattr(score, key, None) for key in ("loss", "correct", "count", "accuracy")
    }
    return said | {
        "train_loss": train_loss if score else None,
        "metrics": score.metrics if score else None,
    }


def record_result(training: Training) -> None:
    """Check every worker's bits against the closed form, else raise RuntimeError, and record the
    result."""
    optimizer, collectives, samples = training.optimizer, training.collectives, training.samples
    expected, sent = training.expected_traffic.training(), collectives.traffic.training()
    if expected != sent:
        raise RuntimeError(
            f"worker {collectives.rank} sent {sent}, but the closed form of {optimizer.name} says "
            f"{expected}"
        )
    with optimizer.consensus():
        # Two runs with the same digest ended the same, to the bit.
        digest = hashlib.sha256(
            optimizer.flat.parameters[0].detach().cpu().numpy().tobytes()
        ).hexdigest()
    training.clock.switch("evaluate")
    own = worker_accuracies(
        training.models, training.precision, collectives, samples, training.num_evaluation
    )
    training.clock.switch("compute")
    if training.recorder is not None:
        training.recorder.finish(_result(training, training.recorder, digest, own))
        checkpoint.discard(training.job.checkpoints)


def _result(training: Training, recorder: Recorder, digest: str, own: list[float]) -> Result:
    score = training.score if training.diverged_at is None else None
    samples, traffic, optimizer = training.samples, training.collectives.traffic, training.optimizer
    expected, numel = training.expected_traffic, optimizer.flat.layout.numel
    return Result(
        version=store.VERSION,
        run_id=recorder.run_id,
        attempt=recorder.attempt,
        status="done" if score else "diverged",
        diverged_at_step=training.diverged_at,
        num_steps=training.step,
        num_parameters=numel,
        world_size=training.collectives.world_size,
        traffic={
            purpose.value: TrafficEntry(**asdict(entry))
            for purpose, entry in traffic.entries.items()
        },
        expected_traffic={
            key: TrafficEntry(**asdict(entry)) for key, entry in expected.training().items()
        },
        overall_ratio=32 * numel * training.step / traffic.training_bits
        if traffic.training_bits
        else None,
        clock_seconds=training.clock.seconds,
        wall_seconds=training.clock.wall_seconds,
        parameters_sha256=digest,
        class_counts=training.class_counts,
        worker_accuracy=own if score else None,
        data_sha256=getattr(samples, "sha256", None),
        vocabulary_sha256=getattr(samples, "vocabulary_sha256", None),
        signatures=(samples.measure.signatures() or None)
        if isinstance(samples, PairSamples)
        else None,
        **_scores(training.train_loss, score),
    )
