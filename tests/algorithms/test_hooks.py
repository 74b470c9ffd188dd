"""PyTorch's hooks and our methods that stand in for them: the same steps to rounding, in real processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    powerSGD_hook,
)
from torch.nn.parallel import DistributedDataParallel

from cser_bench.algorithms import SGD, PowerSGD, ProcessGroupCollectives
from cser_bench.algorithms.powersgd import seen_at_rank

WORLD_SIZE = 2
NUM_STEPS = 6
NUM_FULL_STEPS = 2
RANK = 2
LEARNING_RATE = 0.05
Steps = list[dict[str, Tensor]]
"""Parameters by name after each step."""


def model_of() -> nn.Module:
    """Two matrices of different shapes, each worth compressing at rank 2, and two biases."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 12))


def train(
    module: nn.Module,
    plain: nn.Module,
    optimizer: torch.optim.Optimizer,
    rank: int,
    first: int,
) -> Steps:
    """Take steps from `first` on, on this worker's own batches."""
    after = []
    for step in range(first, NUM_STEPS):
        generator = torch.Generator().manual_seed(100 * step + rank)
        inputs = torch.randn(8, 20, generator=generator)
        targets = torch.randn(8, 12, generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(inputs), targets)
        loss.backward()
        optimizer.step()
        values = {name: p.detach().clone() for name, p in plain.named_parameters()}
        after.append(values)
    return after


def with_hook(rank: int, state: object, hook: Callable[..., object]) -> Steps:
    model = model_of()
    wrapped = DistributedDataParallel(model)
    wrapped.register_comm_hook(state, hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    return train(wrapped, model, optimizer, rank, 0)


def powersgd_steps(rank: int) -> tuple[Steps, Steps]:
    """The hook's steps, and ours from where the hook begins to compress, with the Q that it drew."""
    drawn = []
    original = torch.randn

    def randn(*shape: int, **options: object) -> Tensor:
        values = original(*shape, **options)  # type: ignore[call-overload]
        if shape[-1] == RANK:
            drawn.append(values.clone())
        return values  # type: ignore[no-any-return]

    torch.randn = randn  # type: ignore[assignment]
    state = PowerSGDState(None, RANK, start_powerSGD_iter=NUM_FULL_STEPS)
    try:
        hooked = with_hook(rank, state, powerSGD_hook)
    finally:
        torch.randn = original
    model = model_of()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(hooked[NUM_FULL_STEPS - 1][name])
    optimizer = PowerSGD(
        model.parameters(),
        lr=LEARNING_RATE,
        rank=RANK,
        collectives=ProcessGroupCollectives(),
    )
    (replica,) = optimizer.replicas
    low = seen_at_rank(replica.flat.layout, RANK)
    rights = low.factors(replica.common["right_factors"], "columns")
    by_shape = {
        values.shape[-2:]: values.reshape(values.shape[-2:]) for values in drawn
    }
    assert len(by_shape) == len(rights) == 2
    for right in rights:
        right.copy_(by_shape[right.shape])
    after = train(model, model, optimizer, rank, NUM_FULL_STEPS)
    return hooked[NUM_FULL_STEPS:], after


def fp16_steps(rank: int) -> tuple[Steps, Steps]:
    hooked = with_hook(rank, None, fp16_compress_hook)
    model = model_of()
    optimizer = SGD(
        model.parameters(),
        lr=LEARNING_RATE,
        communication_dtype=torch.float16,
        collectives=ProcessGroupCollectives(),
    )
    return hooked, train(model, model, optimizer, rank, 0)


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    method = f"file://{folder}/rendezvous"
    dist.init_process_group(
        "gloo", init_method=method, rank=rank, world_size=WORLD_SIZE
    )
    found = {"powersgd": powersgd_steps(rank), "fp16": fp16_steps(rank)}
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Steps, Steps]]:
    folder = tmp_path_factory.mktemp("hooks")
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["torch", "torch._dynamo"]
    )
    mp.start_processes(process, (folder,), nprocs=WORLD_SIZE, start_method="forkserver")
    steps: dict[str, tuple[Steps, Steps]] = torch.load(folder / "found.pt")
    return steps


def moved(steps: Steps) -> float:
    """The largest change of a parameter in a step, by which errors are measured."""
    pairs = pairwise(steps)
    changes = [(b[name] - a[name]).abs() for a, b in pairs for name in a]
    return max(float(each.max()) for each in changes)


def apart(ours: Steps, theirs: Steps) -> float:
    pairs = zip(ours, theirs, strict=True)
    differences = [(a[name] - b[name]).abs() for a, b in pairs for name in a]
    return max(float(each.max()) for each in differences)


def test_powersgd_is_its_hook_from_where_that_compresses(
    found: dict[str, tuple[Steps, Steps]],
) -> None:
    hooked, ours = found["powersgd"]
    assert len(ours) == NUM_STEPS - NUM_FULL_STEPS
    assert apart(ours, hooked) < 1e-5 * moved(hooked)


def test_sgd_with_messages_in_fp16_is_the_fp16_hook(
    found: dict[str, tuple[Steps, Steps]],
) -> None:
    """Both round each gradient to fp16 and add in fp16: a few units in the last place apart."""
    hooked, ours = found["fp16"]
    assert moved(hooked) > 0
    tolerance = NUM_STEPS * 4 * 2**-11
    assert apart(ours, hooked) < tolerance * moved(hooked)
