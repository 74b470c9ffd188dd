"""The Slurm on one machine: it runs jobs as a cluster would, dies in parts, mends, and leaves nothing behind."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm.local import daemons as local_daemons
from slurm.local.cluster import LocalCluster, main, start, status, stop
from slurm.local.config import read_settings
from slurm.local.daemons import ClusterError
from slurm.local.processes import process_of
from tests.slurm.conftest import require_slurm

ROOT = Path(__file__).parents[2]
NOBODY = 65534


def submit(cluster: LocalCluster, folder: Path, script: str, *options: str) -> str:
    """Start a job that prints to `folder/out`, behind what is there; returns its id."""
    words = ["--parsable", "--open-mode=append", f"--output={folder}/out", f"--chdir={folder}", *options]
    return cluster.call("sbatch", *words, "--wrap", script).strip()


def printed(folder: Path) -> str:
    """What jobs printed to `folder/out` so far."""
    return (folder / "out").read_text() if (folder / "out").exists() else ""


def run_job(cluster: LocalCluster, folder: Path, script: str, *options: str) -> str:
    """What a job prints, which is waited for."""
    (folder / "out").unlink(missing_ok=True)
    job_id = submit(cluster, folder, script, *options)
    eventually(lambda: job(cluster, job_id)["JobState"] == "COMPLETED")
    return printed(folder)


def job(cluster: LocalCluster, job_id: str) -> dict[str, str]:
    """What the controller knows of a job."""
    words = cluster.call("scontrol", "--oneliner", "show", "job", job_id).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.05)


def processes_naming(text: str) -> set[int]:
    """Living processes that have the text in their command line or environment."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in words:
            found.add(int(entry.name))
    return found - {os.getpid()}


def kill(folder: Path, name: str) -> None:
    process = process_of(folder, name)
    assert process is not None
    os.kill(process, signal.SIGKILL)
    eventually(lambda: process_of(folder, name) is None)


