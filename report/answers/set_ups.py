"""Answers from the same few methods in several set-ups: other widths, data that differ, other numbers of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from report.accuracy.findings import Finding, Study
from report.answers.answer import Answer, Number, Picture, apart, known, mean, nothing, regime_of
from report.answers.evidence import LONG, SPLITS, Evidence, finding, other_settings, progress
from report.answers.figures import Line, Panel, draw_lines
from report.kit.statistics import pair
from report.kit.wording import amount, bounds, listed, percent, points, whole

METHODS = {"mcser-h16-r1_12-r2_192": "M-CSER", "local_sgd-96": "local SGD", "ef_topk-96": "EF-SGD top-k"}
"""Rows of the studies that are in every set-up, as far as they have them, with the names that are used here."""
MORE_SENT = {"mcser-h16-r1_3-r2_48": "M-CSER", "local_sgd-24": "local SGD", "ef_topk-24": "EF-SGD top-k"}
"""The same methods at four times as many models sent."""
LEAST_RANK = "powersgd-1"
"""PowerSGD's row that sends the least, which is more or less with the network."""
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
        SetUp("6,370 parameters", "study_width_8", 6370, "6.4k"),
        SetUp("25,450 parameters", SPLITS, 25450, "25k"),
        SetUp("101,770 parameters", "study_width_128", 101770, "102k"),
    ),
    ("model",),
    log_x=True,
)
SKEWS = SetUpAxis(
    "The same over label skew",
    "classes: Dirichlet's parameter, or two",
    (
        SetUp("equal shares", SPLITS, 0, "∞"),
        SetUp("Dirichlet 10", "study_skew_dirichlet_10", 1, "10"),
        SetUp("Dirichlet 1", "study_skew_dirichlet_1", 2, "1"),
        SetUp("Dirichlet 0.1", "study_skew_dirichlet_0.1", 3, "0.1"),
        SetUp("two classes a worker", "study_skew_class_shards", 4, "two"),
    ),
    ("data",),
)
WORKERS = SetUpAxis(
    "The same over the number of workers",
    "workers (log scale)",
    tuple(
        SetUp(f"{count} workers", SPLITS if count == 8 else f"study_workers_{count}", count, str(count))
        for count in (2, 4, 8, 16, 32)
    ),
    ("workers", "batch", "data"),
    log_x=True,
)
WEAK_SCALING = SetUpAxis(
    "The same over the number of workers",
    "workers (log scale)",
    tuple(
        SetUp(f"{count} workers of 16 images", SPLITS if count == 8 else f"study_weak_scaling_{count}", count)
        for count in (2, 4, 8, 16)
    ),
    ("workers", "task"),
    log_x=True,
)

Shown = list[tuple[SetUp, Study]]

NOTHING_MORE = nothing("")

_ROOM = 0.45
"""Share of a panel for the names of its lines, as up to three stand side by side."""


def over_widths(evidence: Evidence) -> Answer:
    """Question 8: the same over the width of the network, and by models sent on the network of the long experiment."""
    long, missing = evidence.study(LONG), "No other width of the network was run."
    by_bits, numbers = _by_bits(long)
    low_rank, its_numbers = _low_rank(evidence)
    if found := _over(evidence, WIDTHS, Answer((low_rank, by_bits), "", numbers=(*its_numbers, *numbers))):
        return found
    return Answer((by_bits,), regime_of(long), numbers=tuple(numbers), open=missing) if long else nothing(missing)


def _low_rank(evidence: Evidence) -> tuple[str, list[Number]]:
    """PowerSGD of rank 1 at every width, which sends other shares of them."""
    shown, _ = side_by_side(evidence, WIDTHS.set_ups, WIDTHS.but)
    there = [(each, study) for each, study in shown if difference(study, LEAST_RANK)]
    parts = [
        f"{n.points()} with {each.words} and {amount(f.models)} models sent"
        for each, study in there
        if (n := difference(study, LEAST_RANK)) and (f := finding(study, LEAST_RANK))
    ]
    said = f"PowerSGD of rank 1 differs from SGD by {listed(parts)}." if parts else ""
    return said, differences(there, [LEAST_RANK])


def over_skews(evidence: Evidence) -> Answer:
    """Question 18: shards whose classes differ."""
    return _over(evidence, SKEWS) or nothing("No shards that differ in their classes were run.")


