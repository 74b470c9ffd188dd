"""Tables of the regime map: all points, what predicts the loss, residuals by length, and the models needed."""

from __future__ import annotations

from report.accuracy.models_needed import DRAWS, needed_of
from report.accuracy.regime import Regime, RegimePoint
from report.accuracy.regime_predictors import ALL, PREDICTORS, Explained, explained, noise_share
from report.accuracy.row_cells import TO_NEIGHBOURS
from report.kit.document import Cell, Table, numbers, texts
from report.kit.wording import MINUS, NONE, amount, count_of, listed, points, short, whole

_ENOUGH = 0.02
"""A second predictor that explains so little more of the variance is called no gain."""


def regime_table(regime: Regime) -> Table:
    """Every row at every length: models sent, difference to SGD, share of the gap closed."""
    heads = ("steps T", "models M", "ratio T/M", "link models", "seeds", "difference", "gap closed, %")
    columns = (*texts("method"), *numbers(*heads), *texts("word"))
    ordered = sorted(regime.points, key=lambda point: point.length.num_steps, reverse=True)
    names = list(dict.fromkeys(point.method for point in ordered))
    rows = tuple(_point_row(point) for name in names for point in ordered if point.method == name)
    closed = [point for point in regime.points if point.word == "non-inferior"]
    found = f"{len(closed)} of {count_of(len(regime.points), 'row')} are non-inferior to SGD of the same length."
    note = (
        "Difference to SGD of the same length in points, paired by seed. Gap closed: where a row lies between the "
        "floor (0) and the ceiling (100) of its length; below zero it is worse than a worker alone."
    )
    return Table("The regime map", found, columns, rows, notes=(note,))


def _point_row(point: RegimePoint) -> tuple[Cell, ...]:
    row, comparison = point.rows.row, point.comparison
    ids = point.rows.run_ids + point.ceiling.run_ids
    texts = (
        point.method,
        whole(point.length.num_steps),
        amount(point.models),
        amount(point.ratio),
        NONE if row.link_models is None else amount(row.link_models),
        str(len(comparison.seeds) if comparison else 0),
        points(comparison.difference) if comparison else NONE,
        NONE if point.closed is None else f"{100 * point.closed:.0f}".replace("-", MINUS),
        point.word,
    )
    return tuple(Cell(text, ids) for text in texts)


def predictors_table(regime: Regime) -> Table:
    """How much of the variance over rows each predictor explains, fitted and with each length left out."""
    found = explained(regime)
    columns = (*texts("method"), *numbers("rows", *(f"{name} {_letters(name)}" for name in PREDICTORS)))
    methods = list(dict.fromkeys(entry.method for entry in found))
    rows = tuple(
        (
            Cell(method, strong=method == ALL),
            Cell(str(next(e.num_rows for e in found if e.method == method))),
            *(Cell(_both(_of(found, method, name)), strong=method == ALL) for name in PREDICTORS),
        )
        for method in methods
    )
    note = (
        "Percent of the variance of the share of the gap lost, over rows and about each method's own mean, that a "
        "curve for each method explains: share lost = 1 / (1 + exp(-(a + b log x))), by least squares. In brackets: "
        "each length predicted from the other lengths alone; below zero is worse than the mean. Rows below the floor "
        "count as having lost the whole gap."
    )
    return Table("What predicts the loss", predictors_found(regime), columns, rows, notes=(note, *_noise(regime)))


def _noise(regime: Regime) -> tuple[str, ...]:
    share = noise_share(regime)
    return () if share is None else (f"{100 * share:.1f} % of the variance is between seeds: nothing can explain it.",)


def _letters(name: str) -> str:
    return {"M": "(M)", "R": "(R)", "T": "(T)", "TR": "(T, R)"}[PREDICTORS[name]]


def _of(found: list[Explained], method: str, predictor: str) -> Explained:
    return next(entry for entry in found if (entry.method, entry.predictor) == (method, predictor))


def _both(entry: Explained) -> str:
    return f"{_share(entry.fitted)} ({_share(entry.left_out)})"


