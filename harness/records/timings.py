"""Records of timing: what was timed, on which network, and every step.

Nothing here imports torch: the report reads them.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from cser_bench.harness.records.store import Attempt, Record
from cser_bench.harness.spec.run import MethodSource
from cser_bench.harness.spec.values import LocalStep

Basis = Literal["measured", "emulated"]
"""`emulated`: compute was a wait of known length, or the clock was dilated; the network is real in
both."""

Collective = Literal["all_reduce", "two_stages", "all_gather", "exchange"]
"""`exchange`: each worker sends one message to each of its neighbours, straight; in a sweep they
are a ring's."""

Rounds = tuple[tuple[int, ...], ...]
"""Neighbours that a worker sends to in an exchange, as distances in ranks around a circle: a tuple
for each step, repeated in a cycle."""


def latency_text(latency_seconds: float, jitter_seconds: float) -> str:
    """Return a latency for people: 20 ms, or 5 to 10 ms."""
    most = f" to {1e3 * (latency_seconds + jitter_seconds):g}" if jitter_seconds else ""
    return f"{1e3 * latency_seconds:g}{most} ms"


class Fabric(Record):
    """The network between the workers, at rates of one direction before any dilation is undone.

    A rate is None where no limit is known.

    `netlab` is namespaces with rate limits, `host` whatever network the workers' hosts have. Rates
    are those of each machine's link, and of each worker's inside its machine. The latency is set
    between machines, one way, by a relay in place of a switch; a packet has up to the jitter more.
    The compute was slowed down `dilation` times, so the network stands for one that much faster.
    """

    kind: Literal["netlab", "host"]
    backend: str
    num_machines: int
    workers_per_machine: int
    bits_per_second: float | None = None
    inside_bits_per_second: float | None = None
    latency_seconds: float = 0.0
    jitter_seconds: float = 0.0
    dilation: float = 1.0

    @property
    def num_workers(self) -> int:
        return self.num_machines * self.workers_per_machine

    @property
    def layout(self) -> tuple[int, int]:
        """Machines, and workers of each."""
        return self.num_machines, self.workers_per_machine

    @property
    def latency(self) -> str:
        """The latency one way for people."""
        return latency_text(self.latency_seconds, self.jitter_seconds)


class Workload(Record):
    """A worker's computation in a step, at the speed of the device that is timed or emulated.

    `source`: where its seconds come from, which is a publication, a calibration here, or a model of
        them.
    """

    name: str
    model: str
    batch_size: int
    num_parameters: int
    device: str
    forward_seconds: float
    backward_seconds: float
    source: str

    @property
    def compute_seconds(self) -> float:
        """Forward and backward pass of one worker's batch."""
        return self.forward_seconds + self.backward_seconds


class Message(Record):
    """One collective of a step, as a cost model needs it.

    Attributes:
        payload_bytes: what one worker contributes; in an exchange its message once for each
            neighbour.
        every: steps from one to the next.
        ready: share of the backward pass that is done when it may start, on average; 1: only after
            it.
        ready_draws: the same in single steps, where it depends on the step's draw of blocks; all
            messages' are of the same steps.
        rounds: of an exchange; empty for other collectives.
    """

    collective: Collective
    payload_bytes: int
    every: int
    ready: float
    ready_draws: tuple[float, ...] = ()
    rounds: Rounds = ()


class TimedMethod(Record):
    """A method or baseline as a session timed it.

    It has the settings that a spec gives, and what the session found out about it.

    Attributes:
        algorithm, settings, momentum, local_step: a row of an accuracy experiment is of this method
            where its four are equal.
        rows: "experiment/row" of each that is so; of DDP, which computes what SGD does, SGD's;
            other baselines' none.
        overlap: whether collectives begin during the backward pass.
        period: steps after which the pattern of its messages repeats; 1 where all steps are alike.
        codec_alone_seconds: encoding, decoding and update of a step, mean over the period, of one
            worker with a core (or a GPU) to itself; None: not timed.
        method_source: of a method from outside this package, as a run's config has it.
    """

    name: str
    label: str
    algorithm: str
    settings: dict[str, Any]
    momentum: float
    local_step: LocalStep = "sgd"
    rows: list[str]
    baseline: bool
    overlap: bool
    period: int
    messages: list[Message]
    codec_alone_seconds: float | None = None
    method_source: MethodSource | None = None

    @property
    def key(self) -> tuple[str, dict[str, Any], float, str]:
        """What two of the same step have in common."""
        # Not by name, as rows of experiments have names of their own.
        return self.algorithm, self.settings, self.momentum, self.local_step

    def payload_reduction(self, num_parameters: int) -> float:
        """Return the bytes of a 32-bit gradient over those of the payload, on average over steps.

        It is infinite where nothing is sent.
        """
        # A message every k steps counts 1 / k in a mean step; a number of the gradient has 4 bytes.
        sent = sum(message.payload_bytes / message.every for message in self.messages)
        return 4 * num_parameters / sent if sent else math.inf


