"""A lab: namespaces of one machine that stand for machines, on links of a chosen rate.

It needs Linux, and root.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cser_bench.harness.records.run_lock import locked
from cser_bench.harness.timing.links import (
    FRAME_BYTES,
    QUEUE_BYTES,
    LabError,
    LabTopology,
    burst_bytes,
    enter,
    unit_bytes,
)
from cser_bench.harness.workers.processes import Worker, WorkerProcesses, start_workers

PREFIX = "cserlab"
"""Prefix of the names of a lab's namespaces; all names with it belong to the lab."""
INTERFACE = "eth0"
"""Every machine's link, in its namespace."""
SWITCH = "switch"
BRIDGE = "bridge"
CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}
LOCKS = Path("/run/cserlab")
"""A file for each prefix, which a lab's owner keeps locked. /run does not outlive a boot, and
neither do namespaces."""
ALREADY = "a lab is up on this machine already: wait, or end the process that has it"
NAMESPACES = Path("/run/netns")
CONGESTION_CONTROL = "cubic"
"""Linux's usual one, whatever the host is set to: BBR, for one, stops every ten seconds to look for
a shorter way."""
KILLING_SECONDS = 10.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def why_not() -> str | None:
    """Say why this machine can have no lab, in a sentence; None where it can."""
    if not sys.platform.startswith("linux"):
        return "a network lab needs Linux, for its network namespaces"
    if os.geteuid() != 0:
        return "a network lab needs root, to make network namespaces: call it with sudo"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"a network lab needs the program {program}: install iproute2"
    status = Path("/proc/self/status").read_text()
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    if effective is None:
        return None
    # A bit for each capability that is in force.
    bits = int(effective[1], 16)
    missing = [name for bit, name in CAPABILITIES.items() if not bits >> bit & 1]
    if missing:
        return f"a network lab needs {' and '.join(missing)}, which root has not here"
    return None


