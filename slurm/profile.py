"""Cluster profiles: TOML, validated strictly. How runs are put on a cluster, and nothing of what they compute."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.rows import Count, NonNegative, Positive
from harness.spec import SpecError, explain

CLUSTERS = Path(__file__).parent / "clusters"

LOOK_SECONDS = 30
"""Slurm compares jobs with their time limits so often, and warns a job so much earlier than it was asked to."""

WORK_SECONDS = 20
"""What must remain for work between a job's start and the warning."""

OWN_FLAGS = ("array", "output", "error", "signal", "requeue", "open-mode", "ntasks", "job-name")
"""sbatch's flags that campaigns depend on."""


class Profile(BaseModel):
    """A cluster, and the shape of a run on it: nodes x workers. `slurm/template.toml` explains every field."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    device: Literal["cuda", "cpu"] = "cuda"
    nodes: Count
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    gpu_type: str | None = None
    gpu_request: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    workers_per_node: Count | None = None
    cpus_per_worker: Count
    memory_gb: Positive | None = None
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
    extra_sbatch: list[Annotated[str, Field(pattern=r"^--[a-z][a-z0-9-]*(=\S.*)?$")]] = []

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        if self.device == "cuda" and self.gpus_per_node == 0:
            raise ValueError('gpus_per_node is 0; give the GPUs per node, or device = "cpu"')
        if self.device == "cuda" and self.workers_per_node not in (None, self.gpus_per_node):
            raise ValueError(
                f"workers_per_node is {self.workers_per_node} and gpus_per_node {self.gpus_per_node}; on GPUs there is "
                "one worker on each, so leave workers_per_node out"
            )
        if self.device == "cpu" and self.workers_per_node is None:
            raise ValueError('workers_per_node is missing; with device = "cpu" it is the number of processes per node')
        warning = self.warning_seconds
        needed = -(-(warning + LOOK_SECONDS + WORK_SECONDS) // 60)
        if self.time_limit_minutes < needed:
            raise ValueError(
                f"time_limit_minutes = {self.time_limit_minutes} leaves no time to work, as Slurm warns up to "
                f"{LOOK_SECONDS} s earlier than warning_seconds = {warning} before the end; make it at least {needed}, "
                "or lower warning_seconds"
            )
        for flag in self.extra_sbatch:
            if flag[2:].split("=")[0] in OWN_FLAGS:
                raise ValueError(f"extra_sbatch holds {flag!r}, which campaigns set themselves; remove it")
        return self

    @property
    def tasks_per_node(self) -> int:
        """Workers on a node, each a process."""
        return self.workers_per_node or self.gpus_per_node

    @property
    def link_bits_per_second(self) -> float | None:
        """What a node's link carries, where workers talk over one and the profile knows it."""
        known = self.link_gigabits_per_second if self.nodes > 1 else None
        return None if known is None else 1e9 * known

    @property
    def num_workers(self) -> int:
        """Workers of a run."""
        return self.nodes * self.tasks_per_node


def load_profile(name: str) -> Profile:
    """The profile NAME, or one of its variants as NAME:VARIANT; NAME may be the path of a TOML file.

    Raises:
        SpecError: no such profile or variant, or one that cannot be used, in one sentence.
    """
    stem, _, variant = name.partition(":")
    path = Path(stem) if stem.endswith(".toml") else CLUSTERS / f"{stem}.toml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in CLUSTERS.glob("*.toml")))
        raise SpecError(f"no cluster profile {stem!r}: give the path of a TOML file or one of {known}")
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from None
    variants = table.pop("variants", {})
    if not isinstance(variants, dict) or not all(isinstance(each, dict) for each in variants.values()):
        raise SpecError(f"{path}: variants must be tables; write [variants.NAME] and fields below it")
    if variant and variant not in variants:
        raise SpecError(f"{path} has no variant {variant!r}; it has {', '.join(variants) or 'none'}")
    try:
        for each in variants.values():
            Profile.model_validate(table | each)
        return Profile.model_validate(table | variants.get(variant, {}))
    except ValidationError as error:
        raise SpecError(f"{path}: {explain(error)}") from None
