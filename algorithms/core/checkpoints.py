"""Checkpoints of all workers' optimisers, in which nothing half-written is ever read.

A folder holds the workers' average model, as torch.distributed.checkpoint keeps it, and for each
worker a file of its own (`core.worker_files`).
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cser_bench.algorithms.core.collectives import (
    Collectives,
    SoloCollectives,
    StackedCollectives,
)
from cser_bench.algorithms.core.optimizer import DistributedOptimizer
from cser_bench.algorithms.core.process_group import (
    ProcessGroupCollectives,
    translated_errors,
)
from cser_bench.algorithms.core.state import common_state
from cser_bench.algorithms.core.worker_files import (
    MANIFEST,
    NOT_WRITTEN,
    gathered_digests,
    read_file,
    read_manifest,
    write_manifest,
    write_own,
)

if TYPE_CHECKING:
    from torch.distributed.checkpoint.stateful import Stateful

DONE = bytes([255] * 32).hex()
"""Stands for a digest where an action that writes no worker's file has succeeded."""

COMPILED = "_orig_mod."
"""What `torch.compile` puts into the names of what is in a module that it compiles."""

METADATA = ".metadata"
"""The file of a checkpoint that is written last, when all workers have written theirs."""


def consensus_checkpoint(
    folder: str | Path,
    model: nn.Module,
    optimizer: DistributedOptimizer,
    **others: object,
) -> None:
    """Save the workers' average model, and what each worker needs to resume.

    All workers must call it. What is saved includes the random generators of the process:
    Python's, NumPy's, torch's and the current GPU's.

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
    # Imported here, as it takes 0.7 seconds, which scripts without checkpoints need not wait for.
    from torch.distributed.checkpoint.state_dict_saver import save

    folder = Path(folder)
    collectives = optimizer.collectives
    average = _average_of(model, optimizer)
    _write_workers(folder, _own_part(model, optimizer, others), collectives)
    state = {"model": _of_one_worker(average, collectives)}
    with _checkpointing(folder, collectives) as talking:
        save(state, checkpoint_id=folder, **talking)


def load_checkpoint(
    folder: str | Path,
    model: nn.Module,
    optimizer: DistributedOptimizer | None = None,
    **others: Stateful,
) -> dict[str, Any]:
    """Load a `consensus_checkpoint`, and return the other values that it holds.

    All workers must call it. As many workers as saved it resume to the bit, each from its own state
    and random generators. Any other number begins at the average model, with the average of all
    momenta, errors and the like, and with worker 0's other values. The model may be compiled where
    the saved one was not, and the other way round.

    Load only checkpoints that you trust: values other than tensors are pickled.

    Args:
        optimizer: None gives the model the average, for use; then any one process may call it.
        others: objects that were saved under the same names, whose states are loaded.

    Raises:
        CollectiveError: another worker failed or did not come.
        OSError: a worker could not read.
        ValueError: it is another method's or model's, of other settings, or lacks a name.
    """
    folder = Path(folder)
    collectives = SoloCollectives() if optimizer is None else optimizer.collectives
    manifest = _manifest_of(folder)
    # Each worker has its own state back; otherwise all begin at the average.
    goes_on = optimizer is not None and _is_of_as_many(folder, manifest, collectives)
    begins_anew = optimizer is not None and not goes_on
    average = _read_average(folder, model, collectives)
    worker = _read_together(folder, manifest, collectives, goes_on, begins_anew)
    if goes_on:
        _put_own_buffers(average, worker["model"])
    model.load_state_dict(average)
    if optimizer is not None:
        # After the model: where the state has this worker's own parameters, these take the place of
        # the average.
        optimizer.load_state_dict(worker["optimizer"])
    _load_others(folder, worker["others"], others)
    if goes_on:
        # Last, as loading an object may draw.
        _set_generators(*worker["generators"])
    return dict(worker["others"])


def newest_checkpoint(parent: str | Path) -> Path | None:
    """Return the newest complete checkpoint in `parent`, by the numbers in its name; None without one."""
    # Written last, so a folder that has it is whole.
    whole = [path.parent for path in Path(parent).glob(f"*/{METADATA}")]
    return max(whole, key=_numbers_of, default=None)


def _numbers_of(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", folder.name)]


def _average_of(model: nn.Module, optimizer: DistributedOptimizer) -> dict[str, Any]:
    """Return the state of the workers' average model, in memory of its own."""
    with optimizer.consensus(model):
        # Copies: on leaving the context the tensors hold this worker's own numbers again.
        average = {key: _copy(value) for key, value in model.state_dict().items()}
    if not optimizer.workers_differ:
        # All workers hold these; their mean may be rounded.
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for key in average.keys() & parameters.keys():
            average[key] = parameters[key].detach()
    return average


