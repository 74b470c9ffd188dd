"""A real Slurm on this machine, with several nodes and fake GPUs: for tests, and for trying things.

    python slurm/local/cluster.py start     # then paste the line it prints, or eval "$(...)" it
    python slurm/local/cluster.py status
    python slurm/local/cluster.py stop

It needs Debian's packages, but neither root, systemd nor cgroups. It keeps to one folder and listens on loopback only.
Without root all jobs are the user's own. Where the kernel lets users make no namespaces, the nodes share the machine's
name and process ids; where that name is then no loopback address, the daemons listen on all addresses.
srun outside of a job works where the machine's name resolves; sbatch, and srun in jobs, work anyway.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # a script finds the folder it lies in, not the package

from slurm.local.config import (
    DEFAULT_NODES,
    UNFINISHED,
    Settings,
    are_free,
    choose_settings,
    free_ports,
    read_settings,
    write_files,
)
from slurm.local.daemons import (
    PATH,
    ClusterError,
    MissingPackagesError,
    daemon_names,
    have_namespaces,
    launch,
    require_packages,
    wait_ready,
)
from slurm.local.processes import end, end_node, process_of, wait_until

USAGE, FAILURE = 2, 1
ANSWER_SECONDS = 40.0
LONGEST_FOLDER = 64
"""Characters: a socket's path may have 107, and Slurm puts names of jobs and nodes behind the folder's."""


@dataclass(frozen=True)
class LocalCluster:
    """A cluster that was started. Its commands (`squeue`, submitit, ...) need `environment`."""

    folder: Path
    settings: Settings

    @property
    def environment(self) -> dict[str, str]:
        """The variable that says to Slurm's commands which cluster is meant."""
        return {"SLURM_CONF": f"{self.folder}/etc/slurm.conf"}

    @property
    def node_names(self) -> list[str]:
        return self.settings.node_names

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
        lines = self.call("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return dict(sorted(line.split() for line in lines))

    def answering(self) -> bool:
        """Whether the controller runs and all nodes answer it."""
        try:
            return process_of(self.folder, "slurmctld") is not None and all(map(_answers, self.node_states().values()))
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
        if process_of(self.folder, node) is None:
            launch(self.folder, self.settings, node)
        wait_ready(self.folder, self.settings, node)

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


def default_folder() -> Path:
    """The per-user folder of the cluster: $XDG_CACHE_HOME/cser-bench/slurm, or the same in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "cser-bench" / "slurm"


def start(
    folder: Path | None = None,
    num_nodes: int | None = None,
    gpus_per_node: int | Sequence[int] | None = None,
    accounting: bool | None = None,
    bind_cores: bool | None = None,
) -> LocalCluster:
    """Start the cluster of a folder, or what of it does not run; returns when all its nodes answer.

    `gpus_per_node` is one number for all or one for each node. What is left out is as before in this folder, else
    4 nodes with 1 GPU each, no accounting (sacct), and tasks on whatever core is free: where `bind_cores`, all nodes
    have the machine's own cores, and a task has its own among its node's.

    Raises:
        ValueError: a folder or a number that will not do; or the cluster runs, with other settings.
        MissingPackagesError: Debian's packages are not all there.
        ClusterError: a daemon does not start, or a node does not answer.
    """
    require_packages(accounting=bool(accounting))
    folder = _usable(folder or default_folder())
    with _locked(folder):
        earlier = read_settings(folder)
        settings = choose_settings(earlier, num_nodes, gpus_per_node, accounting, bind_cores)
        require_packages(accounting=settings.accounting)
        if earlier is None or not _running(folder, earlier):
            settings = replace(settings, namespaces=have_namespaces())
            write_files(folder, settings if are_free(settings) else replace(settings, first_port=free_ports()))
        elif settings != earlier:
            raise ValueError(f"a cluster with other settings runs in {folder}: stop it first, or name another folder")
        cluster = LocalCluster(folder, read_settings(folder) or settings)
        _start_missing(cluster)
    return cluster


def stop(folder: Path | None = None) -> bool:
    """Stop the folder's cluster and the jobs on its nodes, and nothing else. Returns whether anything ran."""
    folder = (folder or default_folder()).absolute()
    settings = read_settings(folder)
    if settings is None:
        return False
    with _locked(folder):
        ran = [end(folder, "slurmctld")]
        ran += [end_node(folder, settings.name, node) for node in settings.node_names]
        ran += [end(folder, name) for name in ("slurmdbd", "mariadbd", "munged")]
    return any(ran)


def is_running(folder: Path | None = None) -> bool:
    """Whether all daemons of the folder's cluster run."""
    folder = (folder or default_folder()).absolute()
    settings = read_settings(folder)
    return settings is not None and set(_running(folder, settings)) == set(daemon_names(settings))


def status(folder: Path | None = None) -> tuple[bool, str]:
    """Whether all nodes of the folder's cluster answer, and a few lines about them and the jobs."""
    folder = (folder or default_folder()).absolute()
    settings = read_settings(folder)
    if settings is None or not (running := _running(folder, settings)):
        return False, f"no cluster runs in {folder}"
    cluster = LocalCluster(folder, settings)
    lines = [f"{name} does not run: start repairs that" for name in daemon_names(settings) if name not in running]
    if "slurmctld" in running:
        try:
            lines += cluster.call("sinfo", "--format=%9P %.5D %10T %14G %N").splitlines()
            jobs = cluster.call("squeue", "--format=%10i %16j %12T %10M %R").splitlines()
        except ClusterError as error:
            return False, "\n".join([*lines, str(error)])
        lines += jobs[:11] if len(jobs) > 1 else ["no jobs"]
        if len(jobs) > 11:
            lines.append(f"and {len(jobs) - 11} more jobs")
    return cluster.answering() and len(running) == len(daemon_names(settings)), "\n".join(lines)


def _usable(folder: Path) -> Path:
    """The folder, made private. Raises ValueError for one that Slurm cannot have."""
    folder = folder.absolute()
    if not re.fullmatch(r"[\w/.+-]+", str(folder), re.ASCII) or len(str(folder)) > LONGEST_FOLDER:
        raise ValueError(f"{folder}: Slurm needs a folder with a plain name of at most {LONGEST_FOLDER} characters")
    folder.mkdir(parents=True, exist_ok=True)
    if not read_settings(folder) and {entry.name for entry in folder.iterdir()} - {"lock", UNFINISHED}:
        raise ValueError(f"{folder} holds other files than a cluster's: name an empty or a new folder")
    folder.chmod(0o700)
    return folder


def _start_missing(cluster: LocalCluster) -> None:
    folder, settings = cluster.folder, cluster.settings
    for name in daemon_names(settings):
        if process_of(folder, name) is None:
            launch(folder, settings, name)
        if name not in settings.node_names:
            wait_ready(folder, settings, name)
    for node in settings.node_names:
        wait_ready(folder, settings, node)
    if not wait_until(cluster.answering, ANSWER_SECONDS):
        raise ClusterError(f"not all nodes answer: {cluster.node_states()} (see {folder}/log)")


def _running(folder: Path, settings: Settings) -> list[str]:
    return [name for name in daemon_names(settings) if process_of(folder, name) is not None]


def _answers(state: str) -> bool:
    return not state.endswith("*") and not state.startswith(("down", "unk"))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One start or stop at a time."""
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 2 for a user's mistake or missing packages, 1 for a failure."""
    options = _parser().parse_args(arguments)
    try:
        return {"start": _start, "stop": _stop, "status": _status}[options.command](options)
    except (ValueError, MissingPackagesError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except (ClusterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILURE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="local_cluster", description="A real Slurm on this machine.")
    parser.add_argument("command", choices=("start", "stop", "status"))
    parser.add_argument("--folder", type=Path, default=default_folder(), help="all that is kept (default: %(default)s)")
    parser.add_argument("--nodes", type=int, help=f"how many (default: {DEFAULT_NODES}, or as before)")
    parser.add_argument("--gpus-per-node", type=_numbers, help="one number for all nodes, or one for each: 1,1,1,4")
    parser.add_argument("--accounting", action=argparse.BooleanOptionalAction, help="with sacct, which needs MariaDB")
    parser.add_argument("--bind-cores", action=argparse.BooleanOptionalAction, help="give each task cores of its own")
    return parser


def _numbers(text: str) -> int | tuple[int, ...]:
    try:
        numbers = tuple(map(int, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or several with commas between, not {text!r}") from None
    return numbers[0] if len(numbers) == 1 else numbers


def _start(options: argparse.Namespace) -> int:
    ran = is_running(options.folder)
    cluster = start(options.folder, options.nodes, options.gpus_per_node, options.accounting, options.bind_cores)
    print(f"# {'already runs' if ran else 'runs'}: {len(cluster.node_names)} nodes, in {cluster.folder}")
    for name, value in cluster.environment.items():
        print(f"export {name}={value}")
    print("# with this line in your shell, sinfo, sbatch, squeue and the rest mean this cluster")
    print("# for example: srun --gres=gpu:v100:1 --constraint=v100 hostname")
    print(f"# end it with: {Path(sys.executable).name} {Path(__file__)} stop --folder {cluster.folder}")
    return 0


def _stop(options: argparse.Namespace) -> int:
    print(f"stopped the cluster in {options.folder}" if stop(options.folder) else f"nothing runs in {options.folder}")
    return 0


def _status(options: argparse.Namespace) -> int:
    answering, text = status(options.folder)
    print(text)
    return 0 if answering else FAILURE


if __name__ == "__main__":
    sys.exit(main())
