"""x_i - e_i of error reset is equal on all workers, in 16 bits too, however many steps there were."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cser_bench.algorithms import (
    QSGD,
    BlockSparsifier,
    DistributedOptimizer,
    QuantisedBlocks,
    StackedCollectives,
    TopK,
    algorithms,
)

NUM_WORKERS = 4
NUMEL = 300
NUM_STEPS = 600
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "csea, top-k": ("csea", {"error_compressor": TopK(20)}),
    "csea, 4 bits": ("csea", {"error_compressor": QuantisedBlocks(4)}),
    "cser_pl, qsgd": ("cser_pl", {"error_compressor": QSGD(4), "reset_interval": 4}),
    "cser, top-k": (
        "cser",
        {
            "gradient_compressor": TopK(20),
            "error_compressor": TopK(4),
            "reset_interval": 8,
        },
    ),
    "mcser, blocks and 4 bits": (
        "mcser",
        {
            "gradient_compressor": BlockSparsifier(20),
            "error_compressor": QuantisedBlocks(4),
            "reset_interval": 8,
        },
    ),
    "mcser, blocks": (
        "mcser",
        {
            "gradient_compressor": BlockSparsifier(20),
            "error_compressor": BlockSparsifier(4),
            "reset_interval": 8,
            "explicit_error": True,
        },
    ),
}


def trained(
    settings: tuple[str, dict[str, Any]], dtype: torch.dtype, num_steps: int
) -> tuple[DistributedOptimizer, Tensor]:
    """The optimiser of workers whose noisy gradients lead to places of their own, and their
    parameters."""
    name, own = settings
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(NUM_WORKERS, NUMEL, generator=generator)
    start = torch.randn(NUMEL, generator=generator)
    parameter = nn.Parameter(start.repeat(NUM_WORKERS, 1).to(dtype))
    optimizer = algorithms()[name](
        [parameter], lr=0.01, collectives=StackedCollectives(NUM_WORKERS), **own
    )
    for _ in range(num_steps):
        noise = torch.randn(NUM_WORKERS, NUMEL, generator=generator)
        towards = parameter.detach().float() - places
        parameter.grad = (0.3 * towards + 0.3 * noise).to(dtype)
        optimizer.step()
    return optimizer, parameter.detach().double()


def spread(rows: Tensor) -> float:
    """How far workers are from their mean, as a share of it."""
    mean = rows.mean(dim=0)
    return float((rows - mean).norm() / mean.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("key", SETTINGS)
def test_what_workers_have_in_common_stays_together_in_16_bits(
    key: str, dtype: torch.dtype
) -> None:
    optimizer, x = trained(SETTINGS[key], dtype, NUM_STEPS)
    assert optimizer.error is not None
    assert spread(x - optimizer.error.double()) < 1e-6
    counted = optimizer.traffic.training()
    assert counted == optimizer.expected_traffic(NUM_STEPS).training()


@pytest.mark.parametrize("key", SETTINGS)
def test_workers_are_no_farther_apart_in_bf16_than_in_fp32(key: str) -> None:
    def apart(dtype: torch.dtype) -> float:
        _, x = trained(SETTINGS[key], dtype, NUM_STEPS)
        return float((x - x.mean(dim=0)).square().mean())

    # Numbers about 1 are rounded by up to 2^-9.
    rounding = 1e-4
    assert apart(torch.bfloat16) < 1.2 * apart(torch.float32) + rounding


def test_the_error_of_16_bit_parameters_has_32() -> None:
    optimizer, _ = trained(SETTINGS["csea, top-k"], torch.bfloat16, 1)
    assert optimizer.error is not None
    assert optimizer.error.dtype == torch.float32
    # Momentum is of the parameters' 2 bytes, the error of 4.
    assert optimizer.memory_in_parameters() == 2
