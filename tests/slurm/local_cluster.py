"""A real Slurm on this machine, with several nodes and fake GPUs: for tests, and for trying things.

    python tests/slurm/local_cluster.py start     # then paste the line it prints, or eval "$(...)" it
    python tests/slurm/local_cluster.py stop

It needs Debian's packages slurmctld, slurmd, slurm-client and munge, but neither root, systemd nor cgroups. It keeps to
one folder. Only who has that folder's key may talk to its daemons.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.slurm.local_processes import (
    PATH,
    ClusterError,
    MissingPackagesError,
    end,
    end_node,
    launch,
    process_of,
    require_packages,
    user_name,
    wait_ready,
    wait_until,
)

PORTS = range(61000, 65400, 20)
"""First ports of clusters, private ones that Linux does not hand out by itself; a cluster takes the next few too."""

CREDENTIAL_SECONDS = 10
"""How long a job's credential holds, which is also how long a requeued job waits; Slurm's default is 120."""

NOTICE_SECONDS = 10
"""Slurm's SlurmdTimeout: with 3, all nodes are down for a moment after a start."""

ANSWER_SECONDS = 40.0
LONGEST_FOLDER = 64
"""Characters: a socket's path may have 107, and Slurm puts names of jobs and nodes behind the folder's."""


@dataclass(frozen=True)
class Settings:
    """What a cluster keeps from start to start, in its `cluster.json`."""

    name: str
    gpus_per_node: tuple[int, ...]
    max_array_size: int
    first_port: int
    first_job_id: int

    @property
    def node_names(self) -> list[str]:
        return [f"node{number}" for number in range(1, len(self.gpus_per_node) + 1)]

    @property
    def daemons(self) -> list[str]:
        """In the order in which they are started."""
        return ["munged", "slurmctld", *self.node_names]

    def address(self, folder: Path, daemon: str) -> str | tuple[str, int]:
        """Where a daemon listens."""
        if daemon == "munged":
            return f"{folder}/munge/munge.socket"
        return "127.0.0.1", self.first_port + (0 if daemon == "slurmctld" else int(daemon.removeprefix("node")))


@dataclass(frozen=True)
class LocalCluster:
    """A cluster that was started. Its commands (`squeue`, submitit, ...) need `environment`."""

    folder: Path
    settings: Settings

    @property
    def environment(self) -> dict[str, str]:
        """The variable that says to Slurm's commands which cluster is meant."""
        return {"SLURM_CONF": f"{self.folder}/etc/slurm.conf"}

    def call(self, *command: str, seconds: float = 60.0) -> str:
        """What one of Slurm's commands prints. Raises ClusterError, with what it says, where it fails or hangs."""
        environment = os.environ | {"PATH": PATH} | self.environment
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{command[0]} did not end within {seconds:g} s") from None
        if done.returncode:
            raise ClusterError(done.stderr.strip() or f"{command[0]} failed with exit code {done.returncode}")
        return done.stdout

    def node_states(self) -> dict[str, str]:
        """Slurm's word for the state of each node, such as idle or down*, where * means that it does not answer."""
        lines = self.call("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").splitlines()
        return dict(sorted(line.split() for line in lines))

    def running(self) -> list[str]:
        """The daemons that run."""
        return [name for name in self.settings.daemons if process_of(self.folder, name) is not None]

    def answering(self) -> bool:
        """Whether all daemons run and all nodes answer."""
        try:
            return self.running() == self.settings.daemons and all(map(_answers, self.node_states().values()))
        except ClusterError:
            return False

    def kill_node(self, node: str, *, noticed: bool = False) -> None:
        """End all that runs on a node at once, as a crash would: slurmd, steps and tasks.

        Slurm takes about half a minute to notice; it is told, and fails or requeues the node's jobs now, if `noticed`.
        """
        end_node(self.folder, self.settings.name, node)
        if noticed:
            self.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")

    def start_node(self, node: str) -> None:
        """Bring a node back that was killed. Raises ClusterError if it does not answer."""
        self._launch(node)
        wait_ready(self.folder, node, self.settings.address(self.folder, node))

        def is_back() -> bool:
            state = self.node_states()[node]
            if state == "down":  # by `noticed`: Slurm leaves it so until told
                self.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
            return _answers(state)

        if not wait_until(is_back, ANSWER_SECONDS):
            raise ClusterError(f"{node} is {self.node_states()[node]} (see {self.folder}/log/{node}.log)")

    def start_now(self, job_id: str) -> None:
        """Let a requeued job start in two seconds; one that starts in the second of its requeue is killed at once."""
        self.call("scontrol", "update", f"JobId={job_id}", "StartTime=now+2")

    def start_daemons(self) -> None:
        """Start what does not run, and wait until all nodes answer. Raises ClusterError."""
        for name in self.settings.daemons:
            self._launch(name)
            if not name.startswith("node"):
                wait_ready(self.folder, name, self.settings.address(self.folder, name))
        for node in self.settings.node_names:
            wait_ready(self.folder, node, self.settings.address(self.folder, node))
        if not wait_until(self.answering, ANSWER_SECONDS):
            raise ClusterError(f"not all nodes answer: {self.node_states()} (see {self.folder}/log)")

    def _launch(self, name: str) -> None:
        if process_of(self.folder, name) is None:
            launch(self.folder, name)


