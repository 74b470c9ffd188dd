"""How an attempt at a run ended: what its record says, and what can be told where no worker wrote one.

A launch here and a job of Slurm look back at their attempts by these functions. It loads no torch.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path

from cser_bench.harness.records import store
from cser_bench.harness.records.run_lock import locked
from cser_bench.harness.records.store import Failure, FailureKind, RunFile

End = tuple[FailureKind, str]
"""Kind of a failure, and what there is to say of it."""

LAST_BYTES = 1_000_000
"""So much of a log's end is read."""

LOST = re.compile(
    r"Watchdog caught collective operation timeout|watchdog thread terminated with exception"
)
OWN_FAULT = re.compile(
    r"(?:detected by watchdog|terminated with exception)[^\n]*CUDA error"
)
"""The watchdog asks the GPU, too, and may be the first to hear that a kernel failed."""


def write_failure(
    folder: Path,
    run_id: str,
    attempt: str,
    kind: FailureKind,
    message: str,
    trace: str,
    is_last_word: bool = False,
) -> None:
    """Record why an attempt ended without a result.

    Nothing is written if a newer attempt has begun, which then owns the folder.

    The first worker's failure stays, not what follows from it in the others. But "communication" is
    never the cause, and any other failure replaces it.

    Args:
        is_last_word: whether the failure is told by one that looks back at the attempt; it then
            stands over all of these.
    """
    run = store.read_if_whole(folder / "run.json", RunFile)
    # An attempt that run.json does not name failed before it began, and is heard.
    if run is not None and attempt in [
        earlier.attempt for earlier in run.attempts[:-1]
    ]:
        return
    path = folder / "failure.json"
    failure = Failure(
        version=store.VERSION,
        run_id=run_id,
        attempt=attempt,
        kind=kind,
        message=message,
        traceback=trace,
        # Nobody knows it here, but records of this version must have the field.
        step=None,
    )
    # Workers that are processes may fail together, and must not write between each other's look and
    # write.
    with locked(folder / "failure.lock"):
        before = store.read_if_whole(path, Failure)
        # A record of an earlier attempt is replaced in any case.
        if before is not None and before.attempt == attempt and not is_last_word:
            gives_way = is_cause(kind) and not is_cause(before.kind)
            if not gives_way:
                return
        store.write_record(path, failure)


def is_cause(kind: FailureKind) -> bool:
    """Say whether a failure can be why an attempt ended: workers that lost another know no more."""
    return kind != "communication"


def read_failure(folder: Path, attempt: str) -> Failure | None:
    """Return what there is on how this attempt failed.

    Raises RecordError: the record is damaged, or of another version.
    """
    failure = store.read_optional(folder / "failure.json", Failure)
    if failure is None or failure.attempt != attempt:
        return None
    return failure


def recorded_end(folder: Path, attempt: str) -> FailureKind:
    """Return how an attempt that left no result ended; no record means `node`."""
    failure = read_failure(folder, attempt)
    if failure is None:
        return "node"
    return failure.kind


def end_of_processes(was_killed: bool, codes: Sequence[int], log: str) -> End:
    """Return how processes ended that were started here and recorded nothing.

    Args:
        was_killed: whether one was, by someone else than the launch that started it.
        codes: their exit codes; -n for signal n.
        log: what they said in this attempt.
    """
    if was_killed:
        return "oom", (
            "a process of the run was killed, by the system's memory guard or by hand; if it was "
            "the guard, use a smaller batch or lower precision, or fewer runs at once"
        )
    by_watchdog = _by_watchdog(log)
    if -signal.SIGABRT in codes and by_watchdog is not None:
        return by_watchdog
    # Those that were killed were killed here, after one had ended otherwise.
    code = next(
        (code for code in codes if code not in (0, -signal.SIGKILL)), -signal.SIGKILL
    )
    return "bug", f"the run's process ended with code {code}"


def end_of_workers(log: str, is_at_limit: bool) -> End:
    """Return how workers of a job ended that recorded nothing; their exit codes are not known.

    Args:
        log: what they said in this attempt.
        is_at_limit: whether the job's time is over.
    """
    by_watchdog = _by_watchdog(log)
    if by_watchdog is not None:
        return by_watchdog
    unexplained = "the workers ended without a word"
    if is_at_limit:  # they did not come to save within warning_seconds
        return "timeout", unexplained
    return "node", unexplained


def end_without_attempt(was_told_to_stop: bool) -> End:
    """Return how a job ended none of whose workers began an attempt."""
    if was_told_to_stop:
        return "preempted", "the job was told to stop before a worker began"
    return "bug", "the job's processes ended before a worker began"


def _by_watchdog(said: str) -> End | None:
    """Return kind and words of an end by NCCL's watchdog, from what the processes said.

    None if that says nothing of one.

    The watchdog ends a process that waits in vain by SIGABRT, past every handler of exceptions.
    That one worker's kernel failed comes before what the others, who lost it, say of it.
    """
    if not LOST.search(said):
        return None
    if not OWN_FAULT.search(said):
        return (
            "communication",
            "NCCL's watchdog ended workers that waited in vain for one that was lost or late",
        )
    if "CUDA error: out of memory" in said:
        return (
            "oom",
            "the GPU's memory was full; use a smaller batch or lower precision",
        )
    return "bug", "a kernel failed on the GPU, and NCCL's watchdog ended the process"


def tail_of(log: Path, start: int = 0) -> str:
    """Return the end of what a log has from byte `start` on.

    There is nothing where there is no such file.
    """
    try:
        with open(log, "rb") as file:
            size = file.seek(0, 2)
            # A worker may have printed for days; the end has its last words.
            file.seek(max(start, size - LAST_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
