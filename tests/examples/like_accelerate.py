"""A small loop that has the lines of accelerate's complete_cv_example.py which the guide's difference changes.

torchrun ... like_accelerate.py FOLDER
"""

# Written as accelerate's own lines are.
# ruff: noqa
# fmt: off
import os
import sys
from glob import glob
from types import SimpleNamespace

import torch
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from accelerate import Accelerator, DataLoaderConfiguration


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.base = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU())
        self.head = torch.nn.Linear(64, 4)

    def get_classifier(self):
        return self.head

    def forward(self, inputs):
        outputs = self.head(self.base(inputs))
        assert outputs.dtype is torch.bfloat16, "the autocast is lost"
        return outputs


def made_up(num_images, seed):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, 16, generator=draw)
    return [{"image": image, "label": image[:4].argmax()} for image in images]


def training_function(config, args):
    dataloader_config = DataLoaderConfiguration(use_stateful_dataloader=args.use_stateful_dataloader)
    accelerator = Accelerator(
        cpu=args.cpu, mixed_precision=args.mixed_precision, dataloader_config=dataloader_config
    )
    lr = config["lr"]
    num_epochs = int(config["num_epochs"])
    checkpointing_steps = args.checkpointing_steps
    torch.manual_seed(int(config["seed"]))
    train_dataloader = DataLoader(made_up(512, 1), shuffle=True, batch_size=config["batch_size"])
    eval_dataloader = DataLoader(made_up(128, 2), shuffle=False, batch_size=config["batch_size"])
    model = Model()
    # Freezing the base model
    for param in model.parameters():
        param.requires_grad = False
    for param in model.get_classifier().parameters():
        param.requires_grad = True

    # Instantiate optimizer
    optimizer = torch.optim.Adam(params=model.parameters(), lr=lr / 25)
    # Instantiate learning rate scheduler
    lr_scheduler = OneCycleLR(optimizer=optimizer, max_lr=lr, epochs=num_epochs, steps_per_epoch=len(train_dataloader))

    model, optimizer, train_dataloader, eval_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, eval_dataloader, lr_scheduler
    )
    overall_step = 0
    starting_epoch = 0
    if args.resume_from_checkpoint:
        if args.resume_from_checkpoint is not None or args.resume_from_checkpoint != "":
            accelerator.print(f"Resumed from checkpoint: {args.resume_from_checkpoint}")
            accelerator.load_state(args.resume_from_checkpoint)
            path = os.path.basename(args.resume_from_checkpoint)
        training_difference = os.path.splitext(path)[0]
        starting_epoch = int(training_difference.replace("epoch_", "")) + 1

    # Now we train the model
    for epoch in range(starting_epoch, num_epochs):
        model.train()
        active_dataloader = train_dataloader
        for batch in active_dataloader:
            outputs = model(batch["image"])
            loss = torch.nn.functional.cross_entropy(outputs, batch["label"])
            accelerator.backward(loss)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            overall_step += 1
            if isinstance(checkpointing_steps, int):
                output_dir = f"step_{overall_step}"
                if overall_step % checkpointing_steps == 0:
                    if args.output_dir is not None:
                        output_dir = os.path.join(args.output_dir, output_dir)
                    accelerator.save_state(output_dir)
        model.eval()
        accurate = 0
        num_elems = 0
        total_loss = 0
        for step, batch in enumerate(eval_dataloader):
            with torch.no_grad():
                outputs = model(batch["image"])
            outputs, references = accelerator.gather_for_metrics((outputs, batch["label"]))
            accurate_preds = outputs.argmax(dim=-1) == references
            num_elems += accurate_preds.shape[0]
            accurate += accurate_preds.long().sum()
            total_loss += torch.nn.functional.cross_entropy(outputs, references, reduction="sum")

        eval_metric = accurate.item() / num_elems
        accelerator.print(f"epoch {epoch}: {100 * eval_metric:.2f}, loss {total_loss / num_elems:.4f}")
        if checkpointing_steps == "epoch":
            output_dir = f"epoch_{epoch}"
            if args.output_dir is not None:
                output_dir = os.path.join(args.output_dir, output_dir)
            accelerator.save_state(output_dir)

    accelerator.end_training()


if __name__ == "__main__":
    resumed = max(glob(f"{sys.argv[1]}/epoch_*"), default=None)
    args = SimpleNamespace(cpu=True, mixed_precision="bf16", use_stateful_dataloader=False, checkpointing_steps="epoch", output_dir=sys.argv[1], resume_from_checkpoint=resumed)
    training_function({"lr": 3e-2, "num_epochs": 3, "seed": 42, "batch_size": 16}, args)
