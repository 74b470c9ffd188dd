"""A real Slurm on this machine, with several nodes: for tests, and for trying things.

    python tests/slurm/local_cluster.py     # prints the line that another shell needs, and runs
    until Ctrl-C

It needs Debian's packages slurmctld, slurmd, slurm-client and munge, but neither root, systemd nor
cgroups. Only who has the key in its folder may talk to its daemons.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/bin:/bin"
"""Where programs are looked for: Debian's daemons lie where users without rights do not look."""

PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
}
"""Program -> Debian's package that has it."""

PORTS = range(61000, 65400, 20)
"""First ports of clusters, private ones that Linux does not hand out by itself; a cluster takes the
next few too."""

CREDENTIAL_SECONDS = 10
"""How long a job's credential holds, which is also how long a requeued job waits; Slurm's default
is 120."""

NOTICE_SECONDS = 10
"""Slurm's SlurmdTimeout: with 3, all nodes are down for a moment after a start."""

READY_SECONDS = 60.0
STOP_SECONDS = 10.0
"""How long a daemon may take until it answers, and to end by itself."""


class ClusterError(RuntimeError):
    """The cluster does not do what was asked of it."""


def missing_packages() -> str | None:
    """The sentence that says which of Debian's packages are missing, and the command that installs
    them."""
    missing = [
        package
        for program, package in PACKAGES.items()
        if not shutil.which(program, path=PATH)
    ]
    command = f"apt-get install --no-install-recommends {' '.join(missing)}"
    return (
        f"this machine lacks {', '.join(missing)}; on Debian or Ubuntu, as root: {command}"
        if missing
        else None
    )


class LocalCluster:
    """A cluster whose daemons are children of this process. Slurm's commands need its
    `environment`."""

    def __init__(self, folder: Path, num_nodes: int, max_array_size: int) -> None:
        self.folder, self.name = folder, f"local{secrets.token_hex(4)}"
        self.nodes = [f"node{number}" for number in range(1, num_nodes + 1)]
        self.max_array_size, self.first_port = max_array_size, _free_ports()
        self.environment = {"SLURM_CONF": f"{folder}/etc/slurm.conf"}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def call(self, *command: str) -> str:
        """What one of Slurm's commands prints. Raises ClusterError, with what it says, where it
        fails."""
        environment = os.environ | {"PATH": PATH} | self.environment
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise ClusterError(
                done.stderr.strip()
                or f"{command[0]} failed with exit code {done.returncode}"
            )
        return done.stdout

    def start(self) -> None:
        """Start all daemons, and wait until all nodes answer. Raises ClusterError."""
        _write_files(self)
        for name in ("munged", "slurmctld", *self.nodes):
            self._launch(name)
        for node in self.nodes:
            self._wait(lambda node=node: self._answers(node), node)

    def stop(self) -> None:
        """End all daemons and the jobs on the nodes."""
        self._end("slurmctld")
        for node in self.nodes:
            self.kill_node(node)
        self._end("munged")

    def kill_node(self, node: str, *, noticed: bool = False) -> None:
        """End all that runs on a node at once, as a crash would: slurmd, steps and tasks.

        Slurm takes about half a minute to notice; it is told, and fails or requeues the node's jobs
        now, if `noticed`.
        """
        self._end(node, signal.SIGKILL)
        while members := list(self._members(node)):
            for process in members:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)
        if noticed:
            self.call(
                "scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed"
            )

    def start_node(self, node: str) -> None:
        """Bring a node back that was killed. Raises ClusterError if it does not answer."""
        self._launch(node)

        def is_back() -> bool:
            # By `noticed`: Slurm leaves it so until told
            if self._state(node) == "down":
                self.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
            return self._answers(node)

        self._wait(is_back, node)

    def start_now(self, job_id: str) -> None:
        """Let a requeued job start in two seconds; one that starts in the second of its requeue is
        killed at once."""
        self.call("scontrol", "update", f"JobId={job_id}", "StartTime=now+2")

    def port(self, daemon: str) -> int:
        """Where slurmctld or a node's slurmd listens."""
        return self.first_port + (
            0 if daemon == "slurmctld" else int(daemon.removeprefix("node"))
        )

    def _state(self, node: str) -> str:
        """Slurm's word for the state of a node, such as idle or down*, where * means that it does
        not answer."""
        return self.call(
            "sinfo", "--noheader", f"--nodes={node}", "--partition=main", "--format=%T"
        ).strip()

    def _answers(self, node: str) -> bool:
        state = self._state(node)
        return not state.endswith("*") and not state.startswith(("down", "unk"))

    def _launch(self, name: str) -> None:
        """Start a daemon in the foreground, and wait until it listens. What it says goes to
        `log/NAME.err`."""
        own = f"{self.folder}/munge"
        address = f"{self.folder}/munge/munge.socket"
        command = [["slurmd", "-N", name], ["slurmctld"]][name == "slurmctld"]
        command = [*command, "-D", "-f", f"{self.folder}/etc/slurm.conf"]
        if name == "munged":  # --force: it takes a private folder for no error
            command = ["munged", "--foreground", "--force", f"--key-file={own}/munge.key", f"--socket={address}",
                       f"--pid-file={own}/munged.pid", f"--seed-file={own}/munged.seed"]  # fmt: skip
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("SLURM")
        }
        environment |= {"PATH": PATH} | self.environment
        with (self.folder / f"log/{name}.err").open("wb") as said:
            self._daemons[name] = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                start_new_session=True,
            )  # fmt: skip
        self._wait(
            lambda: _listens(
                address if name == "munged" else ("127.0.0.1", self.port(name))
            ),
            name,
        )

    def _wait(self, condition: Callable[[], bool], name: str) -> None:
        """Until it is so. Raises ClusterError, with the daemon's last words, where it ends, or it
        is not so in time."""
        deadline = time.monotonic() + READY_SECONDS
        while not condition():
            if self._daemons[name].poll() is not None or time.monotonic() > deadline:
                said = (
                    (self.folder / f"log/{name}.err")
                    .read_text(errors="replace")
                    .strip()
                    .splitlines()
                )
                raise ClusterError(
                    f"{name} does not answer: {said[-1:]} (see {self.folder}/log)"
                )
            time.sleep(0.1)

    def _end(self, name: str, sign: signal.Signals = signal.SIGTERM) -> None:
        """End a daemon, by force where it takes long."""
        if (daemon := self._daemons.pop(name, None)) is None:
            return
        daemon.send_signal(sign)
        try:
            daemon.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _members(self, node: str) -> Iterator[int]:
        """Processes of a node. slurmd and its steps hold the node's log open; a task's environment
        names the two."""
        log = str(self.folder / f"log/{node}.log")
        names = {
            f"SLURM_CLUSTER_NAME={self.name}".encode(),
            f"SLURMD_NODENAME={node}".encode(),
        }
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended, or is somebody else's
                is_task = names <= set((entry / "environ").read_bytes().split(b"\0"))
                is_slurm = (entry / "exe").readlink().name.startswith("slurm")
                if is_task or (
                    is_slurm and log in map(os.readlink, (entry / "fd").iterdir())
                ):
                    yield int(entry.name)


