"""The study of speed-ups: what is timed here, in which order; what this machine cannot do is written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from harness.records.provenance import new_attempt
from harness.records.store import VERSION, write_record
from harness.records.timings import Fabric, LeftOut, Method, Stragglers, TimingStudy, Workload, ring_bytes
from harness.spec import SpecError
from harness.timing.lab import lab
from harness.timing.links import LabTopology, rate_text
from harness.timing.methods import CONSECUTIVE, METHODS, scored_methods
from harness.timing.session import CellPlan, Session, kinds_of, on_end, on_one_link, time_in_lab, timing_of
from harness.timing.sweep import ceiling_bits_per_second, connected, fabric, record_name, sweep_lab
from harness.timing.workloads import gradients_of, workload

SHARE_OF_CEILING = 0.3
"""The part of what this machine's links reach that is used: the rest of its cores' time is for the methods."""
MOST_COMPUTE_SECONDS = 10.0
"""The longest slowed step: with a longer one a timing would take an hour."""

FEW = ("all_reduce", "ddp", "ddp_fp16", "powersgd_2", "csea", "cser_pl", "mcser", "mcser_overlap")
"""The methods where a fabric is there for comparison."""
RELATIVES = ("dpsgd", "dpsgd_ring", "choco_sgd", "deep_squeeze", "diloco", "ef21_sgdm", "powersgd", "sparta")
"""Methods that readers ask to see beside the family; timed on two layouts and where latency rules."""
OF_RATIOS = (*(name for name in FEW if name not in ("csea", "cser_pl")), "mcser_32", "mcser_1024")
"""The methods for a published speed-up, of which it is not known which ratio it was of."""

WIDE_WORKLOAD, WIDE_WORKERS, WIDE_LINK = "cmudict", 8, 100e6
WIDE_LATENCIES = (0.0, 5e-3, 20e-3, 80e-3)
"""Seconds one way: a switch, a region, a continent, and half the world."""
WIDE = (
    *("all_reduce", "ddp", "powersgd_1", "two_stage_8", "csea", "cser_pl", "mcser", "local_sgd", "diloco", "dpsgd"),
    *("choco_sgd", "noloco"),
)
"""The methods of wide-area links: those that claim them, and baselines."""

SLOW = (None, Stragglers(who="one", factor=1.5), Stragglers(who="one", factor=3), Stragglers(who="in turn", factor=3))
"""Who is slow in consecutive steps."""
FAR = (5e-3, 20e-3)
"""Seconds one way at which consecutive steps are timed too, where nobody is slow."""

SCORED_WORKLOAD, SCORED_WORKERS = "resnet50_v100", 8
SCORED_LINKS = (1e9, 10e9, 25e9)
"""Bits a second, of the links that scored methods are emulated on."""
SCORED_SHARE_OF_CEILING = 0.5
"""Methods' own arithmetic does not run while links are at work."""
WANTED_SECONDS = 1.0
"""The length of a slowed step, beside which a message's latency, some 20 ms here, is little."""
HIGHEST_DILATION = 28.0
WANTED_SECONDS_BEHIND, HIGHEST_DILATION_BEHIND = 3.0, 64.0
"""The same where a method encodes behind its backward pass: this host's cores take long, and a slow pass hides it."""
SILENT_DILATION = 8.0
"""The dilation of steps that send nothing: they have no link to be slowed down for."""


@dataclass(frozen=True)
class TimingJob:
    """A timing: a workload on machines whose links stand for such a rate, slowed down `dilation` times.

    The cores here do the codecs of all workers, at their own speed. Where the passes are slow enough, those of a method
    that encodes behind its backward pass, as PowerSGD, fit in as they would on a GPU; and so does the network's
    latency, which is that of this machine's scheduler. Where links would still be faster than this machine's can be,
    all is slowed down further.
    """

    workload: str
    num_machines: int
    workers_per_machine: int
    bits_per_second: float
    dilation: float
    methods: tuple[str, ...] = tuple(METHODS)

    def emulated(self, most_bits_per_second: float) -> tuple[LabTopology, float]:
        """The lab that stands for the job's network, where all links carry so much, and how many times slower it is."""
        whole = LabTopology(self.num_machines, self.workers_per_machine, self.bits_per_second)
        dilation = max(self.dilation, whole.ring_bits_per_second / most_bits_per_second)
        return replace(whole, bits_per_second=self.bits_per_second / dilation), dilation

    def __str__(self) -> str:
        where = f"{self.num_machines}x{self.workers_per_machine} workers"
        return f"{self.workload} on {where} at {rate_text(self.bits_per_second)}"


