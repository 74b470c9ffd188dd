"""The study: what stands for what, and what is said to be left out; nothing is timed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.lab.lab import LabTopology
from harness.speed import study
from harness.speed.questions import LIFT, LIMIT
from harness.speed.request import TimingRequest
from harness.speed.study import TimingJob, emulated, run_study


def test_a_rate_within_reach_is_real_time() -> None:
    assert emulated(TimingJob("fashion_mnist", 8, 1, 100e6, 1), 2e9) == (LabTopology(8, 1, 100e6), 1.0)


def test_a_rate_beyond_is_slowed_down_to_what_is_reached() -> None:
    # Eight links of 10 Gb/s are 80 Gb/s in all, forty times the 2 Gb/s that there are.
    topology, dilation = emulated(TimingJob("resnet50_v100", 8, 1, 10e9, 1), 2e9)
    assert (topology, dilation) == (LabTopology(8, 1, 250e6), 40.0)


def test_a_job_is_slowed_down_as_much_as_it_asks_for() -> None:
    assert emulated(TimingJob("resnet50_v100", 8, 1, 10e9, 64), 2e9) == (LabTopology(8, 1, 156.25e6), 64.0)


def test_links_inside_a_machine_are_slowed_down_with_the_others() -> None:
    # Nothing leaves the one machine, so its workers' links decide: 8 x 1.2 Tb/s.
    topology, dilation = emulated(TimingJob("resnet50_v100", 1, 8, 10e9, 1, 1.2e12), 2e9)
    assert dilation == pytest.approx(4800.0)
    assert topology.inside_bits_per_second == pytest.approx(250e6)
    assert topology.bits_per_second * dilation == pytest.approx(10e9)


class FakeLab:
    """A lab of which nothing is there but its rates."""

    def __init__(self, topology: LabTopology) -> None:
        self.topology = topology

    def set_rate(self, bits_per_second: float) -> None:
        self.topology = replace(self.topology, bits_per_second=bits_per_second)


@dataclass
class Seen:
    """What was asked of labs: the requests of each, with the rate of its links at that moment."""

    labs: list[list[tuple[TimingRequest, float]]]

    @property
    def names(self) -> list[str]:
        return [request.output.name for requests in self.labs for request, _ in requests]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """A machine of 2 Gb/s on which nothing takes any time."""
    seen = Seen([])

    @contextmanager
    def lab(topology: LabTopology) -> Iterator[FakeLab]:
        yield FakeLab(topology)

    def run_in_lab(
        requests: Iterable[TimingRequest], network: FakeLab, answers: Mapping[str, Callable[[], object]]
    ) -> None:
        requests_and_rates = []
        for request in requests:
            at_first = network.topology.bits_per_second
            answers[LIFT]()
            lifted = network.topology.bits_per_second
            answers[LIMIT]()
            assert network.topology.bits_per_second == at_first, "as before the warm-up"
            assert lifted == pytest.approx(2e9 / study.SHARE_OF_CEILING / 8)
            requests_and_rates.append((request, at_first))
        seen.labs.append(requests_and_rates)

    monkeypatch.setattr(study, "ceiling_bits_per_second", lambda _: 2e9 / study.SHARE_OF_CEILING)
    monkeypatch.setattr(study, "lab", lab)
    monkeypatch.setattr(study, "connected", lambda lab: nullcontext(SimpleNamespace(group=lambda: lab)))
    monkeypatch.setattr(study, "sweep", lambda group: SimpleNamespace(topology=group.topology))
    monkeypatch.setattr(study, "run_in_lab", run_in_lab)
    monkeypatch.setattr(study, "write_record", lambda path, record: None)
    monkeypatch.setattr(study, "SWEEPS", (LabTopology(8, 1, 10e6), LabTopology(8, 1, 1e9)))
    labs = (
        (TimingJob("resnet50_v100", 8, 1, 10e9, 1), TimingJob("resnet50_v100", 8, 1, 1e9, 16)),
        (TimingJob("resnet50_v100", 1, 8, 10e9, 1, 1.2e12),),
    )
    monkeypatch.setattr(study, "LABS", labs)
    return seen


def test_what_the_machine_cannot_do_is_left_out_and_said(timed: Seen, tmp_path: Path) -> None:
    found = run_study(tmp_path, 60)
    assert found.sweeps == ["sweep-8x1-10mbps.json"]
    assert found.timings == timed.names
    assert timed.names == ["timing-resnet50_v100-8x1-10000mbps.json", "timing-resnet50_v100-8x1-1000mbps.json"]
    beyond, slow = found.left_out
    assert "sweep of 8 x 1 Gb/s" in beyond.what and "2 Gb/s in all, of 8 Gb/s" in beyond.why
    assert "1x8" in slow.what and "slowed down 4800 times" in slow.why


def test_jobs_of_a_lab_each_have_their_rate_in_turn(timed: Seen, tmp_path: Path) -> None:
    run_study(tmp_path, 60)
    (first, second), nothing = timed.labs
    assert [rate for _, rate in (first, second)] == [250e6, 62.5e6]
    for (request, rate), dilation, stands_for in ((first, 40, 10e9), (second, 16, 1e9)):
        assert request.fabric.bits_per_second == rate and request.lifts_limits
        assert request.fabric.dilation == pytest.approx(dilation)
        assert request.fabric.stands_for_bits_per_second == pytest.approx(stands_for)
    assert nothing == []


def test_what_there_is_no_time_for_is_left_out_and_said(timed: Seen, tmp_path: Path) -> None:
    found = run_study(tmp_path, 0)
    assert found.timings == timed.names == []
    assert "minutes given to the study were over" in found.left_out[1].why


def test_the_same_links_slowed_down_twice_have_a_record_each(
    timed: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = (TimingJob("resnet50_v100", 8, 1, 10e9, 64), TimingJob("resnet50_v100", 8, 1, 10e9, 128))
    monkeypatch.setattr(study, "LABS", (same,))
    assert len(set(run_study(tmp_path, 60).timings)) == 2
    assert [request.output.name for request, _ in timed.labs[0]] == timed.names


def test_resnet_is_timed_at_three_rates_and_two_latencies() -> None:
    jobs = [job for lab in study.LABS for job in lab if job.workload == "resnet50_v100" and job.num_machines == 8]
    assert len({job.bits_per_second for job in jobs}) >= 3
    assert len({job.dilation for job in jobs if job.bits_per_second == 10e9}) >= 2
