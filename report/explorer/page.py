"""The page: an experiment's frames, models of step times and the scripts in one HTML file.

It loads nothing.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from cser_bench.harness.records.atomic import write_text_atomically
from cser_bench.report.explorer.steps import scored_models, step_models, timings_table
from cser_bench.report.frame import Frames
from cser_bench.report.labels import with_short_labels
from cser_bench.report.sensitivity import claimed_contrasts
from cser_bench.report.speed.workload_model import STUDY, SpeedStudy, read_study
from cser_bench.report.statistics import accuracy_frame, difference
from cser_bench.report.wording import finding, gap_name

HERE = Path(__file__).parent
SCRIPTS = (
    "charts.js",
    "tables.js",
    "state.js",
    "accuracy.js",
    "speed.js",
    "address.js",
    "explorer.js",
)

LOOKS = HERE / "looks.css"
"""What an explorer looks like."""

BESIDE = (("Report", "report.md"),)
"""Links of an explorer in its report's folder."""

MOST_ON = 6
"""Methods shown at first where no comparison was declared, in addition to the baseline, no
communication and those with a step time."""

MOST_LINES = 15_000
"""A table of scores or pairs with more lines would make the page too large, and is left to the
CSV."""

# From here on not every whole number is a float, so a float need not mean what it says.
_MOST_INTEGER = 2**53

_NUM_SHAPES = 6

COLOURS = (
    ("#2a75db", "#56a3ff"),
    ("#c23b00", "#ce7604"),
    ("#004d2c", "#13f5aa"),
    ("#6a2c91", "#ffc0ff"),
    ("#35001c", "#f62c54"),
    ("#3200d0", "#e911c8"),
    ("#000042", "#bef820"),
)
"""Colours of methods on light and on dark paper; the first are those of the figures' families.

They were searched for, so that they stay apart with each kind of colour-blindness.
"""

GREYS = ("#6e6e6e", "#8b93a0")
"""The colour, on either paper, of what methods are compared with."""

_CONTRAST = [
    "row",
    "reference",
    "kind",
    "verdict",
    "declared",
    "gap",
    "gap_low",
    "gap_high",
    "p_holm",
]
_DIFFERENCE = [
    "row",
    "reference",
    "estimate",
    "standard_error",
    "degrees",
    "low",
    "high",
]
_NO_SCORE = ["learning_rate", "test_loss", "wall_seconds"]
_NUMBERS = [
    "mean",
    "deviation",
    "num_runs",
    "mean_low",
    "mean_high",
    "gap",
    "gap_low",
    "gap_high",
]


def write_experiment_page(
    path: Path, frames: Frames, links: Sequence[tuple[str, str]] = BESIDE
) -> None:
    """Write an experiment's page.

    A study of step times in the same folder of results, as results/speedups, adds those of its rows.

    Args:
        path: of the page.
        frames: of the experiment.
        links: what the page leads back to, as (name, address).

    Raises:
        RecordError: a record of the study is damaged.
        OSError: the file cannot be written.
    """
    frames = with_short_labels(frames)
    without: tuple[str, ...] = ()
    # A search has many trials of each row, and compares none of them.
    if frames.is_tuning:
        without = ("scores", "pairs")
    models: list[dict[str, Any]] = []
    timings = None
    study = _study_beside(frames.folder)
    if study is not None and study.sessions and not frames.is_tuning:
        models = scored_models(study, frames)
    if study is not None and models:
        workloads = {model["name"] for model in models}
        timings = timings_table(study, workloads)
    page = explorer_page(frames, models, timings, without=without, links=links)
    write_text_atomically(path, page, durable=False)


def _study_beside(folder: Path) -> SpeedStudy | None:
    """Return the study of step times beside an experiment's folder, or one above; None without."""
    for place in (folder.parent, folder.parent.parent):
        if (place / "speedups" / STUDY).exists():
            return read_study(place / "speedups")
    return None


def write_study_page(
    path: Path,
    study: SpeedStudy,
    experiments: Sequence[Frames],
    links: Sequence[tuple[str, str]] = BESIDE,
) -> None:
    """Write a study's page, with the rows of the first experiment.

    Args:
        path: of the page.
        study: of step times.
        experiments: whose rows were timed.
        links: what the page leads back to, as (name, address).

    Raises:
        OSError: the file cannot be written.
    """
    frames = next(iter(experiments), None)
    models: list[dict[str, Any]] = []
    if frames is not None and study.sessions:
        models = scored_models(study, frames)
    models += step_models(study)
    page = explorer_page(
        frames,
        models,
        timings_table(study),
        title="Step times and speed-ups",
        without=("scores", "tuning", "pairs"),
        links=links,
    )
    write_text_atomically(path, page, durable=False)


