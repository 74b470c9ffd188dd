"""Whole sessions: workers as processes of this host, what links are set to, and what becomes of records."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from harness.records.provenance import new_attempt
from harness.records.timings import Fabric, Timing, formula_bytes
from harness.timing.links import LabTopology
from harness.timing.methods import METHODS
from harness.timing.session import CellPlan, Session, cell_of, kinds_of, on_one_link, time_in_lab, timing_of
from harness.timing.sweep import fabric
from harness.timing.timed_step import Parts
from harness.timing.trainees import workload
from harness.timing.workloads import gradients_of
from harness.workers.processes import WorkerError

TIMED = ["all_reduce", "ddp", "powersgd_2", "mcser", "mcser_overlap", "dpsgd_ring"]
LINK, DILATION, FASTEST = 1e9, 2.0, 7e9


class Loopback:
    """A network of this machine, on which workers have no namespaces of their own and links only note their rates."""

    interface = "lo"
    topology = LabTopology(2, 1, FASTEST)

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.set_rate = self.rates.append

    def namespace(self, rank: int) -> None:
        return None


def lab_of(num_machines: int, workers_per_machine: int = 1) -> Fabric:
    return fabric(LabTopology(num_machines, workers_per_machine, LINK / DILATION), DILATION)


@pytest.fixture(scope="module")
def asked() -> Session:
    load, methods = workload("fashion_mnist", "cpu"), [METHODS[name] for name in TIMED]
    cells_of = partial(on_one_link, LINK, DILATION)
    return Session(load, gradients_of("fashion_mnist"), 2, methods, cells_of, steps_per_visit=2)


@pytest.fixture(scope="module")
def session(asked: Session) -> tuple[Timing, list[float]]:
    """The record, and the rates that links were set to, of two workers, started once, since that is what takes long."""
    network = Loopback()
    found = time_in_lab(asked, network)  # type: ignore[arg-type]
    attempt = new_attempt("processes", "gloo", torch.device("cpu"))
    return timing_of(asked, found, attempt, lab_of(2)), network.rates


def test_links_are_fast_while_a_method_warms_up_and_then_as_its_cells_ask(session: tuple[Timing, list[float]]) -> None:
    expected: list[float] = []
    for name in [*TIMED, *TIMED[::-1]]:
        expected += [FASTEST, *[LINK / DILATION] * (1 if METHODS[name].period == 1 else 2)]
    assert session[1] == expected


def test_a_record_holds_what_was_asked_for(session: tuple[Timing, list[float]], asked: Session) -> None:
    record, _ = session
    assert (record.fabric, record.workload, record.basis) == (lab_of(2), asked.workload, "emulated")
    assert [method.name for method in record.methods] == TIMED
    assert all(method.codec_alone_seconds is not None and method.messages for method in record.methods)
    kinds = {1: ["every"], 32: ["ordinary", "synchronising"]}
    expected = [(name, kind) for name in TIMED for kind in kinds[METHODS[name].period]]
    assert [(cell.method, cell.kind) for cell in record.cells] == expected
    for cell in record.cells:
        assert (cell.bits_per_second, cell.dilation, cell.visits) == (LINK, DILATION, [0, 0, 1, 1])


def test_every_step_waits_as_scheduled_and_its_parts_are_within_it(session: tuple[Timing, list[float]]) -> None:
    record, _ = session
    scheduled = record.workload.forward_seconds + record.workload.backward_seconds
    for cell in record.cells:
        assert cell.compute_seconds == pytest.approx([scheduled] * 4)
        parts = zip(cell.compute_seconds, cell.waiting_seconds, cell.transfer_seconds, cell.seconds, strict=True)
        # Parts are means over workers, of which `seconds` is the slowest's.
        assert all(0 < compute + waiting + transfer <= whole + 1e-9 for compute, waiting, transfer, whole in parts)


def test_what_goes_to_neighbours_is_seen_and_timed(session: tuple[Timing, list[float]]) -> None:
    record, _ = session
    [message] = next(each.messages for each in record.methods if each.name == "dpsgd_ring")
    assert (message.collective, message.payload_bytes) == ("exchange", 4 * record.workload.num_parameters)
    assert message.rounds == ((1,),), "two workers in a ring have one neighbour each"
    [cell] = record.cells_of("dpsgd_ring", LINK)
    assert all(one + other > 0 for one, other in zip(cell.transfer_seconds, cell.waiting_seconds, strict=True))


def _impossible(*arguments: object) -> list[CellPlan]:
    raise ValueError("no such cells")


def test_a_worker_that_fails_ends_all_and_is_said(asked: Session) -> None:
    failing = replace(asked, methods=asked.methods[:1], cells_of=_impossible)
    with pytest.raises(WorkerError, match=r"^worker \d failed: .*no such cells$"):
        time_in_lab(failing, Loopback())  # type: ignore[arg-type]


def test_shares_of_kinds_are_exact() -> None:
    assert [kind[:2] for kind in kinds_of(METHODS["ddp"])] == [("every", 1.0)]
    assert [kind[:2] for kind in kinds_of(METHODS["mcser"])] == [("ordinary", 31 / 32), ("synchronising", 1 / 32)]


def test_the_codec_is_left_out_of_emulated_steps_and_the_dilation_undone_in_all_but_it() -> None:
    parts, plan = (
        Parts(total=10.0, compute=4.0, codec=2.0, waiting=1.0, transfer=3.0),
        CellPlan("every", 1.0, LINK, 2.0),
    )
    emulated, real = (cell_of("ddp", plan, [(0, parts)], trains) for trains in (False, True))
    assert emulated.seconds == [(10.0 - 2.0) / 2.0] and real.seconds == [10.0]
    assert (emulated.compute_seconds, emulated.codec_seconds) == ([2.0], [2.0])
    assert (emulated.waiting_seconds, emulated.transfer_seconds) == ([0.5], [1.5])


def test_formulas_of_rings() -> None:
    # Each of 8 workers sends 7 of 8 parts twice; one edge of the ring leaves each machine.
    assert formula_bytes("all_reduce", 800, lab_of(8)) == formula_bytes("all_reduce", 800, lab_of(2, 4)) == 2 * 7 * 100
    assert formula_bytes("all_gather", 800, lab_of(2, 4)) == 7 * 800
    assert formula_bytes("all_reduce", 800, lab_of(1, 8)) == 0
    # Two messages of 400 leave each worker, or each of two machines.
    assert formula_bytes("exchange", 800, lab_of(8)) == formula_bytes("exchange", 800, lab_of(2, 4)) == 800
