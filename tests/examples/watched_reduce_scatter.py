"""An example with FSDP2 as it stands, watched: what each of its compressed reduce-scatters made of
the gradients.

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
    """Return the mean of all ranks' rows, in 64 bits."""
    total = rows.double()
    dist.all_reduce(total)
    return total[dist.get_rank()] / dist.get_world_size()


class Watched:
    """A reduce-scatter, and the exact sums beside it."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.allocate = inner, inner.allocate
        self.exact, self.applied = torch.zeros(()).double(), torch.zeros(()).double()

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
    ) -> None:
        self.exact = self.exact + mean_of_own_slice(input_tensor.view(group.size(), -1))
        self.inner(output_tensor, input_tensor, group, op)
        self.applied = self.applied + output_tensor.double()

    def facts(self) -> dict[str, Any]:
        kept = 0 if self.inner.error is None else mean_of_own_slice(self.inner.error)
        return {
            "bits": self.inner.compressor.bits,
            "payload_bits": self.inner.payload_bits,
            "is_fed_back": self.inner.error is not None,
            "lost": float(
                (self.exact - self.applied - kept).abs().max() / self.exact.abs().max()
            ),
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
