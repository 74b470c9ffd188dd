"""The files of a Slurm on one machine: what `slurm.local.cluster` writes into a cluster's folder before its daemons."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

PORTS = range(61000, 65400, 20)
"""First ports of clusters, private ones that Linux does not hand out by itself; a cluster takes the next few too."""

CREDENTIAL_SECONDS = 10
"""How long a job's credential holds, which is also how long a requeued job waits; Slurm's default is 120."""

NOTICE_SECONDS = 10
"""Slurm's SlurmdTimeout: with 3, all nodes are down for a moment after a start."""

GRACE_SECONDS = 10
"""How long a job may go on after the signal (sbatch's --signal) that an urgent job takes its place."""

NUM_NODES, DEFAULT_NODES = range(1, 9), 4
CPUS_PER_GPU = 8
UNFINISHED = "cluster.json.new"


@dataclass(frozen=True)
class Settings:
    """What a cluster keeps from start to start, in its `cluster.json`."""

    name: str
    gpus_per_node: tuple[int, ...]
    accounting: bool
    namespaces: bool
    """Whether each node has a host name and process ids of its own."""
    first_port: int
    first_job_id: int
    bind_cores: bool = False
    """Whether each task is bound to cores of its own; nodes then have the machine's cores, and no more."""

    @property
    def node_names(self) -> list[str]:
        return [f"node{number}" for number in range(1, len(self.gpus_per_node) + 1)]

    def node_port(self, node: str) -> int:
        return self.first_port + int(node.removeprefix("node"))

    @property
    def accounting_port(self) -> int:
        return self.first_port + 10

    @property
    def database_port(self) -> int:
        return self.first_port + 11

    @property
    def ports(self) -> range:
        return range(self.first_port, self.first_port + 12)


