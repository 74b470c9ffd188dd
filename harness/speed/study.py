"""The study of speed-ups: what is timed here, in which order; what this machine cannot do is written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.lab.ceiling import ceiling_bits_per_second
from harness.lab.lab import Lab, LabTopology, lab
from harness.lab.sweep import connected, fabric, sweep
from harness.lab.topology import rate_text
from harness.records.provenance import command_line
from harness.records.store import VERSION, write_record
from harness.records.timings import Fabric, LeftOut, TimingStudy, Workload
from harness.speed.methods import METHODS
from harness.speed.questions import LIFT, LIMIT
from harness.speed.request import TimingRequest
from harness.speed.spawn import Answers, run_in_lab
from harness.speed.workloads import workload

SHARE_OF_CEILING = 0.3
"""Of what this machine's links reach in all: the rest of its cores' time is for the methods' own arithmetic."""
MOST_COMPUTE_SECONDS = 10.0
"""Of a step that is slowed down: with a longer one a timing would take an hour."""
NVLINK_BITS_PER_SECOND = 1.2e12
"""Each way, of a V100: half of the 300 GB/s of both (NVIDIA, V100 data sheet)."""

FEW = ("all_reduce", "ddp", "ddp_fp16", "powersgd_2", "csea", "cser_pl", "mcser", "mcser_overlap")
"""The methods where a fabric is there for comparison."""
RELATIVES = ("dpsgd", "dpsgd_ring", "choco_sgd", "deep_squeeze", "diloco", "ef21_sgdm", "powersgd", "sparta")
"""Methods that readers ask to see beside the family; timed on two layouts and where latency rules."""
OF_RATIOS = (*(name for name in FEW if name not in ("csea", "cser_pl")), "mcser_32", "mcser_1024")
"""Those for a published speed-up, of which it is not known which ratio it was of."""


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
    inside_bits_per_second: float | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    num_visits: int = 2
    steps_per_visit: int = 2


LABS = (
    (
        TimingJob("resnet50_v100", 8, 1, 10e9, 64, steps_per_visit=1),
        *(TimingJob("fashion_mnist", 8, 1, rate, dilation) for rate, dilation in ((1e9, 128), (100e6, 64), (10e6, 16))),
        TimingJob("fashion_mnist", 8, 1, 10e9, 128, methods=(*FEW, *RELATIVES)),
        TimingJob("cmudict", 8, 1, 1e9, 64, methods=(*FEW, *RELATIVES)),
    ),
    (TimingJob("resnet50_v100", 2, 4, 10e9, 64, methods=(*FEW, *RELATIVES), steps_per_visit=1),),
    (TimingJob("resnet50_v100", 1, 8, 10e9, 64, NVLINK_BITS_PER_SECOND, FEW),),
    (
        TimingJob("resnet50_v100", 8, 1, 25e9, 64, methods=FEW, steps_per_visit=1),
        TimingJob("resnet50_v100", 8, 1, 10e9, 32, methods=FEW, steps_per_visit=1),
        TimingJob("resnet50_v100", 8, 1, 1e9, 16, methods=FEW, steps_per_visit=1),
        TimingJob("resnet50_v100", 8, 1, 100e9, 256, methods=FEW, steps_per_visit=1),
        TimingJob("wide_resnet_40_8_v100", 8, 1, 10e9, 40, methods=OF_RATIOS),
    ),
)
"""Jobs of the same layout that workers do one after the other. What a slow machine has no time for is at the end.

At 10 Gb/s latency rules on Fashion-MNIST: a model of 103 kB takes less to send than the hops of a ring to wait for.
A message's latency is this machine's, which the dilation divides: at 10 Gb/s ResNet-50 is timed at two dilations, so at
two latencies, one twice the other.
"""
SWEEPS = (
    *(LabTopology(8, 1, rate / dilation) for rate, dilation in ((10e6, 16), (100e6, 64), (1e9, 128), (10e9, 128))),
    *(
        LabTopology(8, 1, rate / dilation)
        for rate, dilation in ((1e9, 64), (1e9, 16), (10e9, 64), (10e9, 32), (25e9, 64))
    ),
    LabTopology(2, 4, 10e9 / 64),
)
"""What the cost model is fitted to: the jobs' links but the Wide ResNet's, whose 250 Mb/s lie between two others.

100 Gb/s slowed down 256 times and 25 Gb/s slowed down 64 times are the same links.
"""


