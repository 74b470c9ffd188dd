"""Benchmark: eight workers stacked, against one thread, processes, DDP, and side by side."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from harness.bench.measurement import Aim, Measurement, not_measured, ratio
from harness.bench.training import WAIT_SECONDS, Kind, start_training
from harness.train.stopwatch import interleave
from harness.workers.attempt import num_cores
from harness.workers.processes import WorkerProcesses

REPETITIONS = 7
NUM_STEPS = 60
SETTING = f"{NUM_STEPS} steps of 8 workers x 16 random images, Fashion-MNIST network, M-CSER at ratio 256"
ONE_THREAD, PROCESSES, DDP, STACKED = "one thread", "gloo processes", "gloo processes with DDP", "stacked"
TOGETHER, IN_TURN = "two runs side by side", "two runs in turn"


def measure(results: Path) -> list[Measurement]:
    """Speed-ups of the whole step (forward, backward, M-CSER), the start of processes left out."""
    if num_cores() < 2:
        return [not_measured("workers", SETTING, "needs two cores")]
    with ExitStack() as stack:

        def start(kind: Kind, algorithm: str = "mcser") -> WorkerProcesses:
            return stack.enter_context(start_training(kind, algorithm))

        one_thread, processes, ddp = start("one thread"), start("processes"), start("processes", "ddp")
        pair = [start("stacked"), start("stacked")]
        calls: dict[str, Callable[[], object]] = {
            ONE_THREAD: lambda: together([one_thread]),
            PROCESSES: lambda: together([processes]),
            DDP: lambda: together([ddp]),
            STACKED: lambda: together(pair[:1]),
            TOGETHER: lambda: together(pair),
            IN_TURN: lambda: in_turn(pair),
        }
        timings = interleave(calls, REPETITIONS)
    return figures_of(timings)


def together(runs: list[WorkerProcesses]) -> None:
    """All these runs take their steps at once."""
    for run in runs:
        run.tell(0, NUM_STEPS)
    for run in runs:
        run.hear(0, WAIT_SECONDS)


def in_turn(runs: list[WorkerProcesses]) -> None:
    """One of these runs after the other takes its steps."""
    for run in runs:
        together([run])


def figures_of(timings: dict[str, list[float]]) -> list[Measurement]:
    """The speed-ups that the timings give."""
    return [
        ratio(
            "speed-up: stacked over one thread",
            f"{SETTING}: stacked, against the replicas one after the other in one thread",
            timings,
            ONE_THREAD,
            STACKED,
        ),
        ratio(
            "speed-up: runs side by side",
            f"{SETTING}: two stacked runs, each a process, side by side against in turn",
            timings,
            IN_TURN,
            TOGETHER,
            Aim("at least", 1.8),
        ),
        ratio(
            "speed-up: stacked over processes",
            f"{SETTING}: stacked, against eight processes over gloo",
            timings,
            PROCESSES,
            STACKED,
            Aim("at least", 2.0),
        ),
        ratio(
            "speed-up: M-CSER over DDP",
            f"{SETTING}: eight processes over gloo, against DDP as accuracy runs have it, in as many",
            timings,
            DDP,
            PROCESSES,
        ),
    ]
