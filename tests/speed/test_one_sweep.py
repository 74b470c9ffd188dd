"""A lab's sweep and that of a standing group are one: the same function makes the points of both."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.lab import sweep as sweeps
from harness.lab.topology import LabTopology
from harness.records.store import read_record
from harness.records.timings import Collective, Sweep, SweepPoint
from harness.speed.groups import Groups
from harness.speed.request import SweepRequest
from harness.speed.sweep import sweep_group
from tests.speed.conftest import fabric

SIZES: dict[Collective, list[int]] = {"all_reduce": [64, 16], "all_gather": [16]}


def test_both_ways_make_their_points_in_one_function(
    alone: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[SweepPoint] = []
    make = sweeps._point

    def noted(*arguments: object) -> SweepPoint:
        made.append(make(*arguments))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(sweeps, "_point", noted)
    # Each look at the counters of both machines finds 30 bytes and 2 frames more; each collective takes 0.1 s.
    looks = count()
    network = SimpleNamespace(
        topology=LabTopology(2, 1, 1e9), sent=lambda: [(30 * look, 2 * look) for look in [next(looks)] * 2]
    )
    processes = SimpleNamespace(tell=lambda rank, order: None, hear_all=lambda: [(1.0, 1.1), (1.0, 1.1)])
    in_lab = sweeps.sweep(sweeps.Connected(network, processes).group(), SIZES)  # type: ignore[arg-type]
    assert in_lab.points == made
    assert [(len(point.seconds), point.wire_bytes, point.wire_frames) for point in made] == [(5, 6.0, 0.4)] * 3

    made.clear()
    request = SweepRequest(
        fabric=fabric(1, workers_per_machine=1), sizes=SIZES, repetitions=2, command="typed", output=tmp_path / "s.json"
    )
    sweep_group(request, torch.device("cpu"), "torchrun")
    in_group = read_record(request.output, Sweep)
    assert in_group.points == made and in_group.attempt.command == "typed"
    assert [(len(point.seconds), point.wire_bytes, point.wire_frames) for point in made] == [(2, None, None)] * 3

    for found in (in_lab, in_group):
        assert [(point.collective, point.payload_bytes) for point in found.points] == [
            ("all_reduce", 16),
            ("all_reduce", 64),
            ("all_gather", 16),
        ], "small ones first"
