"""The workers of a sweep: they do the collectives that they are told to, and say when each was done."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.distributed as dist

from algorithms import ProcessGroupCollectives, Purpose
from algorithms.core.topology import Topology
from harness.records.timings import Collective
from harness.workers.attempt import prepare_thread
from harness.workers.process_group import joined
from harness.workers.processes import Worker

TIMEOUT_SECONDS = 60.0


def obey(worker: Worker) -> None:
    """Each order is (collective, payload in bytes, when to start); each answer when it was begun and done (monotonic,
    seconds). The first thing said is that the workers are connected.

    All processes of a machine read the same monotonic clock, so an agreed moment is a barrier that sends nothing.
    """
    prepare_thread()
    with joined("cpu", TIMEOUT_SECONDS, worker.init_method, worker.rank, worker.world_size):
        worker.pipe.send("connected")
        latest = lru_cache(maxsize=1)(prepared)
        while True:
            collective, payload_bytes, start = worker.pipe.recv()
            once = latest(collective, payload_bytes, torch.device("cpu"))
            time.sleep(max(0.0, start - time.monotonic()))
            began = time.monotonic()
            once()
            worker.pipe.send((began, time.monotonic()))


def prepared(collective: Collective, payload_bytes: int, device: torch.device) -> Callable[[], object]:
    """What does the collective once, as one worker of the group that stands, with so large a payload of each."""
    payload = torch.zeros(payload_bytes, dtype=torch.uint8, device=device)
    if payload_bytes % 4 == 0:
        payload = payload.view(torch.float32)
    collectives = ProcessGroupCollectives()
    if collective == "all_gather":
        return lambda: collectives.all_gather(payload, Purpose.EVALUATION)
    if collective == "exchange":
        [ring] = Topology("ring").rounds(dist.get_world_size())
        message = payload[: payload.numel() // ring.num_messages]
        return lambda: collectives.exchange_with_neighbours(message, ring, Purpose.EVALUATION)
    return lambda: collectives.all_reduce_sum_(payload, Purpose.EVALUATION)
