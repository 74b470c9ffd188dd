"""QSparse-local-SGD: now and then the compressed difference to a common anchor is averaged.

Source: Basu et al., "Qsparse-local-SGD", NeurIPS 2019, algorithm 1 (synchronous).

    y_i <- y_i - p_i                       (y_i is what the worker trains; the anchor x is common)
    every H steps:
        e_i <- e_i + x - y_i
        x   <- x - mean(C(e))
        e_i <- e_i - C(e_i)
        y_i <- x

Weight decay enters p_i and acts on y_i. With `decay_in_momentum_only`, as in the code released with
CSER, where this is a baseline, it is left out of the direct term: m_i <- beta m_i + g_i + lambda
y_i; p_i = eta (beta m_i + g_i). With `keep_master`, as released for fp16, each worker has a master
copy z_i in addition to y_i, the network's weights. A synchronisation resets z_i only where something was
sent, so all that z_i has moved by elsewhere enters the error again at each: what waits for k of
them is sent about (k + 1) / 2 times over, and errors may grow without end. Gradients are of y_i,
weight decay is of z_i in the place of y_i, and p_i is subtracted from z_i:

    z_i <- z_i - p_i;  y_i <- z_i
    every H steps: as above, and z_i <- x where C sent

Deviation: error and anchor are of the parameters' type, and messages in fp16 keep what rounding
took; those of the release are in fp16 themselves, so what rounding takes is lost there, also from
the master copy where it is reset.

Momentum, or AdamW's moments, are local and never averaged.
Cost: 32 d / (R1 H) bits per step on average for a sparsifier of ratio R1, one collective every H
steps.
State: the momentum or the moments, e_i and x; with `keep_master` z_i.
"""

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from cser_bench.algorithms.compressors.quantisers import QuantisedBlocks
from cser_bench.algorithms.core import (
    Compressor,
    Count,
    DistributedOptimizer,
    Identity,
    Layout,
    Purpose,
    Replica,
    SharedSupport,
    Stage,
    Windows,
)
from cser_bench.algorithms.core.by_traffic import nearest_interval
from cser_bench.algorithms.local_steps.sgd import DecayInMomentumOnly


class QSparseLocalSGD(DistributedOptimizer):
    """QSparse-local-SGD.

    Begin with `compressor=QuantisedBlocks(4), sync_interval=4`.

    `at_traffic`: QuantisedBlocks(4) every H steps, 0.129 / H of DDP's traffic, as in table_cnn,
    resnet_methods, gpt_text_methods and study_gpt_text_every_step.

    Args:
        compressor: C, any.
        sync_interval: H, in steps.
        keep_master: as released for fp16, a synchronisation resets a master copy only where
            something was sent. C must have a support that all workers share, as block has. Until
            the next step the parameters are the anchor, and what is done to them there is lost.
        decay_in_momentum_only: the weight decay is left out of the direct term of the Nesterov
            update.
    """

    name = "qsparse_local_sgd"
    family = "error feedback"
    formula = "32 d / (R1 H)"
    no_compression: ClassVar = {
        "compressor": Identity(),
        "sync_interval": 1,
        "keep_master": False,
    }

    compressor: Compressor
    sync_interval: Count
    keep_master: bool = False
    decay_in_momentum_only: bool = False

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        compressor = QuantisedBlocks(4)
        sync_interval = nearest_interval(cls.name, compressor, share, world_size)
        return {"compressor": compressor, "sync_interval": sync_interval}

    def _set_up(self, replica: Replica) -> None:
        if self.decay_in_momentum_only:
            if self.local_step != "sgd":
                raise ValueError(
                    f"{self.name}: decay_in_momentum_only is meant for SGD's momentum; leave it out"
                )
            replica.local = DecayInMomentumOnly(replica.flat, replica.buffers)
        replica.new_buffer("error")
        replica.new_buffer("anchor", like=replica.flat.parameters)
        if self.keep_master:
            if not isinstance(replica.fitted(self.compressor), SharedSupport):
                raise ValueError(
                    f"{self.name}: keep_master needs a compressor with a support that all workers "
                    "share, as block has; leave keep_master out"
                )
            replica.new_buffer("master", like=replica.flat.parameters)

    def stages(self, replica: Replica) -> list[Stage]:
        # A step right after a synchronisation is from the master copy, which is not there during
        # the backward pass.
        early = partial(_error_after_step, replica)
        stage = Stage(
            Purpose.MODEL, self.compressor, every=self.sync_interval, early=early
        )
        if self.keep_master and self.sync_interval == 1:
            stage = replace(stage, early=None)
        return [stage]

    def _agree_after(self, replica: Replica, num_steps: int) -> bool:
        return num_steps % self.sync_interval == 0

    def _update(self, replica: Replica, step: int) -> None:
        if self.keep_master and (step - 1) % self.sync_interval == 0:
            self._return_to_master(replica)
        replica.local_step_()
        if step % self.sync_interval:
            return
        y = replica.flat.parameters
        with replica.flat.frozen_aside(
            y, replica.buffers["error"], replica.buffers["anchor"]
        ):
            self._synchronise(replica, step)
        if self.keep_master:
            # So that a parameter which is trained again goes on from what it is.
            for here in replica.flat.frozen_slices():
                replica.buffers["master"][:, here] = y[:, here]

    def _return_to_master(self, replica: Replica) -> None:
        y = replica.flat.parameters
        with replica.flat.frozen_aside(y):
            y.copy_(replica.buffers["master"])

    def _synchronise(self, replica: Replica, step: int) -> None:
        y = replica.flat.parameters
        x = replica.buffers["anchor"]
        # e_i <- e_i + x - y_i, of shape (local workers, d)
        e = replica.buffers["error"].add_(x).sub_(y)
        sent = replica.exchange(e, self.compressor, step, Purpose.MODEL)
        # x <- x - mean(C(e));   e_i <- e_i - C(e_i)
        sent.support.add_(x, sent.mean, alpha=-1)
        sent.support.add_(e, sent.own, alpha=-1)
        if self.keep_master:
            # z_i <- x where C sent, else it stays at y_i, which the local steps left.
            z = replica.buffers["master"].copy_(y)
            sent.support.copy_(z, sent.support.gather(x))
        y.copy_(x)


def _error_after_step(replica: Replica, support: Windows) -> Tensor:
    """Return e_i + x - y_i as the local step will leave it."""
    e = support.gather(replica.buffers["error"])
    x = support.gather(replica.buffers["anchor"])
    return e.add_(x).sub_(replica.after_local_step(support))
