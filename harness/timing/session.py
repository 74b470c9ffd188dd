"""A timing session: methods take turns, there and back again, on links as asked for; in a lab, or under torchrun."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist

from harness.records.timings import Message, StepKind, Workload
from harness.timing.ddp_buckets import Groups, make_groups, max_buckets
from harness.timing.lab import Lab
from harness.timing.messages import Described, described
from harness.timing.methods import TimedMethod
from harness.timing.parts import Parts, RankStep, parts_of
from harness.timing.steps import Turn, TurnContext
from harness.timing.sweep import start_inside
from harness.timing.workloads import Layers, layers_of
from harness.train.clock import there_and_back
from harness.workers.attempt import prepare_thread
from harness.workers.process_group import from_rank_0, joined
from harness.workers.processes import Worker

MIN_WARMUP_STEPS = 3
"""DDP settles its buckets in the second step, and its PowerSGD hook compresses from the third on."""


@dataclass(frozen=True)
class Cell:
    """What a turn times in one go: steps of a kind, on links of a rate.

    Attributes:
        kind: of the steps, by what they send; a method's that are all alike are synchronising steps in every turn.
        share: of the method's steps that are of this kind.
        link: rate of the links that these steps are emulated for, before dilation; None where no rate is set.
        dilation: how many times slower passes are, and links.
    """

    kind: StepKind
    share: float
    link: float | None = None
    dilation: float = 1.0


CellsOf = Callable[[Workload, TimedMethod, Sequence[Message]], Sequence[Cell]]


@dataclass(frozen=True)
class Session:
    """What is to be timed; sent to workers as it is.

    Attributes:
        methods: by name, in the order of turns.
        cells_of: what is timed of a method, by its messages; a function of a module, perhaps with arguments bound.
        trains: see `TurnContext`.
        times_codec: whether rank 0 also takes steps alone, before the session, for the time of each method's codec.
        deadline: on the monotonic clock of one host, by which all should be done: methods whose first turn would begin
            after half of the time are left out. None: there is none.
        timeout_seconds: how long a worker waits for the others.
    """

    workload: Workload
    num_workers: int
    methods: Mapping[str, TimedMethod]
    cells_of: CellsOf
    trains: bool
    num_visits: int = 2
    steps_per_visit: int = 2
    times_codec: bool = True
    num_warmup_steps: int = MIN_WARMUP_STEPS
    deadline: float | None = None
    timeout_seconds: float = 900.0
    layers: Layers | None = None
    """Of the workload's model; None: every worker finds out by itself, which takes a while."""


