"""The command `time`: sweeps the network at hand and times methods on it, as one of torchrun's processes."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
import torch.distributed as dist

from harness.records.provenance import new_attempt
from harness.records.store import VERSION, read_record, write_record
from harness.records.timings import Fabric, Sweep, Timing, TimingStudy
from harness.spec import SpecError
from harness.timing.methods import METHODS, named
from harness.timing.session import Session, timing_of
from harness.timing.session_workers import TIMEOUT_SECONDS, time_methods
from harness.timing.sweep import slowest_seconds, sweep
from harness.timing.workloads import EMULATED, gradients_of, problem_of, workload
from harness.workers.attempt import prepare_thread
from harness.workers.process_group import joined, own_gpu


def run(name: str, methods: list[str], num_visits: int, steps_per_visit: int, output: Path) -> None:
    """Sweep the network, and time the methods (all if none is named) on the workload; rank 0 writes both records.

    A workload with published times is emulated by waiting, over gloo; others are trained, on GPUs where there are some.
    The folder `output` is made a study of; timings of other workloads that are in it stay. Raises SpecError: not
    started by torchrun, or an unknown name.
    """
    if "RANK" not in os.environ:
        raise SpecError("timing needs several workers: start it with torchrun")
    wanted = named(METHODS, methods)
    problem_of(name)
    cuda = torch.cuda.is_available() and name not in EMULATED
    network = fabric_here("nccl" if cuda else "gloo")
    device = own_gpu(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()) if cuda else "cpu"
    prepare_thread(device)
    session = Session(
        f"timing-{name}",
        workload(name, device),
        gradients_of(name),
        wanted,
        network,
        links=(None,),
        fastest=math.inf,
        trains=name not in EMULATED,
        num_visits=num_visits,
        steps_per_visit=steps_per_visit,
    )
    place = torch.device(device)
    with joined(device, TIMEOUT_SECONDS, "env://"):
        attempt, rank = new_attempt("torchrun", network.backend, place), dist.get_rank()
        swept = sweep(attempt, network, slowest_seconds(place))
        found = time_methods(session, place)
    if rank == 0:
        add_to_study(output, swept, timing_of(session, *found, attempt))


def add_to_study(folder: Path, swept: Sweep, timing: Timing) -> None:
    """Make the folder a study of this sweep, with this timing beside those of other workloads that it has."""
    file, name = folder / "study.json", f"timing-{timing.workload.name}.json"
    timings = read_record(file, TimingStudy).timings if file.exists() else []
    timings = list(dict.fromkeys([*timings, name]))
    write_record(folder / "sweep.json", swept)
    write_record(folder / name, timing)
    write_record(file, TimingStudy(version=VERSION, sweeps=["sweep.json"], timings=timings, left_out=[]))


def fabric_here(backend: str) -> Fabric:
    """The network between the workers that the environment speaks of; nobody knows its rates."""
    world_size, local = int(os.environ["WORLD_SIZE"]), os.environ["LOCAL_WORLD_SIZE"]
    if not local.isdigit() or world_size % int(local):
        raise SpecError(f"{world_size} workers, {local} of them on a host: start equally many on every host")
    return Fabric(
        kind="host",
        backend=backend,
        num_machines=world_size // int(local),
        workers_per_machine=int(local),
        bits_per_second=None,
        inside_bits_per_second=None,
        dilation=1.0,
    )
