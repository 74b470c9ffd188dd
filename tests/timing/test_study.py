"""The study of speed-ups: what stands for what, and what is said to be left out; nothing is timed here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.timing import study
from harness.timing.layout import LabTopology
from harness.timing.study import JOBS, TimingJob, run_study

MOST = 2e9


@pytest.mark.parametrize(
    ("job", "topology", "dilation"),
    [
        (TimingJob("fashion_mnist", 8, 1, 100e6, 1), LabTopology(8, 1, 100e6), 1.0),
        # Eight links of 10 Gb/s are 80 Gb/s in all, forty times the 2 Gb/s that there are.
        (TimingJob("resnet50_v100", 8, 1, 10e9, 1), LabTopology(8, 1, 250e6), 40.0),
        (TimingJob("resnet50_v100", 8, 1, 10e9, 64), LabTopology(8, 1, 156.25e6), 64.0),
    ],
)
def test_a_rate_beyond_reach_is_slowed_down(job: TimingJob, topology: LabTopology, dilation: float) -> None:
    assert job.emulated(MOST) == (topology, dilation)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float]]:
    """A machine of 2 Gb/s on which nothing takes time: by timing, its links' rate and the fastest that they have."""
    seen: list[tuple[str, float, float]] = []

    @contextmanager
    def lab(topology: LabTopology) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(topology=topology)

    def timing(job: TimingJob, load: object, topology: LabTopology, dilation: float, fastest: float) -> None:
        seen.append((job.workload, topology.bits_per_second, fastest))

    monkeypatch.setattr(study, "ceiling_bits_per_second", lambda _: MOST / study.SHARE_OF_CEILING)
    monkeypatch.setattr(study, "lab", lab)
    monkeypatch.setattr(study, "connected", lambda lab: nullcontext(SimpleNamespace(group=lambda: lab)))
    monkeypatch.setattr(study, "sweep", lambda group: None)
    monkeypatch.setattr(study, "_timing", timing)
    monkeypatch.setattr(study, "write_record", lambda path, record: None)
    monkeypatch.setattr(study, "SWEEPS", (LabTopology(8, 1, 10e6), LabTopology(8, 1, 1e9)))
    jobs = (
        TimingJob("resnet50_v100", 8, 1, 10e9, 1),
        TimingJob("resnet50_v100", 8, 1, 10e9, 128),
        TimingJob("resnet50_v100", 8, 1, 1e12, 1),
    )
    monkeypatch.setattr(study, "JOBS", jobs)
    return seen


def test_what_the_machine_cannot_do_is_left_out_and_said(timed: list[tuple[str, float, float]], tmp_path: Path) -> None:
    found = run_study(tmp_path, 60)
    assert found.sweeps == ["sweep-8x1-10mbps.json"]
    # The same links slowed down twice have a record each.
    name = "timing-resnet50_v100-8x1-10000mbps"
    assert found.timings == [f"{name}.json", f"{name}-slowed-128.json"]
    assert timed == [("resnet50_v100", 250e6, 250e6), ("resnet50_v100", 10e9 / 128, 250e6)]
    beyond, slow = found.left_out
    assert "sweep of 8 x 1 Gb/s" in beyond.what and "2 Gb/s in all, of 8 Gb/s" in beyond.why
    assert "8x1 workers at 1000 Gb/s" in slow.what and "slowed down 4000 times" in slow.why


def test_what_there_is_no_time_for_is_left_out_and_said(timed: list[tuple[str, float, float]], tmp_path: Path) -> None:
    found = run_study(tmp_path, 0)
    assert found.timings == timed == []
    assert "minutes given to the study were over" in found.left_out[1].why


def test_resnet_is_timed_at_three_rates_and_two_latencies_ten_steps_of_a_kind() -> None:
    jobs = [job for job in JOBS if job.workload == "resnet50_v100" and job.num_machines == 8]
    assert len({job.bits_per_second for job in jobs}) >= 3
    assert len({job.dilation for job in jobs if job.bits_per_second == 10e9}) >= 2
    assert all(2 * job.steps_per_visit >= 10 for job in JOBS)
