"""The training loop: the same for stacked workers, processes and Slurm tasks."""

from __future__ import annotations

from harness.spec import RunConfig
from harness.train.monitor import Monitor
from harness.train.summary import record_result, record_score
from harness.train.training import Training
from harness.train.work import Work


def train(work: Work) -> None:
    """Train one worker's replica from the newest checkpoint, or from the start, to a recorded result.

    Raises:
        Preempted: a stop was requested, and is possible now that the state is saved.
        RuntimeError: the bits sent are not those of the method's closed form.
    """
    training = Training(work)
    if work.recorder is not None:
        work.recorder.begin(training.step)
    monitor = Monitor(training)
    batches, scored = training.batches(), evaluation_steps(work.config, training.per_epoch)
    while training.step < training.num_steps and training.found.diverged_at is None:
        training.clock.switch("data")
        batch = next(batches)
        training.clock.switch("compute")
        training.take_step(batch, batches)
        monitor.after_step(training.step in scored)
        if training.step in scored and training.found.diverged_at is None:
            record_score(training)
        monitor.save_if_due()
    record_result(training)


def evaluation_steps(config: RunConfig, per_epoch: int) -> set[int]:
    """The steps, counted from 1, after which the average is scored; the last one is always among them."""
    scores = config.evaluation.num_scores or config.evaluation.per_epoch * config.num_epochs
    return {round(number * per_epoch * config.num_epochs / scores) for number in range(1, scores + 1)} - {0}
