"""The CSV files of the regime map: all points, what predicts the loss, models needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from report.accuracy.exports import Value, names, write_csv
from report.accuracy.findings import Study
from report.accuracy.models_needed import Needed, needed_of
from report.accuracy.regime import RegimePoint, regime_of
from report.accuracy.regime_predictors import Explained, explained

_POINTS = names(
    "row method steps models_sent true_ratio link_models seeds difference lower_bound upper_bound gap gap_closed word "
    "fitted run_ids baseline_run_ids"
)
_PREDICTORS = names("method predictor rows explained explained_length_left_out")
_RESIDUALS = names("method predictor steps mean_residual root_mean_square_residual")
_NEEDED = names("method kind models low high fewest_tried most_tried link_models_per_model non_inferior rows")


def write_regime(folder: Path, study: Study) -> None:
    """Write csv/regime*.csv; nothing where there is one length alone.

    Raises:
        OSError: the folder cannot be written.
    """
    regime = regime_of(study)
    if regime is None:
        return
    found = explained(regime)
    write_csv(folder / "regime.csv", _POINTS, map(_point, regime.points))
    write_csv(folder / "regime_predictors.csv", _PREDICTORS, map(_explained, found))
    write_csv(folder / "regime_residuals.csv", _RESIDUALS, _residuals(found))
    write_csv(folder / "regime_needed.csv", _NEEDED, map(_needed, needed_of(regime)))


def _point(point: RegimePoint) -> Sequence[Value]:
    row, compared = point.rows.row, point.comparison
    return (
        row.row,
        point.method,
        point.length.num_steps,
        point.models,
        point.ratio,
        row.link_models,
        len(compared.seeds) if compared else 0,
        compared.difference if compared else None,
        compared.lower if compared else None,
        compared.upper if compared else None,
        point.length.gap,
        point.closed,
        point.word,
        "yes" if point.fits else "no",
        " ".join(point.rows.run_ids),
        " ".join(point.ceiling.run_ids),
    )


def _explained(entry: Explained) -> Sequence[Value]:
    return (entry.method, entry.predictor, entry.num_rows, entry.fitted, entry.left_out)


def _residuals(found: Iterable[Explained]) -> Iterable[Sequence[Value]]:
    for entry in found:
        for steps, size in entry.residuals.items():
            yield (entry.method, entry.predictor, steps, entry.biases[steps], size)


def _needed(entry: Needed) -> Sequence[Value]:
    ends = (entry.models, entry.low, entry.high, entry.least, entry.most)
    return (entry.method, entry.kind, *ends, entry.links, entry.num_good, entry.num_rows)