JOBS = (
    TimingJob("resnet50_v100", 8, 1, 10e9, 64),
    *(TimingJob("fashion_mnist", 8, 1, rate, dilation) for rate, dilation in ((1e9, 128), (100e6, 64), (10e6, 16))),
    TimingJob("fashion_mnist", 8, 1, 10e9, 128, (*FEW, *RELATIVES)),
    TimingJob("cmudict", 8, 1, 1e9, 64, (*FEW, *RELATIVES)),
    TimingJob("resnet50_v100", 2, 4, 10e9, 64, (*FEW, *RELATIVES)),
    TimingJob("resnet50_v100", 8, 1, 25e9, 64, FEW),
    TimingJob("resnet50_v100", 8, 1, 10e9, 32, FEW),
    TimingJob("resnet50_v100", 8, 1, 1e9, 16, FEW),
    TimingJob("resnet50_v100", 8, 1, 100e9, 256, FEW),
    TimingJob("wide_resnet_40_8_v100", 8, 1, 10e9, 40, OF_RATIOS),
)
"""The jobs in the order in which they are done: what a slow machine has no time for is at the end.

At 10 Gb/s latency rules on Fashion-MNIST: a model of 103 kB takes less to send than the hops of a ring to wait for.
A message's latency is this machine's, which the dilation divides: at 10 Gb/s ResNet-50 is timed at two dilations, so at
two latencies, one twice the other.
"""


class Timed(NamedTuple):
    """A session, the lab that it is timed in, the network that this stands for, and the name of its record."""

    name: str
    session: Session
    lab: LabTopology
    """Its links are so fast while methods warm up."""
    fabric: Fabric

    def write(self, folder: Path) -> None:
        """Time the session, and write its record into the folder. Raises LabError or WorkerError where that fails."""
        print(f"speedups: {self.name}, {len(self.session.methods)} methods on {self.lab}", flush=True)
        attempt = new_attempt("processes", "gloo", torch.device("cpu"))
        with lab(self.lab) as up:
            found = time_in_lab(self.session, up)
        write_record(folder / f"{self.name}.json", timing_of(self.session, found, attempt, self.fabric))


def run_study(output: Path, minutes: float) -> TimingStudy:
    """Sweeps of the jobs' links, to which the cost model is fitted, then the jobs; writes their records and study.json.

    A timing that would be begun after so many minutes is left out.
    """
    ends = time.monotonic() + 60 * minutes
    most = SHARE_OF_CEILING * ceiling_bits_per_second(max(job.num_machines * job.workers_per_machine for job in JOBS))
    print(f"speedups: this machine's links are used up to {rate_text(most)} in all", flush=True)
    topologies = sorted({job.emulated(most)[0] for job in JOBS}, key=lambda each: each.bits_per_second)
    for topology in topologies:
        print(f"speedups: sweep of {topology}", flush=True)
        with lab(topology) as network, connected(network) as seconds:
            write_record(output / record_name(topology), sweep_lab(network, seconds))
    loads = {name: workload(name, "cpu") for name in dict.fromkeys(job.workload for job in JOBS)}
    timings: list[str] = []
    left_out: list[LeftOut] = []
    for job in JOBS:
        load, (topology, dilation) = loads[job.workload], job.emulated(most)
        if why := _why_not(load, dilation, ends):
            left_out.append(LeftOut(what=str(job), why=why))
            continue
        name = f"timing-{job.workload}-{job.num_machines}x{job.workers_per_machine}-{job.bits_per_second / 1e6:g}mbps"
        name += f"-slowed-{job.dilation:g}" if f"{name}.json" in timings else ""
        timings.append(f"{name}.json")
        cells_of, made = partial(on_one_link, job.bits_per_second, dilation), fabric(topology, dilation)
        fastest = replace(topology, bits_per_second=most / made.num_workers)
        session = Session(
            load, gradients_of(load.name), made.num_workers, [METHODS[each] for each in job.methods], cells_of
        )
        Timed(name, session, fastest, made).write(output)
    sweeps = [record_name(topology) for topology in topologies]
    study = TimingStudy(version=VERSION, sweeps=sweeps, timings=timings, left_out=left_out)
    write_record(output / "study.json", study)
    return study


def _why_not(load: Workload, dilation: float, ends: float) -> str | None:
    compute = dilation * (load.forward_seconds + load.backward_seconds)
    if compute > MOST_COMPUTE_SECONDS:
        return f"slowed down {dilation:.0f} times, as its links need here, a step would compute {compute:.0f} s"
    return "the minutes given to the study were over" if time.monotonic() > ends else None