@dataclass
class Timed:
    """What a session found.

    Attributes:
        described: by method.
        cells: by method, in the order in which a turn times them.
        steps: in the order in which they were taken: method, number of the turn, cell, parts of the step.
        left_out: methods for which there was no time.
    """

    described: dict[str, Described]
    cells: dict[str, Sequence[Cell]]
    steps: list[tuple[str, int, Cell, Parts]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def of(self, name: str, cell: Cell) -> list[tuple[int, Parts]]:
        """The steps of one cell of a method, each with the number of its turn."""
        return [(visit, parts) for method, visit, own, parts in self.steps if (method, own) == (name, cell)]


def kinds_of(period: int, messages: Sequence[Message]) -> list[tuple[StepKind, float, list[Message]]]:
    """The kinds of a method's steps, their shares of all, and what steps of each send."""
    always = [message for message in messages if message.every == 1]
    if period == 1:
        return [("every", 1.0, always)]
    return [("ordinary", 1 - 1 / period, always), ("synchronising", 1 / period, list(messages))]


def on_one_link(
    link: float | None, dilation: float, workload: Workload, timed: TimedMethod, messages: Sequence[Message]
) -> list[Cell]:
    """Cells of both kinds of steps on links of one rate."""
    return [Cell(kind, share, link, dilation) for kind, share, _ in kinds_of(timed.period, messages)]


def time_methods(
    session: Session, device: torch.device, set_link: Callable[[float | None], object] | None = None
) -> Timed:
    """Go through the session as one worker of the group that stands; what rank 0 returns is whole.

    Args:
        set_link: called by all workers, has links of this rate; None: as fast as they can be.
    """
    together, alone = make_groups(max_buckets(4 * session.workload.num_parameters))
    layers = session.layers or layers_of(session.workload.name)
    setting = TurnContext(session.workload, layers, session.trains, session.num_workers, device, together)
    found = from_rank_0(_described(session, setting, alone) if dist.get_rank() == 0 else {})
    timed = Timed(
        found,
        {name: session.cells_of(session.workload, own, found[name].messages) for name, own in session.methods.items()},
    )
    late_from = None
    if session.deadline is not None:
        late_from = time.monotonic() + (session.deadline - time.monotonic()) / session.num_visits
    for visit, name in there_and_back(list(session.methods), session.num_visits):
        if visit == 0 and from_rank_0(late_from is not None and time.monotonic() > late_from):
            timed.left_out.append(name)
        if name not in timed.left_out:
            timed.steps += _turn(session, setting, timed.cells[name], visit, name, set_link)
    return timed


def _described(session: Session, setting: TurnContext, alone: Groups) -> dict[str, Described]:
    looking = replace(setting, groups=alone, visible=True)
    return {
        name: described(looking, timed, session.num_warmup_steps, session.times_codec)
        for name, timed in session.methods.items()
    }


def _turn(
    session: Session,
    setting: TurnContext,
    cells: Sequence[Cell],
    visit: int,
    name: str,
    set_link: Callable[[float | None], object] | None,
) -> list[tuple[str, int, Cell, Parts]]:
    """One turn of a method, built anew so that the memory of one at a time is needed."""
    turn = setting.turn(session.methods[name])
    if set_link is not None:  # On a slow network most of a session would be the warm-up.
        set_link(None)
    turn.warm_up(session.num_warmup_steps)
    gc.collect()
    steps = []
    for cell in cells:
        turn.trainee.slow_down(cell.dilation)
        if set_link is not None and cell.link is not None:
            set_link(cell.link / cell.dilation)
        first = visit * session.steps_per_visit
        for number in range(first, first + session.steps_per_visit):
            steps.append((name, visit, cell, _step(turn, number, cell.kind != "ordinary")))
    return steps


def _step(turn: Turn, number: int, synchronises: bool) -> Parts:
    turn.method.go_to(number, synchronises)
    dist.barrier()
    own, _ = turn.timed_step()
    workers: list[RankStep] = [own] * dist.get_world_size()
    dist.all_gather_object(workers, own)
    return parts_of(workers)


def time_in_lab(session: Session, network: Lab) -> Timed:
    """The session, with a worker in each namespace of the lab; its links are set as cells ask.

    Raises:
        WorkerError: a worker failed; the others are ended.
    """
    fastest = network.topology.bits_per_second
    session = replace(session, layers=session.layers or layers_of(session.workload.name))
    with start_inside(network, _work_in_lab, [(session,)] * session.num_workers) as workers:
        while not isinstance(heard := workers.hear(0), Timed):
            network.set_rate(fastest if heard is None else heard)
            workers.tell(0, True)
        for rank in range(1, session.num_workers):
            workers.hear(rank)
    return heard


def _work_in_lab(worker: Worker, session: Session) -> Timed | None:
    prepare_thread()

    def set_link(rate: float | None) -> None:
        dist.barrier()
        if worker.rank == 0:
            worker.pipe.send(rate)
            worker.pipe.recv()
        dist.barrier()

    with joined("cpu", session.timeout_seconds, worker.init_method, worker.rank, worker.world_size):
        timed = time_methods(session, torch.device("cpu"), set_link)
    return timed if worker.rank == 0 else None
