"""What the workers of a session do: its methods take turns, there and back again, in a lab or where a group stands."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import mean

import torch
import torch.distributed as dist

from harness.records.timings import Cell, Method, Stragglers
from harness.timing.lab import Lab, start_inside
from harness.timing.session import CellPlan, Session, cell_of, cells_of
from harness.timing.timed_step import Parts, RankStep, parts_of
from harness.timing.turn import Groups, Turn, described, make_groups
from harness.workers.attempt import prepare_thread
from harness.workers.process_group import from_rank_0, joined
from harness.workers.processes import Worker

TIMEOUT_SECONDS = 900.0
"""How long a worker waits for the others."""
LEAST_STRETCH = 16
"""Consecutive steps of a stretch, at least."""
SetLink = Callable[[float | None], object]
Found = tuple[list[Method], list[Cell]]
"""Methods as a session found them to be, and their cells, each method's in the order of a turn."""


def time_in_lab(session: Session, network: Lab) -> Found:
    """The session, with a worker for each of the lab's; its links are set as cells ask, and else as they are now."""
    with start_inside(network, _work_in_lab, [(session,)] * session.fabric.num_workers) as workers:
        while not isinstance(heard := workers.hear(0), tuple):
            network.set_rate(session.fastest if heard is None else heard)
            workers.tell(0, True)
        for rank in range(1, session.fabric.num_workers):
            workers.hear(rank)
    found: Found = heard
    return found


def _work_in_lab(worker: Worker, session: Session) -> Found | None:
    prepare_thread()

    def set_link(rate: float | None) -> None:
        dist.barrier()
        if worker.rank == 0:
            worker.pipe.send(rate)
            worker.pipe.recv()
        dist.barrier()

    with joined("cpu", TIMEOUT_SECONDS, worker.init_method, worker.rank, worker.world_size):
        found = time_methods(session, torch.device("cpu"), set_link)
    return found if worker.rank == 0 else None


def time_methods(session: Session, device: torch.device, set_link: SetLink | None = None) -> Found:
    """Go through the session as one worker of the group that stands; what rank 0 returns is whole.

    Args:
        set_link: called by all workers, has links of this rate; None: as fast as they can be. Where there is one the
            workers are of one host, and share its clock.
    """
    together, alone = make_groups(session.workload.num_parameters)
    methods = from_rank_0(described(session, device, alone) if dist.get_rank() == 0 else [])
    known = {method.name: method for method in methods}
    steps: dict[tuple[str, CellPlan], list[tuple[int, Parts]]] = {}
    for visit, name in there_and_back(list(known), session.num_visits):
        for plan, own in _turn(session, known[name], device, together, visit, set_link):
            steps.setdefault((name, plan), []).extend((visit, parts) for parts in own)
    return methods, [cell_of(name, plan, own, session.trains) for (name, plan), own in steps.items()]


def there_and_back(names: Sequence[str], num_rounds: int) -> Iterator[tuple[int, str]]:
    """Number of the round and name: A B C, C B A, A B C, ... so that what disturbs the machine disturbs all alike."""
    for number in range(num_rounds):
        for name in names if number % 2 == 0 else reversed(names):
            yield number, name


def _turn(
    session: Session, method: Method, device: torch.device, groups: Groups, visit: int, set_link: SetLink | None
) -> Iterator[tuple[CellPlan, list[Parts]]]:
    """One turn of a method, built anew so that the memory of one at a time is needed."""
    if set_link is not None:  # On a slow network most of a session would be the warm-up.
        set_link(None)
    turn = Turn(session, method, device, groups)
    gc.collect()
    numbers = range(visit * session.steps_per_visit, (visit + 1) * session.steps_per_visit)
    for plan in cells_of(session, method):
        turn.trainee.dilation = plan.dilation
        if set_link is not None and plan.link is not None:
            set_link(plan.link / plan.dilation)
        if session.in_a_row:
            yield plan, [_stretch(turn, number, session.stragglers) for number in numbers]
        else:
            yield plan, [_step(turn, number, plan.kind != "ordinary", set_link is not None) for number in numbers]


def _step(turn: Turn, number: int, synchronises: bool, share_clock: bool) -> Parts:
    turn.go_to(number, synchronises)
    dist.barrier()
    own, _ = turn.timed_step()
    workers: list[RankStep] = [own] * dist.get_world_size()
    dist.all_gather_object(workers, own)
    return parts_of(workers, share_clock)


def _stretch(turn: Turn, number: int, stragglers: Stragglers | None) -> Parts:
    """Means over the steps of whole periods, between which nobody waits but for what a method waits for."""
    rank, world_size, period = dist.get_rank(), dist.get_world_size(), turn.method.period
    num_steps = period * math.ceil(LEAST_STRETCH / period)
    turn.go_to(number * num_steps // period, True)
    compute = 0.0
    dist.barrier()
    began = time.perf_counter()
    for step in range(num_steps):
        slow = stragglers is not None and rank == (0 if stragglers.who == "one" else step % world_size)
        turn.trainee.dilation = stragglers.factor if stragglers is not None and slow else 1.0
        turn.step()
        compute += turn.trainee.scheduled_seconds
    own = time.perf_counter() - began, compute
    workers = [own] * world_size
    dist.all_gather_object(workers, own)
    seconds, passes = zip(*workers, strict=True)
    total, compute = max(seconds) / num_steps, mean(passes) / num_steps
    return Parts(total, compute, 0.0, 0.0, total - compute)
