"""The local step of SGD with Nesterov momentum, in one pass over a slice of the flat vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd as torch_sgd


def nesterov_step_(
    group: dict[str, Any], x: Tensor, g: Tensor, m: Tensor | None, target: Tensor | None, sign: int
) -> None:
    """target <- target + sign eta u, with m <- beta m + g and then u = beta m + g; the target is x if None.

    All of one shape, (n,) or, with workers stacked, (num_workers, n). For another target than x the weight decay is
    first added to the gradients, since it is x's own. Rows go one by one: a kernel's rounding depends on where its
    vectors begin, and a worker's bits must not depend on its neighbours.
    """
    decay = group["weight_decay"]
    if target is not None and decay:
        for gradient, parameters in zip(rows_of(g), rows_of(x), strict=True):
            gradient.add_(parameters, alpha=decay)
    momenta: list[Tensor | None] = [*rows_of(m)] if m is not None and group["momentum"] else [None] * len(rows_of(g))
    torch_sgd(
        rows_of(x if target is None else target),
        rows_of(g),
        momenta,
        foreach=False,
        fused=_fused_is_right(x),
        weight_decay=decay if target is None else 0.0,
        momentum=group["momentum"],
        lr=-sign * group["lr"],
        dampening=0.0,
        nesterov=group["momentum"] > 0,
        maximize=False,
    )


def _fused_is_right(x: Tensor) -> bool:
    """On the CPU torch's fused kernel leaves whole vectors of 16-bit numbers unwritten."""
    return x.device.type == "cuda" or (x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64))


def rows_of(vector: Tensor) -> list[Tensor]:
    """The flat vectors of the workers that are stacked in a tensor of shape (num_workers, n); of shape (n,): itself."""
    return [vector] if vector.dim() == 1 else list(vector.unbind())
