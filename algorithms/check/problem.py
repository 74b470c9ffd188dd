"""The small problem that a method is checked on, and the settings that it is checked with."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import Parameter

from cser_bench.algorithms.compressors.block import BlockSparsifier
from cser_bench.algorithms.compressors.coordinates import TopK
from cser_bench.algorithms.compressors.quantisers import QSGD
from cser_bench.algorithms.core.collectives import Collectives, StackedCollectives
from cser_bench.algorithms.core.compressors import Compressor, Identity
from cser_bench.algorithms.core.optimizer import DistributedOptimizer

Method = type[DistributedOptimizer]

NUMBERS: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
ADAMW: dict[str, Any] = {
    "local_step": "adamw",
    "lr": 0.02,
    "momentum": None,
    "weight_decay": 0.05,
}

INTERVAL = 4
"""Interval that checks give to methods which send every so many steps."""

COMPRESSORS: dict[str, Compressor] = {
    "blocks": BlockSparsifier(4, num_blocks=8),
    "top-k": TopK(10),
    "qsgd": QSGD(4, bucket_size=16),
}
"""One of each sort: with shared support, gathered, and unbiased."""


def make_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """Return a network of one hidden layer, whose 51 parameters depend on `seed` alone."""
    model = nn.Sequential(
        nn.Linear(4, 6, dtype=dtype), nn.Tanh(), nn.Linear(6, 3, dtype=dtype)
    )
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # By NumPy, whose draws do not touch torch's global generator: a promise is about that.
            parameter.copy_(torch.from_numpy(generator.normal(0, 0.5, parameter.shape)))
    return model


def batch_loss(
    model: Callable[[Tensor], Tensor], dtype: torch.dtype, step: int, rank: int
) -> Tensor:
    """Return the loss on the batch that a worker has at a step; workers' data differ in kind."""
    generator = np.random.default_rng([step, rank])
    # (8 samples, 4 features), about another mean for each worker, so that local gradients differ.
    inputs = generator.normal(0.2 * rank, 1, (8, 4))
    targets = np.sin(inputs @ np.linspace(-1, 1, 12).reshape(4, 3) + 0.3 * rank)
    outputs = model(torch.from_numpy(inputs).to(dtype))
    return (outputs - torch.from_numpy(targets).to(dtype)).square().mean()


def flat(parameters: Iterable[Tensor]) -> Tensor:
    """Return a copy of all numbers in one vector."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])


def train(
    optimizer: torch.optim.Optimizer, model: nn.Module, rank: int, steps: Iterable[int]
) -> None:
    """Take steps on a worker's batches."""
    dtype = next(model.parameters()).dtype
    for step in steps:
        optimizer.zero_grad()
        batch_loss(model, dtype, step, rank).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


class Rows:
    """Workers that are the rows of stacked parameters, with an optimiser of all of them.

    Args:
        data: whose batches each row has, by rank; its own where none is given.
    """

    def __init__(
        self,
        method: Method,
        settings: Mapping[str, Any],
        collectives: StackedCollectives,
        data: Sequence[int] | None = None,
        **common: Any,
    ) -> None:
        self.model = make_model()
        self.data = data or range(collectives.world_size)
        self.rows: dict[str, Parameter] = {}
        for name, parameter in self.model.named_parameters():
            # (workers, *shape), all rows alike at first
            stacked = torch.stack([parameter.detach()] * collectives.world_size)
            self.rows[name] = Parameter(stacked)
        self.optimizer = make_optimizer(
            method, self.rows.values(), settings, collectives, **common
        )

    def train(self, steps: Iterable[int]) -> None:
        """Take steps of all workers together."""
        for step in steps:
            self.optimizer.zero_grad()
            for row, rank in enumerate(self.data):
                # A clone keeps the graph, so the row's gradient lands in its row of the stacked
                # parameter.
                worker = {
                    name: stacked[row].clone() for name, stacked in self.rows.items()
                }
                batch_loss(
                    self._model_with(worker), torch.float32, step, rank
                ).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def _model_with(self, parameters: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda inputs: functional_call(self.model, parameters, inputs)

    def parameters_of(self, row: int) -> Tensor:
        """Return the numbers of one worker, as `flat` does those of a model."""
        return flat(stacked[row] for stacked in self.rows.values())


def make_optimizer(
    method: Method,
    parameters: Iterable[Tensor],
    settings: Mapping[str, Any],
    collectives: Collectives | None = None,
    **common: Any,
) -> DistributedOptimizer:
    """Return the method with these settings, and SGD's usual numbers unless others are given."""
    return method(
        list(parameters), collectives=collectives, **settings, **(NUMBERS | common)
    )


def settings_for(
    method: Method, compressors: Sequence[Compressor] = (Identity(),), interval: int = 1
) -> dict[str, Any]:
    """Return a value for each setting that the method must be given.

    The author's own values come first: `no_compression` where nothing is compressed and intervals
    are 1, `tried_with` elsewhere. Compressors are given in turn. An integer that is 1 in
    `no_compression` counts as an interval. All other settings are as in `no_compression`.

    Raises ValueError: a setting has no value.
    """
    turn = itertools.cycle(compressors)
    lossless = dict(method.no_compression or {})
    is_lossless = interval == 1 and tuple(compressors) == (Identity(),)
    stated = lossless if is_lossless else method.tried_with
    chosen = {**lossless, **stated}
    for key, setting in method.declared.items():
        if key in stated:
            continue
        if setting.admits(Compressor):
            chosen[key] = next(turn)
        elif setting.declared is int and lossless.get(key) == 1:
            chosen[key] = interval
        elif setting.declared is bool:
            chosen.setdefault(key, False)
        elif setting.is_required and key not in chosen:
            raise ValueError(
                f"{method.name}: state a value for {key} in no_compression (and in tried_with)"
            )
    return chosen


def compressor_settings(method: Method) -> list[str]:
    """Return the names of the settings that are compressors."""
    return [
        key for key, setting in method.declared.items() if setting.admits(Compressor)
    ]


def taken_compressors(method: Method) -> dict[str, Compressor]:
    """Return those of `COMPRESSORS` that all of the method's settings take.

    It is one that does nothing where the method takes no compressor, or states all that it takes.
    """
    kinds: list[Any] = []
    for key in compressor_settings(method):
        if key not in method.tried_with:
            kinds.append(method.declared[key].declared)
    if not kinds:
        return {"its own settings": Identity()}
    taken = {}
    for name, compressor in COMPRESSORS.items():
        if all(isinstance(compressor, kind) for kind in kinds):
            taken[name] = compressor
    return taken
