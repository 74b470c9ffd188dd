"""Sessions of workers on this host, what becomes of records, mean steps; and how a step is split,
on steps made up."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats

from cser_bench.harness.measures.steps import ring_bytes
from cser_bench.harness.records.provenance import new_attempt
from cser_bench.harness.records.timings import StepKind, Stragglers, TimedSteps, Timing
from cser_bench.harness.timing.links import LabTopology
from cser_bench.harness.timing.methods import CONSECUTIVE, METHODS
from cser_bench.harness.timing.session import (
    Session,
    add_step,
    steps_to_time,
    time_session,
)
from cser_bench.harness.timing.sweep import fabric
from cser_bench.harness.timing.timed_step import Parts, RankStep, parts_of
from cser_bench.harness.timing.worker import connected
from cser_bench.harness.timing.workloads import gradients_of, workload
from cser_bench.report.speed.timed import mean_step

TIMED = ["all_reduce", "ddp", "powersgd_2", "mcser", "mcser_overlap", "dpsgd_ring"]
LINK = 1e9
DILATION = 2.0
FASTEST = 7e9
NETWORK = fabric(LabTopology(2, 1, LINK / DILATION), DILATION)


class Loopback:
    """A network of this machine, on which workers have no namespaces of their own."""

    interface = "lo"
    topology = LabTopology(2, 1, FASTEST)

    def namespace(self, rank: int) -> None:
        return None


def timed(session: Session) -> tuple[Timing, list[float]]:
    """The record of a session of two workers on it, and the rates that links were set to."""
    rates: list[float] = []
    with connected(Loopback()) as do:  # type: ignore[arg-type]
        attempt = new_attempt("processes", "gloo", torch.device("cpu"))
        return time_session(session, do, attempt, rates.append), rates


@pytest.fixture(scope="module")
def asked() -> Session:
    load = workload("fashion_mnist", "cpu")
    methods = [METHODS[name] for name in TIMED]
    gradients = gradients_of("fashion_mnist")
    return Session(
        "two",
        load,
        gradients,
        methods,
        NETWORK,
        links=(LINK,),
        fastest=FASTEST,
        steps_per_visit=2,
    )


@pytest.fixture(scope="module")
def session(asked: Session) -> tuple[Timing, list[float]]:
    """Started once, since that is what takes long."""
    return timed(asked)


def test_links_are_fast_while_a_method_warms_up_and_then_as_its_cells_ask(
    session: tuple[Timing, list[float]],
) -> None:
    expected: list[float] = []
    for name in [*TIMED, *TIMED[::-1]]:
        expected += [
            FASTEST,
            *[LINK / DILATION] * (1 if METHODS[name].period == 1 else 2),
        ]
    assert session[1] == expected


def test_a_record_holds_what_was_asked_for(
    session: tuple[Timing, list[float]], asked: Session
) -> None:
    record, _ = session
    assert (record.fabric, record.workload, record.basis) == (
        NETWORK,
        asked.workload,
        "emulated",
    )
    assert [method.name for method in record.methods] == TIMED
    assert all(
        method.codec_alone_seconds is not None and method.messages
        for method in record.methods
    )
    kinds = {1: ["every"], 32: ["ordinary", "synchronising"]}
    expected = [(name, kind) for name in TIMED for kind in kinds[METHODS[name].period]]
    assert [(cell.method, cell.kind) for cell in record.timed_steps] == expected
    for cell in record.timed_steps:
        assert (cell.bits_per_second, cell.dilation, cell.visits) == (
            LINK,
            DILATION,
            [0, 0, 1, 1],
        )


def test_every_step_waits_as_scheduled_and_its_parts_are_within_it(
    session: tuple[Timing, list[float]],
) -> None:
    record, _ = session
    scheduled = record.workload.forward_seconds + record.workload.backward_seconds
    for cell in record.timed_steps:
        assert cell.compute_seconds == pytest.approx([scheduled] * 4)
        parts = zip(
            cell.compute_seconds,
            cell.waiting_seconds,
            cell.transfer_seconds,
            cell.seconds,
            strict=True,
        )
        # Parts are means over workers, of which `seconds` is the slowest's.
        assert all(
            0 < compute + waiting + transfer <= whole + 1e-9
            for compute, waiting, transfer, whole in parts
        )


@pytest.mark.parametrize("who", ["one", "in turn"])
def test_of_two_workers_one_is_slow_at_each_of_consecutive_steps(
    asked: Session, who: Any
) -> None:
    methods = [CONSECUTIVE[name] for name in ("ddp", "streaming_4")]
    slow = Stragglers(who=who, factor=3)
    row = replace(asked, methods=methods, in_a_row=True, num_visits=1, stragglers=slow)
    found, _ = timed(row)
    scheduled = asked.workload.forward_seconds + asked.workload.backward_seconds
    assert [(each.name, each.period, len(each.messages)) for each in found.methods][
        1
    ] == ("streaming_4", 16, 1)
    for cell in found.timed_steps:
        assert cell.compute_seconds == pytest.approx([scheduled * 2] * 2), (
            "the mean over both workers"
        )
        least = 3 if who == "one" or cell.method == "ddp" else 2
        assert min(cell.seconds) >= least * scheduled * 0.999, (
            "who averages in each step waits in each"
        )


def test_the_codec_is_left_out_of_emulated_steps_and_the_dilation_undone_in_all_but_it(
    asked: Session,
) -> None:
    parts = Parts(total=10.0, compute=4.0, codec=2.0, waiting=1.0, transfer=3.0)
    for trains, seconds in ((False, (10.0 - 2.0) / DILATION), (True, 10.0)):
        [found] = steps_to_time(asked, METHODS["ddp"])
        add_step(found, 1, parts, trains)
        assert (found.visits, found.seconds, found.compute_seconds) == (
            [1],
            [seconds],
            [2.0],
        )
        assert (found.codec_seconds, found.waiting_seconds, found.transfer_seconds) == (
            [2.0],
            [0.5],
            [1.5],
        )


@pytest.mark.parametrize(
    ("collective", "expected"),
    [
        ("all_reduce", 1400),
        ("two_stages", 1400),
        ("all_gather", 5600),
        ("exchange", 800),
    ],
)
def test_formulas_of_rings(collective: Any, expected: float) -> None:
    """Each of 8 workers sends 7 of 8 parts twice, or 7 payloads; two messages of 400 leave each."""
    assert ring_bytes(collective, 800, 8) == expected


# The mean step of a method


def cell(
    kind: StepKind, share: float, seconds: list[float], record: Timing
) -> TimedSteps:
    return record.timed_steps[0].model_copy(
        update={"kind": kind, "share": share, "seconds": seconds}
    )


def test_steps_of_one_kind_have_students_interval_and_kinds_are_mixed_by_their_exact_shares(
    session: tuple[Timing, list[float]],
) -> None:
    seconds = [0.1, 0.12, 0.11, 0.13]
    expected = stats.ttest_1samp(seconds, 0.0).confidence_interval(0.95)
    found = mean_step([cell("every", 1.0, seconds, session[0])])
    assert found == pytest.approx((0.115, expected.low, expected.high))
    ordinary = [1.0, 1.2, 1.1]
    synchronising = [9.0, 9.6]
    mixed = [
        cell("ordinary", 0.75, ordinary, session[0]),
        cell("synchronising", 0.25, synchronising, session[0]),
    ]
    mean, low, high = mean_step(mixed)
    assert mean == pytest.approx(0.75 * 1.1 + 0.25 * 9.3)
    # Welch's interval of the difference of two samples that are scaled by the shares, one of them
    # negated.
    scaled = (
        [0.75 * each for each in ordinary],
        [-0.25 * each for each in synchronising],
    )
    interval = stats.ttest_ind(*scaled, equal_var=False).confidence_interval(0.95)
    assert (low, high) == pytest.approx((interval.low, interval.high))


# A step in parts


INFINITE = math.inf


def step(
    ended: float,
    collectives: list[tuple[float, float]],
    scheduled: float = INFINITE,
    **changed: float,
) -> RankStep:
    """Begins at 0, its passes from 1 to 10."""
    own = {("world", number): interval for number, interval in enumerate(collectives)}
    return replace(RankStep(0.0, 1.0, 10.0, ended, own, scheduled), **changed)


@pytest.mark.parametrize(
    ("ended", "collectives", "scheduled", "compute", "codec", "transfer"),
    [
        # 1 before the passes, 9 of them, 2 to encode, 5 to send, 3 to update.
        (20.0, [(12.0, 17.0)], INFINITE, 9.0, 6.0, 5.0),
        # What is hidden behind the backward pass costs nothing.
        (13.0, [(3.0, 8.0), (9.0, 12.0)], INFINITE, 9.0, 2.0, 2.0),
        # Collectives at once are counted once.
        (20.0, [(10.0, 15.0), (12.0, 18.0), (11.0, 13.0)], INFINITE, 9.0, 3.0, 8.0),
        # Where compute is scheduled its delay is codec.
        (12.0, [(10.0, 12.0)], 6.0, 6.0, 1.0 + 3.0, 2.0),
    ],
)
def test_a_workers_step_is_split(
    ended: float,
    collectives: list[tuple[float, float]],
    scheduled: float,
    compute: float,
    codec: float,
    transfer: float,
) -> None:
    parts = parts_of([step(ended, collectives, scheduled)], True)
    assert (parts.total, parts.compute, parts.codec, parts.transfer) == (
        ended,
        compute,
        codec,
        transfer,
    )
    assert parts.waiting == 0.0
    assert compute + codec + transfer == ended


def test_a_worker_waits_until_the_last_has_come() -> None:
    early = step(20.0, [(11.0, 18.0)])
    late = step(20.0, [(15.0, 18.0)], last_gradient=15.0)
    parts = parts_of([early, late], True)
    assert parts.waiting == (4.0 + 0.0) / 2
    assert parts.transfer == 3.0
    assert parts.compute == (9.0 + 14.0) / 2
    assert parts.compute + parts.codec + parts.waiting + parts.transfer == 20.0
    scheduled = [replace(each, scheduled_seconds=9.0) for each in (early, late)]
    parts = parts_of(scheduled, True)
    found = (parts.compute, parts.codec, parts.waiting, parts.transfer)
    assert found == (9.0, 8.0, 0.0, 3.0), "who waits for another's codec encodes too"
    parts = parts_of([early, late], False)
    assert parts.waiting == 0.0 and parts.transfer == (7.0 + 3.0) / 2, (
        "without a common clock it is part of transfer"
    )
