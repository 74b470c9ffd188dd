"""Answers on what becomes of what is not sent: dropped, fed back or reset, and by which compressor."""

from __future__ import annotations

from report.accuracy.findings import Finding, Study
from report.answers.answer import Answer, apart, nothing, number_cells, regime_of, table
from report.answers.evidence import LONG, Evidence, finding, progress, some_missing
from report.kit.document import Cell, Table
from report.kit.wording import amount, bounds, listed, points, short

RULES = "study_rules"
KINDS = {"block": "blocks", "random_k": "random-k", "top_k": "top-k", "qsgd": "QSGD", "sign": "sign"}
IN_LONG = {"blocks": ("ef_block-96", "csea_block-96"), "top-k": ("ef_topk-96", "csea-96")}
"""Rows of the long experiment with error feedback and error reset by the same compressor."""


def _pairs(evidence: Evidence) -> tuple[Study | None, dict[str, tuple[Finding | None, ...]]]:
    """By compressor: the rows that drop, feed back and reset; of the long experiment the last two."""
    study = evidence.study(RULES)
    if study is not None:
        rules = ("drop", "feedback", "reset")
        return study, {name: tuple(finding(study, f"{key}-{r}") for r in rules) for key, name in KINDS.items()}
    study = evidence.study(LONG)
    return study, {name: (None, *(finding(study, row) for row in rows)) for name, rows in IN_LONG.items()}


def why_error_reset_helps(evidence: Evidence) -> Answer:
    """Question 15: reset minus feedback, one compressor at a time."""
    study, found = _pairs(evidence)
    numbers = {name: n for name, (_, ef, er) in found.items() if (n := apart(f"reset − feedback, {name}", er, ef))}
    if study is None or not numbers:
        return nothing("No compressor has runs with both error feedback and error reset yet.")
    said = [f"by {name} {n.points()}" for name, n in numbers.items()]
    better = [name for name, n in numbers.items() if n.told == "better"]
    first = f"With only the rule changed, error reset less error feedback is {listed(said)}{progress(study)}."
    rates = [f"{_rate(ef)} and {_rate(er)} with {name}" for name, (_, ef, er) in found.items() if name in numbers]
    not_shown = [name for name in numbers if name not in better]
    helps = f"It is shown to help with {listed(better) or 'none'}"
    helps += f", and not with {listed(not_shown)}" if not_shown else ""
    second = f"{helps}; the learning rates of feedback and of reset are {listed(rates)}."
    missing = (
        some_missing(study)
        if study.records.experiment.name == RULES
        else "Dropping, random-k and quantisers were not run yet."
    )
    shown = [
        f"{name} ({points(n.value)} points, 95 %: {bounds(n.low, n.high)})"
        for name, n in numbers.items()
        if name in better
    ]
    brief = f"With only the rule changed, it is shown to help with {listed(shown) or 'none'}."
    brief += f" It is not shown to with {listed(not_shown)}." if not_shown else ""
    exhibit = _rules_table(study, found)
    return Answer((first, second), _regime(study, found), exhibit, tuple(numbers.values()), missing, brief)


def _rate(found: Finding | None) -> str:
    return short(found.records.row.learning_rate if found else None)


def _regime(study: Study, found: dict[str, tuple[Finding | None, ...]]) -> str:
    models = [f.models for rows in found.values() for f in rows if f]
    return regime_of(study, models[0] if models else None)


def _rules_table(study: Study, found: dict[str, tuple[Finding | None, ...]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, line in found.items():
        sent = next((f.models for f in line if f), None)
        cells: list[Cell] = [Cell(name), Cell(amount(sent))]
        for f in line:
            number = apart("", f, study.baseline)
            text = f.said() if f and f.records.diverged else points(number.value) if number else "not run"
            cells.append(Cell(text, f.pair_ids if f else ()))
        rows.append(tuple(cells))
    heads = ("compressor", "models sent", "dropped", "error feedback", "error reset")
    found_text = "Differences to SGD in points; a rule is error feedback (EF-SGD) or error reset (CSEA) or none."
    return table("One compressor, three rules", found_text, heads, rows)


def do_other_compressors_work(evidence: Evidence) -> Answer:
    """Question 17: the best and the worst compressor under each rule."""
    study, found = _pairs(evidence)
    if study is None:
        return nothing("No experiment over compressors has runs yet.")
    said, numbers = [], []
    for place, rule in enumerate(("no memory", "error feedback", "error reset")):
        known_rows = [
            (n, name) for name, line in found.items() if (n := apart(f"{rule}, {name}", line[place], study.baseline))
        ]
        if not known_rows:
            continue
        numbers += [n for n, _ in known_rows]
        best, last = max(known_rows, key=lambda k: k[0].value), min(known_rows, key=lambda k: k[0].value)
        said.append(f"with {rule} from {last[1]} {points(last[0].value)} to {best[1]} {points(best[0].value)}")
    if not said:
        return nothing("No experiment over compressors has runs yet.")
    every = [f for line in found.values() for f in line if f and f.comparison]
    lost = sum(f.word == "inferior" for f in every)
    text = (
        f"Differences to SGD in points run {'; '.join(said)}; {lost} of {len(every)} pairs of compressor and rule are "
        f"shown to lose more than {points(study.records.experiment.margin).lstrip('+')} points{progress(study)}."
    )
    missing = (
        some_missing(study)
        if study.records.experiment.name == RULES
        else "Random-k, QSGD, sign and dropping were not run yet."
    )
    exhibit = _compressor_table(study, found)
    return Answer((text,), _regime(study, found), exhibit, tuple(numbers), missing)


def _compressor_table(study: Study, found: dict[str, tuple[Finding | None, ...]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, line in found.items():
        for rule, f in zip(("dropped", "error feedback", "error reset"), line, strict=True):
            if f is not None:
                link = amount(f.records.row.link_models)
                cells = number_cells(apart("", f, study.baseline), f, study.baseline)
                rows.append((Cell(f"{name}, {rule}"), Cell(amount(f.models)), Cell(link), *cells))
    heads = ("compressor and rule", "models sent", "models on a link", "difference to SGD, points", "95 % interval")
    return table(
        "Method by compressor", "What is all-gathered loads a link more than what is all-reduced.", heads, rows
    )
