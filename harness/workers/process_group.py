"""Which device each process of a run has, and how it joins the workers' group.

It has a GPU of its own where there are GPUs.
"""

from __future__ import annotations

import datetime
import os
import platform
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist

from cser_bench.algorithms import CollectiveError
from cser_bench.algorithms.core.process_group import translated_errors
from cser_bench.harness.cores import usable_cores
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.tasks.cores import note_others
from cser_bench.harness.workers.meeting import meet, require_same

T = TypeVar("T")
Workers = Literal["stacked", "processes"]


def device_groups(
    device: str, num_processes: int, num_gpus: int
) -> list[tuple[str, ...]]:
    """Return the devices of each run that the machine has GPUs for at the same time.

    A run's devices are those of its processes, by local rank.

    A run whose workers are stacked is one process; "cpu" is one group, which any number of runs may
    share.
    """
    if device == "cpu":
        return [(device,) * num_processes]
    if not num_gpus:
        raise SpecError(
            f"--device {device}: torch sees no GPUs on this machine; `nvidia-smi` says which the "
            "driver sees, and --device cpu needs none"
        )
    if num_processes > num_gpus:
        raise SpecError(
            f"{num_processes} processes on this machine need a GPU each, torch sees {num_gpus}; "
            "spread them over machines with Slurm, or share a GPU with --workers stacked and "
            "without the rows of DDP, if there are any"
        )
    # GPUs that are too few for another whole run stay idle.
    starts = range(0, num_gpus - num_processes + 1, num_processes)
    return [
        tuple(f"cuda:{start + rank}" for rank in range(num_processes))
        for start in starts
    ]


class Launched(NamedTuple):
    """Where this process stands among those that torchrun has started.

    What sets the same variables will do in its place.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def launched() -> Launched:
    """Return what the environment says of this process's place.

    Raises SpecError: it says what no launcher says.
    """
    said = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": "0"} | dict(
        os.environ
    )
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        if not said.get(name, "").isdecimal():
            raise SpecError(
                f"{name} is {said.get(name)!r} in the environment, which is no number; let "
                "torchrun set it"
            )
    here = Launched(*(int(said[field.upper()]) for field in Launched._fields))
    # A rank beyond the size would wait for ever for others that never come.
    for name, rank, size in (
        ("", here.rank, here.world_size),
        ("LOCAL_", here.local_rank, here.local_world_size),
    ):
        if rank >= size:
            raise SpecError(
                f"{name}RANK is {rank}, but {name}WORLD_SIZE is {size}, and ranks count from 0; set "
                "both"
            )
    return here


def own_gpu(local_rank: int, num_gpus: int) -> str:
    """Return the GPU of a process that something else has started, as torchrun or Slurm.

    They show a process all of its host's GPUs, or its own alone. That two have the same one is told
    by `joined`.
    """
    return f"cuda:{local_rank % max(1, num_gpus)}"


def identity(device: str) -> str:
    """Return a name, unique over all hosts, of what this process must not share: its GPU, or itself."""
    # No process id and host name: containers can share both.
    if device == "cpu":
        return uuid.uuid4().hex
    return f"GPU {torch.cuda.get_device_properties(device).uuid} of {platform.node()}"


def require_own_devices(identities: Sequence[str]) -> None:
    """Raise SpecError where two ranks have the same device.

    `identities` are in the order of ranks.
    """
    for rank, own in enumerate(identities):
        # The lowest rank that has it: another one, if two share it.
        first = identities.index(own)
        if first < rank:
            raise SpecError(
                f"ranks {first} and {rank} both have {own}, and each needs a GPU of its own; start "
                "at most as many processes on a host as it has GPUs, or share a GPU with "
                "--workers stacked"
            )


@contextmanager
def joined(
    device: str,
    timeout_seconds: float,
    init_method: str,
    rank: int = -1,
    world_size: int = -1,
    key: str = "",
    given: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Make this process one of the group's workers, for a while.

    `init_method` is PyTorch's, "env://" knows rank and size.

    The group is destroyed after success alone. NCCL's end waits for collectives that are under way,
    and the peers of a worker that failed wait in one for that worker: it would hang before it could
    say why. Its process must end instead. `key` is this group's, where another's workers may meet
    at the same place by chance; they then wait in vain. `given` is what all ranks must have been
    given alike, in tables of plain data.

    Raises SpecError: two ranks have the same GPU, or were not given the same; CollectiveError:
    another worker did not come in time, or went.
    """
    try:
        meeting = meet(init_method, rank, world_size, key, timeout_seconds)
        introductions = meeting.told("introduction", _introduction(device))
        differences = meeting.differences(given or {})
    except CollectiveError as error:
        raise CollectiveError(
            f"the workers do not meet at {init_method}: {error}"
        ) from None
    try:
        require_same(differences)
        # Before the group is made: NCCL on a shared GPU stops with a message that names neither
        # rank nor remedy.
        require_own_devices([each["device"] for each in introductions])
    except SpecError:
        meeting.leave()
        raise
    _note_cores(introductions, meeting.rank)
    timeout = datetime.timedelta(seconds=timeout_seconds)
    with translated_errors():
        # The time limit of the meeting is not the store's.
        meeting.store.set_timeout(timeout)
        dist.init_process_group(
            backend_for(device),
            store=meeting.store,
            rank=meeting.rank,
            world_size=meeting.world_size,
            timeout=timeout,
        )
    yield
    # Not in a `finally`: after an exception it would wait for peers.
    dist.destroy_process_group()


def _introduction(device: str) -> dict[str, Any]:
    """Return what a rank tells the others of itself."""
    return {
        "device": identity(device),
        "host": platform.node(),
        "cores": usable_cores(),
    }


def _note_cores(introductions: Sequence[Mapping[str, Any]], own_rank: int) -> None:
    """Note which cores the other workers of this host may run on.

    Whoever starts workers binds them to cores, or does not.
    """
    host = introductions[own_rank]["host"]
    note_others(
        set(each["cores"])
        for rank, each in enumerate(introductions)
        if rank != own_rank and each["host"] == host
    )


def from_rank_0(value: T) -> T:
    """Return rank 0's value, on every rank of the group.

    Raises CollectiveError: another worker did not come, or went.
    """
    box: list[T] = [value]
    with translated_errors():
        dist.broadcast_object_list(box)
    return box[0]


def done_by_rank_0(act: Callable[[], T]) -> T:
    """Have rank 0 alone do it, and return on every rank of the group what it returned.

    Raises on every rank what it raised, where that is a sentence for the user (see
    `cli.exits.end_of`) or an OSError; CollectiveError as `from_rank_0`.
    """
    outcome: T | Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome = act()
        except Exception as error:
            # Anything else is a bug: its traceback is worth more than the others' orderly end.
            if not (hasattr(error, "exit_code") or isinstance(error, OSError)):
                raise
            outcome = error
    # Also where rank 0 failed: the others wait in this broadcast.
    answer = from_rank_0(outcome)
    if isinstance(answer, Exception):
        raise answer
    return cast(T, answer)


def backend_for(device: str) -> str:
    """Return NCCL on CUDA, gloo otherwise."""
    return "nccl" if device.startswith("cuda") else "gloo"
