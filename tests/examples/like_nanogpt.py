"""A small loop that has the lines of nanoGPT's train.py which the guide's difference changes.

torchrun ... like_nanogpt.py FOLDER
"""

# Written as nanoGPT's own lines are.
# ruff: noqa
# fmt: off
import os
import sys
from contextlib import nullcontext

import torch
from torch import nn
from torch.distributed import init_process_group, destroy_process_group
from torch.nn.parallel import DistributedDataParallel as DDP

out_dir = (sys.argv[1])
max_iters = (16)
eval_interval = (4)
eval_iters = (2)
learning_rate = (1e-2)
weight_decay = (0.1)
beta1 = (0.9)
beta2 = (0.95)
wandb_log = (False)
always_save_checkpoint = (False)
compile = (True)
init_from = ('scratch')
ddp = int(os.environ.get('RANK', -1)) != -1
init_process_group(backend='gloo')
ddp_rank = int(os.environ['RANK'])
master_process = ddp_rank == 0
device_type = 'cpu'
torch.manual_seed(1337 + ddp_rank)
ctx = nullcontext()


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Embedding(32, 16), nn.Linear(16, 32)

    def forward(self, inputs, targets):
        logits = self.head(self.tokens(inputs))
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        decayed = {'params': [p for p in self.parameters() if p.dim() > 1], 'weight_decay': weight_decay}
        others = {'params': [p for p in self.parameters() if p.dim() < 2], 'weight_decay': 0.0}
        return torch.optim.AdamW([decayed, others], lr=learning_rate, betas=betas)


def get_batch(split):
    text = (torch.randint(32, (8, 1)) + torch.arange(9)) % 32
    return text[:, :-1], text[:, 1:]


@torch.no_grad()
def estimate_loss():
    losses = [model(*get_batch('val'))[1] for _ in range(eval_iters)]
    return {'val': torch.stack(losses).mean()}


iter_num = (0)
best_val_loss = (1e9)
model = GPT()
scaler = torch.amp.GradScaler('cpu', enabled=False)
optimizer = model.configure_optimizers(weight_decay, learning_rate, (beta1, beta2), device_type)
if init_from == 'resume':
    optimizer.load_state_dict(checkpoint['optimizer'])
if compile:
    model = torch.compile(model, backend='eager')
if ddp:
    model = DDP(model, device_ids=[ddp_local_rank])
X, Y = get_batch('train')
raw_model = model.module if ddp else model # unwrap DDP container if needed
while True:
    if iter_num % eval_interval == 0 and master_process:
        losses = estimate_loss()
        print(f"step {iter_num}: val loss {losses['val']:.4f}", flush=True)
        if wandb_log:
            wandb.log(losses)
        if losses['val'] < best_val_loss or always_save_checkpoint:
            best_val_loss = losses['val']
            if iter_num > 0:
                torch.save(checkpoint, os.path.join(out_dir, 'ckpt.pt'))
    with ctx:
        logits, loss = model(X, Y)
    X, Y = get_batch('train')
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    iter_num += 1
    if iter_num > max_iters:
        break
if ddp:
    destroy_process_group()
