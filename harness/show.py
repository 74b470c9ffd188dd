"""Prints plans and states for people."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from statistics import median

import torch
from tabulate import tabulate

from harness import store
from harness.attempt import num_cores, prepare_thread
from harness.build import build_model, num_steps_of
from harness.launch import is_done
from harness.plan import Plan
from harness.spec import RunConfig
from harness.store import Failure, Heartbeat
from harness.tasks.task import find_task

STALE_SECONDS = 120.0


def show_plan(plan: Plan) -> None:
    """Runs, settings, bits and memory of each row, and the time that all will take, measured on a dry step."""
    experiment = plan.experiment
    table = [
        [
            row.row,
            row.algorithm,
            f"{row.ratio:g}",
            f"{row.learning_rate:g}",
            len(row.runs),
            row.num_steps,
            f"{row.expected_bits / 8e6:.3f}",
            f"{plan.memory_bytes[row.row] / 1e6:.2f}",
            row.settings,
        ]
        for row in experiment.rows
    ]
    headers = [
        "row",
        "algorithm",
        "ratio",
        "lr",
        "runs",
        "steps",
        "MB sent per worker",
        "MB state per worker",
        "settings",
    ]
    print(experiment.title)
    print(tabulate(table, headers, disable_numparse=True))
    runs = {run.run_id: run for run in plan.runs}
    seconds = sum(_dry_seconds(run.config) for run in runs.values())
    print(f"\n{len(runs)} runs; memory: parameters, gradients and optimiser state, without activations")
    print(
        f"about {seconds / num_cores() / 60:.0f} min on the {num_cores()} cores of this machine "
        "(modelled: a forward and backward pass measured on random images, times the steps)"
    )


_measured: dict[str, float] = {}


def _dry_seconds(config: RunConfig) -> float:
    """Core seconds of one run, modelled as its number of forward and backward passes."""
    key = f"{config.model!r} {config.batch_size}"
    if key not in _measured:
        _measured[key] = _measure_pass(config)
    return _measured[key] * num_steps_of(config)[1] * config.num_workers


def _measure_pass(config: RunConfig) -> float:
    """Median seconds of a forward and backward pass of one worker's batch on one core."""
    prepare_thread()
    task = find_task(config.task.name)
    model = build_model(config.model, task, 0, torch.device("cpu"))
    inputs = torch.zeros((config.batch_size, *task.input_shape))
    times = []
    for _ in range(20):
        started = time.perf_counter()
        model(inputs).sum().backward()
        times.append(time.perf_counter() - started)
    return median(times)


def show_status(plan: Plan, results: Path) -> None:
    """How far each row is, what is running, what failed and why."""
    folder = results / plan.experiment.name
    table = [[row.row, *_counts([folder / run for run in row.runs.values()])] for row in plan.experiment.rows]
    print(tabulate(table, ["row", "done", "running", "stale", "failed", "missing"]))
    for run in plan.runs:
        path = folder / run.run_id
        state, detail = run_state(path)
        if detail:
            print(f"{state}: {run.row} seed {run.seed}: {detail}")


def _counts(folders: list[Path]) -> list[int]:
    states = Counter(run_state(path)[0] for path in folders)
    return [states[state] for state in ("done", "running", "stale", "failed", "missing")]


def run_state(folder: Path) -> tuple[str, str]:
    """One of done, running, stale, failed, missing; and what there is to say of it."""
    if is_done(folder):
        return "done", ""
    heartbeat = store.read_optional(folder / "heartbeat.json", Heartbeat)
    failure = store.read_optional(folder / "failure.json", Failure)
    if failure is not None and (heartbeat is None or heartbeat.attempt == failure.attempt):
        return "failed", f"{failure.kind}: {failure.message} ({folder / 'failure.json'})"
    if heartbeat is None:
        return "missing", ""
    age = time.time() - heartbeat.time
    place = f"step {heartbeat.step} of {heartbeat.num_steps}"
    if age > STALE_SECONDS:
        return "stale", f"{place}, silent for {age:.0f} s; the next run goes on from its checkpoint"
    return "running", f"{place}, {heartbeat.images_per_second:,.0f} images/s, {heartbeat.seconds_left or 0:.0f} s left"
