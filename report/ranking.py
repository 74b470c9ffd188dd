"""The first table of an accuracy report: methods in the order of their mean scores, best first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tabulate import tabulate

from cser_bench.report.accuracy_figures import MOST_RANKED
from cser_bench.report.efficiency_section import (
    BY_DEFINITION,
    efficiency_cell,
    efficiency_of,
)
from cser_bench.report.frame import Frames
from cser_bench.report.labels import NETWORKS, TASKS
from cser_bench.report.setting import setting_in_short
from cser_bench.report.statistics import accuracy_frame
from cser_bench.report.wording import (
    FORMATS,
    NONE,
    Columns,
    gap_cell,
    gap_name,
    score_format,
    short,
)

MOST_ROWS = 62
"""Rows up to which an experiment's other ratios have a table; with more they are in the CSV alone."""

STACKED = ("stacked", "threads")
"""Kinds of workers that are parts of one process."""

READING = """Best mean first, with the standard deviation (SD) between seeds. Drop: how much worse than DDP.
Efficiency: the steps that DDP needs to a method's test loss, over the method's steps; 0.6
means that ten steps of the method are worth six of DDP. In brackets: 95 % CI. Traffic: a
share of DDP's in fp32. lr: learning rate."""
"""How to read that table, below it."""


@dataclass(frozen=True)
class Ranking:
    """What the template shows first.

    Attributes:
        methods: a line each row of its own, by falling mean: label, setting, traffic (share of the baseline's),
            ratio, runs, mean, drop (each with what spreads about it), by_loss, by_score (efficiencies), is_bound.
        further: the same of other ratios, where all rows would be too many.
        columns: those of both tables.
        left_out: number of rows that are in the CSV alone.
        not_begun: of each method how many of its rows have no run, and no line.
        baseline: what the baseline is called; None where there is none.
        is_tuning: whether a line is the best trial of a row.
        has_efficiency: whether an efficiency is known of any row.
    """

    methods: pd.DataFrame
    further: pd.DataFrame
    columns: Columns
    left_out: int
    not_begun: dict[str, int]
    baseline: str | None
    is_tuning: bool
    has_efficiency: bool


@dataclass(frozen=True)
class Regime:
    """Where an experiment's numbers hold.

    Attributes:
        task, network: as reports name them. num_parameters, num_steps: of the first row.
        num_workers, batch_size: None where a record has none.
        seeds: as a text.
        is_emulated: whether all workers were parts of one process, so that nothing crossed a network.
    """

    task: str
    network: str
    num_parameters: int
    num_steps: int
    num_workers: int | None
    batch_size: int | None
    seeds: str
    is_emulated: bool


def regime_of(frames: Frames) -> Regime:
    """Return where the numbers of an experiment hold."""
    experiment = frames.experiment
    backends = frames.attempts["backend"]
    return Regime(
        task=TASKS.get(experiment.task, experiment.task),
        network=NETWORKS.get(experiment.model, experiment.model),
        num_parameters=int(frames.rows["num_parameters"].iloc[0]),
        num_steps=int(frames.rows["num_steps"].iloc[0]),
        num_workers=experiment.config.get("num_workers"),
        batch_size=experiment.config.get("batch_size"),
        seeds=", ".join(map(str, experiment.seeds)),
        is_emulated=bool(len(backends)) and bool(backends.isin(STACKED).all()),
    )


def ranking_of(
    frames: Frames, accuracy: pd.DataFrame, efficiency: pd.DataFrame
) -> Ranking:
    """Return the experiment's own rows, best first.

    Args:
        accuracy: as `accuracy_frame` has it. efficiency: as `efficiency_frame` has it.
    """
    experiment = frames.experiment
    begun, not_begun = _begun_rows(frames, accuracy)
    rows = begun[begun["is_own"]]
    if frames.is_tuning:
        rows = _best_trials(frames, rows)
    rows = rows.sort_values("mean", ascending=False, kind="stable")
    is_main = pd.Series(True, index=rows.index)
    if len(rows) > MOST_RANKED and experiment.main_ratio_group is not None:
        is_main = (
            rows["ratio"].isin([1.0, experiment.main_ratio_group, math.inf])
            | rows["is_bound"]
        )
    further = rows[~is_main] if len(rows) <= MOST_ROWS else rows[:0]
    methods = _lines(frames, rows[is_main], efficiency)
    baseline = None
    if experiment.baseline is not None:
        baseline = str(frames.row(experiment.baseline)["label"])
    return Ranking(
        methods=methods,
        further=_lines(frames, further, efficiency),
        columns=_columns(frames, methods),
        left_out=len(rows) - len(methods) - len(further),
        not_begun=not_begun,
        baseline=baseline,
        is_tuning=frames.is_tuning,
        has_efficiency=_has_efficiency(methods),
    )


def terminal_text(frames: Frames) -> str | None:
    """Return the table with how to read it; None where no efficiency is known."""
    accuracy = accuracy_frame(frames)
    ranking = ranking_of(frames, accuracy, efficiency_of(frames))
    if not ranking.has_efficiency:
        return None
    # Shorter heads than the report's, for a terminal's width.
    heads = {
        "label": "method",
        "setting": "setting",
        "traffic": "traffic",
        "mean": ranking.columns["mean"][0],
        "drop": f"drop, {frames.metric.loss_unit}",
        "by_loss": "efficiency",
    }
    cells = [
        [FORMATS[ranking.columns[name][1]](line[name]) for name in heads]
        for line in ranking.methods.to_dict("records")
    ]
    # Numbers are texts by now, which tabulate would read as numbers again.
    return f"{tabulate(cells, [*heads.values()], disable_numparse=True)}\n\n{READING}"


