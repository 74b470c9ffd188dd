"""Lightning's Trainer with EF-SGD: without DDP, validated and saved at the consensus; started
again, it goes on. EF-SGD sends one number in 192: on 8 GPUs 1/24 of DDP's traffic.

torchrun --nproc-per-node 2 examples/lightning_trainer.py [FOLDER]
"""

import os
import sys
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cser_bench.algorithms import (
    EFSGD,
    DistributedOptimizer,
    TopK,
    consensus_checkpoint,
    load_checkpoint,
    newest_checkpoint,
)


class ConsensusStrategy(DDPStrategy):
    """One optimiser a worker, no DDP. What is validated, saved as the model or left after `fit` is
    the average."""

    restore_checkpoint_after_setup = True  # when there is an optimiser
    _inside = ExitStack()

    def configure_ddp(self) -> None:
        """Wraps nothing: the optimiser averages, and refuses gradients that DDP has averaged."""

    def setup_optimizers(self, trainer: Trainer) -> None:
        for callback in trainer.callbacks:
            if any(
                kind.__name__.endswith("WeightAveraging")
                for kind in type(callback).__mro__
            ):
                raise ValueError(
                    f"{type(callback).__name__} would validate and keep each worker's own average; "
                    "keep one in the module, and name it in consensus(model, averages=[ema])"
                )
        super().setup_optimizers(trainer)
        if len(self.optimizers) != 1:
            raise ValueError(
                f"configure_optimizers gave {len(self.optimizers)} optimisers; this strategy averages "
                "and saves the parameters of one: give it all of them"
            )

    def on_validation_start(self) -> None:
        if self.optimizers:  # not in trainer.validate(), which has none
            self._inside.enter_context(
                self.optimizers[0].consensus(self.lightning_module)
            )

    def on_validation_end(self) -> None:
        self._inside.close()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        # a checkpoint at the end of a validation is written before that is over
        self._inside.close()
        return {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        others = checkpoint | {"optimizer_states": []}
        consensus_checkpoint(
            filepath, self.lightning_module, self.optimizers[0], trainer=others
        )

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # Each worker's own weights are for training alone: to test or predict is to use the average.
        module = self.lightning_module
        is_fitting = module.trainer.state.fn == TrainerFn.FITTING
        optimizer = self.optimizers[0] if is_fitting else None
        others = load_checkpoint(checkpoint_path, module, optimizer)
        # Lightning loads what is returned: the module as it is by now.
        return others["trainer"] | {"state_dict": module.state_dict()}

    def on_train_end(self) -> None:
        with self.optimizers[0].consensus(self.lightning_module):
            average = {
                key: value.clone()
                for key, value in self.lightning_module.state_dict().items()
            }
        self.lightning_module.load_state_dict(average)


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx), sync_dist=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.training_step(batch, batch_idx), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        self.print(
            f"epoch {self.current_epoch}: held-out loss {self.trainer.callback_metrics['loss']:.4f}"
        )

    def configure_optimizers(self) -> DistributedOptimizer:
        return EFSGD(
            self.parameters(), lr=0.1, momentum=0.9, model=self, compressor=TopK(192)
        )


inputs = torch.randn(5000, 20, generator=torch.Generator().manual_seed(0)).split(4000)
samples, held_out = (TensorDataset(part, part[:, :5].argmax(1)) for part in inputs)
folder = sys.argv[1] if len(sys.argv) > 1 else "checkpoint/lightning"
keep = ModelCheckpoint(
    folder, monitor="loss", save_top_k=2, enable_version_counter=False
)
size = {
    "devices": int(os.environ["LOCAL_WORLD_SIZE"]),
    "num_nodes": int(os.environ["GROUP_WORLD_SIZE"]),
}
trainer = Trainer(
    strategy=ConsensusStrategy(), max_epochs=4, callbacks=[keep], logger=False, **size
)
batches = DataLoader(samples, 32, shuffle=True), DataLoader(held_out, 200)
trainer.fit(Classifier(), *batches, ckpt_path=newest_checkpoint(folder))
# What is tested is the workers' average, of the best checkpoint as of the last, by this Trainer or a new one.
[scores] = trainer.test(dataloaders=batches[1], ckpt_path="best", verbose=False)
if trainer.is_global_zero:
    print(f"best: test loss {scores['test_loss']:.4f}")
    optimizer = trainer.optimizers[0]
    print(
        f"sent by this worker: {optimizer.traffic.training_bits / 8e6:.3f} MB; on its link "
        f"{optimizer.traffic_share(max(2, trainer.world_size)):.4f} of DDP's traffic, on 8 GPUs "
        f"{optimizer.traffic_share(8):.4f}"
    )
