"""A timing session: methods take turns, there and back again, on links as asked for; in a lab, or under torchrun."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import NamedTuple

import torch
import torch.distributed as dist

from harness.records.store import VERSION, Attempt
from harness.records.timings import Cell, Fabric, Message, Method, StepKind, Stragglers, Timing, Workload
from harness.timing.lab import Lab, start_inside
from harness.timing.timed_step import Parts, RankStep, parts_of
from harness.timing.turn import NUM_WARMUP_STEPS, Setting, Turn, described, make_groups
from harness.timing.workloads import Gradients
from harness.workers.attempt import prepare_thread
from harness.workers.process_group import from_rank_0, joined
from harness.workers.processes import Worker

TIMEOUT_SECONDS = 900.0
"""How long a worker waits for the others."""
LEAST_STRETCH = 16
"""Consecutive steps of a stretch, at least."""
SetLink = Callable[[float | None], object]


class CellPlan(NamedTuple):
    """A cell to be timed in one go in each turn: steps of a kind, on links of a rate.

    Attributes:
        kind: of the steps, by what they send; a method's that are all alike are synchronising steps in every turn.
        share: of the method's steps that are of this kind.
        link: rate of the links that these steps are emulated for, before dilation; None where no rate is set.
        dilation: how many times slower passes are, and links.
    """

    kind: StepKind
    share: float
    link: float | None
    dilation: float


CellsOf = Callable[[Workload, Method], Sequence[CellPlan]]
Found = tuple[list[Method], list[Cell]]
"""Methods as a session found them to be, and their cells, each method's in the order of a turn."""


@dataclass(frozen=True)
class Session:
    """All that is to be timed together; sent to workers as it is.

    Attributes:
        gradients: of the workload's model.
        methods: in the order of turns.
        cells_of: what is timed of a method, by its messages; a function of a module, perhaps with arguments bound.
        trains: see `Setting`.
        steps_per_visit: of each cell; stretches of them where they are consecutive.
        stragglers: who is slow, in consecutive steps.
    """

    workload: Workload
    gradients: Gradients
    num_workers: int
    methods: Sequence[Method]
    cells_of: CellsOf
    trains: bool = False
    num_visits: int = 2
    steps_per_visit: int = 5
    stragglers: Stragglers | None = None


def kinds_of(method: Method) -> list[tuple[StepKind, float, list[Message]]]:
    """The kinds of a method's steps, their shares of all, and what steps of each send."""
    always, period = [message for message in method.messages if message.every == 1], method.period
    if period == 1:
        return [("every", 1.0, always)]
    return [("ordinary", 1 - 1 / period, always), ("synchronising", 1 / period, method.messages)]


def on_one_link(link: float | None, dilation: float, workload: Workload, method: Method) -> list[CellPlan]:
    """Cells of both kinds of steps on links of one rate."""
    return [CellPlan(kind, share, link, dilation) for kind, share, _ in kinds_of(method)]


def on_end(link: float | None, workload: Workload, method: Method) -> list[CellPlan]:
    """One cell of consecutive steps, in real time, on links of one rate."""
    return [CellPlan("consecutive", 1.0, link, 1.0)]


def time_methods(session: Session, device: torch.device, set_link: SetLink | None = None) -> Found:
    """Go through the session as one worker of the group that stands; what rank 0 returns is whole.

    Args:
        set_link: called by all workers, has links of this rate; None: as fast as they can be. Where there is one the
            workers are of one host, and share its clock.
    """
    together, alone = make_groups(session.workload.num_parameters)
    setting = Setting(
        session.workload, session.gradients, session.trains, session.num_workers, device, together, visible=False
    )
    looking = replace(setting, groups=alone, visible=True)
    methods = from_rank_0(described(looking, session.methods) if dist.get_rank() == 0 else [])
    known = {method.name: method for method in methods}
    steps: dict[tuple[str, CellPlan], list[tuple[int, Parts]]] = {}
    for visit, name in there_and_back(list(known), session.num_visits):
        for plan, own in _turn(session, setting, known[name], visit, set_link):
            steps.setdefault((name, plan), []).extend((visit, parts) for parts in own)
    return methods, [cell_of(name, plan, own, session.trains) for (name, plan), own in steps.items()]


