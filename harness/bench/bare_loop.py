"""Benchmark: how much of the bare loop's speed a run keeps: everything but evaluation, against the passes alone."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from algorithms import StackedCollectives
from harness.bench.measurement import Aim, Measurement, ratio
from harness.bench.methods import SMALL_CNN, config_of
from harness.plan.plan import PlannedRun
from harness.records.provenance import new_attempt
from harness.records.store import Result, read_record
from harness.spec import ModelSpec, PartitionSpec, RunConfig, run_id
from harness.tasks.task import Samples, find_task
from harness.train.build import build_model, table_at_ratio
from harness.train.stacked import replicas_of
from harness.train.stopwatch import interleave
from harness.train.train import train
from harness.train.work import Work
from harness.workers.attempt import Job
from harness.workers.preload import load_samples

REPETITIONS = 5
BARE, RUN = "bare loop", "run"
MODELS = {
    "small_cnn, workers in turn": SMALL_CNN,
    "mlp, workers at once": ModelSpec(name="mlp", options={"hidden": 32}),
}
RATIO = 64


def measure(results: Path) -> list[Measurement]:
    """Per network: seconds of a bare loop of eight replicas, over those of an epoch with M-CSER at `RATIO`."""
    figures = []
    for name, model in MODELS.items():
        config = _config(model)
        samples = load_samples(config.task, None, "cpu")
        calls: dict[str, Callable[[], float]] = {
            BARE: _bare_loop(config, samples),
            RUN: lambda config=config, samples=samples: _run_seconds(config, samples),  # type: ignore[misc]
        }
        timings = interleave(calls, REPETITIONS, _own_seconds)
        figures.append(
            ratio(
                f"share of the bare loop: {name}",
                "an epoch of Fashion-MNIST, 8 workers x 16, one thread: forward and backward passes of eight replicas "
                f"in turn and nothing else, over a run with M-CSER at ratio {RATIO}, evaluation left out",
                timings,
                BARE,
                RUN,
                Aim("at least", 0.85),
            )
        )
    return figures


def _own_seconds(work: Callable[[], object]) -> float:
    """What the work itself says that it took."""
    seconds = work()
    assert isinstance(seconds, float)
    return seconds


def _config(model: ModelSpec) -> RunConfig:
    settings = table_at_ratio("mcser", RATIO)
    changes = {"model": model, "settings": settings, "partition": PartitionSpec(kind="contiguous")}
    return config_of("mcser").model_copy(update=changes)


def _bare_loop(config: RunConfig, samples: Samples) -> Callable[[], float]:
    model = build_model(config.model, find_task(config.task.name), config.seed, torch.device("cpu"))
    replicas = [copy.deepcopy(model) for _ in range(config.num_workers)]
    num_steps = len(samples.train_labels) // config.num_workers // config.batch_size
    order = torch.randperm(len(samples.train_labels), generator=torch.Generator().manual_seed(1))

    def loop() -> float:
        batches = samples.training_batches(torch.split(order, config.batch_size), 1, 0, 0)
        started = time.perf_counter()
        for _ in range(num_steps):
            for replica in replicas:
                inputs, labels = next(batches)
                replica.zero_grad()
                nn.functional.cross_entropy(replica(inputs), labels).backward()  # type: ignore[no-untyped-call]
        return time.perf_counter() - started

    return loop


def _run_seconds(config: RunConfig, samples: Samples) -> float:
    """Of a whole run, by its own clocks, evaluation and checkpoints left out."""
    model = build_model(config.model, find_task(config.task.name), config.seed, torch.device("cpu"))
    identity = run_id(config)
    with tempfile.TemporaryDirectory(prefix="cser-bench-") as folder:
        job = Job(
            experiment="bench",
            folder=Path(folder),
            run=PlannedRun(identity, "mcser", config.seed, config),
            attempt=new_attempt("bench", "stacked", torch.device("cpu")),
            data=None,
            device="cpu",
            cores=(),
            checkpoint_minutes=60.0,
            timeout_seconds=60.0,
        )
        replicas, collectives = replicas_of(model, config.num_workers), StackedCollectives(config.num_workers)
        train(Work(config, replicas, samples, collectives, job.recorder(), job.checkpoints()))
        clocks = read_record(Path(folder) / "result.json", Result).clock_seconds
    return clocks["data"] + clocks["compute"] + clocks["communicate"]
