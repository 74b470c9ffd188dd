"""DDP: SGD whose gradients DistributedDataParallel averages, bucket by bucket, while the backward pass is at work.

Source: Li et al., "PyTorch distributed: Experiences on accelerating data parallel training", VLDB 2020; PyTorch's own
code does it.

    x <- x - mean(p)

The update is `SGD`'s, and so are the numbers, but for the order in which the backend adds. Workers are processes.
Deviations: buckets stay those of the start (`find_unused_parameters`), so that a resumed run goes on with the same
additions; buffers, such as BatchNorm's, are each worker's own, as with all other methods. With gloo a bucket is through
before the backward pass goes on, so that all workers' messages have one order.
Cost: 32 d bits per step, in DDP's buckets, which are counted as one collective.
"""

# No "from __future__ import annotations": DDP looks at the hooks' annotations, which must be types.

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket, ProcessGroup  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from algorithms.core import Count, Layout, Purpose, Traffic
from algorithms.core.layout import Window
from algorithms.core.process_group import ProcessGroupCollectives, translated_errors
from algorithms.sgd import SGD

Hook = Callable[[Any, GradBucket], torch.futures.Future[Tensor]]
"""A communication hook, which takes its state and a bucket; see `DistributedDataParallel.register_comm_hook`."""


EARLIEST = 3
"""The first step that the hook can compress: it was made for buckets that change after the first one."""
BY_BUCKET = {"errors": "error_dict", "left_factors": "p_memory_dict", "right_factors": "q_memory_dict"}
"""The parts of the hook's state that ours holds by bucket, with the hook's names for them."""


