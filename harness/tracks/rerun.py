"""One run of an entry, done again, and what it shows of the entered one."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path

import torch

from cser_bench.harness.records.provenance import new_attempt, now
from cser_bench.harness.records.store import Attempt, Failure, Result, read_record, read_run
from cser_bench.harness.records.tracks import RERUNS, Agreement, Entry, Rerun, Track
from cser_bench.harness.spec.run import PlannedRun, RunConfig, run_id
from cser_bench.harness.tracks.errors import EntryError
from cser_bench.harness.tracks.form import Checked
from cser_bench.harness.train.training import Job
from cser_bench.harness.workers.attempt import attempt_stacked


def rerun(track: Track, entry: Entry, checked: Checked, seed: int, data: Path | None) -> Rerun:
    """Do an entry's run of this seed again, and add what came of it to the entry.

    Raises EntryError: the track has no such seed, or the run failed here, which says nothing of the
    entry.
    """
    if seed not in checked.configs:
        raise EntryError(
            f"{entry.name} has no run of seed {seed}; it has {sorted(checked.configs)}"
        )
    entered = checked.results[seed]
    attempt = new_attempt("stacked", "stacked", torch.device("cpu"))
    result = _done_again(entry, checked.configs[seed], attempt, data)
    assert entered.test_loss is not None
    line = Rerun(
        seed=seed,
        loss_entered=entered.test_loss,
        loss=result.test_loss,
        agreement=agreement(track, entered, result),
        cpu=attempt.cpu,
        torch=attempt.packages["torch"],
        git_commit=attempt.git_commit,
        done_at=now(),
    )
    with (entry.folder / RERUNS).open("a") as file:
        file.write(json.dumps(line.model_dump(mode="json")) + "\n")
    return line


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


def _done_again(entry: Entry, config: RunConfig, attempt: Attempt, data: Path | None) -> Result:
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
            cores=tuple(sorted(os.sched_getaffinity(0))),
            # The folder goes when this is over, and nobody could go on from a checkpoint in it.
            checkpoint_minutes=math.inf,
            timeout_seconds=300.0,
        )
        if not attempt_stacked(job):
            failure = read_record(folder / "failure.json", Failure)
            raise EntryError(
                f"{entry.name}: the run failed here, {failure.kind}: {failure.message}"
            )
        result = read_run(folder).result
        assert result is not None
        return result
