"""One worker of sessions and sweeps: `python -m harness.speed.worker REQUEST.json`, rank from the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from pydantic import TypeAdapter

from algorithms import CollectiveError
from harness.spec import SpecError
from harness.speed.questions import NEXT, ask
from harness.speed.request import Request, TimingRequest
from harness.speed.session import time_methods
from harness.speed.sweep import sweep
from harness.workers.attempt import prepare_thread
from harness.workers.devices import device_groups
from harness.workers.process_group import joined


def main(arguments: list[str]) -> int:
    """Do the request of the file, and those that come after it; 1 where one cannot be done, with a sentence."""
    try:
        work(_given(arguments[0]), os.environ.get("CSER_TIMING_LAUNCH", "torchrun"))
    except (SpecError, CollectiveError, RuntimeError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _given(first: str) -> Iterator[Request]:
    """The first, and then what whoever started the workers answers while they stand."""
    adapter: TypeAdapter[Request] = TypeAdapter(Request)
    file: str | None = first
    while file is not None:
        yield adapter.validate_json(Path(file).read_bytes())
        file = ask(NEXT)


def work(requests: Iterable[Request], launch: str) -> None:
    """As one of the workers that the environment speaks of (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    The first request is taken before the workers are joined, and says how; each other when the one before it is done.

    Raises:
        SpecError: more workers on this host than it has GPUs, or another number of workers than the request has.
        RuntimeError: a collective failed.
    """
    coming, world_size = iter(requests), int(os.environ["WORLD_SIZE"])
    first = next(coming)
    if world_size != first.fabric.num_workers:
        raise SpecError(f"{world_size} processes were started for {first.fabric.num_workers} workers")
    device = "cpu"
    if first.device == "cuda":
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", first.fabric.workers_per_machine))
        device = device_groups("cuda", local_size, torch.cuda.device_count())[0][int(os.environ["LOCAL_RANK"])]
    prepare_thread(device)
    with joined(device, first.timeout_seconds, "env://"):
        for request in chain([first], coming):
            if isinstance(request, TimingRequest):
                time_methods(request, torch.device(device), launch)
            else:
                sweep(request, torch.device(device), launch)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
