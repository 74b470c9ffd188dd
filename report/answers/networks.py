"""The answer on other kinds of network, all of about as many parameters."""

from __future__ import annotations

from collections.abc import Sequence

from report.answers.answer import Answer, Number, apart, known, mean, nothing, number_cells, table
from report.answers.evidence import SPLITS, Evidence, finding, progress
from report.answers.set_ups import (
    METHODS,
    SetUp,
    Shown,
    both_bounds,
    difference,
    differences,
    diverged,
    not_run,
    partly,
    regime,
    side_by_side,
)  # fmt: skip
from report.kit.document import Cell, Table
from report.kit.wording import bounds, listed, percent, points, whole

NAMES = {
    "study_network_cnn": "CNN",
    "study_network_densenet": "DenseNet-like",
    "study_network_shufflenet": "ShuffleNet-like",
}


def over_networks(evidence: Evidence) -> Answer:
    """Question 9: every other kind of network that was run."""
    names = sorted({*NAMES, *evidence.named("study_network_")})
    set_ups = [SetUp("perceptron", SPLITS)]
    set_ups += [SetUp(NAMES.get(name, name.removeprefix("study_network_")), name) for name in names]
    shown, refused = side_by_side(evidence, set_ups, ("model", "batch norm"))
    rows = [row for row in METHODS if sum(difference(study, row) is not None for _, study in shown) > 1]
    if len(shown) < 2 or not rows:
        return nothing(" ".join(refused) or "No other kind of network was run.")
    pairs = _each_pair(shown, rows)
    parts = []
    for each, study in shown:
        found = {METHODS[row]: n for row in rows if (n := difference(study, row))}
        of_each = [f"{name} {points(n.value)} ({bounds(n.low, n.high)})" for name, n in found.items()]
        parts.append(f"{each.words} {listed(of_each)}")
    few = "".join(dict.fromkeys(progress(study) for _, study in shown if progress(study)))
    said = [f"Differences to SGD of the same network, in points (95 %): {'; '.join(parts)}{few}."]
    if pairs:
        words = [n.told for n in pairs]
        said.append(
            f"{METHODS[rows[0]]} is shown to be behind {METHODS[rows[-1]]} in {words.count('worse')} of "
            f"{len(words)} networks, and ahead in {words.count('better')}."
        )
    said += filter(None, (diverged(shown),))
    numbers = (*both_bounds(shown), *differences(shown, rows), *pairs)
    missing = " ".join([*refused, *([] if refused else not_run(set_ups, shown)), *partly(shown)])
    return Answer(tuple(said), regime(shown, ("model", "batch norm")), _networks(shown, rows), numbers, missing)


def _each_pair(shown: Shown, rows: Sequence[str]) -> tuple[Number, ...]:
    """In every network the first method less the last one."""
    if len(rows) < 2:
        return ()
    left, right = rows[0], rows[-1]
    key = f"{left} − {right}"
    return known(*(apart(f"{key}, {each.words}", finding(s, left), finding(s, right)) for each, s in shown))


def _networks(shown: Shown, rows: Sequence[str]) -> Table:
    lines: list[tuple[Cell, ...]] = []
    for each, study in shown:
        size = whole(study.findings[0].records.row.num_parameters)
        top, floor = mean("", study.baseline), mean("", study.floor)
        ends = [Cell(percent(n.value if n else None)) for n in (top, floor)]
        for row in rows:
            f = finding(study, row)
            cells = number_cells(difference(study, row), f, study.baseline)
            lines.append((Cell(each.words), Cell(size), *ends, Cell(METHODS[row]), *cells))
    heads = ("network", "parameters", "SGD, %", "a worker alone, %", "method", "difference to SGD, points")
    return table("Kinds of network", "Paired by seed within each.", (*heads, "95 % interval"), lines)
