"""Starts the workers of requests in a network lab, and waits for them."""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import harness
from harness.records.timings import Fabric
from harness.speed.layers import layers_of
from harness.speed.questions import NEXT
from harness.speed.request import Request, TimingRequest

POLL_SECONDS = 0.05
GRACE_SECONDS = 2.0
"""For the workers that a failed one leaves, to fail too."""
SIGNS_OF_A_LOST_PEER = ("a collective failed", "Connection", "gloo", "TCPStore", "recvValue", "reset by peer")
LAUNCH = "CSER_TIMING_LAUNCH"
"""Environment variable: what started the workers, for the record."""

Answers = dict[str, Callable[[], object]]
Worker = subprocess.Popen[str]


class Lab(Protocol):
    """What is needed of a network lab; see `harness.lab.lab.Lab`."""

    addresses: tuple[str, ...]
    interface: str

    def command(self, rank: int, argv: Sequence[str]) -> list[str]:
        """`argv` inside the rank's namespace."""


class WorkerError(RuntimeError):
    """A worker failed; the message is one sentence, with its rank and its last words."""


def run_in_lab(requests: Iterable[Request], lab: Lab, answers: Answers | None = None) -> None:
    """Do the requests one after the other with the same workers, since to start eight takes them half a minute.

    Each is taken from the iterator when the one before it is done, so a generator can change the lab in between.

    Args:
        answers: to other questions of rank 0 than that for the next request; see `harness.speed.questions`.

    Raises:
        WorkerError: a worker failed; the others are ended. Records of requests that were done are there.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cser-timing-")))
        coming = (
            (request, _written(request, scratch / f"request-{number}.json")) for number, request in enumerate(requests)
        )
        first = next(coming, None)
        if first is None:
            return
        port = _free_port()
        workers = [_start(rank, lab, first[1], port, first[0].fabric) for rank in range(len(lab.addresses))]
        stack.callback(_end, workers)
        own: Answers = {NEXT: lambda: next((str(file) for _, file in coming), None)}
        # Not a copy: a generator may change what is answered, too.
        _attend(workers, scratch, ChainMap(own, {} if answers is None else answers))


def _written(request: Request, file: Path) -> Path:
    ready: dict[str, object] = {"output": request.output.absolute()}
    if isinstance(request, TimingRequest) and request.layers is None:
        ready["layers"] = layers_of(request.workload.name)
    file.write_text(request.model_copy(update=ready).model_dump_json())
    return file


def _start(rank: int, lab: Lab, file: Path, port: int, fabric: Fabric) -> Worker:
    root = str(Path(harness.__file__).parents[1])
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % fabric.workers_per_machine),
        "WORLD_SIZE": str(len(lab.addresses)),
        "MASTER_ADDR": lab.addresses[0],
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": lab.interface,
        "OMP_NUM_THREADS": "1",
        LAUNCH: "processes",
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    argv = lab.command(rank, [sys.executable, "-m", "harness.speed.worker", str(file)])
    talks = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
    with _errors_of(file.parent, rank).open("w") as errors:
        return subprocess.Popen(argv, env=environment, stdin=talks, stdout=talks, stderr=errors, text=True)


def _errors_of(scratch: Path, rank: int) -> Path:
    return scratch / f"stderr-{rank}"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        port: int = found.getsockname()[1]
        return port


def _attend(workers: list[Worker], scratch: Path, answers: Mapping[str, Callable[[], object]]) -> None:
    """Answer rank 0 until all have ended well.

    Raises:
        WorkerError: one has not.
    """
    questions, told = workers[0].stdout, workers[0].stdin
    assert questions is not None and told is not None
    with selectors.DefaultSelector() as selector:
        selector.register(questions, selectors.EVENT_READ)
        while any(worker.poll() is None for worker in workers):
            if any(worker.poll() for worker in workers):
                break
            if not selector.get_map():
                time.sleep(POLL_SECONDS)
            elif selector.select(POLL_SECONDS):
                line = questions.readline()
                if not line:
                    selector.unregister(questions)
                elif line.strip() in answers:
                    print(json.dumps(answers[line.strip()]()), file=told, flush=True)
    if any(worker.poll() != 0 for worker in workers):
        raise WorkerError(_why(workers, scratch))


def _why(workers: list[Worker], scratch: Path) -> str:
    """Who failed first, as far as that can be told: the others then say that they lost a connection."""
    deadline = time.monotonic() + GRACE_SECONDS
    while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    last_words = {}
    for rank, worker in enumerate(workers):
        if worker.poll():
            lines = _errors_of(scratch, rank).read_text(errors="replace").split("\n")
            said = [line.strip().removeprefix("error: ") for line in lines if line.strip()]
            last_words[rank] = said[-1] if said else f"it ended with exit code {worker.returncode}"
    victims = [rank for rank, words in last_words.items() if any(sign in words for sign in SIGNS_OF_A_LOST_PEER)]
    rank = min(last_words, key=lambda each: (each in victims, each))
    return f"worker {rank} failed: {last_words[rank]}"


def _end(workers: list[Worker]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.kill()
        worker.communicate()
