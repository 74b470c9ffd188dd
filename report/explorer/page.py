"""The page: an experiment's frames, models of step times and the scripts in one HTML file that
loads nothing."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from cser_bench.harness.records.store import write_text_atomically
from cser_bench.report.explorer.steps import scored_models, step_models, timings_table
from cser_bench.report.frame import Frames
from cser_bench.report.regime import claimed_contrasts
from cser_bench.report.speed.workload_model import STUDY, SpeedStudy, read_study
from cser_bench.report.statistics import accuracy_frame, difference

HERE = Path(__file__).parent
SCRIPTS = ("charts.js", "tables.js", "state.js", "accuracy.js", "speed.js", "explorer.js")

MOST_ON = 6
"""Methods that are switched on at first, beside the baseline, the floor and those of the
frontier."""
MOST_LINES = 15_000
"""A table of scores or pairs with more lines would make the page too large, and is left to the
CSV."""

_PALETTE = (
    "#1a6fd6",
    "#c5221f",
    "#188038",
    "#8430ce",
    "#a85a00",
    "#00797f",
    "#b8185a",
    "#5f6b00",
    "#5d4037",
)
_GREY = "#5f6670"
_CONTRAST = ["row", "reference", "kind", "verdict", "declared", "estimate", "low", "high", "p_holm"]
_NO_SCORE = ["learning_rate", "test_loss", "wall_seconds"]
_DIFFERENCE = ["row", "reference", "estimate", "standard_error", "degrees", "low", "high"]
_NUMBERS = [
    "mean",
    "deviation",
    "num_runs",
    "mean_low",
    "mean_high",
    "difference",
    "difference_low",
    "difference_high",
]


def write_experiment_page(path: Path, frames: Frames) -> None:
    """Write an experiment's page; a study beside it, as results/speedups, gives the step times of
    the rows it timed.

    Raises:
        RecordError: a record of the study is damaged.
        OSError: the file cannot be written.
    """
    places = [place / "speedups" for place in (frames.folder.parent, frames.folder.parent.parent)]
    study = next((read_study(place) for place in places if (place / STUDY).exists()), None)
    models = (
        scored_models(study, frames) if study and study.sessions and not frames.is_tuning else []
    )
    timings = (
        timings_table(study, {model["name"] for model in models}) if study and models else None
    )
    page = explorer_page(
        frames, models, timings, without=("scores", "pairs") if frames.is_tuning else ()
    )
    write_text_atomically(path, page, durable=False)


def write_study_page(path: Path, study: SpeedStudy, experiments: Sequence[Frames]) -> None:
    """Write a study's page, with the rows of the first experiment.

    Raises:
        OSError: the file cannot be written.
    """
    frames = next(iter(experiments), None)
    scored = scored_models(study, frames) if frames and study.sessions else []
    title, without = "Step times and speed-ups", ("scores", "tuning", "pairs")
    page = explorer_page(frames, scored + step_models(study), timings_table(study), title, without)
    write_text_atomically(path, page, durable=False)


def explorer_page(
    frames: Frames | None,
    models: Sequence[Mapping[str, Any]] = (),
    timings: pd.DataFrame | None = None,
    title: str | None = None,
    without: Collection[str] = (),
) -> str:
    """The HTML of an experiment, of a study of step times, or of both; the same records give the
    same bytes.

    Args:
        frames: of the experiment; None for a study by itself.
        models: `report.explorer.steps.step_models`; none leaves the section on speed out.
        timings: `report.explorer.steps.timings_table`, the timed steps behind the models.
        title: of the page; None is the experiment's.
        without: tables of the experiment that are left out.
    """
    tables = experiment_tables(frames) if frames else {}
    tables |= {"timings": timings} if timings is not None else {}
    too_long = {name for name in ("scores", "pairs") if len(tables.get(name, ())) > MOST_LINES}
    shown = {
        name: table
        for name, table in tables.items()
        if len(table) and name not in {*without, *too_long}
    }
    payload = {
        "about": _about(frames, models, too_long),
        "experiment": _experiment(frames) if frames else None,
        "main_ratio": frames.experiment.main_ratio if frames else None,
        "methods": _methods(frames, models),
        "tables": {name: _columns(table) for name, table in shown.items()},
        "models": models,
    }
    return _template().render(
        title=title or (frames.experiment.title if frames else ""),
        style=(HERE / "style.css").read_text(),
        payload=json.dumps(payload, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        script="\n".join((HERE / name).read_text() for name in SCRIPTS),
    )


@cache
def _template() -> Template:
    """The page, in which everything is escaped but our own style and script, and data that hold no
    tag."""
    loader = FileSystemLoader(HERE)
    made = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return made.get_template("template.html")


def _about(
    frames: Frames | None, models: Sequence[Mapping[str, Any]], too_long: Collection[str]
) -> str:
    parts = []
    if frames:
        counts = frames.runs["status"].value_counts()
        told = [
            f"{counts[name]:,} {name}"
            for name in ("done", "diverged", "failed", "missing")
            if name in counts
        ]
        parts.append(
            f"{len(frames.rows)} rows of {frames.experiment.name}, {len(frames.runs):,} runs: "
            f"{', '.join(told)}."
        )
    parts += ["Step times are modelled."] if models else []
    parts += (
        [f"Too long for a page, and in csv/ alone: {', '.join(sorted(too_long))}."]
        if too_long
        else []
    )
    return " ".join([*parts, "Every number and point opens the runs behind it."])


def _experiment(frames: Frames) -> dict[str, Any]:
    told = ("name", "title", "task", "model", "baseline", "floor", "margin", "commands")
    metric = frames.metric
    scale: dict[str, Any] = {
        "factor": 100,
        "unit": "%",
        "difference": "points",
        "metric": metric.score_label,
    }
    if not metric.is_share:
        scale = {
            "factor": 1,
            "unit": metric.unit,
            "difference": metric.unit,
            "metric": f"less of {metric.label}",
        }
    return {name: getattr(frames.experiment, name) for name in told} | scale


def _methods(frames: Frames | None, models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A colour and shape for every label, grey for what others are compared with.

    On at first are all whose rows have a step time, since a frontier of some would be none, and
    else few: those that contrasts name if there are any, each with a colour of its own.
    """
    timed = [method for model in models for method in model["methods"]]
    grey = {method["label"] for method in timed if method["baseline"]}
    joined = {method["label"] for method in timed if method["rows"]}
    labels: dict[str, None] = {}
    if frames:
        label_of = frames.by_row["label"]
        grey |= set(
            label_of.reindex([frames.experiment.baseline, frames.experiment.floor]).dropna()
        )
        pairs = [
            name for contrast in frames.contrasts for name in (contrast.row, contrast.reference)
        ]
        labels = dict.fromkeys([*label_of.reindex(pairs).dropna(), *label_of])
    labels |= dict.fromkeys(method["label"] for method in timed)
    others, bounds = (
        [label for label in labels if (label in grey) == is_bound] for is_bound in (False, True)
    )
    return [
        {"label": label, "colour": _GREY, "shape": at % 6, "on": True}
        for at, label in enumerate(bounds)
    ] + [
        {
            "label": label,
            "colour": _PALETTE[at % 9],
            "shape": (at + at // 9) % 6,
            "on": at < MOST_ON or label in joined,
        }
        for at, label in enumerate(others)
    ]


def experiment_tables(frames: Frames) -> dict[str, pd.DataFrame]:
    """The tables of an experiment's page by name: rows, contrasts, runs, tuning, pairs and
    scores."""
    contrasts = claimed_contrasts(frames)
    commands = frames.attempts.groupby("run_id")["command"].last().rename("command")
    return {
        "rows": _rows(frames),
        "contrasts": contrasts[[*_CONTRAST, *contrasts.columns.drop(_CONTRAST)]],
        "runs": frames.runs.merge(commands, how="left", left_on="run_id", right_index=True),
        "tuning": frames.tuning,
        "pairs": pairs_frame(frames),
        "scores": frames.scores.drop(columns=_NO_SCORE, errors="ignore"),
    }


def _rows(frames: Frames) -> pd.DataFrame:
    """Rows with their means and differences to the baseline; `is_bound` marks a ratio that no other
    method has."""
    numbers = accuracy_frame(frames).rename(columns={"low": "mean_low", "high": "mean_high"})[
        ["row", *_NUMBERS]
    ]
    rows = frames.rows.merge(numbers, on="row")
    first = ["row", "label", "ratio", "num_steps", "learning_rate", *_NUMBERS]
    methods = rows.groupby(["ratio", "num_steps"])["label"].transform("nunique")
    ends = rows["row"].isin([frames.experiment.baseline, frames.experiment.floor])
    return rows[[*first, *rows.columns.drop(first)]].assign(is_bound=(methods == 1) | ends)


def pairs_frame(frames: Frames) -> pd.DataFrame:
    """Every two rows of one ratio, length and rule with the difference of their means; nothing is
    judged here.

    Columns: row, reference, estimate, standard_error, degrees, low, high (two-sided 95 %).
    """
    lines = []
    for _, group in frames.rows.groupby(["num_steps", "rule", "ratio"], sort=False):
        for row, reference in combinations(group["row"], 2):
            found = difference(frames, row, reference)
            if found is not None:
                numbers = (found.estimate, found.standard_error, found.degrees, *found.interval())
                lines.append((row, reference, *numbers))
    return pd.DataFrame(lines, columns=_DIFFERENCE)


def _columns(table: pd.DataFrame) -> dict[str, Any]:
    """A table by column, without those that are empty; texts that repeat come as words and their
    numbers."""
    found: dict[str, Any] = {}
    for name in table.columns[table.notna().any()]:
        values = [_plain(value) for value in table[name].tolist()]
        codes, words = pd.factorize(table[name])
        is_text = all(isinstance(word, str) for word in words)
        repeats = is_text and 2 * len(words) < len(values)
        found[str(name)] = {"words": words.tolist(), "codes": codes.tolist()} if repeats else values
    return {"columns": found, "length": len(table)}


def _plain(value: Any) -> str | int | float | bool | None:
    """A cell as JSON has it; what is not known is null, and an infinity is a text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value if isinstance(value, str | int | float | None) else str(value)
