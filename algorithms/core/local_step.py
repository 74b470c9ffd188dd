"""The local step of SGD with Nesterov momentum, in one pass over a slice of the flat vectors."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.sgd import sgd as torch_sgd


def nesterov_step_(
    group: dict[str, Any], x: Tensor, g: Tensor, m: Tensor | None, target: Tensor | None, sign: int
) -> None:
    """target <- target + sign eta u, with m <- beta m + g and then u = beta m + g; the target is x if None.

    All of one shape. For another target than x the weight decay is first added to the gradients, since it is x's own.
    """
    decay = group["weight_decay"]
    if target is not None and decay:
        g.add_(x, alpha=decay)
    torch_sgd(
        [x if target is None else target],
        [g],
        [m if group["momentum"] else None],
        fused=x.device.type in ("cpu", "cuda"),
        weight_decay=decay if target is None else 0.0,
        momentum=group["momentum"],
        lr=-sign * group["lr"],
        dampening=0.0,
        nesterov=group["momentum"] > 0,
        maximize=False,
    )
