"""DDP: SGD whose gradients DistributedDataParallel averages during the backward pass.

Source: Li et al., "PyTorch distributed: Experiences on accelerating data parallel training", VLDB
2020; PyTorch's own code does it.

    x <- x - mean(p)

The update is `SGD`'s, and so are the numbers, but for the order in which the backend adds. Workers
are processes.
Deviations: buckets stay those of the start (`find_unused_parameters`), so that a resumed run goes
on with the same additions; buffers, such as BatchNorm's, are each worker's own, as with all other
methods. With gloo a bucket is through before the backward pass goes on, so that all workers'
messages have one order.
Cost: 32 d bits per step, in DDP's buckets, which are counted as one collective.
State: the momentum or the moments, and DDP's buckets.
"""

# No "from __future__ import annotations": DDP looks at the hooks' annotations, which must be types.

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket, ProcessGroup  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from cser_bench.algorithms.core import Layout, Purpose, Replica
from cser_bench.algorithms.core.process_group import (
    ProcessGroupCollectives,
    translated_errors,
)
from cser_bench.algorithms.sgd import SGD

Hook = Callable[[Any, GradBucket], torch.futures.Future[Tensor]]
"""A communication hook, which takes its state and a bucket; see
`DistributedDataParallel.register_comm_hook`."""


class DDP(SGD):
    """DDP with its plain hook; a subclass has another one.

    Forward passes must go through `through(model)`.
    """

    name = "ddp"
    averages_in_backward = True
    bits_per_number: ClassVar[int] = 32
    """Bits of a number that the hook sends."""
    survives_overflow: ClassVar[bool] = True
    """Whether the hook's state is as before after a step whose gradients were not finite, as loss
    scaling has them."""
    hook_numel = 0
    """Numbers that the hook keeps from step to step, and that a state holds."""

    def _set_up(self, replica: Replica) -> None:
        if replica.communication_dtype is not None:
            raise ValueError(
                f"{self.name}: its hook says what is sent; leave the communication dtype (a spec's "
                "wire) at fp32, or take ddp_fp16"
            )
        if self.skip_nonfinite and not self.survives_overflow:
            raise ValueError(
                f"{self.name}: its hook keeps of each gradient what it did not send, also of one "
                "that is not finite; leave skip_nonfinite out"
            )
        ours = self.collectives
        self._group = ours.group if isinstance(ours, ProcessGroupCollectives) else None
        self.hook_state, self._hook = self.hook(self._group, self.settings)
        self._bits = self._calls = 0
        """Sent since the last step."""
        # The hook sends numbers of its own size, whatever the parameters have.
        replica.float_bits = self.bits_per_number

    @classmethod
    def hook(
        cls, group: ProcessGroup | None, settings: Mapping[str, Any]
    ) -> tuple[Any, Hook]:
        """PyTorch's hook with a new state, for this group or (None) the world.

        `settings` are the method's.
        """
        return group, allreduce_hook

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        raise ValueError(
            f"{cls.name}: its hook says what is sent, so there is no traffic to choose"
        )

    def through(self, model: nn.Module) -> DistributedDataParallel:
        """Return the model, whose parameters are ours, in DDP with the hook.

        Forward passes in training go through it.

        Raises:
            ValueError: workers are no processes.
        """
        if not isinstance(self.collectives, ProcessGroupCollectives):
            raise ValueError(
                f"{self.name}: DistributedDataParallel averages over processes, and these workers "
                "are none; start them as processes (--workers processes, torchrun, Slurm), or "
                "take sgd"
            )
        # Fixed, since gradients must stay where the flat vector has them.
        wrapper = wrapped(model, self._group, fixed_buckets=True)
        wrapper.register_comm_hook(None, self._communicate)
        return wrapper

    def _communicate(
        self, state: object, bucket: GradBucket
    ) -> torch.futures.Future[Tensor]:
        """Call the hook and count what it sends; with NCCL it goes on by itself."""
        with translated_errors():
            result = self._hook(self.hook_state, bucket)
            if dist.get_backend(self._group) == "gloo":
                # gloo's errors come out here, where they are translated; NCCL's wait would stall
                # the host.
                result.wait()
        numel, calls = self._handed_on(bucket)
        self._bits += self.bits_per_number * numel
        # All buckets' calls are one, however many there are.
        if bucket.is_last():
            self._calls += calls
        return result

    def _handed_on(self, bucket: GradBucket) -> tuple[int, int]:
        """Numbers that the hook handed to all-reduces for this bucket, and in how many."""
        return bucket.buffer().numel(), 1

    def _book(self, purpose: Purpose) -> None:
        """Count what was sent since the last step under this purpose."""
        if self._calls:
            self.traffic.add(purpose, self._bits, self._calls)
        self._bits = self._calls = 0

    def _update(self, replica: Replica, step: int) -> None:
        self._refuse_scaler()
        if not self._calls:
            raise RuntimeError(
                f"{self.name}: no gradient was averaged; let forward passes go through "
                "`through(model)`"
            )
        self._book(Purpose.GRADIENT)
        replica.local_step_()

    def _drop_early(self) -> None:
        # A scaler's first steps are often left out, so that `_update` would come too late.
        self._refuse_scaler()
        super()._drop_early()
        self._book(Purpose.CONTROL)

    def _refuse_scaler(self) -> None:
        """Raise where a GradScaler steps this, and the hook keeps what overflows."""
        if not self.survives_overflow and getattr(self, "found_inf", None) is not None:
            raise RuntimeError(
                f"{self.name}: its hook keeps of each gradient what it did not send, also of one "
                "that overflowed; train without a GradScaler, in bf16 or fp32"
            )

    def memory_in_parameters(self) -> float:
        """DDP's buckets are as large as the gradients."""
        return (
            super().memory_in_parameters()
            + 1
            + self.hook_numel / self.flat.layout.numel
        )


def wrapped(
    module: nn.Module,
    group: ProcessGroup | None,
    fixed_buckets: bool,
    bucket_cap_mb: float | None = None,
) -> DistributedDataParallel:
    """Return the module in a DistributedDataParallel.

    Parameters must be equal already, and buffers stay the worker's own.

    Args:
        fixed_buckets: buckets stay those of the start, and gradients stay where they are. Else it
            is as fast as can be: buckets are put in the order of gradients after the first step,
            and gradients are views of them.
        bucket_cap_mb: size of a bucket; None for DDP's own, by which the first is smaller.
    """
    with warnings.catch_warnings():
        # Newer releases have another name for broadcast_buffers.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            module,
            process_group=group,
            bucket_cap_mb=bucket_cap_mb,
            gradient_as_bucket_view=not fixed_buckets,
            find_unused_parameters=fixed_buckets,
            broadcast_buffers=False,
            init_sync=False,
        )
