"""An example with FSDP2 as it stands, watched: what each of its compressed reduce-scatters made of the gradients.

torchrun ... tests/examples/watched_reduce_scatter.py LOG SCRIPT

For each of them a line goes to LOG, with the rank in its name.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

set_custom_reduce_scatter = FSDPModule.set_custom_reduce_scatter
watched: list[Watched] = []


def mean_of_own_slice(rows: Tensor) -> Tensor:
    """Of all ranks' rows, in 64 bits."""
    total = rows.double()
    dist.all_reduce(total)
    return total[dist.get_rank()] / dist.get_world_size()


class Watched:
    """A reduce-scatter, and the exact sums beside it."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.bits, self.allocate = inner, inner.compressor.bits, inner.allocate
        self.num_calls = self.numel = 0
        self.exact, self.applied = torch.zeros(()).double(), torch.zeros(()).double()
        self.worst, self.refused = 0.0, ""

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any) -> None:
        gradient = input_tensor.view(group.size(), -1).clone()
        self.num_calls, self.numel = self.num_calls + 1, gradient.shape[1]
        to_send = gradient if self.inner.error is None else gradient + self.inner.error
        try:
            self.inner(output_tensor, input_tensor, group, dist.ReduceOp.SUM)
        except ValueError as error:
            self.refused = str(error)
        self.inner(output_tensor, input_tensor, group, op)
        self.exact, self.applied = self.exact + mean_of_own_slice(gradient), self.applied + output_tensor.double()
        if self.bits > 1:  # Rounded to the nearest, a number is off by half a step of its block at most.
            size = self.inner.compressor.block_size
            largest = torch.nn.functional.pad(to_send.abs(), (0, -self.numel % size)).view(len(gradient), -1, size)
            step = largest.amax(dim=2) / (2 ** (self.bits - 1) - 1)
            bound = mean_of_own_slice(step / 2).repeat_interleave(size)[: self.numel]
            off = (output_tensor - mean_of_own_slice(to_send)).abs()
            self.worst = max(self.worst, float((off / bound.clamp(min=1e-12)).max()))

    def facts(self) -> dict[str, Any]:
        kept = 0 if self.inner.error is None else mean_of_own_slice(self.inner.error)
        lost = (self.exact - self.applied - kept).abs().max() / self.exact.abs().max()
        names = "bits", "num_calls", "numel", "worst", "refused"
        return {name: getattr(self, name) for name in names} | {
            "payload_bits": self.inner.payload_bits,
            "is_fed_back": self.inner.error is not None,
            "lost": float(lost),
        }


def watch(module: FSDPModule, inner: Any) -> None:
    watched.append(Watched(inner))
    set_custom_reduce_scatter(module, watched[-1])


def write() -> None:
    with open(f"{sys.argv[1]}-{os.environ['RANK']}.jsonl", "w") as log:
        log.writelines(json.dumps(each.facts()) + "\n" for each in watched)
    end()


end, dist.destroy_process_group = dist.destroy_process_group, write
FSDPModule.set_custom_reduce_scatter = watch
runpy.run_path(sys.argv[2], run_name="__main__")
