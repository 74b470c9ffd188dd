"""The study: what stands for what, and what is said to be left out; nothing is timed here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.netlab.lab import Topology
from harness.timing import study
from harness.timing.study import Job, emulated, run_study


def test_a_rate_within_reach_is_real_time() -> None:
    assert emulated(Job("fashion_mnist", 8, 1, 100e6), 2e9) == (Topology(8, 1, 100e6), 1.0)


def test_a_rate_beyond_is_slowed_down_to_what_is_reached() -> None:
    # Eight links of 10 Gb/s are 80 Gb/s in all, forty times the 2 Gb/s that there are.
    topology, dilation = emulated(Job("resnet50_v100", 8, 1, 10e9), 2e9)
    assert (topology, dilation) == (Topology(8, 1, 250e6), 40.0)


def test_links_inside_a_machine_are_slowed_down_with_the_others() -> None:
    # Nothing leaves the one machine, so its workers' links decide: 8 x 1.2 Tb/s.
    topology, dilation = emulated(Job("resnet50_v100", 1, 8, 10e9, 1.2e12), 2e9)
    assert dilation == pytest.approx(4800.0)
    assert topology.inside_bits_per_second == pytest.approx(250e6)
    assert topology.bits_per_second * dilation == pytest.approx(10e9)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine of 2 Gb/s on which nothing takes any time; the workloads that were timed on it."""
    names: list[str] = []

    @contextmanager
    def lab(topology: Topology) -> Iterator[Any]:
        yield SimpleNamespace(topology=topology)

    def run_in_lab(request: Any, _: object) -> None:
        names.append(request.output.name)

    monkeypatch.setattr(study, "ceiling_bits_per_second", lambda _: 2e9 / study.SHARE_OF_CEILING)
    monkeypatch.setattr(study, "lab", lab)
    monkeypatch.setattr(study, "sweep", lambda network: SimpleNamespace(topology=network.topology))
    monkeypatch.setattr(study, "run_in_lab", run_in_lab)
    monkeypatch.setattr(study, "write_record", lambda path, record: None)
    monkeypatch.setattr(study, "SWEEPS", (Topology(8, 1, 10e6), Topology(8, 1, 1e9)))
    jobs = (Job("resnet50_v100", 8, 1, 10e9), Job("resnet50_v100", 1, 8, 10e9, 1.2e12))
    monkeypatch.setattr(study, "JOBS", jobs)
    return names


def test_what_the_machine_cannot_do_is_left_out_and_said(timed: list[str], tmp_path: Path) -> None:
    found = run_study(tmp_path, 60)
    assert found.sweeps == ["sweep-8x1-10mbps.json"]
    assert found.timings == timed == ["timing-resnet50_v100-8x1-10000mbps.json"]
    beyond, slow = found.left_out
    assert "sweep of 8 x 1 Gb/s" in beyond.what and "2 Gb/s in all, of 8 Gb/s" in beyond.why
    assert "1x8" in slow.what and "slowed down 4800 times" in slow.why


def test_what_there_is_no_time_for_is_left_out_and_said(timed: list[str], tmp_path: Path) -> None:
    found = run_study(tmp_path, 0)
    assert found.timings == timed == []
    assert "minutes given to the study were over" in found.left_out[1].why
