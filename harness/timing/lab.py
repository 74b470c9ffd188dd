"""A lab: n workers on one machine, each in a network namespace, on links of a chosen rate. Linux, root."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from harness.timing.layout import (
    LabError,
    LabLayout,
    LabTopology,
    creating_lines,
    inside_lines,
    limiting_lines,
    train_lines,
)
from harness.timing.leftovers import NAMESPACES, claim, release

PREFIX = "cserlab"
CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}


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
        """As it is now: `set_rate` changes it."""
        return self._layout.topology

    def command(self, rank: int, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` inside the rank's namespace, as the same process."""
        return ["ip", "netns", "exec", self._layout.worker(rank), *argv]

    def namespace(self, rank: int) -> Path:
        """The file of the rank's namespace, for setns."""
        return NAMESPACES / self._layout.worker(rank)

    def bytes_sent(self) -> list[int]:
        """What each machine's link has sent to the switch so far, in bytes of Ethernet frames, per machine."""
        return [num_bytes for num_bytes, _ in self.sent()]

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
    with _signals_as_exceptions():
        claim(prefix, layout.namespaces())
        try:
            _build(layout)
            yield Lab(layout)
        finally:
            release(prefix)


def _build(layout: LabLayout) -> None:
    _batch("ip", creating_lines(layout))
    _in_namespaces("ip", inside_lines(layout))
    _in_namespaces("ip", train_lines(layout))
    _in_namespaces("tc", limiting_lines(layout, "add"))


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
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    mine = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in mine:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
