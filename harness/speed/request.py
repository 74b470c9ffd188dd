"""What the workers of a timing session are asked to do: read strictly, and sent to them as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from harness.records.store import Record
from harness.records.timings import Basis, Collective, Fabric, Workload
from harness.speed.layers import Layers

MIN_WARMUP_STEPS = 3
"""DDP settles its buckets in the second step, and its PowerSGD hook compresses from the third on."""

Count = Annotated[int, Field(ge=1)]

SWEPT_BYTES: dict[Collective, list[int]] = {
    "all_reduce": [4**power for power in range(6, 14)],
    "all_gather": [4**power for power in range(6, 12)],
    "exchange": [4**power for power in range(6, 14)],
}
"""From 4 KiB to 64 MiB, and to 4 MiB: in an all-gather of eight workers seven messages go over every link."""


class TimingRequest(Record):
    """Time these methods by turns and write a `Timing` record.

    Every visit builds its method anew, so that the memory of one at a time is needed, takes `num_warmup_steps` and
    then `steps_per_visit` of each kind of step that the method has.
    """

    kind: Literal["timing"] = "timing"
    fabric: Fabric
    basis: Basis
    workload: Workload
    trainee: Literal["waiting", "real"]
    methods: Annotated[list[str], Field(min_length=1)]
    """Names in `harness.speed.methods.METHODS`."""
    num_warmup_steps: Annotated[int, Field(ge=MIN_WARMUP_STEPS)] = MIN_WARMUP_STEPS
    num_visits: Count = 4
    steps_per_visit: Count = 1
    lifts_limits: bool = False
    """Whether whoever started rank 0 lets links be fast while methods warm up; see `harness.speed.questions`."""
    times_codec: bool = True
    """Whether rank 0 also takes steps alone, for `Method.codec_alone_seconds`."""
    device: Literal["cpu", "cuda"] = "cpu"
    timeout_seconds: float = 300.0
    """How long a worker waits for the others."""
    command: str | None = None
    """What the user typed, for the record; None: the workers' own command line."""
    output: Path
    layers: Layers | None = None
    """Of the workload's model; None: every worker finds out by itself, which takes a while."""


class ScoredRequest(Record):
    """What turns of a session of scored methods share; see `harness.speed.scored`."""

    fabric: Fabric
    """Its rate is what links have while methods warm up."""
    workload: Workload
    trainee: Literal["waiting"]
    num_warmup_steps: Annotated[int, Field(ge=MIN_WARMUP_STEPS)] = MIN_WARMUP_STEPS
    times_codec: bool = True
    timeout_seconds: float = 300.0
    layers: Layers | None = None


class SweepRequest(Record):
    """Time collectives, each at payloads of so many bytes a worker, and write a `Sweep` record."""

    kind: Literal["sweep"] = "sweep"
    fabric: Fabric
    sizes: dict[Collective, list[Count]] = SWEPT_BYTES
    repetitions: Count = 5
    device: Literal["cpu", "cuda"] = "cpu"
    timeout_seconds: float = 300.0
    command: str | None = None
    output: Path


Request = TimingRequest | SweepRequest
