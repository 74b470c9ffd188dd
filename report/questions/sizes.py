"""What answers say of size and length: the laws of the gap, from experiments that cross the two."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cser_bench.report.law.section import law_context, law_tables
from cser_bench.report.questions.evidence import Compared, Evidence
from cser_bench.report.verdicts import loss
from cser_bench.report.wording import count, listed, span


def laws_of(evidence: Evidence) -> list[dict[str, Any]]:
    """Return what the law of each experiment on sizes says, of those whose fitted runs are done.

    Keys: name, folder (in results/), network, sizes and lengths (the least and the most that was
    fitted), unit (of a loss), num_seeds, headline (of whom what is shown), answers (what twice the
    size and twice the rounds do, in words), predictions (of cells that were held back and are done,
    in words), load (sentences: what methods send, and what of them was not tuned), steps (a
    sentence: in what part of each method's steps the baseline comes as far), beaten (the methods of
    which the mean of all cells misses lengths by less than the law), rates (a sentence: where they
    were tuned), effects (a sentence a method: what twice as much of each does, by the
    interval), alone (a sentence: what a worker alone loses beside the methods, at the experiment's
    own size and length; None where that is not told from nothing), longer (times as many steps as
    in the longest run fitted, and the loss beside that run's of the same size, of each method in
    each longer run that is done), shows_size (whether a method is shown to lose less on larger
    networks), is_read_once (whether no run sees an example twice).
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
                "steps": context["law_steps"],
                "beaten": context["law_beaten"],
                "num_seeds": int(fitted["num_seeds"].min()),
                "alone": _loss_alone(known, cells, list(tables["law_fits"]["row"].unique())),
                "load": _load(known, list(tables["law_fits"]["row"].unique())),
                "rates": context["law_rates"],
                "effects": _effects(context["law_answers"].query("than == ''")),
                "longer": _beside_longest(cells, list(tables["law_fits"]["row"].unique())),
                "shows_size": bool(context["law_answers"].query("of == 'size'")["is_shown"].any()),
                "is_read_once": _is_read_once(known, cells),
            }
        )
    return laws


def in_longer_runs(laws: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    """Say how losses in runs longer than any that was fitted came out, of all laws together.

    Keys: headline, rest (sentences). None where fewer than two laws foretold any: what is said of
    one stands in its own headline.
    """
    longer = []
    beside: list[tuple[float, float]] = []
    for law in laws:
        predictions = law["predictions"]
        own = predictions[predictions["num_steps"] > law["lengths"][1]]
        if not own.empty:
            longer.append(own.assign(network=law["network"]))
            beside += law["longer"]
    if len(longer) < 2:
        return None
    lines = pd.concat(longer)
    num_less = int((lines["found"] < lines["predicted"]).sum())
    num_outside = int((~lines["is_inside"].astype(bool)).sum())
    num_places = len(lines[["network", "num_parameters", "num_steps"]].drop_duplicates())
    networks = listed([f"on {network}" for network in lines["network"].unique()])
    headline = (
        f"in runs longer than those that a law was fitted to, {num_less} of {len(lines)} losses were "
        f"less than predicted, {networks} together"
    )
    rest = (
        f"{num_outside} lay outside the interval. They are of {num_places} sizes and lengths; in "
        "each, methods share one baseline"
    )
    if beside:
        times, shares = ([pair[place] for pair in beside] for place in (0, 1))
        rest += (
            f". At one size a run {span((min(times), max(times)))} times as long as the longest "
            f"fitted has {min(shares):.2f} to {max(shares):.2f} of its loss, by mean; that was not "
            "declared"
        )
    return {"headline": headline, "rest": rest}


def _beside_longest(cells: pd.DataFrame, rows: Sequence[str]) -> list[tuple[float, float]]:
    """Return how many times longer each longer run was than the longest fitted, and its loss's part."""
    cells = cells[cells["row"].isin(rows)]
    longest = cells.loc[~cells["held_back"], "num_steps"].max()
    pairs = []
    for cell in cells[cells["num_steps"] > longest].to_dict("records"):
        same = (cells["row"] == cell["row"]) & (cells["num_parameters"] == cell["num_parameters"])
        for gap in cells.loc[same & (cells["num_steps"] == longest), "gap"]:
            pairs.append((cell["num_steps"] / longest, cell["gap"] / gap))
    return pairs


def _effects(answers: pd.DataFrame) -> list[str]:
    """Say what twice the parameters, and twice the rounds, do to each method's loss, by 95 %."""
    sentences = []
    for label, own in answers[answers["reason"].isna()].groupby("label", sort=False):
        said = [f"{line.interval} with twice {line.twice_of}" for line in own.itertuples()]
        sentences.append(f"{label} loses {listed(said)} (95 %)")
    return sentences


def _load(known: Compared, rows: Sequence[str]) -> str:
    """Say how much less than everything methods send, between whom, and whether they were tuned."""
    experiment = known.frames.experiment
    num_workers = experiment.config["num_workers"]
    said = f"Methods send about a model in {experiment.main_ratio:g} steps, between {num_workers} workers"
    trials = known.frames.tuning
    if trials.empty:
        return said
    of_methods = trials["row"].str.partition("@")[0].isin(rows)
    # A row that was searched over rates alone has no candidates.
    if trials.loc[of_methods, "candidate"].isna().all():
        said += ". Only their rates were tuned, not how each splits what it sends"
    return said


def _is_read_once(known: Compared, cells: pd.DataFrame) -> bool:
    """Tell whether the longest run has no more examples than there are to train on."""
    config = known.frames.experiment.config
    examples_a_step = config["num_workers"] * config["batch_size"]
    num_train = config["task"]["num_train"]
    num_examples = int(cells["num_steps"].max()) * examples_a_step
    return bool(0 < num_examples <= num_train)


def _loss_alone(known: Compared, cells: pd.DataFrame, rows: Sequence[str]) -> str | None:
    """Say what a worker alone loses beside the methods, where the experiment's own rows are."""
    alone = cells[cells["name"] == known.frames.experiment.floor]
    if alone.empty or not alone["low"].iloc[0] > 0:
        return None
    unit = known.frames.metric.loss_unit
    place = alone.iloc[0]
    beside = cells[
        cells["row"].isin(rows)
        & (cells["num_parameters"] == place["num_parameters"])
        & (cells["num_steps"] == place["num_steps"])
    ]
    parts = [f"a worker alone loses {loss(-place['gap'], unit)} {unit}"]
    for cell in beside.to_dict("records"):
        parts.append(f"{cell['label']} {loss(-cell['gap'], unit)}")
    return (
        f"On the network of {count(place['num_parameters'])} parameters in "
        f"{count(place['num_steps'])} steps {listed(parts)}"
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
