"""The training loop, the same for all kinds of workers.

It takes steps, looks between them, and records what is recorded of a run.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from cser_bench.algorithms import Collectives, Purpose, StackedCollectives
from cser_bench.algorithms.core.replicas import numel_of
from cser_bench.algorithms.core.traffic import Entry
from cser_bench.harness.records import store
from cser_bench.harness.records.recorder import Recorder
from cser_bench.harness.records.store import Event, Heartbeat, Result, TrafficEntry
from cser_bench.harness.tasks.task import to_device
from cser_bench.harness.train import checkpoint
from cser_bench.harness.train.evaluate import Score, evaluate, worker_accuracies
from cser_bench.harness.train.training import Job, Preempted, StopRequested, Training

CHECK_EVERY = 25
"""Steps between two looks at the loss: for divergence, heartbeat and checkpoint.

A record's `diverged_at_step` is one of them, so another number makes other records.
"""

STOP_SECONDS = 2.0
"""Between two questions among workers whether to stop; at least one step. The question is rare, as
each makes the host wait for the GPU."""


def train(
    job: Job, collectives: Collectives, stop_requested: StopRequested | None = None
) -> None:
    """Train the workers at this end to a recorded result.

    They go on from the newest checkpoint, or begin at the start.

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
        # Last in a step: a checkpoint must lie behind the step's score, which a resumed run does
        # not take again.
        monitor.save_if_due()
    record_result(training)


