"""M-CSER: CSER on the Nesterov update.

Source: Xie et al., "CSER", NeurIPS 2020, the algorithm with momentum:

    m_i <- beta m_i + g_i;   p_i = eta (beta m_i + g_i);   then as CSER

The momentum is local and is not averaged. The paper's experiments, also where its tables say CSER, are with momentum.
Cost: as CSER. State: the momentum, and with block sparsifiers nothing else.
"""

from __future__ import annotations

from typing import Unpack

from torch.optim.optimizer import ParamsT

from algorithms.core.arguments import CommonButMomentum
from algorithms.core.compressors import Compressor
from algorithms.cser import CSER


class MCSER(CSER):
    """As `CSER`; the momentum must not be 0."""

    name = "mcser"

    def __init__(
        self,
        params: ParamsT,
        *,
        gradient_compressor: Compressor,
        error_compressor: Compressor,
        reset_interval: int,
        explicit_error: bool = False,
        momentum: float = 0.9,
        **common: Unpack[CommonButMomentum],
    ) -> None:
        if momentum == 0:
            raise ValueError("mcser: the momentum must not be 0; without momentum the method is cser")
        super().__init__(
            params,
            gradient_compressor=gradient_compressor,
            error_compressor=error_compressor,
            reset_interval=reset_interval,
            explicit_error=explicit_error,
            momentum=momentum,
            **common,
        )
