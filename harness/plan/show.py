"""Prints plans for people."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel
from tabulate import tabulate

from cser_bench.algorithms.core.local_step import local_step_named
from cser_bench.harness.plan.forecast import (
    cost_sentences,
    effort_of,
    hours_on,
    link_bits_of,
    next_stage_sentence,
    powers,
)
from cser_bench.harness.plan.plan import Plan
from cser_bench.harness.plan.recorded import COMMON
from cser_bench.harness.records.experiment import Experiment, Row
from cser_bench.harness.spec.run import PartitionSpec, RestartSpec, RunConfig
from cser_bench.harness.train.method import method_of

_GAP = "  "
"""Gap between two columns of a table."""

_LEAST_WIDTH = 20
"""Characters of a folded column: no terminal makes it narrower."""


def show_plan(plan: Plan, link_bits_per_second: float | None = None) -> None:
    """Print runs, settings, bits and memory of each row, and what all of them take on a link.

    A stage's plan has the stage's rows, and what the next stage adds. See `effort_of` for the link.
    """
    shown = _of_its_runs(plan)
    experiment = shown.experiment
    effort = effort_of(plan, link_bits_per_second)
    _say(experiment.title)
    if plan.stage is not None:
        _say(f"stage {plan.stage} of {', '.join(stage.stage for stage in plan.stages)}")
    if plan.inherited is not None:
        _say(plan.inherited)
    _show_common(experiment, effort.configs[0])
    print()
    table = [
        _row_texts(shown, row, effort.link_bits_per_second) for row in experiment.rows
    ]
    print(folded_table(table, _width()), end="\n\n")
    _show_remarks(shown, effort.configs[0])
    if experiment.contrasts:
        _show_power(plan)
    for sentence in cost_sentences(effort):
        _say(sentence)
    if added := next_stage_sentence(plan, link_bits_per_second):
        _say(added)


def _of_its_runs(plan: Plan) -> Plan:
    """Return the plan of a stage with only the rows and seeds that it has runs of."""
    if plan.stage is None:
        return plan
    runs: dict[str, dict[str, str]] = {}
    for run in plan.runs:
        runs.setdefault(run.row, {})[str(run.seed)] = run.run_id
    rows = [
        row.model_copy(update={"runs": runs[row.row]})
        for row in plan.experiment.rows
        if row.row in runs
    ]
    used = {run.seed for run in plan.runs}
    seeds = [seed for seed in plan.experiment.seeds if seed in used]
    return replace(
        plan,
        experiment=plan.experiment.model_copy(update={"rows": rows, "seeds": seeds}),
        footprints={row.row: plan.footprints[row.row] for row in rows},
    )


def _width() -> int:
    return shutil.get_terminal_size().columns


def _say(text: str) -> None:
    """Print a text in lines that fit the terminal; what follows the first is indented."""
    print(
        textwrap.fill(
            text,
            _width(),
            subsequent_indent="  ",
            # A path or a row's name stays whole, so that it can be copied.
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def folded_table(lines: Sequence[Mapping[str, str | int]], width: int) -> str:
    """Return a table of lines by their heads, none longer than `width` characters.

    Columns that do not fit beside the others come below, in a table of their own that begins with
    the first column again. The words of a column that is too wide alone go on in the next line.
    """
    first, *others = lines[0]
    blocks = []
    block = [first]
    for head in others:
        if len(block) > 1 and _table_width(lines, [*block, head]) > width:
            blocks.append(block)
            block = [first]
        block.append(head)
    blocks.append(block)
    return "\n\n".join(_table_of(lines, heads, width) for heads in blocks)


def _table_of(
    lines: Sequence[Mapping[str, str | int]], heads: Sequence[str], width: int
) -> str:
    texts = [[line[head] for head in heads] for line in lines]
    widest: list[int | None] = [None] * len(heads)
    if _table_width(lines, heads) > width:
        # The plan's last column has the settings, which alone grow long.
        widest[-1] = max(
            width - _table_width(lines, heads[:-1]) - len(_GAP), _LEAST_WIDTH
        )
    return tabulate(texts, heads, disable_numparse=True, maxcolwidths=widest)


def _table_width(lines: Sequence[Mapping[str, str | int]], heads: Sequence[str]) -> int:
    total = len(_GAP) * (len(heads) - 1)
    for head in heads:
        # `tabulate` leaves two characters beside a head, and none beside a cell.
        widths = [len(part) + 2 for part in head.splitlines()]
        widths += [len(str(line[head])) for line in lines]
        total += max(widths)
    return total


def _show_common(experiment: Experiment, config: RunConfig) -> None:
    """Print what all rows have in common."""
    shown = {
        key: getattr(config, key) for key in (*COMMON, "num_epochs", "weight_decay")
    }
    # Records and specs have the old name.
    shown["communication_dtype"] = shown.pop("wire")
    # A row may have its own.
    shown["partition"] = PartitionSpec.model_validate(experiment.config["partition"])
    for key, value in sorted(shown.items()):
        _say(f"{key}: {_setting_in_words(value)}")
    print(f"parameters: {experiment.rows[0].num_parameters:,}")
    print(f"seeds: {_setting_in_words(experiment.seeds)}")
    for row in experiment.rows:
        seeds = [int(seed) for seed in row.runs]
        if row.row == experiment.baseline and seeds != experiment.seeds:
            print(f"baseline_seeds: {_setting_in_words(seeds)}")


def _row_texts(
    plan: Plan, row: Row, link_bits_per_second: float
) -> dict[str, str | int]:
    """Return what a table says of a row, by its heads."""
    texts: dict[str, str | int] = {
        "row": row.row,
        "algorithm": row.algorithm,
        "ratio": f"{row.ratio_group:g}",
        # To a tenth, so that the one exchange at the end shows.
        "models sent": f"{row.models_sent:,.1f}",
        "on a link": f"{row.link_models:,.1f}",
    }
    if link_bits_per_second:
        hours = hours_on(link_bits_of(row), link_bits_per_second)
        texts[f"hours at {link_bits_per_second / 1e9:g} Gb/s"] = f"{hours:,.2f}"
    # A model is d numbers of 4 bytes.
    held_bytes = plan.footprints[row.row].peak_models * 4 * row.num_parameters
    texts["lr"] = f"{row.learning_rate:g}"
    texts["runs"] = len(row.runs)
    texts["steps"] = row.num_steps
    texts["MB sent per worker"] = f"{row.expected_bits / 8e6:.3f}"
    texts["MB held, at most"] = f"{held_bytes / 1e6:.2f}"
    texts["settings"] = _settings(row)
    return texts


def _show_remarks(plan: Plan, config: RunConfig) -> None:
    """Print notes on single rows.

    That is topologies, cautions, rows left out, and lost rounding.
    """
    for name, footprint in plan.footprints.items():
        if footprint.spectral_gap is not None:
            over = (
                ""
                if footprint.num_rounds == 1
                else f" over {footprint.num_rounds} steps"
            )
            bits = f"{footprint.neighbour_bits:,} bits in all from one worker to its neighbours"
            _say(f"{name}: spectral gap {footprint.spectral_gap:.3g}{over}; {bits}")
        if footprint.caution is not None:
            _say(f"warning: {name}: {footprint.caution}")
    for sentence in plan.left_out:
        _say(sentence)
    if config.communication_dtype != "fp32":
        configs = {run.row: run.config for run in plan.runs}
        losing = [
            row
            for row, config in configs.items()
            if not method_of(config).keeps_rounding
        ]
        _say(
            f"{config.communication_dtype} messages: rounding is lost by "
            f"{', '.join(losing) or 'no row'}; all others send it later"
        )


def _settings(row: Row) -> str:
    """Return a row's settings in words."""
    parts = [
        f"{key.replace('_', ' ')}: {_setting_in_words(value)}"
        for key, value in row.settings.items()
    ]
    parts.append(_local_step(row))
    if row.warmup_epochs is not None:
        parts.append(f"warm-up {row.warmup_epochs:g} epochs")
    if row.partition is not None:
        parts.append(
            f"partition: {_setting_in_words(PartitionSpec.model_validate(row.partition))}"
        )
    if row.restart is not None:
        restart = RestartSpec.model_validate(row.restart)
        who = "all workers" if restart.worker is None else f"worker {restart.worker}"
        does = "send everything from there on"
        if restart.without:
            does = f"lost: {_setting_in_words(restart.without)}"
        parts.append(f"at {100 * restart.at:g} % of the run {who} {does}")
    return "; ".join(parts)


