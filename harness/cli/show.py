"""Prints plans and states for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from tabulate import tabulate

from cser_bench.algorithms import algorithms
from cser_bench.harness.plan.forecast import (
    cost_sentences,
    effort_of,
    hours_on,
    link_bits_of,
    powers,
)
from cser_bench.harness.plan.plan import COMMON, Plan
from cser_bench.harness.records.declared import in_words, seen_runs, starts_of
from cser_bench.harness.records.experiment import Experiment, Row
from cser_bench.harness.records.state import RunStatus, State
from cser_bench.harness.records.store import RunFile
from cser_bench.harness.spec.rows import PartitionSpec


def show_plan(plan: Plan, link_bits_per_second: float | None = None) -> None:
    """Runs, settings, bits and memory of each row, and what all of them take on such a link; see
    `effort_of`."""
    experiment, effort = plan.experiment, effort_of(plan, link_bits_per_second)
    config, link = effort.configs[0], effort.link_bits_per_second
    table = [
        {
            "row": row.row,
            "algorithm": row.algorithm,
            "ratio": f"{row.ratio:g}",
            # to a tenth, so that the one exchange at the end shows
            "models sent": f"{row.models_sent:,.1f}",
            "on a link": f"{row.link_models:,.1f}",
            **(
                {f"hours at {link / 1e9:g} Gb/s": f"{hours_on(link_bits_of(row), link):,.2f}"}
                if link
                else {}
            ),
            "lr": f"{row.learning_rate:g}",
            "runs": len(row.runs),
            "steps": row.num_steps,
            "MB sent per worker": f"{row.expected_bits / 8e6:.3f}",
            "MB held, at most": f"{plan.footprints[row.row].peak_models * 4 * row.num_parameters / 1e6:.2f}",
            "settings": _settings(row),
        }
        for row in experiment.rows
    ]
    print(experiment.title)
    shown = {key: getattr(config, key) for key in (*COMMON, "num_epochs", "weight_decay")}
    shown["communication_dtype"] = shown.pop("wire")  # records and specs have the old name
    shown["partition"] = PartitionSpec.model_validate(
        experiment.config["partition"]
    )  # a row may have its own
    for key, value in sorted(shown.items()):
        print(f"{key}: {_said(value)}")
    print(f"parameters: {experiment.rows[0].num_parameters:,}")
    print(f"seeds: {_said(experiment.seeds)}")
    of_baseline = [
        list(map(int, row.runs)) for row in experiment.rows if row.row == experiment.baseline
    ]
    if of_baseline and of_baseline[0] != experiment.seeds:
        print(f"baseline_seeds: {_said(of_baseline[0])}")
    print()
    print(tabulate(table, "keys", disable_numparse=True), end="\n\n")
    for name, footprint in plan.footprints.items():
        if footprint.spectral_gap is not None:
            over = "" if footprint.num_rounds == 1 else f" over {footprint.num_rounds} steps"
            bits = f"{footprint.neighbour_bits:,} bits in all from one worker to its neighbours"
            print(f"{name}: spectral gap {footprint.spectral_gap:.3g}{over}; {bits}")
        if footprint.caution is not None:
            print(f"warning: {name}: {footprint.caution}")
    for sentence in plan.left_out:
        print(sentence)
    if config.wire != "fp32":
        rounded = [
            row.row for row in experiment.rows if not algorithms()[row.algorithm].keeps_rounding
        ]
        print(
            f"{config.wire} messages: rounding is lost by {', '.join(rounded) or 'no row'}; all "
            "others send it later"
        )
    if experiment.contrasts:
        _show_power(plan)
    print(*cost_sentences(effort), sep="\n")


def _settings(row: Row) -> str:
    """A row's settings in words."""
    parts = [f"{key.replace('_', ' ')}: {_said(value)}" for key, value in row.settings.items()]
    if row.local_step != "sgd":
        muon = f"Muon with momentum {row.momentum:g} on hidden matrices, else " * (
            row.local_step == "muon"
        )
        parts.append(f"{muon}AdamW with betas {_said(row.betas)}, eps {row.eps:g}")
    else:
        heavy_ball = row.momentum > 0 and not row.nesterov
        parts.append(f"momentum {row.momentum:g}{' (heavy ball with dampening)' * heavy_ball}")
    if row.warmup_epochs is not None:
        parts.append(f"warm-up {row.warmup_epochs:g} epochs")
    if row.partition is not None:
        parts.append(f"partition: {_said(PartitionSpec.model_validate(row.partition))}")
    if row.restart is not None:
        lost = (
            f"lost: {_said(row.restart['without'])}"
            if row.restart["without"]
            else "send everything from there on"
        )
        who = "all workers" if row.restart["worker"] is None else f"worker {row.restart['worker']}"
        parts.append(f"at {100 * row.restart['at']:g} % of the run {who} {lost}")
    return "; ".join(parts)


