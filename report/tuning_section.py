"""How an experiment's learning rates were chosen: scores by rate, and what the search cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from cser_bench.harness.records.experiment import Choice
from cser_bench.report.contrasts_section import row_name
from cser_bench.report.frame import Frames
from cser_bench.report.wording import (
    FORMATS,
    count,
    counted,
    gap,
    score_format,
    short,
    span,
)


@dataclass(frozen=True)
class TuningSection:
    """What the template shows of the search.

    Attributes:
        rates: a line a row: label, rate (the chosen one), score, by_rate (all scores), missed (what the best
            rate would have gained). score_format: of its scores.
        is_of_test: whether the scores are those of test samples; else they are validation scores.
        num_seeds: of each of these scores.
        experiment: that of the search; None where it is not named.
        num_runs, num_trials: of the search; the last of each row that was tuned.
        search_epochs, epochs_here: of a run, in the search and in the experiment itself: "10 epochs", "2 to 14 epochs".
        is_full_length: whether runs of the search were as long as runs of the experiment.
        has_lengths: whether runs have several lengths in steps, or sizes, within one number of epochs.
        seeds: of the search. given: methods whose rate was given. tuned_places: sizes and lengths that were
            tuned, where sizes and lengths are crossed. at_end: methods whose rate is an end of those tried.
    """

    rates: pd.DataFrame
    score_format: str
    is_of_test: bool
    num_seeds: int
    experiment: str | None
    num_runs: int
    num_trials: str
    search_epochs: str
    epochs_here: str
    is_full_length: bool
    has_lengths: bool
    seeds: str
    given: list[str]
    tuned_places: list[str]
    at_end: list[str]


def tuning_section(
    frames: Frames, rates: pd.DataFrame, cost: pd.DataFrame
) -> TuningSection | None:
    """Return the section; None where nothing is known of the search.

    Args:
        rates: as `rates_frame` has it. cost: as `tuning_frame` has it.
    """
    if rates.empty and cost.empty:
        return None
    table = _rate_table(frames, rates)
    trials = frames.tuning
    # Index: row.
    num_trials = pd.Series([0])
    if len(trials):
        num_trials = trials.groupby("row")["trial"].nunique()
    num_seeds = 0
    if len(table):
        num_seeds = int(table["num_runs"].max())
    experiment = None
    if frames.experiment.tuning is not None:
        experiment = frames.experiment.tuning.experiment
    return TuningSection(
        rates=table,
        score_format=score_format(frames.metric),
        is_of_test=bool((rates["kind"] == "test").any()),
        num_seeds=num_seeds,
        experiment=experiment,
        num_runs=int(cost["num_runs"].sum()),
        num_trials=span((num_trials.min(), num_trials.max())),
        search_epochs=_epochs(trials["num_epochs"]),
        epochs_here=_epochs(frames.rows["num_epochs"]),
        is_full_length=_longest(trials) == _longest(frames.rows),
        has_lengths=_has_lengths(frames),
        seeds=", ".join(map(str, sorted(trials["seed"].unique()))),
        given=_given_rates(frames),
        tuned_places=_tuned_places(frames),
        at_end=cost.loc[cost["num_at_end"] > 0, "label"].tolist(),
    )


def _longest(runs: pd.DataFrame) -> float:
    """Return the epochs of the longest run; NaN of no runs."""
    return float(runs["num_epochs"].max())


def _has_lengths(frames: Frames) -> bool:
    """Return whether rows of one number of epochs differ in steps or in parameters.

    There a row's steps end its runs, and its epochs are only those that its schedule was made for.
    """
    places = frames.rows.groupby("num_epochs")[["num_steps", "num_parameters"]]
    return bool((places.nunique() > 1).any(axis=None))


def _epochs(lengths: pd.Series[float]) -> str:
    """Write how many epochs runs have: "10 epochs", "1.25 to 14 epochs"; nothing of no runs."""
    if lengths.empty:
        return ""
    shortest = lengths.min()
    longest = lengths.max()
    if shortest == longest:
        return counted(float(longest), "epoch")
    return f"{shortest:g} to {counted(float(longest), 'epoch')}"


def _given_rates(frames: Frames) -> list[str]:
    """List the methods whose rate their spec gives, where others' rates were searched for."""
    tuning = frames.experiment.tuning
    if tuning is None:
        return []
    rows = frames.rows
    # Rows of the experiment itself, not those that repeat them at other lengths and rates.
    main_rows = rows[rows["base"].isna() & rows["learning_rate"].notna()]
    # A row that was tuned at some sizes and lengths has its rate from these.
    tuned_elsewhere = rows.loc[rows["row"].isin([*tuning.selected]), "base"].dropna()
    is_given = ~main_rows["row"].isin([*tuning.selected, *tuned_elsewhere])
    return [row_name(frames, str(row)) for row in main_rows.loc[is_given, "row"]]


