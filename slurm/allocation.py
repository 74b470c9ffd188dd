"""What Slurm tells a job of itself: its ids, its nodes, and this process's place among the workers."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Allocation:
    """One start of one job, as one of its processes sees it."""

    job: str
    """As the campaign's record has it: 12_0 for a task of an array, else 12."""
    number: str
    """The id that `scontrol requeue` wants: each task of an array has one of its own."""
    restart: int
    """How often the job was requeued before."""
    task: int
    """Index in the array, 0 where there is none."""
    rank: int
    local_rank: int
    world_size: int
    first_node: str

    @property
    def key(self) -> str:
        """Names this start of this job, among all of this cluster's."""
        return f"{os.environ.get('SLURM_CLUSTER_NAME', '')}/{self.number}/{self.restart}"


def this_allocation() -> Allocation:
    """The place of this process; the batch script's own counts as rank 0."""
    read = os.environ.get
    array, task, number = read("SLURM_ARRAY_JOB_ID"), read("SLURM_ARRAY_TASK_ID"), os.environ["SLURM_JOB_ID"]
    return Allocation(
        job=f"{array}_{task}" if array else number,
        number=number,
        restart=int(read("SLURM_RESTART_COUNT", "0")),
        task=int(task or 0),
        rank=int(read("SLURM_PROCID", "0")),
        local_rank=int(read("SLURM_LOCALID", "0")),
        world_size=int(read("SLURM_NTASKS", "1")),
        first_node=_first(read("SLURM_JOB_NODELIST", "")),
    )


def _first(nodes: str) -> str:
    """The first of the nodes in Slurm's short form: gpu[07-09,12],cpu3 gives gpu07."""
    prefix, bracket, rest = nodes.partition("[")
    if not bracket or "," in prefix:
        return prefix.split(",")[0]
    inner, _, after = rest.partition("]")
    suffix = after.split(",")[0].partition("[")[0]
    return prefix + inner.replace("-", ",").split(",")[0] + suffix