def over_workers(evidence: Evidence) -> Answer:
    """Question 19: other numbers of workers at the same batch over all."""
    fixed = _in_short(evidence, WEAK_SCALING, "With 3,000 samples for each worker")
    return _over(evidence, WORKERS, fixed) or nothing("No other number of workers was run.")


def _over(evidence: Evidence, sweep: SetUpAxis, more: Answer = NOTHING_MORE) -> Answer | None:
    """None where fewer than two set-ups have runs; why, where they may not be set side by side. `more` is said too."""
    shown, refused = side_by_side(evidence, sweep.set_ups, sweep.but)
    rows = [row for row in METHODS if shown and all(difference(study, row) for _, study in (shown[0], shown[-1]))]
    if len(shown) < 2 or not rows:
        return nothing(" ".join(refused)) if refused else None
    changes = {row: n for row in rows if (n := _change(row, shown))}
    more_sent, its_numbers = _more_sent(shown)
    numbers = [*both_bounds(shown), *differences(shown, rows), *changes.values(), *its_numbers, *more.numbers]
    changed = _changed(shown, rows, changes)
    said = tuple(filter(None, (_from_to(shown, rows), changed, more_sent, diverged(shown), *more.said)))
    missing = filter(None, (*_missing(sweep, shown, refused), more.open))
    exhibit = _picture(sweep, shown, rows)
    return Answer(said, regime(shown, sweep.but), exhibit, tuple(numbers), " ".join(missing))


def _missing(sweep: SetUpAxis, shown: Shown, refused: Sequence[str]) -> list[str]:
    return [*refused, *([] if refused else not_run(sweep.set_ups, shown)), *partly(shown)]


def side_by_side(evidence: Evidence, set_ups: Sequence[SetUp], but: Sequence[str]) -> tuple[Shown, list[str]]:
    """The set-ups that differ from the common one in nothing but `but`, and why others are left out."""
    base, shown, refused = evidence.study(SPLITS), [], []
    for each in set_ups:
        study = evidence.study(each.experiment)
        if study is None or not any(difference(study, row) for row in METHODS):
            continue
        why = other_settings(study, base, tuple(but)) if base else ""
        if why:
            refused.append(why)
        else:
            shown.append((each, study))
    return shown, refused


def difference(study: Study, row: str, key: str = "") -> Number | None:
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


def both_bounds(shown: Shown) -> list[Number]:
    return [
        number
        for each, study in shown
        for number in known(mean(f"SGD, {each.words}", study.baseline), mean(f"alone, {each.words}", study.floor))
    ]


def differences(shown: Shown, rows: Sequence[str]) -> list[Number]:
    return [n for each, study in shown for row in rows if (n := difference(study, row, f"{row}, {each.words}"))]


def _from_to(shown: Shown, rows: Sequence[str]) -> str:
    alone = [percent(n.value) for _, study in (shown[0], shown[-1]) if (n := mean("", study.floor))]
    floor = f" A worker alone reaches {' % and '.join(alone)} %." if len(alone) > 1 else ""
    few = "".join(dict.fromkeys(progress(study) for _, study in shown if progress(study)))
    ends = f"From {shown[0][0].words} to {shown[-1][0].words} the difference to SGD changes as follows"
    return f"{ends}, in points (95 %){few}: {'; '.join(_ends(shown, rows))}.{floor}"


def _more_sent(shown: Shown) -> tuple[str, list[Number]]:
    """The differences at both ends once more, where more models are sent."""
    rows = [row for row in MORE_SENT if all(difference(study, row) for _, study in (shown[0], shown[-1]))]
    if not rows:
        return "", []
    first = finding(shown[0][1], rows[0])
    models = amount(first.models if first else None)
    return f"At {models} models sent: {'; '.join(_ends(shown, rows))}.", differences(shown, rows)


def _ends(shown: Shown, rows: Sequence[str]) -> list[str]:
    """Each row's difference in the first set-up and in the last."""
    ends = [(row, [n for _, study in (shown[0], shown[-1]) if (n := difference(study, row))]) for row in rows]
    named = METHODS | MORE_SENT
    return [
        f"{named[row]} from {' to '.join(f'{points(n.value)} ({bounds(n.low, n.high)})' for n in found)}"
        for row, found in ends
    ]