def explorer_page(
    frames: Frames | None,
    models: Sequence[Mapping[str, Any]] = (),
    timings: pd.DataFrame | None = None,
    title: str | None = None,
    without: Collection[str] = (),
    links: Sequence[tuple[str, str]] = BESIDE,
) -> str:
    """Return the HTML of an experiment, of a study of step times, or of both.

    The same records give the same bytes.

    Args:
        frames: of the experiment; None for a study by itself.
        models: `report.explorer.steps.step_models`; none leaves the section on speed out.
        timings: `report.explorer.steps.timings_table`, the timed steps behind the models.
        title: of the page; None is the experiment's.
        without: tables of the experiment that are left out.
        links: what the page leads back to, as (name, address).
    """
    tables: dict[str, pd.DataFrame] = {}
    experiment = None
    main_ratio = None
    if frames is not None:
        tables |= experiment_tables(frames)
        experiment = _experiment(frames)
        main_ratio = frames.experiment.main_ratio_group
        title = title or frames.experiment.title
    if timings is not None:
        tables["timings"] = timings
    too_long = _too_long(tables)
    shown = {}
    for name, table in tables.items():
        if len(table) and name not in without and name not in too_long:
            shown[name] = _columns(table)
    # What explorer.js reads. Its tables are by column: {"columns": {name: values}, "length": lines}.
    payload = {
        "about": _about(frames, models, too_long),
        "experiment": experiment,
        "main_ratio": main_ratio,
        "methods": _methods(frames, models),
        "tables": shown,
        "models": models,
    }
    return _rendered(title or "", payload, links)


def _rendered(
    title: str, payload: Mapping[str, Any], links: Sequence[tuple[str, str]]
) -> str:
    """Put a page's data, style and scripts into the template."""
    # Better an error here: Python would write NaN, at which the page's JSON.parse fails.
    text = json.dumps(payload, separators=(",", ":"), allow_nan=False)
    scripts = [(HERE / name).read_text() for name in SCRIPTS]
    return _template().render(
        title=title,
        style=LOOKS.read_text() + (HERE / "style.css").read_text(),
        links=links,
        # A "</script>" in a text would end the script that the data stand in.
        payload=text.replace("<", "\\u003c"),
        script="\n".join(scripts),
    )


@cache
def _template() -> Template:
    """Return the page's template.

    Everything is escaped but our own style and script, and data that hold no tag.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("template.html")


def _about(
    frames: Frames | None, models: Sequence[Mapping[str, Any]], too_long: Sequence[str]
) -> str:
    """Return the line under the title: what is on the page, and what is not."""
    sentences = []
    if frames is not None:
        # Rows may share a run, which is one all the same.
        statuses = frames.runs.drop_duplicates("run_id")["status"]
        counts = statuses.value_counts()
        parts = []
        for status in ("done", "diverged", "failed", "missing"):
            if status in counts:
                parts.append(f"{counts[status]:,} {status}")
        sentences.append(
            f"{len(frames.rows)} rows of {frames.experiment.name}, {len(statuses):,} runs: "
            f"{', '.join(parts)}."
        )
    if models:
        sentences.append("Step times are modelled.")
    if too_long:
        sentences.append(
            f"Too long for a page, and in csv/ alone: {', '.join(too_long)}."
        )
    sentences.append("Every number and point opens the runs behind it.")
    return " ".join(sentences)


def _experiment(frames: Frames) -> dict[str, Any]:
    """Return what the scripts need to know of an experiment.

    A score is printed times `factor` and `sign`: in percent of a share, and of a negative loss as
    the loss.
    """
    experiment = frames.experiment
    metric = frames.metric
    described = {
        "name": experiment.name,
        "title": experiment.title,
        "task": experiment.task,
        "model": experiment.model,
        "baseline": experiment.baseline,
        "floor": experiment.floor,
        "margin": experiment.margin,
        "commands": experiment.commands,
        "gap": gap_name(metric),
    }
    if metric.is_share:
        return described | {
            "factor": 100,
            "sign": 1,
            "unit": "%",
            "gap_unit": metric.loss_unit,
            "metric": metric.score_label,
        }
    return described | {
        "factor": 1,
        "sign": -1,
        "unit": metric.unit,
        "gap_unit": metric.loss_unit,
        "metric": metric.label,
    }


@dataclass
class _Labels:
    """The labels of a page's methods, and what is known of them.

    Attributes:
        ordered: as colours are given, each perhaps several times.
        bounds: what others are compared with. declared: named by a contrast. with_step: that have a step time.
    """

    ordered: list[str] = field(default_factory=list)
    bounds: set[str] = field(default_factory=set)
    declared: set[str] = field(default_factory=set)
    with_step: set[str] = field(default_factory=set)


def _labels(frames: Frames | None, models: Sequence[Mapping[str, Any]]) -> _Labels:
    """Return the labels of an experiment's rows and of the timed methods."""
    labels = _Labels()
    if frames is not None:
        label_of = frames.by_row["label"]
        ends = [frames.experiment.baseline, frames.experiment.floor]
        # `reindex`, as either may be None, at which `loc` would raise.
        labels.bounds.update(label_of.reindex(ends).dropna())
        compared: list[str] = []
        for contrast in frames.contrasts:
            compared += [contrast.row, contrast.reference]
        declared = label_of.reindex(compared).dropna()
        labels.declared.update(declared)
        # Those of contrasts first: the first colours are told apart best.
        labels.ordered += [*declared, *label_of]
    for model in models:
        for method in model["methods"]:
            labels.ordered.append(method["label"])
            if method["baseline"]:
                labels.bounds.add(method["label"])
            if method["rows"]:
                labels.with_step.add(method["label"])
    return labels


