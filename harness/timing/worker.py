"""One worker of a timing session or a sweep: `python -m harness.timing.worker REQUEST.json`, rank from the environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from pydantic import TypeAdapter

from algorithms import CollectiveError
from harness.attempt import prepare_thread
from harness.devices import device_groups
from harness.process_group import joined
from harness.spec import SpecError
from harness.timing.request import Request, TimingRequest
from harness.timing.session import time_methods
from harness.timing.sweep import sweep


def main(arguments: list[str]) -> int:
    """Do what the request says; 1 where it cannot be done, with a sentence."""
    request: Request = TypeAdapter(Request).validate_json(Path(arguments[0]).read_bytes())
    try:
        work(request, os.environ.get("CSER_TIMING_LAUNCH", "torchrun"))
    except (SpecError, CollectiveError, RuntimeError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def work(request: Request, launch: str) -> None:
    """As one of the workers that the environment speaks of (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    Raises:
        SpecError: more workers on this host than it has GPUs, or another number of workers than the request has.
        RuntimeError: a collective failed.
    """
    world_size = int(os.environ["WORLD_SIZE"])
    if world_size != request.fabric.num_workers:
        raise SpecError(f"{world_size} processes were started for {request.fabric.num_workers} workers")
    device = "cpu"
    if request.device == "cuda":
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", request.fabric.workers_per_machine))
        device = device_groups("cuda", local_size, torch.cuda.device_count())[0][int(os.environ["LOCAL_RANK"])]
    prepare_thread(device)
    with joined(device, request.timeout_seconds, "env://"):
        if isinstance(request, TimingRequest):
            time_methods(request, torch.device(device), launch)
        else:
            sweep(request, torch.device(device), launch)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
