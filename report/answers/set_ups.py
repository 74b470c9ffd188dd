"""Answers from the same few methods in several set-ups: other networks, data that differ, other numbers of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from report.accuracy.findings import Finding, Study
from report.answers.answer import Answer, Number, Picture, apart, known, mean, nothing, number_cells, regime_of, table
from report.answers.evidence import LONG, SPLITS, Evidence, finding, other_settings, progress
from report.answers.figures import Line, Panel, draw_lines
from report.kit.document import Cell, Table
from report.kit.statistics import pair
from report.kit.wording import amount, bounds, listed, percent, points, whole

METHODS = {"mcser-h16-r1_12-r2_192": "M-CSER", "local_sgd-96": "local SGD", "ef_topk-96": "EF-SGD top-k"}
"""Rows of the studies that are in every set-up, as far as they have them, with the names that are used here."""
LINK = (
    "M-CSER is by blocks alone, at one split of its budget. EF-SGD's top-k is all-gathered: among n workers it puts "
    "n / 2 times as much on a link as the others, which are all-reduced."
)
"""What must be known of these rows where they stand side by side."""


@dataclass(frozen=True)
class SetUp:
    """One set-up: its name in words, the experiment that has it, and its place on the figure's axis with its name."""

    words: str
    experiment: str
    at: float = 0.0
    tick: str = ""


@dataclass(frozen=True)
class SetUpAxis:
    """Set-ups in the order of one axis, which differ from the common one in the settings `but` alone."""

    title: str
    axis: str
    set_ups: tuple[SetUp, ...]
    but: tuple[str, ...]
    log_x: bool = False


WIDTHS = SetUpAxis(
    "The same over the width of the network",
    "parameters (log scale)",
    (
        SetUp("6,370 parameters", "study_width_8", 6370, "6,370"),
        SetUp("25,450 parameters", SPLITS, 25450, "25,450"),
        SetUp("101,770 parameters", "study_width_128", 101770, "101,770"),
    ),
    ("model",),
    log_x=True,
)
SKEWS = SetUpAxis(
    "The same over label skew",
    "classes of a worker's shard: Dirichlet's parameter",
    (
        SetUp("equal shares", SPLITS, 0, "equal"),
        SetUp("Dirichlet 10", "study_skew_dirichlet_10", 1, "10"),
        SetUp("Dirichlet 1", "study_skew_dirichlet_1", 2, "1"),
        SetUp("Dirichlet 0.1", "study_skew_dirichlet_0.1", 3, "0.1"),
        SetUp("two classes a worker", "study_skew_class_shards", 4, "two\nclasses"),
    ),
    ("data",),
)
WORKERS = SetUpAxis(
    "The same over the number of workers",
    "workers (log scale), at one batch over all",
    tuple(
        SetUp(f"{count} workers", SPLITS if count == 8 else f"study_workers_{count}", count, str(count))
        for count in (2, 4, 8, 16, 32)
    ),
    ("workers", "batch", "data"),
    log_x=True,
)
NETWORKS = {
    "study_network_cnn": "CNN",
    "study_network_densenet": "DenseNet-like",
    "study_network_shufflenet": "ShuffleNet-like",
}

Shown = list[tuple[SetUp, Study]]


def over_widths(evidence: Evidence) -> Answer:
    """Question 8: the same over the width of the network, and by models sent on the network of the long experiment."""
    long, missing = evidence.study(LONG), "No other width of the network was run."
    by_bits, numbers = _by_bits(long)
    if found := _over(evidence, WIDTHS, by_bits, numbers):
        return found
    return Answer((by_bits,), regime_of(long), numbers=tuple(numbers), open=missing) if long else nothing(missing)


def over_skews(evidence: Evidence) -> Answer:
    """Question 18: shards whose classes differ."""
    return _over(evidence, SKEWS) or nothing("No shards that differ in their classes were run.")


