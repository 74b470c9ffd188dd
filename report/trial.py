"""The verdict on a method of one's own: its row among those that ship, in text for a terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special
from tabulate import tabulate

from cser_bench.harness.errors import UsageError
from cser_bench.harness.measures.metrics import Metric
from cser_bench.harness.records.experiment import Experiment, read_experiment
from cser_bench.report.efficiency import pooled_deviation
from cser_bench.report.frame import LOAD_TOLERANCE, Frames, read_frames
from cser_bench.report.statistics import COVERAGE, unpaired
from cser_bench.report.wording import (
    capitalised,
    counted,
    gap,
    gap_cell,
    gap_in_prose,
    gap_name,
    listed,
    nats,
    number_word,
    percent,
    traffic,
)

GIVEN = "given, not tuned"
"""How many trials a row had whose rate was given."""

LABEL_WIDTH = 28
"""Width of the table's column of labels; longer labels take two lines."""

POWER = 0.8
"""How often what three seeds can show is to be seen."""


@dataclass(frozen=True)
class _RankedRow:
    """A row of the table: what it scored, and what it took."""

    label: str
    scores: np.ndarray
    link_models: float
    trials: str
    is_bound: bool = False
    is_tried: bool = False

    @property
    def mean(self) -> float:
        return math.fsum(self.scores) / len(self.scores)


def verdict(tried: Path, shipped: Path, earlier_trials: Path | None = None) -> str:
    """Return the ranked table of a method and the rows that ship, and what follows from it.

    Args:
        tried: folder of the trial's records, of one row.
        shipped: folder of the records of all others.
        earlier_trials: folder of the trials of rows that have their rate from another experiment.

    Raises UsageError: the two are not of one experiment, or the method has no finished run.
    """
    own = read_frames(tried)
    others = read_frames(shipped)
    if own.experiment.config != others.experiment.config:
        raise UsageError(
            f"the runs in {shipped} are not of the experiment that {tried} was tried in; install "
            "the project again, so that both are of one version"
        )
    [name] = own.rows["row"]
    num_diverged = own.count(name, "diverged")
    if num_diverged:
        seeds = counted(len(own.runs), "run")
        return f"{name} diverged in {num_diverged} of its {seeds}: it has no score to rank."
    if not len(own.done(name)):
        raise UsageError(f"{tried} holds no finished run of {name}; call try again")
    tried_row = _ranked_row(own, name, is_tried=True)
    earlier = None
    if earlier_trials is not None:
        earlier = read_experiment(earlier_trials)
    rows = [_ranked_row(others, row, earlier) for row in _ranked_names(others)]
    baseline = _ranked_row(others, str(others.experiment.baseline), earlier)
    parts = [
        _ranked_table([*rows, tried_row], baseline, own.metric),
        *_sentences(tried_row, rows, baseline, others),
    ]
    return "\n".join(parts)


def _ranked_names(frames: Frames) -> list[str]:
    """Return the rows of the experiment itself that have runs."""
    rows = frames.rows
    chosen = rows[rows["base"].isna() & (rows["rule"] == "held_out")]["row"]
    return [row for row in chosen if len(frames.done(row))]


def _ranked_row(
    frames: Frames, row: str, earlier: Experiment | None = None, is_tried: bool = False
) -> _RankedRow:
    """Return a row as the table ranks it."""
    experiment = frames.experiment
    label = str(frames.row(row)["label"])
    # Its row runs SGD on every worker's gradients, which people know as DDP.
    if row == experiment.baseline and not is_tried:
        label = f"DDP (fp32), {label}"
    return _RankedRow(
        label=label,
        scores=frames.done(row).to_numpy(dtype=float),
        link_models=float(frames.row(row)["link_models"]),
        trials=_trials(frames.experiment, row, earlier),
        is_bound=row in (experiment.baseline, experiment.floor),
        is_tried=is_tried,
    )


def _trials(experiment: Experiment, name: str, earlier: Experiment | None) -> str:
    """Say how many trials chose the row's rate, here or in an earlier experiment."""
    tuning = experiment.tuning
    if tuning is not None and name in tuning.choices:
        return str(tuning.choices[name].num_trials)
    if earlier is not None:
        [row] = [row for row in experiment.rows if row.row == name]
        trials = [trial for trial in earlier.rows if trial.tunes == name]
        rates = [
            trial.learning_rate for trial in trials if trial.settings == row.settings
        ]
        # Only trials among which its very settings and rate are can have chosen them.
        if row.learning_rate in rates:
            return str(len(trials))
    return GIVEN


