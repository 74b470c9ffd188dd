"""What answers say of size and length: the laws of the gap, from experiments that cross the two."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cser_bench.report.law.section import law_context, law_tables
from cser_bench.report.questions.evidence import Compared, Evidence
from cser_bench.report.verdicts import loss
from cser_bench.report.wording import listed


def laws_of(evidence: Evidence) -> list[dict[str, Any]]:
    """Return what the law of each experiment on sizes says, of those whose fitted runs are done.

    Keys: name, folder (in results/), network, sizes and lengths (the least and the most that was
    fitted), unit (of a loss), num_seeds, headline (of whom what is shown), answers (what twice the
    size and twice the rounds do, in words), predictions (of cells that were held back and are done,
    in words), misses (of these, a sentence each), steps (a sentence: in what part of each method's
    steps the baseline comes as far), losses (a sentence: what each method loses by mean in the
    cells that were fitted), alone (a sentence: what a worker alone loses; None where nothing is
    told).
    """
    laws = []
    for known in evidence.all_of("size"):
        if not _is_fitted_whole(known):
            continue
        tables = law_tables(known.frames)
        context = law_context(known.frames, tables)
        if tables["law_fits"].empty:
            continue
        cells = tables["law_cells"]
        fitted = cells[~cells["held_back"]]
        laws.append(
            {
                "name": known.name,
                "folder": _folder_in_results(known),
                "network": known.about.network,
                "sizes": (fitted["num_parameters"].min(), fitted["num_parameters"].max()),
                "lengths": (fitted["num_steps"].min(), fitted["num_steps"].max()),
                "unit": known.frames.metric.loss_unit,
                "headline": context["law_headline"],
                "answers": context["law_answers"].query("than == ''"),
                "predictions": context["law_predictions"].dropna(subset="found"),
                "misses": context["law_misses"],
                "steps": context["law_steps"],
                "num_seeds": int(fitted["num_seeds"].min()),
                "losses": _losses(known, fitted[fitted["row"].isin(tables["law_fits"]["row"])]),
                "alone": _loss_alone(known, cells),
            }
        )
    return laws


def in_longer_runs(laws: Sequence[Mapping[str, Any]]) -> str | None:
    """Say how losses in runs longer than any that was fitted came out, of all laws together.

    None where fewer than two laws foretold any: what is said of one stands in its own headline.
    """
    longer = []
    for law in laws:
        predictions = law["predictions"]
        own = predictions[predictions["num_steps"] > law["lengths"][1]]
        if not own.empty:
            longer.append(own.assign(network=law["network"]))
    if len(longer) < 2:
        return None
    lines = pd.concat(longer)
    num_less = int((lines["found"] < lines["predicted"]).sum())
    num_outside = int((~lines["is_inside"].astype(bool)).sum())
    num_places = len(lines[["network", "num_parameters", "num_steps"]].drop_duplicates())
    networks = listed([f"on {network}" for network in lines["network"].unique()])
    text = (
        f"In runs longer than those that a law was fitted to, {num_less} of {len(lines)} losses were "
        f"less than predicted, {networks} together; {num_outside} lay outside the interval. They "
        f"are of {num_places} sizes and lengths; in each, methods share one baseline"
    )
    if num_less == len(lines):
        text += ". So shorter runs foretold too large a loss"
    return text


def _losses(known: Compared, fitted: pd.DataFrame) -> str:
    """Say what each method loses, by mean, at the least and at the most."""
    unit = known.frames.metric.loss_unit
    parts = []
    for _, own in fitted.groupby("row", sort=False):
        least, most = (loss(-gap, unit) for gap in (own["gap"].min(), own["gap"].max()))
        parts.append(f"{own['label'].iloc[0]} loses {least} to {most}")
    return f"By mean, {listed(parts)} {unit}"


def _loss_alone(known: Compared, cells: pd.DataFrame) -> str | None:
    """Say what a worker alone loses, in the cells where its loss is told from none."""
    alone = cells[cells["row"] == known.frames.experiment.floor]
    told = alone[alone["low"] > 0]
    if told.empty:
        return None
    unit = known.frames.metric.loss_unit
    least, most = (loss(-gap, unit) for gap in (told["gap"].min(), told["gap"].max()))
    ends = least if len(told) == 1 else f"{least} to {most}"
    return (
        f"A worker alone loses {ends} {unit}, in the {len(told)} of {len(alone)} cells where that "
        "is told from nothing"
    )


def _is_fitted_whole(known: Compared) -> bool:
    """Tell whether all runs that a law is fitted to are done."""
    held_back = [row.row for row in known.frames.experiment.rows if row.held_back]
    runs = known.frames.runs
    fitted = runs[~runs["row"].isin(held_back)]
    return not fitted["status"].isin(("missing", "failed")).any()


def _folder_in_results(known: Compared) -> str:
    """Return where an experiment's report lies: those that others are compared with lie deeper."""
    folder = known.frames.folder
    if folder.parent.name == "reference":
        return f"reference/{folder.name}"
    return folder.name
