"""EF-SGD: what is not sent is kept as an error and added to the next update.

Source: Karimireddy et al., "Error feedback fixes SignSGD", ICML 2019; with several workers and
momentum, Zheng et al., "Communication-efficient distributed blockwise momentum SGD with
error-feedback", NeurIPS 2019.

    e_i <- e_i + p_i
    x   <- x - mean(C(e))
    e_i <- e_i - C(e_i)

The learning rate is inside the error; weight decay enters p_i, so it is compressed with the rest.
All workers hold the same x; the error is sent late. Momentum, or AdamW's moments, are local and
never averaged. Error feedback can also be on gradients (a switch), before the moments, which then
are the same on all workers:

    e_i <- e_i + g_i
    g   <- mean(C(e))
    e_i <- e_i - C(e_i)
    x   <- x - p of g

There weight decay is not compressed, and a learning rate that changes is that of the day when an
error arrives. `error_feedback_hook` is this in DDP. A frozen parameter stays, and all workers must
freeze the same.

With `decay_apart`, as in the code released with CSER, where EF-SGD is a baseline, weight decay is
not in p_i. It has a momentum of its own and is not compressed: v <- beta v + lambda x; x <- x - eta
(beta v + lambda x). Deviation: for fp16 the release keeps e_i in fp16, and rounds its fp32 master
copy of x to fp16 where something was received; here both are of the parameters' type.

With `drop_rest` what is not sent is lost, e_i <- 0: compression without a memory, as in QSGD
(Alistarh et al., NeurIPS 2017), here of the update with its momentum. It is what error feedback is
to be compared with.
Cost: 32 d / R bits per step for a sparsifier of ratio R, one collective; 64 d / R by top-k, which sends places too.
State: the momentum or the moments, and e_i; with `decay_apart` v.
"""

from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor

from cser_bench.algorithms.compressors.coordinates import TopK
from cser_bench.algorithms.core import (
    Compressor,
    DistributedOptimizer,
    Identity,
    Layout,
    Purpose,
    Replica,
    Stage,
    Windows,
)
from cser_bench.algorithms.core.by_traffic import top_k_ratio
from cser_bench.algorithms.local_steps.sgd import Nesterov

FedBack = Literal["updates", "gradients"]


class EFSGD(DistributedOptimizer):
    """EF-SGD.

    Begin with `compressor=TopK(192)`, which at 8 workers is 1/24 of DDP's traffic; see `TopK`.

    `at_traffic`: TopK(n / share), as in table_cnn, resnet_regime and fashion_mnist_long.

    Args:
        compressor: C, any.
        error_feedback_on: "updates", after momentum or moments, or "gradients", before them.
        drop_rest: forget what is not sent.
        decay_apart: weight decay has a momentum of its own and is not compressed.
    """

    name = "ef_sgd"
    family = "error feedback"
    formula = "32 d / R"
    no_compression: ClassVar = {"compressor": Identity()}
    workers_differ = False

    compressor: Compressor
    error_feedback_on: FedBack = "updates"
    drop_rest: bool = False
    decay_apart: bool = False

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        return {"compressor": TopK(top_k_ratio(share, world_size))}

    def _set_up(self, replica: Replica) -> None:
        self.on_gradients = self.error_feedback_on == "gradients"
        replica.new_buffer("error")
        if self.decay_apart:
            if self.on_gradients or self.local_step != "sgd":
                raise ValueError(
                    f"{self.name}: decay_apart is meant for SGD with error feedback on updates; "
                    "leave it out"
                )
            replica.new_buffer("decay_momentum")

    def stages(self, replica: Replica) -> list[Stage]:
        return [
            Stage(
                Purpose.GRADIENT,
                self.compressor,
                early=partial(self._error_to_send, replica),
            )
        ]

    def _error_to_send(self, replica: Replica, support: Windows) -> Tensor:
        e = replica.buffers["error"]
        # The error as the step will have it, on what is sent early: e_i + g_i, or e_i + p_i.
        if self.on_gradients:
            return support.gather(e).add_(support.gather(replica.flat.gradients))
        return replica.local.after(self._groups(), support, e)

    def _groups(self) -> list[dict[str, Any]]:
        """Return the groups' numbers in p_i."""
        if not self.decay_apart:
            return self.param_groups
        return [group | {"weight_decay": 0.0} for group in self.param_groups]

    def _update(self, replica: Replica, step: int) -> None:
        with replica.flat.frozen_aside(
            replica.buffers["error"], replica.flat.parameters
        ):
            self._compress_and_step(replica, step)

    def _compress_and_step(self, replica: Replica, step: int) -> None:
        g = replica.flat.gradients
        e = replica.buffers["error"]
        if self.on_gradients:
            # e_i <- e_i + g_i
            e.add_(g)
        else:
            # e_i <- e_i + p_i: the local step adds to e_i what it would take from x.
            replica.local.apply_(self._groups(), e)
            if self.decay_apart:
                # A step of the weight decay alone, with its own momentum.
                g.zero_()
                held = {"momentum": replica.buffers["decay_momentum"]}
                Nesterov(replica.flat, held).apply_(self.param_groups)
        # C(e_i), and the mean of all workers'.
        sent = replica.exchange(e, self.compressor, step, Purpose.GRADIENT)
        if self.drop_rest:
            e.zero_()
        else:
            # e_i <- e_i - C(e_i)
            sent.support.add_(e, sent.own, alpha=-1)
        if self.on_gradients:
            # g <- mean(C(e)), 0 where nobody sent
            sent.support.copy_(g.zero_(), sent.mean)
            replica.local_step_()
        else:
            # x <- x - mean(C(e))
            sent.support.add_(replica.flat.parameters, sent.mean, alpha=-1)
