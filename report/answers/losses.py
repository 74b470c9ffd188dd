"""Answers on what is lost: at the paper's number of models sent, and beside what anyone could do."""

from __future__ import annotations

from report.accuracy.answers import two_level_pairs
from report.accuracy.findings import Finding, Study
from report.accuracy.pairs import pairs_of
from report.answers.answer import Answer, Number, apart, known, mean, nothing, number_cells, regime_of, table
from report.answers.evidence import LONG, Evidence, progress
from report.kit.document import Cell, Table
from report.kit.wording import amount, count_of, interval, listed, percent, points


def is_there_a_loss(evidence: Evidence) -> Answer:
    """Question 1: the losses at the main ratio; ImageNet itself where its runs are at hand."""
    imagenet = evidence.study("imagenet")
    study = imagenet or evidence.study(LONG)
    if study is None or study.main_group is None or study.baseline is None or study.baseline.summary is None:
        return nothing("No accuracy experiment has a finished baseline yet.")
    methods = [f for f in study.main_group.findings if f.role is None]
    good = [f for f in methods if f.word == "non-inferior"]
    bad = [f for f in methods if f.word == "inferior"]
    stands = sum(f.holm for f in methods)
    margin = points(study.records.experiment.margin).lstrip("+")
    top, sent = study.baseline.summary, amount(study.main_group.findings[0].models)
    head = (
        f"At {sent} models sent {count_of(len(good), 'method')} of {len(methods)} {_are(good)} shown to lose less than "
        f"{margin} points of the {percent(top.mean)} % (95 %: {interval(top.low, top.high)}) that SGD reaches"
        f"{_names(good)}, and {len(bad)} to lose more{_names(bad)}{progress(study)}."
    )
    kept = f"{stands or 'none'} of them {'holds' if stands < 2 else 'hold'}"
    holm = f"Each of these is judged alone at 95 %; after Holm's correction over all rows {kept}."
    where = "" if imagenet else "ResNet-50 on ImageNet was not run here, so of its accuracies nothing can be said."
    ours = [f for f in good if f.records.row.algorithm in ("cser", "mcser")]
    floor = mean("alone", study.floor)
    alone = f", and a worker alone {percent(floor.value)} %" if floor else ""
    brief = (
        f"On {study.records.experiment.task} SGD reaches {percent(top.mean)} %{alone}. "
        f"At {sent} models sent {count_of(len(good), 'method')} of {len(methods)} {_are(good)} shown to lose less than "
        f"{margin} points{_names(ours)}, each judged alone at 95 %{progress(study)}. "
        f"After Holm's correction over all rows {kept}. {where}"
    )
    numbers = known(
        mean("sgd", study.baseline),
        *(_difference(f, study) for f in methods),
        Number("shown to lose less", len(good)),
        Number("shown to lose more", len(bad)),
        Number("hold after Holm", stands),
    )
    exhibit = _losses(study, methods)
    return Answer(
        (head, holm), regime_of(study, study.main_group.findings[0].models), exhibit, numbers, where, brief.strip()
    )


def _are(findings: list[Finding]) -> str:
    return "is" if len(findings) == 1 else "are"


def _names(findings: list[Finding]) -> str:
    return f" ({listed([f'{f.method} {points(f.comparison.difference)}' for f in findings if f.comparison])})" * bool(
        findings
    )


def _difference(found: Finding, study: Study) -> Number | None:
    return apart(found.records.row.row, found, study.baseline)


def _losses(study: Study, methods: list[Finding]) -> Table:
    rows = []
    for f in sorted(methods, key=lambda f: -(f.comparison.difference if f.comparison else -1.0)):
        mine = mean("", f)
        rows.append(
            (
                Cell(f.name, f.records.run_ids),
                Cell(percent(mine.value) if mine else "no runs yet", f.records.run_ids),
                *number_cells(_difference(f, study), f, study.baseline),
                Cell(f.said(), f.pair_ids),
            )
        )
    best = rows[0][0].text if rows else "none"
    heads = ("method", f"{study.records.metric.score_label}, %", "difference, points", "95 % interval", "word")
    return table(f"Losses at {amount(methods[0].models)} models sent", f"{best} loses the least.", heads, rows)


def what_anyone_could_do(evidence: Evidence) -> Answer:
    """Question 25: local SGD, and one average at the end, at the same bits."""
    study = evidence.study(LONG)
    plain = (
        [f for group in study.groups for f in group.findings if f.records.row.algorithm == "local_sgd"] if study else []
    )
    if study is None or not plain:
        return nothing("No experiment with rows of local SGD has runs yet.")
    main = next((f for f in plain if study.main_group and f in study.main_group.findings), plain[0])
    schemes = [f for f in (study.main_group.findings if study.main_group else ()) if f.records.row.algorithm == "mcser"]
    final = next((f for f in study.others if f.role == "bound"), None)
    against = [(f, apart(f"{f.records.row.row} − {main.records.row.row}", f, main)) for f in schemes]
    better, worse, total = two_level_pairs(pairs_of(study))
    parts = [f"{f.method} is {n.told} by {n.points()}" for f, n in against if n]
    first = f"At {amount(main.models)} models sent, against local SGD, {listed(parts) or 'nothing is known'}"
    first += "; over all ratios, corrected for all pairs, two levels are "
    first += f"better in {better} and worse in {worse} of {total}."
    last = apart("final_average", final, study.baseline)
    word = "does not do" if final and final.word == "inferior" else "is not shown to lose more than the margin"
    second = (
        f"One average at the end, which sends one model in all, {word}: it differs from SGD by {last.points()}."
        if last
        else ""
    )
    numbers = known(
        last, *(n for _, n in against), Number("better", better), Number("worse", worse), Number("pairs", total)
    )
    exhibit = _plain_table(study, plain, final)
    said = tuple(filter(None, (first, second)))
    ahead = "As far as can be told, yes for local SGD" if not better else "Not always"
    brief = (
        f"{ahead}: at equal bits CSER and M-CSER are shown to be better in {better} of {total} pairs and worse in "
        f"{worse}, after Holm's correction. {second}"
    )
    return Answer(said, regime_of(study, main.models), exhibit, numbers, brief=brief.strip())


def _plain_table(study: Study, plain: list[Finding], final: Finding | None) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for f in (*plain, *((final,) if final else ())):
        peers = next((g.findings for g in study.groups if f in g.findings), ())
        two = [p for p in peers if p.records.row.algorithm in ("cser", "mcser") and p.comparison]
        best = max(two, key=lambda p: p.comparison.difference if p.comparison else -1.0, default=None)
        cells = number_cells(_difference(f, study), f, study.baseline)
        other = f"{best.method} {points(best.comparison.difference)}" if best and best.comparison else "–"
        rows.append((Cell(f.name), Cell(amount(f.models)), *cells, Cell(other, best.pair_ids if best else ())))
    heads = ("method", "models sent", "difference to SGD, points", "95 % interval", "best of two levels")
    return table("What anyone could do at equal bits", f"{count_of(len(rows), 'row')}.", heads, rows)
