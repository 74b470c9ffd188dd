"""One worker of sessions and sweeps: started by torchrun or srun, or in a network lab."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from harness.speed.questions import NEXT, Ask, asking
from harness.speed.request import Request, TimingRequest
from harness.speed.session import time_methods
from harness.speed.sweep import sweep_group
from harness.workers.attempt import prepare_thread
from harness.workers.devices import own_gpu
from harness.workers.process_group import joined
from harness.workers.processes import Worker


def work(requests: Sequence[Request], launch: str) -> None:
    """As one of the workers that the environment speaks of (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    Raises:
        SpecError: two workers have the same GPU.
        RuntimeError: a collective failed.
    """
    first, device = requests[0], "cpu"
    if first.device == "cuda":
        device = own_gpu(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count())
    prepare_thread(device)
    with joined(device, first.timeout_seconds, "env://"):
        for request in requests:
            _do(request, device, launch)


def work_in_lab(worker: Worker, first: Request) -> None:
    """As a worker of a lab: the first request, and then what whoever started the workers answers while they stand."""
    prepare_thread()
    ask = asking(worker)
    with joined("cpu", first.timeout_seconds, worker.init_method, worker.rank, worker.world_size):
        request: Request | None = first
        while request is not None:
            _do(request, "cpu", "processes", ask)
            request = ask(NEXT)


def _do(request: Request, device: str, launch: str, ask: Ask | None = None) -> None:
    if isinstance(request, TimingRequest):
        time_methods(request, torch.device(device), launch, ask)
    else:
        sweep_group(request, torch.device(device), launch)
