"""Which sessions are timed, and in which order.

They are on networks of this machine's own, and by torchrun on those at hand.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from cser_bench.harness.records.provenance import new_attempt
from cser_bench.harness.records.store import VERSION, read_record, write_record
from cser_bench.harness.records.timings import (
    Fabric,
    LeftOut,
    Stragglers,
    Sweep,
    TimedMethod,
    Timing,
    TimingStudy,
    Workload,
)
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.timing.lab import lab
from cser_bench.harness.timing.links import LabTopology, rate_text
from cser_bench.harness.timing.methods import (
    CONSECUTIVE,
    METHODS,
    named,
    own_methods,
    scored_methods,
    table_methods,
)
from cser_bench.harness.timing.session import Session, time_session
from cser_bench.harness.timing.sweep import (
    ceiling_bits_per_second,
    fabric,
    record_name,
    sweep,
    sweep_lab,
)
from cser_bench.harness.timing.worker import (
    TIMEOUT_SECONDS,
    TimingWorker,
    as_one_of,
    connected,
)
from cser_bench.harness.timing.workloads import DATA, gradients_of, problem_of, workload
from cser_bench.harness.workers.attempt import prepare_thread
from cser_bench.harness.workers.process_group import Launched, joined, launched, own_gpu

SHARE_OF_CEILING = 0.3
"""The part of what this machine's links reach that is used: the rest of its cores' time is for the
methods."""
MOST_COMPUTE_SECONDS = 10.0
"""The longest slowed step: with a longer one a timing would take an hour."""

SCORED_SHARE_OF_CEILING = 0.5
"""The same of scored sessions: methods' own arithmetic does not run while links are at work."""


class TimingJob(NamedTuple):
    """A workload on machines whose links stand for such a rate, and groups of methods.

    All is slowed down `dilation` times. The cores here do the codecs of all workers, at their own
    speed. Where the passes are slow enough, those of a method that encodes behind its backward
    pass, as PowerSGD, fit in as they would on a GPU; and so does the network's latency, which is
    that of this machine's scheduler.
    """

    workload: str
    machines: int
    workers: int
    bits_per_second: float
    dilation: float
    methods: Sequence[str]

    @property
    def layout(self) -> str:
        """Machines and workers of each, as records are named by them: 8x1."""
        return f"{self.machines}x{self.workers}"

    def fabric(self, most_bits_per_second: float) -> Fabric:
        """Give the network here.

        Where links would be faster than it can carry in all, all is slowed down further.
        """
        # All links at once, at the rate that they stand for.
        in_all = self.machines * self.workers * self.bits_per_second
        dilation = max(self.dilation, in_all / most_bits_per_second)
        # Slowed down as the passes are, so that both stand for the rates asked for.
        topology = LabTopology(
            self.machines, self.workers, self.bits_per_second / dilation
        )
        return fabric(topology, dilation)


JOBS = [TimingJob(**job) for job in DATA["jobs"]]
GROUPS: dict[str, list[str]] = DATA["groups"] | {"all": list(METHODS)}


def record(session: Session, folder: Path) -> None:
    """Time the session in a lab, and write its record into the folder.

    Raises:
        LabError: no lab is possible.
        WorkerError: a worker failed.
    """
    place = session.fabric
    topology = LabTopology(
        *place.layout, session.fastest, place.latency_seconds, place.jitter_seconds
    )
    print(
        f"speedups: {session.name}, {len(session.methods)} methods on {topology}",
        flush=True,
    )
    attempt = new_attempt("processes", "gloo", torch.device("cpu"))
    with lab(topology) as network, connected(network) as do:
        timing = time_session(session, do, attempt, network.set_rate)
        write_record(folder / f"{session.name}.json", timing)


def run_study(output: Path, minutes: float) -> TimingStudy:
    """Sweep the jobs' links, to which the cost model is fitted, then time the jobs.

    All records and study.json are written into the folder. A timing that would be begun after so
    many minutes is left out.
    """
    # Only a begin is refused by then: a timing that was begun is finished.
    ends = time.monotonic() + 60 * minutes
    most_workers = max(job.machines * job.workers for job in JOBS)
    most = SHARE_OF_CEILING * ceiling_bits_per_second(most_workers)
    print(
        f"speedups: this machine's links are used up to {rate_text(most)} in all",
        flush=True,
    )
    fabrics = [job.fabric(most) for job in JOBS]
    # First, as the cost model is fitted to them, and timings may be left out.
    sweeps = _sweep_links(fabrics, output)
    # Calibrated once each, before any timing.
    loads = {
        name: workload(name, "cpu")
        for name in dict.fromkeys(job.workload for job in JOBS)
    }
    timings: list[str] = []
    left_out: list[LeftOut] = []
    for job, place in zip(JOBS, fabrics, strict=True):
        load = loads[job.workload]
        why = _why_left_out(place, load, is_over=time.monotonic() > ends)
        if why is not None:
            what = (
                f"{job.workload} on {job.layout} workers at "
                f"{rate_text(job.bits_per_second)}"
            )
            left_out.append(LeftOut(what=what, why=why))
            continue
        name = f"timing-{job.workload}-{job.layout}-{job.bits_per_second / 1e6:g}mbps"
        # Jobs may be alike but for their dilation.
        if f"{name}.json" in timings:
            name += f"-slowed-{place.dilation:g}"
        timings.append(f"{name}.json")
        record(_session_of(job, name, load, place, most), output)
    study = TimingStudy(
        version=VERSION, sweeps=sweeps, timings=timings, left_out=left_out
    )
    write_record(output / "study.json", study)
    return study