class Lab:
    """A lab that is up; made by `lab`.

    A machine is a namespace with one interface, a link to the switch, which is a bridge in a
    namespace of its own, or a relay where links have latency. Its workers are in it together.

    Attributes:
        topology: with the rate that links have now; `set_rate` changes it.
        interface: the same name in every machine: for GLOO_SOCKET_IFNAME.
    """

    interface = INTERFACE

    def __init__(self, topology: LabTopology, prefix: str) -> None:
        self.topology = topology
        self._prefix = prefix
        self._machines = [
            f"{prefix}-m{index}" for index in range(topology.num_machines)
        ]
        self._relay: subprocess.Popen[str] | None = None

    def command(self, rank: int, argv: Sequence[str]) -> list[str]:
        """Make the command that runs `argv` on the rank's machine, as the same process."""
        return ["ip", "netns", "exec", self.namespace(rank).name, *argv]

    def namespace(self, rank: int) -> Path:
        """Name the file of the namespace of the rank's machine, for setns."""
        return NAMESPACES / self._machines[rank // self.topology.workers_per_machine]

    def sent(self) -> list[tuple[int, int]]:
        """Count bytes of frames, and frames, that each machine's link has sent to the switch so far.

        It is the counter of the limit at the machine's end: the interface's own counts a train of
        segments that TCP hands down in one piece with one header.
        """
        return [_counted(machine) for machine in self._machines]

    def set_rate(self, bits_per_second: float) -> None:
        """Change the links in place, both ways.

        Raises:
            LabError: a rate that no lab can have.
        """
        self.topology = replace(self.topology, bits_per_second=bits_per_second)
        rate = round(bits_per_second)
        burst = burst_bytes(bits_per_second)
        limit = f"root tbf rate {rate}bit burst {burst} limit {QUEUE_BYTES}"
        # TCP hands a link at most a burst in one piece: the limit would cut a larger one into
        # frames, which takes much more CPU. Sockets look the number up with their route, so that is
        # forgotten.
        frames = f"link set {INTERFACE} gso_max_segs {burst // FRAME_BYTES}"
        if self._relay is not None:
            # It is the first to be told, since without it there are no interfaces.
            self._tell_relay(f"{bits_per_second}\n")
            frames = f"link set {INTERFACE} mtu {unit_bytes(bits_per_second)}"
        for machine in self._machines:
            _batch("ip", [frames, "route flush cache"], machine)
            _batch("tc", [f"qdisc replace dev {INTERFACE} {limit}"], machine)
        if self._relay is not None:
            return
        ports = range(self.topology.num_machines)
        lines = [f"qdisc replace dev m{index} {limit}" for index in ports]
        _batch("tc", lines, f"{self._prefix}-{SWITCH}")

    def lay_out(self) -> None:
        """Make the namespaces and the links between them.

        IPv6 stays off and bridges do not chat: nothing but workers send.
        """
        _batch("ip", [f"netns add {name}" for name in self._machines])
        if self.topology.latency_seconds:
            self._start_relay()
        else:
            self._add_switch()
        for index, machine in enumerate(self._machines):
            address = _address(index)
            how = f"src {address} congctl {CONGESTION_CONTROL}"
            # With noprefixroute, as the kernel's own route would name no congestion control.
            lines = [
                f"addr add {address}/24 dev {INTERFACE} noprefixroute",
                f"route add {_address(-1)}/24 dev {INTERFACE} {how}",
                # between the machine's own workers
                f"route replace local {address} dev {INTERFACE} table local {how}",
            ]
            _batch("ip", [*_up("lo"), *_up(INTERFACE), *lines], machine)
        self.set_rate(self.topology.bits_per_second)

    def _add_switch(self) -> None:
        switch = f"{self._prefix}-{SWITCH}"
        _batch("ip", [f"netns add {switch}"])
        links = [
            f"link add {INTERFACE} netns {name} type veth peer name m{index} netns {switch}"
            for index, name in enumerate(self._machines)
        ]
        _batch("ip", links)
        ports = [f"m{index}" for index in range(len(self._machines))]
        lines = [f"link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0"]
        lines += [f"link set {port} master {BRIDGE}" for port in ports]
        for interface in (BRIDGE, *ports):
            lines += _up(interface)
        _batch("ip", lines, switch)

    def _start_relay(self) -> None:
        """Start the relay, which makes the machines' interfaces.

        It lives in the last machine's namespace, with which it is ended.
        """
        namespaces = [str(NAMESPACES / name) for name in self._machines]
        latency = [
            str(self.topology.latency_seconds),
            str(self.topology.jitter_seconds),
        ]
        arguments = [
            sys.executable,
            "-m",
            "cser_bench.harness.timing.links",
            INTERFACE,
            *latency,
        ]
        pipe = subprocess.PIPE
        self._relay = subprocess.Popen(
            [*arguments, *namespaces], stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        # No order: it answers once the interfaces are there.
        self._tell_relay("")

    def _tell_relay(self, order: str) -> None:
        """Send the relay a line, and wait for its answer.

        Raises:
            LabError: it has ended.
        """
        relay = self._relay
        assert relay is not None
        assert (
            relay.stdin is not None
            and relay.stdout is not None
            and relay.stderr is not None
        )
        # Where it has ended, its last words say why, and are read below.
        with suppress(BrokenPipeError):
            relay.stdin.write(order)
            relay.stdin.flush()
        if not relay.stdout.readline():
            last_line = relay.stderr.read().strip().rpartition("\n")[2]
            raise LabError(
                f"the relay between the lab's machines ended: {last_line or 'without a word'}"
            )


def _address(machine: int) -> str:
    """Give the machine's address; of -1, their network's."""
    return f"10.83.0.{machine + 1}"


def _up(interface: str) -> list[str]:
    return [f"link set {interface} addrgenmode none", f"link set {interface} up"]


@contextmanager
def lab(topology: LabTopology) -> Iterator[Lab]:
    """Have a lab up inside.

    At the end, also by an exception, SIGINT, SIGTERM or SIGHUP, all of it is gone, and so is every
    process in its namespaces. What a lab that was killed has left, the next one removes.

    Raises:
        LabError: no lab is possible.
        BusyError: one is up already.
    """
    if reason := why_not():
        raise LabError(reason)
    network = Lab(topology, PREFIX)
    with _signals_as_exceptions(), locked(LOCKS / PREFIX, 0.0, ALREADY):
        # Under the lock, so that what is there belongs to no lab that is up.
        remove_namespaces(PREFIX)
        try:
            network.lay_out()
            yield network
        finally:
            # A second Ctrl-C waits until all is gone.
            waiting = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            try:
                remove_namespaces(PREFIX)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, waiting)


def remove_namespaces(prefix: str) -> None:
    """End what lives in the namespaces of this prefix, and delete them.

    Raises:
        LabError: one stays.
    """
    for path in sorted(NAMESPACES.glob(f"{prefix}-*")):
        _empty(path.name)
        command = ["ip", "netns", "delete", path.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and path.exists():
            raise LabError(
                f"the namespace {path.name} cannot be deleted: {done.stderr.strip()}"
            )


def _empty(name: str) -> None:
    """Kill what lives in a namespace.

    Nothing lives in a file without a mount, which stays where its maker was killed.
    """
    deadline = time.monotonic() + KILLING_SECONDS
    while pids := _processes_in(name):
        if str(os.getpid()) in pids:
            raise LabError(
                f"{NAMESPACES / name} is this program's own network namespace: remove that file"
            )
        if time.monotonic() > deadline:
            raise LabError(
                f"process {pids[0]} in the namespace {name} does not end: end it, and call again"
            )
        # In a loop: what is killed takes a moment to end, and may have forked before.
        for pid in map(int, pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _processes_in(namespace: str) -> list[str]:
    command = ["ip", "netns", "pids", namespace]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return listed.stdout.split()


def _batch(program: str, lines: Sequence[str], namespace: str | None = None) -> None:
    """Have `ip` or `tc` do these lines, in a namespace where one is given."""
    where = [] if namespace is None else ["-n", namespace]
    # One process for all lines, since to start one takes longer than its work.
    command = [program, *where, "-batch", "-"]
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise LabError(
            f"this machine's kernel cannot have the lab: {program} says: {reason}"
        )


def _counted(namespace: str) -> tuple[int, int]:
    command = [
        "tc",
        "-n",
        namespace,
        "-s",
        "-j",
        "qdisc",
        "show",
        "dev",
        INTERFACE,
        "root",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # The first discipline listed is the limit itself.
    [limit] = json.loads(done.stdout)[:1]
    return int(limit["bytes"]), int(limit["packets"])


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, as SIGINT does.

    They do not where the program has a use of its own for them.
    """
    taken = []
    # Python sets handlers in the main thread alone.
    if threading.current_thread() is threading.main_thread():
        taken = [
            number
            for number in ENDING[1:]
            if signal.getsignal(number) is signal.SIG_DFL
        ]
    for number in taken:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def start_inside(
    network: Lab, work: Callable[..., object], arguments: Sequence[tuple[Any, ...]]
) -> WorkerProcesses:
    """Start workers as `start_workers` does, each in the namespace of its rank's machine.

    Pipes are no part of the network, nor is the file by which workers meet.
    """
    with_places = [
        (network.namespace(rank), network.interface, work, *arguments_of_rank)
        for rank, arguments_of_rank in enumerate(arguments)
    ]
    return start_workers(_inside, with_places, preload=(work.__module__,))


def _inside(
    worker: Worker,
    namespace: Path | None,
    interface: str,
    work: Callable[..., object],
    *arguments: object,
) -> object:
    """Enter the namespace (None: stay), as `ip netns exec` does, and work."""
    if namespace is not None:
        enter(str(namespace))
    # By itself gloo takes the interface that the host's name leads to, which no namespace has.
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    return work(worker, *arguments)
