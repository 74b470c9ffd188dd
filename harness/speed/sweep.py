"""A sweep of the network that the workers are on: how long collectives of several sizes take there."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.distributed as dist

from harness.lab.sweep import SweptGroup, sweep
from harness.lab.sweep_worker import prepared
from harness.records.provenance import new_attempt
from harness.records.store import write_record
from harness.records.timings import Collective
from harness.speed.request import SweepRequest
from harness.train.stopwatch import seconds_to_idle


def sweep_group(request: SweepRequest, device: torch.device, launch: str) -> None:
    """Go through the sizes as one worker of the group that stands; rank 0 writes the record."""
    latest = lru_cache(maxsize=1)(prepared)

    def slowest(collective: Collective, payload_bytes: int) -> float:
        once = latest(collective, payload_bytes, device)
        dist.barrier()
        seconds = torch.tensor([seconds_to_idle(once, device)], dtype=torch.float64, device=device)
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        return float(seconds)

    attempt = new_attempt(launch, dist.get_backend(), device)
    attempt = attempt.model_copy(update={"command": request.command or attempt.command})
    found = sweep(SweptGroup(attempt, request.fabric, slowest), request.sizes, request.repetitions)
    if dist.get_rank() == 0:
        write_record(request.output, found)
