"""What is looked at between steps: divergence, whether to save or to stop, and the heartbeat."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from algorithms import Purpose, StackedCollectives
from harness.records.recorder import Recorder
from harness.records.store import Heartbeat
from harness.tasks.task import to_device
from harness.train.training import Preempted, Training

CHECK_EVERY = 25
"""Steps between two looks at the loss: for divergence, heartbeat and checkpoint."""

STOP_SECONDS = 2.0
"""So often, or at every step where one takes longer, workers ask each other whether to stop, which waits for a GPU."""


class Monitor:
    """Watches one worker's training. What it finds, all workers find at the same step."""

    def __init__(self, training: Training) -> None:
        self._training, self._work = training, training.work
        self._save_due = self._stopping = False
        self._ask_every = 1
        """Steps between two questions whether to stop; the first look says how many there may be."""
        self._first_step = self._looked_at_step = training.step
        self._started = self._saved = self._looked = time.monotonic()

    def after_step(self, scored: bool) -> None:
        """Look, where it is time or the average is about to be scored; else ask at times whether to stop."""
        training, work = self._training, self._work
        saves = False
        if scored or training.step % CHECK_EVERY == 0:
            saves = self._look()
        elif work.stop_requested is not None and training.step % self._ask_every == 0:
            alone = isinstance(work.collectives, StackedCollectives)
            self._stopping = self._wants_stop() if alone else self._total([self._wants_stop()]).item() > 0
        else:
            return
        self._save_due = (saves or self._stopping) and training.step < training.num_steps
        recorder = work.recorder
        if recorder is not None and (recorder.heartbeat_is_due() or training.step == training.num_steps):
            recorder.heartbeat(self._heartbeat(recorder))

    def _look(self) -> bool:
        """Look at the mean loss over workers, and whether one of them is to stop; whether one means to save."""
        training, collectives, now = self._training, self._work.collectives, time.monotonic()
        every = self._work.checkpoints.every_seconds
        wants_checkpoint = self._work.recorder is not None and now - self._saved >= every
        step_seconds = (now - self._looked) / (training.step - self._looked_at_step)
        self._looked, self._looked_at_step = now, training.step
        totals = self._total([wants_checkpoint, self._wants_stop(), step_seconds], training.losses).tolist()
        loss_sum, num_losses, savers, stoppers, seconds = totals
        training.train_loss = loss_sum / num_losses if num_losses else math.nan
        if not math.isfinite(training.train_loss):
            training.diverged_at = training.step
        self._stopping = stoppers > 0
        if not isinstance(collectives, StackedCollectives):  # whose workers are asked as one, for nothing
            self._ask_every = max(1, min(CHECK_EVERY, int(STOP_SECONDS * collectives.world_size / seconds)))
        return bool(savers > 0)

    def _total(self, values: list[float], before: Tensor | None = None) -> Tensor:
        """Sums over all workers of what each has `before`, and of these values, float64."""
        losses = self._training.losses
        sent = to_device(torch.tensor(values, dtype=torch.float64), losses.device)
        own = sent.expand(*losses.shape[:-1], -1)
        totals = own.clone() if before is None else torch.cat([before, own], dim=-1)
        self._work.collectives.all_reduce_sum_(totals, Purpose.CONTROL)
        return totals[0]

    def _wants_stop(self) -> bool:
        return self._work.stop_requested is not None and self._work.stop_requested()

    def save_if_due(self) -> None:
        """Save, after the score of the same step: a resumed run would not make it again. Then stop, if that is why.

        Raises:
            Preempted: a stop was requested, and is possible now that the state is saved.
        """
        training, recorder = self._training, self._work.recorder
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
        training, config = self._training, self._work.config
        rate = (training.step - self._first_step) / (time.monotonic() - self._started)
        return Heartbeat(
            attempt=recorder.attempt,
            time=time.time(),
            step=training.step,
            num_steps=training.num_steps,
            epoch=training.step / training.per_epoch,
            loss=training.train_loss,
            accuracy=training.score.accuracy if training.score else None,
            images_per_second=rate * config.batch_size * config.num_workers,
            megabytes_sent=self._work.collectives.traffic.training_bits / 8e6,
            seconds_left=(training.num_steps - training.step) / rate if rate else None,
        )
