"""A small non-convex problem, and how the tests build and train any algorithm on it."""

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
from torch.func import functional_call
from torch.nn import Parameter

from cser_bench.algorithms import (
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
from cser_bench.algorithms.check.problem import settings_for
from cser_bench.algorithms.check.reference import HeavyBall
from cser_bench.algorithms.check.threads import run_workers
from cser_bench.algorithms.core.compressors import SharedSupport

T = TypeVar("T")
Types = torch.dtype | tuple[torch.dtype, torch.dtype]
"""A type for all parameters, or one for each layer."""

NAMES = list(algorithms())
JOINT = [name for name in NAMES if algorithms()[name].averages_models]
"""Methods in whose result the workers have a part in common; the others need not be SGD, nor send
anything."""
TAKING_ADAMW = [name for name in NAMES if algorithms()[name].sgd_alone is None]
# 24 + 18 weights and 6 + 3 biases: odd, so that blocks and bytes are not even.
NUM_PARAMETERS = 51
NUM_WEIGHTS = 42
ACCURATE = (torch.float32, torch.float64)
SHORT = (torch.bfloat16, torch.float32)

LR = 0.1
WEIGHT_DECAY = 0.01
MOMENTUM = 0.9
BIAS_LR = 0.04
BIAS_WEIGHT_DECAY = 0.03
SGD: dict[str, Any] = {"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
"""What a method is given by default, and what it is given to step by AdamW and by Muon."""
ADAMW: dict[str, Any] = {
    "local_step": "adamw",
    "lr": 0.02,
    "momentum": None,
    "betas": (0.8, 0.95),
    "eps": 1e-6,
    "weight_decay": 0.05,
}
MUON: dict[str, Any] = {**ADAMW, "local_step": "muon", "momentum": MOMENTUM}

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
    # 51 codes of 4 bits in 26 bytes, and a norm for each of 4 buckets
    "qsgd": 8 * 26 + 32 * 4,
    "int4": 4 * (32 + 4 * 16),  # 4 blocks, each with a scale, the last one filled up
    # 5 of each 12 and 3 of the last: 23 of 2 bits, 4 bits of index; 4 means
    "chunks": 8 * 6 + 8 * 12 + 32 * 4,
}
"""Bits of one message of the 51 parameters in 32-bit numbers, counted by hand."""


# The problem.


class Linear(nn.Linear):
    """Takes inputs of another type."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.to(self.weight.dtype))


def make_model(dtype: Types = torch.float64, seed: int = 0) -> nn.Sequential:
    """A network of one hidden layer, with 51 parameters that depend on `seed` alone."""
    first, second = dtype if isinstance(dtype, tuple) else (dtype, dtype)
    model = nn.Sequential(
        Linear(4, 6, dtype=first), nn.Tanh(), Linear(6, 3, dtype=second)
    )
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            numbers = generator.normal(0, 0.5, parameter.shape)
            parameter.copy_(torch.from_numpy(numbers))
    return model


def ordered(model: nn.Module) -> list[Parameter]:
    """The parameters in the order of the flat vector: weights, then biases."""
    parameters = list(model.parameters())
    return parameters[::2] + parameters[1::2]


def groups(parameters: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Two groups with learning rates and weight decays of their own, of weights and of biases."""
    weights = {"params": list(parameters[::2])}
    biases = {
        "params": list(parameters[1::2]),
        "lr": BIAS_LR,
        "weight_decay": BIAS_WEIGHT_DECAY,
    }
    return [weights, biases]


@cache
def batch(dtype: torch.dtype, step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets that each worker and step has for itself; workers' data differ in kind."""
    generator = np.random.default_rng([step, rank])
    inputs = generator.normal(0.2 * rank, 1, (8, 4))
    weights = np.linspace(-1, 1, 12).reshape(4, 3)
    noiseless = inputs @ weights + 0.3 * rank
    targets = np.sin(noiseless)
    return torch.from_numpy(inputs).to(dtype), torch.from_numpy(targets).to(dtype)


def batch_loss(
    model: Callable[[Tensor], Tensor],
    step: int,
    rank: int,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The loss on a worker's batch of one step, of numbers of the parameters' type or of this
    one."""
    if isinstance(model, nn.Module):
        dtype = next(model.parameters()).dtype
    inputs, targets = batch(dtype, step, rank)
    errors = model(inputs) - targets
    return errors.square().mean()


def flat_parameters(model: nn.Module) -> Tensor:
    parameters = [parameter.detach() for parameter in ordered(model)]
    return torch.cat([parameter.reshape(-1) for parameter in parameters])


def assert_close(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# What methods are without compression.


def torch_sgd(name: str, params: Any, **common: float) -> torch.optim.Optimizer:
    """What an algorithm is without compression, tensor by tensor."""
    if algorithms()[name].nesterov:
        return torch.optim.SGD(params, nesterov=True, **common)
    return HeavyBall(params, **common)


def plain_sgd(name: str, world_size: int, num_steps: int) -> Tensor:
    """The parameters after `torch_sgd` on the average gradient."""
    model = make_model()
    given = groups(list(model.parameters()))
    optimizer = torch_sgd(name, given, **SGD)
    for step in range(1, num_steps + 1):
        losses = [batch_loss(model, step, rank) for rank in range(world_size)]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    return flat_parameters(model)


# Settings.


def own_settings(
    name: str,
    compressors: Sequence[Compressor] = (Identity(),),
    interval: int = 1,
    **overrides: Any,
) -> dict[str, Any]:
    """A value for each setting that algorithm `name` has of its own: compressors in turn, and
    switches as written.

    An interval is an integer that the method states to be 1 where it is SGD; other settings are as
    the method states.
    """
    return settings_for(algorithms()[name], compressors, interval) | overrides


def switches(name: str) -> dict[str, bool]:
    """The algorithm's settings that are on or off, all off."""
    declared = algorithms()[name].declared
    return {key: False for key, each in declared.items() if each.declared is bool}


def every_switch(name: str) -> Iterator[dict[str, bool]]:
    """Each combination of the algorithm's switches."""
    keys = list(switches(name))
    for values in itertools.product((False, True), repeat=len(keys)):
        yield dict(zip(keys, values, strict=True))


def kinds_taken(name: str) -> list[type]:
    """The kinds of compressor that the algorithm's settings admit, one of each setting of that
    sort."""
    settings = algorithms()[name].declared.values()
    declared = (each.declared for each in settings)
    kinds = [kind for kind in declared if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, Compressor)]


def takes(name: str, compressor: Compressor) -> bool:
    return all(isinstance(compressor, kind) for kind in kinds_taken(name))


def named_compressors(name: str, compressors: Mapping[str, Compressor]) -> list[str]:
    """Which of `compressors` to try on the algorithm: those it takes, or any one where it takes
    none."""
    if not kinds_taken(name):
        return ["identity"]
    return [key for key, each in compressors.items() if takes(name, each)]


# Training.


def assert_expected_traffic(optimizer: DistributedOptimizer, num_steps: int) -> None:
    """What was counted in training is what the method says beforehand of so many steps."""
    counted = optimizer.traffic.training()
    expected = optimizer.expected_traffic(num_steps).training()
    assert counted == expected


def make_optimizer(
    name: str,
    model: nn.Module,
    /,
    own: dict[str, Any],
    collectives: Collectives | None = None,
    **common: Any,
) -> DistributedOptimizer:
    """The algorithm on the model's two groups."""
    given = groups(list(model.parameters()))
    numbers = SGD | common
    make = algorithms()[name]
    return make(given, collectives=collectives, **own, **numbers)


def train(
    optimizer: DistributedOptimizer, model: nn.Module, rank: int, steps: Sequence[int]
) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss = batch_loss(model, step, rank)
        loss.backward()
        optimizer.step()


def workers(work: Callable[[Collectives], T], world_size: int) -> list[T]:
    """`run_workers` with a time-out that a test can bear."""
    return run_workers(work, world_size, timeout_seconds=60)


def trained(
    name: str,
    own: dict[str, Any],
    world_size: int,
    num_steps: int,
    dtype: Types = torch.float64,
    **common: Any,
) -> list[Tensor]:
    """Each worker's parameters after `num_steps`; every worker starts from other values, so worker
    0's must count."""

    def work(collectives: Collectives) -> Tensor:
        rank = collectives.rank
        model = make_model(dtype, seed=rank)
        optimizer = make_optimizer(name, model, own, collectives, **common)
        train(optimizer, model, rank, range(1, num_steps + 1))
        return flat_parameters(model)

    return workers(work, world_size)


def stacked(
    name: str,
    own: dict[str, Any],
    num_workers: int,
    num_steps: int,
    dtype: Types = torch.float32,
    **common: Any,
) -> tuple[DistributedOptimizer, list[Tensor]]:
    """An optimiser whose rows are the workers, after training as `trained` does, and each worker's
    parameters."""
    model = make_model(dtype)
    rows = {}
    for key, each in model.named_parameters():
        of_all = torch.stack([each.detach()] * num_workers)
        rows[key] = Parameter(of_all)
    given = groups(list(rows.values()))
    numbers = SGD | common
    collectives = StackedCollectives(num_workers)
    make = algorithms()[name]
    optimizer = make(given, collectives=collectives, **own, **numbers)
    first = next(iter(rows.values())).dtype
    for step in range(1, num_steps + 1):
        optimizer.zero_grad()
        for rank in range(num_workers):
            own_rows = {key: each[rank].clone() for key, each in rows.items()}

            def own_model(
                inputs: Tensor, own_rows: dict[str, Tensor] = own_rows
            ) -> Tensor:
                outputs: Tensor = functional_call(model, own_rows, inputs)
                return outputs

            loss = batch_loss(own_model, step, rank, first)
            loss.backward()
        optimizer.step()
    parameters = [each.detach() for each in rows.values()]
    in_order = parameters[::2] + parameters[1::2]
    flat = []
    for rank in range(num_workers):
        own_parts = [each[rank].reshape(-1) for each in in_order]
        flat.append(torch.cat(own_parts))
    return optimizer, flat


def reloaded(state: Any) -> Any:
    """The state after a trip through a file, read with PyTorch's safe loader."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Processes.


def run_processes(
    process: Callable[[int, Path], None], world_size: int, folder: Path
) -> list[Any]:
    """What each of so many processes, started together, saved in its file."""
    # The fork server imports PyTorch once for all; what it starts has no thread or state of this
    # process.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch", "torch._dynamo"])
    mp.start_processes(process, (folder,), nprocs=world_size, start_method="forkserver")
    files = [folder / f"{rank}.pt" for rank in range(world_size)]
    return [torch.load(file, weights_only=True) for file in files]


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
    """How such a process begins: with a group of all, which waits some minutes for any of them."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group(
        "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(minutes=5),
    )
