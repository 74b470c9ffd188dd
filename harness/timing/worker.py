"""One worker of sessions and sweeps: `python -m harness.timing.worker REQUEST.json ...`, rank from the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import TypeAdapter

from algorithms import CollectiveError
from harness.attempt import prepare_thread
from harness.devices import device_groups
from harness.process_group import joined
from harness.spec import SpecError
from harness.timing.questions import NEXT, ask
from harness.timing.request import Request, TimingRequest
from harness.timing.session import time_methods
from harness.timing.sweep import sweep


def main(arguments: list[str]) -> int:
    """Do what the requests say, one after the other; 1 where one cannot be done, with a sentence."""
    adapter: TypeAdapter[Request] = TypeAdapter(Request)
    requests = [adapter.validate_json(Path(argument).read_bytes()) for argument in arguments]
    try:
        work(requests, os.environ.get("CSER_TIMING_LAUNCH", "torchrun"))
    except (SpecError, CollectiveError, RuntimeError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def work(requests: Sequence[Request], launch: str) -> None:
    """As one of the workers that the environment speaks of (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    Raises:
        SpecError: more workers on this host than it has GPUs, or another number of workers than the request has.
        RuntimeError: a collective failed.
    """
    first, world_size = requests[0], int(os.environ["WORLD_SIZE"])
    if world_size != first.fabric.num_workers:
        raise SpecError(f"{world_size} processes were started for {first.fabric.num_workers} workers")
    device = "cpu"
    if first.device == "cuda":
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", first.fabric.workers_per_machine))
        device = device_groups("cuda", local_size, torch.cuda.device_count())[0][int(os.environ["LOCAL_RANK"])]
    prepare_thread(device)
    with joined(device, first.timeout_seconds, "env://"):
        for number, request in enumerate(requests):
            if number:
                ask(NEXT)
            if isinstance(request, TimingRequest):
                time_methods(request, torch.device(device), launch)
            else:
                sweep(request, torch.device(device), launch)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
