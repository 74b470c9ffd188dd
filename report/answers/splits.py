"""Answers on the two levels of CSER: whether both are needed, and how H, R1 and R2 share a budget."""

from __future__ import annotations

import re

from report.accuracy.findings import Finding, Study
from report.answers.answer import Answer, Number, Picture, apart, known, nothing, number_cells, regime_of, table
from report.answers.evidence import LONG, SPLITS, Evidence, finding, progress
from report.answers.figure_map import Tile, draw_map
from report.kit.document import Cell
from report.kit.statistics import holm, pair
from report.kit.wording import amount, bounds, count_of, listed, points

BOTH = "mcser-h16-r1_12-r2_192"
WITHOUT = {
    "H = 1": "mcser-h1-r1_192-r2_192",
    "C1 = 0": "mcser-c1_zero",
    "C2 = 0": "cser_pl-h8-r1_12",
    "C2 = 0, R1 = 1 (local SGD)": "local_sgd-96",
    "neither (a worker alone)": "alone",
}
WITHOUT_MOMENTUM = {
    "H = 1": "cser-h1-r1_192-r2_192",
    "C1 = 0": "cser-c1_zero",
    "C2 = 0": "cser-c2_zero",
}
BOTH_WITHOUT_MOMENTUM = "cser-h16-r1_12-r2_192"
IN_LONG = {"H = 1 and C2 = 0 (CSEA)": "csea_block-96", "C2 = 0 (CSER-PL)": "cser_pl-96", "local SGD": "local_sgd-96"}


def are_both_levels_needed(evidence: Evidence) -> Answer:
    """Question 11: what is lost without one level, paired by seed."""
    study = evidence.study(SPLITS)
    if study is None or finding(study, BOTH) is None or not finding(study, BOTH).records.accuracy:  # type: ignore[union-attr]
        return _from_long(evidence)
    lines = [(f"M-CSER, {name}", row, BOTH) for name, row in WITHOUT.items()]
    lines += [(f"CSER, {name}", row, BOTH_WITHOUT_MOMENTUM) for name, row in WITHOUT_MOMENTUM.items()]
    missing = f"Its study is not complete{progress(study)}." if progress(study) else ""
    return _against_both(study, lines, missing)


def _from_long(evidence: Evidence) -> Answer:
    study = evidence.study(LONG)
    if study is None:
        return nothing("No experiment with rows of CSER has runs yet.")
    lines = [(name, row, "mcser_block-96") for name, row in IN_LONG.items()]
    return _against_both(study, lines, "H = 1 alone and C1 = 0 were not run yet.")


def _against_both(study: Study, lines: list[tuple[str, str, str]], missing: str) -> Answer:
    numbers: dict[str, Number] = {}
    rows: list[tuple[Cell, ...]] = []
    for name, row, both in lines:
        number = apart(f"{row} − {both}", finding(study, row), finding(study, both))
        if number:
            numbers[name] = number
        cells = number_cells(number, finding(study, row), finding(study, both))
        rows.append((Cell(name), *cells, Cell(number.told if number else "no runs yet")))
    if not numbers:
        return nothing("No pair of rows with and without a level has runs yet.")
    told = {word: _said(numbers, word) for word in ("worse", "better")}
    rest = sum(n.told not in told for n in numbers.values())
    said = (
        f"Beside both levels, in points and each judged alone at 95 %, worse is {told['worse']}, better is "
        f"{told['better']}, and {rest} of {len(numbers)} cannot be told apart{progress(study)}."
    )
    models = [f.models for f in study.compared if f.records.row.row in {both for _, _, both in lines}]
    heads = ("without", "difference to both, points", "95 % interval", "word")
    found = f"At {amount(models[0] if models else None)} models sent; blocks alone, so that the bits are equal."
    return Answer(
        (said,), regime_of(study, models[0] if models else None), table("Without a level", found, heads, rows),
        tuple(numbers.values()), missing,
    )  # fmt: skip


