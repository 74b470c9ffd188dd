"""Labs that come up and go, which ends reach each other at which rates, what is left behind; and sweeps of
what they carry."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, median
from threading import Thread

import pytest
import torch
from torch import distributed as dist

from cser_bench.algorithms import MCSER, BlockSparsifier, ProcessGroupCollectives
from cser_bench.harness.records.run_lock import BusyError
from cser_bench.harness.records.store import read_record
from cser_bench.harness.records.timings import Sweep
from cser_bench.harness.timing import sweep as sweeps
from cser_bench.harness.timing.lab import lab, start_inside, why_not
from cser_bench.harness.timing.links import LabError, LabTopology, relay
from cser_bench.harness.workers.process_group import joined
from cser_bench.harness.workers.processes import Worker
from tests.harness.support import CommandLine
from tests.timing.conftest import (
    HEADER_BYTES,
    is_alive,
    limits,
    namespaces,
    needs_lab,
    output,
)

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[2]
OWNER = """
import signal, subprocess, sys, time
from cser_bench.harness.timing import lab
from cser_bench.harness.timing.links import LabTopology
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored where tests are started by nohup
lab.PREFIX = sys.argv[1]
with lab.lab(LabTopology(2, 2, 1e8)) as network:
    print(subprocess.Popen(network.command(3, ["sleep", "600"])).pid, flush=True)
    time.sleep(600)
"""
NUMEL = 4_000_000
NUM_WORKERS = 3
Owner = tuple[subprocess.Popen[str], int]


@pytest.fixture
def owner(prefix: str) -> Iterator[Owner]:
    """A process that has a lab of 2 x 2 workers up, and the pid of a process in the last
    namespace."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", OWNER, prefix]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


@needs_lab
@pytest.mark.usefixtures("prefix")
def test_links_carry_the_counted_payload_and_headers() -> None:
    """What an optimiser counts as sent, against the counters of the links that its workers are
    on."""
    with (
        lab(LabTopology(NUM_WORKERS, 1, 1e9)) as network,
        start_inside(network, _train, [()] * NUM_WORKERS) as workers,
    ):
        before = workers.hear_all()
        sent_before = network.sent()
        for rank in range(NUM_WORKERS):
            workers.tell(rank, "train")
        counted = workers.hear_all()
        sent = network.sent()
        # Four steps send an eighth of the numbers, and two of them a quarter besides.
        payload_bits = 32 * NUMEL * (4 / 8 + 2 / 4)
        assert [now - then for now, then in zip(counted, before, strict=True)] == [
            payload_bits
        ] * NUM_WORKERS
        # An all-reduce over n workers is a ring of n - 1 steps there and n - 1 back, each of 1/n of
        # the payload.
        expected = 2 * (NUM_WORKERS - 1) / NUM_WORKERS * payload_bits / 8
        for (num_bytes, frames), (bytes_before, frames_before) in zip(
            sent, sent_before, strict=True
        ):
            carried = num_bytes - bytes_before - HEADER_BYTES * (frames - frames_before)
            assert carried == pytest.approx(expected, rel=0.03)


def _train(worker: Worker) -> None:
    with joined("cpu", 60.0, worker.init_method, worker.rank, worker.world_size):
        parameter = torch.nn.Parameter(torch.zeros(NUMEL))
        compressors = {
            "gradient_compressor": BlockSparsifier(ratio=8),
            "error_compressor": BlockSparsifier(ratio=4),
        }
        optimizer = MCSER(
            [parameter],
            lr=0.1,
            momentum=0.9,
            weight_decay=0.0,
            reset_interval=2,
            collectives=ProcessGroupCollectives(),
            **compressors,
        )
        dist.barrier()
        worker.pipe.send(optimizer.traffic.training_bits)
        worker.pipe.recv()
        for _ in range(4):
            assert parameter.grad is not None
            parameter.grad.fill_(1.0)
            optimizer.step()
        worker.pipe.send(optimizer.traffic.training_bits)
        worker.pipe.recv()


@needs_lab
def test_nothing_is_left_and_nothing_is_outside(prefix: str) -> None:
    before = output("ip", "-brief", "link")
    with pytest.raises(ZeroDivisionError), lab(LabTopology(2, 2, 1e8)) as network:
        assert len(namespaces(f"{prefix}-")) == 3, "two machines and a switch"
        assert output("ip", "-brief", "link") == before
        asleep = network.command(1, ["sleep", "600"])
        inside = subprocess.Popen(asleep)
        _until(lambda: _namespace_of(inside.pid) != _namespace_of(os.getpid()))
        raise ZeroDivisionError
    assert inside.wait(10) == -signal.SIGKILL
    assert not namespaces(f"{prefix}-")


