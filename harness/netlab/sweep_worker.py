"""One worker of a sweep: does the collectives that it is told to on its standard input, and says when each was done."""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from typing import IO

import torch
import torch.distributed as dist

from algorithms.core.process_group import ProcessGroupCollectives

TIMEOUT_SECONDS = 120.0


def main() -> None:
    """Arguments: the file in which the workers find each other, rank, world size. Ends with its standard input."""
    meeting_file, rank, world_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # gloo prints there
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting_file}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=TIMEOUT_SECONDS),
    )
    _answer(answers, time.monotonic())
    obey(sys.stdin, answers, ProcessGroupCollectives(deterministic=False))
    dist.destroy_process_group()


def obey(orders: IO[str], answers: IO[str], collectives: ProcessGroupCollectives) -> None:
    """Each order is [collective, payload in bytes, when to start]; each answer when it was done (monotonic, seconds).

    All processes of a machine read the same monotonic clock, so an agreed moment is a barrier that sends nothing.
    """
    message = torch.zeros(0)
    for line in orders:
        collective, payload_bytes, start = json.loads(line)
        if message.numel() * 4 != payload_bytes:
            message = torch.zeros(payload_bytes // 4)
        time.sleep(max(0.0, start - time.monotonic()))
        if collective == "all_reduce":
            collectives.all_reduce_sum_(message, "control")
        else:
            collectives.all_gather(message, "control")
        _answer(answers, time.monotonic())


def _answer(answers: IO[str], value: float) -> None:
    answers.write(f"{value!r}\n")
    answers.flush()


if __name__ == "__main__":
    main()