def default_folder() -> Path:
    """The per-user folder of the cluster: $XDG_CACHE_HOME/cser-bench/slurm, or the same in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "cser-bench" / "slurm"


def start(folder: Path, gpus_per_node: Sequence[int] = (1, 1, 1, 1), max_array_size: int = 1001) -> LocalCluster:
    """Start the cluster of a folder, or what of it does not run; returns when all its nodes answer.

    A folder that has a cluster keeps it: only a new one is made as the arguments say.

    Raises:
        ValueError: a folder or a number that will not do.
        MissingPackagesError: Debian's packages are not all there.
        ClusterError: a daemon does not start, or a node does not answer.
    """
    require_packages()
    if len(gpus_per_node) not in range(1, 9) or not all(1 <= number <= 8 for number in gpus_per_node):
        raise ValueError("a cluster has 1 to 8 nodes, and each node 1 to 8 GPUs")
    folder = _usable(folder)
    with _locked(folder):
        settings = _read_settings(folder)
        if settings is None:
            settings = Settings(
                name=f"local{secrets.token_hex(4)}",
                gpus_per_node=tuple(gpus_per_node),
                max_array_size=max_array_size,
                first_port=_free_ports(),
                first_job_id=int(time.time()) % 60_000_000,  # no id twice, even if the folder is wiped in between
            )
            _write_files(folder, settings)
        cluster = LocalCluster(folder, settings)
        cluster.start_daemons()
    return cluster


def stop(folder: Path) -> bool:
    """Stop the folder's cluster and the jobs on its nodes, and nothing else. Returns whether anything ran."""
    settings = _read_settings(folder.absolute())
    if settings is None:
        return False
    folder = folder.absolute()
    with _locked(folder):
        ran = [end(folder, "slurmctld")]
        ran += [end_node(folder, settings.name, node) for node in settings.node_names]
        ran += [end(folder, "munged")]
    return any(ran)


def _answers(state: str) -> bool:
    return not state.endswith("*") and not state.startswith(("down", "unk"))


def _read_settings(folder: Path) -> Settings | None:
    try:
        table = json.loads((folder / "cluster.json").read_text())
    except FileNotFoundError:
        return None
    return Settings(**table | {"gpus_per_node": tuple(table["gpus_per_node"])})


