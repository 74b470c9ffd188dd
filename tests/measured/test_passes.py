"""A step makes as many passes over memory as its benchmark allows it the time for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cser_bench.algorithms import SoloCollectives
from tests.measured.subjects import PASSES, build, touch_gradients

NUMEL = 256 * 512
SMALL = NUMEL // 8
"""Blocks of one number in 256 are no pass."""

READ_NOTHING = ("zero_", "fill_", "new_", "empty_like", "zeros_like")
"""Kernels that look at their first vector's type and shape alone."""


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)


class Passes(TorchDispatchMode):
    """Counts the long vectors that kernels read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, kernel: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        result = kernel(*arguments, **(keywords or {}))
        named = dict(
            zip(
                [each.name for each in kernel._schema.arguments],
                arguments,
                strict=False,
            )
        )
        named |= keywords or {}
        is_view = any(
            each.alias_info is not None and not each.alias_info.is_write
            for each in kernel._schema.returns
        )
        if is_view:
            return result
        written = [
            each.name
            for each in kernel._schema.arguments
            if each.alias_info is not None and each.alias_info.is_write
        ]
        if kernel is torch.ops.aten._fused_sgd_.default:
            # It writes gradients only to take a GradScaler's scale out.
            written.remove("grads")
        reads = not kernel.__name__.startswith(READ_NOTHING)
        for name, value in named.items():
            self.add(value, int(reads) + int(name in written))
        if not written:
            self.add(result, 1)
        return result

    def add(self, value: Any, times: int) -> None:
        num_large = sum(each.numel() >= SMALL for each in tensors(value))
        self.count += times * num_large


@pytest.mark.parametrize("name", PASSES)
def test_a_step_makes_so_many_passes(name: str) -> None:
    weight = nn.Parameter(torch.randn(NUMEL))
    parameters = nn.ParameterList([weight])
    optimizer = build(name, parameters, SoloCollectives())
    for _ in range(2):
        touch_gradients(parameters)
        optimizer.step()
    touch_gradients(parameters)
    with Passes() as passes:
        optimizer.step()
    assert passes.count == PASSES[name]
