"""DDP with its fp16 hook: gradients are rounded to 16 bits, averaged so, and made 32 bits again.

Source: PyTorch's `fp16_compress_hook`.

    g <- fp32(sum(fp16(g_i) / n))           added in 16 bits, by the backend
    m <- beta m + g + lambda x;  x <- x - eta (beta m + g + lambda x)

What rounding loses is lost; there is no error feedback. A number beyond 65,504 becomes infinite.
Cost: 16 d bits per step, in DDP's buckets, which are counted as one collective.
State: the momentum or the moments, and DDP's buckets.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch.distributed import ProcessGroup
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

from cser_bench.algorithms.baselines.ddp import DDP, Hook


class DDPFp16(DDP):
    name = "ddp_fp16"
    formula = "16 d"
    no_compression: ClassVar = None
    bits_per_number = 16

    @classmethod
    def hook(
        cls, group: ProcessGroup | None, settings: Mapping[str, Any]
    ) -> tuple[Any, Hook]:
        return group, fp16_compress_hook
