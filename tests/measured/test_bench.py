"""Benchmarks: ratios of speed and memory on this machine, each with its aim, where it has one.

`make bench` runs them on an otherwise idle machine and ends in one table; `make test` leaves them out.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor, nn

from algorithms import DistributedOptimizer, ProcessGroupCollectives, SoloCollectives, StackedCollectives, algorithms
from harness.records.store import Result, read_record
from harness.spec import ModelSpec, PartitionSpec, RunConfig
from harness.tasks.task import Samples, find_task
from harness.timing.workloads import FASHION_MNIST
from harness.train.build import build_model, table_at_ratio
from harness.train.local_workers import Trainee
from harness.train.train import train
from harness.workers.attempt import num_cores, prepare_thread, work_of
from harness.workers.process_group import joined
from harness.workers.processes import Worker, WorkerProcesses, start_workers
from tests.harness.support import job_for
from tests.measured import subjects
from tests.measured.subjects import interleave

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

Record = Callable[[str, object], None]
INTERVALS = 5
"""Repetitions, each a whole reset interval of steps, so that resets weigh what they do in training."""
REPETITIONS = 7
NUM_STEPS, NUM_WORKERS = 60, 8
BUSY = 0.3
"""Load per core from which figures are not to be trusted."""
PASSES = {"sgd": 5, "ef_sgd": 7, "cser_pl": 5, "csea": 5, "mcser": 5, "cser": 3}
"""Vectors of d numbers that a step must at least read and write, momentum and gradient among them: its traffic limit is
their time at the rate that PyTorch's fused step reaches with its own five (x, m and g read; x and m written)."""
WITHIN = 1.07
"""Of the traffic limit, which a method's step should not exceed by more."""


@pytest.fixture(scope="module", autouse=True)
def idle() -> None:
    """Figures of a busy machine are no figures."""
    load = os.getloadavg()[0]
    if load > BUSY * num_cores():
        print(f"the load was {load:.1f} before this began: measure again when the machine is idle")


@pytest.fixture(scope="module")
def step_ratios() -> dict[str, list[float]]:
    """Of each method, the time of a reset interval over that of PyTorch's fused step, by repetition."""
    prepare_thread()
    steppers = {
        f"torch {momentum}": subjects.torch_stepper(momentum, subjects.random_parameters()) for momentum in (0.9, 0.0)
    }
    steppers |= {name: subjects.own_stepper(name, subjects.random_parameters()) for name in PASSES}
    timings = subjects.interval_seconds(steppers, INTERVALS, torch.device("cpu"))
    plain = {name: f"torch {subjects.config_of(name).momentum}" for name in PASSES}
    return {
        name: [own / fused for own, fused in zip(timings[name], timings[plain[name]], strict=True)] for name in PASSES
    }


@pytest.mark.parametrize("name", PASSES)
def test_a_step_takes_no_more_than_its_traffic(
    step_ratios: dict[str, list[float]], name: str, record_property: Record
) -> None:
    """Over PyTorch's fused step, at 25.6 M parameters on one thread: vectors read and written, and 7 % more."""
    ratio, limit = median(step_ratios[name]), PASSES[name] / (3 if name in subjects.WITHOUT_MOMENTUM else 5)
    record_property("over torch fused", ratio)
    record_property("traffic limit", limit)
    record_property("all", sorted(step_ratios[name]))
    assert ratio <= WITHIN * limit


@pytest.mark.parametrize("name", ["torch", *algorithms()])
def test_memory_in_units_of_the_parameters(name: str, record_property: Record) -> None:
    """Resident memory of a fresh process in three steps with a reset, at its peak, and state counted from tensors."""
    command = [sys.executable, "-m", "tests.measured.test_bench", name]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sizes: dict[str, float] = json.loads(done.stdout)
    for key, value in sizes.items():
        record_property(key, value)
    assert name != "mcser" or sizes["state"] <= 1.0, "the momentum and nothing else"


def sizes_of(name: str) -> dict[str, float]:
    """Sizes in units of the parameters' own, of this process, which should have done nothing before."""
    prepare_thread()
    before, parameters = _status_bytes("VmRSS"), subjects.random_parameters()
    unit = sum(parameter.numel() * parameter.element_size() for parameter in parameters)

    def peak() -> float:
        """Growth at its highest since the last look."""
        highest = _status_bytes("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
        return (highest - before) / unit

    if name == "torch":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, 1e-3, 0.9, nesterov=True, fused=True)
    else:
        optimizer = own = subjects.build(name, parameters, SoloCollectives())
        subjects.skip_to_reset(own)
    sizes = {"construction": peak()}
    for _ in range(3):
        subjects.touch_gradients(parameters)
        optimizer.step()
    sizes["steps"] = peak()
    state = optimizer.state_dict()
    flat = {key: value for key, value in state.get("flat", {}).items() if key != "parameters"}  # the model's own
    values = [*flat.values(), *(value for each in state["state"].values() for value in each.values())]
    sizes["state"] = sum(value.numel() * 4 for value in values if isinstance(value, Tensor)) / unit
    if isinstance(optimizer, DistributedOptimizer):
        with optimizer.consensus():
            sizes["consensus"] = peak()
    return sizes


