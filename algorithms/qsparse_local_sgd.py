"""QSparse-local-SGD: local steps; now and then the compressed difference to a common anchor is averaged.

Source: Basu et al., "Qsparse-local-SGD", NeurIPS 2019, algorithm 1 (synchronous).

    y_i <- y_i - p_i                       (anchor x, the same on all workers; y_i what the worker trains)
    every H steps:
        e_i <- e_i + x - y_i
        x   <- x - mean(C(e))
        e_i <- e_i - C(e_i)
        y_i <- x

Weight decay enters p_i and acts on y_i.
Cost: 32 d / (R1 H) bits per step on average for a sparsifier of ratio R1, one collective every H steps.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from algorithms.core.arguments import Common
from algorithms.core.compressors import Compressor, Identity
from algorithms.core.layout import Windows
from algorithms.core.optimizer import DistributedOptimizer, require_interval
from algorithms.core.overlap import Foretold, foretell, stepped
from algorithms.core.traffic import Purpose, Traffic


class QSparseLocalSGD(DistributedOptimizer):
    """QSparse-local-SGD.

    Args:
        compressor: C, any.
        sync_interval: H, in steps.
        keep_master: as released for fp16, a synchronisation does not reset y_i, the fp32 master copy, so that its drift
            from the anchor enters the error again each time.
        common: see `DistributedOptimizer`.
    """

    name = "qsparse_local_sgd"
    formula = "32 d / (R1 H)"
    no_compression: ClassVar = {"compressor": Identity(), "sync_interval": 1, "keep_master": False}

    def __init__(
        self,
        params: ParamsT,
        *,
        compressor: Compressor,
        sync_interval: int,
        keep_master: bool = False,
        **common: Unpack[Common],
    ) -> None:
        require_interval(self.name, "sync_interval", sync_interval)
        super().__init__(params, **common)
        self.check_compressors(compressor=compressor)
        self.compressor = compressor
        self.sync_interval = sync_interval
        self.keep_master = keep_master
        self.e = self.new_buffer("error")
        self.x = self.new_buffer("anchor", like=self.flat.parameters)

    def expected_traffic(self, num_steps: int) -> Traffic:
        traffic = Traffic()
        syncs = range(self.sync_interval, num_steps + 1, self.sync_interval)
        cost = self.cost(self.compressor, Purpose.MODEL, syncs)
        traffic.add_entry(Purpose.MODEL, cost)
        return traffic

    def agree_after(self, num_steps: int) -> bool:
        return not self.keep_master and num_steps % self.sync_interval == 0

    def foretold(self, step: int) -> list[Foretold]:
        if step % self.sync_interval:
            return []
        return foretell(self, self.compressor, step, Purpose.MODEL, self._foretold_error)

    def _foretold_error(self, support: Windows) -> Tensor:
        return support.gather(self.e).add_(support.gather(self.x)).sub_(stepped(self, support))

    def _update(self, step: int) -> None:
        self.local_step_()
        if step % self.sync_interval:
            return
        y = self.flat.parameters
        self.e.add_(self.x).sub_(y)
        sent = self.exchange(self.e, self.compressor, step, Purpose.MODEL)
        sent.support.add_(self.x, sent.mean, alpha=-1)
        sent.support.add_(self.e, sent.own, alpha=-1)
        if not self.keep_master:
            y.copy_(self.x)
