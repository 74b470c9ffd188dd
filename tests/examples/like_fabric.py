"""A small trainer that has the lines of Fabric's build_your_own_trainer which the guide's difference changes.

torchrun ... like_fabric.py FOLDER
"""

# Written as Fabric's own lines are.
# ruff: noqa
# fmt: off
import os
import sys
from functools import partial
from typing import Any, Mapping, Optional, Union

import lightning as L
import torch
from lightning_utilities import apply_to_collection
from torch.utils.data import DataLoader, TensorDataset


class MyCustomTrainer:
    def __init__(self, accelerator, strategy, devices, precision, max_epochs, checkpoint_dir):
        self.fabric = L.Fabric(accelerator=accelerator, strategy=strategy, devices=devices, precision=precision)
        self.global_step = 0
        self.current_epoch = 0
        self.max_epochs = max_epochs
        self.should_stop = False
        self.checkpoint_dir = checkpoint_dir

    def fit(self, model, train_loader, val_loader, ckpt_path=None):
        self.fabric.launch()
        train_loader = self.fabric.setup_dataloaders(train_loader)
        val_loader = self.fabric.setup_dataloaders(val_loader)

        optimizer, scheduler_cfg = model.configure_optimizers()
        model, optimizer = self.fabric.setup(model, optimizer)

        # assemble state (current epoch and global step will be added in save)
        state = {"model": model, "optim": optimizer, "scheduler": scheduler_cfg}

        # load last checkpoint if available
        if ckpt_path is not None and os.path.isdir(ckpt_path):
            latest_checkpoint_path = self.get_latest_checkpoint(self.checkpoint_dir)
            if latest_checkpoint_path is not None:
                self.load(state, latest_checkpoint_path)

                # check if we even need to train here
                if self.max_epochs is not None and self.current_epoch >= self.max_epochs:
                    self.should_stop = True

        while not self.should_stop:
            self.train_loop(
                model, optimizer, train_loader, limit_batches=float("inf"), scheduler_cfg=scheduler_cfg
            )

            if self.should_validate:
                self.val_loop(model, val_loader, limit_batches=self.limit_val_batches)

            self.step_scheduler(model, scheduler_cfg, level="epoch", current_value=self.current_epoch)

            self.current_epoch += 1
            if self.max_epochs is not None and self.current_epoch >= self.max_epochs:
                self.should_stop = True

            self.save(state)

    should_validate = True
    limit_val_batches = float("inf")

    def train_loop(self, model, optimizer, train_loader, limit_batches, scheduler_cfg):
        for batch_idx, batch in enumerate(train_loader):
            optimizer.step(partial(self.training_step, model=model, batch=batch, batch_idx=batch_idx))
            optimizer.zero_grad()
            self.global_step += 1

    def val_loop(self, model, val_loader, limit_batches):
        model.eval()
        torch.set_grad_enabled(False)
        for batch_idx, batch in enumerate(val_loader):
            out = model.validation_step(batch, batch_idx)
            # avoid gradients in stored/accumulated values -> prevents potential OOM
            out = apply_to_collection(out, torch.Tensor, lambda x: x.detach())
            self._current_val_return = out
        model.train()
        torch.set_grad_enabled(True)
        print(f"epoch {self.current_epoch}: loss {self._current_val_return['loss']:.4f}")

    def training_step(self, model, batch, batch_idx):
        outputs = model.training_step(batch, batch_idx=batch_idx)
        loss = outputs["loss"]
        self.fabric.backward(loss)
        return loss

    def step_scheduler(self, model, scheduler_cfg, level, current_value):
        monitor = self._current_val_return["loss"]
        # rely on model hook for actual step
        model.lr_scheduler_step(scheduler_cfg["scheduler"], monitor)

    def load(self, state: Optional[Mapping], path: str) -> None:
        if state is None:
            state = {}

        remainder = self.fabric.load(path, state)
        self.global_step = remainder.pop("global_step")
        self.current_epoch = remainder.pop("current_epoch")

        if remainder:
            raise RuntimeError(f"Unused Checkpoint Values: {remainder}")

    def save(self, state: Optional[Mapping]) -> None:
        if state is None:
            state = {}

        state.update(global_step=self.global_step, current_epoch=self.current_epoch)

        self.fabric.save(os.path.join(self.checkpoint_dir, f"epoch-{self.current_epoch:04d}.ckpt"), state)

    @staticmethod
    def get_latest_checkpoint(checkpoint_dir: str) -> Optional[str]:
        items = sorted(os.listdir(checkpoint_dir))
        return os.path.join(checkpoint_dir, items[-1])


class MNISTModule(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(64, 4)
        self.loss_fn = torch.nn.CrossEntropyLoss()

    def forward(self, x: torch.Tensor):
        return self.model(x)

    def training_step(self, batch, batch_idx: int):
        x, y = batch

        logits = self(x)
        assert logits.dtype is torch.bfloat16, "the autocast is lost"
        return {"loss": self.loss_fn(logits.float(), y)}

    def configure_optimizers(self):
        optim = torch.optim.Adam(self.parameters(), lr=1e-4)
        return optim, {
            "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optim, mode="max"),
            "monitor": "val_accuracy",
            "interval": "epoch",
            "frequency": 1,
        }

    def validation_step(self, *args, **kwargs):
        return self.training_step(*args, **kwargs)


def made_up(num_images, seed):
    images = 100 * torch.randn(num_images, 64, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(images, images[:, :4].argmax(1))


def train(model):
    train_loader = DataLoader(made_up(512, 1), batch_size=16, shuffle=True)
    val_loader = DataLoader(made_up(128, 2), batch_size=64, shuffle=False)
    trainer = MyCustomTrainer(
        accelerator="cpu", strategy="ddp", devices=int(os.environ["WORLD_SIZE"]), precision="bf16-mixed", max_epochs=3, checkpoint_dir=sys.argv[1]
    )
    trainer.fit(model, train_loader, val_loader, ckpt_path=sys.argv[1])


if __name__ == "__main__":
    train(MNISTModule())