def _said(value: Any) -> str:
    """A setting for people: a table by its kind or name, with what else it says in parentheses."""
    if isinstance(value, BaseModel):
        value = value.model_dump(include={"kind", "name"}) | value.model_dump(exclude_defaults=True)
    if isinstance(value, dict):
        name = next((str(value[key]) for key in ("kind", "name") if key in value), "")
        others = ", ".join(
            f"{key} {_said(each)}" for key, each in value.items() if key not in ("kind", "name")
        )
        return f"{name} ({others})" if name and others else name or others
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _show_power(plan: Plan) -> None:
    """What the declared contrasts can show, where the spec says by how much scores of a row differ
    between seeds."""
    if plan.seed_deviation is None:
        print("declared contrasts: give statistics.seed_deviation to have their power\n")
        return
    table = [
        (
            contrast.row,
            contrast.kind,
            contrast.reference,
            contrast.margin,
            f"{alone:.2f}",
            f"{first:.2f}",
        )
        for contrast, alone, first in powers(plan.experiment, plan.seed_deviation)
    ]
    print(
        tabulate(
            table, ["row", "contrast", "reference", "margin", "power", "power at Holm's first step"]
        )
    )
    said = f"power: with a standard deviation of {plan.seed_deviation:g} between seeds"
    print(f"{said}; of rows that are equal, or for superiority the margin apart\n")


def status_text(runs: Sequence[RunStatus], num_workers: int) -> str:
    """Runs of each row by state, a line for each run that there is something to say of, and what
    they take in sum."""
    totals = Counter(run.state for run in runs)
    columns = [state for state in get_args(State) if totals[state] or state in ("done", "missing")]
    by_row: dict[str, Counter[str]] = {}
    for run in runs:
        by_row.setdefault(run.row, Counter())[run.state] += 1
    table = [[row, *(counts[state] for state in columns)] for row, counts in by_row.items()]
    lines = [
        f"{run.state}: {run.row} seed {run.seed}: {said}" for run in runs if (said := _said_of(run))
    ]
    spent, left = worker_hours(runs, num_workers)
    to_come = "unknown" if left is None else f"about {left:,.2g}"
    hours = f"hours of a worker: {spent:,.2g} in runs that are done, {to_come} left"
    return "\n".join([tabulate(table, ["row", *columns]), *lines, f"{totals_text(runs)}; {hours}"])


def totals_text(runs: Sequence[RunStatus]) -> str:
    """How many runs are in each state."""
    return ", ".join(
        f"{count} {state}" for state, count in Counter(run.state for run in runs).items()
    )


def worker_hours(runs: Sequence[RunStatus], num_workers: int) -> tuple[float, float | None]:
    """Hours of one worker, a GPU or a process: of the runs that are done, and of the others if they
    are as long."""
    seconds = [run.seen.result.wall_seconds for run in runs if run.seen.result]
    spent = sum(seconds) * num_workers / 3600
    return spent, spent / len(seconds) * (len(runs) - len(seconds)) if seconds else None


def status_fields(runs: Sequence[RunStatus]) -> list[dict[str, Any]]:
    """The same for machines: of each run what is known, with its newest heartbeat."""
    return [
        {key: getattr(run, key) for key in ("row", "seed", "state", "detail", "job", "log")}
        | {
            "run_id": run.folder.name,
            "failure": run.seen.failure.kind if run.seen.failure else None,
            "heartbeat": run.seen.heartbeat.json_fields() if run.seen.heartbeat else None,
        }
        for run in runs
    ]


def _said_of(run: RunStatus) -> str:
    """How far the run is, where the newest heartbeat says so, what there is to say of it, and where
    to look."""
    parts, beat = [run.job or "", run.detail], run.seen.heartbeat
    if beat is not None and run.state in ("running", "stale"):
        parts.insert(1, f"step {beat.step} of {beat.num_steps}")
        if run.state == "running":
            parts.insert(
                2, f"{beat.images_per_second:,.0f} samples/s, {beat.seconds_left or 0:.0f} s left"
            )
    if run.state in ("stopped", "stale"):
        parts.append("the next run goes on from its checkpoint")
    if run.state == "failed" or (run.state == "stale" and run.log):
        parts.append(run.log or str(run.folder / "failure.json"))
    return "; ".join(filter(None, parts))


def declared_text(folder: Path, experiment: Experiment, runs: Mapping[str, RunFile]) -> str:
    """How many runs had begun when contrasts were declared, a line for each after the first; and of
    what code."""
    run_ids, starts = {row.row: row.runs.values() for row in experiment.rows}, starts_of(runs)
    contrasts = experiment.contrasts or []
    seen = [
        seen_runs(each, run_ids[each.row], run_ids[each.reference], starts) for each in contrasts
    ]
    num_rows = Counter(each.num_rows for each in seen if each is not None)
    attempts = [attempt for run in runs.values() for attempt in run.attempts]
    changed = sum(attempt.git_diff_sha256 is not None for attempt in attempts)
    lines = [
        f"{folder}: {len(contrasts)} contrasts: {num_rows[0]} before their runs, {num_rows[1]} after runs of one row, "
        f"{num_rows[2]} after runs of both, {seen.count(None)} not known; {changed} of {len(attempts)} attempts ran "
        "code with changes that stood in no commit"
    ]
    for contrast, each in zip(contrasts, seen, strict=True):
        if each is None or each.num_begun:
            commit = f", in {contrast.declared_in[:12]}" if contrast.declared_in else ""
            pair = f"{contrast.row} against {contrast.reference}, {contrast.kind}"
            lines.append(
                f"  {pair}: {in_words(each)}, declared {contrast.declared_at or 'in no commit'}{commit}"
            )
    return "\n".join(lines)
