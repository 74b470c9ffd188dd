"""Cluster profiles: how runs are put on a cluster, and what sbatch gets of that."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

# The public way to the text needs srun on the path.
from submitit.slurm.slurm import _make_sbatch_string

from cser_bench.harness.spec.errors import SpecError, explain
from cser_bench.harness.spec.spec_file import is_file, read_toml
from cser_bench.harness.spec.values import Count, NonNegative, Positive, Strict

CLUSTERS = Path(__file__).parent / "clusters"

LOOK_SECONDS = 30
"""How often Slurm compares jobs with their time limits. It warns a job up to so much earlier than it
was asked to."""

WORK_SECONDS = 20
"""What must remain for work between a job's start and the warning."""

OWN_FLAGS = {
    "array",
    "cpus-per-task",
    "error",
    "job-name",
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "open-mode",
    "output",
    "requeue",
    "signal",
    "time",
}
"""Flags of sbatch that campaigns set themselves."""

PREFLIGHT_MINUTES = 20
"""Most of it is for a first look through ImageNet's folders on a slow file system."""


class Profile(Strict):
    """A cluster, and the shape of a run on it: nodes x workers.

    `slurm/template.toml` explains every field.
    """

    device: Literal["cuda", "cpu"] = "cuda"
    nodes: Count
    workers_per_node: Count
    cpus_per_worker: Count
    time_limit_minutes: Count
    warning_seconds: Count
    array_parallelism: Count
    max_retries: Annotated[int, Field(ge=0)] = 3
    checkpoint_minutes: NonNegative = 10.0
    timeout_seconds: Positive = 600.0
    link_gigabits_per_second: Positive | None = None
    network_interface: str | None = None
    master_address: str | None = None
    launch_prefix: str = ""
    python: str | None = None
    setup: list[str] = []
    sbatch: dict[
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")], bool | int | str
    ] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        needed = -(-(self.warning_seconds + LOOK_SECONDS + WORK_SECONDS) // 60)
        if self.time_limit_minutes < needed:
            raise ValueError(
                f"time_limit_minutes = {self.time_limit_minutes} leaves no time to work, as Slurm "
                f"warns up to {LOOK_SECONDS} s earlier than warning_seconds = "
                f"{self.warning_seconds} before the end; make it at least {needed}, or lower "
                "warning_seconds"
            )
        if own := OWN_FLAGS & self.sbatch.keys():
            raise ValueError(
                f"sbatch holds {min(own)!r}, which campaigns set themselves; remove it"
            )
        texts = {f"sbatch.{flag}": str(value) for flag, value in self.sbatch.items()}
        texts["launch_prefix"] = self.launch_prefix
        for where, text in texts.items():
            # What stands behind it would be a line of shell in the script.
            if "\n" in text or "\r" in text:
                raise ValueError(
                    f"{where} has a line break; write its value on one line"
                )
        return self

    @property
    def link_bits_per_second(self) -> float | None:
        """What a node's link carries, where workers talk over one and the profile knows it."""
        if self.nodes == 1 or self.link_gigabits_per_second is None:
            return None
        return 1e9 * self.link_gigabits_per_second

    @property
    def num_workers(self) -> int:
        """Workers of a run."""
        return self.nodes * self.workers_per_node


def load_profile(name: str) -> Profile:
    """Load the profile NAME, or one of its variants as NAME:VARIANT.

    Args:
        name: NAME may be the path of a TOML file.

    Raises:
        SpecError: no such profile or variant, or one that cannot be used.
    """
    stem, _, variant = name.partition(":")
    path = Path(stem)
    if path.suffix != ".toml":
        # A name without an ending is one that ships.
        path = CLUSTERS / f"{stem}.toml"
    if not is_file(path):
        names = ", ".join(sorted(path.stem for path in CLUSTERS.glob("*.toml")))
        raise SpecError(
            f"no cluster profile {stem!r}: give the path of a TOML file or one of {names}"
        )
    table = read_toml(path)
    variants = table.pop("variants", {})
    are_tables = isinstance(variants, dict) and all(
        isinstance(fields, dict) for fields in variants.values()
    )
    if not are_tables:
        raise SpecError(
            f"{path}: variants must be tables; write [variants.NAME] and fields below it"
        )
    if variant and variant not in variants:
        raise SpecError(
            f"{path} has no variant {variant!r}; it has {', '.join(variants) or 'none'}"
        )
    try:
        # All variants are checked, whichever is asked for.
        profiles = {
            key: Profile.model_validate(_over(table, fields))
            for key, fields in variants.items()
        }
        if variant:
            return profiles[variant]
        return Profile.model_validate(table)
    except ValidationError as error:
        raise SpecError(f"{path}: {explain(error)}") from None


def _over(table: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    """Put a variant's fields over the profile's, and its flags for sbatch over the profile's."""
    merged = table | variant
    flags = [fields["sbatch"] for fields in (table, variant) if "sbatch" in fields]
    # What is no table is left to the profile, which refuses it.
    if len(flags) == 2 and all(isinstance(table, dict) for table in flags):
        merged["sbatch"] = flags[0] | flags[1]
    return merged


@dataclass(frozen=True)
class SubmissionPaths:
    """The places of a submission's files, as every node sees them.

    Attributes:
        jobs: the folder with submitit's pickles and logs.
        code: the folder with the snapshot of the sources.
        campaign: the experiment's campaign.json.
        submission: the submission's number in that.
    """

    jobs: Path
    code: Path
    campaign: Path
    submission: int


def preflight_minutes(profile: Profile) -> int:
    """Give the time limit of the preflight job."""
    return min(PREFLIGHT_MINUTES, profile.time_limit_minutes)


def sbatch_text(
    profile: Profile,
    place: SubmissionPaths,
    parameters: dict[str, Any],
    num_tasks: int = 1,
) -> str:
    """Make the text that sbatch gets for these parameters."""
    command = f"{python_of(profile)} -u -m submitit.core._submit {shlex.quote(str(place.jobs))}"
    return _make_sbatch_string(
        command=command,
        folder=place.jobs,
        # As submitit does it: a single task is no array.
        map_count=num_tasks if num_tasks > 1 else None,
        **parameters,
    )


def python_of(profile: Profile) -> str:
    """Quote the words that start Python in a job, which stand right behind srun's own."""
    python = shlex.quote(profile.python or sys.executable)
    return f"{profile.launch_prefix} {python}".lstrip()


def preflight_parameters(
    profile: Profile, name: str, place: SubmissionPaths
) -> dict[str, Any]:
    """Give submitit's parameters for the preflight job, which has a run's own shape."""
    return {
        "job_name": f"{name}-preflight",
        "time": preflight_minutes(profile),
        "nodes": profile.nodes,
        "ntasks_per_node": profile.workers_per_node,
        "cpus_per_task": profile.cpus_per_worker,
        # Submitit's default is a key of its own, which a cluster that checks keys refuses.
        "wckey": None,
        "stderr_to_stdout": True,
        "setup": [
            *profile.setup,
            *_exports(profile, place.code),
            # The signals are for the workers: this shell must get to its last line, whatever
            # becomes of them.
            "set +e; trap : TERM USR2",
        ],
        # Newer versions of srun do not take the CPUs over from sbatch. Where SBATCH_EXPORT=NONE,
        # srun would else hand nothing of this shell's environment on.
        "srun_args": [
            f"--cpus-per-task={profile.cpus_per_worker}",
            "--export=ALL",
            "--kill-on-bad-exit=1",
            # A job that is requeued goes on in the same logs, and must not empty them.
            "--open-mode=append",
        ],
        "additional_parameters": profile.sbatch,
    }


def array_parameters(
    profile: Profile, name: str, place: SubmissionPaths, *after: str
) -> dict[str, Any]:
    """Give submitit's parameters for an array of runs.

    Args:
        after: dependencies, such as afterok:12.
    """
    # Not in a container, which mostly lacks scontrol: by the Python that submits.
    requeue = [
        sys.executable,
        "-m",
        "cser_bench.slurm.requeue",
        str(place.campaign),
        str(place.submission),
    ]
    flags: dict[str, Any] = {"requeue": True}
    if after:
        # Slurm would else keep an array for ever whose preflight has failed.
        flags |= {"dependency": ",".join(after), "kill-on-invalid-dep": "yes"}
    return preflight_parameters(profile, name, place) | {
        "job_name": name,
        "time": profile.time_limit_minutes,
        "signal_delay_s": profile.warning_seconds,
        "array_parallelism": profile.array_parallelism,
        # What srun returned decides what comes next; see slurm/requeue.py.
        "teardown": [f"{shlex.join(requeue)} {profile.max_retries} $?"],
        "additional_parameters": flags | profile.sbatch,
    }


def _exports(profile: Profile, code: Path) -> list[str]:
    """Give the lines that set a job's environment, over the submitter's and what `setup` made."""
    variables = {
        # Or the folder in which the command was typed would go before the snapshot.
        "PYTHONSAFEPATH": "1",
        # It is read as a process begins, so that a worker cannot set it for itself.
        "OMP_NUM_THREADS": "1",
    }
    if profile.network_interface:
        variables["GLOO_SOCKET_IFNAME"] = profile.network_interface
        variables["NCCL_SOCKET_IFNAME"] = profile.network_interface
    # Behind the snapshot stays what modules put there.
    path = f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"
    return [
        path,
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
    ]