def _own_part(
    model: nn.Module, optimizer: DistributedOptimizer, others: Mapping[str, object]
) -> dict[str, Any]:
    """Return a worker's own part: buffers, optimiser, generators, and what the script gave."""
    from torch.distributed.checkpoint.stateful import Stateful

    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = {
        key: value for key, value in model.state_dict().items() if key not in parameters
    }
    kept: dict[str, object] = {}
    for key, value in others.items():
        kept[key] = value.state_dict() if isinstance(value, Stateful) else value
    return {
        "model": buffers,
        "optimizer": optimizer.state_dict(),
        "generators": _generators(),
        "others": kept,
    }


def _write_workers(
    folder: Path, worker: dict[str, Any], collectives: Collectives
) -> None:
    """Write each worker's file, then the manifest, into a folder first marked as incomplete."""
    processes = _processes(collectives)
    is_first = processes.rank == 0

    def begin() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        if is_first:
            # A folder that is written anew is no checkpoint until it is whole again.
            (folder / METADATA).unlink(missing_ok=True)
        return DONE

    def end() -> str:
        if is_first:
            write_manifest(folder, digests, world_size=collectives.world_size)
        return DONE

    # Three barriers: no worker writes before the folder is marked as incomplete, and none returns
    # before the manifest is there.
    _together("write", folder, processes, begin)
    digests = _together(
        "write", folder, processes, lambda: write_own(folder, processes.rank, worker)
    )
    _together("write", folder, processes, end)


def _processes(collectives: Collectives) -> Collectives:
    """Return the collectives between processes: stacked workers are one process."""
    return (
        SoloCollectives()
        if isinstance(collectives, StackedCollectives)
        else collectives
    )


def _together(
    doing: str, folder: Path, processes: Collectives, action: Callable[[], str]
) -> list[str]:
    """Run an action on all processes, and return each one's result; if one fails, all raise.

    A process that raised alone would leave the others waiting. It raises its own error, the others
    an OSError that names its rank.
    """
    failure: Exception | None = None
    digest = NOT_WRITTEN
    try:
        digest = action()
    except Exception as error:
        failure = error
    # Also after a failure: the others wait in this collective.
    digests = gathered_digests(digest, processes)
    if NOT_WRITTEN not in digests:
        return digests
    # A bug keeps its own type; an OSError gets the sentence below.
    if failure is not None and not isinstance(failure, OSError):
        raise failure
    rank = digests.index(NOT_WRITTEN)
    why = f": {failure}" if failure else ""
    raise OSError(
        f"rank {rank} cannot {doing} the checkpoint {folder}{why}"
    ) from failure