def over_workers(evidence: Evidence) -> Answer:
    """Question 19: other numbers of workers at the same batch over all."""
    return _over(evidence, WORKERS) or nothing("No other number of workers was run.")


def _over(evidence: Evidence, sweep: SetUpAxis, more: str = "", counts: Sequence[Number] = ()) -> Answer | None:
    """None where fewer than two set-ups have runs; why, where they may not be set side by side."""
    shown, refused = _side_by_side(evidence, sweep.set_ups, sweep.but)
    rows = [row for row in METHODS if shown and all(_number(study, row) for _, study in (shown[0], shown[-1]))]
    if len(shown) < 2 or not rows:
        return nothing(" ".join(refused)) if refused else None
    changes = {row: n for row in rows if (n := _change(row, shown))}
    numbers = [*_bounds(shown), *_differences(shown, rows), *changes.values(), *counts]
    said = tuple(filter(None, (_from_to(shown, rows), _changed(shown, rows, changes), _diverged(shown), more)))
    missing = [*refused, *([] if refused else _not_run(sweep.set_ups, shown)), *_partly(shown)]
    exhibit = _picture(sweep, shown, rows)
    return Answer(said, _regime(shown, sweep.but), exhibit, tuple(numbers), " ".join(missing))


def _side_by_side(evidence: Evidence, set_ups: Sequence[SetUp], but: Sequence[str]) -> tuple[Shown, list[str]]:
    """The set-ups that differ from the common one in nothing but `but`, and why others are left out."""
    base, shown, refused = evidence.study(SPLITS), [], []
    for each in set_ups:
        study = evidence.study(each.experiment)
        if study is None or not any(_number(study, row) for row in METHODS):
            continue
        why = other_settings(study, base, tuple(but)) if base else ""
        if why:
            refused.append(why)
        else:
            shown.append((each, study))
    return shown, refused


def _number(study: Study, row: str, key: str = "") -> Number | None:
    """The row's difference to SGD of the same set-up."""
    return apart(key, finding(study, row), study.baseline)


def _change(row: str, shown: Shown) -> Number | None:
    """How much more is lost in the last set-up than in the first, paired by seed."""
    (first, one), (last, other) = shown[0], shown[-1]
    found = pair(_by_seed(other, row), _by_seed(one, row))
    key = f"{row}, {last.words} − {first.words}"
    return None if found is None else Number(key, found.difference, found.low, found.high, len(found.seeds))


def _by_seed(study: Study, row: str) -> dict[int, float]:
    mine, own = finding(study, row), study.baseline.records.accuracy if study.baseline else {}
    scores = mine.records.accuracy if mine else {}
    return {seed: score - own[seed] for seed, score in scores.items() if seed in own}


def _bounds(shown: Shown) -> list[Number]:
    return [
        number
        for each, study in shown
        for number in known(mean(f"SGD, {each.words}", study.baseline), mean(f"alone, {each.words}", study.floor))
    ]


def _differences(shown: Shown, rows: Sequence[str]) -> list[Number]:
    return [n for each, study in shown for row in rows if (n := _number(study, row, f"{row}, {each.words}"))]


def _from_to(shown: Shown, rows: Sequence[str]) -> str:
    parts = []
    for row in rows:
        found = [n for _, study in (shown[0], shown[-1]) if (n := _number(study, row))]
        one, other = (f"{points(n.value)} ({bounds(n.low, n.high)})" for n in found)
        parts.append(f"With {METHODS[row]} it goes from {one} to {other}.")
    alone = [percent(n.value) for _, study in (shown[0], shown[-1]) if (n := mean("", study.floor))]
    floor = f" A worker alone reaches {' % and '.join(alone)} %." if len(alone) > 1 else ""
    partly = "".join(dict.fromkeys(progress(study) for _, study in shown if progress(study)))
    ends = f"From {shown[0][0].words} to {shown[-1][0].words}"
    return f"{ends} the difference to SGD changes as follows, in points (95 %){partly}. {' '.join(parts)}{floor}"


