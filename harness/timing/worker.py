"""A worker of a timing, and how all of them are given orders at once.

In a lab they are given by pipes. As torchrun's processes, workers give them to themselves.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
import torch.distributed as dist

from cser_bench.algorithms import ProcessGroupCollectives, Purpose
from cser_bench.algorithms.core.topology import rounds_of
from cser_bench.harness.records.timings import (
    Collective,
    Stragglers,
    TimedMethod,
    Workload,
)
from cser_bench.harness.timing.lab import Lab, start_inside
from cser_bench.harness.timing.timed_step import RankStep
from cser_bench.harness.timing.turn import (
    Groups,
    Turn,
    bare_seconds,
    described,
    make_groups,
)
from cser_bench.harness.timing.workloads import Gradients, Trainee
from cser_bench.harness.workers.attempt import prepare_thread
from cser_bench.harness.workers.process_group import joined
from cser_bench.harness.workers.processes import Worker

TIMEOUT_SECONDS = 900.0
"""How long a worker waits for the others."""
LEAST_STRETCH = 16
"""Consecutive steps of a stretch, at least."""
Do = Callable[..., list[Any]]
"""Called with a method of `TimingWorker` and its arguments: what each of the workers returns, by
rank."""


@contextmanager
def connected(network: Lab) -> Iterator[Do]:
    """Start the lab's gloo workers, and end them at the end; inside, they are connected."""
    with start_inside(network, _obey, [()] * network.topology.num_workers) as processes:

        def do(order: Callable[..., Any], *arguments: object) -> list[Any]:
            for rank in range(network.topology.num_workers):
                processes.tell(rank, (order, arguments))
            return processes.hear_all()

        processes.hear_all()
        yield do


def _obey(worker: Worker) -> None:
    prepare_thread()
    with joined(
        "cpu", TIMEOUT_SECONDS, worker.init_method, worker.rank, worker.world_size
    ):
        worker.pipe.send("connected")
        timing_worker = TimingWorker(torch.device("cpu"))
        # No order ends it: where `connected` ends, it kills the processes.
        while True:
            order, arguments = worker.pipe.recv()
            worker.pipe.send(order(timing_worker, *arguments))


def as_one_of(
    worker: TimingWorker, order: Callable[..., Any], *arguments: object
) -> list[Any]:
    """Do what `Do` does where each worker's process gives itself the same orders."""
    result = order(worker, *arguments)
    results: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(results, result)
    return results


class TimingWorker:
    """One worker of the group that stands, and the turn that it is in."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._turn: Turn | None = None
        # Only the last one is kept: the repetitions of a size follow each other.
        self._prepared = lru_cache(maxsize=1)(partial(_prepared, device))

    def collective(
        self, name: Collective, payload_bytes: int, start: float | None
    ) -> tuple[float, float]:
        """Do a collective once.

        Args:
            start: the moment of this host's monotonic clock at which to begin; None: after a
                barrier.

        Returns:
            When it was begun, and when it was done.
        """
        once = self._prepared(name, payload_bytes)
        if start is None:
            dist.barrier()
        else:
            time.sleep(max(0.0, start - time.monotonic()))
        began = time.monotonic()
        once()
        # A GPU's collective is over when its stream has come to it.
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return began, time.monotonic()

    def begin(
        self,
        load: Workload,
        gradients: Gradients,
        trains: bool,
        num_workers: int,
        methods: list[TimedMethod],
    ) -> list[TimedMethod]:
        """Have a session's groups and trainees from now on.

        Returns:
            The methods; on rank 0 with what a worker alone finds out of them.
        """
        rank = dist.get_rank()
        schedule = None if trains else load
        self._num_workers = num_workers
        self._together, alone = make_groups(load.num_parameters)
        self._trainee = partial(
            Trainee, load.name, gradients, self.device, schedule, rank
        )
        # The others wait for rank 0 in the next collective.
        if rank > 0:
            return methods
        bare = bare_seconds(self._trainee())
        return [self._described(method, alone, bare) for method in methods]

    def _described(
        self, method: TimedMethod, alone: Groups, bare: float
    ) -> TimedMethod:
        turn = self._turn_of(method, alone, visible=True)
        method = described(turn, bare)
        turn.close()
        return method

    def _turn_of(
        self, method: TimedMethod, groups: Groups, visible: bool = False
    ) -> Turn:
        return Turn(self._trainee(), method, self._num_workers, groups, visible)

    def build(self, method: TimedMethod) -> None:
        """Begin a turn of the method, which is built anew."""
        # A collective: all workers build the same turns in the same order.
        if self._turn is not None:
            self._turn.close()
        # The last turn goes first, so that the memory of one at a time is needed.
        self._turn = None
        self._turn = self._turn_of(method, self._together)
        # Now, and not within a step that is timed.
        gc.collect()

    def step(self, number: int, synchronises: bool, dilation: float) -> RankStep:
        """Take the step of this number of its kind, all workers at once."""
        assert self._turn is not None
        self._turn.trainee.dilation = dilation
        # Before the barrier: what it takes is no part of the step.
        self._turn.go_to(number, synchronises)
        dist.barrier()
        return self._turn.timed_step()[0]

    def stretch(
        self, number: int, dilation: float, stragglers: Stragglers | None
    ) -> tuple[float, float]:
        """Take steps of whole periods, between which nobody waits but where a method does.

        Returns:
            Seconds a step, of the whole and of the passes.
        """
        turn = self._turn
        assert turn is not None
        period = turn.method.period
        num_steps = period * math.ceil(LEAST_STRETCH / period)
        turn.go_to(number * num_steps // period, True)
        passes_seconds = 0.0
        dist.barrier()
        # From here on nobody waits for the host's orders: a stretch is one order.
        began = time.perf_counter()
        for step in range(num_steps):
            turn.trainee.dilation = dilation * _slowness(stragglers, step)
            turn.step()
            passes_seconds += turn.trainee.scheduled_seconds
        whole_seconds = time.perf_counter() - began
        return whole_seconds / num_steps, passes_seconds / num_steps


def _slowness(stragglers: Stragglers | None, step: int) -> float:
    """Say how many times slower this worker is in a step: worker 0 always, or each in turn."""
    if stragglers is None:
        return 1.0
    slow_rank = 0 if stragglers.who == "one" else step % dist.get_world_size()
    if dist.get_rank() != slow_rank:
        return 1.0
    return stragglers.factor


def _prepared(
    device: torch.device, name: Collective, payload_bytes: int
) -> Callable[[], object]:
    """Make a function that does the collective once, with so large a payload."""
    payload = torch.zeros(1, payload_bytes, dtype=torch.uint8, device=device)
    if payload_bytes % 4 == 0:
        # As gradients are; a payload of other sizes is added up byte by byte.
        payload = payload.view(torch.float32)
    collectives = ProcessGroupCollectives()
    if name == "all_gather":
        # Under a purpose that is no method's, as traffic is not looked at here.
        return lambda: collectives.all_gather(payload, Purpose.EVALUATION)
    if name == "exchange":
        [ring] = rounds_of("ring", dist.get_world_size())
        message = payload[:, : payload.numel() // ring.num_messages]
        return lambda: collectives.exchange_with_neighbours(
            message, ring, Purpose.EVALUATION
        )
    return lambda: collectives.all_reduce_sum_(payload, Purpose.EVALUATION)
