"""The daemons of a Slurm on one machine: starting them, telling ours from others', ending them and nothing else."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/bin:/bin"
"""Where programs are looked for: Debian's daemons lie where users without rights do not look."""

PACKAGES = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
"""Program -> Debian's package that has it."""

READY_SECONDS, STOP_SECONDS = 60.0, 10.0
"""How long a daemon may take until it listens, and to end by itself."""


class ClusterError(RuntimeError):
    """The cluster does not do what was asked of it."""


class MissingPackagesError(ClusterError):
    """Debian's packages are not all there."""


def require_packages() -> None:
    """Raises MissingPackagesError, with the command that installs what is missing."""
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program, path=PATH)]
    if missing:
        command = f"apt-get install --no-install-recommends {' '.join(missing)}"
        raise MissingPackagesError(f"this machine lacks {', '.join(missing)}; on Debian or Ubuntu, as root: {command}")


def user_name() -> str:
    """Who runs the daemons. Raises ValueError for a user id without a name: Slurm wants one."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise ValueError(f"user id {os.getuid()} has no name, and Slurm wants one: add it to /etc/passwd") from None


def launch(folder: Path, name: str) -> None:
    """Start a daemon that outlives us, and note which process it is. What it says goes to `log/NAME.err`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    environment |= {"PATH": PATH, "SLURM_CONF": f"{folder}/etc/slurm.conf"}
    with (folder / f"log/{name}.err").open("wb") as output:
        process = subprocess.Popen(
            _command(folder, name), cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=output, start_new_session=True,
        )  # fmt: skip
    _note(folder, name).write_text(f"{process.pid} {_identity(process.pid)}")


def _command(folder: Path, name: str) -> list[str]:
    """What runs a daemon, in the foreground."""
    if name == "munged":
        own = f"{folder}/munge"  # a private folder, which --force takes for no error
        return ["munged", "--foreground", "--force", f"--key-file={own}/munge.key", f"--socket={own}/munge.socket",
                f"--pid-file={own}/munged.pid", f"--seed-file={own}/munged.seed"]  # fmt: skip
    daemon = ["slurmctld"] if name == "slurmctld" else ["slurmd", "-N", name]
    return [*daemon, "-D", "-f", f"{folder}/etc/slurm.conf"]


def wait_ready(folder: Path, name: str, address: str | tuple[str, int]) -> None:
    """Wait until a daemon listens. Raises ClusterError, with its last words, if it ends or stays mute."""
    wait_until(lambda: process_of(folder, name) is None or _listens(address), READY_SECONDS)
    if process_of(folder, name) is not None and _listens(address):
        return
    words = (folder / f"log/{name}.err").read_text(errors="replace").strip().splitlines()
    what = "does not listen" if process_of(folder, name) else "ended at once"
    raise ClusterError(f"{name} {what}: {words[-1] if words else 'it said nothing'} (see {folder}/log)")


def _listens(address: str | tuple[str, int]) -> bool:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client, suppress(OSError):
        client.connect(address)
        return True
    return False


def process_of(folder: Path, name: str) -> int | None:
    """The process id of a daemon that runs; None, and its note removed, where it ended, by whatever means."""
    note = _note(folder, name)
    try:
        number, identity = note.read_text().split(maxsplit=1)
    except (FileNotFoundError, ValueError):
        return None
    if _identity(int(number)) == identity:
        return int(number)
    note.unlink(missing_ok=True)
    return None


def end(folder: Path, name: str, *, at_once: bool = False) -> bool:
    """End a daemon, by force where it takes long or `at_once`. Returns whether it ran.

    Raises TimeoutError where even force does not help.
    """
    process = process_of(folder, name)
    if process is None:
        return False
    if not at_once:
        _signal(process, signal.SIGTERM)
        wait_until(lambda: process_of(folder, name) is None, STOP_SECONDS)
    if process_of(folder, name) is not None:
        _signal(process, signal.SIGKILL)
    if not wait_until(lambda: process_of(folder, name) is None, STOP_SECONDS):
        raise TimeoutError(f"{name}, process {process}, was killed and does not end")
    return True


def end_node(folder: Path, cluster_name: str, node: str) -> bool:
    """End all of a node at once: its slurmd, the steps there and their tasks. Returns whether its slurmd ran.

    Raises TimeoutError where processes do not end.
    """
    ran = end(folder, node, at_once=True)

    def is_empty() -> bool:
        members = list(_members(folder, cluster_name, node))
        for process in members:
            _signal(process, signal.SIGKILL)
        return not members

    if not wait_until(is_empty, STOP_SECONDS):
        raise TimeoutError(f"processes of {node} were killed and do not end")
    return ran


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask until it is so; False where it is not so in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _members(folder: Path, cluster_name: str, node: str) -> Iterator[int]:
    """Processes of a node. slurmd and its steps hold the node's log open; a task's environment names the two."""
    log = str(folder / f"log/{node}.log")
    names = {f"SLURM_CLUSTER_NAME={cluster_name}".encode(), f"SLURMD_NODENAME={node}".encode()}
    for entry in Path("/proc").glob("[0-9]*"):
        process = int(entry.name)
        with suppress(OSError):  # it ended, or is somebody else's
            is_task = names <= set((entry / "environ").read_bytes().split(b"\0"))
            is_slurm = (entry / "exe").readlink().name.startswith("slurm")
            if is_task or (is_slurm and log in map(os.readlink, (entry / "fd").iterdir())):
                yield process


def _note(folder: Path, name: str) -> Path:
    return folder / f"run/{name}.process"


def _identity(process: int) -> str:
    """When the process started, and in which boot: no two processes of one id have that in common. "" if it ended."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "" if state in "ZX" else f"{fields[18]} {boot}"


def _signal(process: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)