@needs_lab
def test_a_signal_ends_the_lab(prefix: str, owner: Owner) -> None:
    process, inside = owner
    process.send_signal(signal.SIGHUP)
    process.wait(20)
    assert not namespaces(f"{prefix}-")
    assert not is_alive(inside)


@needs_lab
def test_what_a_killed_lab_left_is_removed_by_the_next_and_nothing_else_is(
    prefix: str, owner: Owner
) -> None:
    process, inside = owner
    with (
        pytest.raises(BusyError, match="a lab is up on this machine already"),
        lab(LabTopology(2, 1, 1e8)),
    ):
        pass
    assert len(namespaces(f"{prefix}-")) == 3 and is_alive(inside), (
        "a lab in use is left alone"
    )
    other = f"other{prefix}-m0"
    output("ip", "netns", "add", other)
    bystander = subprocess.Popen(["ip", "netns", "exec", other, "sleep", "600"])
    try:
        process.kill()
        process.wait()
        assert len(namespaces(f"{prefix}-")) == 3 and is_alive(inside), (
            "kill -9 leaves all"
        )
        with lab(LabTopology(3, 1, 1e8)):
            assert len(namespaces(f"{prefix}-")) == 4
            assert not is_alive(inside)
        assert not namespaces(f"{prefix}-")
        assert other in namespaces()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        output("ip", "netns", "delete", other)


@needs_lab
def test_links_are_limited_at_both_ends_and_congestion_control_is_not_the_hosts(
    prefix: str,
) -> None:
    with lab(LabTopology(2, 2, 3e6)) as network:
        assert [network.namespace(rank).name[-2:] for rank in range(4)] == [
            "m0",
            "m0",
            "m1",
            "m1",
        ]
        for rate in (3e6, 5e6):
            network.set_rate(rate)
            assert network.topology == LabTopology(2, 2, rate)
            assert limits(f"{prefix}-m1") == {network.interface: rate}
            assert limits(f"{prefix}-switch") == {"m0": rate, "m1": rate}
        routes = output(
            "ip", "-n", f"{prefix}-m1", "route", "show", "table", "all"
        ).splitlines()
        chosen = [route.split()[0] for route in routes if "congctl cubic" in route]
        assert chosen == ["10.83.0.0/24", "local"], (
            "to other machines, and to the machine's own workers"
        )


LISTENER = """
import socket, sys, time
with socket.create_server(("", 9)) as server:
    print("up", flush=True)
    connection, _ = server.accept()
    received, began = 0, None
    while data := connection.recv(1 << 20):
        began = began or time.monotonic()
        received += len(data)
    print(received, time.monotonic() - began, flush=True)
"""
SENDER = """
import socket, sys, time
began = time.monotonic()
with socket.create_connection((sys.argv[1], 9)) as connection:
    print(time.monotonic() - began, flush=True)
    connection.sendall(bytes(int(sys.argv[2])))
"""


@needs_lab
@pytest.mark.usefixtures("prefix")
@pytest.mark.parametrize("jitter_seconds", [0.0, 0.05])
def test_a_relay_adds_the_latency_both_ways_and_keeps_the_rate(
    jitter_seconds: float,
) -> None:
    """A connection stands after a packet there and one back; a long transfer goes at the rate of
    its link."""
    latency_seconds = 0.1
    rate = 20e6
    num_bytes = round(rate / 8 * 3)
    with lab(LabTopology(2, 1, rate, latency_seconds, jitter_seconds)) as network:
        listen = network.command(1, [sys.executable, "-c", LISTENER])
        with subprocess.Popen(listen, stdout=subprocess.PIPE, text=True) as listener:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "up\n"
            send = network.command(
                0, [sys.executable, "-c", SENDER, "10.83.0.2", str(num_bytes)]
            )
            there_and_back = float(output(*send))
            said = listener.stdout.readline()
            received, seconds = (float(each) for each in said.split())
        sent = network.sent()[0][0]
    least = 2 * latency_seconds
    most = 2 * (latency_seconds + jitter_seconds)
    assert least <= there_and_back < most + 0.5  # which a busy machine adds
    assert received == num_bytes
    assert num_bytes < sent < 1.1 * num_bytes
    # Where packets come in bunches, TCP's window grows more slowly.
    share = 0.2 if jitter_seconds else 0.5
    assert share * rate < 8 * received / seconds < 1.1 * rate


