"""Tests of whole sessions: workers as processes of this host, the records they write, and what becomes of failures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from harness.records.store import read_record
from harness.records.timings import Sweep, Timing, formula_bytes
from harness.speed import spawn
from harness.speed.layers import layers_of
from harness.speed.methods import METHODS
from harness.speed.questions import LIFT, LIMIT
from harness.speed.request import Request, SweepRequest, TimingRequest
from harness.speed.spawn import Answers, run_in_lab
from harness.speed.workloads import workload
from harness.workers.processes import WorkerError
from tests.speed.conftest import fabric, request_of

TIMED = ["all_reduce", "ddp", "powersgd_2", "mcser", "mcser_overlap", "dpsgd_ring"]


class Loopback:
    """A network of this machine, on which workers have no namespaces of their own."""

    interface = "lo"

    def namespace(self, rank: int) -> None:
        return None


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[TimingRequest, Timing, Sweep, list[str]]:
    """Two workers do a timing and then a sweep, started once, since to start them is what takes long."""
    folder = tmp_path_factory.mktemp("session")
    timing = request_of(
        TIMED,
        folder / "timing-small.json",
        num_visits=2,
        steps_per_visit=2,
        times_codec=True,
        lifts_limits=True,
        workload=workload("fashion_mnist", "cpu"),
        layers=layers_of("fashion_mnist"),
        command="make speedups",
    )
    sweep = SweepRequest(
        fabric=fabric(2, workers_per_machine=1),
        sizes={"all_reduce": [7, 4096], "all_gather": [7], "exchange": [4096]},
        repetitions=2,
        output=folder / "sweep-small.json",
    )
    taken: list[str] = []

    def requests() -> Iterator[Request]:
        for request in (timing, sweep):
            taken.append(f"{request.kind}, {'after' if timing.output.exists() else 'before'} the timing's record")
            yield request

    answers: Answers = {question: partial(taken.append, question) for question in (LIFT, LIMIT)}
    run_in_lab(requests(), Loopback(), answers)
    return timing, read_record(timing.output, Timing), read_record(sweep.output, Sweep), taken


Session = tuple[TimingRequest, Timing, Sweep, list[str]]


def test_the_network_is_prepared_between_requests_and_around_each_warm_up(session: Session) -> None:
    first, *warm_ups, last = session[3]
    assert (first, last) == ("timing, before the timing's record", "sweep, after the timing's record")
    assert warm_ups == [LIFT, LIMIT] * 2 * len(TIMED), "two visits of each"


def test_a_record_holds_what_was_asked_for(session: Session) -> None:
    request, record = session[:2]
    assert (record.fabric, record.workload, record.basis) == (request.fabric, request.workload, "emulated")
    assert [method.name for method in record.methods] == TIMED
    assert record.attempt.command == "make speedups" and record.attempt.backend == "gloo"
    assert all(method.codec_alone_seconds is not None for method in record.methods)


def test_steps_are_there_and_back_again_and_of_both_kinds(session: Session) -> None:
    record = session[1]
    visits = [(step.visit, step.method, step.synchronises) for step in record.steps]
    expected = []
    for visit, names in enumerate([TIMED, TIMED[::-1]]):
        for name in names:
            kinds = [True, True] if METHODS[name].period == 1 else [False, True, False, True]
            expected += [(visit, name, kind) for kind in kinds]
    assert visits == expected


def test_every_step_waits_as_scheduled_and_its_parts_are_within_it(session: Session) -> None:
    record = session[1]
    scheduled = record.workload.forward_seconds + record.workload.backward_seconds
    for step in record.steps:
        assert step.compute_seconds == pytest.approx(scheduled)
        assert step.waiting_seconds is not None
        parts = step.compute_seconds + step.codec_seconds + step.waiting_seconds + step.transfer_seconds
        # Parts are means over workers, of which `seconds` is the slowest's.
        assert 0 < parts <= step.seconds + 1e-9


def test_what_goes_to_neighbours_is_seen_and_timed(session: Session) -> None:
    record = session[1]
    [method] = [each for each in record.methods if each.name == "dpsgd_ring"]
    # Two workers in a ring have one neighbour each.
    assert [(m.collective, m.payload_bytes, m.rounds) for m in method.messages] == [
        ("exchange", 4 * record.workload.num_parameters, ((1,),))
    ]
    steps = [step for step in record.steps if step.method == "dpsgd_ring"]
    assert len(steps) == 4
    assert all(step.transfer_seconds + (step.waiting_seconds or 0.0) > 0 for step in steps)


def test_a_sweep_has_every_size(session: Session) -> None:
    points = session[2].points
    assert [(point.collective, point.payload_bytes) for point in points] == [
        ("all_reduce", 7),
        ("all_reduce", 4096),
        ("all_gather", 7),
        ("exchange", 4096),
    ]
    assert all(len(point.seconds) == 2 and min(point.seconds) > 0 for point in points)
    # Both workers are on a machine of their own: each sends half of it twice, or all of it once.
    assert [point.formula_bytes for point in points] == [7, 4096, 7, 4096]


def test_formulas_of_rings() -> None:
    # Each of 8 workers sends 7 of 8 parts twice; one edge of the ring leaves each machine.
    assert formula_bytes("all_reduce", 800, fabric(8, workers_per_machine=1)) == 2 * 7 * 100
    assert formula_bytes("all_reduce", 800, fabric(8, workers_per_machine=4)) == 2 * 7 * 100
    assert formula_bytes("all_gather", 800, fabric(8, workers_per_machine=4)) == 7 * 800
    assert formula_bytes("all_reduce", 800, fabric(8)) == 0
    # Two messages of 400 leave each worker, or each of two machines.
    assert formula_bytes("exchange", 800, fabric(8, workers_per_machine=1)) == 800
    assert formula_bytes("exchange", 800, fabric(8, workers_per_machine=4)) == 800


def test_no_request_starts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "start_inside", lambda *arguments: pytest.fail("workers were started"))
    run_in_lab([], Loopback())


def test_a_request_that_cannot_be_done_ends_all_and_is_said(tmp_path: Path) -> None:
    request = request_of(["ddp", "no such method"], tmp_path / "out.json")
    with pytest.raises(WorkerError, match=r"^worker 0 failed: KeyError: 'no such method'$"):
        run_in_lab([request], Loopback())
    assert not (tmp_path / "out.json").exists()
