"""Which sessions are timed on this machine, and in which order; what it cannot do of the study is written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from harness.records.provenance import new_attempt
from harness.records.store import VERSION, write_record
from harness.records.timings import Fabric, LeftOut, Method, Stragglers, TimingStudy
from harness.timing.lab import lab
from harness.timing.links import LabTopology, rate_text
from harness.timing.methods import CONSECUTIVE, METHODS, named, scored_methods
from harness.timing.session import Session, timing_of
from harness.timing.session_workers import time_in_lab
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


class Job(NamedTuple):
    """A workload on machines whose links stand for such a rate, slowed down `dilation` times.

    The cores here do the codecs of all workers, at their own speed. Where the passes are slow enough, those of a method
    that encodes behind its backward pass, as PowerSGD, fit in as they would on a GPU; and so does the network's
    latency, which is that of this machine's scheduler.
    """

    workload: str
    num_machines: int
    workers_per_machine: int
    bits_per_second: float
    dilation: float
    methods: Sequence[str] = tuple(METHODS)

    def fabric(self, most_bits_per_second: float) -> Fabric:
        """The network here; where links would be faster than it can carry in all, all is slowed down further."""
        num_workers = self.num_machines * self.workers_per_machine
        dilation = max(self.dilation, num_workers * self.bits_per_second / most_bits_per_second)
        slowed = LabTopology(self.num_machines, self.workers_per_machine, self.bits_per_second / dilation)
        return fabric(slowed, dilation)


JOBS = (
    Job("resnet50_v100", 8, 1, 10e9, 64),
    *(Job("fashion_mnist", 8, 1, rate, dilation) for rate, dilation in ((1e9, 128), (100e6, 64), (10e6, 16))),
    Job("fashion_mnist", 8, 1, 10e9, 128, (*FEW, *RELATIVES)),
    Job("cmudict", 8, 1, 1e9, 64, (*FEW, *RELATIVES)),
    Job("resnet50_v100", 2, 4, 10e9, 64, (*FEW, *RELATIVES)),
    Job("resnet50_v100", 8, 1, 25e9, 64, FEW),
    Job("resnet50_v100", 8, 1, 10e9, 32, FEW),
    Job("resnet50_v100", 8, 1, 1e9, 16, FEW),
    Job("resnet50_v100", 8, 1, 100e9, 256, FEW),
    Job("wide_resnet_40_8_v100", 8, 1, 10e9, 40, OF_RATIOS),
)
"""The study's jobs in the order in which they are done: what a slow machine has no time for is at the end.