def _sweep_links(fabrics: Sequence[Fabric], output: Path) -> list[str]:
    """Sweep each network once, the slowest links first, and return the records' names."""
    links = {(*place.layout, place.bits_per_second or 0.0) for place in fabrics}
    names = []
    for link in sorted(links, key=lambda link: link[-1]):
        topology = LabTopology(*link)
        print(f"speedups: sweep of {topology}", flush=True)
        with lab(topology) as network, connected(network) as do:
            write_record(output / record_name(topology), sweep_lab(network, do))
        names.append(record_name(topology))
    return names


def _why_left_out(place: Fabric, load: Workload, is_over: bool) -> str | None:
    """Say why a job is not timed; None where it is.

    Args:
        is_over: whether the study's minutes are over.
    """
    compute_seconds = place.dilation * load.compute_seconds
    if compute_seconds > MOST_COMPUTE_SECONDS:
        return (
            f"slowed down {place.dilation:.0f} times, as its links need here, a step would "
            f"compute {compute_seconds:.0f} s"
        )
    if is_over:
        return "the minutes given to the study were over"
    return None


def _session_of(
    job: TimingJob, name: str, load: Workload, place: Fabric, most: float
) -> Session:
    """Return the session of a job's methods on its links.

    Args:
        most: bits a second that all links here carry together.
    """
    wanted = [method for group in job.methods for method in GROUPS[group]]
    return Session(
        name=name,
        workload=load,
        gradients=gradients_of(load.name),
        methods=named(METHODS, wanted),
        fabric=place,
        links=(job.bits_per_second,),
        fastest=most / place.num_workers,
    )


def scored(folder: Path, names: Sequence[str]) -> Iterator[Session]:
    """Time exactly what the experiments score, on links of several rates in one session.

    Another call is another session.
    """
    yield _on_links("scored", folder, named(scored_methods(Path("results")), names))


def table(folder: Path, names: Sequence[str]) -> Iterator[Session]:
    """Time the settings of the first table's rows, as `scored` does those of experiments."""
    experiment = DATA["scored"]["table"]
    yield _on_links(
        "table", folder, named(table_methods(Path("results"), experiment), names)
    )


def _on_links(kind: str, folder: Path, methods: Sequence[TimedMethod]) -> Session:
    """Return the folder's next session of a kind, on the links of `scored` in sessions.toml."""
    data = DATA["scored"]
    load = workload(data["workload"], "cpu")
    num_workers = data["num_workers"]
    fastest = (
        SCORED_SHARE_OF_CEILING * ceiling_bits_per_second(num_workers) / num_workers
    )
    network = fabric(LabTopology(num_workers, 1, fastest))
    # A session is never overwritten: the next one gets the next number.
    number = 1 + len(list(folder.glob(f"{kind}-*.json")))
    return Session(
        name=f"{kind}-{number}",
        workload=load,
        gradients=gradients_of(load.name),
        methods=methods,
        # No one rate: steps are timed on each link.
        fabric=network.model_copy(update={"bits_per_second": None}),
        links=data["links"],
        fastest=fastest,
        dilates_each=True,
    )


def wide(folder: Path, names: Sequence[str]) -> Iterator[Session]:
    """Time links of one rate and several latencies, each a session in real time."""
    data = DATA["wide"]
    methods = named(METHODS, names or data["methods"])
    for latency in data["latencies"]:
        yield _in_real_time("wide", latency, methods)
    for latency, jitter in data["with_jitter"]:
        yield _in_real_time("wide", latency, methods, jitter=jitter)


def consecutive(folder: Path, names: Sequence[str]) -> Iterator[Session]:
    """Time consecutive steps, with nobody slow and with stragglers, each in real time."""
    data = DATA["consecutive"]
    near = named(CONSECUTIVE, names or list(CONSECUTIVE))
    yield _in_a_row(0.0, near)
    for fields in data["stragglers"]:
        who = Stragglers(**fields)
        session = _in_a_row(0.0, near)
        name = f"{session.name}-{who.who.replace(' ', '-')}-{who.factor:g}"
        yield replace(session, name=name, stragglers=who)
    usual_far = [name for name in CONSECUTIVE if name not in data["not_far"]]
    for latency in data["far"]:
        yield _in_a_row(latency, named(CONSECUTIVE, names or usual_far))


