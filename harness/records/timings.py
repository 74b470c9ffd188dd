"""Records of timing: what was timed, on which network, and every step (no torch here: the report reads them)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from harness.records.store import Attempt, Record

Basis = Literal["measured", "emulated"]
"""`emulated`: compute was a wait of known length, or the clock was dilated; the network is real in both."""

Collective = Literal["all_reduce", "two_stages", "all_gather", "exchange"]
"""`exchange`: each worker sends one message to each of its neighbours, straight; in a sweep they are a ring's."""

Rounds = tuple[tuple[int, ...], ...]
"""The neighbours to whom a worker sends in an exchange, by how many ranks they are further on, in a circle: a tuple
for each step until it begins anew."""


class Fabric(Record):
    """The network between the workers. Rates are of one direction, as on the wire, before any dilation is undone."""

    kind: Literal["netlab", "host"]
    """`netlab`: namespaces with rate limits; `host`: whatever network the workers' hosts have."""
    backend: str
    num_machines: int
    workers_per_machine: int
    bits_per_second: float | None
    """Limit of each machine's link; None where nothing limits it, or nobody knows."""
    inside_bits_per_second: float | None
    """Limit of each worker's link inside its machine; None where nothing limits it."""
    latency_seconds: float = 0.0
    """Set between machines, one way, beside what the host takes; a relay's in place of a switch."""
    dilation: float
    """k: the compute was slowed down k times, so the network stands for one k times as fast. 1 is real time."""

    @property
    def num_workers(self) -> int:
        return self.num_machines * self.workers_per_machine

    @property
    def layout(self) -> tuple[int, int]:
        """Machines, and workers of each."""
        return self.num_machines, self.workers_per_machine

    @property
    def stands_for_bits_per_second(self) -> float | None:
        """The rate of a machine's link that this one emulates."""
        return None if self.bits_per_second is None else self.bits_per_second * self.dilation


class Workload(Record):
    """A worker's computation in a step, at the speed of the device that is timed or emulated."""

    name: str
    model: str
    batch_size: int
    num_parameters: int
    device: str
    forward_seconds: float
    backward_seconds: float
    source: str
    """Where the two come from: a publication, a calibration here, or a model of them."""

    @property
    def compute_seconds(self) -> float:
        """Forward and backward pass of one worker's batch."""
        return self.forward_seconds + self.backward_seconds


class Message(Record):
    """One collective of a step, as a cost model needs it."""

    collective: Collective
    payload_bytes: int
    """What one worker contributes; in an exchange its message once for each neighbour."""
    every: int
    """Steps from one to the next."""
    ready: float
    """Share of the backward pass that is done when it may start, on average; 1: only after it."""
    ready_draws: tuple[float, ...] = ()
    """The same in single steps, where it depends on the step's draw of blocks; all messages' are of the same steps."""
    rounds: Rounds = ()
    """The rounds of an exchange; empty for other collectives."""


class Method(Record):
    """A method or baseline with the settings that a spec gives, and what a session found out about it.

    A row of an accuracy experiment is of this method where its algorithm, settings and momentum equal these three.
    """

    name: str
    label: str
    algorithm: str
    settings: dict[str, Any]
    momentum: float
    rows: list[str]
    """"experiment/row" of each row that is so; of DDP, which computes what SGD does, SGD's; of other baselines none."""
    baseline: bool
    overlap: bool
    """Whether collectives begin during the backward pass."""
    period: int
    """Steps after which the pattern of its messages repeats; 1 where all steps are alike."""
    messages: list[Message]
    codec_alone_seconds: float | None = None
    """Encoding, decoding and update of a step, mean over the period, of one worker with a core (or a GPU) to itself;
    None: not timed."""

    def ratio(self, num_parameters: int) -> float:
        """32-bit gradient over payload, on average over steps; infinite where nothing is sent."""
        sent = sum(message.payload_bytes / message.every for message in self.messages)
        return 4 * num_parameters / sent if sent else math.inf


StepKind = Literal["every", "ordinary", "synchronising", "consecutive"]
"""`every`: all steps of the method are alike; else the last of a period synchronises, others are ordinary.

`consecutive`: whole periods, one step after the other, so that a message can travel beside the steps that follow, and a
worker can be late without the others' waiting at once. A number is then a stretch's mean over its steps."""


class Stragglers(Record):
    """Workers whose passes take `factor` times as long: worker 0 in every step, or each in its turn, one a step."""

    who: Literal["one", "in turn"]
    factor: float


