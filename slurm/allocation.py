"""What Slurm says of a job and a worker's place in it, and when to stop. It needs no torch."""

import hashlib
import os
import signal
from dataclasses import dataclass

import submitit
from submitit.helpers import TorchDistributedEnvironment

from harness.workers.processes import StopFlag

PORTS = range(20_000, 32_000)
"""Below the ephemeral ports of Linux, from which others' connections take theirs (32768 and up by default)."""


@dataclass(frozen=True)
class Allocation:
    """One start of one job, as one of its processes sees it.

    `job` is as the campaign's record has it, 7_2 of an array: Slurm's own number of an array's last task names them
    all. `restart` counts requeues before, `task` is the index in the array, 0 where there is none.
    """

    job: str
    restart: int
    task: int
    rank: int
    local_rank: int
    world_size: int
    first_node: str

    @property
    def key(self) -> str:
        """Names this start of this job, among all of this cluster's."""
        return f"{os.environ.get('SLURM_CLUSTER_NAME', '')}/{self.job}/{self.restart}"

    @property
    def attempt(self) -> str:
        """The attempt's name, by which all of its processes call it."""
        began = os.environ.get("SLURM_JOB_START_TIME", "")  # where Slurm's numbers begin anew
        return hashlib.sha256(f"{self.key} {began}".encode()).hexdigest()[:8]

    @property
    def port(self) -> int:
        """The port at which the workers of this start meet; another start, or another job, has another."""
        return PORTS[int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:8], "big") % len(PORTS)]


def this_allocation() -> Allocation:
    """The place of this process, as submitit reads it; the batch script's own counts as rank 0."""
    job, place = submitit.JobEnvironment(), TorchDistributedEnvironment()
    return Allocation(
        job=job.job_id,
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        task=int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")),
        rank=place.rank,
        local_rank=place.local_rank,
        world_size=place.world_size,
        first_node=place.master_addr,
    )


class StopNotice(StopFlag):
    """Slurm's word to a worker that it must stop, as a flag that the training loop asks for between steps.

    Listens for USR2, which comes before the time limit or by hand, and TERM, which comes before a job is ended. Until
    the first question nothing is worth saving, and TERM ends the process at once, so that what `slurm.requeue` has to
    say of it comes before Slurm's KILL. submitit's own handler for USR2 takes every warning within ten minutes of the
    limit for a time-out, and requeues before workers agree on a step; so this one replaces it.
    """

    def __init__(self) -> None:
        super().__init__()
        signal.signal(signal.SIGUSR2, self.note)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def stop_requested(self) -> bool:
        """Whether the worker must stop at the next occasion."""
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self.note)
        return super().stop_requested()
