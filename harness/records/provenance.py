"""What a record says of the code and the machine."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cser_bench.harness.cores import usable_cores
from cser_bench.harness.records.store import Attempt

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "matplotlib",
    "pydantic",
    "submitit",
    "typst",
)


ROOMS = ("algorithms", "harness", "report", "slurm")
"""The folders of a checkout whose files are run where they lie."""


OF_SLURM = (
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_QOS",
    "SLURM_JOB_NUM_NODES",
    "SLURM_JOB_CPUS_PER_NODE",
    "SLURM_JOB_GPUS",
    "SLURM_JOB_START_TIME",
    "SLURM_JOB_END_TIME",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_CPUS_PER_TASK",
    "SLURM_GPUS_ON_NODE",
)
"""The variables of Slurm that a record keeps: which job it was, and what it had. Who ran it, and on
whose account, is in none, as records are given to others."""


def slurm_variables() -> dict[str, str]:
    """Return what the environment says of the job of Slurm, as a record keeps it."""
    return {name: os.environ[name] for name in OF_SLURM if name in os.environ}


def new_attempt(launch: str, backend: str, device: torch.device) -> Attempt:
    """Return an attempt that begins now, here; its step is filled in when it is known."""
    import torch  # here, as what Slurm calls between two starts has no time to load it

    commit, diff_sha256 = _code_version()
    accelerator = None
    if device.type == "cuda":
        accelerator = torch.cuda.get_device_name(device)
    nccl = None
    if backend == "nccl":
        version: Callable[[], tuple[int, ...]] = torch.cuda.nccl.version
        nccl = ".".join(map(str, version()))
    return Attempt(
        # 32 random bits: enough to tell the few attempts at one run apart.
        attempt=uuid.uuid4().hex[:8],
        started_at=now(),
        # Known only after the checkpoints were read; `Recorder.enter` fills it in.
        resumed_from_step=0,
        host=platform.node(),
        command=_command_line(),
        launch=launch,
        backend=backend,
        device=str(device),
        git_commit=commit,
        git_diff_sha256=diff_sha256,
        python=platform.python_version(),
        packages=_packages(),
        cpu=_cpu_name(),
        num_cpus=len(usable_cores()),
        accelerator=accelerator,
        nccl=nccl,
        slurm=slurm_variables() or None,
    )


def now() -> str:
    """Return the present moment as records have it: ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _command_line() -> str:
    """Return the command as a user would type it."""
    program = Path(sys.argv[0]).name
    words = [program]
    if program in ("__main__.py", "cser-harness"):
        words = ["python", "-m", "harness"]
    return shlex.join([*words, *sys.argv[1:]])


def output_of(*command: str, cwd: Path | None = None) -> str | None:
    """Return what a command prints.

    None where it fails, is not there, or takes too long, which is no empty answer.
    """
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def _code_version() -> tuple[str | None, str | None]:
    """Return the commit of the code in use, and a digest of what the tree has besides.

    None where there is no git, or nothing besides.
    """
    folder = Path(__file__).parent
    return output_of("git", "rev-parse", "HEAD", cwd=folder), changes_digest(folder)


def changes_digest(folder: Path) -> str | None:
    """Return a digest of what the code of the checkout around a folder has besides its commit.

    That is changes of Python and TOML files, and such files of our packages that git does not
    track: a method that was put beside others is found and run. None where there is nothing
    besides, or no git.
    """
    # Git takes patterns from the folder that it runs in, which has a part of our files alone;
    # `:(top)` begins them at the top.
    diff = output_of(
        "git", "diff", "HEAD", "--", ":(top)*.py", ":(top)*.toml", cwd=folder
    )
    top = output_of("git", "rev-parse", "--show-toplevel", cwd=folder)
    if diff is None or top is None:
        return None
    text = diff
    for name in _untracked(Path(top)):
        with suppress(OSError):
            # A file that vanished since the list was made is left out.
            digest = hashlib.sha256((Path(top) / name).read_bytes()).hexdigest()
            text += f"\nuntracked {name} {digest}"
    # A digest and no text: it tells whether two runs had the same code, and holds no one's drafts.
    return hashlib.sha256(text.encode()).hexdigest() if text else None


def _untracked(top: Path) -> list[str]:
    """Return the files of our packages that git neither tracks nor ignores, from the top."""
    kinds = [f":(top){room}/*.{ending}" for room in ROOMS for ending in ("py", "toml")]
    # With -z, as git else writes names with other than ASCII letters in quotes and escapes.
    listed = output_of(
        "git", "ls-files", "-z", "--others", "--exclude-standard", *kinds, cwd=top
    )
    return sorted(filter(None, (listed or "").split("\0")))


@cache
def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@cache
def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()
