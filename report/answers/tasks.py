"""The answer on other tasks than images: letters to phones by two optimisers, and translation, by Transformers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from report.accuracy.findings import Finding, Study
from report.answers.answer import Answer, Number, apart, known, mean, nothing, number_cells, regime_of, table
from report.answers.evidence import Evidence, progress
from report.kit.document import Cell, Table
from report.kit.wording import amount, listed, percent

TASKS = {
    "cmudict": "letters to phones by SGD",
    "cmudict_adamw": "letters to phones by AdamW",
    "kjv_es": "English to Spanish by AdamW",
}
"""Experiments on other tasks than images, with what they do."""


def command_of(names: Iterable[str]) -> str:
    """What runs them."""
    return "; ".join(f"python -m harness run {name} --tuning; python -m harness run {name}" for name in names)


def another_task(evidence: Evidence) -> Answer:
    """Question 10: on each task the methods that lose least and most."""
    found = {name: study for name in TASKS if (study := evidence.study(name)) and _compared(study)}
    missing = [name for name in TASKS if name not in found]
    if not found:
        return nothing("No experiment on another task than images has runs to compare yet.")
    said, numbers = [], list[Number]()
    for name, study in found.items():
        text, own = _ends(study, name)
        said.append(text)
        numbers += own
    left = [TASKS[name] for name in missing]
    partly = [name for name, study in found.items() if progress(study)]
    is_open = [f"Not run yet: {listed(left)}."] if left else []
    is_open += [f"Runs of {listed(partly)} are missing."] if partly else []
    regime = " ".join(regime_of(study, _models(study)) for study in found.values())
    command = command_of([*missing, *partly])
    return Answer(tuple(said), regime, _table(found), tuple(numbers), " ".join(is_open), command=command)


def _models(study: Study) -> float | None:
    return study.main_group.findings[0].models if study.main_group else None


def _compared(study: Study) -> list[Finding]:
    """Methods that have runs of the seeds of the baseline."""
    return [f for f in study.compared if f.role is None and apart("", f, study.baseline)]


def _ends(study: Study, name: str) -> tuple[str, Sequence[Number]]:
    """What is lost least and most, in words, and every number of the task."""
    top = study.baseline
    assert top
    level = mean(f"{name}: {_key(top)}", top)
    floor = mean(f"{name}: {_key(study.floor)}", study.floor) if study.floor else None
    assert level
    numbers = [(f, n) for f in _compared(study) if (n := apart(f"{name}: {_key(f)} − {_key(top)}", f, top))]
    main = study.main_group.findings if study.main_group else ()
    ranked = sorted((each for each in numbers if each[0] in main), key=lambda each: -each[1].value) or numbers
    ends = [ranked[0]] if len(ranked) == 1 else [ranked[0], ranked[-1]]
    parts = [f"{f.method} at {amount(f.models)} models sent, {n.points()}" for f, n in ends]
    words = ("The least is lost by", "The most is lost by")
    metric = top.records.metric
    unit = " %" if metric.unit == "percent" else ""
    alone = f", and a worker alone {percent(floor.value)}{unit}" if floor else ""
    head = f"{TASKS[name][0].upper()}{TASKS[name][1:]}: what sends everything reaches "
    reached = f"{percent(level.value)}{unit} {metric.score_label}{alone}{progress(study)}."
    lost = " ".join(f"{word} {part}." for word, part in zip(words, parts, strict=False))
    return f"{head}{reached} {lost}", known(level, floor, *(n for _, n in numbers))


def _key(found: Finding) -> str:
    return found.records.row.row


def _table(found: dict[str, Study]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, study in found.items():
        bounds = [f for f in (study.baseline, study.floor) if f]
        for f in (*bounds[:1], *_compared(study), *bounds[1:]):
            score = mean("", f)
            top = f is study.baseline
            cells = (Cell("–"), Cell("–")) if top else number_cells(apart("", f, study.baseline), f, study.baseline)
            shown = Cell(percent(score.value if score else None), f.records.run_ids)
            rows.append((Cell(TASKS[name]), Cell(f.method), Cell(amount(f.models)), shown, *cells))
    heads = ("task", "method", "models sent", "score, % or points of 100", "difference, points", "95 % interval")
    found_ = "Each method between what sends everything by the same optimiser and a worker alone."
    return table("Other tasks", found_, heads, rows)
