"""Benchmark: eight workers as threads of one process, against one thread, processes, DDP, stacked, and side by side."""

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
THREADS, ONE_THREAD, PROCESSES = "threads", "one thread", "gloo processes"
DDP, STACKED = "gloo processes with DDP", "stacked"
TOGETHER, IN_TURN = "two runs side by side", "two runs in turn"


def measure(results: Path) -> list[Measurement]:
    """Speed-ups of the whole step (forward, backward, M-CSER), the start of processes left out."""
    cores = num_cores()
    if cores < 2:
        return [not_measured("workers", SETTING, "needs two cores")]
    with ExitStack() as stack:

        def start(kind: Kind, max_active: int = 1, algorithm: str = "mcser") -> WorkerProcesses:
            return stack.enter_context(start_training(kind, max_active, algorithm))

        threads, one_thread, processes = start("threads", cores), start("one thread"), start("processes")
        ddp, stacked = start("processes", algorithm="ddp"), start("stacked")
        pair = [start("threads"), start("threads")]
        calls: dict[str, Callable[[], object]] = {
            THREADS: lambda: together([threads]),
            ONE_THREAD: lambda: together([one_thread]),
            PROCESSES: lambda: together([processes]),
            DDP: lambda: together([ddp]),
            STACKED: lambda: together([stacked]),
            TOGETHER: lambda: together(pair),
            IN_TURN: lambda: in_turn(pair),
        }
        timings = interleave(calls, REPETITIONS)
    return figures_of(timings, cores)


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


def figures_of(timings: dict[str, list[float]], cores: int) -> list[Measurement]:
    """The speed-ups that the timings give."""
    timings = {
        **timings,
        "two runs in threads in turn": [2 * seconds for seconds in timings[THREADS]],
        "two stacked runs in turn": [2 * seconds for seconds in timings[STACKED]],
    }
    return [
        ratio(
            "speed-up: threads over one thread",
            f"{SETTING}: threads, {cores} at once, against the replicas one after the other in one thread",
            timings,
            ONE_THREAD,
            THREADS,
            Aim("at least", 1.5),
        ),
        ratio(
            "speed-up: runs side by side",
            f"{SETTING}: two such runs, each a process with one worker active, side by side against in turn",
            timings,
            IN_TURN,
            TOGETHER,
            Aim("at least", 1.8),
        ),
        ratio(
            "speed-up: threads over processes",
            f"{SETTING}: threads, {cores} at once, against eight processes over gloo",
            timings,
            PROCESSES,
            THREADS,
            Aim("at least", 2.0),
        ),
        ratio(
            "speed-up: side by side over threads",
            f"{SETTING}: two runs side by side, one worker of each active, against in turn with {cores} active",
            timings,
            "two runs in threads in turn",
            TOGETHER,
        ),
        ratio(
            "speed-up: M-CSER over DDP",
            f"{SETTING}: eight processes over gloo, against DDP as accuracy runs have it, in as many",
            timings,
            DDP,
            PROCESSES,
        ),
        ratio(
            "speed-up: stacked over threads",
            f"{SETTING}: workers stacked in one thread, against threads of which one is active, so on a core both",
            timings,
            IN_TURN,
            "two stacked runs in turn",
        ),
    ]
