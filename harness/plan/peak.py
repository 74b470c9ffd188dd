"""The most memory that one worker's step takes: the step is taken on the meta device, where allocations are counted."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from algorithms import Collectives, DistributedOptimizer
from algorithms.baselines.ddp import DDP
from algorithms.core.collectives import Add
from algorithms.core.topology import Mixing
from harness.spec import RunConfig
from harness.train.build import build_optimizer


class OneOfMany(Collectives):
    """One worker of a group whose others do not exist: in the room for their messages are copies of its own."""

    def _sum_(self, tensor: Tensor) -> None:
        pass

    def _gather(self, tensor: Tensor) -> Tensor:
        return tensor.repeat(self.world_size, *(1 for _ in tensor.shape[1:]))

    def _broadcast_(self, tensor: Tensor) -> None:
        pass

    def _reduce_blocks(self, blocks: Tensor, add: Add) -> tuple[Tensor, Tensor]:
        size = -(-blocks.shape[1] // self.world_size)
        return blocks[0].clone(), add(blocks[:, :size].repeat(self.world_size, 1, 1))[1]

    def _exchange(self, tensor: Tensor, mixing: Mixing) -> dict[int, Tensor]:
        return {sender: tensor[0].clone() for sender in mixing.senders[self.rank]}


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that operations inside allocate: those that are there now, and the most so far."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_key(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and (key := _key(each)) not in given | self._known.keys():
                storage = each.untyped_storage()
                self._known[key] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, key)
        self.most = max(self.most, self.now)
        return result

    def _free(self, key: int) -> None:
        self.now -= self._known.pop(key)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@torch.no_grad()
def peak_models(config: RunConfig, model: nn.Module, num_steps: int) -> float:
    """The most numbers that a worker holds in a step that synchronises, activations left out, in models.

    Parameters, gradients and state, and what the step allocates for a while, messages among it.

    Args:
        model: on the meta device.
    """
    optimizer = build_optimizer(config, model, OneOfMany(0, config.num_workers), num_steps)
    if isinstance(optimizer, DDP):  # its buckets are part of what it holds
        return 2 + optimizer.memory_in_parameters()
    # On a real device it is fused, and takes no room.
    optimizer.local.step_ = lambda *_: None  # type: ignore[method-assign]
    held = optimizer.flat.parameters.element_size() * optimizer.flat.layout.numel
    with Allocations() as allocations:
        for step in _steps(optimizer, num_steps):
            optimizer._update(step)
            optimizer.num_steps = step
    return float(2 + optimizer.memory_in_parameters() + allocations.most / held)


def _steps(optimizer: DistributedOptimizer, num_steps: int) -> list[int]:
    """The first step, one in which all that is sent at intervals is sent, and that in which what is late arrives."""
    together = min(math.lcm(*(stage.every for stage in optimizer.stages())), num_steps)
    return sorted({1, together, together + getattr(optimizer, "delay", 0)})
