"""Steps of a run by processes and by stacked workers, which must come to the same.

Stacked workers are rows of one tensor, so that a method could take a mean over rows and send
nothing. A process has one row, and what is not sent does not arrive.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cser_bench.algorithms import (
    Collectives,
    ProcessGroupCollectives,
    StackedCollectives,
)
from cser_bench.algorithms.core.traffic import Entry as Sent
from cser_bench.harness.records.provenance import new_attempt
from cser_bench.harness.records.store import Attempt
from cser_bench.harness.records.tracks import Verification
from cser_bench.harness.spec.run import PlannedRun, RunConfig, run_id
from cser_bench.harness.tracks.errors import EntryError
from cser_bench.harness.train.training import Job, Training
from cser_bench.harness.workers.attempt import prepare_thread
from cser_bench.harness.workers.process_group import joined
from cser_bench.harness.workers.processes import Worker, start_workers

TIMEOUT_SECONDS = 300.0
"""How long a worker waits for others; all of them may share a core."""

AFTERWARDS = 2
"""Steps after all has been sent once, so that what came of it is trained on."""


class Steps(NamedTuple):
    """What came of some steps of the workers at one end.

    Arrays and no tensors, as a tensor that is sent stays with the process that ends.

    Attributes:
        parameters: after the steps, of shape (local workers, d).
        way: how far they went from the start, likewise.
        sent: what one worker sent, by purpose, as it was counted; `expected` by the closed form.
    """

    parameters: NDArray[np.float32]
    way: NDArray[np.float32]
    sent: dict[str, Sent]
    expected: dict[str, Sent]


class Comparison(NamedTuple):
    """How far processes are from stacked workers after some steps, as a share of their way."""

    num_steps: int
    share_of_way: float


def compare_workers(
    name: str, config: RunConfig, rules: Verification, data: Path | None
) -> Comparison:
    """Take a run's first steps twice and compare parameters and bits.

    Passes are in fp32, which differs less between two orders of a sum.

    Args:
        name: the entry's, for messages.
        data: folder with the data set; None looks where it may lie.

    Raises EntryError: they differ, or bits are not those of the closed form; WorkerError: a worker
    failed.
    """
    config = config.model_copy(update={"precision": "fp32"})
    # As the processes do: with more threads a sum has another order.
    prepare_thread()
    # One attempt for both: nothing of it is recorded.
    attempt = new_attempt("verify", "gloo", torch.device("cpu"))
    training = _training(config, StackedCollectives(config.num_workers), data, attempt)
    # Processes are slow here, so no more steps than show each kind of message, and what it led to.
    num_steps = _steps_until_all_is_sent(training, rules.most_steps)
    stacked = _take(training, num_steps)
    arguments = [(config, num_steps, data, attempt)] * config.num_workers
    with start_workers(_as_process, arguments) as workers:
        by_processes: list[Steps] = workers.hear_all()
    for rank, steps in enumerate(by_processes):
        _check_sent(name, steps, stacked, rank, num_steps)
    # (workers, d), by rank, as stacked workers have them.
    parameters = np.concatenate([steps.parameters for steps in by_processes])
    apart = float(np.linalg.norm(parameters - stacked.parameters))
    way = float(np.linalg.norm(stacked.way))
    # Where nothing moved, both must be equal.
    share = apart / way if way else apart
    # Also refuses what is no number.
    if not share <= rules.share_of_way:
        raise EntryError(
            f"{name}: after {num_steps} steps the parameters of processes are {share:.2g} of their "
            f"way from those of stacked workers, where {rules.share_of_way:g} is allowed: what is "
            "not sent cannot have arrived"
        )
    return Comparison(num_steps, share)


def _training(
    config: RunConfig, collectives: Collectives, data: Path | None, attempt: Attempt
) -> Training:
    """Return the training of the workers at one end, from the start and without records."""
    identity = run_id(config)
    # A training looks into it for a checkpoint while it is made, and `_take` writes nothing.
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            experiment="verify",
            folder=Path(folder),
            run=PlannedRun(identity, config.algorithm, config.seed, config),
            attempt=attempt,
            data=data,
            device="cpu",
            cores=(),
            checkpoint_minutes=0.0,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        return Training(job, collectives)


def _steps_until_all_is_sent(training: Training, most: int) -> int:
    """Return the fewest steps in which each purpose that the run sends for has been sent for.

    A few more are taken, but never more than `most`.
    """
    optimizer = training.optimizer
    whole = optimizer.expected_traffic(training.num_steps).training()
    purposes = [purpose for purpose, sent in whole.items() if sent.collectives]
    most = min(most, training.num_steps)
    for num_steps in range(1, most):
        sent = optimizer.expected_traffic(num_steps).training()
        if all(sent[purpose].collectives for purpose in purposes):
            return min(num_steps + AFTERWARDS, most)
    return most


def _take(training: Training, num_steps: int) -> Steps:
    optimizer = training.optimizer
    start = optimizer.flat.parameters.detach().clone().numpy()
    for _ in range(num_steps):
        training.take_step()
    parameters = optimizer.flat.parameters.detach().clone().numpy()
    return Steps(
        parameters,
        parameters - start,
        training.collectives.traffic.training(),
        optimizer.expected_traffic(num_steps).training(),
    )


def _as_process(
    worker: Worker,
    config: RunConfig,
    num_steps: int,
    data: Path | None,
    attempt: Attempt,
) -> Steps:
    """Take the steps as one of the workers' processes."""
    prepare_thread()
    with joined(
        "cpu", TIMEOUT_SECONDS, worker.init_method, worker.rank, worker.world_size
    ):
        training = _training(config, ProcessGroupCollectives(), data, attempt)
        return _take(training, num_steps)


def _check_sent(
    name: str, steps: Steps, stacked: Steps, rank: int, num_steps: int
) -> None:
    if steps.sent == stacked.sent == steps.expected:
        return
    raise EntryError(
        f"{name}: in {num_steps} steps process {rank} sent {_bits(steps.sent):,} bits, a stacked "
        f"worker {_bits(stacked.sent):,}, and the closed form says {_bits(steps.expected):,}"
    )


def _bits(sent: dict[str, Sent]) -> int:
    return sum(item.bits for item in sent.values())
