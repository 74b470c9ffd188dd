"""A small non-convex problem, and how the tests build and train any algorithm on it."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import Parameter

from algorithms import (
    QSGD,
    BlockSparsifier,
    ChunkTopK,
    Collectives,
    Compressor,
    DistributedOptimizer,
    Identity,
    PerTensorBlockSparsifier,
    QuantisedBlocks,
    RandomK,
    ScaledSign,
    StackedCollectives,
    TopK,
    Zero,
    algorithms,
)
from algorithms.core.compressors import SharedSupport
from algorithms.registry import settings
from tests.threads import run_workers

T = TypeVar("T")

NAMES = list(algorithms())
JOINT = [name for name, algorithm in algorithms().items() if algorithm.averages_models]
"""Methods in whose result the workers have a part in common; the others need not be SGD, nor send anything."""
LR, WEIGHT_DECAY, MOMENTUM = 0.1, 0.01, 0.9
BIAS_LR, BIAS_WEIGHT_DECAY = 0.04, 0.03
NUM_PARAMETERS = 51  # 24 + 18 weights and 6 + 3 biases: odd, so that blocks and bytes do not come out even

SHARED: dict[str, SharedSupport] = {
    "block": BlockSparsifier(4),
    "blocks": BlockSparsifier(4, num_blocks=8),
    "per_tensor": PerTensorBlockSparsifier(3, 2, 1.5),
    "random_k": RandomK(5),
    "identity": Identity(),
    "zero": Zero(),
}
ENCODED: dict[str, Compressor] = {
    "top_k": TopK(10),
    "sign": ScaledSign(),
    "qsgd": QSGD(4, bucket_size=16),
    "chunks": ChunkTopK(5, 12, 2),
    "int4": QuantisedBlocks(4, block_size=16),
}
COMPRESSORS: dict[str, Compressor] = {**SHARED, **ENCODED}
MESSAGE_BITS = {
    "block": 32 * 13,  # one of 4 blocks of 13
    "blocks": 32 * 2 * 7,  # two of 8 blocks of 7
    "random_k": 32 * 10,
    "identity": 32 * 51,
    "zero": 0,
    "top_k": (32 + 32) * 5,
    "sign": 8 * 7 + 32,  # 51 bits in 7 bytes, and a scale
    "qsgd": 8 * 26 + 32 * 4,  # 51 codes of 4 bits in 26 bytes, and a norm for each of 4 buckets
    "int4": 4 * (32 + 4 * 16),  # 4 blocks, each with a scale, the last one filled up
    "chunks": 8 * 6 + 8 * 12 + 32 * 4,  # 5 of each 12 and 3 of the last: 23 of 2 bits, 4 bits of index; 4 means
}
"""Bits of one message of the 51 parameters in 32-bit numbers, counted by hand."""
ADAMW: dict[str, Any] = {
    "local_step": "adamw",
    "lr": 0.02,
    "momentum": None,
    "betas": (0.8, 0.95),
    "eps": 1e-6,
    "weight_decay": 0.05,
}
"""What a method is given to step by AdamW."""
TAKING_ADAMW = [name for name, algorithm in algorithms().items() if algorithm.sgd_alone is None]


def assert_close(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def make_model(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """A network of one hidden layer, with 51 parameters that depend on `seed` alone."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(generator.normal(0, 0.5, parameter.shape)))
    return model


def ordered(model: nn.Module) -> list[Parameter]:
    """The parameters in the order of the flat vector: weights, then biases."""
    return sorted(model.parameters(), key=lambda parameter: parameter.dim() == 1)


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups with learning rates and weight decays of their own."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    biases = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    return [{"params": weights}, {"params": biases, "lr": BIAS_LR, "weight_decay": BIAS_WEIGHT_DECAY}]