def run_study(output: Path, minutes: float) -> TimingStudy:
    """Sweeps, then timings; writes their records and study.json into `output`.

    Args:
        output: folder of the records.
        minutes: a timing that would be begun later is left out.

    Raises:
        LabError: this machine can have no network lab.
        WorkerError: a worker failed.
    """
    ends = time.monotonic() + 60 * minutes
    ceiling = ceiling_bits_per_second(max(job.num_machines * job.workers_per_machine for jobs in LABS for job in jobs))
    most = SHARE_OF_CEILING * ceiling
    print(f"speedups: this machine's links are used up to {rate_text(most)} in all", flush=True)
    left_out: list[LeftOut] = []
    sweeps = list(_sweeps(output, most, left_out.append))
    timings = _timings(output, ceiling, ends, left_out.append)
    study = TimingStudy(version=VERSION, sweeps=sweeps, timings=timings, left_out=left_out)
    write_record(output / "study.json", study)
    return study


def _sweeps(output: Path, most: float, leave_out: Callable[[LeftOut], None]) -> Iterator[str]:
    for topology in SWEEPS:
        wanted, what = topology.ring_bits_per_second, f"sweep of {topology}"
        if wanted > most:
            leave_out(LeftOut(what=what, why=f"links here reach {rate_text(most)} in all, of {rate_text(wanted)}"))
            continue
        print(f"speedups: {what}", flush=True)
        name = f"sweep-{_shape(topology)}-{_mega(topology.bits_per_second)}.json"
        with lab(topology) as network, connected(network) as among:
            write_record(output / name, sweep(among.group()))
        yield name


def _timings(output: Path, ceiling: float, ends: float, leave_out: Callable[[LeftOut], None]) -> list[str]:
    loads = {name: workload(name, "cpu") for name in dict.fromkeys(job.workload for jobs in LABS for job in jobs)}
    most, names = SHARE_OF_CEILING * ceiling, list[str]()

    def requests(network: Lab, jobs: Iterable[TimingJob], answers: Answers) -> Iterator[TimingRequest]:
        for job in jobs:
            load, (topology, dilation) = loads[job.workload], emulated(job, most)
            what = f"{job.workload} on {_shape(topology)} workers at {rate_text(job.bits_per_second)}"
            if why := _why_not(load, dilation, ends):
                leave_out(LeftOut(what=what, why=why))
                continue
            print(f"speedups: {what}, slowed down {dilation:.4g} times", flush=True)
            answers[LIMIT] = partial(network.set_rate, topology.bits_per_second)
            answers[LIMIT]()
            names.append(_record_name(job, names))
            yield _request(job, load, fabric(network, dilation), output / names[-1])

    for jobs in LABS:
        with lab(emulated(jobs[0], most)[0]) as network:
            answers: Answers = {LIFT: partial(network.set_rate, ceiling / network.topology.num_workers)}
            run_in_lab(requests(network, jobs, answers), network, answers)
    return names


def _record_name(job: TimingJob, taken: list[str]) -> str:
    name = f"timing-{job.workload}-{job.num_machines}x{job.workers_per_machine}-{_mega(job.bits_per_second)}"
    return f"{name}.json" if f"{name}.json" not in taken else f"{name}-slowed-{job.dilation:g}.json"


def _why_not(load: Workload, dilation: float, ends: float) -> str | None:
    compute = dilation * (load.forward_seconds + load.backward_seconds)
    if compute > MOST_COMPUTE_SECONDS:
        return f"slowed down {dilation:.0f} times, as its links need here, a step would compute {compute:.0f} s"
    return "the minutes given to the study were over" if time.monotonic() > ends else None


def _request(job: TimingJob, load: Workload, network: Fabric, output: Path) -> TimingRequest:
    return TimingRequest(
        fabric=network,
        basis="emulated",
        workload=load,
        trainee="waiting",
        methods=list(job.methods),
        num_visits=job.num_visits,
        steps_per_visit=job.steps_per_visit,
        lifts_limits=True,
        command=command_line(),
        output=output,
    )


def emulated(job: TimingJob, most_bits_per_second: float) -> tuple[LabTopology, float]:
    """The lab that stands for the job's network, and how many times slower all is in it.

    Args:
        most_bits_per_second: of all workers' links together.
    """

    def slowed(times: float) -> LabTopology:
        inside = None if job.inside_bits_per_second is None else job.inside_bits_per_second / times
        return LabTopology(job.num_machines, job.workers_per_machine, job.bits_per_second / times, inside)

    dilation = max(job.dilation, slowed(1.0).ring_bits_per_second / most_bits_per_second)
    return slowed(dilation), dilation


def _shape(topology: LabTopology) -> str:
    return f"{topology.num_machines}x{topology.workers_per_machine}"


def _mega(bits_per_second: float) -> str:
    return f"{bits_per_second / 1e6:g}mbps"