def there_and_back(names: Sequence[str], num_rounds: int) -> Iterator[tuple[int, str]]:
    """Number of the round and name: A B C, C B A, A B C, ... so that what disturbs the machine disturbs all alike."""
    for number in range(num_rounds):
        for name in names if number % 2 == 0 else reversed(names):
            yield number, name


def _turn(
    session: Session, setting: Setting, method: Method, visit: int, set_link: SetLink | None
) -> Iterator[tuple[CellPlan, list[Parts]]]:
    """One turn of a method, built anew so that the memory of one at a time is needed."""
    if set_link is not None:  # On a slow network most of a session would be the warm-up.
        set_link(None)
    turn = Turn(setting, method)
    gc.collect()
    numbers = range(visit * session.steps_per_visit, (visit + 1) * session.steps_per_visit)
    for plan in session.cells_of(session.workload, method):
        turn.trainee.slow_down(plan.dilation)
        if set_link is not None and plan.link is not None:
            set_link(plan.link / plan.dilation)
        if plan.kind == "consecutive":
            yield plan, [_stretch(turn, number, plan.dilation, session.stragglers) for number in numbers]
        else:
            yield plan, [_step(turn, number, plan.kind != "ordinary", set_link is not None) for number in numbers]


def _step(turn: Turn, number: int, synchronises: bool, share_clock: bool) -> Parts:
    turn.go_to(number, synchronises)
    dist.barrier()
    own, _ = turn.timed_step()
    workers: list[RankStep] = [own] * dist.get_world_size()
    dist.all_gather_object(workers, own)
    return parts_of(workers, share_clock)


def _stretch(turn: Turn, number: int, dilation: float, stragglers: Stragglers | None) -> Parts:
    """Means over the steps of whole periods, between which nobody waits but for what a method waits for."""
    rank, world_size, period = dist.get_rank(), dist.get_world_size(), turn.method.period
    num_steps = period * math.ceil(LEAST_STRETCH / period)
    turn.go_to(number * num_steps // period, True)
    compute = 0.0
    dist.barrier()
    began = time.perf_counter()
    for step in range(num_steps):
        slow = stragglers is not None and rank == (0 if stragglers.who == "one" else step % world_size)
        turn.trainee.slow_down(dilation * (stragglers.factor if stragglers is not None and slow else 1.0))
        turn.step()
        compute += turn.trainee.scheduled_seconds
    own = time.perf_counter() - began, compute
    workers = [own] * world_size
    dist.all_gather_object(workers, own)
    seconds, passes = zip(*workers, strict=True)
    total, compute = max(seconds) / num_steps, mean(passes) / num_steps
    return Parts(total, compute, 0.0, 0.0, total - compute)


def cell_of(name: str, plan: CellPlan, steps: Sequence[tuple[int, Parts]], trains: bool) -> Cell:
    """The record of a cell's steps, each with the number of its turn; of real passes where the session trains."""
    return Cell(
        method=name,
        kind=plan.kind,
        share=plan.share,
        bits_per_second=plan.link,
        dilation=plan.dilation,
        visits=[visit for visit, _ in steps],
        seconds=[parts.total if trains else (parts.total - parts.codec) / plan.dilation for _, parts in steps],
        compute_seconds=[parts.compute / plan.dilation for _, parts in steps],
        codec_seconds=[parts.codec for _, parts in steps],
        waiting_seconds=[parts.waiting / plan.dilation for _, parts in steps],
        transfer_seconds=[parts.transfer / plan.dilation for _, parts in steps],
    )


def timing_of(session: Session, found: Found, attempt: Attempt, fabric: Fabric) -> Timing:
    """The session's record."""
    return Timing(
        version=VERSION,
        basis="measured" if session.trains else "emulated",
        attempt=attempt,
        fabric=fabric,
        workload=session.workload,
        stragglers=session.stragglers,
        num_warmup_steps=NUM_WARMUP_STEPS,
        methods=found[0],
        cells=found[1],
    )


def time_in_lab(session: Session, network: Lab) -> Found:
    """The session, with a worker for each of the lab's; its links are set as cells ask, and else as they are now."""
    fastest = network.topology.bits_per_second
    with start_inside(network, _work_in_lab, [(session,)] * session.num_workers) as workers:
        while not isinstance(heard := workers.hear(0), tuple):
            network.set_rate(fastest if heard is None else heard)
            workers.tell(0, True)
        for rank in range(1, session.num_workers):
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