@cache
def batch(dtype: torch.dtype, step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets that each worker and step has for itself; workers' data differ in kind."""
    generator = np.random.default_rng([step, rank])
    inputs = generator.normal(0.2 * rank, 1, (8, 4))
    targets = np.sin(inputs @ np.linspace(-1, 1, 12).reshape(4, 3) + 0.3 * rank)
    return torch.from_numpy(inputs).to(dtype), torch.from_numpy(targets).to(dtype)


def batch_loss(model: nn.Module, step: int, rank: int) -> Tensor:
    """The loss on a worker's batch of one step."""
    inputs, targets = batch(next(model.parameters()).dtype, step, rank)
    return (model(inputs) - targets).square().mean()


class HeavyBall(torch.optim.Optimizer):
    """v <- beta v + (1 - beta) g from v = g on, x <- x - eta v; no gradient is a zero one, a frozen parameter stays."""

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        begins = not self.state
        for group in self.param_groups:
            beta = 0.0 if begins else group["momentum"]
            for x in group["params"]:
                v = self.state[x].setdefault("v", torch.zeros_like(x))
                g = torch.zeros_like(x) if x.grad is None else x.grad + group["weight_decay"] * x
                v.copy_(beta * v + (1 - beta) * g)
                if x.requires_grad:
                    x.sub_(group["lr"] * v)


def torch_sgd(name: str, params: Any, **common: float) -> torch.optim.Optimizer:
    """What an algorithm is without compression, tensor by tensor."""
    if algorithms()[name].nesterov:
        return torch.optim.SGD(params, nesterov=True, **common)
    return HeavyBall(params, **common)


def flat_parameters(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in ordered(model)])


def on_the_mean_gradient(make: Callable[[nn.Module], torch.optim.Optimizer], world_size: int, num_steps: int) -> Tensor:
    """The parameters after an optimiser of torch on the average gradient."""
    model = make_model()
    optimizer = make(model)
    for step in range(1, num_steps + 1):
        optimizer.zero_grad()
        torch.stack([batch_loss(model, step, rank) for rank in range(world_size)]).mean().backward()
        optimizer.step()
    return flat_parameters(model)


def plain_sgd(name: str, world_size: int, num_steps: int) -> Tensor:
    """The parameters after `torch_sgd` on the average gradient."""
    common = {"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    return on_the_mean_gradient(lambda model: torch_sgd(name, groups(model), **common), world_size, num_steps)


def own_settings(
    name: str, compressors: Sequence[Compressor] = (Identity(),), interval: int = 1, **overrides: Any
) -> dict[str, Any]:
    """A value for each setting that algorithm `name` has of its own: compressors in turn, and switches as written.

    An interval is an integer that the method states to be 1 where it is SGD; other settings are as the method states.
    """
    algorithm, turn = algorithms()[name], itertools.cycle(compressors)
    lossless = dict(algorithm.no_compression or {})
    chosen = dict(lossless)
    if interval != 1 or tuple(compressors) != (Identity(),):
        chosen |= algorithm.tried_with
    for key, (kind, required) in settings(algorithm).items():
        if isinstance(kind, type) and issubclass(kind, Compressor):
            chosen[key] = next(turn)
        elif kind is int and lossless.get(key) == 1:
            chosen[key] = interval
        elif kind is bool:
            chosen.setdefault(key, False)
        elif required and key not in chosen:
            raise AssertionError(f"{name}: state a value for {key} in no_compression (and in tried_with)")
    return chosen | overrides


def switches(name: str) -> dict[str, bool]:
    """The algorithm's settings that are on or off, all off."""
    return {key: False for key, (kind, _) in settings(algorithms()[name]).items() if kind is bool}


def every_switch(name: str) -> Iterator[dict[str, bool]]:
    """Each combination of the algorithm's switches."""
    keys = list(switches(name))
    for values in itertools.product((False, True), repeat=len(keys)):
        yield dict(zip(keys, values, strict=True))


def kinds_taken(name: str) -> list[type]:
    """The kinds of compressor that the algorithm's settings admit, one of each setting of that sort."""
    kinds = [kind for kind, _ in settings(algorithms()[name]).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, Compressor)]


def takes(name: str, compressor: Compressor) -> bool:
    return all(isinstance(compressor, kind) for kind in kinds_taken(name))


def takes_any(name: str) -> bool:
    return bool(kinds_taken(name))


def named_compressors(name: str, compressors: dict[str, Compressor]) -> list[str]:
    """Which of `compressors` to try on the algorithm: those it takes, or any one where it takes none."""
    return [key for key, value in compressors.items() if takes(name, value)] if takes_any(name) else ["identity"]


