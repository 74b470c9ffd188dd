"""Prints plans and states for people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tabulate import tabulate

from harness.plan.estimate import prices, step_time
from harness.plan.plan import Plan
from harness.records.state import Seen, State, judge, look
from harness.train.build import num_steps_of
from harness.workers.attempt import num_cores


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
    for name, sentence in plan.mixing.items():
        print(f"{name}: {sentence}")
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
        lines.append(f"no price: harness/plan/prices.toml has none for {known.device}")
    for machine in priced:
        dollars = worker_seconds / 3600 / machine.gpus * machine.dollars_per_hour
        lines.append(f"about {dollars:,.0f} dollars on {machine.name} ({machine.gpus} GPUs; {machine.source})")
    return lines


STATES: tuple[State, ...] = ("done", "running", "stopped", "stale", "failed", "missing")
"""Those that a run can be in as far as its records say; what is queued on a cluster, the cluster's status knows."""


def show_status(plan: Plan, results: Path) -> None:
    """How far each row is, what is running, what stopped or failed and why."""
    folder = results / plan.experiment.name
    seen = {run.run_id: look(folder / run.run_id) for run in plan.runs}
    states = {run_id: judge(each) for run_id, each in seen.items()}
    table = []
    for row in plan.experiment.rows:
        counts = Counter(states[run_id][0] for run_id in row.runs.values())
        table.append([row.row, *(counts[state] for state in STATES)])
    print(tabulate(table, ["row", *STATES]))
    for run in plan.runs:
        state, detail = states[run.run_id]
        said = "; ".join(filter(None, [_place(seen[run.run_id], state), detail, _advice(state, folder / run.run_id)]))
        if said:
            print(f"{state}: {run.row} seed {run.seed}: {said}")


def _place(seen: Seen, state: State) -> str:
    """How far the run is, where the newest heartbeat says so."""
    beat = seen.heartbeat
    if beat is None or state not in ("running", "stale"):
        return ""
    place = f"step {beat.step} of {beat.num_steps}"
    if state == "stale":
        return place
    return f"{place}, {beat.images_per_second:,.0f} images/s, {beat.seconds_left or 0:.0f} s left"


def _advice(state: State, folder: Path) -> str:
    if state in ("stopped", "stale"):
        return "the next run goes on from its checkpoint"
    return str(folder / "failure.json") if state == "failed" else ""