def _manifest_of(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint that is whole."""
    if not (folder / METADATA).exists():
        raise FileNotFoundError(
            f"{folder} is no checkpoint, or not whole; newest_checkpoint() finds those that are"
        )
    manifest = read_manifest(folder)
    if manifest is None or "world_size" not in manifest:
        raise ValueError(
            f"{folder} lacks a {MANIFEST} that can be read: it is damaged, or of another version"
        )
    return manifest


def _is_of_as_many(
    folder: Path, manifest: Mapping[str, Any], collectives: Collectives
) -> bool:
    """Return whether as many workers saved a checkpoint; ValueError if in other processes."""
    if manifest["world_size"] != collectives.world_size:
        return False
    num_files = len(manifest["sha256"])
    if num_files != _processes(collectives).world_size:
        raise ValueError(
            f"{folder} was saved by {manifest['world_size']} workers in {num_files} processes; load "
            "it by as many, or the model alone"
        )
    return True


def _read_together(
    folder: Path,
    manifest: Mapping[str, Any],
    collectives: Collectives,
    goes_on: bool,
    begins_anew: bool,
) -> dict[str, Any]:
    """Return one worker's part of a checkpoint; if one process cannot read, all raise.

    Args:
        goes_on: return this worker's own part; else worker 0's.
        begins_anew: put all workers' common state in the place of the optimiser's.
    """
    rank = collectives.rank if goes_on else 0
    worker: dict[str, Any] = {}

    def read() -> str:
        worker.update(_read_worker(folder, rank, manifest))
        if begins_anew:
            # One worker's state after the other, since all of them may not fit.
            ranks = range(len(manifest["sha256"]))
            states = (_read_worker(folder, each, manifest) for each in ranks)
            worker["optimizer"] = common_state(state["optimizer"] for state in states)
        return DONE

    _together("read", folder, _processes(collectives), read)
    return worker


def _put_own_buffers(average: dict[str, Any], buffers: Mapping[str, Any]) -> None:
    """Put a worker's own buffers, such as running statistics, in the place of the average's."""
    own_names = {_plain(key): key for key in average}
    for key, value in buffers.items():
        average[own_names.get(_plain(key), key)] = value


def _load_others(
    folder: Path, saved: dict[str, Any], others: Mapping[str, Stateful]
) -> None:
    """Load what the script gave, and take it out of what was saved."""
    for key, target in others.items():
        if key not in saved:
            raise ValueError(f"{folder} holds no {key!r}, but {sorted(saved)}")
        target.load_state_dict(saved.pop(key))


def _read_worker(
    folder: Path, rank: int, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a worker's own part of a checkpoint, on the CPU."""
    worker = read_file(folder, rank, manifest["sha256"][rank], weights_only=False)
    if worker is None:
        raise ValueError(f"the file of rank {rank} in {folder} is missing or damaged")
    return worker


def _read_average(
    folder: Path, model: nn.Module, collectives: Collectives
) -> dict[str, Any]:
    """Return the average model's state, as the model has it."""
    from torch.distributed.checkpoint.state_dict_loader import load

    held = _of_one_worker(model.state_dict(), collectives)
    saved_names = _saved_names(folder)
    names = {key: saved_names.get(_plain(key), key) for key in held}
    state = {"model": {names[key]: _copy(value) for key, value in held.items()}}
    with _checkpointing(folder, collectives) as talking:
        load(state, checkpoint_id=folder, **talking)
    average = {key: state["model"][name] for key, name in names.items()}
    for key, value in model.state_dict().items():
        if isinstance(value, Tensor):
            # A checkpoint has no axis over workers, and a model whose workers are stacked has one.
            average[key] = average[key].expand_as(value)
    return average


def _plain(name: str) -> str:
    """Return a name as it is in a model that is not compiled."""
    return name.replace(COMPILED, "")


def _saved_names(folder: Path) -> dict[str, str]:
    """Return the names that the saved model has, by those in a model that is not compiled."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    saved = FileSystemReader(folder).read_metadata().state_dict_metadata
    names = [key.removeprefix("model.") for key in saved]
    return {_plain(name): name for name in names}


def _generators() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _set_generators(python: Any, numpy: Any, cpu: Tensor, cuda: Tensor | None) -> None:
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)


def _of_one_worker(
    state: Mapping[str, Any], collectives: Collectives
) -> dict[str, Any]:
    """Return a model's state without the axis over stacked workers, if it has one."""
    return {
        key: value[0] if isinstance(collectives, StackedCollectives) else value
        for key, value in state.items()
    }


def _copy(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


@contextmanager
def _checkpointing(folder: Path, collectives: Collectives) -> Iterator[dict[str, Any]]:
    """Yield torch's arguments for the processes that take part; translate any rank's error."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings(), translated_errors():
            # torch warns that a process is alone, which is meant here.
            warnings.filterwarnings("ignore", "torch.distributed is")
            if isinstance(collectives, ProcessGroupCollectives):
                yield {"process_group": collectives.group}
            else:
                yield {"no_dist": True}
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        kind = OSError if isinstance(cause, OSError) else ValueError
        raise kind(
            f"rank {rank} cannot write or read the checkpoint {folder}: {cause}"
        ) from error