def _changed(shown: Shown, rows: Sequence[str], changes: dict[str, Number]) -> str:
    """Who is shown to lose more at the end, and who loses the least there."""
    told = {
        word: listed([f"{METHODS[row]} by {n.points()}" for row, n in changes.items() if n.told == word])
        for word in ("worse", "better")
    }
    first, last = shown[0][0].words, shown[-1][0].words
    least = max((n.value, METHODS[row]) for row in rows if (n := _number(shown[-1][1], row)))[1]
    less = f", and less {told['better']}" if told["better"] else ""
    return (
        f"Paired by seed, shown to lose more with {last} than with {first} is {told['worse'] or 'none'}{less}. "
        f"With {last} the least is lost by {least}."
    )


def _diverged(shown: Shown) -> str:
    """Runs that are in no mean, since they diverged; empty where there are none."""
    lost = [(each, f) for each, study in shown for row in METHODS if (f := finding(study, row)) and f.records.diverged]
    parts = [f"{METHODS[f.records.row.row]} {f.said()} with {each.words}" for each, f in lost]
    return f"Left out: {listed(parts)}." if parts else ""


def _not_run(set_ups: Sequence[SetUp], shown: Shown) -> list[str]:
    there = {each.experiment for each, _ in shown}
    missing = [each.words for each in set_ups if each.experiment not in there]
    return [f"Not run yet: {listed(missing)}."] if missing else []


def _partly(shown: Shown) -> list[str]:
    return ["Some of its runs are missing."] if any(progress(study) for _, study in shown) else []


def _regime(shown: Shown, but: Sequence[str]) -> str:
    """That of the common set-up where it is shown, and in which settings the others differ from it."""
    study = next((study for each, study in shown if each.experiment == SPLITS), shown[0][1])
    models = next((f.models for row in METHODS if (f := finding(study, row))), None)
    settings = [study.records.experiment.settings for _, study in shown]
    differ = [key for key in but if len({each.get(key) for each in settings}) > 1]
    rates = {each.experiment: bool(other.records.experiment.tuning) for each, other in shown if other is not study}
    chosen = "their learning rates were chosen anew" if all(rates.values()) else "learning rates are those of it"
    return f"{regime_of(study, models)} The others differ from it in {listed(differ) or 'nothing'}; {chosen}."


def _picture(sweep: SetUpAxis, shown: Shown, rows: Sequence[str]) -> Picture:
    ticks = tuple((each.at, each.tick) for each, _ in shown)
    scores = [("SGD", "SGD", [(each, study.baseline) for each, study in shown])]
    scores += [(METHODS[row], METHODS[row], [(each, finding(study, row)) for each, study in shown]) for row in rows]
    scores += [("a worker alone", "alone", [(each, study.floor) for each, study in shown])]
    metric = shown[0][1].records.metric.score_label
    accuracy = Panel(
        sweep.axis, f"{metric}, percent", tuple(_score_line(*line) for line in scores), ticks,
        log_x=sweep.log_x, scale="accuracy", room=0.3,
    )  # fmt: skip
    lines = tuple(_difference_line(row, shown) for row in rows)
    apart_ = Panel(sweep.axis, "difference to SGD, points", lines, ticks, levels=((0.0, ""),), log_x=sweep.log_x)
    labels = [f.method for row in rows if (f := next((f for _, s in shown if (f := finding(s, row))), None))]
    found = "Left: means, each dot a seed. Right: differences to SGD of the same set-up with their 95 % intervals."
    note = f"The methods' settings: {'; '.join(labels)}."
    return Picture(sweep.title, found, lambda path: draw_lines((accuracy, apart_), path), (note, LINK))


def _score_line(name: str, look: str, found: Sequence[tuple[SetUp, Finding | None]]) -> Line:
    there = [(each.at, f) for each, f in found if f and f.summary]
    means = tuple(100 * f.summary.mean for _, f in there if f.summary)
    dots = tuple(tuple(100 * score for score in f.records.accuracy.values()) for _, f in there)
    return Line(name, look, tuple(at for at, _ in there), means, dots=dots)