class Cell(Record):
    """Timed steps of one kind, of one method, on links of one rate; all lists are by step, in the order of timing.

    `seconds` are the slowest worker's, the others are means over workers. Where steps are emulated `seconds` leave the
    codec out, since it runs on this host's cores: encoding, decoding and update. `waiting` is from a worker's arrival
    at a collective to the last one's, and 0 where the workers share no clock; `transfer` is the rest of the collective
    that was not hidden behind the backward pass. The dilation is undone in all but the codec's. Of consecutive steps
    `transfer` is all that is not compute, and `seconds` leave nothing out.
    """

    method: str
    kind: StepKind
    share: float
    """The part of the method's steps that are of this kind; those of its cells on one link sum to 1."""
    bits_per_second: float | None
    """The rate of the emulated links; None: no rate was set, or steps of this kind send nothing, so they are alike on
    every link."""
    dilation: float
    """How many times slower all was."""
    visits: list[int]
    """Number of the method's turn in which the step was taken; turns are there and back again."""
    seconds: list[float]
    compute_seconds: list[float]
    codec_seconds: list[float]
    waiting_seconds: list[float]
    transfer_seconds: list[float]


class Timing(Record):
    """timing-*.json, scored-*.json: steps of methods that took turns in one session, in one allocation.

    A method's mean step on a link is the sum of share times mean over its cells there (`mean_step`). Sessions of the
    same commit and machine are repetitions: cells of equal method settings, kind and rate can be compared.
    """

    version: int
    basis: Basis
    attempt: Attempt
    fabric: Fabric
    """Its rate is None where cells are of several."""
    workload: Workload
    stragglers: Stragglers | None = None
    num_warmup_steps: int
    methods: list[Method]
    cells: list[Cell]


class SweepPoint(Record):
    """One collective at one size. `seconds` are the slowest worker's, one per repetition, the first left out."""

    collective: Collective
    payload_bytes: int
    seconds: list[float]
    wire_bytes: float | None
    """Bytes that one machine's link sent per repetition, by the interface's counter; mean over machines."""
    formula_bytes: float
    """The same by the algorithm of the backend, without headers."""
    wire_frames: float | None = None
    """Ethernet frames that it took, acknowledgements included, by the same counter."""


class Sweep(Record):
    """sweep-*.json: what the collectives take on a fabric, over sizes; the cost model is fitted to it."""

    version: int
    attempt: Attempt
    fabric: Fabric
    points: list[SweepPoint]


class LeftOut(Record):
    """A thing that a study could not time, and why; said in the report, never filled in."""

    what: str
    why: str


class TimingStudy(Record):
    """study.json: what belongs together in one report, by file name. All of it is from one machine."""

    version: int
    sweeps: list[str]
    timings: list[str]
    left_out: list[LeftOut]


def mean_step(cells: Sequence[Cell], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean seconds of a method's step on one link, over its period, and a confidence interval of that mean.

    The kinds' means are mixed by their exact shares, and so are the variances of these means; Student's t has the
    degrees of freedom of Satterthwaite. Steps count as independent, so the interval is of this session alone: how much
    sessions differ is another question.

    Args:
        cells: of one method and link, with those that send nothing; at least two steps each.
    """
    from scipy import stats  # most of a second to import, and most readers of records ask for no interval

    assert math.isclose(sum(cell.share for cell in cells), 1.0), "shares of a method's cells on one link sum to 1"
    mean, variance, spread = 0.0, 0.0, 0.0
    for cell in cells:
        own = cell.share**2 * float(stats.sem(cell.seconds)) ** 2
        mean += cell.share * math.fsum(cell.seconds) / len(cell.seconds)
        variance += own
        spread += own**2 / (len(cell.seconds) - 1)
    if not variance:
        return mean, mean, mean
    half = float(stats.t.ppf((1 + confidence) / 2, variance**2 / spread)) * math.sqrt(variance)
    return mean, mean - half, mean + half


def formula_bytes(collective: Collective, payload_bytes: int, fabric: Fabric) -> float:
    """Bytes that a machine's link sends, without headers: what one worker of a ring over the ranks sends to the next.

    Such a ring enters and leaves a machine once, however many of its workers are in it.
    """
    return ring_bytes(collective, payload_bytes, fabric.num_workers) if fabric.num_machines > 1 else 0.0


def ring_bytes(collective: Collective, payload_bytes: int, num_workers: int) -> float:
    """Bytes that one worker sends in a ring: 2(n-1)/n of its payload in an all-reduce, in one go or in two stages, n-1
    payloads in an all-gather. In an exchange its payload, which is for both neighbours.
    """
    if collective == "exchange":
        return payload_bytes
    others = num_workers - 1
    return (others if collective == "all_gather" else 2 * others / num_workers) * payload_bytes
