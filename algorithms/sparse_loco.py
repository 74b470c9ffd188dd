"""SparseLoCo: DiLoCo whose workers send the largest of what they moved, and keep the rest.

Source: Sarfi et al., "Communication efficient LLM pre-training with SparseLoCo", arXiv 2508.15706,
2025.

    x_i <- x_i - p_i                       (inner step; x is common, x_i what the worker trains)
    every H steps:
        e_i <- beta e_i + (x - x_i)
        x   <- x - alpha mean(C(e))
        e_i <- e_i - C(e_i)
        x_i <- x

C is the source's Q(Top-k(.)), the compressor `chunk_top_k`. The decaying error stands for an outer
momentum, of which there is none. With beta = 1 and alpha = 1 this is QSparse-local-SGD. The inner
momentum, or AdamW's moments, are local and are kept.

Deviations: the source's inner optimiser is local_step = "adamw", by default it is SGD. The authors'
releases, CCLoco (tplr-y/CCLoco, src/tplr/ccloco.py) and Templar (tplr-ai/templar,
src/tplr/neurons.py), take the mean over those workers that sent a number, Templar of numbers
clipped to the workers' median norm; the paper, as here, over all as they are. Both apply alpha
twice, where the error takes up what a worker moved by and where an outer SGD takes the mean:

    e_i <- beta e_i + alpha (x - x_i);   x <- x - alpha mean(C(e))

Here, as in the paper, it is applied once. So their alpha is outer_lr = alpha^2 here; errors are 1 /
alpha of theirs. Their files of settings have alpha = 1, where this changes nothing; by default
CCLoco's is 0.7.
Cost: what C sends, every H steps, by one all-gather.
State: the momentum or the moments, e_i and x.
"""

from typing import Any, ClassVar

from cser_bench.algorithms.compressors.coordinates import ChunkTopK
from cser_bench.algorithms.core import Identity, Layout, Purpose, Replica, Stage, fixed
from cser_bench.algorithms.core.by_traffic import share_at_every_step
from cser_bench.algorithms.core.settings import Positive, Share
from cser_bench.algorithms.qsparse_local_sgd import QSparseLocalSGD


class SparseLoCo(QSparseLocalSGD):
    """SparseLoCo.

    Begin with `compressor=ChunkTopK(), sync_interval=4`.

    `at_traffic`: ChunkTopK(kept=...) every 8 steps, as in resnet_methods and gpt_text_methods.

    Args:
        compressor: C, any.
        sync_interval: H, in steps.
        outer_lr: alpha, above 0, which no schedule changes.
        error_decay: beta, in [0, 1].
    """

    name = "sparse_loco"
    family = "local steps"
    no_compression: ClassVar = {
        "compressor": Identity(),
        "sync_interval": 1,
        "outer_lr": 1.0,
        "error_decay": 1.0,
    }
    tried_with: ClassVar = {"outer_lr": 0.8, "error_decay": 0.9}

    outer_lr: Positive = 1.0
    error_decay: Share = 0.95
    keep_master: bool = fixed(False)
    decay_in_momentum_only: bool = fixed(False)

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        interval = 8
        one_of_a_chunk = share_at_every_step(ChunkTopK(kept=1), world_size) / interval
        kept = max(1, round(share / one_of_a_chunk))
        most = ChunkTopK.chunk_size
        if kept > most:
            raise ValueError(
                f"{cls.name}: whole chunks every {interval} steps are {most * one_of_a_chunk:.3g} of "
                f"DDP's traffic, so it cannot have {share:.3g}; ask for less, or give its settings "
                "themselves"
            )
        return {"compressor": ChunkTopK(kept=kept), "sync_interval": interval}

    def stages(self, replica: Replica) -> list[Stage]:
        return [Stage(Purpose.MODEL, self.compressor, every=self.sync_interval)]

    def _update(self, replica: Replica, step: int) -> None:
        replica.local_step_()
        if step % self.sync_interval:
            return
        local = replica.flat.parameters
        x = replica.buffers["anchor"]
        e = replica.buffers["error"]
        with replica.flat.frozen_aside(e, x, local):
            # e_i <- beta e_i + (x - x_i), of shape (local workers, d)
            e.mul_(self.error_decay).add_(x).sub_(local)
            sent = replica.exchange(e, self.compressor, step, Purpose.MODEL)
            # The product is rounded before it is added, so that no bit depends on where a
            # kernel's vectors begin.
            # x <- x - alpha mean(C(e))
            sent.support.add_(x, sent.mean * self.outer_lr, alpha=-1)
            sent.support.add_(e, sent.own, alpha=-1)
            local.copy_(x)
