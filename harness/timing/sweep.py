"""A sweep: how long collectives of several sizes take, and what they put on the wire by count and by formula."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from algorithms import ProcessGroupCollectives, Purpose
from harness.provenance import new_attempt
from harness.store import VERSION, write_record
from harness.timing.questions import BYTES_SENT, ask
from harness.timing.request import SweepRequest
from harness.timings import Collective, Fabric, Sweep, SweepPoint


def sweep(request: SweepRequest, device: torch.device, launch: str) -> None:
    """Go through the sizes as one worker of the group that stands; rank 0 writes the record."""
    attempt = new_attempt(launch, dist.get_backend(), device)
    points = [
        _point(request, collective, size, device)
        for collective in request.collectives
        for size in request.payload_bytes
    ]
    if dist.get_rank() == 0:
        attempt = attempt.model_copy(update={"command": request.command or attempt.command})
        write_record(request.output, Sweep(version=VERSION, attempt=attempt, fabric=request.fabric, points=points))


def _point(request: SweepRequest, collective: Collective, payload_bytes: int, device: torch.device) -> SweepPoint:
    payload = torch.ones(payload_bytes, dtype=torch.uint8, device=device)
    if payload_bytes % 4 == 0:
        payload = payload.view(torch.float32)
    collectives = ProcessGroupCollectives(deterministic=False)

    def once() -> object:
        if collective == "all_gather":
            return collectives.all_gather(payload, Purpose.EVALUATION)
        collectives.all_reduce_sum_(payload, Purpose.EVALUATION)
        return payload

    once()
    before = ask(BYTES_SENT) if request.counts_bytes else None
    seconds = [_slowest(once, device) for _ in range(request.repetitions)]
    after = ask(BYTES_SENT) if request.counts_bytes else None
    return SweepPoint(
        collective=collective,
        payload_bytes=payload_bytes,
        seconds=seconds,
        wire_bytes=_per_machine(before, after, request.repetitions),
        formula_bytes=formula_bytes(collective, payload_bytes, request.fabric),
    )


def formula_bytes(collective: Collective, payload_bytes: int, fabric: Fabric) -> float:
    """What one machine's link sends in a ring over ranks, those of a machine being neighbours; no headers.

    An all-reduce sends each of the n parts of the message 2 (n - 1) times over every edge of the ring, an all-gather
    n - 1 messages; one edge leaves each machine, and none where there is one machine.
    """
    if fabric.num_machines == 1:
        return 0.0
    n = fabric.num_workers
    return payload_bytes * (2 * (n - 1) / n if collective == "all_reduce" else n - 1)


def _slowest(once: Callable[[], object], device: torch.device) -> float:
    dist.barrier()
    started = time.perf_counter()
    once()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = torch.tensor([time.perf_counter() - started], dtype=torch.float64, device=device)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return float(seconds)


def _per_machine(before: list[int] | None, after: list[int] | None, repetitions: int) -> float | None:
    if before is None or after is None:
        return None
    return (sum(after) - sum(before)) / len(before) / repetitions
