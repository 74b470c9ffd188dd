"""FSDP2 (`fully_shard`) as it is, and with its gradients in 4 bits or 1 a number, by a
reduce-scatter of its own. It does not run on PyTorch 2.6, whose FSDP2 takes no such hook.

torchrun --nproc-per-node 2 examples/fsdp2_compressed_gradients.py
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from cser_bench.algorithms import CompressedReduceScatter, QuantisedBlocks

NUM_STEPS, BATCH_SIZE = 60, 32


def loss_of(model: nn.Module, num_samples: int, seed: int) -> Tensor:
    """Returns the loss on points of 20 coordinates, of which the first five are compared: which is
    the largest?"""
    inputs = torch.randn(
        num_samples, 20, generator=torch.Generator().manual_seed(seed)
    ).to(device)
    return nn.functional.cross_entropy(model(inputs), inputs[:, :5].argmax(1))


def train(name: str, bits: int = 32, error_feedback: bool = False) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 512), nn.ReLU(), nn.Linear(512, 5)).to(device)
    num_parameters, compressed = (
        sum(parameter.numel() for parameter in model.parameters()),
        [],
    )
    for layer in model[::2]:
        fully_shard(layer, mesh=mesh)
        if bits < 32:
            compressed.append(
                CompressedReduceScatter(QuantisedBlocks(bits), error_feedback)
            )
            layer.set_custom_reduce_scatter(compressed[-1])
    optimizer = torch.optim.AdamW(fully_shard(model, mesh=mesh).parameters(), lr=3e-3)
    for step in range(1, NUM_STEPS + 1):
        optimizer.zero_grad()
        loss_of(
            model, BATCH_SIZE, seed=step * dist.get_world_size() + dist.get_rank()
        ).backward()
        optimizer.step()
    with torch.no_grad():
        loss = loss_of(model, 1000, seed=0)
    payload_bits = (
        sum(each.payload_bits for each in compressed) // NUM_STEPS
        or 32 * num_parameters
    )
    if dist.get_rank() == 0:
        print(
            f"{name}: held-out loss {loss:.4f}, {payload_bits:,} bits of gradients a step",
            flush=True,
        )


if not hasattr(FSDPModule, "set_custom_reduce_scatter"):
    raise SystemExit(
        f"PyTorch {torch.__version__} has no hook for FSDP2; install a newer one"
    )
device = "cuda" if torch.cuda.is_available() else "cpu"
mesh = dist.init_device_mesh(device, (int(os.environ["WORLD_SIZE"]),))
for row in (
    ("uncompressed",),
    ("4 bits", 4),
    ("1 bit", 1),
    ("1 bit, error fed back", 1, True),
):
    train(*row)
dist.destroy_process_group()
