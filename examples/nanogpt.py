"""A small GPT on the bytes of this repository's documents, after nanoGPT: AdamW with error
feedback in 4 bits (0.13 of DDP's traffic between machines with one GPU each), then inside DiLoCo
(1/15).

    torchrun --nproc-per-node 2 examples/nanogpt.py [FOLDER]

Started again with the same folder, it goes on from the last evaluation that all workers saved.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cser_bench.algorithms import (
    DiLoCo,
    DistributedOptimizer,
    QSparseLocalSGD,
    QuantisedBlocks,
    consensus_checkpoint,
    load_checkpoint,
    newest_checkpoint,
)

NUM_STEPS, WARMUP, EVALUATE_EVERY, BATCH_SIZE, CONTEXT, WIDTH = 120, 10, 40, 8, 48, 48


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = (
            nn.Embedding(256, WIDTH),
            nn.Parameter(torch.zeros(CONTEXT, WIDTH)),
        )
        block = nn.TransformerEncoderLayer(
            WIDTH, 3, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            block, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )
        self.head = nn.Linear(WIDTH, 256, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Returns the mean loss of each next byte of a text of shape (batch, context + 1)."""
        mask = nn.Transformer.generate_square_subsequent_mask(
            CONTEXT, device=text.device
        )
        hidden = self.blocks(
            self.tokens(text[:, :-1]) + self.positions, mask, is_causal=True
        )
        return nn.functional.cross_entropy(
            self.head(hidden).flatten(0, 1), text[:, 1:].flatten()
        )


def batch(text: Tensor, seed: int, size: int = BATCH_SIZE) -> Tensor:
    """Returns windows of the text, a function of the seed alone: a resumed run sees what it would
    have seen."""
    starts = torch.randint(
        len(text) - CONTEXT, (size,), generator=torch.Generator().manual_seed(seed)
    )
    return torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()])


def train(model: GPT, optimizer: DistributedOptimizer, folder: Path) -> None:
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP)
    )
    start = 0
    if newest := newest_checkpoint(folder):
        start = load_checkpoint(newest, model, optimizer, schedule=schedule)["step"]
    for step in range(start + 1, NUM_STEPS + 1):
        optimizer.zero_grad()
        model(batch(text, step * dist.get_world_size() + dist.get_rank())).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % EVALUATE_EVERY == 0:
            with optimizer.consensus(model), torch.no_grad():
                if dist.get_rank() == 0:
                    print(
                        f"{folder.name}: step {step}, loss {model(batch(held_out, 0, 64)):.4f}",
                        flush=True,
                    )
            consensus_checkpoint(
                folder / f"step-{step}", model, optimizer, schedule=schedule, step=step
            )


cuda = torch.cuda.is_available()
device = (
    torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
)
if cuda:
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if cuda else "gloo")
root, folder = (
    Path(__file__).parents[1],
    Path(sys.argv[1] if len(sys.argv) > 1 else "checkpoint/nanogpt"),
)
documents = b"".join(
    path.read_bytes() for path in [root / "README.md", *sorted(root.glob("docs/*.md"))]
)
held_out, text = torch.tensor(list(documents), device=device).tensor_split(
    [len(documents) // 10]
)

four_bits = {"compressor": QuantisedBlocks(4), "sync_interval": 1}
for method, settings in (QSparseLocalSGD, four_bits), (DiLoCo, {"sync_interval": 15}):
    torch.manual_seed(0)
    model = GPT().to(device)
    matrices, others = (
        [p for p in model.parameters() if (p.dim() > 1) == is_matrix]
        for is_matrix in (True, False)
    )
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = method(
        groups, lr=2e-3, betas=(0.9, 0.95), local_step="adamw", **settings
    )
    train(model, optimizer, folder / method.name)
    if dist.get_rank() == 0:
        print(
            f"{method.name}: sent by this worker {optimizer.traffic.training_bits / 8e6:.3f} MB; on "
            f"its link {optimizer.traffic_share(max(2, dist.get_world_size())):.4f} of DDP's traffic, "
            f"on 8 GPUs {optimizer.traffic_share(8):.4f}"
        )
dist.destroy_process_group()
