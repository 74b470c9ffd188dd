"""The part of a report that says how losses go with a network's size and a run's length."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cser_bench.report.frame import Frames
from cser_bench.report.law.exponents import EXPONENT_OF, exponents_frame
from cser_bench.report.law.fit import (
    LAW,
    MEAN,
    Law,
    fit_law,
    fitted_cells,
    models_frame,
    predicted,
)
from cser_bench.report.law.gaps import cells_frame, diverged_rows, gaps_frame, rate_costs_frame
from cser_bench.report.statistics import against_baseline, contrast_tests
from cser_bench.report.verdicts import loss, loss_interval, size
from cser_bench.report.wording import NONE, count, listed, span

TWICE = {
    "size": "the parameters",
    "rounds": "the rounds",
    "interval": "the steps between rounds",
}
"""What there is twice as much of, by what a question asks of."""

ON_LARGER = "on larger networks"
IN_LONGER = "in longer runs"


def law_tables(frames: Frames) -> dict[str, pd.DataFrame]:
    """Return the tables of the law, whole and unrounded, by the name of their CSV files.

    None where the experiment asks nothing of sizes and lengths.

    law_cells: `cells_frame`, with low and high (95 %, Welch) of the gap, and rate_cost: what half a
        step of the learning rate costs in the nearest corner where rates were tuned.
    law_exponents: `exponents_frame`.
    law_fits: a line a method and term: exponent, low, high, smallest, largest (of what was fitted).
    law_models: `models_frame` of each method.
    law_predictions: of cells that are held back: what was predicted and what was found.
    law_fits_of_all: as law_fits, with the cells that were held back in the fit as well; without a
        line until all of these are done.
    """
    asked = frames.experiment.exponents
    if not asked:
        return {}
    cells = _with_errors(frames, whole_cells(frames))
    exponents = exponents_frame(
        cells,
        asked,
        diverged_rows(frames),
        str(frames.experiment.baseline),
        level=1 - frames.experiment.confidence,
        other_p_values=contrast_tests(frames)["p"].tolist(),
    )
    laws = laws_by_row(frames, cells)
    predictions = _predictions_frame(frames, cells, laws)
    return {
        "law_cells": cells,
        "law_exponents": exponents,
        "law_fits": _fits_frame(laws),
        "law_models": _models_of_methods(cells, laws),
        "law_predictions": predictions,
        "law_fits_of_all": _fits_frame(_laws_of_all(frames, cells, predictions)),
    }


def law_context(frames: Frames, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return what the template says of the law: the same tables in words."""
    if "law_cells" not in tables:
        return {"has_law": False, "has_fit": False}
    unit = frames.metric.loss_unit
    cells = tables["law_cells"]
    labels = _labels(frames)
    baseline = labels[str(frames.experiment.baseline)]
    answers = _answers(tables["law_exponents"], tables["law_fits_of_all"], labels)
    with_law = list(tables["law_fits"]["row"].unique())
    return {
        "has_law": True,
        "has_fit": bool(with_law),
        "has_fit_of_all": not tables["law_fits_of_all"].empty,
        "law_answers": answers,
        "law_headline": headline_of(answers, _lengths(cells)),
        "law_beyond": beyond_in_words(tables["law_predictions"], _lengths(cells)),
        "law_beaten": beaten_in_words(tables["law_models"]),
        "law_cells": _cells_in_words(cells, unit),
        "law_models": _models_in_words(tables["law_models"], unit),
        "law_predictions": _predictions_in_words(tables["law_predictions"], unit),
        "law_order": order_in_words(cells, frames.experiment.floor),
        "law_steps": steps_needed(cells, with_law, baseline),
        "law_rates": _rates_in_words(frames, cells),
        "num_fitted_cells": len(
            cells[~cells["held_back"]][["num_parameters", "num_steps"]].drop_duplicates()
        ),
        "least_gap": _least_gap(cells),
    }


def _labels(frames: Frames) -> dict[str, str]:
    return dict(zip(frames.rows["row"], frames.rows["label"], strict=True))


