"""The training loop, the same for stacked workers, processes and Slurm tasks, and what it records of a run."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from typing import Any

from torch import Tensor

from harness.records import store
from harness.records.recorder import Recorder
from harness.records.store import Event, Result, TrafficEntry
from harness.tasks.pairs import PairSamples
from harness.train import checkpoint
from harness.train.evaluate import Score, evaluate, worker_accuracies
from harness.train.monitor import Monitor
from harness.train.order import evaluation_steps
from harness.train.training import Training, Work


def train(work: Work) -> None:
    """Train the workers at this end from the newest checkpoint, or from the start, to a recorded result.

    Raises:
        Preempted: a stop was requested, and is possible now that the state is saved.
        RuntimeError: the bits sent are not those of the method's closed form.
    """
    training = Training(work)
    if work.recorder is not None:
        work.recorder.begin(training.step)
    monitor = Monitor(training)
    scored = evaluation_steps(work.config, training.per_epoch)
    while training.step < training.num_steps and training.diverged_at is None:
        training.take_step()
        monitor.after_step(training.step in scored)
        if training.step in scored and training.diverged_at is None:
            record_score(training)
        monitor.save_if_due()
    record_result(training)


def record_score(training: Training) -> None:
    """Score the workers' average and record it; a loss that is not finite makes the run diverge."""
    work = training.work
    training.clock.switch("evaluate")
    sizes = training.num_evaluation, training.num_train
    score = evaluate(work.config, training.models, training.optimizer, training.precision, work.samples, *sizes)
    training.clock.switch("compute")
    training.losses.zero_()
    if not math.isfinite(score.loss):
        training.diverged_at = training.step
        return
    training.score = score
    if work.recorder is not None:
        work.recorder.event(_event(training, score))


def _event(training: Training, score: Score) -> Event:
    assert training.train_loss is not None
    return Event(
        step=training.step,
        epoch=training.step / training.per_epoch,
        learning_rate=training.optimizer.param_groups[0]["lr"],
        bits_sent=training.work.collectives.traffic.training_bits,
        error_norm=score.error_norm,
        worker_distance=score.worker_distance,
        wall_seconds=training.clock.wall_seconds,
        **_scores(training.train_loss, score),
    )


def _scores(train_loss: float | None, score: Score | None) -> dict[str, Any]:
    """What an event and a result say alike; nothing of a run that diverged."""
    return {
        "train_loss": train_loss if score else None,
        "test_loss": score.loss if score else None,
        "test_correct": score.correct if score else None,
        "test_count": score.count if score else None,
        "test_accuracy": score.accuracy if score else None,
        "metrics": score.metrics if score else None,
    }


def record_result(training: Training) -> None:
    """Check the bits of every worker against the closed form, and record the result.

    Raises:
        RuntimeError: the bits sent are not those of the method's closed form.
    """
    work, optimizer, collectives = training.work, training.optimizer, training.work.collectives
    expected, sent = optimizer.expected_traffic(optimizer.num_steps).training(), collectives.traffic.training()
    if expected != sent:
        raise RuntimeError(
            f"worker {collectives.rank} sent {sent} where the closed form of {work.config.algorithm} says {expected}"
        )
    with optimizer.consensus():
        digest = parameters_sha256(optimizer.flat.parameters[0])
    training.clock.switch("evaluate")
    own = worker_accuracies(training.models, training.precision, collectives, work.samples, training.num_evaluation)
    training.clock.switch("compute")
    if work.recorder is not None:
        work.recorder.finish(_result(training, work.recorder, digest, own))
        checkpoint.discard(work.checkpoints.folder)


def _result(training: Training, recorder: Recorder, digest: str, own: list[float]) -> Result:
    score = training.score if training.diverged_at is None else None
    samples, traffic, optimizer = training.work.samples, training.work.collectives.traffic, training.optimizer
    expected, numel = optimizer.expected_traffic(optimizer.num_steps), optimizer.flat.layout.numel
    return Result(
        version=store.VERSION,
        run_id=recorder.run_id,
        attempt=recorder.attempt,
        status="done" if score else "diverged",
        diverged_at_step=training.diverged_at,
        num_steps=training.step,
        num_parameters=numel,
        world_size=training.work.collectives.world_size,
        traffic={purpose.value: TrafficEntry(**asdict(entry)) for purpose, entry in traffic.entries.items()},
        expected_traffic={key: TrafficEntry(**asdict(entry)) for key, entry in expected.training().items()},
        overall_ratio=32 * numel * training.step / traffic.training_bits if traffic.training_bits else None,
        clock_seconds=training.clock.seconds,
        wall_seconds=training.clock.wall_seconds,
        parameters_sha256=digest,
        class_counts=training.class_counts,
        worker_accuracy=own if score else None,
        data_sha256=getattr(samples, "sha256", None),
        vocabulary_sha256=getattr(samples, "vocabulary_sha256", None),
        signatures=(samples.measure.signatures() or None) if isinstance(samples, PairSamples) else None,
        **_scores(training.train_loss, score),
    )


def parameters_sha256(parameters: Tensor) -> str:
    """Digest of the parameters' bytes: two runs with the same digest ended the same, to the bit."""
    return hashlib.sha256(parameters.detach().cpu().numpy().tobytes()).hexdigest()
