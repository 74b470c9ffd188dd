"""CSEA: no update is sent, a part of the error is averaged after every step ("error averaging").

Source: Xie et al., "CSER", NeurIPS 2020: CSER with H = 1 and C2 = zero.

    x_i <- x_i - p_i;   e_i <- e_i - p_i
    e'_i, s_i = PSync(e_i, C1);   x_i <- x_i - e_i + e'_i;   e_i <- s_i

Momentum, or AdamW's moments, are local: each worker's own, and never averaged.
Cost: 32 d / R1 bits per step for a sparsifier of ratio R1, one collective.
State: the momentum or the moments, and e_i where compressors do not share their support,
of 32 bits where parameters are of 16.
"""

from typing import Any, ClassVar

from cser_bench.algorithms.compressors.coordinates import TopK
from cser_bench.algorithms.core import Compressor, Identity, Layout
from cser_bench.algorithms.core.by_traffic import top_k_ratio
from cser_bench.algorithms.core.compressors import Zero
from cser_bench.algorithms.core.settings import fixed
from cser_bench.algorithms.cser import CSER


class CSEA(CSER):
    """CSEA.

    Begin with `error_compressor=TopK(192)`, which at 8 workers is 1/24 of DDP's traffic; see
    `TopK`.

    `at_traffic`: TopK(n / share), as in fashion_mnist_long and study_rules.

    Args: error_compressor: C1, any; explicit_error: see `CSER`.
    """

    name = "csea"
    formula = "32 d / R1"
    no_compression: ClassVar = {"error_compressor": Identity()}

    gradient_compressor: Compressor = fixed(Zero())
    reset_interval: int = fixed(1)

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        return {"error_compressor": TopK(top_k_ratio(share, world_size))}
