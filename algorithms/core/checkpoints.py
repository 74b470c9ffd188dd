"""Checkpoints of all workers: a folder of torch.distributed.checkpoint, in which nothing
half-written is ever read."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from cser_bench.algorithms.core.collectives import Collectives, SoloCollectives, StackedCollectives
from cser_bench.algorithms.core.optimizer import DistributedOptimizer
from cser_bench.algorithms.core.process_group import ProcessGroupCollectives, translated_errors
from cser_bench.algorithms.core.state import common_state

if TYPE_CHECKING:
    from torch.distributed.checkpoint.stateful import Stateful

METADATA = ".metadata"
"""The file of a checkpoint that is written last, when all workers have written theirs."""


def consensus_checkpoint(
    folder: str | Path, model: nn.Module, optimizer: DistributedOptimizer, **others: object
) -> None:
    """Saves the workers' average model, and what each of them needs to go on. All workers must call
    it.

    That includes the random generators of the process: Python's, NumPy's, torch's and the current
    GPU's.

    The average needs nothing of this package to be read, nor several processes:

        state = {"model": model.state_dict()}
        torch.distributed.checkpoint.load(state, checkpoint_id=folder)
        model.load_state_dict(state["model"])

    Args:
        folder: the same for all workers, on a file system that all see; its name has numbers that
            grow.
        model: has the optimiser's parameters. Frozen ones must be alike on all workers.
        others: what else to save of this worker: objects that have `state_dict` and
            `load_state_dict`, or plain values.

    Raises:
        CollectiveError: another worker failed or did not come.
        OSError: a worker could not write.
    """
    # Here, as it takes 0.7 seconds, for which those who save nothing need not wait.
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.checkpoint.stateful import Stateful

    folder, collectives = Path(folder), optimizer.collectives
    with optimizer.consensus(model):
        average = {key: _copy(value) for key, value in model.state_dict().items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not optimizer.workers_differ:  # a mean of equal numbers may be rounded
        average |= {
            key: parameter.detach() for key, parameter in parameters.items() if key in average
        }
    own = {
        "model": {key: value for key, value in model.state_dict().items() if key not in parameters},
        "optimizer": optimizer.state_dict(),
        "generators": _generators(),
        "others": {
            key: each.state_dict() if isinstance(each, Stateful) else each
            for key, each in others.items()
        },
    }
    if collectives.rank == 0 and (folder / METADATA).exists():
        (folder / METADATA).unlink()
    state = {
        "model": _of_one_worker(average, collectives),
        "world_size": collectives.world_size,
        f"worker {collectives.rank}": _parts(own),
    }
    with _checkpointing(folder, collectives) as talking:
        save(state, checkpoint_id=folder, **talking)


def load_checkpoint(
    folder: str | Path,
    model: nn.Module,
    optimizer: DistributedOptimizer | None = None,
    **others: Stateful,
) -> dict[str, Any]:
    """Goes on from a `consensus_checkpoint`, and returns the other values that it holds. All
    workers must call it.

    As many workers as saved it go on to the bit, each from its own state and random generators. Any
    other number begins at the average model, with the average of all momenta, errors and the like,
    and with worker 0's other values.

    Load what you trust alone: values that are no tensors are pickled.

    Args:
        optimizer: None gives the model the average, for use; then any one process may call it.
        others: objects that were saved under the same names, whose states are loaded.

    Raises:
        CollectiveError: another worker failed or did not come.
        OSError: a worker could not read.
        ValueError: it is another method's or model's, of other settings, or lacks a name.
    """
    folder, collectives = (
        Path(folder),
        SoloCollectives() if optimizer is None else optimizer.collectives,
    )
    if not (folder / METADATA).exists():
        raise FileNotFoundError(
            f"{folder} is no checkpoint, or not whole; newest_checkpoint() finds those that are"
        )
    average = _of_one_worker(model.state_dict(), collectives)
    state: dict[str, Any] = {
        "model": {key: _copy(value) for key, value in average.items()},
        "world_size": 0,
    }
    _read_(state, folder, collectives)
    average = {
        key: state["model"][key].expand_as(held)
        if isinstance(held, Tensor)
        else state["model"][key]
        for key, held in model.state_dict().items()
    }
    goes_on = optimizer is not None and state["world_size"] == collectives.world_size
    own = _read_worker(folder, collectives.rank if goes_on else 0, collectives)
    model.load_state_dict(average | own["model"] if goes_on else average)
    if optimizer is not None and not goes_on:
        workers = (
            _read_worker(folder, rank, collectives)["optimizer"]
            for rank in range(state["world_size"])
        )
        own["optimizer"] = common_state(workers)
    if optimizer is not None:
        optimizer.load_state_dict(own["optimizer"])
    for key, each in others.items():
        if key not in own["others"]:
            raise ValueError(f"{folder} holds no {key!r}, but {sorted(own['others'])}")
        each.load_state_dict(own["others"].pop(key))
    if goes_on:
        _set_generators(*own["generators"])
    return dict(own["others"])


def newest_checkpoint(parent: str | Path) -> Path | None:
    """Returns the folder in `parent` to go on from: of those that all workers saved, the one of the
    highest numbers."""
    whole = [path.parent for path in Path(parent).glob(f"*/{METADATA}")]
    return max(
        whole,
        key=lambda folder: [int(number) for number in re.findall(r"\d+", folder.name)],
        default=None,
    )


def _generators() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _set_generators(python: Any, numpy: Any, cpu: Tensor, cuda: Tensor | None) -> None:
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)


def _read_worker(folder: Path, rank: int, collectives: Collectives) -> dict[str, Any]:
    """Returns what a worker saved as its own, on the CPU."""
    name = f"worker {rank}"
    state: dict[str, Any] = {name: {"rest": None}}
    _read_(state, folder, collectives)
    own: dict[str, Any] = tree_map_only(
        Tensor, partial(torch.empty_like, device="cpu"), state[name]["rest"][0]
    )
    _read_({name: {"tensors": _tensors(own)}}, folder, collectives)
    return own


def _parts(own: dict[str, Any]) -> dict[str, Any]:
    """Returns a worker's own in two parts: its tensors, and all else with tensors of no memory in
    their places.

    The latter in a tuple, which is saved as it is: of dictionaries an empty one would be lost, and
    so would be numbers as keys.
    """
    return {
        "tensors": _tensors(own),
        "rest": (tree_map_only(Tensor, partial(torch.empty_like, device="meta"), own),),
    }


def _tensors(tree: object) -> list[Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]


def _of_one_worker(state: Mapping[str, Any], collectives: Collectives) -> dict[str, Any]:
    """Returns a model's state without the axis over workers that it has where these are stacked."""
    return {
        key: value[0] if isinstance(collectives, StackedCollectives) else value
        for key, value in state.items()
    }


def _copy(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def _read_(state: dict[str, Any], folder: Path, collectives: Collectives) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load

    with _checkpointing(folder, collectives) as talking:
        load(state, checkpoint_id=folder, **talking)


@contextmanager
def _checkpointing(folder: Path, collectives: Collectives) -> Iterator[dict[str, Any]]:
    """Yields which processes talk to each other, and raises a plain error, of one sentence, for
    that of any rank."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings(), translated_errors():
            warnings.filterwarnings(
                "ignore", "torch.distributed is"
            )  # a lone process is meant to be alone
            group = (
                {"process_group": collectives.group}
                if isinstance(collectives, ProcessGroupCollectives)
                else None
            )
            yield group or {"no_dist": True}
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        kind = OSError if isinstance(cause, OSError) else ValueError
        raise kind(f"rank {rank} cannot write or read the checkpoint {folder}: {cause}") from error
