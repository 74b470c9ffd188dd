"""A training run in a process (or processes) of its own, which takes steps when told: what `workers` compares."""

from __future__ import annotations

import multiprocessing
import tempfile
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch

from algorithms import Collectives, ProcessGroupCollectives, Purpose, SoloCollectives, run_workers
from harness.bench import methods
from harness.tasks.task import find_task
from harness.train.build import build_model
from harness.train.trainee import Trainee
from harness.workers.attempt import prepare_processes, prepare_thread
from harness.workers.process_group import joined

Kind = Literal["threads", "processes", "one thread"]
NUM_WORKERS = 8
NUM_BATCHES = 16
WAIT_SECONDS = 120.0


def replica(collectives: Collectives) -> Trainee:
    """One worker: the Fashion-MNIST network with M-CSER at ratio 256, and random data of its own."""
    config = methods.config_of("mcser")
    model = build_model(config.model, find_task(config.task.name), config.seed, torch.device("cpu"))
    return Trainee(config, model, collectives, NUM_BATCHES)


class TrainingRun:
    """Eight workers that wait for orders; starting them and warming up is not part of an order.

    Args:
        kind: workers as threads of one process, as processes over gloo, or their replicas one after the other in one
            thread. The last leaves out the averaging, which is little, and in its favour.
        max_active: of threads, how many compute at once.
    """

    def __init__(self, kind: Kind, max_active: int = 1) -> None:
        prepare_processes()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["harness.bench.training"])
        self._pipe, theirs = context.Pipe()
        self._scratch = tempfile.TemporaryDirectory(prefix="cser-bench-")
        arguments: list[tuple[Any, ...]]
        if kind == "processes":
            init = f"file://{self._scratch.name}/rendezvous"
            arguments = [(_as_rank, init, rank, None if rank else theirs) for rank in range(NUM_WORKERS)]
        elif kind == "threads":
            arguments = [(_in_threads, max_active, theirs)]
        else:
            arguments = [(_in_one_thread, theirs)]
        self._processes = [context.Process(target=target, args=rest, daemon=True) for target, *rest in arguments]
        for process in self._processes:
            process.start()
        theirs.close()

    def begin(self, num_steps: int) -> None:
        """Order steps, without waiting for them."""
        self._pipe.send(num_steps)

    def wait(self) -> None:
        """Until the ordered steps are done.

        Raises:
            RuntimeError: the run died, or does not answer.
        """
        try:
            if self._pipe.poll(WAIT_SECONDS):
                self._pipe.recv()
                return
        except EOFError:
            raise RuntimeError("a benchmark's training run died; its message is above") from None
        raise RuntimeError(f"a benchmark's training run did not answer in {WAIT_SECONDS:g} s")

    def close(self) -> None:
        """End the processes that were started for this run."""
        self._pipe.close()
        for process in self._processes:
            process.join(5.0)
            process.kill()
            process.join()
        self._scratch.cleanup()


def _in_threads(max_active: int, pipe: Connection) -> None:
    def worker(collectives: Collectives) -> None:
        prepare_thread()
        own = None if collectives.rank else pipe
        _obey([replica(collectives)], collectives, own)

    run_workers(worker, NUM_WORKERS, max_active=max_active)


def _as_rank(init_method: str, rank: int, pipe: Connection | None) -> None:
    prepare_thread()
    with joined("cpu", WAIT_SECONDS, init_method, rank, NUM_WORKERS):
        collectives = ProcessGroupCollectives()
        _obey([replica(collectives)], collectives, pipe)


def _in_one_thread(pipe: Connection) -> None:
    prepare_thread()
    _obey([replica(SoloCollectives()) for _ in range(NUM_WORKERS)], SoloCollectives(), pipe)


def _obey(replicas: list[Trainee], collectives: Collectives, pipe: Connection | None) -> None:
    """Take the steps that worker 0 is told to, until the other end is closed."""
    order = torch.zeros(1, dtype=torch.int64)
    while True:
        if pipe is not None:
            order.fill_(_next_order(pipe))
        collectives.broadcast_(order, Purpose.EVALUATION)
        if not order:
            return
        for _ in range(int(order)):
            for each in replicas:
                each.step()
        collectives.all_reduce_sum_(torch.zeros(1), Purpose.EVALUATION)
        if pipe is not None:
            pipe.send(None)


def _next_order(pipe: Connection) -> int:
    try:
        num_steps: int = pipe.recv()
    except EOFError:
        return 0
    return num_steps
