"""CSER-PL: local steps, and a part of the error is averaged every H steps ("partial local SGD").

Source: Xie et al., "CSER", NeurIPS 2020: CSER with C2 = zero.

    x_i <- x_i - p_i;   e_i <- e_i - p_i
    every H steps:
        e'_i, s_i = PSync(e_i, C1);   x_i <- x_i - e_i + e'_i;   e_i <- s_i

In the release weight decay enters the momentum alone: `cser_released` with C2 = zero.
Momentum, or AdamW's moments, are local: each worker's own, and never averaged.
Cost: 32 d / (R1 H) bits per step on average for a sparsifier of ratio R1, one collective every H
steps.
State: the momentum or the moments, and e_i where compressors do not share their support,
of 32 bits where parameters are of 16.
"""

from typing import Any, ClassVar

from cser_bench.algorithms.compressors.quantisers import QuantisedBlocks
from cser_bench.algorithms.core import Compressor, Identity, Layout
from cser_bench.algorithms.core.by_traffic import nearest_interval
from cser_bench.algorithms.core.compressors import Zero
from cser_bench.algorithms.core.settings import fixed
from cser_bench.algorithms.cser import CSER


class CSERPL(CSER):
    """CSER-PL.

    Begin with `**CSERPL.at_traffic(1 / 24, world_size=8)`.

    `at_traffic`: QuantisedBlocks(4) every H steps, 0.129 / H of DDP's traffic, as in resnet_methods
    and gpt_text_methods.

    Args: error_compressor: C1, any; reset_interval: H; explicit_error: see `CSER`.
    """

    name = "cser_pl"
    formula = "32 d / (R1 H)"
    no_compression: ClassVar = {"error_compressor": Identity(), "reset_interval": 1}

    gradient_compressor: Compressor = fixed(Zero())

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        error_compressor = QuantisedBlocks(4)
        reset_interval = nearest_interval(cls.name, error_compressor, share, world_size)
        return {"error_compressor": error_compressor, "reset_interval": reset_interval}
