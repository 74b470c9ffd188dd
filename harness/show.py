"""Prints plans and states for people."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from tabulate import tabulate

from harness import store
from harness.attempt import num_cores
from harness.build import num_steps_of
from harness.estimate import prices, step_time
from harness.launch import is_done
from harness.plan import Plan
from harness.store import Failure, Heartbeat

STALE_SECONDS = 120.0


def show_plan(plan: Plan) -> None:
    """Runs, settings, bits and memory of each row, and the time that all will take, measured on a dry step."""
    experiment = plan.experiment
    table = [
        [
            row.row,
            row.algorithm,
            f"{row.ratio:g}",
            _models(row.models_sent),
            _models(row.link_models),
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
        "models sent",
        "on a link",
        "lr",
        "runs",
        "steps",
        "MB sent per worker",
        "MB state per worker",
        "settings",
    ]
    print(experiment.title)
    for what, value in {**experiment.settings, "seeds": ", ".join(map(str, experiment.seeds))}.items():
        print(f"{what}: {value}")
    print()
    print(tabulate(table, headers, disable_numparse=True))
    print()
    for sentence in plan.left_out:
        print(sentence)
    for line in _effort(plan):
        print(line)


def _models(number: float | None) -> str:
    """Models of 32 d bits to a tenth, so that the one exchange at the end shows."""
    return "-" if number is None else f"{number:,.1f}"


def _effort(plan: Plan) -> list[str]:
    """Runs, and what their arithmetic takes, as sentences."""
    runs = list({run.run_id: run.config for run in plan.runs}.values())
    times = {run_id: step_time(config) for run_id, config in enumerate(runs)}
    worker_seconds = sum(
        times[number].seconds * num_steps_of(config)[1] * config.num_workers for number, config in enumerate(runs)
    )
    known = times[0]
    activations = "without activations (a GPU would measure them)"
    if known.activation_bytes is not None:
        activations = (
            f"to which activations add {known.activation_bytes / 1e6:,.0f} MB ({known.basis}: {runs[0].batch_size} of "
            f"them, {runs[0].precision})"
        )
    lines = [
        f"{len(runs)} runs; memory: parameters, gradients and optimiser state, {activations}",
        f"{worker_seconds / 3600:,.1f} {known.device} hours for forward and backward passes and updates "
        f"({known.basis}); communication, data and evaluation come on top",
    ]
    if known.device == "CPU core":
        return [*lines, f"about {worker_seconds / num_cores() / 60:.0f} min on the {num_cores()} cores of this machine"]
    workers = runs[0].num_workers
    hours = worker_seconds / workers / len(runs) / 3600
    lines.append(
        f"about {hours:,.1f} hours a run on {workers} GPUs, {hours * len(runs):,.0f} hours one after the other"
    )
    priced = [machine for machine in prices() if machine.gpu in known.device]
    if not priced:
        lines.append(f"no price: harness/prices.toml has none for {known.device}")
    for machine in priced:
        dollars = worker_seconds / 3600 / machine.gpus * machine.dollars_per_hour
        lines.append(f"about {dollars:,.0f} dollars on {machine.name} ({machine.gpus} GPUs; {machine.source})")
    return lines


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
