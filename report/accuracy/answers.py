"""The verdict's plain answers: each one sentence with its number and its exhibit, made from the statistics alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from report.accuracy.findings import Finding, RatioGroup, Study
from report.accuracy.models_needed import Needed, needed_of
from report.accuracy.pairs import Pair
from report.accuracy.regime import regime_of
from report.accuracy.tables_bits import link_cost
from report.kit.document import Figure, Table, exhibit_name
from report.kit.statistics import pair
from report.kit.wording import amount, bounds, count_of, listed, percent, points, ratio_name

Exhibits = Mapping[str, Table | Figure]

TWO_LEVEL = ("cser", "mcser")


def answers_of(study: Study, pairs: Sequence[Pair], exhibits: Exhibits) -> tuple[str, ...]:
    """At most five answers, whatever came out and whatever is missing."""
    group = study.main_group
    if group is None:
        return ("The experiment has no rows at its main ratio.",)
    return (
        loss_answer(study, group, exhibits),
        fewest_answer(study, exhibits),
        two_level_answer(study, group, pairs, exhibits),
        top_k_answer(study, group, exhibits),
        alone_answer(study, exhibits),
    )


def see(exhibits: Exhibits, *keys: str) -> str:
    """The first of the exhibits that the report has, as " (Table 2)"."""
    return next((f" ({exhibit_name(exhibits[key])})" for key in keys if key in exhibits), "")


def ratio_in_words(study: Study, group: RatioGroup) -> str:
    """The ratio with the models that it sends: "ratio 96 (292 models sent)"."""
    sent = [f.records.row.models_sent for f in group.findings if f.records.row.models_sent is not None]
    if not sent:
        return f"ratio {group.ratio:g}"
    low, high = amount(min(sent)), amount(max(sent))
    return f"ratio {group.ratio:g} ({low if low == high else f'{low} to {high}'} models sent)"


def loss_answer(study: Study, group: RatioGroup, exhibits: Exhibits) -> str:
    """Is there a loss at the main ratio?"""
    margin, where = study.records.experiment.margin, see(exhibits, "accuracy")
    head = f"Is there a loss at {ratio_in_words(study, group)}? "
    methods = [finding for finding in group.findings if finding.role is None]
    if margin is None or study.baseline is None or study.baseline.summary is None:
        return f"{head}There is no margin or no finished baseline yet to tell it by{where}."
    refused = [f for f in methods if f.word == "cannot tell"]
    phrases = [
        ("loses less", "lose less", [f for f in methods if f.word == "non-inferior"]),
        ("loses more", "lose more", [f for f in methods if f.word == "inferior"]),
        (
            "may lose more or less",
            "may lose more or less",
            [f for f in methods if f.word == "inconclusive" and f.comparison],
        ),
        ("cannot be told", "cannot be told", refused),
        ("has a diverged run", "have diverged runs", [f for f in methods if f.word == "diverged"]),
        ("has no runs yet", "have no runs yet", [f for f in methods if f.word == "inconclusive" and not f.comparison]),
    ]
    parts = [f"{len(f)} {one if len(f) == 1 else many}: {_with_differences(f)}" for one, many, f in phrases if f]
    reason = study.assay.reason if study.assay and refused else None
    because = f"; this experiment cannot tell, since {reason}" if reason else ""
    where = see(exhibits, "assay") if reason else where
    size = f"Of {count_of(len(methods), 'method')}, measured by the margin of {points(margin).lstrip('+')} points"
    return f"{head}{size}, {'; '.join(parts) or 'none has a row'}{because}{where}."


def _with_differences(findings: Sequence[Finding]) -> str:
    return ", ".join(f"{named(f)}{f' {points(f.comparison.difference)}' if f.comparison else ''}" for f in findings)


def named(finding: Finding) -> str:
    """A method's name with its mark, and how many of its runs there are where some are missing."""
    pairs = len(finding.comparison.seeds) if finding.comparison else 0
    counted = f" [{pairs} of {finding.planned}]" if 0 < pairs < finding.planned else ""
    return f"{finding.method}{'†' if finding.at_end else ''}{counted}"


