"""A lab: n workers on one machine, each in a network namespace, on links of a chosen rate. Linux, root."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from harness.timing.links import (
    LabError,
    LabLayout,
    LabTopology,
    creating_lines,
    inside_lines,
    limiting_lines,
    train_lines,
)
from harness.workers.processes import Worker, WorkerProcesses, start_workers

PREFIX = "cserlab"
CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}
MARKS = Path("/run/cserlab")
"""A file for each prefix, with the owner's pid and its namespaces. The owner keeps it locked: however that dies, the
kernel unlocks it. /run does not outlive a boot, and neither do namespaces."""
NAMESPACES = Path("/run/netns")
KILLING_SECONDS = 10.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLONE_NEWNET = 0x40000000


def why_not() -> str | None:
    """Why this machine can have no lab, in a sentence; None where it can."""
    if not sys.platform.startswith("linux"):
        return "a network lab needs Linux, for its network namespaces"
    if os.geteuid() != 0:
        return "a network lab needs root, to make network namespaces: call it with sudo"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"a network lab needs the program {program}: install iproute2"
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    missing = [name for bit, name in CAPABILITIES.items() if effective and not int(effective[1], 16) >> bit & 1]
    return f"a network lab needs {' and '.join(missing)}, which root has not here" if missing else None


class Lab:
    """A lab that is up; made by `lab`."""

    def __init__(self, layout: LabLayout) -> None:
        self._layout = layout
        self.addresses = tuple(layout.address(rank) for rank in range(layout.topology.num_workers))
        """Per rank."""
        self.interface = layout.interface
        """The same name in every worker's namespace: for GLOO_SOCKET_IFNAME."""

    @property
    def topology(self) -> LabTopology:
        """The topology with the rate that links have now: `set_rate` changes it."""
        return self._layout.topology

    def command(self, rank: int, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` inside the rank's namespace, as the same process."""
        return ["ip", "netns", "exec", self._layout.worker(rank), *argv]

    def namespace(self, rank: int) -> Path:
        """The file of the rank's namespace, for setns."""
        return NAMESPACES / self._layout.worker(rank)

    def sent(self) -> list[tuple[int, int]]:
        """Bytes of Ethernet frames, and number of frames, that each machine's link has sent to the switch so far.

        It is the counter of the limit at the machine's end: the interface's own counts a train of segments that TCP
        hands down in one piece with one header.
        """
        return [_counted(link.namespace, link.interface) for link in self._layout.uplinks()]

    def set_rate(self, bits_per_second: float) -> None:
        """Change the machines' links in place, both ways.

        Raises:
            LabError: a rate that no lab can have.
        """
        self._layout = replace(self._layout, topology=replace(self.topology, bits_per_second=bits_per_second))
        _in_namespaces("ip", train_lines(self._layout))
        _in_namespaces("tc", limiting_lines(self._layout, "change"))


@contextmanager
def lab(topology: LabTopology, *, prefix: str = PREFIX) -> Iterator[Lab]:
    """Inside, the lab is up. At the end, also by an exception, SIGINT, SIGTERM or SIGHUP, all of it is gone, and so is
    every process in its namespaces; what a lab that was killed has left, the next one of the same prefix removes.

    Args:
        topology: what to lay out.
        prefix: of all names of namespaces and interfaces, 1 to 8 small letters and digits. A lab owns its prefix.

    Raises:
        LabError: no lab is possible here, or the prefix is in use.
    """
    reason = why_not()
    if reason is None and not re.fullmatch("[a-z0-9]{1,8}", prefix):
        reason = f"a lab's prefix is 1 to 8 small letters and digits, not {prefix!r}"
    if reason:
        raise LabError(reason)
    layout = LabLayout(prefix, topology)
    with _signals_as_exceptions(), _owned(prefix, layout.namespaces()):
        _batch("ip", creating_lines(layout))
        _in_namespaces("ip", inside_lines(layout))
        _in_namespaces("ip", train_lines(layout))
        _in_namespaces("tc", limiting_lines(layout, "add"))
        yield Lab(layout)


@contextmanager
def _owned(prefix: str, namespaces: Sequence[str]) -> Iterator[None]:
    """Inside, the prefix is this process's own; what a dead owner left goes before, and these namespaces go after it.

    Raises:
        LabError: the prefix belongs to a lab that is in use, or to something that is no lab.
    """
    MARKS.mkdir(mode=0o755, parents=True, exist_ok=True)
    with open(MARKS / f"{prefix}.json", "a+") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _marked(mark).get("pid", "unknown")
            raise LabError(f"a lab with the prefix {prefix} is in use by pid {owner}: wait, or end it") from None
        left = _marked(mark).get("namespaces", [])
        _refuse_strangers(prefix, left)
        remove_namespaces(left)
        mark.truncate(0)
        json.dump({"pid": os.getpid(), "namespaces": list(namespaces)}, mark)
        mark.flush()
        try:
            yield
        finally:
            waiting = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            try:
                remove_namespaces(namespaces)
                mark.truncate(0)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, waiting)


def _marked(mark: TextIO) -> dict[str, Any]:
    """The owner's pid and its namespaces; a mark that was torn by a kill was written before there was a namespace."""
    mark.seek(0)
    try:
        found: dict[str, Any] = json.load(mark)
    except ValueError:
        return {}
    return found


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
        if (NAMESPACES / name).exists():
            _empty(name)
            done = subprocess.run(["ip", "netns", "delete", name], capture_output=True, text=True, check=False)
            if done.returncode and (NAMESPACES / name).exists():
                raise LabError(f"the namespace {name} cannot be deleted: {done.stderr.strip()}")


def _empty(name: str) -> None:
    """Kill what lives in a namespace. Of a file alone, without a mount, where its maker was killed, nothing does."""
    deadline = time.monotonic() + KILLING_SECONDS
    listing = ["ip", "netns", "pids", name]
    while pids := subprocess.run(listing, capture_output=True, text=True, check=False).stdout.split():
        if str(os.getpid()) in pids:
            raise LabError(f"{NAMESPACES / name} is this program's own network namespace: remove that file")
        if time.monotonic() > deadline:
            raise LabError(f"process {pids[0]} in the namespace {name} does not end: end it, and call again")
        for pid in map(int, pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _in_namespaces(program: str, lines: dict[str, list[str]]) -> None:
    for namespace, of_namespace in lines.items():
        _batch(program, of_namespace, namespace)


def _batch(program: str, lines: Iterable[str], namespace: str | None = None) -> None:
    where = [] if namespace is None else ["-n", namespace]
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run([program, *where, "-batch", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise LabError(f"this machine's kernel cannot have the lab: {program} says: {said}")


def _counted(namespace: str, interface: str) -> tuple[int, int]:
    command = ["tc", "-n", namespace, "-s", "-j", "qdisc", "show", "dev", interface, "root"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)[0]
    return int(found["bytes"]), int(found["packets"])


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the stack, as SIGINT does, unless the program has a use of its own for them."""
    is_main = threading.current_thread() is threading.main_thread()
    mine = [number for number in ENDING[1:] if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in mine:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def start_inside(network: Lab, work: Callable[..., object], arguments: Sequence[tuple[Any, ...]]) -> WorkerProcesses:
    """Start workers as `start_workers` does, each in the namespace of its rank.

    Pipes are no part of the network, nor is the file by which workers meet.
    """
    whole = [(network.namespace(rank), network.interface, work, *own) for rank, own in enumerate(arguments)]
    return start_workers(_inside, whole, preload=(work.__module__,))


def _inside(
    worker: Worker, namespace: Path | None, interface: str, work: Callable[..., object], *arguments: object
) -> object:
    """Enter the namespace (None: stay), as `ip netns exec` does, and work. os.setns would do, from Python 3.12 on."""
    if namespace is not None:
        with open(namespace) as file:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot enter the network namespace", str(namespace))
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    return work(worker, *arguments)