def read_settings(folder: Path) -> Settings | None:
    """The settings that `write_files` left, or None where there is no cluster."""
    try:
        table = json.loads((folder / "cluster.json").read_text())
        return Settings(**table | {"gpus_per_node": tuple(table["gpus_per_node"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def choose_settings(
    earlier: Settings | None,
    num_nodes: int | None,
    gpus_per_node: int | Sequence[int] | None,
    accounting: bool | None,
    bind_cores: bool | None,
) -> Settings:
    """The settings asked for, and for the rest the earlier ones. Raises ValueError."""
    base = earlier or Settings(
        name=f"local{secrets.token_hex(4)}",
        gpus_per_node=(1,) * DEFAULT_NODES,
        accounting=False,
        namespaces=False,
        first_port=free_ports(),
        first_job_id=int(time.time()) % 60_000_000,  # no id twice, even if the folder is wiped in between
    )
    if gpus_per_node is None:
        same = num_nodes in (None, len(base.gpus_per_node))
        gpus_per_node = base.gpus_per_node if same else 1
    if isinstance(gpus_per_node, int):
        gpus_per_node = (gpus_per_node,) * (len(base.gpus_per_node) if num_nodes is None else num_nodes)
    gpus = tuple(gpus_per_node)
    if len(gpus) not in NUM_NODES or num_nodes not in (None, len(gpus)) or not all(1 <= number <= 8 for number in gpus):
        raise ValueError(f"a cluster has {NUM_NODES.start} to {NUM_NODES[-1]} nodes, and each node 1 to 8 GPUs")
    return replace(
        base,
        gpus_per_node=gpus,
        accounting=base.accounting if accounting is None else accounting,
        bind_cores=base.bind_cores if bind_cores is None else bind_cores,
    )


def free_ports() -> int:
    """The first of a cluster's ports, none of which anybody listens on. Raises OSError where there are none left."""
    for first in sorted(PORTS, key=lambda _: secrets.randbits(32)):
        if all(_is_free(port) for port in range(first, first + PORTS.step)):
            return first
    raise OSError(f"no free ports from {PORTS.start} to {PORTS.stop}")


def are_free(settings: Settings) -> bool:
    """Whether nobody listens on the cluster's ports."""
    return all(_is_free(port) for port in settings.ports)


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that just closed counts as free
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True


def write_files(folder: Path, settings: Settings) -> None:
    """Make the folders, keys, fake devices and configuration files; what the daemons keep there stays as it is.

    The settings come first, so that a folder that was left half made is known as a cluster's.
    """
    unfinished = folder / UNFINISHED
    unfinished.write_text(json.dumps(asdict(settings), indent=1) + "\n")
    unfinished.replace(folder / "cluster.json")
    for name in ("etc", "log", "run", "state", "munge", "dev", *(f"spool/{node}" for node in settings.node_names)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "state/clustername").unlink(missing_ok=True)  # with one from before accounting, slurmctld ends at once
    key = folder / "munge/munge.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
    for number in range(max(settings.gpus_per_node)):
        device = folder / f"dev/gpu{number}"
        device.unlink(missing_ok=True)
        device.symlink_to("/dev/null")
    files = {
        "slurm.conf": _slurm_conf(folder, settings),
        "gres.conf": _gres_conf(folder, settings),
        "cgroup.conf": "CgroupPlugin=disabled\n",
        "hosts": _read("/etc/hosts") + f"\n127.0.0.1 localhost {' '.join(settings.node_names)}\n",
    }
    if settings.accounting:
        password = secrets.token_hex()
        files["slurmdbd.conf"] = _slurmdbd_conf(folder, settings, password)
        files["database.sql"] = (
            "CREATE DATABASE IF NOT EXISTS slurm;\n"
            f"CREATE OR REPLACE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
            "GRANT ALL ON slurm.* TO 'slurm'@'127.0.0.1';\n"
        )
    for name, text in files.items():
        path = folder / "etc" / name
        path.touch(mode=0o600)  # slurmdbd insists
        path.write_text(text)


def _slurm_conf(folder: Path, settings: Settings) -> str:
    return "\n".join([*_controller_lines(folder, settings), *_node_lines(settings), ""])


def _controller_lines(folder: Path, settings: Settings) -> Iterator[str]:
    user = user_name()
    yield f"""\
ClusterName={settings.name}
SlurmctldHost=localhost
SlurmctldPort={settings.first_port}
{_communication(settings)}SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/munge.socket,cred_expire={CREDENTIAL_SECONDS}
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/{"affinity" if settings.bind_cores else "none"}
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
KillWait=5
OverTimeLimit=0
JobRequeue=1
FirstJobId={settings.first_job_id}
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptParameters=send_user_signal
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
GresTypes=gpu"""
    if settings.accounting:
        yield "AccountingStorageType=accounting_storage/slurmdbd"
        yield "AccountingStorageHost=127.0.0.1"
        yield f"AccountingStoragePort={settings.accounting_port}"
        yield f"AccountingStoragePass={folder}/munge/munge.socket"
        yield "AccountingStorageTRES=gres/gpu"


def _node_lines(settings: Settings) -> Iterator[str]:
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    for node, num_gpus in zip(settings.node_names, settings.gpus_per_node, strict=True):
        host = node if settings.namespaces else "localhost"
        # Cores that are not there can be promised, but nothing can be bound to them.
        cpus = len(os.sched_getaffinity(0)) if settings.bind_cores else CPUS_PER_GPU * num_gpus
        yield (
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={settings.node_port(node)} "
            f"CPUs={cpus} RealMemory={memory_mb} Gres=gpu:v100:{num_gpus} Feature=v100 State=UNKNOWN"
        )
    yield f"PartitionName=DEFAULT Nodes={','.join(settings.node_names)} MaxTime=INFINITE State=UP"
    yield f"PartitionName=main Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={GRACE_SECONDS}"
    yield "PartitionName=urgent PriorityTier=2 PreemptMode=OFF"


def _gres_conf(folder: Path, settings: Settings) -> str:
    lines = ["AutoDetect=off"]
    for node, num_gpus in zip(settings.node_names, settings.gpus_per_node, strict=True):
        devices = f"{folder}/dev/gpu" + ("0" if num_gpus == 1 else f"[0-{num_gpus - 1}]")
        lines.append(f"NodeName={node} Name=gpu Type=v100 File={devices}")
    return "\n".join(lines) + "\n"


def _slurmdbd_conf(folder: Path, settings: Settings, password: str) -> str:
    return f"""\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.socket
{_communication(settings)}DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={settings.accounting_port}
SlurmUser={user_name()}
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={settings.database_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""


def _communication(settings: Settings) -> str:
    """The line that has daemons listen on the address of the host's name, where that is a loopback address."""
    parameters = []
    if settings.namespaces or has_loopback_name():
        parameters += ["NoCtldInAddrAny", "NoInAddrAny"]
    try:
        socket.getaddrinfo("127.0.0.1", 1, socket.AF_INET, flags=socket.AI_ADDRCONFIG)
    except OSError:  # loopback is the only interface, where Slurm's usual look-ups find nothing
        parameters.append("EnableIPv6")
    return f"CommunicationParameters={','.join(parameters)}\n" if parameters else ""


def has_loopback_name() -> bool:
    """Whether this machine's name means one of its loopback addresses."""
    try:
        return socket.gethostbyname(socket.gethostname()).startswith("127.")
    except OSError:
        return False


def user_name() -> str:
    """Who runs the daemons. Raises ValueError for a user id without a name: Slurm wants one."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise ValueError(f"user id {os.getuid()} has no name, and Slurm wants one: add it to /etc/passwd") from None


def _read(path: str) -> str:
    return Path(path).read_text() if os.path.exists(path) else ""
