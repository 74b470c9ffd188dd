"""Who owns a lab, and how its namespaces go: at its end, or at the next start when it was killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.timing.layout import LabError

MARKS = Path("/run/cserlab")
"""A file for each lab, by its prefix: its owner, and the namespaces that are its own. /run does not outlive a boot,
and neither do namespaces."""
NAMESPACES = Path("/run/netns")
KILLING_SECONDS = 10.0


def claim(prefix: str, namespaces: Sequence[str]) -> None:
    """Make this process the owner of a lab, after what a dead owner left is removed.

    Raises:
        LabError: the prefix belongs to a lab that is in use, or to something that is no lab.
    """
    with _locked():
        mark = MARKS / f"{prefix}.json"
        owner, theirs = _read(mark)
        if owner is not None and _is_alive(owner):
            raise LabError(f"a lab with the prefix {prefix} is in use by pid {owner[0]}: wait for its end, or end it")
        _refuse_strangers(prefix, theirs)
        remove_namespaces(theirs)
        text = json.dumps({"owner": _identity(os.getpid()), "namespaces": list(namespaces)})
        mark.write_text(text + "\n")


def release(prefix: str) -> None:
    """Remove the lab's namespaces, all processes in them, and its mark. Signals wait until this is done."""
    waiting = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        with _locked():
            mark = MARKS / f"{prefix}.json"
            remove_namespaces(_read(mark)[1])
            mark.unlink(missing_ok=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, waiting)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    MARKS.mkdir(mode=0o755, parents=True, exist_ok=True)
    with open(MARKS / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(mark: Path) -> tuple[tuple[int, int] | None, list[str]]:
    """Owner and namespaces; a mark that was torn by a kill was written before there was a namespace."""
    try:
        found = json.loads(mark.read_text())
        pid, start = found["owner"]
        return (int(pid), int(start)), [str(name) for name in found["namespaces"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None, []


def _identity(pid: int) -> tuple[int, int] | None:
    """Pid and start time in ticks since boot: a pid alone comes back. None: there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else (pid, int(fields[19]))


def _is_alive(owner: tuple[int, int]) -> bool:
    return _identity(owner[0]) == owner


def _refuse_strangers(prefix: str, ours: Sequence[str]) -> None:
    namespaces = os.listdir(NAMESPACES) if NAMESPACES.is_dir() else []
    strange = [f"namespace {name}" for name in sorted(namespaces) if name not in ours]
    strange += [f"interface {name}" for _, name in socket.if_nameindex()]  # A lab has none outside its namespaces.
    for what in strange:
        if what.split()[1].startswith(f"{prefix}-"):
            raise LabError(f"the {what} was not made by a lab: remove it, or choose another prefix")


def remove_namespaces(namespaces: Sequence[str]) -> None:
    """End what lives in these namespaces, and delete them; those that do not exist are no matter.

    Raises:
        LabError: a process that does not end, or a namespace that `ip` cannot delete.
    """
    for name in namespaces:
        path = NAMESPACES / name
        if path.exists():
            _empty(path)
            done = subprocess.run(["ip", "netns", "delete", name], capture_output=True, text=True, check=False)
            if done.returncode and path.exists():
                raise LabError(f"the namespace {name} cannot be deleted: {done.stderr.strip()}")


def _empty(path: Path) -> None:
    namespace = path.stat()  # Of a file alone, without a mount, where its maker was killed: nothing lives in that.
    if os.path.samestat(namespace, os.stat("/proc/self/ns/net")):
        raise LabError(f"{path} is this program's own network namespace, not a lab's: remove that file")
    deadline = time.monotonic() + KILLING_SECONDS
    while pids := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_inside(pid, namespace)]:
        if time.monotonic() > deadline:
            raise LabError(f"process {pids[0]} in the namespace {path.name} does not end: end it, and call again")
        for pid in pids:
            _kill(pid, namespace)
        time.sleep(0.01)


def _is_inside(pid: int, namespace: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), namespace)
    except OSError:
        return False


def _kill(pid: int, namespace: os.stat_result) -> None:
    """Kill the process if it still is the one that was found: a descriptor holds it while we look again."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if _is_inside(pid, namespace):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
