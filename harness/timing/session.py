"""A session: what is timed together, over which links, in which order; and its record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TypeVar

from cser_bench.harness.measures.steps import ring_bytes
from cser_bench.harness.records.store import VERSION, Attempt
from cser_bench.harness.records.timings import (
    Fabric,
    Message,
    StepKind,
    Stragglers,
    TimedMethod,
    TimedSteps,
    Timing,
    Workload,
)
from cser_bench.harness.timing.timed_step import Parts, parts_of
from cser_bench.harness.timing.turn import NUM_WARMUP_STEPS
from cser_bench.harness.timing.worker import Do, TimingWorker
from cser_bench.harness.timing.workloads import Gradients

WANTED = {False: (1.0, 28.0), True: (3.0, 64.0)}
"""Seconds of a slowed step, and the highest dilation. Beside so many seconds a message's latency,
some 20 ms here, is little.

True: where a method encodes behind its backward pass. This host's cores take long, and a slow pass
    hides it.
"""
SILENT_DILATION = 8.0
"""The dilation of steps that send nothing: they have no link to be slowed down for."""
T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """All that is to be timed together; sent to workers as it is.

    Attributes:
        name: of the record's file, without its ending.
        gradients: of the workload's model.
        methods: in the order of turns, which are there and back again.
        fabric: the network that the workers are on, and how many times slower all is there.
        links: rates, before dilation, of the links that steps are emulated for, one after the
            other; None where no rate is set.
        fastest: rate of a lab's links while methods warm up; no steps ask for more.
        dilates_each: whether each kind of steps on each link has a dilation of its own, and the
            fabric's does not count.
        in_a_row: whether consecutive steps are timed.
        trains: whether the workload's model takes its passes; else they are waits of the workload's
            times.
        steps_per_visit: of each kind; stretches of them where they are in a row.
        stragglers: who is slow, in consecutive steps.
    """

    name: str
    workload: Workload
    gradients: Gradients
    methods: Sequence[TimedMethod]
    fabric: Fabric
    links: Sequence[float | None]
    fastest: float
    dilates_each: bool = False
    in_a_row: bool = False
    trains: bool = False
    num_visits: int = 2
    steps_per_visit: int = 5
    stragglers: Stragglers | None = None


def steps_to_time(session: Session, method: TimedMethod) -> list[TimedSteps]:
    """Plan what is timed of a method whose messages are known: each kind of its steps on each link.

    They have no times yet. Where each has its own dilation, steps that send nothing are timed
    once; and the dilation is large where messages are small, since it divides latency.
    """
    # What ordinary steps send: messages of each step, none of once a period.
    always = [message for message in method.messages if message.every == 1]
    period = method.period
    kinds: list[tuple[StepKind, float, list[Message]]] = [("every", 1.0, always)]
    if session.in_a_row:
        kinds = [("consecutive", 1.0, method.messages)]
    elif period > 1:
        kinds = [
            # One step in `period` sends everything; a mean step is weighted by these shares.
            ("ordinary", 1 - 1 / period, always),
            ("synchronising", 1 / period, method.messages),
        ]
    planned = []
    for kind, share, messages in kinds:
        if session.dilates_each and not messages:
            planned.append(_untimed(method, kind, share, None, SILENT_DILATION))
            continue
        for link in session.links:
            dilation = session.fabric.dilation
            if session.dilates_each:
                dilation = _dilation(session, method, messages, link)
            planned.append(_untimed(method, kind, share, link, dilation))
    return planned


def _untimed(
    method: TimedMethod,
    kind: StepKind,
    share: float,
    link: float | None,
    dilation: float,
) -> TimedSteps:
    return TimedSteps(
        method=method.name,
        kind=kind,
        share=share,
        bits_per_second=link,
        dilation=dilation,
        visits=[],
        seconds=[],
        compute_seconds=[],
        codec_seconds=[],
        waiting_seconds=[],
        transfer_seconds=[],
    )


def _dilation(
    session: Session,
    method: TimedMethod,
    messages: Sequence[Message],
    link: float | None,
) -> float:
    """Choose how many times slower passes and messages are: a step takes as long as is wanted."""
    assert link is not None, "links without a rate cannot be slowed down"
    wanted, highest = WANTED[method.overlap and method.algorithm != "ddp"]
    num_bytes = sum(
        ring_bytes(
            message.collective, message.payload_bytes, session.fabric.num_workers
        )
        for message in messages
    )
    # Compute and transfer one after the other: t = t_compute + 8 bytes / (bits a second).
    step_seconds = session.workload.compute_seconds + 8 * num_bytes / link
    # The second one whatever is wanted: a link of the lab carries `fastest` and no more.
    return max(min(wanted / step_seconds, highest), link / session.fastest, 1.0)


def time_session(
    session: Session,
    do: Do,
    attempt: Attempt,
    set_rate: Callable[[float], object] | None,
) -> Timing:
    """Give the workers the orders of a session, and record what they return.

    Methods take turns.

    Args:
        set_rate: has a lab's links carry so many bits a second; None: they are as they are. In a
            lab workers are of one host, and share its clock.
    """
    begun = do(
        TimingWorker.begin,
        session.workload,
        session.gradients,
        session.trains,
        session.fabric.num_workers,
        list(session.methods),
    )
    # Rank 0 alone has looked at what each method sends.
    methods: list[TimedMethod] = begun[0]
    is_in_lab = set_rate is not None
    timed = {method.name: steps_to_time(session, method) for method in methods}
    for visit, method in there_and_back(methods, session.num_visits):
        # On a slow network most of a session would be the warm-up.
        if set_rate is not None:
            set_rate(session.fastest)
        do(TimingWorker.build, method)
        # Steps are numbered on from the visits before, so that each has draws of its own.
        first = visit * session.steps_per_visit
        for steps in timed[method.name]:
            if set_rate is not None and steps.bits_per_second is not None:
                # Passes wait `dilation` times as long, so the link must be as much slower.
                set_rate(steps.bits_per_second / steps.dilation)
            for number in range(first, first + session.steps_per_visit):
                if session.in_a_row:
                    parts = _time_stretch(session, do, number, steps)
                else:
                    parts = _time_step(do, number, steps, share_clock=is_in_lab)
                add_step(steps, visit, parts, session.trains)
    return Timing(
        version=VERSION,
        basis="measured" if session.trains else "emulated",
        attempt=attempt,
        fabric=session.fabric,
        workload=session.workload,
        stragglers=session.stragglers,
        num_warmup_steps=NUM_WARMUP_STEPS,
        methods=methods,
        cells=[steps for of_method in timed.values() for steps in of_method],
    )


def _time_step(do: Do, number: int, steps: TimedSteps, share_clock: bool) -> Parts:
    """Time one step of this kind on all workers."""
    # Where all steps are alike, each is the last of its period.
    sends_all = steps.kind != "ordinary"
    by_worker = do(TimingWorker.step, number, sends_all, steps.dilation)
    return parts_of(by_worker, share_clock=share_clock)


def _time_stretch(session: Session, do: Do, number: int, steps: TimedSteps) -> Parts:
    """Time consecutive steps, of which what is not compute is transfer."""
    times = do(TimingWorker.stretch, number, steps.dilation, session.stragglers)
    seconds, passes = zip(*times, strict=True)
    # All wait for the slowest worker.
    total = max(seconds)
    compute = mean(passes)
    return Parts(total, compute, codec=0.0, waiting=0.0, transfer=total - compute)


def there_and_back(things: Sequence[T], num_rounds: int) -> Iterator[tuple[int, T]]:
    """Yield the round's number and the thing: A B C, C B A, A B C, ...

    So what disturbs the machine disturbs all alike.
    """
    for number in range(num_rounds):
        for thing in things if number % 2 == 0 else reversed(things):
            yield number, thing


def add_step(steps: TimedSteps, visit: int, parts: Parts, trains: bool) -> None:
    """Add a step to those of its kind, with the dilation undone in all but the codec.

    The codec is left out of the whole where passes are waits.
    """
    steps.visits.append(visit)
    if trains:
        steps.seconds.append(parts.total)
    else:
        steps.seconds.append((parts.total - parts.codec) / steps.dilation)
    steps.compute_seconds.append(parts.compute / steps.dilation)
    steps.codec_seconds.append(parts.codec)
    steps.waiting_seconds.append(parts.waiting / steps.dilation)
    steps.transfer_seconds.append(parts.transfer / steps.dilation)
