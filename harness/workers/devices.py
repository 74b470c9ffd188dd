"""Which device each process of a run has: a GPU of its own, by local rank, where there are GPUs."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from harness.spec import SpecError

Workers = Literal["stacked", "processes"]


def choose_workers(wanted: str, device: str, num_workers: int, num_gpus: int) -> Workers:
    """What "auto" means: stacked on the CPU; on GPUs processes if each can have one, else stacked."""
    if wanted == "auto":
        if device == "cpu":
            return "stacked"
        return "processes" if device == "cuda" and num_gpus >= num_workers else "stacked"
    assert wanted in get_args(Workers)
    return wanted  # type: ignore[return-value]


def device_groups(device: str, num_processes: int, num_gpus: int) -> list[tuple[str, ...]]:
    """The devices of each run that the machine has GPUs for at the same time: its processes', by local rank.

    A run whose workers are stacked is one process; "cpu" is one group, which any number of runs may share.

    Raises:
        SpecError: there are too few GPUs.
    """
    if device == "cpu":
        return [(device,) * num_processes]
    first = int(device.partition(":")[2] or 0)
    if first >= num_gpus:
        raise SpecError(
            f"--device {device}: torch sees {num_gpus} GPUs on this machine; `nvidia-smi` says which the driver sees, "
            "and --device cpu needs none"
        )
    if ":" in device and num_processes > 1:
        raise SpecError(
            f"--device {device} is one GPU for {num_processes} processes, which need one each; give --device cuda, or "
            "share it with --workers stacked"
        )
    if ":" in device:
        return [(device,)]
    if num_processes > num_gpus:
        raise SpecError(
            f"{num_processes} processes on this machine need a GPU each, torch sees {num_gpus}; start fewer of them "
            "here (torchrun on several machines), or share a GPU with --workers stacked"
        )
    starts = range(0, num_gpus - num_processes + 1, num_processes)
    return [tuple(f"cuda:{start + rank}" for rank in range(num_processes)) for start in starts]


def own_gpu(local_rank: int, num_gpus: int) -> str:
    """The GPU of a process that something else has started, as torchrun or Slurm.

    They show a process all of its host's GPUs, or its own alone. That two have the same one is told by `joined`.
    """
    return f"cuda:{local_rank % max(1, num_gpus)}"


def identity(device: str) -> str:
    """What this process must have to itself, told from all others on any host: its GPU, or else the process."""
    if device == "cpu":
        return uuid.uuid4().hex  # Not the process's number and the host's name: containers can share both.
    return f"GPU {torch.cuda.get_device_properties(device).uuid} of {platform.node()}"


def require_own_devices(identities: Sequence[str]) -> None:
    """Raises SpecError where two ranks, by which `identities` are in order, have the same device."""
    for rank, own in enumerate(identities):
        first = identities.index(own)
        if first < rank:
            raise SpecError(
                f"ranks {first} and {rank} both have {own}, and each needs a GPU of its own; start at most as many "
                "processes on a host as it has GPUs, or share a GPU with --workers stacked"
            )
