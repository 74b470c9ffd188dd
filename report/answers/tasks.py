"""The answer on other tasks than images: letters to phones, and translation, by Transformers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from report.accuracy.findings import Finding, Study
from report.answers.answer import Answer, Number, apart, known, mean, nothing, number_cells, regime_of, table
from report.answers.evidence import Evidence, finding, progress
from report.kit.document import Cell, Table
from report.kit.wording import amount, listed, percent

TASKS = {"cmudict": "letters to phones", "kjv_es": "English to Spanish"}
"""Experiments on other tasks than images, with what they do."""


def command_of(names: Iterable[str]) -> str:
    """What runs them."""
    return "; ".join(f"python -m harness run {name} --tuning; python -m harness run {name}" for name in names)


def another_task(evidence: Evidence) -> Answer:
    """Question 10: on each task the methods that lose least and most, each against its own baseline."""
    found = {name: study for name in TASKS if (study := evidence.study(name)) and _compared(study)}
    missing = [name for name in TASKS if name not in found]
    if not found:
        return nothing("No experiment on another task than images has runs to compare yet.")
    said, numbers = [], []
    for name, study in found.items():
        parts = [_with_baseline(top, rows, name) for top, rows in _by_baseline(study)]
        said.append(f"{TASKS[name].capitalize()}: {'; '.join(text for text, _ in parts)}{progress(study)}.")
        numbers += [number for _, each in parts for number in each]
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
    """Methods that have runs of the seeds of their baseline."""
    rows = [f for f in study.compared if f.role is None and f.records.row.algorithm != "sgd"]
    return [f for f in rows if apart("", f, baseline_of(study, f))]


def baseline_of(study: Study, found: Finding) -> Finding | None:
    """The row that sends everything by the same optimiser: of adamw_local-8 it is adamw, else the experiment's."""
    other = finding(study, found.records.row.row.partition("_")[0])
    return other if other and other.records.row.algorithm == "sgd" else study.baseline


def _by_baseline(study: Study) -> list[tuple[Finding, list[Finding]]]:
    groups: dict[str, tuple[Finding, list[Finding]]] = {}
    for f in _compared(study):
        if top := baseline_of(study, f):
            groups.setdefault(top.records.row.row, (top, []))[1].append(f)
    return list(groups.values())


def _with_baseline(top: Finding, rows: Sequence[Finding], name: str) -> tuple[str, tuple[Number, ...]]:
    """What is lost least and most, in words, and every number of the group."""
    numbers = {f.records.row.row: n for f in rows if (n := apart(f"{name}: {_key(f)} − {_key(top)}", f, top))}
    ranked = sorted((f for f in rows if f.records.row.row in numbers), key=lambda f: -numbers[f.records.row.row].value)
    level = mean(f"{name}: {_key(top)}", top)
    assert level and ranked
    ends = [ranked[0]] if len(ranked) == 1 else [ranked[0], ranked[-1]]
    parts = [f"{f.method} at {amount(f.models)} models sent, {numbers[f.records.row.row].points()}" for f in ends]
    words = ("the least is lost by", "and the most by")
    said = ", ".join(f"{word} {part}" for word, part in zip(words, parts, strict=False))
    metric = top.records.metric
    reached = f"{percent(level.value)}{' %' if metric.unit == 'percent' else ''} {metric.score_label}"
    return f"{top.method} reaches {reached}, {said}", known(level, *numbers.values())


def _key(found: Finding) -> str:
    return found.records.row.row


def _table(found: dict[str, Study]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, study in found.items():
        for top, methods in _by_baseline(study):
            for f in (top, *methods):
                score = mean("", f)
                number = None if f is top else apart("", f, top)
                cells = (Cell("–"), Cell("–")) if f is top else number_cells(number, f, top)
                shown = Cell(percent(score.value if score else None), f.records.run_ids)
                rows.append((Cell(TASKS[name]), Cell(f.method), Cell(amount(f.models)), shown, *cells))
    heads = ("task", "method", "models sent", "score, % or points of 100", "difference, points", "95 % interval")
    return table("Other tasks", "Each method against what sends everything by the same optimiser.", heads, rows)