def test_on_a_way_that_varies_packets_take_longer_by_chance_and_none_overtakes_another() -> (
    None
):
    latency_seconds = 0.02
    jitter_seconds = 0.05
    with ExitStack() as stack:
        (sender, ours), (receiver, theirs) = (
            socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)
        )
        for each in (sender, ours, receiver, theirs):
            stack.enter_context(each)
        receiver.settimeout(10)
        orders, end = os.pipe()
        devices = [ours.fileno(), theirs.fileno()]
        passes_on = Thread(
            target=relay,
            args=(devices, latency_seconds, jitter_seconds, orders),
            daemon=True,
        )
        passes_on.start()
        packets = [b"\x45" + bytes(18) + bytes([2, number]) for number in range(40)]
        seconds = []
        for packet in packets[:10]:
            began = time.monotonic()
            sender.send(packet)
            assert receiver.recv(100) == packet
            seconds.append(time.monotonic() - began)
        assert min(seconds) >= latency_seconds
        # The mean of ten draws from 0 to 1 is below 1/4 once in 700 times, and drawn alike each time.
        assert mean(seconds) >= latency_seconds + jitter_seconds / 4
        assert median(seconds) < latency_seconds + jitter_seconds + 1
        assert max(seconds) - min(seconds) > jitter_seconds / 4
        for packet in packets[10:]:
            sender.send(packet)
        later = [receiver.recv(100) for _ in packets[10:]]
        assert later == packets[10:]
        os.close(end)
        passes_on.join()
        os.close(orders)


@needs_lab
def test_a_relay_that_ended_is_said_and_with_its_lab_it_ends(prefix: str) -> None:
    with lab(LabTopology(2, 1, 1e8, 0.01)) as network:
        assert network.topology == LabTopology(2, 1, 1e8, 0.01)
        assert limits(f"{prefix}-m1") == {network.interface: 1e8}
        assert f"{prefix}-switch" not in namespaces()
        pids = output("ip", "netns", "pids", f"{prefix}-m1")
        [pid] = (int(each) for each in pids.split())
        network.set_rate(5e7)
        assert limits(f"{prefix}-m0") == {network.interface: 5e7}
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(
            LabError, match="the relay between the lab's machines ended"
        ):
            network.set_rate(1e7)
    assert not namespaces(prefix)
    with lab(LabTopology(2, 1, 1e8, 0.01)):
        pids = output("ip", "netns", "pids", f"{prefix}-m1")
        [pid] = (int(each) for each in pids.split())
    _until(lambda: not is_alive(pid))


def test_where_there_can_be_no_lab_a_sentence_says_why(
    monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for missing in ("ip", "tc"):
        monkeypatch.setattr(
            shutil,
            "which",
            lambda name, missing=missing: None if name == missing else "/usr/sbin",
        )
        assert f"needs the program {missing}" in str(why_not())
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert "needs root" in cli.refused("netlab")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "needs Linux" in str(why_not())


def _namespace_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def test_numbers_that_no_lab_can_have_are_one_sentence(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cser_bench.harness.timing.lab.why_not", lambda: None)
    for words, said in {
        "--workers 8 --machines 3": "8 workers are not as many on each of 3 machines",
        "--workers 300": "a lab has 1 to 250 machines, not 300",
        "--workers 4 --rates 0.001": "a link's rate is at least 10 kb/s, not 1000 bit/s",
    }.items():
        refusal = cli.refused("netlab", *words.split())
        assert refusal.startswith(said)
    for latency_seconds, jitter_seconds in ((0.0, 0.01), (0.01, -0.01)):
        with pytest.raises(LabError, match="a link's jitter is at least 0 s"):
            LabTopology(2, 1, 1e8, latency_seconds, jitter_seconds)


# Sweeps


@needs_lab
def test_the_command_records_what_can_be_emulated(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    monkeypatch.setattr(sweeps, "POINT_SECONDS", 0.01)
    monkeypatch.setattr(sweeps, "LONGEST_POINT_SECONDS", 0.1)
    printed = cli.out(
        "netlab", "--workers", "2", "--rates", "20,500000", "--output", tmp_path
    )
    assert "cannot emulate 2 x 500 Gb/s" in printed
    assert "20 Mb/s" in printed
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ["sweep-2x1-20mbps.json"]
    found = read_record(tmp_path / "sweep-2x1-20mbps.json", Sweep)
    assert found.fabric.bits_per_second == 20e6
    assert {point.collective for point in found.points} == {
        "all_reduce",
        "all_gather",
        "exchange",
    }
    for point in found.points:
        assert point.wire_bytes is not None
        assert point.wire_frames is not None
        if point.payload_bytes >= 100_000:
            assert point.wire_bytes - HEADER_BYTES * point.wire_frames == pytest.approx(
                point.formula_bytes, rel=0.05
            )
    assert not namespaces(f"{prefix}-")
