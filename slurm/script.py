"""From a profile to sbatch's text: submitit's parameters for the array of a campaign and for its preflight job."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string  # the public way to the text needs srun on the path

from slurm.profile import Profile

PREFLIGHT_MINUTES = 20
"""Most of it is for a first look through ImageNet's folders on a slow file system."""


@dataclass(frozen=True)
class SubmissionPaths:
    """Where a submission's files are: absolute paths that every node sees."""

    jobs: Path
    """Folder of submitit's pickles and of the logs."""
    code: Path
    """The snapshot."""
    campaign: Path
    """The experiment's campaign.json."""
    submission: int
    """Number of the submission in it."""


def array_parameters(profile: Profile, name: str, place: SubmissionPaths, after: str | None = None) -> dict[str, Any]:
    """submitit's parameters for an array of runs; `after`: the job that must have ended well before."""
    # Not in a container, which mostly lacks scontrol: by the Python that submits.
    requeue = [sys.executable, "-m", "slurm.requeue", str(place.campaign), str(place.submission)]
    extra: dict[str, Any] = {"requeue": True}
    if after is not None:
        extra |= {"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"}
    return _parameters(profile, place.code) | {
        "job_name": name,
        "time": profile.time_limit_minutes,
        "signal_delay_s": profile.warning_seconds,
        "array_parallelism": profile.array_parallelism,
        # What srun returned decides what comes next; see slurm/requeue.py.
        "teardown": [f"{shlex.join(requeue)} --max-retries {profile.max_retries} $?"],
        "additional_parameters": extra | _flags(profile),
    }


def preflight_minutes(profile: Profile) -> int:
    """The time limit of the job that looks."""
    return min(PREFLIGHT_MINUTES, profile.time_limit_minutes)


def preflight_parameters(profile: Profile, name: str, place: SubmissionPaths) -> dict[str, Any]:
    """submitit's parameters for the job that looks at nodes, network and data in a run's own shape."""
    return _parameters(profile, place.code) | {
        "job_name": f"{name}-preflight",
        "time": preflight_minutes(profile),
        "additional_parameters": _flags(profile),
    }


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
            # The notices are for the workers: this shell must get to its last line, whatever becomes of them.
            "set +e; trap : TERM USR2",
        ],
        # Newer versions of srun do not take the CPUs over from sbatch.
        "srun_args": [f"--cpus-per-task={profile.cpus_per_worker}", "--kill-on-bad-exit=1", "--open-mode=append"],
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
    if profile.gpus_per_node:
        asked = {"gres": f"gpu:{gpus}"} if profile.gpu_request == "gres" else {"gpus-per-node": gpus}
    pairs = (flag[2:].partition("=") for flag in profile.extra_sbatch)
    return asked | {name: value if equals else True for name, equals, value in pairs}


def python_of(profile: Profile) -> str:
    """The words that start Python in a job, as its shell reads them: srun's own words come right before."""
    python = shlex.quote(profile.python or sys.executable)
    return f"{profile.launch_prefix} {python}" if profile.launch_prefix else python


def array_text(profile: Profile, name: str, place: SubmissionPaths, num_runs: int) -> str:
    """The text that sbatch gets for an array of `num_runs` runs."""
    return _text(profile, place, array_parameters(profile, name, place), num_runs)


def preflight_text(profile: Profile, name: str, place: SubmissionPaths) -> str:
    """The text that sbatch gets for the job that looks before the runs."""
    return _text(profile, place, preflight_parameters(profile, name, place), 1)


def _text(profile: Profile, place: SubmissionPaths, parameters: dict[str, Any], num_tasks: int) -> str:
    command = f"{python_of(profile)} -u -m submitit.core._submit {shlex.quote(str(place.jobs))}"
    map_count = num_tasks if num_tasks > 1 else None
    return _make_sbatch_string(command=command, folder=place.jobs, map_count=map_count, **parameters)
