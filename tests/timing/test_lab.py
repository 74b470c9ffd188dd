"""Labs that come up and go: who reaches whom, at which rates, what is left behind, and where there can be none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.timing.lab import lab, why_not
from harness.timing.layout import LabError, LabTopology
from tests.timing.support import limits, namespaces, needs_lab, output

ROOT = Path(__file__).parents[2]
Owner = Callable[[], tuple[subprocess.Popen[str], int]]

LISTEN = """
import socket
server = socket.create_server(("0.0.0.0", 5000))
print("up", flush=True)
for _ in range(3):
    connection, (address, _) = server.accept()
    print(address, flush=True)
"""
CONNECT = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 5000), 10)
print(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).strip(bytes(1)).decode())
"""


@needs_lab
def test_workers_of_all_machines_reach_each_other(prefix: str) -> None:
    with lab(LabTopology(2, 2, 1e8), prefix=prefix) as network:
        assert len(set(network.addresses)) == 4
        listening = network.command(1, [sys.executable, "-c", LISTEN])
        with subprocess.Popen(listening, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None and server.stdout.readline() == "up\n"
            for rank in (0, 2, 3):
                connecting = [sys.executable, "-c", CONNECT, network.addresses[1]]
                assert output(*network.command(rank, connecting)) == "cubic\n", "whatever the host is set to"
            callers = server.stdout.read().split()
        assert callers == [network.addresses[rank] for rank in (0, 2, 3)]


@needs_lab
def test_nothing_is_left_and_nothing_is_outside(prefix: str) -> None:
    before = output("ip", "-brief", "link")
    with lab(LabTopology(2, 2, 1e8), prefix=prefix):
        assert len(namespaces(f"{prefix}-")) == 7, "four workers, two machines and a switch"
        assert output("ip", "-brief", "link") == before
    assert not namespaces(f"{prefix}-")
    assert not Path(f"/run/cserlab/{prefix}.json").exists()


@needs_lab
def test_an_exception_ends_the_lab_and_the_processes_in_it(prefix: str) -> None:
    with pytest.raises(ZeroDivisionError), lab(LabTopology(2, 1, 1e8), prefix=prefix) as network:
        inside = subprocess.Popen(network.command(1, ["sleep", "600"]))
        _until(lambda: _namespace_of(inside.pid) != _namespace_of(os.getpid()))
        raise ZeroDivisionError
    assert inside.wait(10) == -signal.SIGKILL
    assert not namespaces(f"{prefix}-")


@needs_lab
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_lab(prefix: str, start_owner: Owner, number: signal.Signals) -> None:
    owner, inside = start_owner()
    owner.send_signal(number)
    owner.wait(20)
    assert not namespaces(f"{prefix}-")
    assert not _lives(inside)


@needs_lab
def test_what_a_killed_lab_left_is_removed_by_the_next_and_nothing_else_is(prefix: str, start_owner: Owner) -> None:
    other = f"other{prefix}-w0"
    output("ip", "netns", "add", other)
    bystander = subprocess.Popen(["ip", "netns", "exec", other, "sleep", "600"])
    try:
        owner, inside = start_owner()
        owner.kill()
        owner.wait()
        assert len(namespaces(f"{prefix}-")) == 7 and _lives(inside), "kill -9 leaves all"
        with lab(LabTopology(2, 1, 1e8), prefix=prefix):
            assert len(namespaces(f"{prefix}-")) == 3, "two workers and a switch"
            assert not _lives(inside)
        assert not namespaces(f"{prefix}-")
        assert other in namespaces() and bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        output("ip", "netns", "delete", other)


@needs_lab
def test_a_lab_in_use_is_left_alone(prefix: str, start_owner: Owner) -> None:
    owner, inside = start_owner()
    with pytest.raises(LabError, match=f"in use by pid {owner.pid}:"), lab(LabTopology(2, 1, 1e8), prefix=prefix):
        pass
    assert len(namespaces(f"{prefix}-")) == 7 and _lives(inside)


@needs_lab
def test_a_dead_owner_s_pid_that_came_back_is_no_owner(prefix: str) -> None:
    mark = Path(f"/run/cserlab/{prefix}.json")
    mark.parent.mkdir(exist_ok=True)
    mark.write_text(json.dumps({"owner": [os.getpid(), 1], "namespaces": []}))  # The start time is another's.
    with lab(LabTopology(2, 1, 1e8), prefix=prefix):
        assert len(namespaces(f"{prefix}-")) == 3


@needs_lab
@pytest.mark.parametrize("name", ["w0", "something"])
def test_a_namespace_of_something_else_is_refused_and_left_alone(prefix: str, name: str) -> None:
    output("ip", "netns", "add", f"{prefix}-{name}")
    try:
        wanted = f"the namespace {prefix}-{name} was not made by a lab"
        with pytest.raises(LabError, match=wanted), lab(LabTopology(2, 1, 1e8), prefix=prefix):
            pass
        assert namespaces(f"{prefix}-") == {f"{prefix}-{name}"}
    finally:
        output("ip", "netns", "delete", f"{prefix}-{name}")


@needs_lab
def test_an_interface_of_something_else_is_refused(prefix: str) -> None:
    output("ip", "link", "add", f"{prefix}-br", "type", "bridge")
    try:
        wanted = f"the interface {prefix}-br was not made by a lab"
        with pytest.raises(LabError, match=wanted), lab(LabTopology(2, 1, 1e8), prefix=prefix):
            pass
        assert f"{prefix}-br" in output("ip", "-brief", "link")
    finally:
        output("ip", "link", "delete", f"{prefix}-br")


@needs_lab
def test_links_are_limited_at_both_ends(prefix: str) -> None:
    with lab(LabTopology(2, 1, 3e6), prefix=prefix) as network:
        assert limits(f"{prefix}-w1") == {network.interface: 3e6}
        assert limits(f"{prefix}-switch") == {f"{prefix}-m0": 3e6, f"{prefix}-m1": 3e6}
        network.set_rate(5e6)
        assert network.topology == LabTopology(2, 1, 5e6)
        assert limits(f"{prefix}-w0") == {network.interface: 5e6}
        assert limits(f"{prefix}-switch") == {f"{prefix}-m0": 5e6, f"{prefix}-m1": 5e6}


@needs_lab
def test_links_inside_a_machine_have_no_limit(prefix: str) -> None:
    with lab(LabTopology(2, 2, 3e6), prefix=prefix) as network:
        network.set_rate(5e6)
        assert limits(f"{prefix}-m1") == {f"{prefix}-up": 5e6} and limits(f"{prefix}-w3") == {}
        assert limits(f"{prefix}-switch") == {f"{prefix}-m0": 5e6, f"{prefix}-m1": 5e6}


@pytest.fixture
def root_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.usefixtures("root_on_linux")
def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "needs Linux" in str(why_not())


@pytest.mark.usefixtures("root_on_linux")
@pytest.mark.parametrize("missing", ["ip", "tc"])
def test_a_program_is_missing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else f"/usr/sbin/{name}")
    assert str(why_not()) == f"a network lab needs the program {missing}: install iproute2"


@needs_lab
def test_a_capability_is_missing() -> None:
    code = "from harness.timing.lab import why_not; print(why_not())"
    without = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin", sys.executable, "-c", code]
    done = subprocess.run(without, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "a network lab needs CAP_NET_ADMIN, which root has not here\n"


@pytest.mark.usefixtures("root_on_linux")
def test_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert main(["netlab"]) == 2
    assert capsys.readouterr().err == (
        "error: a network lab needs root, to make network namespaces: call it with sudo\n"
    )
    with pytest.raises(LabError, match="needs root"), lab(LabTopology(2, 1, 1e8)):
        pass


def _namespace_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def _lives(pid: int) -> bool:
    """A process that has ended may wait for whoever it now belongs to."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)
