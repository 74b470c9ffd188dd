"""What Slurm's queue says of a run's job, for the judgement of its state: a hint, after its records."""

from __future__ import annotations

import datetime

from harness.records.state import Submitted
from slurm.campaign import Submission
from slurm.policy import ALWAYS, COUNTED

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")


def submitted(submission: Submission | None, job: str | None, queue: dict[str, str] | None) -> Submitted | None:
    """Of a run that was submitted as `job`; None where it never was.

    Args:
        queue: states by job, as squeue says them, or None where it does not answer.
    """
    if submission is None:
        return None
    at = datetime.datetime.fromisoformat(submission.submitted_at).timestamp()
    said = None if queue is None else queue.get(job or "")
    on = "waits" if said in WAITING else "runs" if said else "gone"
    return Submitted(None if queue is None else on, at, (*ALWAYS, *COUNTED))  # type: ignore[arg-type]
