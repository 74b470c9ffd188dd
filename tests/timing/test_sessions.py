"""Tests of whole sessions: workers as processes of this host, what links are set to, and what becomes of records."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from harness.records.provenance import new_attempt
from harness.records.timings import Fabric, StepKind, Timing, formula_bytes
from harness.timing.layout import LabTopology
from harness.timing.methods import METHODS
from harness.timing.passes import workload
from harness.timing.session import Cell, Session, Timed, kinds_of, on_one_link, time_in_lab
from harness.timing.study import timing_of
from harness.timing.workloads import layers_of
from harness.workers.processes import WorkerError

TIMED = ["all_reduce", "ddp", "powersgd_2", "mcser", "mcser_overlap", "dpsgd_ring"]
LINK, DILATION, FASTEST = 1e9, 2.0, 7e9


class Loopback:
    """A network of this machine, on which workers have no namespaces of their own and links only note their rates."""

    interface = "lo"
    topology = LabTopology(2, 1, FASTEST)

    def __init__(self) -> None:
        self.rates: list[float] = []

    def namespace(self, rank: int) -> None:
        return None

    def set_rate(self, bits_per_second: float) -> None:
        self.rates.append(bits_per_second)


def fabric(num_workers: int, workers_per_machine: int = 1) -> Fabric:
    return Fabric(
        kind="netlab",
        backend="gloo",
        num_machines=num_workers // workers_per_machine,
        workers_per_machine=workers_per_machine,
        bits_per_second=LINK / DILATION,
        inside_bits_per_second=None,
        dilation=DILATION,
    )


def small_session() -> Session:
    return Session(
        workload=workload("fashion_mnist", "cpu"),
        num_workers=2,
        methods={name: METHODS[name] for name in TIMED},
        cells_of=partial(on_one_link, LINK, DILATION),
        trains=False,
        layers=layers_of("fashion_mnist"),
    )


@pytest.fixture(scope="module")
def session() -> tuple[Session, Timed, Timing, list[float]]:
    """Two workers, started once, since to start them is what takes long."""
    asked, network = small_session(), Loopback()
    found = time_in_lab(asked, network)  # type: ignore[arg-type]
    attempt = new_attempt("processes", "gloo", torch.device("cpu"))
    return asked, found, timing_of(asked, found, attempt, "emulated", fabric(2)), network.rates


Whole = tuple[Session, Timed, Timing, list[float]]


def test_links_are_fast_while_a_method_warms_up_and_then_as_its_cells_ask(session: Whole) -> None:
    expected: list[float] = []
    for name in [*TIMED, *TIMED[::-1]]:
        expected += [FASTEST, *[LINK / DILATION] * (1 if METHODS[name].period == 1 else 2)]
    assert session[3] == expected


def test_a_record_holds_what_was_asked_for(session: Whole) -> None:
    asked, _, record, _ = session
    assert (record.fabric, record.workload, record.basis) == (fabric(2), asked.workload, "emulated")
    assert [method.name for method in record.methods] == TIMED
    assert all(method.codec_alone_seconds is not None for method in record.methods)
    assert record.fabric.stands_for_bits_per_second == LINK


def test_steps_are_there_and_back_again_and_of_both_kinds(session: Whole) -> None:
    visits = [(step.visit, step.method, step.synchronises) for step in session[2].steps]
    expected = []
    for visit, names in enumerate([TIMED, TIMED[::-1]]):
        for name in names:
            kinds = [True, True] if METHODS[name].period == 1 else [False, False, True, True]
            expected += [(visit, name, kind) for kind in kinds]
    assert visits == expected


def test_every_step_waits_as_scheduled_and_its_parts_are_within_it(session: Whole) -> None:
    record = session[2]
    scheduled = DILATION * (record.workload.forward_seconds + record.workload.backward_seconds)
    for step in record.steps:
        assert step.compute_seconds == pytest.approx(scheduled)
        assert step.waiting_seconds is not None
        parts = step.compute_seconds + step.codec_seconds + step.waiting_seconds + step.transfer_seconds
        # Parts are means over workers, of which `seconds` is the slowest's.
        assert 0 < parts <= step.seconds + 1e-9


def test_what_goes_to_neighbours_is_seen_and_timed(session: Whole) -> None:
    record = session[2]
    [method] = [each for each in record.methods if each.name == "dpsgd_ring"]
    # Two workers in a ring have one neighbour each.
    assert [(m.collective, m.payload_bytes, m.rounds) for m in method.messages] == [
        ("exchange", 4 * record.workload.num_parameters, ((1,),))
    ]
    steps = [step for step in record.steps if step.method == "dpsgd_ring"]
    assert len(steps) == 4
    assert all(step.transfer_seconds + (step.waiting_seconds or 0.0) > 0 for step in steps)


def test_a_session_whose_time_is_over_times_nothing_and_says_so() -> None:
    asked = replace(small_session(), methods={"ddp": METHODS["ddp"]}, deadline=time.monotonic() - 1.0)
    found = time_in_lab(asked, Loopback())  # type: ignore[arg-type]
    assert found.left_out == ["ddp"] and found.steps == []


def _impossible(*arguments: object) -> list[Cell]:
    raise ValueError("no such cells")


def test_a_worker_that_fails_ends_all_and_is_said() -> None:
    with pytest.raises(WorkerError, match=r"^worker \d failed: .*no such cells$"):
        time_in_lab(replace(small_session(), cells_of=_impossible), Loopback())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ddp", {"every": 1.0}), ("mcser", {"ordinary": 31 / 32, "synchronising": 1 / 32})],
)
def test_shares_of_kinds_are_exact(name: str, expected: dict[StepKind, float]) -> None:
    assert {kind: share for kind, share, _ in kinds_of(METHODS[name].period, [])} == expected


def test_periods_are_those_of_the_settings() -> None:
    periods = {name: timed.period for name, timed in METHODS.items() if timed.period > 1}
    assert periods == {
        "qsparse_local_sgd": 8,
        "local_sgd": 256,
        "diloco": 256,
        "cser_pl": 16,
        "mcser": 32,
        "mcser_32": 16,
        "mcser_1024": 256,
        "mcser_overlap": 32,
    }


def test_formulas_of_rings() -> None:
    # Each of 8 workers sends 7 of 8 parts twice; one edge of the ring leaves each machine.
    assert formula_bytes("all_reduce", 800, fabric(8)) == 2 * 7 * 100
    assert formula_bytes("all_reduce", 800, fabric(8, 4)) == 2 * 7 * 100
    assert formula_bytes("all_gather", 800, fabric(8, 4)) == 7 * 800
    assert formula_bytes("all_reduce", 800, fabric(8, 8)) == 0
    # Two messages of 400 leave each worker, or each of two machines.
    assert formula_bytes("exchange", 800, fabric(8)) == formula_bytes("exchange", 800, fabric(8, 4)) == 800
