"""Sweeps in a lab: bytes on the links against the formula, ceilings, and the command."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.__main__ import main
from harness.records.store import read_record
from harness.records.timings import Sweep
from harness.timing import netlab
from harness.timing import sweep as sweeps
from harness.timing.lab import lab
from harness.timing.links import LabTopology
from harness.workers.processes import WorkerError
from tests.timing.conftest import HEADER_BYTES, namespaces, needs_lab

MEGABYTE = 1_000_000


@needs_lab
@pytest.mark.parametrize(("num_machines", "workers_per_machine"), [(3, 1), (2, 2)])
def test_a_machine_s_link_sends_what_a_ring_says(prefix: str, num_machines: int, workers_per_machine: int) -> None:
    num_workers = num_machines * workers_per_machine
    topology = LabTopology(num_machines, workers_per_machine, 1e9)
    with lab(topology) as network, sweeps.connected(network) as seconds:
        found = sweeps.sweep_lab(network, seconds, {"all_reduce": [MEGABYTE], "all_gather": [MEGABYTE]})
    # A reduce-scatter and an all-gather of n chunks, n - 1 steps each; an all-gather of whole payloads.
    steps = num_workers - 1
    expected = {"all_reduce": 2 * steps * MEGABYTE / num_workers, "all_gather": steps * MEGABYTE}
    assert found.fabric.num_workers == num_workers and found.fabric.bits_per_second == 1e9
    for point in found.points:
        assert point.wire_bytes is not None and point.wire_frames is not None
        assert point.formula_bytes == expected.pop(point.collective)
        assert point.wire_bytes - HEADER_BYTES * point.wire_frames == pytest.approx(point.formula_bytes, rel=0.03)
        # 1448 bytes of data a frame, and an acknowledgement of two frames at the most.
        frames = point.formula_bytes / 1448
        assert frames <= point.wire_frames <= 2 * frames
    assert not expected, "both were measured"


@needs_lab
def test_small_messages_come_first_and_long_ones_are_left_out(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "POINT_SECONDS", 0.01)
    # A payload of 10 MB takes at least 80 s.
    with lab(LabTopology(2, 1, 1e6)) as network, sweeps.connected(network) as seconds:
        found = sweeps.sweep_lab(network, seconds, {"all_reduce": [10 * MEGABYTE, 1000, 100]})
    assert [point.payload_bytes for point in found.points] == [100, 1000]


@pytest.mark.parametrize(("bits_per_second", "least_pause"), [(0.3e6, 8 * 2 * 1514 / 0.3e6), (1e9, 3e-3)])
def test_a_time_is_from_the_last_beginning_and_links_are_rested(bits_per_second: float, least_pause: float) -> None:
    told: list[tuple[str, int, float]] = []
    # Done at 5 and 4, of which the later one began at 3.
    processes = SimpleNamespace(tell=lambda rank, order: told.append(order), hear_all=lambda: [(1.0, 5.0), (3.0, 4.0)])
    network = SimpleNamespace(topology=LabTopology(2, 1, bits_per_second), sent=list)
    now = time.monotonic()
    assert sweeps.agreed_seconds(network, processes, "all_reduce", 8) == 2.0  # type: ignore[arg-type]
    assert len(told) == 2
    for collective, payload, start in told:
        # Two frames of 1514 bytes are what a slow link can give at once; it needs as long to have them again.
        assert (collective, payload) == ("all_reduce", 8) and start - now >= least_pause


@needs_lab
def test_a_worker_that_dies_is_said(prefix: str) -> None:
    with (
        lab(LabTopology(2, 1, 1e9)) as network,
        sweeps.connected(network) as seconds,
        pytest.raises(WorkerError, match=r"worker [01] failed: .*non-negative"),
    ):
        seconds("all_reduce", -4)  # No tensor has such a size.


@needs_lab
def test_the_command_records_what_can_be_emulated(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweeps, "POINT_SECONDS", 0.01)
    monkeypatch.setattr(sweeps, "LONGEST_POINT_SECONDS", 0.1)
    options = ["--workers", "2", "--rates", "20,500000", "--output", str(tmp_path)]
    assert main(["netlab", *options]) == 0
    printed = capsys.readouterr().out
    assert "cannot emulate 2 x 500 Gb/s" in printed and "20 Mb/s" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["sweep-2x1-20mbps.json"]
    found = read_record(tmp_path / "sweep-2x1-20mbps.json", Sweep)
    assert found.fabric.bits_per_second == 20e6
    assert {point.collective for point in found.points} == {"all_reduce", "all_gather", "exchange"}
    assert not namespaces(f"{prefix}-")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--workers", "8", "--machines", "3"], "8 workers are not as many on each of 3 machines"),
        (["--workers", "8", "--machines", "1"], "8 workers are not as many on each of 1 machines"),
        (["--workers", "300"], "a lab has 1 to 250 machines, not 300"),
    ],
)
def test_wrong_options_are_one_sentence(
    options: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(netlab, "why_not", lambda: None)
    monkeypatch.setattr("harness.timing.lab.why_not", lambda: None)
    assert main(["netlab", *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}") and said.count("\n") == 1


@pytest.mark.parametrize(("rates", "wrong"), [("fast", "fast"), ("10,-1", "-1"), ("inf", "inf")])
def test_a_rate_that_is_no_number_is_said(rates: str, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["netlab", "--rates", rates])
    assert f"argument --rates: must be a number above 0, not {wrong!r}" in capsys.readouterr().err
