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
    # Rows without a mean come last; of equal means the plan's order stays.
    rows = rows.sort_values("mean", ascending=False, kind="stable")
    is_main = _are_main(rows, experiment.main_ratio_group)
    further = rows[~is_main]
    if len(rows) > MOST_ROWS:
        further = rows[:0]
    methods = _cells(frames, rows[is_main], efficiency)
    baseline = None
    if experiment.baseline is not None:
        baseline = str(frames.row(experiment.baseline)["label"])
    return Ranking(
        methods=methods,
        further=_cells(frames, further, efficiency),
        columns=_columns(frames, methods),
        left_out=len(rows) - len(methods) - len(further),
        not_begun=not_begun,
        baseline=baseline,
        is_tuning=frames.is_tuning,
        has_efficiency=_has_efficiency(methods),
    )


def _are_main(rows: pd.DataFrame, main_ratio: float | None) -> pd.Series[bool]:
    """Return which rows the first table has: all, or of many those at the main ratio."""
    if len(rows) <= MOST_RANKED or main_ratio is None:
        return pd.Series(True, index=rows.index)
    # A ratio of 1 is a method that compresses nothing, an infinite one no communication.
    return rows["ratio"].isin([1.0, main_ratio, math.inf]) | rows["is_bound"]


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
    formats = {name: FORMATS[ranking.columns[name][1]] for name in heads}
    cells = [
        [formats[name](line[name]) for name in heads]
        for line in ranking.methods.to_dict("records")
    ]
    # Numbers are texts by now, which tabulate would read as numbers again.
    text = tabulate(cells, [*heads.values()], disable_numparse=True)
    return f"{text}\n\n{READING}"


def _begun_rows(
    frames: Frames, accuracy: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the rows that have a run, and of each method how many of its own rows have none.

    As a table of rows that were never begun says nothing, they are counted; where no run was begun
    at all, every row is returned.
    """
    is_begun = frames.runs["status"] != "missing"
    # A boolean a line of `accuracy`, by whether any run of its row was begun.
    has_run = accuracy["row"].map(is_begun.groupby(frames.runs["row"]).any())
    if frames.is_tuning or not has_run.any():
        return accuracy, {}
    # Rows that repeat others at other lengths are left out of the count, as of the table.
    without = accuracy[~has_run & accuracy["is_own"]]
    return accuracy[has_run], Counter(without["label"])


def _best_trials(frames: Frames, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the best trial of each row that a tuning tunes."""
    tuned = rows["row"].map(frames.by_row["tunes"])
    # pandas raises where a group has NaN alone, as a row has whose trials all lack a score.
    means = rows["mean"].fillna(-math.inf)
    return rows.loc[means.groupby(tuned, sort=False).idxmax()]


def _cells(
    frames: Frames, rows: pd.DataFrame, efficiency: pd.DataFrame
) -> pd.DataFrame:
    """Return the cells of these rows, a line each; columns as in `Ranking.methods`."""
    settings = {row.row: setting_in_short(row) for row in frames.experiment.rows}
    by_loss = _efficiencies(frames, efficiency, "test_loss")
    by_score = _efficiencies(frames, efficiency, "score")
    all_sent = _baseline_traffic(frames)
    unit = frames.metric.loss_unit
    lines = []
    for line in rows.to_dict("records"):
        row = line["row"]
        carried = line["link_models"]
        share = math.nan
        if carried is not None:
            share = carried / all_sent
        drop = (line["difference"], line["difference_low"], line["difference_high"])
        lines.append(
            {
                "label": line["label"],
                "setting": _with_rate(settings[row], line["learning_rate"]),
                "traffic": share,
                "ratio": line["ratio"],
                "runs": _runs(line),
                "mean": _mean(frames, line),
                "drop": gap_cell(*drop, unit),
                "by_loss": by_loss.get(row, NONE),
                "by_score": by_score.get(row, NONE),
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


def _baseline_traffic(frames: Frames) -> float:
    """Return what a link carries of the baseline, in models; NaN where that is not known."""
    baseline = frames.experiment.baseline
    if baseline is None or frames.row(baseline)["link_models"] is None:
        return math.nan
    return float(frames.row(baseline)["link_models"])


def _efficiencies(
    frames: Frames, efficiency: pd.DataFrame, score_name: str
) -> dict[str, str]:
    """Return the text of each row's efficiency by a score, the baseline's among them."""
    lines = efficiency[efficiency["score_name"] == score_name]
    texts = {
        str(line["row"]): efficiency_cell(line) for line in lines.to_dict("records")
    }
    if frames.experiment.baseline is not None:
        texts[frames.experiment.baseline] = BY_DEFINITION
    return texts


def _with_rate(setting: str, rate: float | None) -> str:
    """Write a setting with its learning rate: "R2 48, R1 3, H 16, lr 0.1"."""
    # Rates are NaN, not None, in a table where other rows have one.
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
    """Tell whether any row but the baseline has an efficiency, or a reason for none."""
    is_empty = methods[["by_loss", "by_score"]].isin([NONE, BY_DEFINITION])
    return bool((~is_empty).any(axis=None))


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
        # Old records do not say what crosses a link: the ratio stands in the same place.
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
