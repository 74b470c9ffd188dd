"""A plain training loop with EF-SGD that sends a number in 192: evaluated and saved at the consensus, and resumed.

    torchrun --nproc-per-node 2 examples/plain.py [FOLDER]

It ends with the accuracy of the workers' average, and with what was sent for training:

    epoch 4: held-out loss 0.1895, accuracy 0.931
    each worker sent:    18,144 bytes in 252 steps
    DDP would have sent: 1,811,376 bytes in fp32, 99.8 times as much

Started again with the same folder, it goes on from the last epoch that all workers saved.
"""

import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from cser_bench.algorithms import (
    EFSGD,
    TopK,
    consensus_checkpoint,
    load_checkpoint,
    newest_checkpoint,
)

NUM_EPOCHS, BATCH_SIZE = 4, 32
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "checkpoint/plain")


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5)
        )


def made_up(num_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns points of 20 coordinates, and which of the first five is the largest."""
    inputs = torch.randn(
        num_samples, 20, generator=torch.Generator().manual_seed(seed)
    ).to(device)
    return inputs, inputs[:, :5].argmax(1)


@torch.no_grad()
def evaluate(model: nn.Module) -> None:
    inputs, labels = made_up(1000, seed=2)
    scores = model.eval()(inputs)
    model.train()
    if torch.distributed.get_rank() == 0:
        right = (scores.argmax(1) == labels).float().mean()
        print(
            f"epoch {epoch}: held-out loss {loss_function(scores, labels):.4f}, accuracy "
            f"{right:.3f}",
            flush=True,
        )


cuda = torch.cuda.is_available()
device = (
    torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
)
if cuda:
    torch.cuda.set_device(device)
torch.distributed.init_process_group("nccl" if cuda else "gloo")
torch.manual_seed(0)
model = Net().to(device)
optimizer = EFSGD(
    model.parameters(),
    lr=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    model=model,
    compressor=TopK(192),
)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_EPOCHS)
loss_function = nn.CrossEntropyLoss()
samples = TensorDataset(*made_up(4000, seed=1))
sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(samples)
batches = DataLoader(samples, BATCH_SIZE, sampler=sampler)

start = 0
if newest := newest_checkpoint(folder):
    start = load_checkpoint(newest, model, optimizer, schedule=schedule)["epoch"]

for epoch in range(start + 1, NUM_EPOCHS + 1):
    sampler.set_epoch(epoch)
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss_function(model(inputs), labels).backward()
        optimizer.step()
    schedule.step()
    with optimizer.consensus(model):  # inside, the model is the workers' average
        evaluate(model)
    consensus_checkpoint(
        folder / f"epoch-{epoch}", model, optimizer, schedule=schedule, epoch=epoch
    )

if torch.distributed.get_rank() == 0:
    num_workers = torch.distributed.get_world_size()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_bytes = optimizer.traffic.training_total().link_bits(num_workers) / 8
    # In a ring an all-reduce sends its message, 4 bytes a parameter, 2 (n - 1) / n times.
    ddp_bytes = (
        4 * num_parameters * optimizer.num_steps * 2 * (num_workers - 1) / num_workers
    )
    print(f"each worker sent:    {num_bytes:,.0f} bytes in {optimizer.num_steps} steps")
    print(
        f"DDP would have sent: {ddp_bytes:,.0f} bytes in fp32, "
        f"{ddp_bytes / num_bytes:.1f} times as much"
    )
torch.distributed.destroy_process_group()
