"""What answers say of size and length: the laws of the gap, from experiments that cross the two."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from cser_bench.report.law.section import is_fitted_whole, law_context, law_tables
from cser_bench.report.questions.evidence import Compared, Evidence
from cser_bench.report.verdicts import loss
from cser_bench.report.wording import NONE, count, listed


@dataclass(frozen=True)
class SaidOfSize:
    """What the law of one experiment says, for the templates.

    Attributes:
        name: of the experiment.
        folder: of its report, in results/.
        network: with its article.
        sizes: the fewest and the most parameters that the law is fitted to.
        lengths: the same of steps.
        unit: of a loss.
        num_seeds: of a cell that it is fitted to.
        headline: of which methods it is shown that they lose less, as a sentence without its end.
        beyond: how losses came out that the law is not fitted to; empty where none was run.
        answers: what twice the size and twice the rounds do, in words, a line a question.
        effects: the same by method: label, size and rounds, each what twice as much does to its loss
            with the interval of 95 %; of questions of size and rounds alone.
        interval: what twice the steps between rounds do, as sentences; empty where it was not asked.
        predictions: the losses that the law is not fitted to, in words, of those that are done.
        are_predictions_fitted: whether `answers` says what the fit of all is, with these.
        load: what methods send, and what of them was not tuned; sentences.
        order: in which order methods lose by mean, and at how many sizes and lengths; a sentence.
        steps: in what part of each method's steps the baseline comes as far; a sentence.
        rates: where they were tuned; a sentence.
        beaten: of which methods the mean of all cells misses what was left out by less than the law;
            a sentence, empty where there are none.
        alone: what a worker alone loses beside the methods, at the experiment's own size and
            length, as a sentence; None where that is not told from nothing.
        shown_by_size: the methods that are shown to lose less on larger networks.
        is_read_once: whether no run sees an example twice.
    """

    name: str
    folder: str
    network: str
    sizes: tuple[int, int]
    lengths: tuple[int, int]
    unit: str
    num_seeds: int
    headline: str
    beyond: str
    answers: pd.DataFrame
    effects: list[dict[str, str]]
    interval: str
    predictions: pd.DataFrame
    are_predictions_fitted: bool
    load: str
    order: str
    steps: str
    rates: str
    beaten: str
    alone: str | None
    shown_by_size: list[str]
    is_read_once: bool


def laws_of(evidence: Evidence) -> list[SaidOfSize]:
    """Return what the law of each experiment on sizes says, of those whose fitted runs are done."""
    laws = []
    for known in evidence.all_of("size"):
        if is_fitted_whole(known.frames):
            said = _said_of(known)
            if said is not None:
                laws.append(said)
    return laws


def _said_of(known: Compared) -> SaidOfSize | None:
    """Return what an experiment's law says; None where its gaps have none."""
    tables = law_tables(known.frames)
    if tables["law_fits"].empty:
        return None
    context = law_context(known.frames, tables)
    rows = list(tables["law_fits"]["row"].unique())
    cells = tables["law_cells"]
    fitted = cells[~cells["held_back"]]
    answers = context["law_answers"].query("than == ''")
    return SaidOfSize(
        name=known.name,
        folder=known.folder_in_results,
        network=known.about.network,
        sizes=(fitted["num_parameters"].min(), fitted["num_parameters"].max()),
        lengths=(fitted["num_steps"].min(), fitted["num_steps"].max()),
        unit=known.unit,
        num_seeds=int(fitted["num_seeds"].min()),
        headline=context["law_headline"],
        beyond=context["law_beyond"],
        answers=answers,
        effects=_effects(answers[answers["of"].isin(["size", "rounds"])]),
        interval=_interval_in_words(answers[answers["of"] == "interval"]),
        predictions=context["law_predictions"].dropna(subset="found"),
        are_predictions_fitted=context["has_fit_of_all"],
        load=_load(known, rows),
        order=context["law_order"],
        steps=context["law_steps"],
        rates=context["law_rates"],
        beaten=context["law_beaten"],
        alone=_loss_alone(known, cells),
        shown_by_size=list(answers.query("of == 'size' and is_shown")["label"]),
        is_read_once=_is_read_once(known, cells),
    )


def _effects(answers: pd.DataFrame) -> list[dict[str, str]]:
    """Return what twice the parameters, and twice the rounds, do to each method's loss, in words."""
    effects = []
    for label, own in answers[answers["reason"].isna()].groupby("label", sort=False):
        effect = {"label": str(label), "size": NONE, "rounds": NONE}
        for line in own.to_dict("records"):
            effect[line["of"]] = f"{line['twice']} ({line['interval']})"
        effects.append(effect)
    return effects


def _interval_in_words(answers: pd.DataFrame) -> str:
    """Say what twice the steps between rounds do to a loss, at equal size and as many rounds."""
    sentences = []
    for line in answers[answers["reason"].isna()].to_dict("records"):
        sentences.append(
            f"With twice the steps between rounds, and as many rounds, the loss of {line['label']} "
            f"is {line['twice']} ({line['interval']})"
        )
    return ". ".join(sentences)


def _load(known: Compared, rows: Sequence[str]) -> str:
    """Say how much less than everything methods send, between whom, and whether they were tuned."""
    experiment = known.frames.experiment
    num_workers = experiment.config["num_workers"]
    planned = known.frames.rows
    ratios = sorted(planned.loc[planned["row"].isin(rows), "ratio"].unique())
    loads = " or ".join(f"{ratio:g}" for ratio in ratios)
    said = f"Methods send about a model in {loads} steps, between {num_workers} workers"
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


def _loss_alone(known: Compared, cells: pd.DataFrame) -> str | None:
    """Say what a worker alone loses beside the methods, where the experiment's own rows are."""
    alone = cells[cells["name"] == known.frames.experiment.floor]
    if alone.empty or not alone["low"].iloc[0] > 0:
        return None
    unit = known.frames.metric.loss_unit
    place = alone.iloc[0]
    beside = cells[
        (cells["row"] != place["row"])
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