def fewest_answer(study: Study, exhibits: Exhibits) -> str:
    """Which method needs the fewest models? By the map of the regime, or else by the row that sends the fewest."""
    head, where = "Which method needs the fewest models? ", see(exhibits, "equal_bits")
    bounds_ = {f.method for f in study.compared if f.role}
    regime = regime_of(study)
    needed = [n for n in needed_of(regime) if n.method not in bounds_ and n.kind != "cannot tell"] if regime else []
    if needed:
        each = [f"{n.method} {n.said()}{f' ({n.interval()})' if n.kind == 'between' else ''}" for n in needed]
        text = "By a curve through all lengths, for the margin at the longest, models needed (95 % interval) are"
        return f"{head}{text}: {', '.join(each)}{_gathering(needed)}{see(exhibits, 'needed')}."
    methods = [f for group in study.groups for f in group.findings if f.role is None and f.comparison]
    if not methods:
        return f"{head}No method can be compared yet."
    if any(f.refused for f in methods) and study.assay:
        return f"{head}This experiment cannot tell, since {study.assay.reason}{see(exhibits, 'assay')}."
    good = sorted((f for f in methods if f.word == "non-inferior"), key=lambda f: f.models)
    return f"{head}{_fewest(good, methods) if good else _none_good(methods)}{where}."


def _gathering(needed: Sequence[Needed]) -> str:
    """Which of the methods load a link with more than an all-reduce of the same models would."""
    needed = [n for n in needed if not n.to_neighbours]
    least = min((n.links for n in needed if n.links), default=0.0)
    names = [f"{n.method} {amount(n.links / least)}" for n in needed if n.links and n.links > 1.05 * least]
    return f"; each model loads a link more where it is gathered: times {', '.join(names)}" if names else ""


def _none_good(methods: Sequence[Finding]) -> str:
    best = max(methods, key=lambda f: f.comparison.difference if f.comparison else 0.0)
    most = amount(max(f.models for f in methods))
    return (
        f"None of those tried is shown to lose less than the margin, with up to {most} models sent; the least "
        f"difference is that of {named(best)} at ratio {ratio_name(best.ratio)}, {_difference(best)} points"
    )


def _fewest(good: Sequence[Finding], methods: Sequence[Finding]) -> str:
    first = good[0]
    others = [f for f in good[1:] if f.models <= first.models * 1.05 and f.method != first.method]
    also = f"; so are, at the same, {listed([f'{named(f)} ({_difference(f)})' for f in others])}" if others else ""
    limit = " (the fewest that were tried)" if first.models <= 1.05 * min(f.models for f in methods) else ""
    return (
        f"The row with the fewest that is non-inferior is {named(first)} at ratio {ratio_name(first.ratio)}, which "
        f"sends {amount(first.models)} models{limit} and differs by {_difference(first)} points{also}"
    )


def _difference(finding: Finding) -> str:
    return points(finding.comparison.difference if finding.comparison else None)


def two_level_answer(study: Study, group: RatioGroup, pairs: Sequence[Pair], exhibits: Exhibits) -> str:
    """Is the two-level scheme better than local SGD at equal bits?"""
    head, where = "Is the two-level scheme better than local SGD at equal bits? ", see(exhibits, "pairs", "equal_bits")
    plain = next((f for f in group.findings if f.records.row.algorithm == "local_sgd"), None)
    schemes = [f for f in group.findings if f.records.row.algorithm in TWO_LEVEL]
    if plain is None or not schemes:
        return f"{head}The experiment has no rows of both at ratio {group.ratio:g}."
    parts = [_against(scheme, plain) for scheme in schemes]
    return f"{head}At ratio {group.ratio:g}, against {named(plain)}, {'; '.join(parts)}{_after_holm(pairs)}{where}."


def _against(scheme: Finding, plain: Finding) -> str:
    lost = len(scheme.records.diverged) + len(plain.records.diverged)
    if lost:
        return f"{named(scheme)} cannot be told, as {count_of(lost, 'run')} of the two diverged"
    found = pair(scheme.records.accuracy, plain.records.accuracy)
    if found is None:
        return f"{named(scheme)} has no pairs of runs yet"
    seeds = count_of(len(found.seeds), "seed")
    text = f"{named(scheme)} differs by {points(found.difference)} points"
    if found.low is None or found.high is None:
        return f"{text} ({seeds}, too few for an interval)"
    word = "better" if found.low > 0 else "worse" if found.high < 0 else "not told apart"
    return f"{text} (95 % interval {bounds(found.low, found.high)}, {seeds}: {word}{_link_load(scheme, plain)})"