def _local_step(row: Row) -> str:
    """Return the rule that workers step by, and its numbers."""
    words = local_step_named(row.local_step).words
    text = words.format(
        momentum=row.momentum, betas=_setting_in_words(row.betas), eps=row.eps
    )
    if row.momentum > 0 and not row.nesterov:
        return f"{text} (heavy ball with dampening)"
    return text


def _setting_in_words(value: Any) -> str:
    """Return a setting for people.

    A table is called by its kind or name, with what else it says in parentheses.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(include={"kind", "name"}) | value.model_dump(
            exclude_defaults=True
        )
    if isinstance(value, dict):
        others = dict(value)
        name = str(others.pop("name", ""))
        name = str(others.pop("kind", name))
        words = ", ".join(
            f"{key} {_setting_in_words(inner)}" for key, inner in others.items()
        )
        return f"{name} ({words})" if name and words else name or words
    if isinstance(value, list):
        return ", ".join(map(_setting_in_words, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _show_power(plan: Plan) -> None:
    """Print what the declared contrasts can show.

    The spec must say by how much scores of a row differ between seeds; else nothing is printed.
    """
    if plan.seed_deviation is None:
        _say("declared contrasts: give statistics.seed_deviation to have their power")
        print()
        return
    table = [
        {
            "row": contrast.row,
            "contrast": contrast.kind,
            "reference": contrast.reference,
            "margin": f"{contrast.margin:g}",
            "power": f"{alone:.2f}",
            "power at\nHolm's\nfirst step": f"{first:.2f}",
        }
        for contrast, alone, first in powers(plan.experiment, plan.seed_deviation)
    ]
    print(folded_table(table, _width()))
    _say(
        f"power: with a standard deviation of {plan.seed_deviation:g} between seeds; of rows that "
        "are equal, or for superiority the margin apart"
    )
    print()
