"""From a profile to sbatch: submitit's parameters for arrays and preflight, their text, and what a refusal means."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string  # the public way to the text needs srun on the path

from slurm.allocation import ask_slurm
from slurm.profile import Profile

PREFLIGHT_MINUTES = 20
"""Most of it is for a first look through ImageNet's folders on a slow file system."""

MAX_ARRAY_SIZE = 1001
"""Slurm's own limit of an array's size, for where the cluster's is not known."""


@dataclass(frozen=True)
class SubmissionPaths:
    """The places of a submission's files, as every node sees them: `jobs` has submitit's pickles and logs, `code` the
    snapshot, and `campaign` is the experiment's campaign.json, in which the submission has the number `submission`.
    """

    jobs: Path
    code: Path
    campaign: Path
    submission: int


def array_sizes(num_runs: int) -> list[int]:
    """The sizes of the arrays that so many runs need, as a cluster takes no array of more than MaxArraySize tasks."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask_slurm("scontrol", "show", "config") or "", re.MULTILINE)
    largest = max(1, int(found[1]) if found else MAX_ARRAY_SIZE)
    return [min(largest, num_runs - start) for start in range(0, num_runs, largest)]


def array_parameters(profile: Profile, name: str, place: SubmissionPaths, *after: str) -> dict[str, Any]:
    """submitit's parameters for an array of runs; `after`: dependencies, such as afterok:12."""
    # Not in a container, which mostly lacks scontrol: by the Python that submits.
    requeue = [sys.executable, "-m", "slurm.requeue", str(place.campaign), str(place.submission)]
    extra: dict[str, Any] = {"requeue": True}
    if after:
        extra |= {"dependency": ",".join(after), "kill-on-invalid-dep": "yes"}
    return _parameters(profile, place.code) | {
        "job_name": name,
        "time": profile.time_limit_minutes,
        "signal_delay_s": profile.warning_seconds,
        "array_parallelism": profile.array_parallelism,
        # What srun returned decides what comes next; see slurm/requeue.py.
        "teardown": [f"{shlex.join(requeue)} {profile.max_retries} $?"],
        "additional_parameters": extra | _flags(profile),
    }


def preflight_minutes(profile: Profile) -> int:
    """The time limit of the preflight job."""
    return min(PREFLIGHT_MINUTES, profile.time_limit_minutes)


def preflight_parameters(profile: Profile, name: str, place: SubmissionPaths) -> dict[str, Any]:
    """submitit's parameters for the job that checks nodes, network and data in a run's own shape."""
    return _parameters(profile, place.code) | {
        "job_name": f"{name}-preflight",
        "time": preflight_minutes(profile),
        "additional_parameters": _flags(profile),
    }


def sbatch_text(profile: Profile, place: SubmissionPaths, parameters: dict[str, Any], num_tasks: int = 1) -> str:
    """The text that sbatch gets for these parameters."""
    command = f"{python_of(profile)} -u -m submitit.core._submit {shlex.quote(str(place.jobs))}"
    map_count = num_tasks if num_tasks > 1 else None
    return _make_sbatch_string(command=command, folder=place.jobs, map_count=map_count, **parameters)


def python_of(profile: Profile) -> str:
    """The words that start Python in a job, as its shell reads them: srun's own words come right before."""
    python = shlex.quote(profile.python or sys.executable)
    return f"{profile.launch_prefix} {python}" if profile.launch_prefix else python


def _parameters(profile: Profile, code: Path) -> dict[str, Any]:
    return {
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "nodes": profile.nodes,
        "ntasks_per_node": profile.tasks_per_node,
        "cpus_per_task": profile.cpus_per_worker,
        "mem": None if profile.memory_gb is None else f"{round(1024 * profile.memory_gb)}M",
        "wckey": None,
        "stderr_to_stdout": True,
        "setup": [
            *profile.setup,
            *_exports(profile, code),
            # The signals are for the workers: this shell must get to its last line, whatever becomes of them.
            "set +e; trap : TERM USR2",
        ],
        # Newer versions of srun do not take the CPUs over from sbatch. Where SBATCH_EXPORT=NONE, srun would else hand
        # nothing of this shell's environment on.
        "srun_args": [
            f"--cpus-per-task={profile.cpus_per_worker}",
            "--export=ALL",
            "--kill-on-bad-exit=1",
            "--open-mode=append",
        ],
    }


def _exports(profile: Profile, code: Path) -> list[str]:
    """What a job's processes find in their environment, over what the submitter had and `setup` has made of it."""
    variables = {
        "PYTHONSAFEPATH": "1",  # or the folder in which the command was typed would go before the snapshot
        "OMP_NUM_THREADS": "1",
        "LOCAL_WORLD_SIZE": str(profile.tasks_per_node),
    }
    if profile.network_interface:
        variables |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), profile.network_interface)
    # Behind the snapshot stays what modules put there.
    path = f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"
    return [path, *(f"export {name}={shlex.quote(value)}" for name, value in variables.items())]


def _flags(profile: Profile) -> dict[str, Any]:
    """GPUs as the site wants them asked for, and `extra_sbatch`, as submitit wants it."""
    gpus = f"{profile.gpu_type}:{profile.gpus_per_node}" if profile.gpu_type else str(profile.gpus_per_node)
    asked: dict[str, Any] = {}
    if profile.gpus_per_node and profile.gpu_request != "none":
        asked = {"gres": f"gpu:{gpus}"} if profile.gpu_request == "gres" else {"gpus-per-node": gpus}
    pairs = (flag[2:].partition("=") for flag in profile.extra_sbatch)
    return asked | {name: value if equals else True for name, equals, value in pairs}


def explain_refusal(message: str, cluster: str) -> str:
    """What sbatch said, in one line, and where to look."""
    said = " ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in message.splitlines() if line)
    if re.search("contact slurm controller|configuration source", said.lower()):
        return f"sbatch refused: {said}; Slurm is not up, or SLURM_CONF does not say where it is"
    return f"sbatch refused: {said}; change the profile {cluster}"