StepKind = Literal["every", "ordinary", "synchronising", "consecutive"]
"""`every`: all steps of the method are alike; else the last of a period synchronises, others are
ordinary.

`consecutive`: whole periods, one step after the other, so that a message can travel beside the
steps that follow, and a worker can be late without the others' waiting at once. A number is then a
stretch's mean over its steps."""


class Stragglers(Record):
    """Workers whose passes take `factor` times as long.

    It is worker 0 in every step, or each worker in its turn, one a step.
    """

    who: Literal["one", "in turn"]
    factor: float


class TimedSteps(Record):
    """Timed steps of one kind, of one method, on links of one rate.

    All lists are by step, in the order of timing.

    `share` is the part of the method's steps that are of this kind; on one link shares sum to 1.
    The rate is of the emulated links; None: none was set, or such steps send nothing and are alike
    on all. `visits` are numbers of the method's turns, which are there and back again.

    `seconds` are the slowest worker's, the others are means over workers. Where steps are emulated
    `seconds` leave the codec out, since it runs on this host's cores: encoding, decoding and
    update. `waiting` is from a worker's arrival at a collective to the last one's, and 0 where the
    workers share no clock; `transfer` is the rest of the collective that was not hidden behind the
    backward pass. The dilation is undone in all but the codec's. For consecutive steps `transfer` is
    everything that is not compute, and `seconds` include everything.
    """

    method: str
    kind: StepKind
    share: float
    bits_per_second: float | None
    dilation: float
    visits: list[int]
    seconds: list[float]
    compute_seconds: list[float]
    codec_seconds: list[float]
    waiting_seconds: list[float]
    transfer_seconds: list[float]


class Timing(Record):
    """timing-*.json, scored-*.json: steps of methods that took turns in one session.

    The session ran in one allocation.

    A method's mean step on a link is the sum of share times mean over its `timed_steps` there
    (`report.speed.timed.mean_step`). Sessions of the same commit and machine are repetitions. The
    fabric's rate is None where these are of several.
    """

    version: int
    basis: Basis
    attempt: Attempt
    fabric: Fabric
    workload: Workload
    stragglers: Stragglers | None = None
    num_warmup_steps: int
    methods: list[TimedMethod]
    timed_steps: list[TimedSteps] = Field(alias="cells")


class SweepPoint(Record):
    """One collective at one size, as a sweep timed it.

    It has the slowest worker's seconds, one per repetition, the first left out.

    Bytes and frames are what one machine's link sent per repetition by the interface's counter,
    acknowledgements included, mean over machines; `formula_bytes` are by the algorithm of the
    backend, without headers.
    """

    collective: Collective
    payload_bytes: int
    seconds: list[float]
    wire_bytes: float | None
    formula_bytes: float
    wire_frames: float | None = None


class Sweep(Record):
    """sweep-*.json: what the collectives take on a fabric, over sizes.

    The cost model is fitted to it.
    """

    version: int
    attempt: Attempt
    fabric: Fabric
    points: list[SweepPoint]


class LeftOut(Record):
    """A thing that a study could not time, and why; said in the report, never filled in."""

    what: str
    why: str


class TimingStudy(Record):
    """study.json: what belongs together in one report, by file name.

    All of it is from one machine.
    """

    version: int
    sweeps: list[str]
    timings: list[str]
    left_out: list[LeftOut]


class EncodingTimes(Record):
    """gpu/encoding.json: what encoding takes on a GPU, as `make gpu-check` measured it.

    `seconds`: medians of compressing a vector of so many numbers, decompressing what arrives from
    so many workers, and taking it from error and parameters, by the compressor's name
    (`report.speed.encoding.name_of`).
    """

    version: int
    device: str
    torch: str
    num_parameters: int
    num_workers: int
    seconds: dict[str, float]