def _too_long(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Name the tables that would make the page slow."""
    names = []
    for name in ("pairs", "scores"):
        if name in tables and len(tables[name]) > MOST_LINES:
            names.append(name)
    return names


def _methods(
    frames: Frames | None, models: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return a colour and shape for every label, grey for what others are compared with.

    On at first are all whose rows have a step time, since a frontier of some would be none, and
    else those that contrasts name if there are any, or few.
    """
    labels = _labels(frames, models)
    distinct = list(dict.fromkeys(labels.ordered))
    greys = [label for label in distinct if label in labels.bounds]
    coloured = [label for label in distinct if label not in labels.bounds]
    methods = [_method(label, GREYS, place, True) for place, label in enumerate(greys)]
    # No pair of a colour and a shape repeats soon: 7 and 6, their numbers, have no common divisor.
    for place, label in enumerate(coloured):
        is_one_of_few = not labels.declared and place < MOST_ON
        is_named = label in labels.declared or label in labels.with_step
        colours = COLOURS[place % len(COLOURS)]
        methods.append(_method(label, colours, place, is_named or is_one_of_few))
    return methods


def _method(
    label: str, colours: tuple[str, str], place: int, is_on: bool
) -> dict[str, Any]:
    return {
        "label": label,
        "colour": _on_either_paper(colours),
        "shape": place % _NUM_SHAPES,
        "on": is_on,
    }


def _on_either_paper(colours: tuple[str, str]) -> str:
    """Return the CSS of a colour that has one value on light paper and one on dark."""
    light, dark = colours
    return f"light-dark({light}, {dark})"


def experiment_tables(frames: Frames) -> dict[str, pd.DataFrame]:
    """Return the tables of an experiment's page by name.

    They are rows, contrasts, runs, tuning, pairs and scores.
    """
    contrasts = _contrasts(frames)
    # The columns that readers look for first, then all others.
    further = contrasts.columns.drop(_CONTRAST)
    # The command to repeat is the last one: an interrupted run has several.
    commands = frames.attempts.groupby("run_id")["command"].last().rename("command")
    runs = frames.runs.merge(commands, how="left", left_on="run_id", right_index=True)
    rows = _rows(frames)
    tuning = frames.tuning
    scores = frames.scores.drop(columns=_NO_SCORE, errors="ignore")
    if not frames.metric.is_share:
        # The negative of a test loss is a score, and nobody reads it so.
        means = {"mean": -rows["mean"], "mean_low": -rows["mean_high"]}
        rows = rows.assign(**means, mean_high=-rows["mean_low"])
        runs = runs.assign(score=-runs["score"])
        tuning = tuning.assign(score=-tuning["score"])
        scores = scores.assign(score=-scores["score"])
    return {
        "rows": rows,
        "contrasts": contrasts[[*_CONTRAST, *further]],
        "runs": runs,
        "tuning": tuning,
        "pairs": as_gaps(pairs_frame(frames)),
        "scores": scores,
    }


def as_gaps(
    table: pd.DataFrame,
    estimate: str = "estimate",
    low: str = "low",
    high: str = "high",
) -> pd.DataFrame:
    """Return a table with gaps in place of differences of scores, positive where a row is worse.

    Its columns `gap`, `gap_low` and `gap_high` stand where the others stood.
    """
    # Turning the sign swaps the ends of the interval.
    values = {estimate: table[estimate], low: table[high], high: table[low]}
    # 0.0 - value, as -value would write 0.0 as -0.0.
    gaps = {name: 0.0 - value for name, value in values.items()}
    names = {estimate: "gap", low: "gap_low", high: "gap_high"}
    return table.assign(**gaps).rename(columns=names)


def _contrasts(frames: Frames) -> pd.DataFrame:
    """Return the declared contrasts with their gaps, and verdicts in words."""
    contrasts = claimed_contrasts(frames)
    named = contrasts.assign(unit=frames.metric.loss_unit)
    verdicts = [finding(line) for line in named.to_dict("records")]
    gaps = as_gaps(contrasts.assign(verdict=verdicts))
    at_same_rate = 0.0 - gaps.pop("at_equal_rate")
    return gaps.assign(gap_at_same_learning_rate=at_same_rate)


def _rows(frames: Frames) -> pd.DataFrame:
    """Return rows with their means and their gaps to the baseline.

    `is_bound` marks the baseline, no communication, and a ratio that no other method has.
    """
    names = {"low": "mean_low", "high": "mean_high"}
    numbers = accuracy_frame(frames).rename(columns=names)
    numbers = as_gaps(numbers, "difference", "difference_low", "difference_high")
    rows = frames.rows.merge(numbers[["row", *_NUMBERS]], on="row")
    # A row has one verdict here: that against the baseline.
    contrasts = _contrasts(frames)
    on_baseline = contrasts[contrasts["reference"] == frames.experiment.baseline]
    verdicts = dict(zip(on_baseline["row"], on_baseline["verdict"], strict=True))
    rows = rows.assign(verdict=rows["row"].map(verdicts))
    first = [
        "row",
        "label",
        "verdict",
        "ratio",
        "num_steps",
        "learning_rate",
        *_NUMBERS,
    ]
    further = rows.columns.drop(first)
    num_methods = rows.groupby(["ratio", "num_steps"])["label"].transform("nunique")
    is_end = rows["row"].isin([frames.experiment.baseline, frames.experiment.floor])
    is_bound = (num_methods == 1) | is_end
    return rows[[*first, *further]].assign(is_bound=is_bound)


def pairs_frame(frames: Frames) -> pd.DataFrame:
    """Return every two rows of one ratio, length and rule with the difference of their means.

    Nothing is judged here. Columns: row, reference, estimate, standard_error, degrees, low, high
    (two-sided 95 %).
    """
    lines = []
    # Of n rows n (n - 1) / 2 pairs; only within a group, since across ratios few would ask.
    for _, group in frames.rows.groupby(["num_steps", "rule", "ratio"], sort=False):
        for row, reference in combinations(group["row"], 2):
            contrast = difference(frames, row, reference)
            if contrast is None:
                continue
            lines.append(
                (
                    row,
                    reference,
                    contrast.estimate,
                    contrast.standard_error,
                    contrast.degrees,
                    *contrast.interval(),
                )
            )
    return pd.DataFrame(lines, columns=_DIFFERENCE)


def _columns(table: pd.DataFrame) -> dict[str, Any]:
    """Return a table by column, without those that are empty.

    Texts that repeat come as words and their numbers, which keeps the page small.
    """
    columns: dict[str, Any] = {}
    for name in table.columns[table.notna().any()]:
        values = [_plain(value) for value in table[name].tolist()]
        present = [value for value in values if value is not None]
        is_text = all(isinstance(value, str) for value in present)
        # A table of runs or scores names its few rows in thousands of lines.
        if is_text and 2 * len(set(present)) < len(values):
            # None gets the code -1, which tables.js reads as null.
            codes, words = pd.factorize(np.array(values, dtype=object))
            columns[str(name)] = {"words": words.tolist(), "codes": codes.tolist()}
        else:
            columns[str(name)] = values
    return {"columns": columns, "length": len(table)}


def _plain(value: Any) -> str | int | float | bool | None:
    """Return a cell as JSON has it; what is not known is null, and an infinity is a text."""
    if not isinstance(value, float):
        if isinstance(value, str | int | None):
            return value
        return str(value)
    if math.isnan(value):
        return None
    if math.isinf(value):
        return str(value)
    if value.is_integer() and abs(value) < _MOST_INTEGER:
        return int(value)
    return value