def make_optimizer(
    name: str, model: nn.Module, own: dict[str, Any], collectives: Collectives | None = None, **common: Any
) -> DistributedOptimizer:
    """The algorithm on the model's two groups."""
    common = {"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY} | common
    return algorithms()[name](groups(model), collectives=collectives, **own, **common)


def train(optimizer: DistributedOptimizer, model: nn.Module, rank: int, steps: Sequence[int]) -> None:
    for step in steps:
        optimizer.zero_grad()
        batch_loss(model, step, rank).backward()
        optimizer.step()


def flat_of(optimizer: DistributedOptimizer) -> Tensor:
    """A copy of this worker's parameters."""
    return optimizer.flat.parameters[0].detach().clone()


def workers(work: Callable[[Collectives], T], world_size: int) -> list[T]:
    """`run_workers` with a time-out that a test can bear."""
    return run_workers(work, world_size, timeout_seconds=60)


def trained(
    name: str, own: dict[str, Any], world_size: int, num_steps: int, dtype: torch.dtype = torch.float64, **common: Any
) -> list[Tensor]:
    """Each worker's parameters after `num_steps`; every worker starts from other values, so worker 0's must count."""

    def work(collectives: Collectives) -> Tensor:
        model = make_model(dtype, seed=collectives.rank)
        optimizer = make_optimizer(name, model, own, collectives, **common)
        train(optimizer, model, collectives.rank, range(1, num_steps + 1))
        return flat_of(optimizer)

    return workers(work, world_size)


def stacked(name: str, own: dict[str, Any], num_workers: int, num_steps: int, **common: Any) -> DistributedOptimizer:
    """An optimiser whose rows are the workers, after training as `trained` does in 32 bits."""
    models = [make_model(torch.float32) for _ in range(num_workers)]
    rows = {
        id(same[0]): nn.Parameter(torch.stack([each.detach() for each in same]))
        for same in zip(*(model.parameters() for model in models), strict=True)
    }
    given = [{**group, "params": [rows[id(each)] for each in group["params"]]} for group in groups(models[0])]
    common = {"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY} | common
    optimizer = algorithms()[name](given, collectives=StackedCollectives(num_workers), **own, **common)
    for step in range(1, num_steps + 1):
        optimizer.zero_grad()
        for rank, model in enumerate(models):
            pairs = list(zip(model.parameters(), models[0].parameters(), strict=True))
            for each, first in pairs:
                each.data = rows[id(first)].detach()[rank].clone()
        for rank, model in enumerate(models):
            gradients = torch.autograd.grad(batch_loss(model, step, rank), list(model.parameters()))
            for gradient, first in zip(gradients, models[0].parameters(), strict=True):
                rows[id(first)].grad[rank] = gradient  # type: ignore[index]
        optimizer.step()
    return optimizer


def reloaded(state: Any) -> Any:
    """The state after a trip through a file, read with PyTorch's safe loader."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_resumable(name: str, own: dict[str, Any], stops: tuple[int, ...], **common: Any) -> None:
    """Two workers that are stopped, and go on as optimisers that know no more than a file, have the same bits."""

    def work(collectives: Collectives) -> dict[int, Tensor]:
        def train_on(model: nn.Module, optimizer: DistributedOptimizer, first: int) -> tuple[dict[int, Any], Tensor]:
            files = {}
            for step in range(first, 13):
                optimizer.zero_grad()
                batch_loss(model, step, collectives.rank).backward()
                if step in (2, 3):
                    model[0].bias.grad = None  # type: ignore[index,union-attr]
                optimizer.step()
                files[step] = reloaded({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            return files, flat_of(optimizer)

        model = make_model(torch.float32, seed=collectives.rank)
        files, final = train_on(model, make_optimizer(name, model, own, collectives, seed=3, **common), 1)
        ends = {0: final}
        for stop in stops:
            model = make_model(torch.float32, seed=7)
            optimizer = make_optimizer(name, model, own, collectives, **common | {"lr": 0.7})
            model.load_state_dict(files[stop]["model"])
            optimizer.load_state_dict(files[stop]["optimizer"])
            assert optimizer.num_steps == stop
            ends[stop] = train_on(model, optimizer, stop + 1)[1]
        return ends

    for ends in workers(work, 2):
        for stop, end in ends.items():
            assert torch.equal(end, ends[0]), f"after step {stop}"


# Processes.


def run_processes(process: Callable[[int, Path], None], world_size: int, folder: Path) -> list[Any]:
    """What each of so many processes, started together, saved in its file."""
    # The fork server imports PyTorch once for all; what it starts has no thread or state of this process.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "torch._dynamo"])
    mp.start_processes(process, (folder,), nprocs=world_size, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def outcomes(cases: Mapping[Any, Callable[[], object]]) -> dict[Any, str | None]:
    """What each of these cases, done one after another, raised."""
    found: dict[Any, str | None] = {}
    for key, case in cases.items():
        try:
            case()
            found[key] = None
        except Exception:
            found[key] = traceback.format_exc()
    return found


def join(rank: int, folder: Path, world_size: int) -> None:
    """How such a process begins: with a group of all, which waits a minute for any of them."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