def _link_load(scheme: Finding, plain: Finding) -> str:
    """Equal payload is not equal load where one of the two gathers."""
    own, other = scheme.records.row.link_models, plain.records.row.link_models
    if not own or not other or own < 1.05 * other:
        return ""
    return f", with {amount(own / other)} times as much on a link"


def two_level_pairs(pairs: Sequence[Pair]) -> tuple[int, int, int]:
    """Pairs of the two-level scheme with local SGD in which it is shown to be better, to be worse, and all of them."""
    better = worse = total = 0
    for each in pairs:
        names = (each.left.records.row.algorithm, each.right.records.row.algorithm)
        if "local_sgd" in names and set(names) & set(TWO_LEVEL):
            total += 1
            if each.differs and each.paired:
                ahead = (each.paired.difference > 0) == (names[0] in TWO_LEVEL)
                better, worse = better + ahead, worse + (not ahead)
    return better, worse, total


def _after_holm(pairs: Sequence[Pair]) -> str:
    """What all ratios say, once corrected for all the pairs that are looked at."""
    better, worse, total = two_level_pairs(pairs)
    if not total:
        return ""
    return (
        f"; over all ratios, after Holm's correction over {len(pairs)} pairs, the two-level scheme is better in "
        f"{better} of {total} and worse in {worse}"
    )


def is_top_k(finding: Finding) -> bool:
    """Error feedback with top-k."""
    return feeds_back(finding) and "top_k" in finding.records.row.words


def feeds_back(finding: Finding) -> bool:
    """EF-SGD, but for its form that drops what is not sent."""
    return finding.records.row.algorithm == "ef_sgd" and "drop rest: True" not in finding.records.row.words


def top_k_answer(study: Study, group: RatioGroup, exhibits: Exhibits) -> str:
    """What does error feedback with top-k do?"""
    head, where = "What does error feedback with top-k do? ", see(exhibits, "equal_bits")
    row = next((f for f in group.findings if is_top_k(f)), None)
    if row is None:
        return f"{head}The experiment has no row of it at ratio {group.ratio:g}."
    if not row.summary or not row.comparison:
        return f"{head}It has no runs to compare yet ({row.said()})."
    ordered = group.ordered()
    text = (
        f"At ratio {group.ratio:g} {named(row)} reaches {percent(row.summary.mean)} %, {_difference(row)} points from "
        f"the baseline ({row.said()}), place {ordered.index(row) + 1} of {len(ordered)} at equal payload"
    )
    blocks = next((f for f in group.findings if feeds_back(f) and "block" in f.records.row.words), None)
    if blocks and blocks.comparison:
        text += f", where with blocks it is {_difference(blocks)} points"
    costs = [cost for f in group.findings if (cost := link_cost(f))]
    own = link_cost(row)
    if own and min(costs) < own / 1.05:
        text += f"; its all-gather puts {amount(own / min(costs))} times as much on a link as an all-reduce of the same"
    return f"{head}{text}{where}."


def alone_answer(study: Study, exhibits: Exhibits) -> str:
    """What does a worker alone on its shard reach?"""
    head, floor, baseline = "What does a worker alone on its shard reach? ", study.floor, study.baseline
    if floor is None:
        return f"{head}The experiment has no such row, so nobody knows what could have been lost."
    if floor.summary is None or baseline is None or baseline.summary is None or study.assay is None:
        return f"{head}Floor or baseline have no finished runs yet."
    able = "cannot tell a loss" if study.assay.reason else "can tell a loss"
    gap = points(baseline.summary.mean - floor.summary.mean).lstrip("+")
    return (
        f"{head}{percent(floor.summary.mean)} % (mean of {count_of(floor.summary.n, 'run')}), {gap} points below the "
        f"{percent(baseline.summary.mean)} % of {named(baseline)}, so the experiment {able}"
        f"{see(exhibits, 'assay')}."
    )
