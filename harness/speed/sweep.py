"""A sweep of the network that the workers are on: how long collectives of several sizes take there."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from harness.lab.sweep_worker import prepared
from harness.records.provenance import new_attempt
from harness.records.store import VERSION, write_record
from harness.records.timings import Collective, Sweep, SweepPoint, formula_bytes
from harness.speed.request import SweepRequest
from harness.train.stopwatch import seconds_to_idle


def sweep(request: SweepRequest, device: torch.device, launch: str) -> None:
    """Go through the sizes as one worker of the group that stands; rank 0 writes the record."""
    attempt = new_attempt(launch, dist.get_backend(), device)
    points = [
        _point(request, collective, size, device) for collective, sizes in request.sizes.items() for size in sizes
    ]
    if dist.get_rank() == 0:
        attempt = attempt.model_copy(update={"command": request.command or attempt.command})
        write_record(request.output, Sweep(version=VERSION, attempt=attempt, fabric=request.fabric, points=points))


def _point(request: SweepRequest, collective: Collective, payload_bytes: int, device: torch.device) -> SweepPoint:
    once = prepared(collective, payload_bytes, device)
    once()
    return SweepPoint(
        collective=collective,
        payload_bytes=payload_bytes,
        seconds=[_slowest(once, device) for _ in range(request.repetitions)],
        wire_bytes=None,
        formula_bytes=formula_bytes(collective, payload_bytes, request.fabric),
    )


def _slowest(once: Callable[[], object], device: torch.device) -> float:
    dist.barrier()
    seconds = torch.tensor([seconds_to_idle(once, device)], dtype=torch.float64, device=device)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return float(seconds)
