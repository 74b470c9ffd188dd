"""The study of speed-ups: what stands for what, and what is said to be left out; nothing is timed here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.records.timings import Fabric, Workload
from harness.timing import study
from harness.timing.links import LabTopology
from harness.timing.study import JOBS, RELATIVES, TimingJob, run_study

MOST = 2e9
Timed = list[tuple[str, float | None, float]]


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
def timed(monkeypatch: pytest.MonkeyPatch) -> Timed:
    """A machine of 2 Gb/s on which nothing takes time: by timing, its links' rate and the fastest that they have."""
    seen: Timed = []

    @contextmanager
    def lab(topology: LabTopology) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(topology=topology)

    def time(file: Path, load: Workload, methods: object, cells_of: object, most: float, network: Fabric) -> None:
        seen.append((load.name, network.bits_per_second, most / network.num_workers))

    monkeypatch.setattr(study, "ceiling_bits_per_second", lambda _: MOST / study.SHARE_OF_CEILING)
    monkeypatch.setattr(study, "lab", lab)
    monkeypatch.setattr(study, "connected", lambda lab: nullcontext())
    monkeypatch.setattr(study, "sweep_lab", lambda lab, seconds: None)
    monkeypatch.setattr(study, "_time", time)
    monkeypatch.setattr(study, "write_record", lambda path, record: None)
    jobs = (
        TimingJob("resnet50_v100", 8, 1, 10e9, 1),
        TimingJob("resnet50_v100", 8, 1, 10e9, 128),
        TimingJob("resnet50_v100", 8, 1, 1e12, 1),
    )
    monkeypatch.setattr(study, "JOBS", jobs)
    return seen


def test_what_the_machine_cannot_do_is_left_out_and_said(timed: Timed, tmp_path: Path) -> None:
    found = run_study(tmp_path, 60)
    assert found.sweeps == ["sweep-8x1-78.125mbps.json", "sweep-8x1-250mbps.json"]
    # The same links slowed down twice have a record each.
    name = "timing-resnet50_v100-8x1-10000mbps"
    assert found.timings == [f"{name}.json", f"{name}-slowed-128.json"]
    assert timed == [("resnet50_v100", 250e6, 250e6), ("resnet50_v100", 10e9 / 128, 250e6)]
    [slow] = found.left_out
    assert "8x1 workers at 1000 Gb/s" in slow.what and "slowed down 4000 times" in slow.why


def test_what_there_is_no_time_for_is_left_out_and_said(timed: Timed, tmp_path: Path) -> None:
    found = run_study(tmp_path, 0)
    assert found.timings == timed == []
    assert "minutes given to the study were over" in found.left_out[0].why


def test_jobs_have_several_rates_latencies_and_layouts() -> None:
    jobs = [job for job in JOBS if job.workload == "resnet50_v100" and job.num_machines == 8]
    assert len({job.bits_per_second for job in jobs}) >= 3
    assert len({job.dilation for job in jobs if job.bits_per_second == 10e9}) >= 2
    for name in RELATIVES:
        mine = [job for job in JOBS if name in job.methods]
        assert {(job.num_machines, job.workers_per_machine) for job in mine} >= {(8, 1), (2, 4)}
        assert max(job.bits_per_second for job in mine if job.workload == "fashion_mnist") == 10e9
