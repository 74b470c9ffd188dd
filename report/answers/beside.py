"""Answers on methods that stand beside CSER's: its relatives, and itself as it was released."""

from __future__ import annotations

from report.answers.answer import Answer, apart, known, nothing, number_cells, regime_of, table
from report.answers.evidence import LONG, Evidence, finding, progress, some_missing
from report.kit.document import Cell
from report.kit.wording import amount

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
    """Question 24: the released method less the written one, switch by switch."""
    study = evidence.study("study_released")
    written = finding(study, "written")
    rows = [f for f in study.compared if f.records.row.row.startswith("released")] if study else []
    numbers = {f.method: n for f in rows if (n := apart(f"{f.records.row.row} − written", f, written))}
    if study is None or not numbers:
        return nothing("The released method was not run beside the written one.")
    parts = [f"{name} {n.points()}" for name, n in numbers.items()]
    told = sum(n.told != "not told apart" for n in numbers.values())
    said = (
        f"Released less written, paired by seed: {'; '.join(parts)}{progress(study)}.",
        f"{told} of {len(numbers)} are told apart from the written method, each judged alone at 95 %.",
    )
    table_rows = [(Cell(f.method), *number_cells(numbers.get(f.method), f, written)) for f in rows]
    heads = ("variant", "difference to the written, points", "95 % interval")
    models = rows[0].models if rows else None
    return Answer(
        said,
        regime_of(study, models),
        table("Released and written", "", heads, table_rows),
        tuple(numbers.values()),
        some_missing(study),
    )