@contextmanager
def running(
    folder: Path, num_nodes: int, max_array_size: int = 1001
) -> Iterator[LocalCluster]:
    """A cluster that keeps to this folder, and is stopped with all that runs on it at the end."""
    cluster = LocalCluster(folder, num_nodes, max_array_size)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _listens(address: str | tuple[str, int]) -> bool:
    with socket.socket(
        socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    ) as client:
        return client.connect_ex(address) == 0


def _free_ports() -> int:
    """The first of a cluster's ports, none of which anybody listens on."""
    starts = sorted(PORTS, key=lambda _: secrets.randbits(32))
    return next(
        first
        for first in starts
        if not any(
            _listens(("127.0.0.1", port)) for port in range(first, first + PORTS.step)
        )
    )


def _write_files(cluster: LocalCluster) -> None:
    """Make the folders, the key and the configuration files."""
    folder = cluster.folder
    folder.chmod(0o700)
    for name in (
        "etc",
        "log",
        "run",
        "state",
        "munge",
        *(f"spool/{node}" for node in cluster.nodes),
    ):
        (folder / name).mkdir(parents=True)
    key = folder / "munge/munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    (folder / "etc/slurm.conf").write_text(_slurm_conf(cluster))
    (folder / "etc/cgroup.conf").write_text("CgroupPlugin=disabled\n")


def _slurm_conf(cluster: LocalCluster) -> str:
    folder = cluster.folder
    user = pwd.getpwuid(os.getuid()).pw_name
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    nodes = "\n".join(
        f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={cluster.port(node)} "
        f"CPUs=8 RealMemory={memory_mb} State=UNKNOWN"
        for node in cluster.nodes
    )
    return f"""\
ClusterName={cluster.name}
SlurmctldHost=localhost
SlurmctldPort={cluster.port("slurmctld")}
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
FirstJobId={int(time.time()) % 60_000_000}
MaxArraySize={cluster.max_array_size}
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Default=YES Nodes={",".join(cluster.nodes)} MaxTime=INFINITE State=UP
"""


def _communication() -> str:
    """The line for a machine whose only interface is loopback, where Slurm's usual look-ups find
    nothing."""
    try:
        socket.getaddrinfo("127.0.0.1", 1, socket.AF_INET, flags=socket.AI_ADDRCONFIG)
    except OSError:
        return "CommunicationParameters=EnableIPv6\n"
    return ""


def main() -> int:
    """Run a cluster of four nodes until Ctrl-C or SIGTERM; returns the exit code."""
    if missing := missing_packages():
        print(f"error: {missing}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        TemporaryDirectory() as folder,
        running(Path(folder), 4) as cluster,
    ):
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}")
        print(
            "# with this line in another shell, sinfo, sbatch, squeue and the rest mean this "
            "cluster",
            flush=True,
        )
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