def _status_bytes(key: str) -> int:
    """A size that Linux reports of this process: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def test_workers_stacked_as_processes_and_with_ddp(record_property: Record) -> None:
    """The whole step of eight workers on the Fashion-MNIST network, the start of processes left out."""
    with (
        start_workers(_obey, [("mcser",)]) as stacked,
        start_workers(_obey, [("mcser",)]) as beside,
        start_workers(_obey, [("mcser",)] * NUM_WORKERS) as processes,
        start_workers(_obey, [("ddp",)] * NUM_WORKERS) as ddp,
    ):
        calls = {
            "stacked": lambda: _take(stacked),
            "processes": lambda: _take(processes),
            "DDP in processes": lambda: _take(ddp),
            "two runs in turn": lambda: _take(stacked) + _take(beside),
            "two runs side by side": lambda: _take(stacked, beside),
        }
        timings = interleave(calls, REPETITIONS)

    def ratio(above: str, below: str) -> float:
        found = median(a / b for a, b in zip(timings[above], timings[below], strict=True))
        record_property(f"{above} / {below}", found)
        return found

    ratio("DDP in processes", "processes")
    assert ratio("processes", "stacked") >= 2.0
    assert ratio("two runs in turn", "two runs side by side") >= 1.6 or num_cores() < 2


def _take(*runs: WorkerProcesses) -> float:
    """Seconds in which all these runs take their steps at once."""
    started = time.perf_counter()
    for run in runs:
        for rank in range(len(run.pipes)):
            run.tell(rank, NUM_STEPS)
    for run in runs:
        run.hear_all()
    return time.perf_counter() - started


def _obey(worker: Worker, algorithm: str) -> None:
    """Be one of several workers, or all of them stacked; each order is a number of steps."""
    prepare_thread()
    config, alone = subjects.config_of(algorithm), worker.world_size == 1
    model = build_model(config.model, find_task(config.task.name), config.seed, torch.device("cpu"))
    with nullcontext() if alone else joined("cpu", 120.0, worker.init_method, worker.rank, worker.world_size):
        collectives = StackedCollectives(config.num_workers) if alone else ProcessGroupCollectives()
        trainee = Trainee(config, model, collectives, 16)
        while True:
            for _ in range(worker.pipe.recv()):
                trainee.step()
            worker.pipe.send(None)


@pytest.mark.parametrize(
    "model", [FASHION_MNIST.model, ModelSpec(name="mlp", options={"hidden": 32})], ids=lambda each: each.name
)
def test_a_run_keeps_the_speed_of_the_passes_alone(model: ModelSpec, record_property: Record, tmp_path: Path) -> None:
    """An epoch of eight replicas in turn and nothing else, over a run with M-CSER at ratio 64, evaluation left out."""
    prepare_thread()
    config = subjects.config_of("mcser").model_copy(
        update={
            "model": model,
            "settings": table_at_ratio("mcser", 64),
            "partition": PartitionSpec(kind="contiguous"),
        }
    )
    samples = find_task(config.task.name).load(None, config.task, torch.device("cpu"))
    folders = (tmp_path / str(number) for number in range(6))
    seconds = interleave(
        {
            "bare": lambda: _bare_loop_seconds(config, samples),
            "run": lambda: _run_seconds(config, next(folders)),
        },
        5,
    )
    kept = median(bare / run for bare, run in zip(seconds["bare"], seconds["run"], strict=True))
    record_property("share of the bare loop's speed", kept)
    assert kept >= 0.85


def _bare_loop_seconds(config: RunConfig, samples: Samples) -> float:
    model = build_model(config.model, find_task(config.task.name), config.seed, torch.device("cpu"))
    replicas = [copy.deepcopy(model) for _ in range(config.num_workers)]
    num_steps = len(samples.train_labels) // config.num_workers // config.batch_size
    order = torch.randperm(len(samples.train_labels), generator=torch.Generator().manual_seed(1))
    batches = samples.training_batches(torch.split(order, config.batch_size), 1, 0, 0)
    started = time.perf_counter()
    for _ in range(num_steps):
        for replica in replicas:
            inputs, labels = next(batches)
            replica.zero_grad()
            nn.functional.cross_entropy(replica(inputs), labels).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


def _run_seconds(config: RunConfig, folder: Path) -> float:
    """Of a whole run, by its own clocks, evaluation and checkpoints left out."""
    job = job_for(config, folder, checkpoint_minutes=60.0)
    collectives = StackedCollectives(config.num_workers)
    train(work_of(job, collectives))
    clocks = read_record(job.folder / "result.json", Result).clock_seconds
    return clocks["data"] + clocks["compute"] + clocks["communicate"]


if __name__ == "__main__":
    print(json.dumps(sizes_of(sys.argv[1])))
