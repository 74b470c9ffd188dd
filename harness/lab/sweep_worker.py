"""The workers of a sweep: they do the collectives that they are told to, and say when each was done.

One process imports torch and forks the workers, each of which enters its namespace: eight imports would take longer
than a sweep.
"""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import sys
import time
from typing import IO

import torch
import torch.distributed as dist

from algorithms.core.process_group import ProcessGroupCollectives
from algorithms.core.topology import Topology
from algorithms.core.traffic import Purpose

TIMEOUT_SECONDS = 60.0
CLONE_NEWNET = 0x40000000


def main() -> int:
    """Arguments: the file in which the workers find each other; then for each rank, as JSON, the file of its
    namespace, and the descriptors of the pipes with its orders and for its answers."""
    meeting_file, places = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    children = []
    for rank, place in enumerate(places):
        if not (pid := os.fork()):
            for other in places[:rank] + places[rank + 1 :]:
                os.close(other[2])  # The end of the one worker that holds it must close it.
            work(meeting_file, rank, len(places), *place)
            return 0
        children.append(pid)
    for _, orders, answers in places:
        os.close(orders)
        os.close(answers)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def work(meeting_file: str, rank: int, world_size: int, namespace: str, orders: int, answers: int) -> None:
    """Be one worker, until there are no more orders."""
    enter(namespace)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting_file}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=TIMEOUT_SECONDS),
    )
    reader, writer = os.fdopen(orders), os.fdopen(answers, "w")
    try:
        _answer(writer)
        obey(reader, writer, ProcessGroupCollectives(deterministic=False))
    except BrokenPipeError:  # Whoever gave the orders was killed.
        os._exit(1)
    dist.destroy_process_group()


def enter(namespace: str) -> None:
    """As `ip netns exec`, for this process. os.setns would do, from Python 3.12 on."""
    with open(namespace) as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot enter the network namespace", namespace)


def obey(orders: IO[str], answers: IO[str], collectives: ProcessGroupCollectives) -> None:
    """Each order is [collective, payload in bytes, when to start]; each answer when it was begun and done (monotonic,
    seconds).

    All processes of a machine read the same monotonic clock, so an agreed moment is a barrier that sends nothing.
    """
    message = torch.zeros(0)
    [ring] = Topology("ring").rounds(collectives.world_size)
    for line in orders:
        collective, payload_bytes, start = json.loads(line)
        if message.numel() * 4 != payload_bytes:
            message = torch.zeros(payload_bytes // 4)
        time.sleep(max(0.0, start - time.monotonic()))
        began = time.monotonic()
        if collective == "all_reduce":
            collectives.all_reduce_sum_(message, Purpose.CONTROL)
        elif collective == "exchange":
            collectives.exchange_with_neighbours(message[: message.numel() // ring.num_messages], ring, Purpose.CONTROL)
        else:
            collectives.all_gather(message, Purpose.CONTROL)
        _answer(answers, began, time.monotonic())


def _answer(answers: IO[str], *values: float) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