def rows_asked(frames: Frames) -> list[str]:
    """List the rows that questions of exponents are about, as they are called in all cells."""
    rows: dict[str, None] = {}
    for question in frames.experiment.exponents or []:
        rows |= dict.fromkeys([*question.rows, *question.than])
    return list(rows)


def laws_by_row(frames: Frames, cells: pd.DataFrame) -> dict[str, Law]:
    """Return the law of each method that has one, by row."""
    diverged = diverged_rows(frames)
    laws: dict[str, Law] = {}
    # Without those seeds the gaps of all methods would be of other runs than were planned.
    if frames.experiment.baseline in diverged:
        return laws
    for row in rows_asked(frames):
        law = fit_law(fitted_cells(cells, [row]))
        if law is not None and row not in diverged:
            laws[row] = law
    return laws


def _laws_of_all(
    frames: Frames,
    cells: pd.DataFrame,
    predictions: pd.DataFrame,
) -> dict[str, Law]:
    """Return the laws with the cells that were held back in the fit, once all of these are done.

    Some of them alone would be a choice of what to fit, made after some was seen.
    """
    if predictions.empty or predictions["found"].isna().any():
        return {}
    return laws_by_row(frames, cells.assign(held_back=False))


def laws_for_advice(frames: Frames) -> tuple[dict[str, Law], pd.DataFrame]:
    """Return the law of each method through all that was run, by row, and the cells that it is of.

    What was held back has done its work once all of it is run: a law that it contradicted would
    foretell what is known to be wrong. There is none before all runs are done that it is fitted to.
    """
    cells = whole_cells(frames)
    if not is_fitted_whole(frames):
        return {}, cells
    laws = laws_by_row(frames, cells)
    predictions = _predictions_frame(frames, _with_errors(frames, cells), laws)
    of_all = _laws_of_all(frames, cells, predictions)
    if not of_all:
        return laws, cells[~cells["held_back"]]
    return laws | of_all, cells


def is_fitted_whole(frames: Frames) -> bool:
    """Tell whether all runs that a law is fitted to are done."""
    held_back = frames.rows.loc[_is_held_back(frames.rows), "row"]
    fitted = frames.runs[~frames.runs["row"].isin(held_back)]
    return not fitted["status"].isin(("missing", "failed")).any()


def whole_cells(frames: Frames) -> pd.DataFrame:
    """Return `cells_frame` without what is held back and not all done.

    The mean of a part of its seeds would be of another experiment than was planned.
    """
    cells = cells_frame(gaps_frame(frames))
    parts = []
    for cell in cells[cells["held_back"]].to_dict("records"):
        if not (_runs_behind(frames, cell["name"])["status"] == "done").all():
            parts.append(cell["name"])
    return cells[~cells["name"].isin(parts)].reset_index(drop=True)


def _is_held_back(rows: pd.DataFrame) -> pd.Series[bool]:
    if "held_back" not in rows:
        return pd.Series(False, index=rows.index)
    # NaN where another row of the frame is held back.
    return rows["held_back"].eq(True)


