"""Prints plans and states for people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from tabulate import tabulate

from algorithms import algorithms
from harness.plan.footprint import Footprint
from harness.plan.forecast import (
    Effort,
    effort_of,
    hours_sentences,
    powers,
    price_sentences,
    row_hours,
    usual_link,
)
from harness.plan.plan import COMMON, Plan
from harness.records.experiment import Experiment, Row
from harness.records.state import Seen, State, judge, look
from harness.records.store import read_optional
from harness.workers.attempt import num_cores


def show_plan(plan: Plan, link_bits_per_second: float | None = None) -> None:
    """Runs, settings, bits and memory of each row, and what all of them take.

    Args:
        link_bits_per_second: of a node of the cluster that is meant, 0 where nothing passes one or nobody knows; None
            for the usual link of such GPUs.
    """
    experiment, effort = plan.experiment, effort_of(plan)
    config, device = effort.configs[0], effort.compute[0][0].device
    link = usual_link(device) if link_bits_per_second is None else link_bits_per_second
    link = None if device == "CPU core" else link
    table = [
        {
            "row": row.row,
            "algorithm": row.algorithm,
            "ratio": f"{row.ratio:g}",
            "models sent": f"{row.models_sent:,.1f}",  # to a tenth, so that the one exchange at the end shows
            "on a link": f"{row.link_models:,.1f}",
            **({f"hours at {link / 1e9:g} Gb/s": f"{row_hours(row, link):,.2f}"} if link else {}),
            "lr": f"{row.learning_rate:g}",
            "runs": len(row.runs),
            "steps": row.num_steps,
            "MB sent per worker": f"{row.expected_bits / 8e6:.3f}",
            "MB state per worker": f"{plan.footprints[row.row].memory_bytes / 1e6:.2f}",
            "settings": _settings(row),
        }
        for row in experiment.rows
    ]
    print(experiment.title)
    shown = {key: getattr(config, key) for key in (*COMMON, "num_epochs", "weight_decay")}
    shown["communication_dtype"] = shown.pop("wire")  # records and specs have the old name
    for key, value in sorted(shown.items()):
        print(f"{key}: {_said(value)}")
    print(f"parameters: {experiment.rows[0].num_parameters:,}")
    print(f"seeds: {_said(experiment.seeds)}")
    of_baseline = [list(map(int, row.runs)) for row in experiment.rows if row.row == experiment.baseline]
    if of_baseline and of_baseline[0] != experiment.seeds:
        print(f"baseline_seeds: {_said(of_baseline[0])}")
    print()
    print(tabulate(table, "keys", disable_numparse=True), end="\n\n")
    for name, footprint in plan.footprints.items():
        if footprint.spectral_gap is not None:
            print(f"{name}: {_mixing(footprint)}")
    for sentence in plan.left_out:
        print(sentence)
    if config.wire != "fp32":
        rounded = [row.row for row in experiment.rows if not algorithms()[row.algorithm].keeps_rounding]
        print(f"{config.wire} messages: rounding is lost by {', '.join(rounded) or 'no row'}; all others send it later")
    if experiment.contrasts:
        _show_power(plan)
    show_costs(effort, link)


def _settings(row: Row) -> str:
    """A row's settings in words."""
    parts = [f"{key.replace('_', ' ')}: {_said(value)}" for key, value in row.settings.items()]
    if row.local_step != "sgd":
        muon = f"Muon with momentum {row.momentum:g} on hidden matrices, else " * (row.local_step == "muon")
        parts.append(f"{muon}AdamW with betas {_said(row.betas)}, eps {row.eps:g}")
    else:
        heavy_ball = row.momentum > 0 and not row.nesterov
        parts.append(f"momentum {row.momentum:g}{' (heavy ball with dampening)' * heavy_ball}")
    if row.warmup_epochs is not None:
        parts.append(f"warm-up {row.warmup_epochs:g} epochs")
    if row.restart is not None:
        lost = f"lost: {_said(row.restart['without'])}" if row.restart["without"] else "send everything from there on"
        who = "all workers" if row.restart["worker"] is None else f"worker {row.restart['worker']}"
        parts.append(f"at {100 * row.restart['at']:g} % of the run {who} {lost}")
    return "; ".join(parts)