def scored(folder: Path, names: Sequence[str]) -> Iterator[Timed]:
    """Exactly what the experiments score, on links of several rates in one session; another call is another session."""
    methods = _named(scored_methods(Path("results")), names)
    most, load = SCORED_SHARE_OF_CEILING * ceiling_bits_per_second(SCORED_WORKERS), workload(SCORED_WORKLOAD, "cpu")
    session = Session(load, gradients_of(load.name), SCORED_WORKERS, methods, partial(scored_cells, most))
    several = fabric(LabTopology(SCORED_WORKERS, 1, max(SCORED_LINKS))).model_copy(update={"bits_per_second": None})
    number = 1 + len(list(folder.glob("scored-*.json")))
    yield Timed(f"scored-{number}", session, LabTopology(SCORED_WORKERS, 1, most / SCORED_WORKERS), several)


def wide(folder: Path, names: Sequence[str]) -> Iterator[Timed]:
    """Links of one rate and several latencies, each a session in real time; of `WIDE` if no method is named."""
    methods, load = _named(METHODS, names or WIDE), workload(WIDE_WORKLOAD, "cpu")
    for latency in WIDE_LATENCIES:
        session = Session(load, gradients_of(load.name), WIDE_WORKERS, methods, partial(on_one_link, WIDE_LINK, 1.0))
        yield _in_real_time("wide", session, latency)


def consecutive(folder: Path, names: Sequence[str]) -> Iterator[Timed]:
    """Consecutive steps, with nobody slow and with stragglers, each a session in real time.

    Far apart M-CSER is left out where no method is named: it would take a quarter of an hour.
    """
    load = workload(WIDE_WORKLOAD, "cpu")
    for latency, slow in [*((0.0, each) for each in SLOW), *((each, None) for each in FAR)]:
        methods = _named(CONSECUTIVE, names or [name for name in CONSECUTIVE if not latency or name != "mcser_64"])
        session = Session(load, gradients_of(load.name), WIDE_WORKERS, methods, partial(on_end, WIDE_LINK))
        yield _in_real_time("consecutive", replace(session, steps_per_visit=2, stragglers=slow), latency)


SESSIONS: dict[str, Callable[[Path, Sequence[str]], Iterator[Timed]]] = {
    "scored": scored,
    "wide": wide,
    "consecutive": consecutive,
}
"""Sessions that are timed by themselves: called with the folder of records and names of methods, all if none is named.

Raises SpecError: an unknown method, or this machine can have no network lab.
"""


def _named(known: Mapping[str, Method], names: Sequence[str]) -> list[Method]:
    if unknown := [name for name in names if name not in known]:
        raise SpecError(f"unknown method {unknown[0]!r}; the methods are {', '.join(known)}")
    return [known[name] for name in names or known]


def _in_real_time(kind: str, session: Session, latency: float) -> Timed:
    topology, slow = LabTopology(WIDE_WORKERS, 1, WIDE_LINK, latency), session.stragglers
    name = f"{kind}-{WIDE_LINK / 1e6:g}mbps-{1e3 * latency:g}ms"
    name += "" if slow is None else f"-{slow.who.replace(' ', '-')}-{slow.factor:g}"
    return Timed(name, session, topology, fabric(topology))


def scored_cells(most_bits_per_second: float, load: Workload, method: Method) -> list[CellPlan]:
    """Kinds of steps, each on every link; those that send nothing once. The first is what links here carry in all.

    The dilation is chosen by cell: large where messages are small, since it divides latency.
    """
    encodes_behind = method.overlap and method.algorithm != "ddp"
    wanted = WANTED_SECONDS_BEHIND if encodes_behind else WANTED_SECONDS
    highest = HIGHEST_DILATION_BEHIND if encodes_behind else HIGHEST_DILATION
    cells = []
    for kind, share, messages in kinds_of(method):
        if not messages:
            cells.append(CellPlan(kind, share, None, SILENT_DILATION))
            continue
        sent = sum(ring_bytes(each.collective, each.payload_bytes, SCORED_WORKERS) for each in messages)
        for link in SCORED_LINKS:
            step = load.forward_seconds + load.backward_seconds + 8 * sent / link
            least = max(SCORED_WORKERS * link / most_bits_per_second, 1.0)
            cells.append(CellPlan(kind, share, link, max(min(wanted / step, highest), least)))
    return cells
