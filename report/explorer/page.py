"""The page: an experiment's frames, models of step times and the scripts in one HTML file that loads nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from report.frame import Frames
from report.statistics import against_baseline, contrasts_frame, difference, pool_of, summary_frame

HERE = Path(__file__).parent
SCRIPTS = ("charts.js", "tables.js", "state.js", "accuracy.js", "speed.js", "explorer.js")

MOST_ON = 6
"""Methods that are switched on at first, beside the baseline and the floor."""

_PALETTE = ("#1a6fd6", "#c5221f", "#188038", "#8430ce", "#a85a00", "#00797f", "#b8185a", "#5f6b00", "#5d4037")
_GREY = "#5f6670"
_CONTRAST = ["row", "reference", "kind", "verdict", "estimate", "low", "high", "p_holm"]
_NO_SCORE = ["learning_rate", "test_loss", "wall_seconds"]
_DIFFERENCE = ["row", "reference", "estimate", "standard_error", "degrees", "low", "high"]

Table = pd.DataFrame


def explorer_page(
    frames: Frames | None,
    models: Sequence[Mapping[str, Any]] = (),
    timings: Table | None = None,
    title: str | None = None,
    without: Collection[str] = (),
) -> str:
    """The HTML of an experiment, of a study of step times, or of both; the same records give the same bytes.

    Args:
        frames: of the experiment; None for a study by itself.
        models: `report.explorer.steps.step_models`; none leaves the section on speed out.
        timings: `report.explorer.steps.timings_table`, the timed steps behind the models.
        title: of the page; None is the experiment's.
        without: tables of the experiment that are left out.
    """
    tables = experiment_tables(frames) if frames else {}
    tables = {name: table for name, table in tables.items() if name not in without}
    if timings is not None:
        tables["timings"] = timings
    payload = {
        "about": _about(frames, models),
        "experiment": _experiment(frames) if frames else None,
        "main_ratio": frames.experiment.main_ratio if frames else None,
        "methods": _methods(frames, models),
        "tables": {name: _columns(table) for name, table in tables.items() if len(table)},
        "models": models,
    }
    parts = {
        "title": title or (frames.experiment.title if frames else ""),
        "style": (HERE / "style.css").read_text(),
        "payload": json.dumps(payload, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "script": "\n".join((HERE / name).read_text() for name in SCRIPTS),
    }
    page = (HERE / "template.html").read_text()
    for name, text in parts.items():
        page = page.replace(f"@{name}@", text)
    return page


def _about(frames: Frames | None, models: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    if frames:
        counts = frames.runs["status"].value_counts()
        told = ", ".join(
            f"{counts[status]:,} {status}" for status in ("done", "diverged", "failed", "missing") if status in counts
        )
        parts.append(f"{len(frames.rows)} rows, {len(frames.runs):,} planned runs: {told}.")
    if models:
        parts.append("Step times are modelled.")
    return " ".join([*parts, "Every number and point opens the runs behind it."])


def _experiment(frames: Frames) -> dict[str, Any]:
    told = ("name", "title", "task", "model", "baseline", "floor", "margin", "commands")
    metric = frames.metric
    scale = {"factor": 100, "unit": "%"} if metric.is_share else {"factor": 1, "unit": metric.unit}
    return {**{name: getattr(frames.experiment, name) for name in told}, "metric": metric.score_label, **scale}


def _methods(frames: Frames | None, models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A colour and shape for every label, grey for what others are compared with.

    On at first are few, those that contrasts name if there are any; each of them has a colour of its own.
    """
    labels: dict[str, None] = {}
    grey: dict[str, None] = {}
    named: dict[str, None] = {}
    if frames:
        label_of = dict(zip(frames.rows["row"], frames.rows["label"], strict=True))
        labels = dict.fromkeys(label_of.values())
        ends = (frames.experiment.baseline, frames.experiment.floor)
        grey = dict.fromkeys(label_of[row] for row in ends if row in label_of)
        pairs = [name for contrast in frames.contrasts for name in (contrast.row, contrast.reference)]
        named = dict.fromkeys(label_of[name] for name in pairs if name in label_of)
    timed = [method for model in models for method in model["methods"]]
    grey |= dict.fromkeys(method["label"] for method in timed if method["baseline"])
    labels |= dict.fromkeys(method["label"] for method in timed)
    others = [label for label in named if label not in grey]
    others += [label for label in labels if label not in grey and label not in named]
    return [{"label": label, "colour": _GREY, "shape": at % 6, "on": True} for at, label in enumerate(grey)] + [
        {"label": label, "colour": _PALETTE[at % 9], "shape": (at + at // 9) % 6, "on": at < MOST_ON}
        for at, label in enumerate(others)
    ]


def experiment_tables(frames: Frames) -> dict[str, Table]:
    """The tables of an experiment's page by name: rows, contrasts, runs, tuning, pairs and scores."""
    contrasts = contrasts_frame(frames)
    commands = frames.attempts.groupby("run_id")["command"].last().rename("command")
    return {
        "rows": _rows(frames),
        "contrasts": contrasts[[*_CONTRAST, *contrasts.columns.drop(_CONTRAST)]],
        "runs": frames.runs.merge(commands, how="left", left_on="run_id", right_index=True),
        "tuning": frames.tuning,
        "pairs": pairs_frame(frames),
        "scores": frames.scores.drop(columns=_NO_SCORE, errors="ignore"),
    }


def _rows(frames: Frames) -> Table:
    """Rows with their means and differences to the baseline; `is_bound` marks a ratio that no other method has."""
    means = summary_frame(frames).rename(columns={"low": "mean_low", "high": "mean_high"})
    against = against_baseline(frames)[["row", "estimate", "low", "high"]]
    against.columns = pd.Index(["row", "difference", "difference_low", "difference_high"])
    rows = frames.rows.merge(means, how="left", on="row").merge(against, how="left", on="row")
    first = ["row", "label", "ratio", "num_steps", "learning_rate", *means.columns[1:], *against.columns[1:]]
    rows = rows[[*first, *(name for name in rows.columns if name not in first)]]
    methods = rows.groupby(["ratio", "num_steps"])["label"].transform("nunique")
    ends = rows["row"].isin([frames.experiment.baseline, frames.experiment.floor])
    return rows.assign(is_bound=(methods == 1) | ends)


def pairs_frame(frames: Frames) -> Table:
    """Every two rows of one ratio, length and rule with the difference of their means; nothing is judged here.

    Columns: row, reference, estimate, standard_error, degrees, low, high (two-sided 95 %).
    """
    pool, lines = pool_of(frames), []
    for _, group in frames.rows.groupby(["num_steps", "rule", "ratio"], sort=False):
        for row, reference in combinations(group["row"], 2):
            found = difference(frames, row, reference, pool)
            if found is not None:
                numbers = (found.estimate, found.standard_error, found.degrees, *found.interval())
                lines.append((row, reference, *numbers))
    return pd.DataFrame(lines, columns=_DIFFERENCE)


def _columns(table: Table) -> dict[str, Any]:
    """A table by column, without those that are empty; texts that repeat come as words and their numbers."""
    found: dict[str, Any] = {}
    for name in table.columns:
        values = [_plain(value) for value in table[name]]
        words = list(dict.fromkeys(value for value in values if isinstance(value, str)))
        if all(value is None for value in values):
            continue
        if words and all(value is None or isinstance(value, str) for value in values) and 2 * len(words) < len(values):
            numbers = {word: number for number, word in enumerate(words)}
            found[str(name)] = {"words": words, "codes": [numbers.get(str(value), -1) for value in values]}
        else:
            found[str(name)] = values
    return {"columns": found, "length": len(table)}


def _plain(value: Any) -> str | int | float | bool | None:
    """A cell as JSON has it; what is not known is null, and an infinity is a text."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value if isinstance(value, str | int | float | None) else str(value)
