"""DDP with PyTorch's PowerSGD hook, as people have it; `powersgd` is the paper's.

Source: PyTorch's `powerSGD_hook`, after Vogels et al., "PowerSGD", NeurIPS 2019, algorithms 1 and
2.

    M_i <- g_i + e_i                    of each tensor, seen as (first axis, rest), that is worth it
    P <- mean(M Q);  P <- orthonormal basis of its columns
    Q_i <- M_i^T P;  Q <- mean(Q)       kept for the next step, then made orthonormal
    g <- P Q^T;  e_i <- M_i - P Q^T     and of other tensors g <- mean(g)

A tensor is worth it where 2 r (rows + columns) < rows x columns, r being at most the smaller side.
The error, which is taken with the mean Q, adds up each worker's distance to the mean gradient. The
first two steps send everything. A gradient that is not finite spoils the error for ever, so loss
scaling is refused.
Cost: 32 (sum of r (rows + columns) over such tensors + other numbers) bits per step, three
all-reduces of each of DDP's buckets, which are counted as three in all. In the first two steps: 32
d bits, one all-reduce.
State: the momentum or the moments, DDP's buckets, e_i, and Q of every tensor that is worth it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed import GradBucket, ProcessGroup  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    powerSGD_hook,
)

from cser_bench.algorithms.baselines.ddp import DDP, Hook
from cser_bench.algorithms.core import Count, Purpose, Replica, Traffic
from cser_bench.algorithms.core.layout import Window

EARLIEST = 3
"""The first step that the hook can compress: it was made for buckets that change after the first
one."""

BY_BUCKET = {
    "errors": "error_dict",
    "left_factors": "p_memory_dict",
    "right_factors": "q_memory_dict",
}
"""The parts of the hook's state that ours holds by bucket, with the hook's names for them."""


class DDPPowerSGD(DDP):
    """Args: rank: r, of a matrix at most its smaller side."""

    name = "ddp_powersgd"
    formula = "32 (sum of r (rows + columns) + other numbers)"
    no_compression: ClassVar = None
    tried_with: ClassVar = {"rank": 1}
    state_is_common = False
    needs_contiguous = True
    survives_overflow = False

    rank: Count

    def _set_up(self, replica: Replica) -> None:
        super()._set_up(replica)
        tensors = replica.flat.layout.tensors
        if not all(tensor.shape and _is_contiguous(tensor) for tensor in tensors):
            raise ValueError(
                f"{self.name}: PyTorch's hook takes parameters of one axis or more that are "
                "contiguous; make the model so, or take powersgd"
            )
        self._counted = 0
        self._sent_numel = 0
        self.hook_numel = replica.flat.layout.numel
        for tensor in tensors:
            numel = sent_numel(tensor.shape, self.rank)
            self._sent_numel += numel
            if numel < tensor.numel:  # compressed, so that its factors are kept
                self.hook_numel += numel

    @classmethod
    def hook(
        cls, group: ProcessGroup | None, settings: Mapping[str, Any]
    ) -> tuple[Any, Hook]:
        # The hook counts steps from 0.
        first = EARLIEST - 1
        state = PowerSGDState(group, settings["rank"], start_powerSGD_iter=first)
        return state, powerSGD_hook

    def _handed_on(self, bucket: GradBucket) -> tuple[int, int]:
        """Return PyTorch's own count, which adds up what is left after compression."""
        before = self._counted
        self._counted = self.hook_state.total_numel_after_compression
        if self._counted == before:  # not compressed yet
            return super()._handed_on(bucket)
        return self._counted - before, 3

    @property
    def error(self) -> Tensor | None:
        """This worker's error, of shape (1, d), in the order of buckets.

        None before it compresses.
        """
        errors: dict[int, Tensor] = self.hook_state.error_dict
        if not errors:
            return None
        in_order = [errors[bucket] for bucket in sorted(errors)]
        return torch.cat(in_order).unsqueeze(0)

    def _expected_traffic(self, replica: Replica, num_steps: int) -> Traffic:
        traffic = Traffic()
        num_full = min(num_steps, EARLIEST - 1)
        num_compressed = num_steps - num_full
        # The first steps send gradients whole, one all-reduce each as they are counted.
        full_bits = 32 * replica.flat.layout.numel * num_full
        traffic.add(Purpose.GRADIENT, full_bits, num_full)
        # Three all-reduces: P, Q and what is not compressed.
        compressed_bits = 32 * self._sent_numel * num_compressed
        traffic.add(Purpose.GRADIENT, compressed_bits, 3 * num_compressed)
        return traffic

    def state_dict(self) -> dict[str, Any]:
        """See `DistributedOptimizer`; "hook" is what the hook keeps.

        Q is drawn once, so no generator is saved.
        """
        hook = {"steps": self.hook_state.iter}
        for key, name in BY_BUCKET.items():
            hook[key] = dict(getattr(self.hook_state, name))
        return {**super().state_dict(), "hook": hook}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `DistributedOptimizer`.

        Raises:
            ValueError: see there; and a state without the hook's.
        """
        if "hook" not in state_dict:
            raise ValueError(
                f"this state does not fit {self.name}: it holds nothing of the hook's errors and "
                "factors"
            )
        state = dict(state_dict)
        del state["hook"]
        super().load_state_dict(state)
        held = state_dict["hook"]
        self.hook_state.iter = held["steps"]
        for key, name in BY_BUCKET.items():
            values = {}
            for bucket, value in held[key].items():
                # On this device and in this dtype, whatever the state was saved in.
                values[bucket] = value.to(self.flat.parameters, copy=True)
            setattr(self.hook_state, name, values)


def _is_contiguous(window: Window) -> bool:
    tensor = torch.empty_strided(window.shape, window.strides, device="meta")
    return tensor.is_contiguous()


def sent_numel(shape: tuple[int, ...], rank: int) -> int:
    """Return how many numbers the hook sends of a gradient of this shape."""
    rows = shape[0]
    columns = torch.Size(shape[1:]).numel()
    # P is (rows, r), Q is (columns, r).
    factors = min(rows, columns, rank) * (rows + columns)
    if 2 * factors < rows * columns:
        return factors
    return rows * columns
