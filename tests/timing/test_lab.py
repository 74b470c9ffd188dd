"""Labs that come up and go: who reaches whom, at which rates, what is left behind, and what can be no lab."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from algorithms import MCSER, BlockSparsifier, ProcessGroupCollectives
from harness.__main__ import main
from harness.timing.lab import lab, start_inside, why_not
from harness.timing.links import LabError, LabTopology, burst_bytes, frames_in_one_piece, rate_text
from harness.workers.process_group import joined
from harness.workers.processes import Worker
from tests.timing.conftest import HEADER_BYTES, is_alive, limits, namespaces, needs_lab, output

ROOT = Path(__file__).parents[2]
OWNER = """
import subprocess, sys, time
from harness.timing import lab
from harness.timing.links import LabTopology
lab.PREFIX = sys.argv[1]
with lab.lab(LabTopology(2, 2, 1e8)) as network:
    print(subprocess.Popen(network.command(3, ["sleep", "600"])).pid, flush=True)
    time.sleep(600)
"""
NUMEL, NUM_WORKERS = 4_000_000, 3
Owner = tuple[subprocess.Popen[str], int]


@pytest.fixture
def owner(prefix: str) -> Iterator[Owner]:
    """A process that has a lab of 2 x 2 workers up, and the pid of a process in the last namespace."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", OWNER, prefix]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


@needs_lab
@pytest.mark.usefixtures("prefix")
def test_links_carry_the_counted_payload_and_headers() -> None:
    """What an optimiser counts as sent, against the counters of the links that its workers are on."""
    with (
        lab(LabTopology(NUM_WORKERS, 1, 1e9)) as network,
        start_inside(network, _train, [()] * NUM_WORKERS) as workers,
    ):
        before, sent_before = workers.hear_all(), network.sent()
        for rank in range(NUM_WORKERS):
            workers.tell(rank, "train")
        counted, sent = workers.hear_all(), network.sent()
        # Four steps send an eighth of the numbers, and two of them a quarter besides.
        payload_bits = 32 * NUMEL * (4 / 8 + 2 / 4)
        assert [now - then for now, then in zip(counted, before, strict=True)] == [payload_bits] * NUM_WORKERS
        # An all-reduce over n workers is a ring of n - 1 steps there and n - 1 back, each of 1/n of the payload.
        expected = 2 * (NUM_WORKERS - 1) / NUM_WORKERS * payload_bits / 8
        for (num_bytes, frames), (bytes_before, frames_before) in zip(sent, sent_before, strict=True):
            carried = num_bytes - bytes_before - HEADER_BYTES * (frames - frames_before)
            assert carried == pytest.approx(expected, rel=0.03)


def _train(worker: Worker) -> None:
    with joined("cpu", 60.0, worker.init_method, worker.rank, worker.world_size):
        parameter = torch.nn.Parameter(torch.zeros(NUMEL))
        compressors = {"gradient_compressor": BlockSparsifier(ratio=8), "error_compressor": BlockSparsifier(ratio=4)}
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
        inside = subprocess.Popen(network.command(1, ["sleep", "600"]))
        _until(lambda: _namespace_of(inside.pid) != _namespace_of(os.getpid()))
        raise ZeroDivisionError
    assert inside.wait(10) == -signal.SIGKILL
    assert not namespaces(f"{prefix}-")


@needs_lab
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_lab(prefix: str, owner: Owner, number: signal.Signals) -> None:
    process, inside = owner
    process.send_signal(number)
    process.wait(20)
    assert not namespaces(f"{prefix}-") and not is_alive(inside)