def _share(value: float | None) -> str:
    return NONE if value is None else whole(round(100 * value)).replace("-", MINUS)


def predictors_found(regime: Regime) -> str:
    """Does models sent predict the share of the gap, or what does? In one or two sentences."""
    found = explained(regime)
    if not found:
        return "Too few rows, or lengths that cannot tell: what predicts the loss cannot be said."
    left = {name: _of(found, ALL, name).left_out for name in PREDICTORS}
    known = {name: value for name, value in left.items() if value is not None}
    if len(known) < len(left):
        return "All rows lose the same: there is no variance to explain."
    one = max(("models sent", "ratio", "steps"), key=lambda name: known[name])
    rest = [f"{name} {_share(known[name])} %" for name in ("models sent", "ratio", "steps") if name != one]
    both = "steps and ratio"
    gain = known[both] - known[one]
    more = "which is no gain" if gain < _ENOUGH else f"which is {100 * gain:.0f} points more"
    head = f"{one[:1].upper()}{one[1:]} alone" if known[one] > 0 else f"No one number predicts it: {one} alone"
    return (
        f"{head} explains {_share(known[one])} % of the variance over rows at lengths that the curves have not seen "
        f"({listed(rest)}); steps and ratio together {_share(known[both])} %, {more}."
    )


def residuals_table(regime: Regime) -> Table:
    """How far off each length is where it is predicted from the others."""
    found = [entry for entry in explained(regime) if entry.method == ALL]
    columns = numbers("steps", *(f"{name} {_letters(name)}" for name in PREDICTORS))
    lengths = list(found[0].residuals) if found else []
    rows = tuple(
        (Cell(whole(steps)), *(Cell(f"{_points(e.biases[steps])} ± {_share(e.residuals[steps])}") for e in found))
        for steps in lengths
    )
    by_models = next((entry for entry in found if entry.predictor == "models sent"), None)
    text = "There are too few rows to predict a length from the others."
    if by_models:
        worst = max(by_models.residuals, key=lambda steps: by_models.residuals[steps])
        text = (
            f"Predicted from models sent, the loss is off by {_share(by_models.residuals[worst])} % of the gap at "
            f"the worst length, {whole(worst)} steps."
        )
    note = (
        "Percent of the gap, over all rows of a length, which are predicted from the other lengths: mean of observed "
        "minus predicted loss (above zero: more is lost than predicted) ± root mean square of the same."
    )
    return Table("Residuals by length", text, columns, rows, notes=(note,))


def _points(value: float) -> str:
    text = f"{100 * value:+.0f}"
    return "0" if text in ("+0", "-0") else text.replace("-", MINUS)


def needed_table(regime: Regime) -> Table:
    """Models needed per method, the fewest first."""
    needed = needed_of(regime)
    heads = ("models needed", "95 % interval", "on a link, per model sent", "non-inferior rows")
    columns = (*texts("method"), *numbers(*heads))
    rows = tuple(
        (
            Cell(entry.method),
            Cell(entry.said()),
            Cell(entry.interval()),
            Cell(short(entry.links, 3)),
            Cell(f"{entry.num_good} of {entry.num_rows}"),
        )
        for entry in needed
    )
    known = [entry for entry in needed if entry.kind in ("at most", "between")]
    best = f"{known[0].method} needs the fewest: {known[0].said()}." if known else "No method's need can be told."
    steps = f" of {whole(regime.telling[0].num_steps)} steps" if regime.telling else ""
    note = (
        f"Models sent at which a method's fitted curve loses one margin, by the gap of the run{steps}. Interval: "
        f"{DRAWS} draws of the seeds of every length, with replacement; it holds the seeds' spread, not the curve's "
        'misfit. "at most": from the fewest models on, all rows are non-inferior or the curve loses less; "more than": '
        "no row is non-inferior, and the curve loses more. On a link: 2 (n - 1) / n of what is all-reduced, n - 1 "
        "times what is all-gathered."
    )
    if any(entry.to_neighbours for entry in needed):
        note = f"{note} {TO_NEIGHBOURS}"
    return Table("Models needed for a loss within the margin", best, columns, rows, notes=(note,))
