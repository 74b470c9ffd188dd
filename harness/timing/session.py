"""A session as data: what is timed together, over which links, in which order, and what its record holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from harness.records.store import VERSION, Attempt
from harness.records.timings import Cell, Fabric, Message, Method, StepKind, Stragglers, Timing, Workload, ring_bytes
from harness.timing.timed_step import Parts
from harness.timing.workloads import Gradients

NUM_WARMUP_STEPS = 3
"""DDP settles its buckets in the second step, and its PowerSGD hook compresses from the third on."""
WANTED_SECONDS = 1.0
"""The length of a slowed step, beside which a message's latency, some 20 ms here, is little."""
HIGHEST_DILATION = 28.0
WANTED_SECONDS_BEHIND, HIGHEST_DILATION_BEHIND = 3.0, 64.0
"""The same where a method encodes behind its backward pass: this host's cores take long, and a slow pass hides it."""
SILENT_DILATION = 8.0
"""The dilation of steps that send nothing: they have no link to be slowed down for."""


@dataclass(frozen=True)
class Session:
    """All that is to be timed together; sent to workers as it is.

    Attributes:
        name: of the record's file, without its ending.
        gradients: of the workload's model.
        methods: in the order of turns, which are there and back again.
        fabric: the network that the workers are on, and how many times slower all is there.
        links: rates, before dilation, of the links that steps are emulated for, one after the other; None where no rate
            is set.
        fastest: rate of a lab's links while methods warm up; no cell asks for more.
        by_cell: whether the dilation is chosen by cell, and the fabric's does not count.
        in_a_row: whether consecutive steps are timed, in real time.
        trains: whether the workload's model takes its passes; else they are waits of the workload's times.
        steps_per_visit: of each cell; stretches of them where they are in a row.
        stragglers: who is slow, in consecutive steps.
    """

    name: str
    workload: Workload
    gradients: Gradients
    methods: Sequence[Method]
    fabric: Fabric
    links: Sequence[float | None]
    fastest: float
    by_cell: bool = False
    in_a_row: bool = False
    trains: bool = False
    num_visits: int = 2
    steps_per_visit: int = 5
    stragglers: Stragglers | None = None


class CellPlan(NamedTuple):
    """A cell to be timed in one go in each turn: steps of a kind, on links of a rate.

    Attributes:
        kind: of the steps, by what they send; a method's that are all alike are synchronising steps in every turn.
        share: of the method's steps that are of this kind.
        link: as in `Session.links`.
        dilation: how many times slower passes are, and links.
    """

    kind: StepKind
    share: float
    link: float | None
    dilation: float


def cells_of(session: Session, method: Method) -> list[CellPlan]:
    """What is timed of a method whose messages are known: each kind of its steps on each link.

    Where dilations are by cell, steps that send nothing are timed once; and the dilation is large where messages are
    small, since it divides latency.
    """
    if session.in_a_row:
        return [CellPlan("consecutive", 1.0, link, 1.0) for link in session.links]
    always, period = [message for message in method.messages if message.every == 1], method.period
    kinds: list[tuple[StepKind, float, list[Message]]] = [("every", 1.0, always)]
    if period > 1:
        kinds = [("ordinary", 1 - 1 / period, always), ("synchronising", 1 / period, method.messages)]
    cells = []
    for kind, share, messages in kinds:
        if session.by_cell and not messages:
            cells.append(CellPlan(kind, share, None, SILENT_DILATION))
            continue
        for link in session.links:
            dilation = _dilation(session, method, messages, link) if session.by_cell else session.fabric.dilation
            cells.append(CellPlan(kind, share, link, dilation))
    return cells


def _dilation(session: Session, method: Method, messages: Sequence[Message], link: float | None) -> float:
    """How many times slower these messages are sent and passes are: a step takes as long as is wanted."""
    assert link is not None, "links without a rate cannot be slowed down"
    encodes_behind = method.overlap and method.algorithm != "ddp"
    wanted = WANTED_SECONDS_BEHIND if encodes_behind else WANTED_SECONDS
    highest = HIGHEST_DILATION_BEHIND if encodes_behind else HIGHEST_DILATION
    sent = sum(ring_bytes(each.collective, each.payload_bytes, session.fabric.num_workers) for each in messages)
    step = session.workload.compute_seconds + 8 * sent / link
    return max(min(wanted / step, highest), link / session.fastest, 1.0)


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


def timing_of(session: Session, methods: list[Method], cells: list[Cell], attempt: Attempt) -> Timing:
    """The session's record, with the methods as it found them to be and their cells, in the order of a turn."""
    return Timing(
        version=VERSION,
        basis="measured" if session.trains else "emulated",
        attempt=attempt,
        fabric=session.fabric,
        workload=session.workload,
        stragglers=session.stragglers,
        num_warmup_steps=NUM_WARMUP_STEPS,
        methods=methods,
        cells=cells,
    )
