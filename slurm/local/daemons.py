"""The daemons of a Slurm on one machine: which there are, the packages they come from, how each is started."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from slurm.local.config import Settings, user_name
from slurm.local.processes import process_of, spawn, wait_until

PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/bin:/bin"
"""Where programs are looked for: Debian's daemons lie where users without rights do not look."""

PACKAGES = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
ACCOUNTING_PACKAGES = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
    "my_print_defaults": "mariadb-client-core",
}
"""Program -> Debian's package that has it."""
PLUGIN_PACKAGE, PLUGIN = "slurm-wlm-mysql-plugin", "accounting_storage_mysql.so"

DROP_CAPABILITIES = ["setpriv", "--inh-caps=-all", "--ambient-caps=-all"]
"""A user without rights has them all in namespaces of their own; jobs should not."""

READY_SECONDS = 20.0
"""How long a daemon may take until it listens."""


class ClusterError(RuntimeError):
    """The cluster does not do what was asked of it."""


class MissingPackagesError(ClusterError):
    """Debian's packages are not all there."""


def require_packages(*, accounting: bool) -> None:
    """Raises MissingPackagesError, with the command that installs what is missing."""
    wanted = PACKAGES | (ACCOUNTING_PACKAGES if accounting else {})
    missing = [package for program, package in wanted.items() if not shutil.which(program, path=PATH)]
    if accounting and not any(Path("/usr/lib").glob(f"*/slurm*/{PLUGIN}")):
        missing.append(PLUGIN_PACKAGE)
    if missing:
        command = f"apt-get install --no-install-recommends {' '.join(missing)}"
        raise MissingPackagesError(f"this machine lacks {', '.join(missing)}; on Debian or Ubuntu, as root: {command}")


def daemon_names(settings: Settings) -> list[str]:
    """In the order in which they are started."""
    accounting = ["mariadbd", "slurmdbd"] if settings.accounting else []
    return ["munged", *accounting, "slurmctld", *settings.node_names]


def launch(folder: Path, settings: Settings, name: str) -> None:
    """Start a daemon. Raises ClusterError where that cannot be prepared."""
    if name == "mariadbd":
        _make_database(folder)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    environment |= {"PATH": PATH, "SLURM_CONF": f"{folder}/etc/slurm.conf"}
    spawn(folder, name, _command(folder, settings, name), environment)


def wait_ready(folder: Path, settings: Settings, name: str) -> None:
    """Wait until a daemon listens. Raises ClusterError, with its last words, if it ends or stays mute."""
    address = _address(folder, settings, name)
    wait_until(lambda: process_of(folder, name) is None or listens(address), READY_SECONDS)
    if process_of(folder, name) is not None and listens(address):
        return
    words = (folder / f"log/{name}.err").read_text(errors="replace").strip().splitlines()
    what = "does not listen" if process_of(folder, name) else "ended at once"
    raise ClusterError(f"{name} {what}: {words[-1] if words else 'it said nothing'} (see {folder}/log)")


def listens(address: str | tuple[str, int]) -> bool:
    """Whether something can be reached at a port or at a socket's path."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client, suppress(OSError):
        client.connect(address)
        return True
    return False


def have_namespaces() -> bool:
    """Whether nodes can have host names and process ids of their own: mostly as root, else if the kernel lets users."""
    try:
        return subprocess.run(_as_machine("node1", "/etc/hosts", ["true"]), capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _address(folder: Path, settings: Settings, name: str) -> str | tuple[str, int]:
    if name == "munged":
        return f"{folder}/munge/munge.socket"
    ports = {"slurmctld": settings.first_port, "slurmdbd": settings.accounting_port, "mariadbd": settings.database_port}
    return "127.0.0.1", ports[name] if name in ports else settings.node_port(name)


def _command(folder: Path, settings: Settings, name: str) -> list[str]:
    """What runs a daemon, in the foreground."""
    match name:
        case "munged":
            return [
                "munged",
                "--foreground",
                "--force",  # a private folder is no error
                f"--key-file={folder}/munge/munge.key",
                f"--socket={folder}/munge/munge.socket",
                f"--pid-file={folder}/munge/munged.pid",
                f"--seed-file={folder}/munge/munged.seed",
            ]
        case "mariadbd":
            return [
                "mariadbd",
                *_database_options(folder / "database"),
                f"--socket={folder}/run/mariadb.socket",
                f"--pid-file={folder}/run/mariadb.pid",
                "--bind-address=127.0.0.1",
                f"--port={settings.database_port}",
                "--skip-name-resolve",
                f"--init-file={folder}/etc/database.sql",
            ]
        case "slurmdbd":
            return _with_loopback_name(settings, ["slurmdbd", "-D"])
        case "slurmctld":
            return _with_loopback_name(settings, ["slurmctld", "-D", "-f", f"{folder}/etc/slurm.conf"])
    node = ["slurmd", "-D", "-N", name, "-f", f"{folder}/etc/slurm.conf"]
    return _as_machine(name, f"{folder}/etc/hosts", node) if settings.namespaces else node


def _with_loopback_name(settings: Settings, command: Sequence[str]) -> list[str]:
    """Run a command where the host's name is a loopback address, on which alone it then listens."""
    return _unshared([], 'hostname "$1"', "localhost", command) if settings.namespaces else list(command)


def _as_machine(name: str, hosts: str, command: Sequence[str]) -> list[str]:
    """Run a command as the first process of a machine of its own, all of which dies with it.

    The machine has a name, which the file `hosts` knows; network, files and users are this machine's.
    """
    separate = ["--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    return _unshared(separate, f'mount --bind "{hosts}" /etc/hosts && hostname "$1"', name, command)


def _unshared(options: Sequence[str], prepare: str, argument: str, command: Sequence[str]) -> list[str]:
    """Run a command in namespaces that the line `prepare` has prepared, with `argument` as its $1."""
    to_prepare, to_run = (["--map-current-user", "--keep-caps"], DROP_CAPABILITIES) if os.getuid() else ([], [])
    script = f'{prepare} && shift && exec "$@"'
    return ["unshare", "--uts", *to_prepare, *options, "sh", "-c", script, "sh", argument, *to_run, *command]


def _database_options(data: Path) -> list[str]:
    """A small database that may lose its last second in a crash of the machine."""
    return [
        "--no-defaults",
        f"--user={user_name()}",
        f"--datadir={data}",
        "--skip-log-bin",
        "--performance-schema=0",
        "--innodb-buffer-pool-size=64M",
        "--innodb-log-file-size=8M",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-doublewrite=0",
    ]


def _make_database(folder: Path) -> None:
    if (folder / "database").exists():
        return
    unfinished = folder / "database.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    with (folder / "log/mariadb-install-db.log").open("wb") as log:
        command = ["mariadb-install-db", *_database_options(unfinished), "--skip-test-db"]
        done = subprocess.run(command, env=os.environ | {"PATH": PATH}, stdout=log, stderr=log)
    if done.returncode:
        raise ClusterError(f"mariadb-install-db made no database: see {log.name}")
    unfinished.rename(folder / "database")
