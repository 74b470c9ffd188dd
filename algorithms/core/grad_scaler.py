"""What a `torch.amp.GradScaler` asks of an optimiser that takes the scale out itself, over all workers."""

from __future__ import annotations

from torch import Tensor
from torch.optim.optimizer import Optimizer

from algorithms.core.collectives import Collectives
from algorithms.core.overlap import Reducer
from algorithms.core.traffic import Purpose


def overflowed(optimizer: Optimizer, gradients: Tensor, collectives: Collectives, reducer: Reducer | None) -> bool:
    """Whether, under a `GradScaler`, any worker's gradients are not finite; if not, take the scale out of these.

    A worker that skipped alone would leave the others waiting, or drift from them.

    Args:
        optimizer: for the time of a step the scaler sets its `found_inf`, above 0 where this worker's gradients are not
            finite, and `grad_scale`, by which they were multiplied, None where they no longer are.
        reducer: is told to send nothing early.
    """
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    if found_inf is None:
        return False
    if reducer is not None:
        reducer.stop("a GradScaler takes the scale out of the gradients in step()")
    found = found_inf.detach().float().reshape(1, 1).repeat(len(gradients), 1)
    collectives.all_reduce_sum_(found, Purpose.CONTROL)
    if found[0].item() > 0:
        return True
    grad_scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    if grad_scale is not None:
        gradients.div_(grad_scale)
    return False