@needs_lab
def test_what_a_killed_lab_left_is_removed_by_the_next_and_nothing_else_is(prefix: str, owner: Owner) -> None:
    process, inside = owner
    with pytest.raises(LabError, match="a lab is up on this machine already"), lab(LabTopology(2, 1, 1e8)):
        pass
    assert len(namespaces(f"{prefix}-")) == 3 and is_alive(inside), "a lab in use is left alone"
    other = f"other{prefix}-m0"
    output("ip", "netns", "add", other)
    bystander = subprocess.Popen(["ip", "netns", "exec", other, "sleep", "600"])
    try:
        process.kill()
        process.wait()
        assert len(namespaces(f"{prefix}-")) == 3 and is_alive(inside), "kill -9 leaves all"
        with lab(LabTopology(3, 1, 1e8)):
            assert len(namespaces(f"{prefix}-")) == 4 and not is_alive(inside)
        assert not namespaces(f"{prefix}-")
        assert other in namespaces() and bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        output("ip", "netns", "delete", other)


@needs_lab
def test_links_are_limited_at_both_ends_and_congestion_control_is_not_the_hosts(prefix: str) -> None:
    with lab(LabTopology(2, 2, 3e6)) as network:
        assert [network.namespace(rank).name[-2:] for rank in range(4)] == ["m0", "m0", "m1", "m1"]
        for rate in (3e6, 5e6):
            network.set_rate(rate)
            assert network.topology == LabTopology(2, 2, rate)
            assert limits(f"{prefix}-m1") == {network.interface: rate}
            assert limits(f"{prefix}-switch") == {"m0": rate, "m1": rate}
        routes = output("ip", "-n", f"{prefix}-m1", "route", "show", "table", "all").splitlines()
        chosen = [route.split()[0] for route in routes if "congctl cubic" in route]
        assert chosen == ["10.83.0.0/24", "local"], "to other machines, and to the machine's own workers"


@pytest.fixture
def root_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.usefixtures("root_on_linux")
def test_where_there_can_be_no_lab_a_sentence_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for missing in ("ip", "tc"):
        monkeypatch.setattr(shutil, "which", lambda name, missing=missing: None if name == missing else "/usr/sbin")
        assert why_not() == f"a network lab needs the program {missing}: install iproute2"
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    said = "a network lab needs root, to make network namespaces: call it with sudo"
    assert main(["netlab"]) == 2 and capsys.readouterr().err == f"error: {said}\n"
    with pytest.raises(LabError, match="needs root"), lab(LabTopology(2, 1, 1e8)):
        pass
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "needs Linux" in str(why_not())


@needs_lab
def test_a_capability_is_missing() -> None:
    code = "from harness.timing.lab import why_not; print(why_not())"
    without = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin", sys.executable, "-c", code]
    done = subprocess.run(without, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "a network lab needs CAP_NET_ADMIN, which root has not here\n"


def _namespace_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


@pytest.mark.parametrize("rate", [1e5, 1e7, 125e6, 1e9, 1e12])
def test_a_burst_is_short_and_no_piece_of_tcp_s_is_larger(rate: float) -> None:
    assert burst_bytes(rate) <= max(2 * 1514, rate / 8 / 1000), "two frames or a millisecond"
    assert 1514 <= 1514 * frames_in_one_piece(rate) <= burst_bytes(rate)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((0, 1, 1e8), "a lab has 1 to 250 machines, not 0"),
        ((2, 251, 1e8), "a lab has 1 to 250 workers a machine, not 251"),
        ((2, 1, 0.0), "a link's rate is at least 10 kb/s, not 0 bit/s"),
        ((2, 1, float("nan")), "a link's rate is at least 10 kb/s, not nan bit/s"),
    ],
)
def test_numbers_that_no_lab_can_have(numbers: tuple[int, int, float], sentence: str) -> None:
    with pytest.raises(LabError) as caught:
        LabTopology(*numbers)
    assert str(caught.value) == sentence


def test_texts() -> None:
    assert str(LabTopology(8, 1, 1e9)) == "8 x 1 Gb/s"
    assert str(LabTopology(2, 4, 250e6)) == "2 x 4 x 250 Mb/s"
    assert [rate_text(rate) for rate in (2.4e9, 12.5e6, 5e4)] == ["2.4 Gb/s", "12.5 Mb/s", "50 kb/s"]
