"""Torch's own local SGD as a plain optimiser, and what it says of itself.

Check it by `python -m cser_bench.algorithms.check examples/torch_local_sgd.py`.
"""

from torch import nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.optim import SGD, Optimizer

INTERVAL = 4


def make(model: nn.Module) -> Optimizer:
    """Return the optimiser as it is used; a process group is there by then."""
    return _averaging(model, INTERVAL)


def make_uncompressed(model: nn.Module) -> Optimizer:
    """Return one that loses nothing: an average after every step."""
    return _averaging(model, 1)


def make_plain(model: nn.Module) -> Optimizer:
    """Return what that is, on the mean gradient."""
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def agree_after(step: int) -> bool:
    """Say whether all workers hold the same after a step: its averager counts from 0."""
    return (step - 1) % INTERVAL == 0


def _averaging(model: nn.Module, interval: int) -> Optimizer:
    return PostLocalSGDOptimizer(make_plain(model), PeriodicModelAverager(interval))