@contextmanager
def foreign_process(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def listeners(ports: range) -> dict[int, str]:
    """Port -> address, in the kernel's notation, of those that are listened on."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if line.split()[3] == "0A" and int(port, 16) in ports:
                found[int(port, 16)] = address
    return found


def test_all_nodes_are_idle_with_feature_and_gpus(cluster: LocalCluster) -> None:
    lines = cluster.call("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T %f %G").splitlines()
    assert sorted(lines) == [
        f"node{number} idle v100 gpu:v100:{1 if number < 7 else 4}" for number in range(1, 9)
    ]  # fmt: skip


def test_a_job_sees_its_node_and_its_gpus(cluster: LocalCluster, tmp_path: Path) -> None:
    script = 'echo "$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"'
    one = run_job(cluster, tmp_path, script, "--nodelist=node2", "--gres=gpu:v100:1", "--constraint=v100")
    assert one.split() == ["node2", "0"]
    four = run_job(cluster, tmp_path, script, "--gpus-per-node=v100:4")
    assert four.split() in (["node7", "0,1,2,3"], ["node8", "0,1,2,3"])


def test_the_tasks_of_a_job_reach_each_other_by_their_nodes_names(cluster: LocalCluster, tmp_path: Path) -> None:
    if not cluster.settings.namespaces:
        pytest.skip("nodes have no names of their own here")
    lines = run_job(cluster, tmp_path, "srun sh -c 'hostname; getent hosts node1'", "--nodes=2").splitlines()
    assert sorted(line for line in lines if line.startswith("node")) == ["node1", "node2"]
    assert sum(line.startswith("127.0.0.1") for line in lines) == 2


@pytest.mark.parametrize("option", ["--gres=gpu:a100:1", "--constraint=h100", "--partition=none", "--gpus-per-node=5"])
def test_what_no_node_has_is_refused_at_once(cluster: LocalCluster, option: str) -> None:
    with pytest.raises(ClusterError, match="sbatch: error"):
        cluster.call("sbatch", option, "--output=/dev/null", "--wrap=true")


def test_an_urgent_job_takes_the_place_of_another_which_is_warned_and_goes_on_later(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    everything = ["--nodelist=node1", "--exclusive"]
    warned = "trap 'echo warned; scontrol requeue $SLURM_JOB_ID' USR2"
    script = f"{warned}; echo on; [ $SLURM_RESTART_COUNT ] || sleep 1000 & wait"
    low = submit(cluster, tmp_path, script, "--signal=B:USR2@60", *everything)
    eventually(lambda: printed(tmp_path) == "on\n")
    urgent = submit(cluster, tmp_path, "echo urgent", "--partition=urgent", *everything)
    eventually(lambda: job(cluster, urgent)["JobState"] == "COMPLETED")
    cluster.start_now(low)
    eventually(
        lambda: re.findall("^(?:on|warned|urgent)$", printed(tmp_path), re.M) == ["on", "warned", "urgent", "on"]
    )
    cluster.call("scancel", low)  # Slurm may do as the trap says once more


def test_a_dead_node_that_is_told_of_is_down_now(cluster: LocalCluster) -> None:
    cluster.kill_node("node4", noticed=True)
    assert cluster.node_states()["node4"].startswith("down")
    assert not cluster.answering()
    assert status(cluster.folder)[0] is False
    cluster.start_node("node4")
    assert cluster.node_states()["node4"] == "idle"
    assert status(cluster.folder)[0] is True


def test_it_listens_on_loopback_only(cluster: LocalCluster) -> None:
    if not cluster.settings.namespaces:
        pytest.skip("that depends on this machine's name here")
    found = listeners(cluster.settings.ports)
    assert set(found) == {cluster.settings.first_port + number for number in range(9)}
    assert set(found.values()) == {"0100007F"}


def test_two_clusters_live_side_by_side_and_a_second_start_is_harmless(
    cluster: LocalCluster, cluster_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["start", "--folder", str(cluster_folder), "--nodes", "2"]) == 0
    assert f"\nexport SLURM_CONF={cluster_folder}/etc/slurm.conf\n" in capsys.readouterr().out
    names = ["munged", "slurmctld", "node1", "node2"]
    processes = [process_of(cluster_folder, name) for name in names]
    assert None not in processes
    assert main(["start", "--folder", str(cluster_folder)]) == 0
    assert "already runs" in capsys.readouterr().out
    assert [process_of(cluster_folder, name) for name in names] == processes
    assert main(["start", "--folder", str(cluster_folder), "--nodes", "3"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert main(["status", "--folder", str(cluster_folder)]) == 0
    assert "2 idle" in capsys.readouterr().out
    # The other one's nodes may still be at the end of an earlier test's job.
    assert set(cluster.node_states().values()) <= {"idle", "completing"}
    assert len(cluster.node_states()) == 8


@dataclass(frozen=True)
class Crash:
    """A node that died under a job."""

    node: str
    victim: str


@pytest.fixture(scope="module")
def crash(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Crash:
    """Slurm takes half a minute to notice: made before the tests of other clusters, and looked at after them."""
    folder = tmp_path_factory.mktemp("crash")
    script = 'sleep 1000 & echo "$SLURMD_NODENAME"; [ "$SLURM_RESTART_COUNT" ] || wait'
    victim = submit(cluster, folder, script)
    eventually(lambda: printed(folder) != "")
    node = printed(folder).strip()
    assert len(processes_naming(f"SLURM_JOB_ID={victim}")) >= 2
    cluster.kill_node(node)
    return Crash(node, victim)


def test_a_node_that_dies_takes_its_jobs_processes_along(crash: Crash) -> None:
    assert not processes_naming(f"SLURM_JOB_ID={crash.victim}")


@pytest.mark.parametrize("namespaces", [True, False])
def test_stop_ends_all_that_it_started_and_nothing_else(
    cluster_folder: Path,
    tmp_path: Path,
    namespaces: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not namespaces:
        monkeypatch.setattr("slurm.local.cluster.have_namespaces", lambda: False)
    own = start(cluster_folder, 2)
    submit(own, tmp_path, "srun sleep 1000 & setsid sleep 1000 & echo on; wait", "--nodelist=node1")
    eventually(lambda: printed(tmp_path) == "on\n")
    note = cluster_folder / "run/node2.process"
    identity = note.read_text().split(maxsplit=1)[1]
    kill(cluster_folder, "node2")
    with foreign_process(["tail", "-f", f"{cluster_folder}/log/node1.log"], own.environment) as foreign:
        note.write_text(f"{foreign.pid} {identity}")  # as if the id had been given to another process since
        assert main(["stop", "--folder", str(cluster_folder)]) == 0
        assert "stopped" in capsys.readouterr().out
        assert foreign.poll() is None
        assert processes_naming(str(cluster_folder)) == {foreign.pid}
    assert not processes_naming(f"SLURM_CLUSTER_NAME={own.settings.name}")
    assert not listeners(own.settings.ports)
    assert not list(cluster_folder.glob("run/*.process"))
    assert main(["stop", "--folder", str(cluster_folder)]) == 0
    assert "nothing runs" in capsys.readouterr().out
    assert main(["status", "--folder", str(cluster_folder)]) == 1


def test_start_mends_what_was_killed(cluster_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = start(cluster_folder, 2)
    kept = process_of(cluster_folder, "node2")
    for name in ("munged", "slurmctld", "node1"):
        kill(cluster_folder, name)
    assert main(["status", "--folder", str(cluster_folder)]) == 1
    assert "slurmctld does not run" in capsys.readouterr().out
    assert start(cluster_folder) == own
    assert process_of(cluster_folder, "node2") == kept
    assert own.answering()
    assert run_job(own, tmp_path, "srun echo mended", "--nodes=2").splitlines() == ["mended"] * 2


def test_a_cluster_stopped_and_started_goes_on_counting_jobs(cluster_folder: Path, tmp_path: Path) -> None:
    own = start(cluster_folder, 1)
    first = submit(own, tmp_path, "true")
    eventually(lambda: job(own, first)["JobState"] == "COMPLETED")
    assert stop(cluster_folder)
    with socket.create_server(("127.0.0.1", own.settings.first_port)):
        again = start(cluster_folder)
    assert int(submit(again, tmp_path, "true")) == int(first) + 1
    assert again.settings.gpus_per_node == (1,)


def test_with_accounting_from_the_second_start_on_sacct_knows_the_jobs(cluster_folder: Path, tmp_path: Path) -> None:
    require_slurm(accounting=True)
    start(cluster_folder, 1)
    stop(cluster_folder)
    own = start(cluster_folder, accounting=True)
    job_id = submit(own, tmp_path, "exit 3", "--gpus-per-node=v100:1")
    command = ["sacct", "--jobs", job_id, "--noheader", "--parsable2", "--allocations", "--format=State,ExitCode"]
    eventually(lambda: own.call(*command).strip() == "FAILED|3:0")


@pytest.mark.slurm
def test_a_user_without_rights_can_have_a_cluster() -> None:
    require_slurm()
    if os.getuid():
        pytest.skip("that is what the other tests show here")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        shutil.copytree(ROOT / "slurm", f"{folder}/slurm")
        os.chown(folder, NOBODY, NOBODY)

        def call(*words: str) -> subprocess.CompletedProcess[str]:
            environment = {"PATH": os.environ["PATH"], "SLURM_CONF": f"{folder}/cluster/etc/slurm.conf"}
            become = functools.partial(subprocess.run, user=NOBODY, group=NOBODY, extra_groups=[])
            return become(words, env=environment, cwd=folder, capture_output=True, text=True)

        python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
        if python is None or call(python, "-c", "import tomllib").returncode:
            pytest.skip("such a user has no Python 3.11 here")
        script, where = [python, "-B", "slurm/local/cluster.py"], ["--folder", f"{folder}/cluster"]
        try:
            started = call(*script, "start", *where)
            assert started.returncode == 0, started.stderr
            done = call("srun", "--nodes=2", "--gres=gpu:1", "sh", "-c", "id -u; grep CapEff /proc/self/status")
        finally:
            stopped = call(*script, "stop", *where)
    assert sorted(done.stdout.split()) == sorted([str(NOBODY), "CapEff:", "0" * 16] * 2), done.stderr
    assert stopped.stdout.startswith("stopped")


def test_a_dead_node_is_noticed_and_its_job_goes_on_elsewhere(
    cluster: LocalCluster, crash: Crash, tmp_path: Path
) -> None:
    node, victim = crash.node, crash.victim
    eventually(lambda: cluster.node_states()[node].startswith("down"), seconds=60)
    eventually(lambda: job(cluster, victim)["JobState"] == "COMPLETED", seconds=60)
    assert job(cluster, victim)["NodeList"] != node
    cluster.start_node(node)
    assert cluster.node_states()[node] == "idle"
    assert run_job(cluster, tmp_path, 'echo "$SLURMD_NODENAME"', f"--nodelist={node}").strip() == node


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(local_daemons, "PATH", str(tmp_path))
    yield


@pytest.mark.usefixtures("without_packages")
def test_missing_packages_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", "--folder", str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "apt-get install --no-install-recommends munge slurmctld slurmd slurm-client\n" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "complaint"), [("with space", "plain name"), ("x" * 80, "at most 64"), ("full", "other files")]
)
def test_a_folder_that_will_not_do_is_left_alone(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    complaint: str,
) -> None:
    monkeypatch.setattr("slurm.local.cluster.require_packages", lambda *, accounting: None)
    folder = tmp_path_factory.mktemp("f")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").touch()
    before = sorted(folder.rglob("*"))
    assert main(["start", "--folder", str(folder / name)]) == 2
    assert complaint in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
    assert read_settings(folder / name) is None
