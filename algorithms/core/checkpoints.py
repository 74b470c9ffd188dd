"""Checkpoints of all workers: a folder with a file for each of them, in which nothing half-written is ever read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from algorithms.core.process_group import translated_errors


def save_checkpoint(state: object, folder: str | Path) -> None:
    """Writes this worker's `state` to a file of its own in `folder`, and returns when all workers have.

    Args:
        state: anything that `torch.load(weights_only=True)` takes, such as a dictionary of state dictionaries.
        folder: the same for all workers, on a file system that all see; its name has numbers that grow.

    Raises:
        CollectiveError: another worker failed or did not come.
    """
    path = _own_file(Path(folder))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)
    if dist.is_initialized():
        with translated_errors():
            dist.barrier()


def load_checkpoint(folder: str | Path) -> Any:
    """Returns what this worker saved in `folder`, on the CPU; `load_state_dict` copies it to where it is needed."""
    return torch.load(_own_file(Path(folder)), map_location="cpu", weights_only=True)


def newest_checkpoint(parent: str | Path) -> Path | None:
    """Returns the folder in `parent` to go on from: of those that all workers saved, the one of the highest numbers.

    It may be called before there is a process group, if the launcher says how many workers there are, as torchrun does.
    """
    names = [_file_name(rank) for rank in range(_world_size())]
    whole = [folder for folder in Path(parent).glob("*") if all((folder / name).exists() for name in names)]
    return max(whole, key=lambda folder: [int(number) for number in re.findall(r"\d+", folder.name)], default=None)


def _own_file(folder: Path) -> Path:
    return folder / _file_name(dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0")))


def _file_name(rank: int) -> str:
    return f"worker-{rank}-of-{_world_size()}.pt"


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
