"""The study of speed-ups: what is timed here, in which order; what this machine cannot do is written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from harness.records.provenance import command_line, new_attempt
from harness.records.store import VERSION, Attempt, write_record
from harness.records.timings import Basis, Fabric, LeftOut, Method, Step, Timing, TimingStudy, Workload
from harness.timing.lab import lab
from harness.timing.layout import LabTopology, rate_text
from harness.timing.methods import METHODS
from harness.timing.passes import workload
from harness.timing.session import Session, Timed, on_one_link, time_in_lab
from harness.timing.sweep import ceiling_bits_per_second, connected, fabric, sweep

SHARE_OF_CEILING = 0.3
"""Of what this machine's links reach in all: the rest of its cores' time is for the methods' own arithmetic."""
MOST_COMPUTE_SECONDS = 10.0
"""Of a step that is slowed down: with a longer one a timing would take an hour."""
FLOAT_BYTES = 4

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
    methods: tuple[str, ...] = tuple(METHODS)
    steps_per_visit: int = 5

    def emulated(self, most_bits_per_second: float) -> tuple[LabTopology, float]:
        """The lab that stands for the job's network, and how many times slower all is in it.

        Args:
            most_bits_per_second: of all workers' links together.
        """
        whole = LabTopology(self.num_machines, self.workers_per_machine, self.bits_per_second)
        dilation = max(self.dilation, whole.ring_bits_per_second / most_bits_per_second)
        slowed = LabTopology(self.num_machines, self.workers_per_machine, self.bits_per_second / dilation)
        return slowed, dilation


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
"""In the order in which they are done: what a slow machine has no time for is at the end.

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
    most = SHARE_OF_CEILING * ceiling_bits_per_second(max(job.num_machines * job.workers_per_machine for job in JOBS))
    print(f"speedups: this machine's links are used up to {rate_text(most)} in all", flush=True)
    left_out: list[LeftOut] = []
    sweeps = list(_sweeps(output, most, left_out.append))
    timings = list(_timings(output, most, ends, left_out.append))
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
        with lab(topology) as network, connected(network) as among:
            write_record(output / record_name(topology), sweep(among.group()))
        yield record_name(topology)


def _timings(output: Path, most: float, ends: float, leave_out: Callable[[LeftOut], None]) -> Iterator[str]:
    loads = {name: workload(name, "cpu") for name in dict.fromkeys(job.workload for job in JOBS)}
    taken: list[str] = []
    for job in JOBS:
        load, (topology, dilation) = loads[job.workload], job.emulated(most)
        where = f"{job.num_machines}x{job.workers_per_machine}"
        what = f"{job.workload} on {where} workers at {rate_text(job.bits_per_second)}"
        if why := _why_not(load, dilation, ends):
            leave_out(LeftOut(what=what, why=why))
            continue
        print(f"speedups: {what}, slowed down {dilation:.4g} times", flush=True)
        name = f"timing-{job.workload}-{where}-{_mega(job.bits_per_second)}"
        taken.append(f"{name}.json" if f"{name}.json" not in taken else f"{name}-slowed-{job.dilation:g}.json")
        write_record(output / taken[-1], _timing(job, load, topology, dilation, most / topology.num_workers))
        yield taken[-1]


def _timing(job: TimingJob, load: Workload, topology: LabTopology, dilation: float, fastest: float) -> Timing:
    """Time the job; its lab's links are at their fastest while methods warm up."""
    attempt = new_attempt("processes", "gloo", torch.device("cpu"))
    session = Session(
        workload=load,
        num_workers=topology.num_workers,
        methods={name: METHODS[name] for name in job.methods},
        cells_of=partial(on_one_link, job.bits_per_second, dilation),
        trains=False,
        steps_per_visit=job.steps_per_visit,
    )
    with lab(LabTopology(topology.num_machines, topology.workers_per_machine, fastest)) as network:
        found = time_in_lab(session, network)
    return timing_of(session, found, attempt, "emulated", fabric(topology, dilation))


def timing_of(session: Session, found: Timed, attempt: Attempt, basis: Basis, network: Fabric) -> Timing:
    """The record of a session on one network."""
    return Timing(
        version=VERSION,
        basis=basis,
        attempt=attempt.model_copy(update={"command": command_line()}),
        fabric=network,
        workload=session.workload,
        num_warmup_steps=session.num_warmup_steps,
        methods=[_method(name, session, found) for name in session.methods],
        steps=[
            Step(
                method=name,
                visit=visit,
                synchronises=cell.kind != "ordinary",
                seconds=parts.total,
                compute_seconds=parts.compute,
                codec_seconds=parts.codec,
                waiting_seconds=parts.waiting,
                transfer_seconds=parts.transfer,
            )
            for name, visit, cell, parts in found.steps
        ],
    )


def _method(name: str, session: Session, found: Timed) -> Method:
    timed, described = session.methods[name], found.described[name]
    bytes_per_step = sum(message.payload_bytes / message.every for message in described.messages)
    return Method(
        name=name,
        label=timed.label,
        baseline=timed.baseline,
        ratio=FLOAT_BYTES * session.workload.num_parameters / bytes_per_step,
        settings=timed.card,
        overlap=timed.overlap,
        period=timed.period,
        messages=described.messages,
        algorithm=timed.algorithm,
        codec_alone_seconds=described.codec_seconds,
    )


def _why_not(load: Workload, dilation: float, ends: float) -> str | None:
    compute = dilation * (load.forward_seconds + load.backward_seconds)
    if compute > MOST_COMPUTE_SECONDS:
        return f"slowed down {dilation:.0f} times, as its links need here, a step would compute {compute:.0f} s"
    return "the minutes given to the study were over" if time.monotonic() > ends else None


def record_name(topology: LabTopology) -> str:
    """Of a sweep's file."""
    return f"sweep-{topology.num_machines}x{topology.workers_per_machine}-{_mega(topology.bits_per_second)}.json"


def _mega(bits_per_second: float) -> str:
    return f"{bits_per_second / 1e6:g}mbps"
