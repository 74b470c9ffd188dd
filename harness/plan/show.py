"""Prints plans for people."""

from __future__ import annotations

from typing import Any

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
from cser_bench.harness.records.experiment import Row
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
    if plan.inherited is not None:
        print(plan.inherited)
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
    if config.communication_dtype != "fp32":
        rounded = [
            row.row for row in experiment.rows if not algorithms()[row.algorithm].keeps_rounding
        ]
        print(
            f"{config.communication_dtype} messages: rounding is lost by {', '.join(rounded) or 'no row'}; all "
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
