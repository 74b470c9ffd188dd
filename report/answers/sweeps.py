"""Answers from the same few methods in several set-ups: other networks, data that differ, other numbers of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from report.accuracy.findings import Finding, Study
from report.answers.answer import Answer, Number, apart, known, mean, nothing, number_cells, regime_of, table
from report.answers.evidence import LONG, SPLITS, Evidence, finding, other_settings, progress, some_missing
from report.kit.document import Cell
from report.kit.wording import amount, bounds, listed, percent, points, whole

METHODS = ("mcser-h16-r1_12-r2_192", "local_sgd-96", "ef_topk-96")
"""Rows of the studies that are in every set-up, as far as they have them."""

RELATIVES = ("powersgd", "ddp_powersgd", "choco_sgd", "deep_squeeze", "dpsgd", "diloco", "ef21_sgdm")


@dataclass(frozen=True)
class Setting:
    """One set-up: its name in words, and the experiment that has it."""

    words: str
    experiment: str


WIDTHS = (
    Setting("8 hidden numbers", "study_width_8"),
    Setting("32 hidden numbers", SPLITS),
    Setting("128 hidden numbers", "study_width_128"),
)
NETWORKS = (Setting("perceptron", SPLITS), Setting("CNN", "study_network_cnn"))
SKEWS = (
    Setting("equal shares", SPLITS),
    Setting("Dirichlet 10", "study_skew_dirichlet_10"),
    Setting("Dirichlet 1", "study_skew_dirichlet_1"),
    Setting("Dirichlet 0.1", "study_skew_dirichlet_0.1"),
    Setting("two classes a worker", "study_skew_class_shards"),
)
WORKERS = (
    Setting("2 workers", "study_workers_2"),
    Setting("4 workers", "study_workers_4"),
    Setting("8 workers", SPLITS),
    Setting("16 workers", "study_workers_16"),
)


def over_widths(evidence: Evidence) -> Answer:
    """Question 8: the same over the width of the network."""
    return _over(evidence, WIDTHS, "width", ("model",)) or _by_bits(evidence)


def over_networks(evidence: Evidence) -> Answer:
    """Question 9: other kinds of network."""
    return _over(evidence, NETWORKS, "network", ("model", "batch norm")) or nothing("No other kind of network was run.")


def over_skews(evidence: Evidence) -> Answer:
    """Question 18: shards whose classes differ."""
    return _over(evidence, SKEWS, "labels", ("data",)) or nothing("No shards that differ in their classes were run.")


def over_workers(evidence: Evidence) -> Answer:
    """Question 19: other numbers of workers at the same batch over all."""
    found = _over(evidence, WORKERS, "workers", ("workers", "batch", "data"))
    return found or nothing("No other number of workers was run.")


def _over(evidence: Evidence, settings: Sequence[Setting], word: str, but: tuple[str, ...]) -> Answer | None:
    """None where fewer than two set-ups have runs; why, where they may not be set side by side."""
    shown, refused = _side_by_side(evidence, settings, but)
    if len(shown) < 2:
        return nothing(" ".join(refused)) if refused else None
    numbers: list[Number] = []
    rows: list[tuple[Cell, ...]] = []
    for each, study in shown:
        top, floor = mean(f"SGD, {each.words}", study.baseline), mean(f"alone, {each.words}", study.floor)
        numbers += known(top, floor)
        bounds_ = (Cell(percent(top.value if top else None)), Cell(percent(floor.value if floor else None)))
        for f in _lines(study):
            number = apart(f"{f.records.row.row}, {each.words}", f, study.baseline)
            numbers += known(number)
            rows.append((Cell(each.words), Cell(f.method), *bounds_, *number_cells(number, f, study.baseline)))
    partly = "".join(dict.fromkeys(progress(study) for _, study in shown if progress(study)))
    text = f"Difference to SGD of the same set-up, in points (95 %): {'; '.join(_said(shown))}{partly}."
    heads = (word, "method", "SGD, %", "a worker alone, %", "difference to SGD, points", "95 % interval")
    exhibit = table(f"The same over {word}", "Paired by seed within each set-up.", heads, rows)
    there = {each.experiment for each, _ in shown}
    missing = [each.words for each in settings if each.experiment not in there]
    gone = [f"Not run yet: {listed(missing)}."] if missing and not refused else []
    partial = ["Some of its runs are missing."] if partly else []
    models = next((f.models for _, study in shown for f in _lines(study)), None)
    is_open = " ".join([*refused, *gone, *partial])
    return Answer((text,), regime_of(shown[0][1], models), exhibit, tuple(numbers), is_open)


def _side_by_side(
    evidence: Evidence, settings: Sequence[Setting], but: tuple[str, ...]
) -> tuple[list[tuple[Setting, Study]], list[str]]:
    """The set-ups that differ from the common one in nothing but `but`, and why others are left out."""
    base, shown, refused = evidence.study(SPLITS), [], []
    for each in settings:
        study = evidence.study(each.experiment)
        if study is None or not _lines(study):
            continue
        why = other_settings(study, base, but) if base else ""
        if why:
            refused.append(why)
        else:
            shown.append((each, study))
    return shown, refused


def _said(shown: Sequence[tuple[Setting, Study]]) -> list[str]:
    """By method: its difference in every set-up."""
    said = []
    for row in METHODS:
        lines = [(each.words, f, study.baseline) for each, study in shown if (f := finding(study, row))]
        found = [(words, n) for words, f, top in lines if (n := apart("", f, top))]
        if len(found) > 1:
            parts = [f"{points(n.value)} ({bounds(n.low, n.high)}) with {words}" for words, n in found]
            said.append(f"{lines[0][1].method} {', '.join(parts)}")
    return said


def _lines(study: Study) -> list[Finding]:
    found = [finding(study, row) for row in METHODS]
    return [f for f in found if f and f.records.accuracy and study.baseline and study.baseline.records.accuracy]


def _by_bits(evidence: Evidence) -> Answer:
    """Accuracy by models sent, on the one network of the long experiment."""
    study = evidence.study(LONG)
    if study is None or not study.groups or study.baseline is None or study.baseline.summary is None:
        return nothing("No experiment has runs at several ratios yet.")
    row, samples = study.baseline.records.row, _training_samples(study)
    numbers: list[Number] = []
    rows: list[tuple[Cell, ...]] = []
    for method in study.methods:
        found = [next((f for f in group.findings if f.method == method), None) for group in study.groups]
        if not all(found):
            continue
        cells = []
        for f in found:
            number = apart(f"{f.records.row.row}" if f else "", f, study.baseline)
            numbers += known(number)
            cells.append(Cell(points(number.value) if number else "no runs yet", f.pair_ids if f else ()))
        rows.append((Cell(method), *cells))
    sent = [amount(group.findings[0].models) for group in study.groups]
    within = [sum(f.word == "non-inferior" for f in group.findings) for group in study.groups]
    counts = zip(within, study.groups, sent, strict=True)
    each = [f"{k} of {len(group.findings)} rows at {m} models" for k, group, m in counts]
    per_sample = f", {row.num_parameters / samples:.2g} for each training sample" if samples else ""
    said = (
        f"With {whole(row.num_parameters)} parameters{per_sample}, {listed(each)} sent are shown to lose less than "
        f"{points(study.records.experiment.margin).lstrip('+')} points{progress(study)}."
    )
    numbers += [Number(f"within the margin at {m} models", k) for k, m in zip(within, sent, strict=True)]
    exhibit = table("Difference to SGD by models sent", "Points.", ("method", *(f"{m} models" for m in sent)), rows)
    return Answer((said,), regime_of(study), exhibit, tuple(numbers), "Other widths were not run yet.")


def _training_samples(study: Study) -> int | None:
    """By the classes that the workers' shards hold; None where no run recorded them."""
    results = (run.result for f in study.findings for run in f.records.finished.values())
    counts = next((result.class_counts for result in results if result and result.class_counts), None)
    return sum(map(sum, counts)) if counts else None


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
