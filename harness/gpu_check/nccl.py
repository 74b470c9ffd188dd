"""Check: processes with a GPU each form a group, and every collective gives what it should."""

from __future__ import annotations

from functools import partial

import torch

from algorithms import ProcessGroupCollectives, Purpose
from harness.gpu_check.problem import WAIT_SECONDS, Scale
from harness.gpu_check.record import Checks, Outcome
from harness.workers.attempt import prepare_thread
from harness.workers.devices import device_groups
from harness.workers.process_group import backend_for, joined
from harness.workers.processes import Worker, start_workers

NUMEL = 1_000_003


def checks(device: torch.device, scale: Scale) -> Checks:
    """A group of one, and one of as many as there are GPUs (on a CPU, of two)."""
    most = torch.cuda.device_count() if device.type == "cuda" else 2
    for world_size in sorted({1, most}):
        yield f"{backend_for(device.type)} group of {world_size}", partial(group_answers, device.type, world_size)


def group_answers(device: str, world_size: int) -> Outcome:
    """Start the group's processes and hear what each found wrong."""
    devices = device_groups(device, world_size, torch.cuda.device_count())[0]
    with start_workers(_wrong_answers, [(own,) for own in devices]) as workers:
        wrong = [f"rank {rank}: {what}" for rank, each in enumerate(workers.hear_all()) for what in each]
    expected = "sums, means, broadcasts and gathers that are right"
    return Outcome(not wrong, expected, {"devices": list(devices)}, "; ".join(wrong))


def _wrong_answers(worker: Worker, device: str) -> list[str]:
    """As one of the workers: the collectives whose results are not what ranks and sizes say."""
    prepare_thread(device)
    with joined(device, WAIT_SECONDS, worker.init_method, worker.rank, worker.world_size):
        wrong, collectives = [], ProcessGroupCollectives()
        # Messages of the harness itself, on a CPU, must travel by the same group.
        for place in dict.fromkeys((device, "cpu")):
            wrong += [f"{what} of tensors on {place}" for what in _collectives(collectives, torch.device(place))]
        return wrong


def _collectives(collectives: ProcessGroupCollectives, place: torch.device) -> list[str]:
    rank, world_size = collectives.rank, collectives.world_size
    own = torch.full((NUMEL,), float(rank + 1), device=place)
    total, mean, first = own.clone(), own.clone(), own.clone()
    collectives.all_reduce_sum_(total, Purpose.CONTROL)
    collectives.all_reduce_mean_(mean, Purpose.CONTROL)
    collectives.broadcast_(first, Purpose.CONTROL)
    codes = collectives.all_gather(torch.full((3,), rank, dtype=torch.uint8, device=place), Purpose.CONTROL)
    everyone = torch.arange(world_size, dtype=torch.uint8)
    right = {
        "sum": bool((total == world_size * (world_size + 1) / 2).all()),
        "mean": bool((mean == (world_size + 1) / 2).all()),
        "broadcast": bool((first == 1).all()),
        "gather": torch.equal(codes.cpu(), everyone[:, None].expand(-1, 3)),
    }
    return [f"wrong {what}" for what, holds in right.items() if not holds]