def _usable(folder: Path) -> Path:
    """The folder, made private. Raises ValueError for one that Slurm cannot have."""
    folder = folder.absolute()
    if not re.fullmatch(r"[\w/.+-]+", str(folder), re.ASCII) or len(str(folder)) > LONGEST_FOLDER:
        raise ValueError(f"{folder}: Slurm needs a folder with a plain name of at most {LONGEST_FOLDER} characters")
    folder.mkdir(parents=True, exist_ok=True)
    if _read_settings(folder) is None and {entry.name for entry in folder.iterdir()} - {"lock"}:
        raise ValueError(f"{folder} holds other files than a cluster's: name an empty or a new folder")
    folder.chmod(0o700)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One start or stop at a time."""
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _free_ports() -> int:
    """The first of a cluster's ports, none of which anybody listens on. Raises OSError where there are none left."""

    def is_free(port: int) -> bool:
        with socket.socket() as listener:
            return listener.connect_ex(("127.0.0.1", port)) != 0

    for first in sorted(PORTS, key=lambda _: secrets.randbits(32)):
        if all(is_free(port) for port in range(first, first + PORTS.step)):
            return first
    raise OSError(f"no free ports from {PORTS.start} to {PORTS.stop}")


def _write_files(folder: Path, settings: Settings) -> None:
    """Make the folders, keys, fake devices and configuration files."""
    for name in ("etc", "log", "run", "state", "munge", "dev", *(f"spool/{node}" for node in settings.node_names)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    key = folder / "munge/munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    for number in range(max(settings.gpus_per_node)):
        (folder / f"dev/gpu{number}").symlink_to("/dev/null")
    gres = ["AutoDetect=off"]
    for node, num_gpus in zip(settings.node_names, settings.gpus_per_node, strict=True):
        devices = f"{folder}/dev/gpu" + ("0" if num_gpus == 1 else f"[0-{num_gpus - 1}]")
        gres.append(f"NodeName={node} Name=gpu Type=v100 File={devices}")
    files = {
        "etc/slurm.conf": _slurm_conf(folder, settings),
        "etc/gres.conf": "\n".join(gres) + "\n",
        "etc/cgroup.conf": "CgroupPlugin=disabled\n",
        "cluster.json": json.dumps(asdict(settings), indent=1) + "\n",  # last: without it the folder is no cluster's
    }
    for name, text in files.items():
        (folder / name).write_text(text)


def _slurm_conf(folder: Path, settings: Settings) -> str:
    user, memory_mb = user_name(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    nodes = "\n".join(
        f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 "
        f"Port={settings.address(folder, node)[1]} CPUs={8 * num_gpus} RealMemory={memory_mb} "
        f"Gres=gpu:v100:{num_gpus} Feature=v100 State=UNKNOWN"
        for node, num_gpus in zip(settings.node_names, settings.gpus_per_node, strict=True)
    )
    return f"""\
ClusterName={settings.name}
SlurmctldHost=localhost
SlurmctldPort={settings.first_port}
{_communication()}SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/munge.socket,cred_expire={CREDENTIAL_SECONDS}
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
SlurmctldTimeout=30
SlurmdTimeout={NOTICE_SECONDS}
ReturnToService=1
KillWait=30
OverTimeLimit=0
JobRequeue=1
FirstJobId={settings.first_job_id}
MaxArraySize={settings.max_array_size}
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=main Default=YES Nodes={",".join(settings.node_names)} MaxTime=INFINITE State=UP
"""


def _communication() -> str:
    """The line for a machine whose only interface is loopback, where Slurm's usual look-ups find nothing."""
    try:
        socket.getaddrinfo("127.0.0.1", 1, socket.AF_INET, flags=socket.AI_ADDRCONFIG)
    except OSError:
        return "CommunicationParameters=EnableIPv6\n"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 2 for a user's mistake or missing packages, 1 for a failure."""
    parser = argparse.ArgumentParser(prog="local_cluster", description="A real Slurm on this machine.")
    parser.add_argument("command", choices=("start", "stop"))
    parser.add_argument("--folder", type=Path, default=default_folder(), help="all that is kept (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=4, help="how many a new cluster has, with a GPU each (default: 4)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "start":
            cluster = start(options.folder, (1,) * options.nodes)
            print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}")
            print("# with this line in your shell, sinfo, sbatch, squeue and the rest mean this cluster")
        else:
            ran = stop(options.folder)
            print(f"stopped the cluster in {options.folder}" if ran else f"nothing runs in {options.folder}")
        return 0
    except (ValueError, MissingPackagesError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ClusterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