def _with_errors(frames: Frames, cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells with the interval of each gap, and what half a step of the rate costs."""
    against = against_baseline(frames).set_index("row")
    # A gap is the baseline's score less the row's, which is the difference turned round.
    ends = {"low": -against["high"], "high": -against["low"]}
    costs = _rate_costs(frames)
    cost_of = [
        _rate_cost(costs, cell, frames.experiment.baseline) for cell in cells.to_dict("records")
    ]
    return cells.assign(
        low=cells["name"].map(ends["low"]),
        high=cells["name"].map(ends["high"]),
        rate_cost=pd.Series(cost_of, index=cells.index, dtype=float),
    )


def _rate_costs(frames: Frames) -> pd.DataFrame:
    """Return what half a step of the rate costs where it was tuned, with the size and the length."""
    costs = rate_costs_frame(frames)
    places = frames.by_row[["num_parameters", "num_steps"]]
    return costs.join(places, on="name")


def _rate_cost(costs: pd.DataFrame, cell: Mapping[Hashable, Any], baseline: str | None) -> float:
    """Return the larger cost of a method and of its baseline, in the nearest corner of the grid."""
    largest = math.nan
    for row in (cell["row"], baseline):
        own = costs[costs["row"] == row]
        if own.empty:
            continue
        distance = np.abs(np.log(own["num_parameters"] / cell["num_parameters"]))
        distance += np.abs(np.log(own["num_steps"] / cell["num_steps"]))
        cost = float(own.loc[distance.idxmin(), "half_step"])
        # `fmax`, as a cost is NaN where a neighbouring rate diverged, and must not hide the other.
        largest = float(np.fmax(largest, cost))
    return largest


def _fits_frame(laws: Mapping[str, Law]) -> pd.DataFrame:
    lines = []
    for row, law in laws.items():
        for term in law.terms:
            estimate, _ = law.exponent(term)
            low, high = law.interval(term)
            smallest, largest = law.ranges[term]
            lines.append((row, term, estimate, low, high, smallest, largest))
    columns = ["row", "term", "exponent", "low", "high", "smallest", "largest"]
    return pd.DataFrame(lines, columns=columns)


def _models_of_methods(cells: pd.DataFrame, laws: Mapping[str, Law]) -> pd.DataFrame:
    parts = []
    for row in laws:
        own = fitted_cells(cells, [row])
        parts.append(models_frame(own).assign(row=row, label=own["label"].iloc[0]))
    if not parts:
        return pd.DataFrame(
            columns=["row", "label", "model", "size_left_out", "length_left_out", "is_chosen"]
        )
    return pd.concat(parts, ignore_index=True)


_PREDICTED = [
    "row",
    "label",
    "num_parameters",
    "num_steps",
    "beyond",
    "predicted",
    "predicted_low",
    "predicted_high",
    "num_seeds",
    "found",
    "low",
    "high",
    "is_inside",
    "diverged",
]
"""Columns of `_predictions_frame`."""


def _predictions_frame(
    frames: Frames,
    cells: pd.DataFrame,
    laws: Mapping[str, Law],
) -> pd.DataFrame:
    """Return what the laws predict of the cells that are held back, beside what was found there.

    Columns: `_PREDICTED`. found, low and high are NaN until all runs of a cell and the baseline's
    are done, and where one of them diverged.

    Args:
        cells: `whole_cells`, with the ends of their intervals.
    """
    found = cells.set_index("name")
    lines = []
    for planned in frames.rows.to_dict("records"):
        name = str(planned["row"])
        row = name.partition("@")[0]
        if planned.get("held_back") is not True or row not in laws:
            continue
        line = _predicted_of(planned, row, laws[row], cells)
        line["num_seeds"] = len(_own_runs(frames, name))
        line["diverged"] = bool((_runs_behind(frames, name)["status"] == "diverged").any())
        if name in found.index:
            own = found.loc[name]
            line |= {"found": own["gap"], "low": own["low"], "high": own["high"]}
        # False also of NaN, where nothing was found yet: whoever reads it leaves these lines out.
        line["is_inside"] = line["predicted_low"] <= line["found"] <= line["predicted_high"]
        lines.append(line)
    return pd.DataFrame(lines, columns=_PREDICTED)


def _predicted_of(
    planned: Mapping[Hashable, Any], row: str, law: Law, cells: pd.DataFrame
) -> dict[str, Any]:
    """Return what a law predicts of a planned row, with nothing found yet."""
    place = place_in_law(
        planned["num_parameters"],
        planned["num_steps"],
        interval_in(cells, row),
    )
    [said] = predicted(law, place).to_dict("records")
    return {
        "row": row,
        "label": planned["label"],
        "num_parameters": planned["num_parameters"],
        "num_steps": planned["num_steps"],
        "beyond": said["beyond"],
        "predicted": said["gap"],
        "predicted_low": said["low"],
        "predicted_high": said["high"],
        "found": math.nan,
        "low": math.nan,
        "high": math.nan,
    }


def _own_runs(frames: Frames, row: str) -> pd.DataFrame:
    return frames.runs[frames.runs["row"] == row]


def _runs_behind(frames: Frames, row: str) -> pd.DataFrame:
    """Return the runs that a row's gap is of: its own, and the baseline's in the same cell."""
    _, at, cell = row.partition("@")
    baseline = f"{frames.experiment.baseline}{at}{cell}"
    return pd.concat([_own_runs(frames, row), _own_runs(frames, baseline)])


def place_in_law(num_parameters: float, num_steps: float, interval: float) -> pd.DataFrame:
    """Return a size and a length as one line of the terms that laws have."""
    line = {
        "num_parameters": float(num_parameters),
        "num_steps": float(num_steps),
        "rounds": num_steps / interval,
        "interval": interval,
        "steps_a_parameter": num_steps / num_parameters,
    }
    return pd.DataFrame([line])


def interval_in(cells: pd.DataFrame, row: str) -> float:
    """Return the steps between two rounds of a method, as it is called in all cells."""
    return float(cells.loc[cells["row"] == row, "interval"].iloc[0])


def twice_in_words(exponent: float) -> str:
    """Say what twice as much does to a gap: "12 % less", "8 % more"."""
    share = 1 - float(2**exponent)
    percent = round(100 * abs(share))
    if percent == 0:
        return "as much"
    return f"{percent} % {'less' if share > 0 else 'more'}"


def interval_in_words(low: float, high: float) -> str:
    """Say the ends of an exponent's interval in the same way: "5 % less to 3 % more"."""
    first, second = twice_in_words(low), twice_in_words(high)
    for word in (" % less", " % more"):
        if first.endswith(word) and second.endswith(word):
            first = first.removesuffix(word)
    return f"{first} to {second}"


def _answers(
    exponents: pd.DataFrame,
    fits_of_all: pd.DataFrame,
    labels: Mapping[str, str],
) -> pd.DataFrame:
    """Return the questions of exponents with their answers in words.

    Columns besides theirs: label (of the method), answer, twice_of (what there is twice as much of),
    twice (what that does to the loss), interval (95 %), of_all (the same two where the cells that
    were held back are in the fit too, which was not declared and has no verdict; a dash until all
    of these are done, and for a difference of two methods).
    """
    lines = []
    for line in exponents.to_dict("records"):
        row = str(line["rows"])
        texts = {
            "label": listed([labels[name] for name in row.split(" and ")]),
            "twice_of": TWICE[line["of"]],
            "of_all": NONE,
        }
        # NaN where another line has a reason.
        if pd.notna(line["reason"]):
            texts |= {"answer": f"No answer: {line['reason']}", "twice": NONE, "interval": NONE}
        else:
            texts |= {
                "answer": _answer(line),
                "twice": twice_in_words(line["estimate"]),
                "interval": interval_in_words(line["low"], line["high"]),
            }
        if not line["than"]:
            texts["of_all"] = _effect_of_all(fits_of_all, row, EXPONENT_OF[line["of"]])
        lines.append(line | texts)
    columns = [*exponents.columns, "label", "answer", "twice_of", "twice", "interval", "of_all"]
    return pd.DataFrame(lines, columns=columns)


def _answer(line: Mapping[Hashable, Any]) -> str:
    if line["is_shown"]:
        return "Yes"
    # Only that an exponent is negative is tested; of the other side there is the interval alone.
    if line["low"] > 0:
        return "No: by its interval, the opposite"
    return "Not shown"


def _effect_of_all(fits_of_all: pd.DataFrame, row: str, term: str) -> str:
    """Say what twice as much of a term does to a row's gap where all cells are in the fit."""
    own = fits_of_all[(fits_of_all["row"] == row) & (fits_of_all["term"] == term)]
    if own.empty:
        return NONE
    [line] = own.to_dict("records")
    interval = interval_in_words(line["low"], line["high"])
    return f"{twice_in_words(line['exponent'])} ({interval})"


def steps_needed(cells: pd.DataFrame, rows: Sequence[str], baseline: str) -> str:
    """Say in what part of each method's steps the baseline comes as far, over all cells.

    A case is a method in a cell.
    Where the baseline's shortest run came further than the method, only a bound is known. Empty
    where no more is known of any cell.
    """
    of_methods = cells[cells["row"].isin(rows)]
    known = of_methods[of_methods["baseline_steps"].notna()]
    parts = []
    for _, own in known.groupby("row", sort=False):
        shares = 100 * own["baseline_steps"] / own["num_steps"]
        ends = sorted({round(shares.min()), round(shares.max())})
        percent = " to ".join(map(str, ends))
        parts.append(f"{percent} % of the steps to come as far as {own['label'].iloc[0]}")
    if not parts:
        return ""
    where = f"in the {len(known)} of {len(of_methods)} cases where that is known"
    text = f"By mean, {baseline} needs {listed(parts)}, {where}"
    below = of_methods.dropna(subset="baseline_steps_below")
    if not below.empty:
        shares = 100 * below["baseline_steps_below"] / below["num_steps"]
        ends = sorted({round(shares.min()), round(shares.max())})
        text += f"; in {len(below)} more it needs less than {' to '.join(map(str, ends))} %"
    return text


def order_in_words(cells: pd.DataFrame, floor: str | None) -> str:
    """Say in which order methods lose, by mean, and at how many sizes and lengths they do.

    Of the methods that were run at all of them, without the floor; empty where there are fewer than
    two. It is a count, and no test: places share their seeds.

    Args:
        cells: `cells_frame`.
    """
    fitted = cells[~cells["held_back"] & (cells["row"] != floor)]
    place = ["num_parameters", "num_steps"]
    num_places = len(fitted[place].drop_duplicates())
    everywhere = fitted.groupby("row")["row"].transform("size") == num_places
    methods = fitted[everywhere].sort_values("gap")
    if methods["row"].nunique() < 2:
        return ""
    orders = Counter(tuple(own["label"]) for _, own in methods.groupby(place))
    [(usual, num_usual)] = orders.most_common(1)
    where = f"{num_usual} of {num_places} sizes and lengths"
    if num_usual == num_places:
        where = f"all {num_places} sizes and lengths"
    if len(usual) == 2:
        return f"By mean {usual[0]} loses less than {usual[1]} at {where}"
    text = f"By mean {usual[0]} loses least, then {', then '.join(usual[1:])}, at {where}"
    if num_usual == num_places:
        return text
    firsts = Counter(order[0] for order in orders.elements())
    num_first = firsts.pop(usual[0])
    if not firsts:
        return f"{text}; it loses least at all"
    others = [f"{label} at {number}" for label, number in firsts.items()]
    return f"{text}; it loses least at {num_first}, {listed(others)}"


def headline_of(answers: pd.DataFrame, lengths: tuple[float, float]) -> str:
    """Say which methods are shown to lose less on larger networks, and which in longer runs.

    Methods whose interval says the opposite are named too.

    Args:
        answers: `_answers`.
        lengths: the least and the most steps that the law is fitted to: it says nothing of others.
    """
    is_of_either = answers["of"].isin(["size", "rounds"]) & (answers["than"] == "")
    asked = answers[is_of_either & answers["reason"].isna()]
    labels = list(asked["label"].unique())
    by_size = _labels_where(asked, "size", asked["is_shown"])
    by_rounds = _labels_where(asked, "rounds", asked["is_shown"])
    text = f"in {span(lengths)} steps {_who_loses_less(labels, by_size, by_rounds)}"
    for of, where in (("size", ON_LARGER), ("rounds", IN_LONGER)):
        grows = _labels_where(asked, of, asked["low"] > 0)
        if grows:
            verb = "loses" if len(grows) == 1 else "lose"
            text += f"; by its interval {listed(grows)} {verb} more {where}"
    return text


def _who_loses_less(labels: Sequence[str], by_size: Sequence[str], by_rounds: Sequence[str]) -> str:
    """Write which of these methods are shown to lose less on larger networks, and in longer runs."""
    if not labels:
        return "no question of size or length has an answer"
    if not by_size and not by_rounds:
        nobody = f"none of {listed(labels)} is"
        if len(labels) == 1:
            nobody = f"{labels[0]} is not"
        if len(labels) == 2:
            nobody = f"neither {labels[0]} nor {labels[1]} is"
        return f"{nobody} shown to lose less {ON_LARGER} or {IN_LONGER}"
    if by_size == by_rounds:
        return f"{_are(by_size)} shown to lose less {ON_LARGER} and {IN_LONGER}"
    if not by_size:
        return f"{_are(by_rounds)} shown to lose less {IN_LONGER}, and none {ON_LARGER}"
    return f"{_are(by_size)} shown to lose less {ON_LARGER}, and {listed(by_rounds) or 'none'} {IN_LONGER}"


def _are(labels: Sequence[str]) -> str:
    """Write methods with their verb."""
    return f"{listed(labels)} {'are' if len(labels) > 1 else 'is'}"


def beyond_in_words(predictions: pd.DataFrame, lengths: tuple[float, float]) -> str:
    """Say how what was held back came out, as sentences; empty where none of it is done.

    Args:
        predictions: `_predictions_frame`.
        lengths: the least and the most steps that the law is fitted to.
    """
    found = predictions.dropna(subset="found")
    if found.empty:
        return ""
    num_outside = int((~found["is_inside"].astype(bool)).sum())
    if len(found) == 1:
        text = (
            f"The loss that was predicted lay {'outside' if num_outside else 'inside'} the interval"
        )
    else:
        text = f"Of {len(found)} predicted losses {num_outside or 'none'} lay outside the interval"
    if not num_outside:
        text += f", and {_widest_in_words(found)}"
    longer = found[found["num_steps"] > lengths[1]]
    if len(longer) > 1:
        num_less = int((longer["found"] < longer["predicted"]).sum())
        num_places = len(longer[["num_parameters", "num_steps"]].drop_duplicates())
        where = f"{num_places} {'size and length' if num_places == 1 else 'sizes and lengths'}"
        text = (
            f"In runs longer than these {num_less or 'none'} of {len(longer)} losses were less than "
            f"predicted; they are of {where}, and methods share a baseline there. {text}"
        )
    return text


def _widest_in_words(predictions: pd.DataFrame) -> str:
    """Say how far the widest interval reached: being inside a wide one says little."""
    highest = predictions["predicted_high"] / predictions["predicted"]
    lowest = predictions["predicted_low"] / predictions["predicted"]
    widest = highest.argmax()
    low, high = lowest.iloc[widest], highest.iloc[widest]
    return f"the widest interval was {low:.2f} to {high:.2f} times what was predicted"


def _lengths(cells: pd.DataFrame) -> tuple[float, float]:
    """Return the least and the most steps of the cells that a law is fitted to."""
    fitted = cells.loc[~cells["held_back"], "num_steps"]
    return fitted.min(), fitted.max()


def _labels_where(asked: pd.DataFrame, of: str, where: pd.Series[bool]) -> list[str]:
    """List the methods of which a question of size, or of rounds, has some answer."""
    return list(asked.loc[where & (asked["of"] == of), "label"])


def _cells_in_words(cells: pd.DataFrame, unit: str) -> pd.DataFrame:
    ordered = cells.sort_values(["row", "num_parameters", "num_steps"], kind="stable")
    lines = []
    for cell in ordered.to_dict("records"):
        texts = {
            "loss": loss(-cell["gap"], unit),
            "loss_interval": loss_interval(-cell["high"], -cell["low"], unit),
            "cost": size(cell["rate_cost"], unit),
            "needed": _steps_in_words(cell),
        }
        lines.append(cell | texts)
    columns = [*cells.columns, "loss", "loss_interval", "cost", "needed"]
    return pd.DataFrame(lines, columns=columns)


def _steps_in_words(cell: Mapping[Hashable, Any]) -> str:
    """Say in how many of a hundred steps of a row the baseline comes as far, or below how many."""
    if not math.isnan(cell["baseline_steps"]):
        return f"{100 * cell['baseline_steps'] / cell['num_steps']:.0f}"
    if not math.isnan(cell["baseline_steps_below"]):
        return f"below {100 * cell['baseline_steps_below'] / cell['num_steps']:.0f}"
    return NONE


def beaten_in_words(models: pd.DataFrame) -> str:
    """Say of which methods the mean of all cells misses what was left out by less than the law.

    The law is the one that was declared. Empty where there are none.
    """
    parts = []
    for column, what in (("size_left_out", "a size"), ("length_left_out", "a length")):
        labels = []
        for label, own in models.groupby("label", sort=False):
            missed = own.set_index("model")[column]
            if missed[MEAN] < missed[LAW]:
                labels.append(str(label))
        if labels:
            parts.append(f"on {what} left out for {listed(labels)}")
    if not parts:
        return ""
    return f"The plain mean of all losses does better than the law {', and '.join(parts)}"


def _models_in_words(models: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Return what each model misses of sizes and lengths that it has not seen, in the gap's unit."""
    lines = []
    for line in models.to_dict("records"):
        texts = {
            "size_missed": size(line["size_left_out"], unit),
            "length_missed": size(line["length_left_out"], unit),
        }
        lines.append(line | texts)
    columns = [*models.columns, "size_missed", "length_missed"]
    return pd.DataFrame(lines, columns=columns)


def _predictions_in_words(predictions: pd.DataFrame, unit: str) -> pd.DataFrame:
    lines = [line | _prediction_in_words(line, unit) for line in predictions.to_dict("records")]
    columns = [*predictions.columns, "predicted_loss", "found_loss", "verdict"]
    return pd.DataFrame(lines, columns=columns)


def _prediction_in_words(line: Mapping[Hashable, Any], unit: str) -> dict[str, str]:
    ends = (-line["predicted_high"], -line["predicted_low"])
    texts = {
        "predicted_loss": f"{loss(-line['predicted'], unit)} ({loss_interval(*ends, unit)})",
        "found_loss": NONE,
        "verdict": "a run diverged" if line["diverged"] else "not all run yet",
    }
    if not math.isnan(line["found"]):
        own = loss_interval(-line["high"], -line["low"], unit)
        texts["found_loss"] = f"{loss(-line['found'], unit)} ({own})"
        texts["verdict"] = "inside the interval" if line["is_inside"] else "outside the interval"
    return texts


def _rates_in_words(frames: Frames, cells: pd.DataFrame) -> str:
    """Say in how many places rates were tuned, and that they were carried over to the others.

    Empty where they were given.
    """
    tuning = frames.experiment.tuning
    if tuning is None:
        return ""
    places = cells[["name", "num_parameters", "num_steps", "held_back"]].copy()
    places["is_tuned"] = places["name"].isin([*tuning.selected])
    by_place = places.groupby(["num_parameters", "num_steps"]).agg(
        is_tuned=("is_tuned", "any"), held_back=("held_back", "any")
    )
    fitted = by_place.loc[~by_place["held_back"], "is_tuned"]
    text = f"Rates were tuned in {fitted.sum()} of the {len(fitted)} sizes and lengths that were fitted"
    held_back = by_place.loc[by_place["held_back"], "is_tuned"]
    if len(held_back):
        text += f", and in {held_back.sum() or 'none'} of the {len(held_back)} that were held back"
    return f"{text}; elsewhere they were carried over"


def _least_gap(cells: pd.DataFrame) -> list[str]:
    """List the cells whose gap is smaller than half a step of the rate costs, which is no finding."""
    small = cells[cells["gap"] < cells["rate_cost"]]
    return [
        f"{cell['label']} of {count(cell['num_parameters'])} parameters at {count(cell['num_steps'])} steps"
        for cell in small.to_dict("records")
    ]