def _said(value: Any) -> str:
    """A setting for people: a table by its kind or name, with what else it says in parentheses."""
    if isinstance(value, BaseModel):
        value = value.model_dump(include={"kind", "name"}) | value.model_dump(exclude_defaults=True)
    if isinstance(value, dict):
        name = next((str(value[key]) for key in ("kind", "name") if key in value), "")
        others = ", ".join(f"{key} {_said(each)}" for key, each in value.items() if key not in ("kind", "name"))
        return f"{name} ({others})" if name and others else name or others
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _mixing(footprint: Footprint) -> str:
    """How near a topology brings the workers, and what that takes."""
    per_step = "" if footprint.num_rounds == 1 else f" over {footprint.num_rounds} steps"
    bits = f"{footprint.neighbour_bits:,} bits in all from one worker to its neighbours"
    return f"spectral gap {footprint.spectral_gap:.3g}{per_step}; {bits}"


def _show_power(plan: Plan) -> None:
    """What the declared contrasts can show, where the spec says by how much scores of a row differ between seeds."""
    if plan.seed_deviation is None:
        print("declared contrasts: give statistics.seed_deviation to have their power\n")
        return
    table = [
        {
            "row": each.contrast.row,
            "contrast": each.contrast.kind,
            "reference": each.contrast.reference,
            "margin": each.contrast.margin,
            "power": f"{each.alone:.2f}",
            "power at Holm's first step": f"{each.first:.2f}",
        }
        for each in powers(plan.experiment, plan.seed_deviation)
    ]
    print(tabulate(table, "keys"))
    said = f"power: with a standard deviation of {plan.seed_deviation:g} between seeds"
    print(f"{said}; of rows that are equal, or for superiority the margin apart\n")


def show_costs(effort: Effort, link_bits_per_second: float | None = None) -> None:
    """Runs, memory, and what the runs take; the link is as of `show_plan`."""
    known, config = effort.compute[0][0], effort.configs[0]
    activations = "without activations (a GPU would measure them)"
    if known.activation_bytes is not None:
        activations = (
            f"to which activations add {known.activation_bytes / 1e6:,.0f} MB ({known.basis}: {config.batch_size} of "
            f"them, {config.precision})"
        )
    each = f"{len(effort.configs)} runs; {1e3 * known.seconds:.3g} ms of compute a step"
    print(f"{each}; memory: parameters, gradients and optimiser state, {activations}")
    if known.device == "CPU core":
        hours = effort.low * config.num_workers
        print(
            f"{hours:,.1f} CPU core hours for forward and backward passes and updates ({known.basis}); communication, "
            "data and evaluation come on top"
        )
        print(f"about {60 * hours / num_cores():.0f} min on the {num_cores()} cores of this machine")
        return
    link = usual_link(known.device) if link_bits_per_second is None else link_bits_per_second
    print(*hours_sentences(effort, link), *price_sentences(effort), sep="\n")


STATES: tuple[State, ...] = ("done", "running", "stopped", "stale", "failed", "missing")
"""Those that a run can be in as far as its records say; what is queued on a cluster, the cluster's status knows."""


def show_status(plan: Plan, results: Path) -> None:
    """How far each row is, what is running, what stopped or failed and why.

    Raises:
        RecordError: experiment.json or a result is damaged, or of another version.
    """
    folder = results / plan.experiment.name
    read_optional(folder / "experiment.json", Experiment)  # a damaged one is told
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
    return f"{place}, {beat.images_per_second:,.0f} samples/s, {beat.seconds_left or 0:.0f} s left"


def _advice(state: State, folder: Path) -> str:
    if state in ("stopped", "stale"):
        return "the next run goes on from its checkpoint"
    return str(folder / "failure.json") if state == "failed" else ""