def _said(numbers: dict[str, Number], word: str) -> str:
    told = {name: n for name, n in numbers.items() if n.told == word}
    return listed([f"{name} by {points(n.value)} ({bounds(n.low, n.high)})" for name, n in told.items()]) or "nothing"


def splits_of(study: Study) -> list[tuple[Finding, int, int, float]]:
    """M-CSER's points of the map: H, R1, and the share of the budget that C2 has."""
    found = []
    for f in study.main_group.findings if study.main_group else ():
        row, sent = f.records.row.row, f.records.row.ratio
        if match := re.fullmatch(r"mcser-h(\d+)-r1_(\d+)-r2_(\d+)", row):
            found.append((f, int(match[1]), int(match[2]), sent / int(match[3])))
        elif match := re.fullmatch(r"cser_pl-h(\d+)-r1_(\d+)", row):
            found.append((f, int(match[1]), int(match[2]), 0.0))
        elif row == "mcser-c1_zero":
            found.append((f, 0, 0, 1.0))
        elif row == "local_sgd-96":
            found.append((f, int(sent), 1, 0.0))
    return found


def how_a_budget_is_shared(evidence: Evidence) -> Answer:
    """Question 12: the map over (H, R1, R2), with all points."""
    study = evidence.study(SPLITS)
    splits = [split for split in splits_of(study) if split[0].records.accuracy] if study else []
    if study is None or len(splits) < 2:
        return nothing("The map over H, R1 and R2 has no runs yet.")
    ranked = sorted(splits, key=lambda split: -(split[0].summary.mean if split[0].summary else 0.0))
    best, last = ranked[0], ranked[-1]
    behind = _shown_worse(ranked)
    gaps = known(
        apart(best[0].records.row.row, best[0], study.baseline),
        apart(last[0].records.row.row, last[0], study.baseline),
    )
    if len(gaps) < 2:
        return nothing("The map over H, R1 and R2 has no runs to compare with SGD yet.")
    said = (
        f"Of {count_of(len(splits), 'split')} of one budget the best mean is that of {_named(best)}, which differs "
        f"from SGD by {gaps[0].points()}, and the worst that of {_named(last)}, {gaps[1].points()}{progress(study)}.",
        f"After Holm's correction {behind} of the other {len(splits) - 1} are shown to be behind the best, which was "
        "picked as such and so is flattered.",
    )
    every = known(*(apart(split[0].records.row.row, split[0], study.baseline) for split in ranked))
    numbers = (*every, Number("splits", len(splits)), Number("shown to be behind", behind))
    missing = f"Its study is not complete{progress(study)}." if progress(study) else ""
    return Answer(said, regime_of(study, best[0].models), _map(study, splits), numbers, missing)


def _shown_worse(ranked: list[tuple[Finding, int, int, float]]) -> int:
    best = ranked[0][0].records.accuracy
    tests = [pair(best, split[0].records.accuracy) for split in ranked[1:]]
    return sum(holm([1.0 if t is None or t.p_value is None else t.p_value for t in tests], 0.05))


def _named(split: tuple[Finding, int, int, float]) -> str:
    _, interval, ratio, share = split
    if not interval:
        return "C2 alone (C1 = 0)"
    return f"H = {interval}, R1 = {ratio}, {100 * share:.0f} % of the budget for C2"


def _map(study: Study, splits: list[tuple[Finding, int, int, float]]) -> Picture:
    """Every point of M-CSER, not the best alone."""
    tiles = [
        Tile(interval or None, share, f"R1 = {ratio}" if interval else "C1 = 0", 100 * number.value)
        for f, interval, ratio, share in splits
        if (number := apart("", f, study.baseline))
    ]
    found = (
        f"All {count_of(len(tiles), 'point')}: the difference to SGD in points, by H and by what C2 has of the budget."
    )
    return Picture("Splits of one budget", found, lambda path: draw_map(tiles, path))