def _in_a_row(latency: float, methods: Sequence[TimedMethod]) -> Session:
    session = _in_real_time("consecutive", latency, methods)
    return replace(session, in_a_row=True, steps_per_visit=2)


def text(folder: Path, names: Sequence[str]) -> Iterator[Session]:
    """Time what the experiment on text scores.

    Steps are in a row, and all that can be sent early in them is.
    """
    data = DATA["text"]
    scores = scored_methods(Path("results"), data["experiment"], overlap=True)
    usual = [name for name in scores if name not in data["left_out"]]
    methods = named(scores, names or usual)
    for latency in data["latencies"]:
        session = _in_real_time("text", latency, methods, data["workload"])
        yield replace(session, in_a_row=True, steps_per_visit=data["steps_per_visit"])


SESSIONS = {
    "scored": scored,
    "table": table,
    "wide": wide,
    "consecutive": consecutive,
    "text": text,
}
"""Sessions that are timed by themselves: called with the folder of records and names of methods,
all if none is named.

Raises SpecError: an unknown method, or this machine can have no network lab.
"""


def _in_real_time(
    kind: str,
    latency: float,
    methods: Sequence[TimedMethod],
    name: str = DATA["wide"]["workload"],
    jitter: float = 0.0,
) -> Session:
    data = DATA["wide"]
    link = data["bits_per_second"]
    place = fabric(LabTopology(data["num_workers"], 1, link, latency, jitter))
    return Session(
        name=f"{kind}-{link / 1e6:g}mbps-{place.latency.replace(' ', '')}",
        workload=workload(name, "cpu"),
        gradients=gradients_of(name),
        methods=methods,
        fabric=place,
        links=[link],
        fastest=link,
    )


# The network at hand: the command `time`, as one of torchrun's processes.


def time_here(
    name: str, methods: list[str], num_visits: int, steps_per_visit: int, output: Path
) -> None:
    """Sweep the network, and time the methods on the workload; rank 0 writes both records.

    A workload with published times is emulated by waiting, over gloo; others are trained, on GPUs
    where there are some.

    Args:
        methods: their names, and files of methods of one's own; all that ship if none is given.
        output: a folder that is made a study of; timings of other workloads that are in it stay.

    Raises:
        SpecError: not started by torchrun, or an unknown name.
    """
    if "RANK" not in os.environ:
        raise SpecError("timing needs several workers: start it with torchrun")
    here = launched()
    files = [name for name in methods if name.endswith(".py")]
    own = own_methods(files)
    # A word that ends in .py is a file; all others are names of ours.
    names = [name for name in methods if name not in files]
    # A file alone means its methods alone.
    wanted = named({**METHODS, **own}, [*names, *own])
    gradients = gradients_of(name)
    trains = problem_of(name).emulated is None
    backend = "gloo"
    device = "cpu"
    if torch.cuda.is_available() and trains:
        backend = "nccl"
        device = own_gpu(here.local_rank, torch.cuda.device_count())
    network = fabric_here(backend, here)
    prepare_thread(device)
    session = Session(
        name=f"timing-{name}",
        workload=workload(name, device),
        gradients=gradients,
        methods=wanted,
        fabric=network,
        # The links as they are.
        links=(None,),
        # Nobody sets rates here, so there is none to stay below.
        fastest=math.inf,
        trains=trains,
        num_visits=num_visits,
        steps_per_visit=steps_per_visit,
    )
    place = torch.device(device)
    with joined(device, TIMEOUT_SECONDS, "env://"):
        attempt = new_attempt("torchrun", network.backend, place)
        rank = dist.get_rank()
        do = partial(as_one_of, TimingWorker(place))
        swept = sweep(attempt, network, do)
        timing = time_session(session, do, attempt, set_rate=None)
    if rank == 0:
        # Every worker has every result; one of them writes.
        add_to_study(output, swept, timing)


def add_to_study(folder: Path, swept: Sweep, timing: Timing) -> None:
    """Make the folder a study of this sweep and timing, keeping timings of other workloads."""
    file = folder / "study.json"
    name = f"timing-{timing.workload.name}.json"
    timings = []
    if file.exists():
        timings = read_record(file, TimingStudy).timings
    if name not in timings:
        timings = [*timings, name]
    write_record(folder / "sweep.json", swept)
    write_record(folder / name, timing)
    study = TimingStudy(
        version=VERSION, sweeps=["sweep.json"], timings=timings, left_out=[]
    )
    write_record(file, study)


def fabric_here(backend: str, here: Launched) -> Fabric:
    """Describe the network between the workers that were started; nobody knows its rates."""
    world_size = here.world_size
    local = here.local_world_size
    if world_size % local:
        raise SpecError(
            f"{world_size} workers, {local} of them on a host: start equally many on every host"
        )
    return Fabric(
        kind="host",
        backend=backend,
        num_machines=world_size // local,
        workers_per_machine=local,
    )
