"""M-CSER as released: `cser_released` on the Nesterov update, which is what the published numbers were made with.

Source and switches: see `cser_released.py`. Cost: the same.
"""

from __future__ import annotations

from typing import Unpack

from torch.optim.optimizer import ParamsT

from algorithms.core.arguments import CommonButMomentum
from algorithms.core.compressors import SharedSupport
from algorithms.cser_released import CSERReleased


class MCSERReleased(CSERReleased):
    """As `CSERReleased`; the momentum must not be 0."""

    name = "mcser_released"

    def __init__(
        self,
        params: ParamsT,
        *,
        gradient_compressor: SharedSupport,
        error_compressor: SharedSupport,
        reset_interval: int,
        average_parameters: bool = True,
        skip_gradient_at_reset: bool = True,
        decay_in_momentum_only: bool = True,
        overwrite_master: bool = True,
        momentum: float = 0.9,
        **common: Unpack[CommonButMomentum],
    ) -> None:
        if momentum == 0:
            raise ValueError("mcser_released: the momentum must not be 0; without it the method is cser_released")
        super().__init__(
            params,
            gradient_compressor=gradient_compressor,
            error_compressor=error_compressor,
            reset_interval=reset_interval,
            average_parameters=average_parameters,
            skip_gradient_at_reset=skip_gradient_at_reset,
            decay_in_momentum_only=decay_in_momentum_only,
            overwrite_master=overwrite_master,
            momentum=momentum,
            **common,
        )
