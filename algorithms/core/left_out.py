"""Whether all workers leave a step out, as gradients of one of them are not finite."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cser_bench.algorithms.core.agreement import check_in_step, digest_of
from cser_bench.algorithms.core.collectives import Collectives
from cser_bench.algorithms.core.finite import named_workers, rows_not_finite
from cser_bench.algorithms.core.traffic import Purpose
from cser_bench.algorithms.core.warn import warn_script


def any_overflowed(
    gradients: Sequence[Tensor],
    found_inf: Tensor,
    grad_scale: Tensor | None,
    collectives: Collectives,
) -> bool:
    """Return, on all workers, whether any worker's gradients overflowed; else take the scale out.

    A worker that skipped alone would leave the others waiting, or drift from them.

    Args:
        gradients: of shape (local workers, d) for each dtype.
        found_inf, grad_scale: what a `GradScaler` sets for the time of a step: above 0 where this
            worker's gradients are not finite, and what they were multiplied by, None where they no
            longer are.
    """
    num_workers = len(gradients[0])
    # The scaler looks at all rows of stacked workers at once, and a collective wants a row of each.
    flags = found_inf.detach().float().reshape(1, 1).repeat(num_workers, 1)
    collectives.all_reduce_sum_(flags, Purpose.CONTROL)
    # The one wait for a GPU in a step, as fp16 needs it.
    if flags[0].item() > 0:
        return True
    if grad_scale is not None:
        for rows in gradients:
            rows.div_(grad_scale)
    return False


def any_not_finite(
    method: str,
    step: int,
    gradients: Sequence[Tensor],
    in_step: Mapping[str, object],
    collectives: Collectives,
) -> bool:
    """Return, on all workers, whether any worker's gradients are not finite, and warn whose.

    Args:
        method: its name.
        step: the number of the step that would be left out.
        gradients: of shape (local workers, d) for each dtype.
        in_step: what must be equal on all workers whenever they meet.
    """
    workers = _workers_not_finite(gradients, in_step, collectives)
    if workers:
        warn_script(
            f"{method}: all workers left step {step} out, since gradients of {workers} are not "
            "finite; where that goes on, look at the data there, or lower the learning rate"
        )
    return bool(workers)


def _workers_not_finite(
    gradients: Sequence[Tensor], in_step: Mapping[str, object], collectives: Collectives
) -> str:
    """Return, on all workers, whose gradients are not finite, in words; "" if all are finite."""
    rows = [rows_not_finite(each) for each in gradients]
    flags = torch.stack(rows).any(0).to(torch.uint8).unsqueeze(1)  # (local workers, 1)
    if len(flags) < collectives.world_size:
        # As all wait for this message anyway, it also says whether they are in step.
        digest = torch.tensor(
            [list(digest_of(in_step))], dtype=torch.uint8, device=flags.device
        )
        messages = torch.cat([flags, digest], dim=1)  # (1, 1 + DIGEST_BYTES)
        gathered = collectives.all_gather(messages, Purpose.CONTROL)
        flags = gathered[:, :1]
        digests = gathered[:, 1:]
        if not bool((digests == digests[0]).all()):
            check_in_step(collectives, in_step)
    return named_workers(flags, collectives)
