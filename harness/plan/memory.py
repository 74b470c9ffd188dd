"""The most memory that a step takes, found by taking it where allocations are counted."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cser_bench.algorithms import DistributedOptimizer
from cser_bench.algorithms.baselines.ddp import DDP
from cser_bench.harness.plan.one_of_many import OneOfMany
from cser_bench.harness.spec.run import RunConfig
from cser_bench.harness.train.build import build_optimizer


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes that operations inside allocate: those that are there now, and the most so far."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.most = 0
        self._bytes_of: dict[int, int] = {}
        """Bytes of each storage that was allocated here and is still there, by its address."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {
            _key(leaf)
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not isinstance(leaf, Tensor):
                continue
            # A view has the storage of what was given.
            # By storage: many tensors may share one.
            key = _key(leaf)
            if key in given or key in self._bytes_of:
                continue
            storage = leaf.untyped_storage()
            self._bytes_of[key] = storage.nbytes()
            self.now += storage.nbytes()
            # Freed when Python frees it, as an eager step would.
            weakref.finalize(storage, self._free, key)
        self.most = max(self.most, self.now)
        return result

    def _free(self, key: int) -> None:
        self.now -= self._bytes_of.pop(key)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@torch.no_grad()
def peak_models(config: RunConfig, model: nn.Module, num_steps: int) -> float:
    """Return the most numbers that a worker holds in a step that synchronises, in models.

    Parameters, gradients and state, and what the step allocates for a while, messages among it;
    activations are left out.

    Args:
        model: on the meta device.
    """
    alone = OneOfMany(0, config.num_workers, shares_memory=False)
    optimizer = build_optimizer(config, model, alone, num_steps)
    # Parameters and gradients are two of them.
    lasting = 2 + optimizer.memory_in_parameters()
    if isinstance(optimizer, DDP):  # its buckets are part of what it holds
        return lasting
    # On a real device it is fused, and takes no room.
    (replica,) = optimizer.replicas
    replica.local.step_ = lambda *_: None  # type: ignore[method-assign]
    model_bytes = optimizer.flat.parameters.element_size() * optimizer.flat.layout.numel
    with Allocations() as allocations:
        for step in _telling_steps(optimizer, num_steps):
            optimizer._update(replica, step)
            optimizer.num_steps = step
    # State is made in the first step, and so what it holds is asked for again.
    return float(2 + optimizer.memory_in_parameters() + allocations.most / model_bytes)


def _telling_steps(optimizer: DistributedOptimizer, num_steps: int) -> list[int]:
    """Return the steps that show the most memory, counted from 1.

    They are the first step, one in which all that is sent at intervals is sent, and the one in
    which what is late arrives.
    """
    (replica,) = optimizer.replicas
    intervals = [stage.every for stage in optimizer.stages(replica)]
    # After so many steps all stages fall into one.
    together = min(math.lcm(*intervals), num_steps)
    return sorted({1, together, together + getattr(optimizer, "delay", 0)})
