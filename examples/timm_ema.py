"""A loop as in timm's train.py with EF-SGD from timm's registry, and a moving average of the
weights (EMA). EF-SGD sends one number in 192: on 8 GPUs 1/24 of DDP's traffic.

    torchrun --nproc-per-node 2 examples/timm_ema.py [FOLDER]

Started again with the same folder, it goes on from the last epoch that all workers saved. Images
are made up.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from timm import create_model
from timm.optim import OptimInfo, create_optimizer_v2
from timm.optim._optim_factory import default_registry
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from cser_bench.algorithms import (
    EFSGD,
    DistributedOptimizer,
    TopK,
    consensus_checkpoint,
    load_checkpoint,
    newest_checkpoint,
)

NUM_EPOCHS, BATCH_SIZE, NUM_BATCHES = 4, 16, 12
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "checkpoint/timm")
default_registry.register(
    OptimInfo(
        "efsgd",
        EFSGD,
        has_momentum=True,
        has_eps=False,
        defaults={"compressor": TopK(192)},
    )
)


def batch(seed: int, size: int = BATCH_SIZE) -> tuple[Tensor, Tensor]:
    """Returns noise of which one colour is brighter, and which colour that is."""
    draw = torch.Generator().manual_seed(seed)
    images, labels = (
        torch.randn(size, 3, 32, 32, generator=draw),
        torch.randint(3, (size,), generator=draw),
    )
    images[torch.arange(size), labels] += 0.2
    return images.to(device), labels.to(device)


def print_traffic(optimizer: DistributedOptimizer) -> None:
    """Print what this worker sent, and the share of DDP's traffic that its link carried."""
    share = optimizer.traffic_share(max(2, dist.get_world_size()))
    print(
        f"sent by this worker: {optimizer.traffic.training_bits / 8e6:.3f} MB; on its link "
        f"{share:.4f} of DDP's traffic, on 8 GPUs {optimizer.traffic_share(8):.4f}"
    )


@torch.no_grad()
def validate(model: nn.Module) -> float:
    images, labels = batch(0, 200)
    return float(nn.functional.cross_entropy(model.eval()(images), labels))


cuda = torch.cuda.is_available()
device = (
    torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
)
if cuda:
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if cuda else "gloo")
torch.manual_seed(0)
model = create_model("test_resnet", num_classes=3).to(device)
optimizer = create_optimizer_v2(
    model, opt="efsgd", lr=0.05, weight_decay=1e-4, momentum=0.9, model=model
)
schedule, _ = create_scheduler_v2(optimizer, "cosine", NUM_EPOCHS, min_lr=1e-4)
# After the optimiser, which makes all workers' weights equal
ema = ModelEmaV3(model, decay=0.9)

start = 0
if newest := newest_checkpoint(folder):
    start = load_checkpoint(newest, model, optimizer, ema=ema)["epoch"]

for epoch in range(start, NUM_EPOCHS):
    schedule.step(epoch)
    model.train()
    for number in range(NUM_BATCHES):
        step = number + NUM_BATCHES * epoch
        images, labels = batch(1 + dist.get_rank() + dist.get_world_size() * step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        ema.update(model, step)
    with optimizer.consensus(model):
        print(
            f"rank {dist.get_rank()}, epoch {epoch}: loss {validate(model):.4f}",
            flush=True,
        )
    consensus_checkpoint(
        folder / f"epoch-{epoch}", model, optimizer, ema=ema, epoch=epoch + 1
    )

# Outside the moving average is each worker's own
with optimizer.consensus(model, averages=[ema]):
    if dist.get_rank() == 0:
        print(f"loss of the moving average {validate(ema.module):.4f}")
        torch.save(ema.module.state_dict(), folder / "ema.pt")
if dist.get_rank() == 0:
    print_traffic(optimizer)
dist.destroy_process_group()
