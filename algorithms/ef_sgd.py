"""EF-SGD: what is not sent is kept as an error and added to the next update.

Source: Karimireddy et al., "Error feedback fixes SignSGD", ICML 2019; with several workers and momentum, Zheng et al.,
"Communication-efficient distributed blockwise momentum SGD with error-feedback", NeurIPS 2019.

    e_i <- e_i + p_i
    x   <- x - mean(C(e))
    e_i <- e_i - C(e_i)

The learning rate is inside the error; weight decay enters p_i, so it is compressed with the rest. All workers hold
the same x; the error is sent late.
With `drop_rest` what is not sent is lost, e_i <- 0: compression without a memory, as in QSGD (Alistarh et al., NeurIPS
2017), here of the update with its momentum. It is what error feedback is to be compared with.
Cost: 32 d / R bits per step for a sparsifier of ratio R, one collective.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Unpack

from torch.optim.optimizer import ParamsT

from algorithms.compressors.block import BlockSparsifier
from algorithms.core.arguments import Common
from algorithms.core.compressors import Compressor, Identity
from algorithms.core.layout import Layout
from algorithms.core.optimizer import DistributedOptimizer
from algorithms.core.stages import Stage
from algorithms.core.traffic import Purpose


class EFSGD(DistributedOptimizer):
    """Args: compressor: C, any; drop_rest: forget what is not sent; the rest as in `DistributedOptimizer`."""

    name = "ef_sgd"
    formula = "32 d / R"
    no_compression: ClassVar = {"compressor": Identity()}
    workers_differ = False

    def __init__(
        self, params: ParamsT, *, compressor: Compressor, drop_rest: bool = False, **common: Unpack[Common]
    ) -> None:
        super().__init__(params, **common)
        self.check_compressors(compressor=compressor)
        self.compressor = compressor
        self.drop_rest = drop_rest
        self.e = self.new_buffer("error")

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        return {"compressor": BlockSparsifier(ratio)}

    def stages(self) -> list[Stage]:
        error_after_step = partial(self.after_local_step, target=self.e, sign=+1)
        return [Stage(Purpose.GRADIENT, self.compressor, early=error_after_step)]

    def _update(self, step: int) -> None:
        self.local_step_(self.e, sign=+1)
        sent = self.exchange(self.e, self.compressor, step, Purpose.GRADIENT)
        sent.support.add_(self.flat.parameters, sent.mean, alpha=-1)
        if self.drop_rest:
            self.e.zero_()
        else:
            sent.support.add_(self.e, sent.own, alpha=-1)
