"""The verdict on a method of one's own: its row among those that ship, in text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import special
from tabulate import tabulate

from cser_bench.harness.errors import UsageError
from cser_bench.harness.measures.metrics import Metric
from cser_bench.harness.places import SHIPPED_TUNINGS
from cser_bench.report.efficiency import pooled_deviation
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.statistics import COVERAGE
from cser_bench.report.wording import counted, gap, gap_cell, gap_name, percent, traffic


class Rival(NamedTuple):
    """A row that ships: the folder of its records, its name there, and its label here."""

    folder: Path
    row: str
    label: str


TABLE = SHIPPED_TUNINGS / "reference" / "table_cnn"
HOOKS = SHIPPED_TUNINGS / "study_cnn_hooks"

RIVALS = (
    Rival(TABLE, "sgd@t1", "DDP (fp32)"),
    Rival(HOOKS, "ef_4bit_gradients-1", "DDP + 4-bit hook"),
    Rival(TABLE, "ef_4bit", "EF 4-bit"),
    Rival(TABLE, "powersgd", "DDP + PowerSGD hook"),
    Rival(TABLE, "local", "local SGD"),
)
"""The rows that a method is ranked among; the first is what others are compared with. Each was tuned
over the rates of a trial, at the length of its runs."""

LABEL_WIDTH = 28
"""Width of the table's column of labels; longer labels take two lines."""

POWER = 0.8
"""How often a difference that two seeds can show is shown."""


@dataclass(frozen=True)
class _RankedRow:
    """A row of the table: what it scored, and what it took.

    Attributes:
        trials: how many learning rates it was tuned over, or "given".
    """

    label: str
    scores: np.ndarray
    link_models: float
    trials: str
    is_tried: bool = False

    @property
    def mean(self) -> float:
        return math.fsum(self.scores) / len(self.scores)


def verdict(tried: Path, rivals: Sequence[Rival]) -> str:
    """Return the ranked table of a method and the rows that ship, and what its intervals rest on.

    Args:
        tried: folder of the trial's records, of one row.
        rivals: the rows that ship; the others are compared with the first.

    Raises UsageError: the two are not of one experiment, or the method has no finished run.
    """
    own = read_frames(tried)
    [name] = own.rows["row"]
    num_diverged = own.count(name, "diverged")
    if num_diverged:
        runs = counted(len(own.runs), "run")
        return (
            f"{name} diverged in {num_diverged} of its {runs}: it has no score to rank."
        )
    if not len(own.done(name)):
        raise UsageError(f"{tried} holds no finished run of {name}; call try again")
    by_folder = {rival.folder: read_frames(rival.folder) for rival in rivals}
    for folder, others in by_folder.items():
        if own.experiment.config != others.experiment.config:
            raise UsageError(
                f"the runs in {folder} are not of the experiment that {tried} was tried in; "
                "install the project again, so that both are of one version"
            )
    rows = []
    for rival in rivals:
        rows.append(_ranked_row(by_folder[rival.folder], rival.row, rival.label))
    tried_row = _ranked_row(own, name, name, is_tried=True)
    deviation, degrees = pooled_deviation([row.scores for row in [*rows, tried_row]])
    return "\n".join(
        [
            _ranked_table([*rows, tried_row], rows[0], own.metric, deviation, degrees),
            "",
            *_resting_on(tried_row, rows[0], own.metric, deviation, degrees),
        ]
    )


def _ranked_row(
    frames: Frames, row: str, label: str, is_tried: bool = False
) -> _RankedRow:
    """Return a row as the table ranks it."""
    trials = "given"
    tuning = frames.experiment.tuning
    if tuning is not None and row in tuning.choices:
        trials = str(tuning.choices[row].num_trials)
    return _RankedRow(
        label=label,
        scores=frames.done(row).to_numpy(dtype=float),
        link_models=float(frames.row(row)["link_models"]),
        trials=trials,
        is_tried=is_tried,
    )


def _ranked_table(
    rows: list[_RankedRow],
    baseline: _RankedRow,
    metric: Metric,
    deviation: float,
    degrees: int,
) -> str:
    """Return the rows, best mean first, as a table of at most 100 columns."""
    drop_head = f"{gap_name(metric)},\n{metric.loss_unit} (95 % CI)"
    table = [["", "row", metric.score_label, drop_head, "traffic", "trials", "runs"]]
    ranked = sorted(rows, key=lambda row: -row.mean)
    for rank, row in enumerate(ranked, start=1):
        drop = ""
        if row is not baseline:
            difference = row.mean - baseline.mean
            half = float(special.stdtrit(degrees, (1 + COVERAGE) / 2))
            half *= _standard_error(row, baseline, deviation)
            ends = (difference, difference - half, difference + half)
            drop = gap_cell(*ends, metric.loss_unit)
        cells = [
            f"->{rank}" if row.is_tried else str(rank),
            row.label,
            f"{percent(row.mean)} %",
            drop,
            traffic(row.link_models / baseline.link_models),
            row.trials,
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


def _standard_error(row: _RankedRow, other: _RankedRow, deviation: float) -> float:
    """Return the standard error of the difference of two rows' means."""
    return deviation * math.sqrt(1 / len(row.scores) + 1 / len(other.scores))


def _resting_on(
    line: _RankedRow,
    baseline: _RankedRow,
    metric: Metric,
    deviation: float,
    degrees: int,
) -> list[str]:
    """Return what the intervals rest on, and how large a difference so few runs show."""
    # A difference of so many standard errors is beyond the interval of 95 % in 80 % of cases.
    quantiles = special.stdtrit(degrees, (1 + COVERAGE) / 2)
    quantiles += special.stdtrit(degrees, POWER)
    shown = -float(quantiles) * _standard_error(line, baseline, deviation)
    unit = metric.loss_unit
    return [
        f"standard deviation between seeds, pooled over these rows: {gap(-deviation, unit)} {unit}",
        f"shown in four of five cases: a drop of {gap(shown, unit)} {unit} from {baseline.label}",
    ]