class DDP(SGD):
    """DDP with its plain hook; a subclass has another one. Forward passes must go through `through(model)`."""

    name = "ddp"
    averages_in_backward = True
    bits_per_number: ClassVar[int] = 32
    """Bits of a number that the hook sends."""
    survives_overflow: ClassVar[bool] = True
    """Whether the hook's state is as before after a step whose gradients were not finite, as loss scaling has them."""
    hook_numel = 0
    """Numbers that the hook keeps from step to step, and that a state holds."""

    def _set_up(self) -> None:
        if self.communication_dtype is not None:
            raise ValueError(
                f"{self.name}: its hook says what is sent; leave the communication dtype (a spec's wire) at fp32, or "
                "take ddp_fp16"
            )
        ours = self.collectives
        self._group = ours.group if isinstance(ours, ProcessGroupCollectives) else None
        self.hook_state, self._hook = self.hook(self._group, self.settings)
        self._bits = self._calls = 0
        """Sent since the last step."""

    @property
    def float_bits(self) -> int:
        return self.bits_per_number

    @classmethod
    def hook(cls, group: ProcessGroup | None, settings: Mapping[str, Any]) -> tuple[Any, Hook]:
        """PyTorch's hook with a new state, for this group or (None) the world; `settings` are the method's."""
        return group, allreduce_hook

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        raise ValueError(f"{cls.name}: its hook says what is sent, so there is no ratio to choose")

    def through(self, model: nn.Module) -> DistributedDataParallel:
        """Returns the model, whose parameters are ours, in DDP with the hook: forward passes in training go through it.

        Raises:
            ValueError: workers are no processes.
        """
        if not isinstance(self.collectives, ProcessGroupCollectives):
            raise ValueError(
                f"{self.name}: DistributedDataParallel averages over processes, and these workers are none; start them "
                "as processes (--workers processes, torchrun, Slurm), or take sgd"
            )
        wrapper = wrapped(model, self._group, fixed_buckets=True)
        wrapper.register_comm_hook(None, self._communicate)
        return wrapper

    def _communicate(self, state: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Calls the hook and counts what it sends; with NCCL it goes on by itself."""
        with translated_errors():
            result = self._hook(self.hook_state, bucket)
            if dist.get_backend(self._group) == "gloo":
                result.wait()
        numel, calls = self._handed_on(bucket)
        self._bits += self.bits_per_number * numel
        self._calls += calls if bucket.is_last() else 0
        return result

    def _handed_on(self, bucket: GradBucket) -> tuple[int, int]:
        """Numbers that the hook handed to all-reduces for this bucket, and in how many."""
        return bucket.buffer().numel(), 1

    def _book(self, purpose: Purpose) -> None:
        """Counts what was sent since the last step under this purpose."""
        if self._calls:
            self.traffic.add(purpose, self._bits, self._calls)
        self._bits = self._calls = 0

    def _update(self, step: int) -> None:
        if not self._calls:
            raise RuntimeError(f"{self.name}: no gradient was averaged; let forward passes go through `through(model)`")
        self._book(Purpose.GRADIENT)
        self.local_step_()

    def _overflowed(self) -> bool:
        overflowed = super()._overflowed()
        if overflowed:
            self._book(Purpose.CONTROL)
        return overflowed

    def _drop_early(self) -> None:
        super()._drop_early()
        self._book(Purpose.CONTROL)

    def memory_in_parameters(self) -> float:
        """DDP's buckets are as large as the gradients."""
        return super().memory_in_parameters() + 1 + self.hook_numel / self.flat.layout.numel


class DDPFp16(DDP):
    """DDP with PyTorch's `fp16_compress_hook`: gradients are rounded to 16 bits, averaged so, and made 32 bits again.

        g <- fp32(sum(fp16(g_i) / n))           added in 16 bits, by the backend
        m <- beta m + g + lambda x;  x <- x - eta (beta m + g + lambda x)

    What rounding loses is lost; there is no error feedback. A number beyond 65,504 becomes infinite.
    Cost: 16 d bits per step, in DDP's buckets, which are counted as one collective.
    """

    name = "ddp_fp16"
    formula = "16 d"
    no_compression: ClassVar = None
    bits_per_number = 16

    @classmethod
    def hook(cls, group: ProcessGroup | None, settings: Mapping[str, Any]) -> tuple[Any, Hook]:
        return group, fp16_compress_hook


class DDPPowerSGD(DDP):
    """DDP with PyTorch's PowerSGD hook, as people have it; `powersgd` is the paper's.

    Source: PyTorch's `powerSGD_hook`, after Vogels et al., "PowerSGD", NeurIPS 2019, algorithms 1 and 2.

        M_i <- g_i + e_i                    of each tensor, seen as (first axis, rest), that is worth it
        P <- mean(M Q);  P <- orthonormal basis of its columns
        Q_i <- M_i^T P;  Q <- mean(Q)       kept for the next step, then made orthonormal
        g <- P Q^T;  e_i <- M_i - P Q^T     and of other tensors g <- mean(g)

    A tensor is worth it where 2 r (rows + columns) < rows x columns, r being at most the smaller side. The error, which
    is taken with the mean Q, adds up each worker's distance to the mean gradient. The first two steps send everything.
    A gradient that is not finite spoils the error for ever, so loss scaling is refused.
    Cost: 32 (sum of r (rows + columns) over such tensors + other numbers) bits per step, three all-reduces of each of
    DDP's buckets, which are counted as three in all. In the first two steps: 32 d bits, one all-reduce.

    Args:
        rank: r, of a matrix at most its smaller side.
    """

    name = "ddp_powersgd"
    formula = "32 (sum of r (rows + columns) + other numbers)"
    no_compression: ClassVar = None
    tried_with: ClassVar = {"rank": 1}
    state_is_common = False
    needs_contiguous = True
    survives_overflow = False

    rank: Count

    def _set_up(self) -> None:
        super()._set_up()
        if not all(each.shape and _is_contiguous(each) for each in self.flat.layout.tensors):
            raise ValueError(
                f"{self.name}: PyTorch's hook takes parameters of one axis or more that are contiguous; make the model "
                "so, or take powersgd"
            )
        self._counted = 0
        tensors = self.flat.layout.tensors
        self._sent_numel = sum(sent_numel(each.shape, self.rank) for each in tensors)
        compressed = [each for each in tensors if sent_numel(each.shape, self.rank) < each.numel]
        self.hook_numel = self.flat.layout.numel + sum(sent_numel(each.shape, self.rank) for each in compressed)

    @classmethod
    def hook(cls, group: ProcessGroup | None, settings: Mapping[str, Any]) -> tuple[Any, Hook]:
        # The hook counts steps from 0.
        return PowerSGDState(group, settings["rank"], start_powerSGD_iter=EARLIEST - 1), powerSGD_hook

    def _handed_on(self, bucket: GradBucket) -> tuple[int, int]:
        """Returns PyTorch's own count in the hook's state, which adds up what is left after compression."""
        before, self._counted = self._counted, self.hook_state.total_numel_after_compression
        return (self._counted - before, 3) if self._counted > before else super()._handed_on(bucket)

    @property
    def error(self) -> Tensor | None:
        """This worker's error, of shape (1, d), in the order of buckets; None before it compresses."""
        errors: dict[int, Tensor] = self.hook_state.error_dict
        return torch.cat([errors[bucket] for bucket in sorted(errors)]).unsqueeze(0) if errors else None

    def _expected_traffic(self, num_steps: int) -> Traffic:
        traffic, num_full = Traffic(), min(num_steps, EARLIEST - 1)
        traffic.add(Purpose.GRADIENT, 32 * self.flat.layout.numel * num_full, num_full)
        traffic.add(Purpose.GRADIENT, 32 * self._sent_numel * (num_steps - num_full), 3 * (num_steps - num_full))
        return traffic

    def state_dict(self) -> dict[str, Any]:
        """See `DistributedOptimizer`; "hook" is what the hook keeps. Q is drawn once, so no generator is saved."""
        held = {key: dict(getattr(self.hook_state, name)) for key, name in BY_BUCKET.items()}
        return {**super().state_dict(), "hook": {"steps": self.hook_state.iter, **held}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `DistributedOptimizer`.

        Raises:
            ValueError: see there; and a state without the hook's.
        """
        if "hook" not in state_dict:
            raise ValueError(f"this state does not fit {self.name}: it holds nothing of the hook's errors and factors")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "hook"})
        held = state_dict["hook"]
        self.hook_state.iter = held["steps"]
        for key, name in BY_BUCKET.items():
            own = {bucket: value.to(self.flat.parameters, copy=True) for bucket, value in held[key].items()}
            setattr(self.hook_state, name, own)


def wrapped(
    module: nn.Module, group: ProcessGroup | None, fixed_buckets: bool, bucket_cap_mb: float | None = None
) -> DistributedDataParallel:
    """The module in a DistributedDataParallel; parameters must be equal already, and buffers stay the worker's own.

    Args:
        fixed_buckets: buckets stay those of the start, and gradients stay where they are. Else it is as fast as can be:
            buckets are put in the order of gradients after the first step, and gradients are views of them.
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


def _is_contiguous(window: Window) -> bool:
    return torch.empty_strided(window.shape, window.strides, device="meta").is_contiguous()


def sent_numel(shape: tuple[int, ...], rank: int) -> int:
    """Numbers that the hook sends of a gradient of this shape."""
    rows = shape[0]
    columns = torch.Size(shape[1:]).numel()
    factors = min(rows, columns, rank) * (rows + columns)
    return factors if 2 * factors < rows * columns else rows * columns
