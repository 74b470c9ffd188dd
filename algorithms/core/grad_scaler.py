"""What a `torch.amp.GradScaler` asks of an optimiser that takes the scale out itself, over all workers."""

from __future__ import annotations

from torch import Tensor

from algorithms.core.collectives import Collectives
from algorithms.core.traffic import Purpose


def overflowed(found_inf: Tensor, grad_scale: Tensor | None, gradients: Tensor, collectives: Collectives) -> bool:
    """Whether any worker's gradients are not finite; if not, take the scale out of these.

    A worker that skipped alone would leave the others waiting, or drift from them.

    Args:
        found_inf: above 0 where this worker's gradients are not finite.
        grad_scale: by which the gradients were multiplied, None where they no longer are.
    """
    found = found_inf.detach().float().reshape(1).clone()
    collectives.all_reduce_sum_(found, Purpose.CONTROL)
    if found.item() > 0:
        return True
    if grad_scale is not None:
        gradients.div_(grad_scale)
    return False