def _in_short(evidence: Evidence, sweep: SetUpAxis, where: str) -> Answer:
    """Another axis in a sentence, with its numbers; what is missing alone where it has fewer than two set-ups."""
    shown, refused = side_by_side(evidence, sweep.set_ups, sweep.but)
    missing = " ".join(_missing(sweep, shown, refused))
    rows = [row for row in METHODS if shown and all(difference(study, row) for _, study in (shown[0], shown[-1]))]
    if len(shown) < 2 or not rows:
        return nothing(missing)
    more, rest = _more_sent(shown)
    said = f"{where}, from {shown[0][0].words} to {shown[-1][0].words}: {'; '.join(_ends(shown, rows))}."
    return Answer((said, more), "", numbers=(*both_bounds(shown), *differences(shown, rows), *rest), open=missing)


def _changed(shown: Shown, rows: Sequence[str], changes: dict[str, Number]) -> str:
    """Who is shown to lose more at the end, and who loses the least there."""
    told = {
        word: listed([f"{METHODS[row]} by {n.points()}" for row, n in changes.items() if n.told == word])
        for word in ("worse", "better")
    }
    first, last = shown[0][0].words, shown[-1][0].words
    least = max((n.value, METHODS[row]) for row in rows if (n := difference(shown[-1][1], row)))[1]
    less = f", and less {told['better']}" if told["better"] else ""
    return (
        f"Paired by seed, shown to lose more with {last} than with {first} is {told['worse'] or 'none'}{less}. "
        f"With {last} the least is lost by {least}."
    )


def diverged(shown: Shown) -> str:
    """Runs that are in no mean, since they diverged; empty where there are none."""
    named = METHODS | MORE_SENT
    lost = [(each, f) for each, study in shown for row in named if (f := finding(study, row)) and f.records.diverged]
    parts = [f"{named[f.records.row.row]} {f.said()} with {each.words}" for each, f in lost]
    return f"Left out: {listed(parts)}." if parts else ""


def not_run(set_ups: Sequence[SetUp], shown: Shown) -> list[str]:
    there = {each.experiment for each, _ in shown}
    missing = [each.words for each in set_ups if each.experiment not in there]
    return [f"Not run yet: {listed(missing)}."] if missing else []


def partly(shown: Shown) -> list[str]:
    return ["Some of its runs are missing."] if any(progress(study) for _, study in shown) else []


def regime(shown: Shown, but: Sequence[str]) -> str:
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
        log_x=sweep.log_x, scale="accuracy", room=_ROOM,
    )  # fmt: skip
    more = [row for row in MORE_SENT if sum(difference(study, row) is not None for _, study in shown) > 1]
    panels = [accuracy, *(_differences_panel(sweep, shown, of) for of in (rows, more) if of)]
    each = (next((f for _, study in shown if (f := finding(study, row))), None) for row in (*rows, *more))
    found = "Left: means, each dot a seed. Beside it: differences to SGD of the same set-up with 95 % intervals."
    note = f"The methods' settings: {'; '.join(dict.fromkeys(f.method for f in each if f))}."
    return Picture(sweep.title, found, lambda path: draw_lines(panels, path), (note, LINK))


def _differences_panel(sweep: SetUpAxis, shown: Shown, rows: Sequence[str]) -> Panel:
    first = next(f for _, study in shown if (f := finding(study, rows[0])))
    label = f"points to SGD, {amount(first.models)} models"
    ticks = tuple((each.at, each.tick) for each, _ in shown)
    lines = tuple(_difference_line(row, shown) for row in rows)
    return Panel(sweep.axis, label, lines, ticks, levels=((0.0, ""),), log_x=sweep.log_x, room=_ROOM)


def _score_line(name: str, look: str, found: Sequence[tuple[SetUp, Finding | None]]) -> Line:
    there = [(each.at, f) for each, f in found if f and f.summary]
    means = tuple(100 * f.summary.mean for _, f in there if f.summary)
    dots = tuple(tuple(100 * score for score in f.records.accuracy.values()) for _, f in there)
    return Line(name, look, tuple(at for at, _ in there), means, dots=dots)


def _difference_line(row: str, shown: Shown) -> Line:
    there = [(each.at, n) for each, study in shown if (n := difference(study, row))]
    ends = [(n.value if n.low is None else n.low, n.value if n.high is None else n.high) for _, n in there]
    bars = tuple((100 * low, 100 * high) for low, high in ends)
    name = (METHODS | MORE_SENT)[row]
    return Line(name, name, tuple(at for at, _ in there), tuple(100 * n.value for _, n in there), bars)


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
