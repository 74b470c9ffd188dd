"""What Slurm itself says of jobs: hints, which may be absent or late. Records decide."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

ANSWER_SECONDS = 20


def queued_jobs(slurm_conf: str | None = None) -> dict[str, str] | None:
    """State (PENDING, RUNNING, ...) of each of the user's jobs in the queue by its id, such as 12_0.

    None where squeue does not answer, which is not the same as an empty queue. `slurm_conf` says which Slurm is meant
    where the environment does not.
    """
    lines = _ask(slurm_conf, "squeue", "--me", "--array", "--noheader", "--format=%i|%T")
    return None if lines is None else dict(line.split("|", 1) for line in lines if "|" in line)


def ended_jobs(jobs: Sequence[str], slurm_conf: str | None = None) -> dict[str, str]:
    """State (FAILED, OUT_OF_MEMORY, NODE_FAIL, ...) of jobs that have left the queue, so far as sacct knows them."""
    if not jobs:
        return {}
    options = ("-X", "--noheader", "--parsable2", "--format=JobID,State", f"--jobs={','.join(jobs)}")
    lines = _ask(slurm_conf, "sacct", *options)
    return dict(line.split("|", 1) for line in lines or () if "|" in line)


def _ask(slurm_conf: str | None, *command: str) -> list[str] | None:
    environment = ({"SLURM_CONF": slurm_conf} if slurm_conf else {}) | os.environ
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()
