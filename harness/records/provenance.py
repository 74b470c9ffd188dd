"""What a record says of the code and the machine."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import uuid
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from harness.records.store import Attempt

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "pydantic", "submitit", "typst")


def new_attempt(launch: str, backend: str, device: torch.device) -> Attempt:
    """An attempt that begins now, here; its step is filled in when it is known."""
    cuda = device.type == "cuda"
    commit, diff = code_version()
    return Attempt(
        attempt=uuid.uuid4().hex[:8],
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        resumed_from_step=0,
        host=platform.node(),
        command=command_line(),
        launch=launch,
        backend=backend,
        device=str(device),
        git_commit=commit,
        git_diff_sha256=diff,
        python=platform.python_version(),
        packages=_packages(),
        cpu=_cpu_name(),
        num_cpus=len(os.sched_getaffinity(0)),
        accelerator=torch.cuda.get_device_name(device) if cuda else None,
        nccl=_nccl_version() if backend == "nccl" else None,
        slurm={key: os.environ[key] for key in sorted(os.environ) if key.startswith("SLURM_JOB")} or None,
    )


def command_line() -> str:
    """The command as a user would type it."""
    program = Path(sys.argv[0])
    words = ["python", "-m", "harness"] if program.name in ("__main__.py", "cser-harness") else [program.name]
    return shlex.join([*words, *sys.argv[1:]])


def code_version() -> tuple[str | None, str | None]:
    """Commit of the code in use, and digest of what the tree has besides; None where there is no git, or nothing."""
    return _git("rev-parse", "HEAD"), _diff_sha256()


def _nccl_version() -> str:
    version: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return ".".join(map(str, version))


@cache
def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def output_of(*command: str, cwd: Path | None = None) -> str | None:
    """What a command says; None where it fails, is not there, or takes too long."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def _git(*arguments: str) -> str | None:
    return output_of("git", *arguments, cwd=Path(__file__).parent)


@cache
def _diff_sha256() -> str | None:
    """Digest of what the tree has that the commit has not; None where there is nothing, or no git."""
    diff = _git("diff", "HEAD", "--", ":(top)*.py", ":(top)*.toml")
    return hashlib.sha256(diff.encode()).hexdigest() if diff else None


@cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