def _ranked_table(rows: list[_RankedRow], baseline: _RankedRow, metric: Metric) -> str:
    """Return the rows, best mean first, as a table of at most 100 columns."""
    drop_head = f"{gap_name(metric)},\n{metric.loss_unit} (95 % CI)"
    table = [["", "row", metric.score_label, drop_head, "traffic", "trials", "runs"]]
    ranked = sorted(rows, key=lambda row: -row.mean)
    for rank, row in enumerate(ranked, start=1):
        place = str(rank)
        if row.is_tried:
            place = f"->{rank}"
        drop = ""
        if row.label != baseline.label:
            drop = gap_cell(*_ends(row, baseline, metric))
        trials = row.trials
        if trials == GIVEN:
            trials = "given"
        cells = [
            place,
            row.label,
            _score(row.mean, metric),
            drop,
            traffic(row.link_models / baseline.link_models),
            trials,
            str(len(row.scores)),
        ]
        table.append(cells)
    align = ("right", "left", "right", "left", "right", "right", "right")
    widths = [None, LABEL_WIDTH, None, None, None, None, None]
    # The head is a row too: a head of tabulate's own would widen columns. It would also read texts
    # as numbers, and write 4.00 as 4.
    return tabulate(
        table,
        tablefmt="plain",
        disable_numparse=True,
        colalign=align,
        maxcolwidths=widths,
    )


def _score(score: float, metric: Metric) -> str:
    if metric.is_share:
        return f"{percent(score)} %"
    return nats(score)


def _ends(
    line: _RankedRow, reference: _RankedRow, metric: Metric
) -> tuple[float, float, float, str]:
    """Return the difference of two rows with its interval and unit, as `report.wording` takes them."""
    difference = unpaired(line.scores, reference.scores)
    return difference.estimate, *difference.interval(), metric.loss_unit


def _sentences(
    line: _RankedRow, others: list[_RankedRow], baseline: _RankedRow, frames: Frames
) -> list[str]:
    """Return what the table says of the method, against two rows, and what that can rest on."""
    metric = frames.metric
    name = capitalised(gap_name(metric))
    to_baseline = gap_in_prose(*_ends(line, baseline, metric))
    sentences = ["", f"{name} of {line.label} against {baseline.label}: {to_baseline}."]
    references = [baseline]
    rivals, where = _rivals(line, baseline, others)
    if rivals:
        best = max(rivals, key=lambda other: other.mean)
        references.append(best)
        to_best = gap_in_prose(*_ends(line, best, metric))
        rows = counted(len(rivals), "row")
        sentences.append(
            f"Against {best.label}, the best of {rows} {where}: {to_best}."
        )
    else:
        sentences.append("No row that ships has so little traffic.")
    sentences.append(_power(line, references, [baseline, *rivals], metric))
    if line.trials == GIVEN:
        sentences.append(
            "Its learning rate was given, not tuned: another one may do better."
        )
    return sentences


def _rivals(
    line: _RankedRow, baseline: _RankedRow, others: list[_RankedRow]
) -> tuple[list[_RankedRow], str]:
    """Return the rows at the method's traffic, or if there are none those of less, and which."""
    # The baseline and no communication are no rivals: one sends everything, the other nothing.
    rivals = [other for other in others if not other.is_bound]
    same = []
    for other in rivals:
        if (
            abs(other.link_models - line.link_models)
            <= LOAD_TOLERANCE * line.link_models
        ):
            same.append(other)
    share = traffic(line.link_models / baseline.link_models)
    if same:
        return same, f"at its traffic ({share})"
    less = [other for other in rivals if other.link_models < line.link_models]
    return less, f"with less traffic than its {share}"


def _power(
    line: _RankedRow,
    references: list[_RankedRow],
    others: list[_RankedRow],
    metric: Metric,
) -> str:
    """Say how large a difference such few runs show in four of five cases.

    The spread between seeds is that of these rows taken together; a row at another traffic may have
    quite another one.
    """
    samples = [other.scores for other in others if len(other.scores) > 1]
    deviation, degrees = pooled_deviation(samples)
    # A difference of so many standard errors is beyond the interval of 95 % in 80 % of cases.
    quantiles = special.stdtrit(degrees, (1 + COVERAGE) / 2)
    quantiles += special.stdtrit(degrees, POWER)
    parts = []
    for reference in references:
        error = deviation * math.sqrt(1 / len(line.scores) + 1 / len(reference.scores))
        shown = gap(-float(quantiles) * error, metric.loss_unit)
        parts.append(f"{shown} {metric.loss_unit} from {reference.label}")
    runs = number_word(len(line.scores)).capitalize()
    return (
        f"{runs} seeds would show a difference of {listed(parts)} in four of five cases, where "
        f"scores differ by {gap(-deviation, metric.loss_unit)} between seeds."
    )
