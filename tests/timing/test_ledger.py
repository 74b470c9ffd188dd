"""What an optimiser counts as sent, against the counters of the links that its workers are on."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from harness.timing.lab import lab
from harness.timing.layout import LabTopology
from tests.timing.support import needs_lab

NUM_WORKERS = 3
HEADER_BYTES = 14 + 20 + 20 + 12
"""Ethernet, IPv4, TCP and its timestamps."""
WORKER = """
import sys, torch
import torch.distributed as dist
from algorithms import MCSER, BlockSparsifier, ProcessGroupCollectives

torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=int(sys.argv[2]), world_size=int(sys.argv[3]))
parameter = torch.nn.Parameter(torch.zeros(4_000_000))
optimizer = MCSER([parameter], lr=0.1, momentum=0.9, weight_decay=0.0, gradient_compressor=BlockSparsifier(ratio=8),
                  error_compressor=BlockSparsifier(ratio=4), reset_interval=2,
                  collectives=ProcessGroupCollectives())
for word in sys.stdin:
    dist.barrier()
    if word.strip() == "train":
        for _ in range(4):
            parameter.grad.fill_(1.0)
            optimizer.step()
    print(optimizer.traffic.training_bits, flush=True)
"""


@needs_lab
def test_links_carry_the_counted_payload_and_headers(prefix: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        network = stack.enter_context(lab(LabTopology(NUM_WORKERS, 1, 1e9), prefix=prefix))
        environment = os.environ | {
            "GLOO_SOCKET_IFNAME": network.interface,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        workers = []
        for rank in range(NUM_WORKERS):
            arguments = [str(tmp_path / "meeting"), str(rank), str(NUM_WORKERS)]
            argv = network.command(rank, [sys.executable, "-c", WORKER, *arguments])
            worker = subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(worker.kill)
            workers.append(worker)

        def told(word: str) -> list[int]:
            for worker in workers:
                assert worker.stdin
                print(word, file=worker.stdin, flush=True)
            return [int(worker.stdout.readline()) for worker in workers if worker.stdout]

        counted_before, sent_before = told("look"), network.sent()
        counted, sent = told("train"), network.sent()
        payload_bits = counted[0] - counted_before[0]
        # Four steps send an eighth of 4,000,000 numbers, and two of them a quarter besides.
        assert payload_bits == 32 * 4_000_000 * (4 / 8 + 2 / 4)
        assert [now - then for now, then in zip(counted, counted_before, strict=True)] == [payload_bits] * NUM_WORKERS
        for (num_bytes, frames), (bytes_before, frames_before) in zip(sent, sent_before, strict=True):
            # An all-reduce over n workers is a ring of n - 1 steps there and n - 1 back, each of 1/n of the payload.
            expected = 2 * (NUM_WORKERS - 1) / NUM_WORKERS * payload_bits / 8
            carried = num_bytes - bytes_before - HEADER_BYTES * (frames - frames_before)
            assert abs(carried / expected - 1) < 0.03
