"""One run of an entry, done again by processes, and what it shows of the entered one.

Rows of one tensor could read each other at any step, and the runs that are entered are usually of
stacked workers. A process has its own row alone, to the last step.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from cser_bench.algorithms import ProcessGroupCollectives
from cser_bench.algorithms.core.collectives import sum_in_rank_order
from cser_bench.harness.cores import usable_cores
from cser_bench.harness.records.provenance import new_attempt, now
from cser_bench.harness.records.store import Attempt, Result, read_run
from cser_bench.harness.records.tracks import (
    RERUNS,
    Agreement,
    Rerun,
    Track,
    TrackEntry,
)
from cser_bench.harness.spec.run import PlannedRun, RunConfig, run_id
from cser_bench.harness.tracks.errors import EntryError
from cser_bench.harness.tracks.form import Checked
from cser_bench.harness.tracks.processes import TIMEOUT_SECONDS
from cser_bench.harness.train.train import train
from cser_bench.harness.train.training import Job
from cser_bench.harness.workers.attempt import prepare_thread
from cser_bench.harness.workers.process_group import joined
from cser_bench.harness.workers.processes import Worker, WorkerError, start_workers


def rerun(
    track: Track, entry: TrackEntry, checked: Checked, seed: int, data: Path | None
) -> Rerun:
    """Do an entry's run of this seed again, and add what came of it to the entry.

    Raises EntryError: the track has no such seed, or the run failed here, which says nothing of the
    entry.
    """
    if seed not in checked.configs:
        raise EntryError(
            f"{entry.name} has no run of seed {seed}; it has {sorted(checked.configs)}"
        )
    entered = checked.results[seed]
    attempt = new_attempt("processes", "gloo", torch.device("cpu"))
    result = _done_again(entry, checked.configs[seed], attempt, data)
    assert entered.test_loss is not None
    again = Rerun(
        seed=seed,
        loss_entered=entered.test_loss,
        loss=result.test_loss,
        agreement=agreement(track, entered, result),
        cpu=attempt.cpu,
        torch=attempt.packages["torch"],
        git_commit=attempt.git_commit,
        done_at=now(),
    )
    # Added, never replaced: a re-run that contradicts an entry stays on record.
    with (entry.folder / RERUNS).open("a") as file:
        file.write(json.dumps(again.model_dump(mode="json")) + "\n")
    return again


def not_checked(track: Track, form_only: bool, seed: int | None) -> str:
    """Say what a verification leaves open.

    Args:
        form_only: it took no step.
        seed: of the run that it did again, if any.
    """
    left = [other for other in track.seeds if other != seed]
    runs = f"the runs of seeds {', '.join(map(str, left))}, which were not done again"
    parts = [runs] if left else []
    if form_only:
        parts.insert(0, "any step by processes")
    parts.append(
        "what else the source does: it is code that runs here, so read it first"
    )
    return f"not checked: {'; '.join(parts)}"


def agreement(track: Track, entered: Result, again: Result) -> Agreement:
    """Say how well two results of the same run agree.

    Bits are only asked to be equal on the same kind of CPU, and names of CPUs do not tell kinds
    apart, so what differs by less than the tolerance contradicts nothing.
    """
    if again.parameters_sha256 == entered.parameters_sha256:
        return "to the bit"
    if entered.test_loss is None or again.test_loss is None:
        return "contradicted"
    apart = abs(again.test_loss - entered.test_loss)
    if math.isfinite(apart) and apart <= track.verification.loss_nats:
        return "within the tolerance"
    return "contradicted"


def _done_again(
    entry: TrackEntry, config: RunConfig, attempt: Attempt, data: Path | None
) -> Result:
    identity = run_id(config)
    with tempfile.TemporaryDirectory() as results:
        folder = Path(results) / identity
        job = Job(
            experiment="verify",
            folder=folder,
            run=PlannedRun(identity, entry.about.row, config.seed, config),
            attempt=attempt,
            data=data,
            device="cpu",
            cores=tuple(usable_cores()),
            # The folder goes when this is over, and nobody could go on from a checkpoint in it.
            checkpoint_minutes=math.inf,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        try:
            with start_workers(_as_process, [(job,)] * config.num_workers) as workers:
                workers.hear_all()
        except WorkerError as error:
            raise EntryError(f"{entry.name}: the run failed here: {error}") from None
        result = read_run(folder).result
        assert result is not None
        return result


class _InRankOrder(ProcessGroupCollectives):
    """Processes that add as stacked workers do, so that the same run has the same bits."""

    def _sum_(self, tensor: Tensor) -> None:
        # (workers, ...) to a (1, ...) for each: n times the traffic, for the stacked workers' order
        # of additions.
        tensor.copy_(sum_in_rank_order(self._gather(tensor).unsqueeze(1).unbind()))


def _as_process(worker: Worker, job: Job) -> None:
    """Do the run as one of its workers' processes."""
    prepare_thread()
    with joined(
        "cpu", TIMEOUT_SECONDS, worker.init_method, worker.rank, worker.world_size
    ):
        train(job, _InRankOrder(), worker.stop_requested)
