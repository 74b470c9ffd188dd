"""`harness time`: sweeps the network at hand and times methods on it, as one of the processes of torchrun or srun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from harness.records.provenance import command_line
from harness.records.store import VERSION, read_record, write_record
from harness.records.timings import Fabric, TimingStudy
from harness.spec import SpecError
from harness.speed.layers import layers_of
from harness.speed.methods import METHODS
from harness.speed.request import SweepRequest, TimingRequest
from harness.speed.worker import work
from harness.speed.workloads import is_emulated, workload
from harness.workers.devices import own_gpu

OF_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
MASTER_PORT = "29500"


def run(name: str, methods: list[str], num_visits: int, steps_per_visit: int, output: Path) -> None:
    """Sweep the network, and time the methods (all if none is named) on the workload; rank 0 writes both records.

    A workload with published times is emulated by waiting, over gloo; others are trained, on GPUs where there are some.

    Args:
        output: folder of the records, made a study of; timings of other workloads that are in it stay.

    Raises:
        SpecError: started by neither torchrun nor srun, or an unknown workload or method.
        RecordError: the folder holds a damaged study.
        RuntimeError: a collective failed.
    """
    launch = _environment()
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise SpecError(f"unknown method {unknown[0]!r}; the methods are {', '.join(METHODS)}")
    emulated = is_emulated(name)
    cuda = torch.cuda.is_available() and not emulated
    device: Literal["cpu", "cuda"] = "cuda" if cuda else "cpu"
    network = _fabric("nccl" if cuda else "gloo")
    sweep = SweepRequest(fabric=network, device=device, command=command_line(), output=output / "sweep.json")
    timing = TimingRequest(
        fabric=network,
        basis="emulated" if emulated else "measured",
        workload=workload(name, own_gpu(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()) if cuda else "cpu"),
        trainee="waiting" if emulated else "real",
        methods=methods or list(METHODS),
        num_visits=num_visits,
        steps_per_visit=steps_per_visit,
        device=device,
        command=command_line(),
        output=output / f"timing-{name}.json",
        layers=layers_of(name),
    )
    work([sweep, timing], launch)
    if os.environ["RANK"] == "0":
        _add_to_study(output, sweep.output.name, timing.output.name)


def _add_to_study(folder: Path, sweep: str, timing: str) -> None:
    file = folder / "study.json"
    timings = read_record(file, TimingStudy).timings if file.exists() else []
    timings = list(dict.fromkeys([*timings, timing]))
    write_record(file, TimingStudy(version=VERSION, sweeps=[sweep], timings=timings, left_out=[]))


def _environment() -> str:
    """Which of the two started this process; what srun says is put as torchrun does."""
    if "RANK" in os.environ:
        return "torchrun"
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        os.environ.update({key: os.environ[theirs] for key, theirs in OF_SLURM.items()})
        # "4(x2)": four on each of two nodes.
        os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["SLURM_STEP_TASKS_PER_NODE"].partition("(")[0])
        os.environ.setdefault("MASTER_ADDR", os.environ["SLURM_LAUNCH_NODE_IPADDR"])
        os.environ.setdefault("MASTER_PORT", MASTER_PORT)
        return "srun"
    raise SpecError("timing needs several workers: start it with torchrun, or with srun from a batch script")


def _fabric(backend: str) -> Fabric:
    world_size, local = int(os.environ["WORLD_SIZE"]), os.environ["LOCAL_WORLD_SIZE"]
    if not local.isdigit() or world_size % int(local):
        raise SpecError(f"{world_size} workers, {local} of them on a host: start equally many on every host")
    local_size = int(local)
    return Fabric(
        kind="host",
        backend=backend,
        num_machines=world_size // local_size,
        workers_per_machine=local_size,
        bits_per_second=None,
        inside_bits_per_second=None,
        dilation=1.0,
    )