def _begun_rows(
    frames: Frames, accuracy: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the rows that have a run, and of each method how many of its own rows have none.

    As a table of rows that were never begun says nothing, they are counted; where no run was begun
    at all, every row is returned.
    """
    statuses = frames.runs["status"] != "missing"
    has_run = accuracy["row"].map(statuses.groupby(frames.runs["row"]).any())
    if frames.is_tuning or not has_run.any():
        return accuracy, {}
    without = accuracy[~has_run & accuracy["is_own"]]
    return accuracy[has_run], Counter(without["label"])


def _best_trials(frames: Frames, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the best trial of each row that a tuning tunes."""
    tuned = rows["row"].map(frames.by_row["tunes"])
    # pandas raises where a group has NaN alone, as a row has whose trials all lack a score.
    means = rows["mean"].fillna(-math.inf)
    return rows.loc[means.groupby(tuned, sort=False).idxmax()]


def _lines(
    frames: Frames, rows: pd.DataFrame, efficiency: pd.DataFrame
) -> pd.DataFrame:
    """Return the cells of these rows."""
    experiment = frames.experiment
    settings = {row.row: setting_in_short(row) for row in experiment.rows}
    cells = {name: _efficiencies(efficiency, name) for name in ("test_loss", "score")}
    all_sent = math.nan
    if experiment.baseline is not None:
        load = frames.row(experiment.baseline)["link_models"]
        if load is not None:
            all_sent = float(load)
        for of_score in cells.values():
            of_score[experiment.baseline] = BY_DEFINITION
    unit = frames.metric.loss_unit
    lines = []
    for line in rows.to_dict("records"):
        row = line["row"]
        load = line["link_models"]
        share = math.nan
        if load is not None:
            share = load / all_sent
        ends = (line["difference"], line["difference_low"], line["difference_high"])
        lines.append(
            {
                "label": line["label"],
                "setting": _setting(settings[row], line["learning_rate"]),
                "traffic": share,
                "ratio": line["ratio"],
                "runs": _runs(line),
                "mean": _mean(frames, line),
                "drop": gap_cell(*ends, unit),
                "by_loss": cells["test_loss"].get(row, NONE),
                "by_score": cells["score"].get(row, NONE),
                "is_bound": bool(line["is_bound"]),
            }
        )
    names = (
        "label",
        "setting",
        "traffic",
        "ratio",
        "runs",
        "mean",
        "drop",
        "by_loss",
        "by_score",
    )
    return pd.DataFrame(lines, columns=[*names, "is_bound"])


def _efficiencies(efficiency: pd.DataFrame, score_name: str) -> dict[str, str]:
    """Return the text of each row's efficiency by a score."""
    lines = efficiency[efficiency["score_name"] == score_name]
    return {
        str(line["row"]): efficiency_cell(line) for line in lines.to_dict("records")
    }


def _setting(setting: str, rate: float | None) -> str:
    if rate is None or math.isnan(rate):
        return setting
    of_rate = f"lr {short(rate)}"
    if setting == NONE:
        return of_rate
    return f"{setting}, {of_rate}"


def _mean(frames: Frames, line: Mapping[Any, Any]) -> str:
    """Write a mean score with the standard deviation between seeds: "89.55 (0.12)"."""
    mean = FORMATS[score_format(frames.metric)](line["mean"])
    deviation = line["deviation"]
    if math.isnan(deviation):
        return mean
    if frames.metric.is_share:
        return f"{mean} ({100 * deviation:.2f})"
    return f"{mean} ({deviation:.4f})"


def _runs(line: Mapping[Any, Any]) -> str:
    """Say how many runs are done, in words where that is not all."""
    num_runs = line["num_runs"]
    num_planned = line["num_planned"]
    num_diverged = line["num_diverged"]
    text = str(num_runs)
    if num_runs != num_planned:
        text = f"{num_runs} of {num_planned}"
    if num_diverged:
        text = f"{text}, {num_diverged} diverged"
    return text


def _has_efficiency(methods: pd.DataFrame) -> bool:
    return bool(
        (~methods[["by_loss", "by_score"]].isin([NONE, BY_DEFINITION])).any(axis=None)
    )


def _columns(frames: Frames, methods: pd.DataFrame) -> Columns:
    """Return the columns that say something of these rows."""
    metric = frames.metric
    # A share is printed in percent; a score without a unit, as BLEU's, has none in its head.
    unit = metric.unit
    if unit == "percent":
        unit = "%"
    mean = metric.score_label
    if unit:
        mean = f"{metric.score_label}, {unit} (SD)"
    columns: Columns = {
        "label": ("method", "text"),
        "setting": ("setting", "text"),
        "traffic": ("traffic", "traffic"),
        "runs": ("runs", "text"),
        "mean": (mean, "text"),
        "drop": (f"{gap_name(metric)}, {metric.loss_unit} (95 % CI)", "text"),
    }
    if methods["traffic"].isna().all():
        # Old records do not say what crosses a link.
        columns["traffic"] = ("compression ratio", "amount")
        columns = {
            {"traffic": "ratio"}.get(key, key): head for key, head in columns.items()
        }
    if (methods["drop"] == NONE).all():
        del columns["drop"]
    if _has_efficiency(methods):
        columns["by_loss"] = ("efficiency by test loss", "text")
        if (methods["by_score"] != NONE).sum() > 1:
            columns["by_score"] = (f"by {metric.score_label}", "text")
    return columns