def _difference_line(row: str, shown: Shown) -> Line:
    there = [(each.at, n) for each, study in shown if (n := _number(study, row))]
    ends = [(n.value if n.low is None else n.low, n.value if n.high is None else n.high) for _, n in there]
    bars = tuple((100 * low, 100 * high) for low, high in ends)
    return Line(METHODS[row], METHODS[row], tuple(at for at, _ in there), tuple(100 * n.value for _, n in there), bars)


def over_networks(evidence: Evidence) -> Answer:
    """Question 9: every other kind of network that was run."""
    names = sorted({*NETWORKS, *evidence.named("study_network_")})
    set_ups = [SetUp("perceptron", SPLITS)]
    set_ups += [SetUp(NETWORKS.get(name, name.removeprefix("study_network_")), name) for name in names]
    shown, refused = _side_by_side(evidence, set_ups, ("model", "batch norm"))
    rows = [row for row in METHODS if sum(_number(study, row) is not None for _, study in shown) > 1]
    if len(shown) < 2 or not rows:
        return nothing(" ".join(refused) or "No other kind of network was run.")
    pairs = _each_pair(shown, rows)
    parts = []
    for each, study in shown:
        found = {METHODS[row]: n for row in rows if (n := _number(study, row))}
        of_each = [f"{name} {points(n.value)} ({bounds(n.low, n.high)})" for name, n in found.items()]
        parts.append(f"{each.words} {listed(of_each)}")
    partly = "".join(dict.fromkeys(progress(study) for _, study in shown if progress(study)))
    said = [f"Differences to SGD of the same network, in points (95 %): {'; '.join(parts)}{partly}."]
    if pairs:
        words = [n.told for n in pairs]
        said.append(
            f"{METHODS[rows[0]]} is shown to be behind {METHODS[rows[-1]]} in {words.count('worse')} of "
            f"{len(words)} networks, and ahead in {words.count('better')}."
        )
    said += filter(None, (_diverged(shown),))
    numbers = (*_bounds(shown), *_differences(shown, rows), *pairs)
    missing = " ".join([*refused, *([] if refused else _not_run(set_ups, shown)), *_partly(shown)])
    return Answer(tuple(said), _regime(shown, ("model", "batch norm")), _networks(shown, rows), numbers, missing)


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
            cells = number_cells(_number(study, row), f, study.baseline)
            lines.append((Cell(each.words), Cell(size), *ends, Cell(METHODS[row]), *cells))
    heads = ("network", "parameters", "SGD, %", "a worker alone, %", "method", "difference to SGD, points")
    return table("Kinds of network", "Paired by seed within each.", (*heads, "95 % interval"), lines)


def _by_bits(study: Study | None) -> tuple[str, list[Number]]:
    """By models sent, how many rows of the long experiment are shown to lose less than the margin."""
    if study is None or not study.groups or study.baseline is None or study.baseline.summary is None:
        return "", []
    row, samples = study.baseline.records.row, sum(map(sum, study.class_counts or ()))
    sent = [amount(group.findings[0].models) for group in study.groups]
    within = [sum(f.word == "non-inferior" for f in group.findings) for group in study.groups]
    counts = zip(within, study.groups, sent, strict=True)
    each = [f"{k} of {len(group.findings)} rows at {m} models" for k, group, m in counts]
    per_sample = f", {row.num_parameters / samples:.2g} for each training sample" if samples else ""
    text = (
        f"In {study.records.experiment.name}, with {whole(row.num_parameters)} parameters{per_sample}, {listed(each)} "
        f"sent are shown to lose less than {points(study.records.experiment.margin).lstrip('+')} points"
        f"{progress(study)}."
    )
    return text, [Number(f"within the margin at {m} models", k) for k, m in zip(within, sent, strict=True)]