class Monitor:
    """What watches one worker's training.

    What it finds, all workers find at the same step.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._save_due = False
        self._stopping = False
        self._ask_every = 1
        """Steps between two questions whether to stop; the first look says how many there may
        be."""
        self._first_step = training.step
        self._looked_at_step = training.step
        now = time.monotonic()
        self._started = now
        self._saved = now
        self._looked = now

    def after_step(self, scored: bool) -> None:
        """Look every CHECK_EVERY steps and before each score, and else ask at times whether to stop.

        Also note whether to save, and write a heartbeat if one is due.
        """
        training = self._training
        save_wanted = False
        if scored or training.step % CHECK_EVERY == 0:
            save_wanted = self._look()
        elif (
            training.stop_requested is not None and training.step % self._ask_every == 0
        ):
            self._stopping = self._anyone_wants_stop()
        else:
            return
        # After the last step comes the result. A wish to stop comes too late for it.
        is_last = training.step == training.num_steps
        self._save_due = (save_wanted or self._stopping) and not is_last
        recorder = training.recorder
        if recorder is not None and (recorder.heartbeat_is_due() or is_last):
            recorder.heartbeat(self._heartbeat(recorder))

    def _look(self) -> bool:
        """Update the mean loss, divergence and stop request by one all-reduce.

        Return whether any worker wants a checkpoint.
        """
        training = self._training
        collectives = training.collectives
        now = time.monotonic()
        checkpoint_seconds = 60 * training.job.checkpoint_minutes
        wants_checkpoint = (
            training.recorder is not None and now - self._saved >= checkpoint_seconds
        )
        # Mean over the steps since the last look, this worker's.
        step_seconds = (now - self._looked) / (training.step - self._looked_at_step)
        self._looked = now
        self._looked_at_step = training.step
        values = self._of_each_worker(
            [wants_checkpoint, self._wants_stop(), step_seconds]
        )
        # (local workers, 2 + 3), of which every worker gets the sums.
        # One collective for all that is asked: its latency, and on a GPU the wait for it, is paid
        # once.
        totals = self._total(torch.cat([training.losses, values], dim=-1))
        loss_sum, num_losses, savers, stoppers, sum_of_step_seconds = totals.tolist()
        # There are none where loss scaling skipped every step since the last score: such a run has
        # diverged too.
        training.train_loss = loss_sum / num_losses if num_losses else math.nan
        if not math.isfinite(training.train_loss):
            training.diverged_at = training.step
        self._stopping = stoppers > 0
        # Stacked workers are asked as one, which takes no time.
        if not isinstance(collectives, StackedCollectives):
            # From what all workers know alike: they ask by a collective, and one that asked at
            # other steps than the rest would hang them.
            mean_step_seconds = sum_of_step_seconds / collectives.world_size
            self._ask_every = max(
                1, min(CHECK_EVERY, int(STOP_SECONDS / mean_step_seconds))
            )
        return bool(savers > 0)

    def _of_each_worker(self, values: list[float]) -> Tensor:
        """Return these values for each worker at this end.

        They are float64, of shape (local workers, values).
        """
        losses = self._training.losses
        row = to_device(torch.tensor(values, dtype=torch.float64), losses.device)
        # Rows of `expand` are the same memory, and the sum over workers is written into them.
        return row.expand(*losses.shape[:-1], -1).clone()

    def _total(self, values: Tensor) -> Tensor:
        """Return the sum over all workers of each one's row of `values`.

        `values` is replaced by it.
        """
        self._training.collectives.all_reduce_sum_(values, Purpose.CONTROL)
        return values[0]

    def _anyone_wants_stop(self) -> bool:
        wants_stop = self._wants_stop()
        if isinstance(self._training.collectives, StackedCollectives):
            return wants_stop
        # A signal may have reached one worker alone, so its wish is not acted on before all know of
        # it.
        return bool(self._total(self._of_each_worker([wants_stop])).item() > 0)

    def _wants_stop(self) -> bool:
        stop_requested = self._training.stop_requested
        return stop_requested is not None and stop_requested()

    def save_if_due(self) -> None:
        """Save a checkpoint if one is due, and then raise Preempted if asked to stop.

        Call it after the step's score is recorded: a run that is resumed from this checkpoint would
        not score that step again.
        """
        training = self._training
        # A run that diverged is over, and its result is about to be written.
        if not self._save_due or training.diverged_at is not None:
            return
        self._save_due = False
        training.clock.switch("checkpoint")
        training.save()
        training.clock.switch("compute")
        self._saved = time.monotonic()
        if self._stopping:
            raise Preempted(
                f"asked to stop; saved at step {training.step} of {training.num_steps}"
            )

    def _heartbeat(self, recorder: Recorder) -> Heartbeat:
        training = self._training
        config = training.config
        # Steps a second of this attempt: earlier ones may have been elsewhere.
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
    """Score the workers' average and record it.

    A loss that is not finite makes the run diverge.
    """
    training.clock.switch("evaluate")
    score = evaluate(
        training.config,
        training.models,
        training.optimizer,
        training.precision,
        training.samples,
        training.num_evaluation,
        training.num_train,
    )
    training.clock.switch("compute")
    # The recorded train_loss is the mean since the last evaluation: begin the next one.
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
    """Return what an event and a result say alike; nothing of a run that diverged."""
    if score is None:
        keys = ("test_loss", "test_correct", "test_count", "test_accuracy")
        return dict.fromkeys((*keys, "train_loss", "metrics"))
    return {
        "test_loss": score.loss,
        "test_correct": score.correct,
        "test_count": score.count,
        "test_accuracy": score.accuracy,
        "train_loss": train_loss,
        "metrics": score.metrics,
    }


def record_result(training: Training) -> None:
    """Check every worker's bits against the closed form, and record the result.

    Raises RuntimeError where they differ.
    """
    optimizer = training.optimizer
    collectives = training.collectives
    expected = training.expected_traffic.training()
    sent = collectives.traffic.training()
    # By purpose: evaluation and control are no part of a method's cost.
    if expected != sent:
        raise RuntimeError(
            f"worker {collectives.rank} sent {sent}, but the closed form of {optimizer.name} says "
            f"{expected}"
        )
    # A collective: every worker enters, also those that record nothing.
    with optimizer.consensus():
        # Two runs with the same digest ended the same, to the bit. One row tells: here all are the
        # average.
        average = optimizer.flat.parameters[0].detach().cpu().numpy()
        digest = hashlib.sha256(average.tobytes()).hexdigest()
    training.clock.switch("evaluate")
    accuracies = worker_accuracies(
        training.models,
        training.precision,
        collectives,
        training.samples,
        training.num_evaluation,
    )
    training.clock.switch("compute")
    if training.recorder is not None:
        training.recorder.finish(
            _result(training, training.recorder, digest, accuracies)
        )
        # Last: without a result a run can only go on from there. Stopped in between, the next
        # launch of the experiment clears up.
        checkpoint.discard(training.job.checkpoints)


def _result(
    training: Training, recorder: Recorder, digest: str, accuracies: list[float]
) -> Result:
    """Return the run's result; `accuracies` are each worker's own."""
    # The last score of a run that diverged is of an earlier model.
    score = training.score if training.diverged_at is None else None
    modality = training.samples.modality
    sent = {
        purpose.value: entry
        for purpose, entry in training.collectives.traffic.entries.items()
    }
    bits = training.collectives.traffic.training_bits
    numel = numel_of(training.optimizer.replicas)
    return Result(
        version=store.VERSION,
        run_id=recorder.run_id,
        attempt=recorder.attempt,
        status="done" if score else "diverged",
        diverged_at_step=training.diverged_at,
        num_steps=training.step,
        num_parameters=numel,
        world_size=training.collectives.world_size,
        traffic=_recorded(sent),
        expected_traffic=_recorded(training.expected_traffic.training()),
        # d numbers of 32 bits a step, which DDP sends, over what was sent.
        overall_ratio=32 * numel * training.step / bits if bits else None,
        clock_seconds=training.clock.seconds,
        wall_seconds=training.clock.wall_seconds,
        parameters_sha256=digest,
        class_counts=training.class_counts,
        worker_accuracy=accuracies if score else None,
        data_name=modality.data_name,
        data_sha256=modality.sha256,
        **_scores(training.train_loss, score),
    )


def _recorded(traffic: dict[str, Entry]) -> dict[str, TrafficEntry]:
    return {
        purpose: TrafficEntry(**asdict(entry)) for purpose, entry in traffic.items()
    }