At 10 Gb/s latency rules on Fashion-MNIST: a model of 103 kB takes less to send than the hops of a ring to wait for.
A message's latency is this machine's, which the dilation divides: at 10 Gb/s ResNet-50 is timed at two dilations, so at
two latencies, one twice the other.
"""


def record(session: Session, folder: Path) -> None:
    """Time the session in a lab, and write its record into the folder. Raises LabError or WorkerError."""
    network = session.fabric
    topology = LabTopology(*network.layout, session.fastest, network.latency_seconds)
    print(f"speedups: {session.name}, {len(session.methods)} methods on {topology}", flush=True)
    attempt = new_attempt("processes", "gloo", torch.device("cpu"))
    with lab(topology) as up:
        methods, cells = time_in_lab(session, up)
    write_record(folder / f"{session.name}.json", timing_of(session, methods, cells, attempt))


def run_study(output: Path, minutes: float) -> TimingStudy:
    """Sweeps of the jobs' links, to which the cost model is fitted, then the jobs; writes their records and study.json.

    A timing that would be begun after so many minutes is left out.
    """
    ends = time.monotonic() + 60 * minutes
    most = SHARE_OF_CEILING * ceiling_bits_per_second(max(job.num_machines * job.workers_per_machine for job in JOBS))
    print(f"speedups: this machine's links are used up to {rate_text(most)} in all", flush=True)
    fabrics = [job.fabric(most) for job in JOBS]
    rates = {(*each.layout, each.bits_per_second or 0.0) for each in fabrics}
    topologies = [LabTopology(*each) for each in sorted(rates, key=lambda each: each[-1])]
    for topology in topologies:
        print(f"speedups: sweep of {topology}", flush=True)
        with lab(topology) as network, connected(network) as seconds:
            write_record(output / record_name(topology), sweep_lab(network, seconds))
    loads = {name: workload(name, "cpu") for name in dict.fromkeys(job.workload for job in JOBS)}
    timings: list[str] = []
    left_out: list[LeftOut] = []
    for job, place in zip(JOBS, fabrics, strict=True):
        load, layout = loads[job.workload], f"{job.num_machines}x{job.workers_per_machine}"
        why = "the minutes given to the study were over" if time.monotonic() > ends else None
        if (compute := place.dilation * load.compute_seconds) > MOST_COMPUTE_SECONDS:
            why = (
                f"slowed down {place.dilation:.0f} times, as its links need here, a step would compute {compute:.0f} s"
            )
        if why:
            what = f"{job.workload} on {layout} workers at {rate_text(job.bits_per_second)}"
            left_out.append(LeftOut(what=what, why=why))
            continue
        name = f"timing-{job.workload}-{layout}-{job.bits_per_second / 1e6:g}mbps"
        name += f"-slowed-{place.dilation:g}" if f"{name}.json" in timings else ""
        timings.append(f"{name}.json")
        methods, fastest = named(METHODS, job.methods), most / place.num_workers
        record(Session(name, load, gradients_of(load.name), methods, place, (job.bits_per_second,), fastest), output)
    sweeps = [record_name(topology) for topology in topologies]
    study = TimingStudy(version=VERSION, sweeps=sweeps, timings=timings, left_out=left_out)
    write_record(output / "study.json", study)
    return study


def scored(folder: Path, names: Sequence[str]) -> Iterator[Session]:
    """Exactly what the experiments score, on links of several rates in one session; another call is another session."""
    methods, load = named(scored_methods(Path("results")), names), workload(SCORED_WORKLOAD, "cpu")
    fastest = SCORED_SHARE_OF_CEILING * ceiling_bits_per_second(SCORED_WORKERS) / SCORED_WORKERS
    several = fabric(LabTopology(SCORED_WORKERS, 1, max(SCORED_LINKS))).model_copy(update={"bits_per_second": None})
    name, gradients = f"scored-{1 + len(list(folder.glob('scored-*.json')))}", gradients_of(load.name)
    yield Session(name, load, gradients, methods, several, SCORED_LINKS, fastest, by_cell=True)


def wide(folder: Path, names: Sequence[str]) -> Iterator[Session]:
    """Links of one rate and several latencies, each a session in real time; of `WIDE` if no method is named."""
    for latency in WIDE_LATENCIES:
        yield _in_real_time("wide", latency, named(METHODS, names or WIDE))


def consecutive(folder: Path, names: Sequence[str]) -> Iterator[Session]:
    """Consecutive steps, with nobody slow and with stragglers, each a session in real time.

    Far apart M-CSER is left out where no method is named: it would take a quarter of an hour.
    """
    for latency, slow in [*((0.0, each) for each in SLOW), *((each, None) for each in FAR)]:
        methods = named(CONSECUTIVE, names or [name for name in CONSECUTIVE if not latency or name != "mcser_64"])
        session = replace(_in_real_time("consecutive", latency, methods), in_a_row=True, steps_per_visit=2)
        name = session.name if slow is None else f"{session.name}-{slow.who.replace(' ', '-')}-{slow.factor:g}"
        yield replace(session, name=name, stragglers=slow)


SESSIONS: dict[str, Callable[[Path, Sequence[str]], Iterator[Session]]] = {
    "scored": scored,
    "wide": wide,
    "consecutive": consecutive,
}
"""Sessions that are timed by themselves: called with the folder of records and names of methods, all if none is named.

Raises SpecError: an unknown method, or this machine can have no network lab.
"""


def _in_real_time(kind: str, latency: float, methods: Sequence[Method]) -> Session:
    load, place = workload(WIDE_WORKLOAD, "cpu"), fabric(LabTopology(WIDE_WORKERS, 1, WIDE_LINK, latency))
    name = f"{kind}-{WIDE_LINK / 1e6:g}mbps-{1e3 * latency:g}ms"
    return Session(name, load, gradients_of(load.name), methods, place, (WIDE_LINK,), WIDE_LINK)