def _tuned_places(frames: Frames) -> list[str]:
    """List the sizes and lengths at which the baseline was tuned, of an experiment that has several."""
    tuning = frames.experiment.tuning
    if tuning is None or not _has_lengths(frames):
        return []
    rows = frames.rows[frames.rows["row"].isin([*tuning.selected])]
    # A row that repeats another elsewhere is named after it, as "sgd@14".
    is_baseline = rows["row"].str.partition("@")[0] == frames.experiment.baseline
    places = rows.loc[is_baseline, ["num_parameters", "num_steps"]].sort_values(
        ["num_parameters", "num_steps"]
    )
    if frames.rows["num_parameters"].nunique() == 1:
        return [f"{count(steps)} steps" for steps in places["num_steps"]]
    return [
        f"{count(place.num_parameters)} parameters at {count(place.num_steps)} steps"
        for place in places.itertuples()
    ]


def _rate_table(frames: Frames, rates: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each row: the chosen rate with its score, and all scores by rate.

    Scores are of test samples where any are, else of validation samples.
    """
    kind = "held out"
    if (rates["kind"] == "test").any():
        kind = "test"
    write = FORMATS[score_format(frames.metric)]
    of_kind = rates[rates["kind"] == kind]
    lines = []
    # Each group is a row's, a line a rate, by rising rate.
    for row, group in of_kind.groupby("row", sort=False):
        rate = math.nan
        score = math.nan
        chosen = group[group["is_chosen"]]
        if len(chosen):
            rate, score = chosen[["learning_rate", "score"]].iloc[0]
        by_rate = []
        for trial in group.to_dict("records"):
            by_rate.append(
                f"{write(trial['score'])} at {short(trial['learning_rate'])}"
            )
        best = float(group["score"].max())
        missed = None
        # False too where no rate was chosen, whose score is NaN.
        if best > score:
            missed = gap(score - best, frames.metric.loss_unit)
        line = {
            "label": row_name(frames, str(row)),
            "rate": rate,
            "score": score,
            "by_rate": ", ".join(by_rate),
            "missed": missed,
            "num_runs": group["num_runs"].max(),
        }
        lines.append(line)
    columns = ["label", "rate", "score", "by_rate", "missed", "num_runs"]
    return pd.DataFrame(lines, columns=columns)


def tuning_frame(frames: Frames) -> pd.DataFrame:
    """Return what the search cost by method.

    Columns: label, num_rows, num_trials, num_runs, num_epochs, rates, and num_at_end (rows whose
    best rate lies at an end of the grid).
    """
    choices: dict[str, Choice] = {}
    selected: dict[str, float] = {}
    if frames.experiment.tuning is not None:
        choices = frames.experiment.tuning.choices
        selected = frames.experiment.tuning.selected
    trials = frames.tuning
    # A search may have tuned rows that the experiment then did not run.
    if selected:
        trials = trials[trials["row"].isin(frames.by_row.index)]
    lines = []
    for label, group in trials.groupby("label", sort=False):
        rows = list(group["row"].unique())
        rates = sorted({selected[row] for row in rows if row in selected})
        # Rows may share a run: it was paid for once.
        runs = group.drop_duplicates("run_id")
        line = {
            "label": label,
            "num_rows": len(rows),
            "num_trials": group["trial"].nunique(),
            "num_runs": group["run_id"].nunique(),
            "num_epochs": runs["num_epochs"].sum(),
            "rates": ", ".join(map(short, rates)) or None,
            "num_at_end": sum(choices[row].at_end for row in rows if row in choices),
        }
        lines.append(line)
    columns = [
        "label",
        "num_rows",
        "num_trials",
        "num_runs",
        "num_epochs",
        "rates",
        "num_at_end",
    ]
    return pd.DataFrame(lines, columns=columns)
