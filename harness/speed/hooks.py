"""Communication hooks of DDP: PyTorch's own, and what makes them wait for others or gives each bucket a group."""

# No "from __future__ import annotations": DDP looks at the hooks' annotations, which must be types.

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import GradBucket, ProcessGroup  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

Hook = Callable[[Any, GradBucket], torch.futures.Future[Tensor]]

PLAIN: dict[str, Hook] = {"none": allreduce_hook, "fp16": fp16_compress_hook}
"""Those whose state is the process group."""


def held_back(hook: Hook) -> Hook:
    """The hook, for all buckets at once when the last is full, which is when the backward pass is done."""
    held: list[tuple[GradBucket, torch.futures.Future[Tensor]]] = []

    def hold(state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        promised: torch.futures.Future[Tensor] = torch.futures.Future()
        held.append((bucket, promised))
        if bucket.is_last():
            for each, result in held:
                _pass_on(hook(state, each), result)
            held.clear()
        return promised

    return hold


def one_by_one(hook: Hook) -> Hook:
    """The hook, whose last message of a bucket is through before the backward pass goes on."""

    def finish(state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        result = hook(state, bucket)
        result.wait()
        return result

    return finish


def _pass_on(future: torch.futures.Future[Tensor], promised: torch.futures.Future[Tensor]) -> None:
    future.add_done_callback(lambda done: promised.set_result(done.value()))


def powersgd(rank: int, groups: Sequence[ProcessGroup | None]) -> Hook:
    """PowerSGD as DDP's hook has it, compressing from the third step on, with a process group for each bucket.

    Its second and third all-reduces are begun by whichever thread finds the one before done; on one group of gloo's,
    those of two buckets could have another order on another worker.
    """
    # The hook's own least: DDP settles its buckets in the first two steps.
    states = [PowerSGDState(group, matrix_approximation_rank=rank, start_powerSGD_iter=2) for group in groups]

    def compress(_: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        state = states[bucket.index()]
        if not bucket.is_last() and state.iter < state.start_powerSGD_iter:
            state.iter += 1  # The hook counts only where it sees the last bucket.
        result: torch.futures.Future[Tensor] = powerSGD_hook(state, bucket)
        return result

    return compress
