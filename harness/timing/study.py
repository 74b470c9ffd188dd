"""The study of speed-ups: what is timed here, in which order; what this machine cannot do is written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.netlab.ceiling import ceiling_bits_per_second
from harness.netlab.lab import Topology, lab
from harness.netlab.sweep import fabric, sweep
from harness.netlab.topology import rate_text
from harness.provenance import command_line
from harness.store import VERSION, write_record
from harness.timing.methods import METHODS
from harness.timing.request import TimingRequest
from harness.timing.spawn import run_in_lab
from harness.timing.workloads import workload
from harness.timings import Fabric, LeftOut, Study, Workload

SHARE_OF_CEILING = 0.3
"""Of what this machine's links reach in all: the rest of its cores' time is for the methods' own arithmetic."""
MOST_COMPUTE_SECONDS = 10.0
"""Of a step that is slowed down: with a longer one a timing would take an hour."""
NVLINK_BITS_PER_SECOND = 1.2e12
"""Each way, of a V100: half of the 300 GB/s of both (NVIDIA, V100 data sheet)."""

FEW = ("all_reduce", "ddp", "ddp_fp16", "powersgd_2", "csea", "cser_pl", "mcser", "mcser_overlap")
"""The methods where a fabric is there for comparison."""


@dataclass(frozen=True)
class Job:
    """A timing: a workload on machines whose links stand for such a rate.

    Where that is more than this machine's links reach, the workload is slowed down until it is not.
    """

    workload: str
    num_machines: int
    workers_per_machine: int
    bits_per_second: float
    inside_bits_per_second: float | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    num_visits: int = 2
    steps_per_visit: int = 2


SWEEPS = (Topology(8, 1, 10e6), Topology(8, 1, 100e6), Topology(8, 1, 250e6), Topology(2, 4, 100e6))
"""What the cost model is fitted to."""
JOBS = (
    Job("resnet50_v100", 8, 1, 10e9),
    *(Job("fashion_mnist", 8, 1, rate, num_visits=4) for rate in (100e6, 10e6, 1e6)),
    Job("resnet50_v100", 2, 4, 10e9, methods=FEW),
    Job("resnet50_v100", 1, 8, 10e9, NVLINK_BITS_PER_SECOND, FEW),
    Job("wide_resnet_40_8_v100", 8, 1, 10e9, methods=FEW),
    Job("resnet50_v100", 8, 1, 25e9, methods=FEW),
)
"""In the order of their worth: what a slow machine has no time for is at the end."""


def run_study(output: Path, minutes: float) -> Study:
    """Sweeps, then timings; writes their records and study.json into `output`.

    Args:
        output: folder of the records.
        minutes: a timing that would be begun later is left out.

    Raises:
        LabError: this machine can have no network lab.
        WorkerError: a worker failed.
    """
    ends = time.monotonic() + 60 * minutes
    most = SHARE_OF_CEILING * ceiling_bits_per_second(max(job.num_machines * job.workers_per_machine for job in JOBS))
    print(f"speedups: this machine's links are used up to {rate_text(most)} in all", flush=True)
    left_out: list[LeftOut] = []
    sweeps = list(_sweeps(output, most, left_out.append))
    timings = list(_timings(output, most, ends, left_out.append))
    study = Study(version=VERSION, sweeps=sweeps, timings=timings, left_out=left_out)
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
        with lab(topology) as network:
            write_record(output / name, sweep(network))
        yield name


def _timings(output: Path, most: float, ends: float, leave_out: Callable[[LeftOut], None]) -> Iterator[str]:
    workloads: dict[str, Workload] = {}
    for job in JOBS:
        if job.workload not in workloads:
            workloads[job.workload] = workload(job.workload, "cpu")
        load = workloads[job.workload]
        topology, dilation = emulated(job, most)
        what = f"{job.workload} on {_shape(topology)} workers at {rate_text(job.bits_per_second)}"
        compute = dilation * (load.forward_seconds + load.backward_seconds)
        if compute > MOST_COMPUTE_SECONDS:
            slow = f"slowed down {dilation:.0f} times, as its links need here, a step would compute {compute:.0f} s"
            leave_out(LeftOut(what=what, why=slow))
            continue
        if time.monotonic() > ends:
            leave_out(LeftOut(what=what, why="the minutes given to the study were over"))
            continue
        print(f"speedups: {what}, slowed down {dilation:.4g} times", flush=True)
        name = f"timing-{job.workload}-{_shape(topology)}-{_mega(job.bits_per_second)}.json"
        with lab(topology) as network:
            run_in_lab(_request(job, load, fabric(network, dilation), output / name), network)
        yield name


def _request(job: Job, load: Workload, network: Fabric, output: Path) -> TimingRequest:
    return TimingRequest(
        fabric=network,
        basis="emulated",
        workload=load,
        trainee="waiting",
        methods=list(job.methods),
        num_visits=job.num_visits,
        steps_per_visit=job.steps_per_visit,
        command=command_line(),
        output=output,
    )


def emulated(job: Job, most_bits_per_second: float) -> tuple[Topology, float]:
    """The lab that stands for the job's network, and how many times slower all is in it.

    Args:
        most_bits_per_second: of all workers' links together.
    """

    def slowed(times: float) -> Topology:
        inside = None if job.inside_bits_per_second is None else job.inside_bits_per_second / times
        return Topology(job.num_machines, job.workers_per_machine, job.bits_per_second / times, inside)

    dilation = max(1.0, slowed(1.0).ring_bits_per_second / most_bits_per_second)
    return slowed(dilation), dilation


def _shape(topology: Topology) -> str:
    return f"{topology.num_machines}x{topology.workers_per_machine}"


def _mega(bits_per_second: float) -> str:
    return f"{bits_per_second / 1e6:g}mbps"
