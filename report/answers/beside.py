"""Answers on methods that stand beside CSER's: its relatives, and itself as it was released."""

from __future__ import annotations

from report.answers.answer import Answer, Number, apart, known, nothing, number_cells, regime_of, table
from report.answers.evidence import LONG, Evidence, finding, progress, some_missing
from report.kit.document import Cell
from report.kit.wording import amount, bounds, listed, points

RELATIVES = ("powersgd", "ddp_powersgd", "choco_sgd", "deep_squeeze", "dpsgd", "diloco", "ef21_sgdm")


def relatives(evidence: Evidence) -> Answer:
    """Question 23: rows of the relatives in any experiment at hand; their step times are in the report of speed-ups."""
    for name in (LONG, "fashion_mnist_regime", "study_relatives"):
        study = evidence.study(name)
        rows = [f for f in study.compared if f.records.row.algorithm in RELATIVES and f.comparison] if study else []
        if study is not None and rows:
            ranked = sorted(rows, key=lambda f: -(f.comparison.difference if f.comparison else -1.0))
            numbers = known(*(apart(f.records.row.row, f, study.baseline) for f in ranked))
            both = list(zip(ranked, numbers, strict=True))
            parts = [f"{f.method} ({amount(f.models)} models) {n.points()}" for f, n in both]
            text = f"Differences to SGD: {'; '.join(parts)}{progress(study)}."
            table_rows = [
                (Cell(f.method), Cell(amount(f.models)), *number_cells(n, f, study.baseline)) for f, n in both
            ]
            heads = ("method", "models sent", "difference to SGD, points", "95 % interval")
            return Answer((text,), regime_of(study), table("The relatives", "", heads, table_rows), numbers)
    return nothing("No accuracy run of PowerSGD, CHOCO-SGD, DeepSqueeze, decentralised SGD, DiLoCo or EF21 is at hand.")


def released(evidence: Evidence) -> Answer:
    """Question 24: the released method less the written one, switch by switch and all together."""
    study = evidence.study("study_released")
    written = finding(study, "written")
    rows = [f for f in study.compared if f.records.row.row.startswith("released")] if study else []
    numbers = {f.records.row.row: n for f in rows if (n := apart(f"{f.records.row.row} − written", f, written))}
    if study is None or not numbers:
        return nothing("The released method was not run beside the written one.")
    names = {f.records.row.row: f.method.removeprefix("M-CSER, ").removeprefix("M-CSER ") for f in rows}
    together = numbers.get("released")
    all_of_it = f"{_same(together)} differs from the written method by {together.points()}" if together else ""
    single = {row: n for row, n in numbers.items() if row != "released"}
    parts = [f"“{names[row]}” {points(n.value)} ({bounds(n.low, n.high)})" for row, n in single.items()]
    told = [names[row] for row, n in single.items() if n.told in ("better", "worse")]
    which = f"“{'”, “'.join(told)}”" if told else "none"
    one = (
        f"One switch at a time the difference is, in points (95 %), {listed(parts)}: told apart is {which}."
        if parts
        else ""
    )
    said = tuple(filter(None, (f"{all_of_it}{progress(study)}." if together else "", one)))
    table_rows = [
        (Cell(names[f.records.row.row]), Cell(n.told if n else "no runs yet"), *number_cells(n, f, written))
        for f in rows
        for n in (numbers.get(f.records.row.row),)
    ]
    heads = ("variant", "word", "difference to the written, points", "95 % interval")
    models = rows[0].models if rows else None
    exhibit = table("Released and written", "Paired by seed, each judged alone at 95 %.", heads, table_rows)
    return Answer(said, regime_of(study, models), exhibit, tuple(numbers.values()), some_missing(study))


def _same(together: Number) -> str:
    told = together.told in ("better", "worse")
    return "No: as released, M-CSER" if told else "It cannot be told from it: as released, M-CSER"
