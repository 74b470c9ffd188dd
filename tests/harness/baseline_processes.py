"""What the processes of the baselines' tests do: here, so that other interpreters can import it."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

from algorithms import ProcessGroupCollectives
from algorithms.baselines import ddp
from harness.tasks import blobs
from harness.workers.attempt import Job, attempt_in_group, prepare_thread
from harness.workers.process_group import joined
from tests.harness.support import DoctoredBlobs, Table

WORLD_SIZE = 3
CASES: dict[str, Table] = {"sgd": {}, "ddp": {}, "ddp_fp16": {}, "ddp_powersgd": {"rank": 1}}
STOPS = {"ddp": [4, 20], "ddp_powersgd": [20]}
"""Steps, counted from 0, before which attempts end; the checkpoint is of step 13."""


class Stopped(Exception):
    """Stands for whatever ends an attempt between two steps."""


def process(rank: int, rendezvous: Path, whole: list[Job], broken: list[list[Job]]) -> None:
    """As one worker: the runs of `whole`, then those of `broken`, each in one attempt more than it has stops."""
    prepare_thread()
    # Several buckets, of 256 numbers or little more, so that their order tells.
    ddp.wrapped = partial(ddp.wrapped, bucket_cap_mb=1 / 1024)  # type: ignore[assignment]
    plain = blobs.TASK
    with joined("cpu", 60.0, f"file://{rendezvous}", rank, WORLD_SIZE):
        for job in whole:
            attempt_in_group(job, ProcessGroupCollectives())
        for *stopped, last in broken:
            for job, stop in zip(stopped, STOPS[last.run.config.algorithm], strict=True):
                blobs.TASK = DoctoredBlobs(hook=partial(_end, stop))
                with suppress(Stopped):
                    attempt_in_group(job, ProcessGroupCollectives())
            blobs.TASK = plain
            attempt_in_group(last, ProcessGroupCollectives())


def _end(stop: int, rank: int, step: int) -> None:
    """All workers, before the same step."""
    if step == stop:
        raise Stopped
