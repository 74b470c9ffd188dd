"""The verdict: what the clock and the model say, a sentence each, made from the numbers."""

from __future__ import annotations

from collections.abc import Iterator

from report.kit.document import Bullets, Paragraph, Verdict
from report.kit.wording import amount, listed
from report.speed.headlines import HEADLINES, PROPOSED, RIVAL_WORDS, RIVALS, Headline
from report.speed.speedups import implied
from report.speed.study import Bench, SpeedStudy
from report.speed.tables_agreement import verdict_sentence
from report.speed.tables_codecs import largest_sentence
from report.speed.tables_gossip import gossip_sentence
from report.speed.tables_large import alike_sentence
from report.speed.tables_latency import latency_sentence
from report.speed.tables_modelled import AT, headline_bench, main_bench
from report.speed.tables_neighbours import relatives_sentence
from report.speed.units import factor, rate

COMMAND = "make speedups"


def speed_verdict(study: SpeedStudy) -> Verdict:
    """The box; it names the command where nothing was timed or swept yet."""
    bench = main_bench(study)
    if bench is None:
        text = f"Nothing is timed yet: {COMMAND} fills this report."
        return Verdict("What was found", (Paragraph(text),))
    said = [*_timed(bench), alike_sentence(bench)]
    said += [_over_ddp(other) for other in study.benches if other is not bench]
    said += [_headline(study, headline) for headline in HEADLINES]
    said += [latency_sentence(bench), relatives_sentence(bench), gossip_sentence(study), largest_sentence(study)]
    blocks: list[Paragraph | Bullets] = [Bullets(tuple(filter(None, [*said, verdict_sentence(study.points)])))]
    if not any(each.is_modelled for each in study.benches):
        blocks.append(
            Paragraph(
                f"No network of the kind that they ran on was swept, so nothing is modelled: {COMMAND} sweeps it."
            )
        )
    return Verdict("What was found", tuple(blocks))


def _timed(bench: Bench) -> Iterator[str]:
    """What the clock said of the proposed method over each of the strong baselines, at every rate."""
    proposed = bench.method(PROPOSED)
    if proposed is None:
        return
    without = ", without encoding and update" if bench.basis == "emulated" else ""
    head = f"{bench.workload.name} by the clock ({bench.basis}{without}): {proposed.label}'s speed-up at ratio "
    head += f"{amount(proposed.ratio)} is"
    for name in RIVALS:
        if gains := _gains(bench, name):
            yield f"{head} {gains} over {RIVAL_WORDS[name]}{_crowded(bench, name)}."
            head = "It is"


def _gains(bench: Bench, baseline: str) -> str:
    """Timed speed-ups of the proposed method over a baseline, slow links to fast; "" where both were never timed."""
    gains = []
    for timing in bench.curve:
        own, base = bench.point(timing, PROPOSED), bench.point(timing, baseline)
        if own and base and not base.is_crowded:
            bits = rate(timing.fabric.stands_for_bits_per_second)
            gains.append(f"{factor(base.timed.seconds / own.timed.seconds)} at {bits}")
    return listed(gains)


def _crowded(bench: Bench, baseline: str) -> str:
    """At which rates no factor over a baseline is given, since its encoding did not fit behind the slowed passes."""
    points = [point for timing in bench.curve if (point := bench.point(timing, baseline)) and point.is_crowded]
    rates = [rate(point.timing.fabric.stands_for_bits_per_second) for point in points]
    return f"; at {listed(rates)} this machine's encoding is in that one's emulated step" if rates else ""


def _over_ddp(bench: Bench) -> str:
    gains, proposed = _gains(bench, RIVALS[0]), bench.method(PROPOSED)
    if not gains or proposed is None:
        return ""
    head = f"{bench.workload.name} ({bench.basis}): {proposed.label}'s speed-up is"
    return f"{head} {gains} over {RIVAL_WORDS[RIVALS[0]]}."


def _headline(study: SpeedStudy, headline: Headline) -> str:
    """Up to which rate the proposed method would reach a published factor over each of the strong baselines."""
    bench = headline_bench(study, headline)
    proposed = bench.method(PROPOSED) if bench else None
    if bench is None or proposed is None:
        return f"{headline.words}: no step of {headline.workload} is modelled yet, {COMMAND} fills this in."
    parts = []
    for name, rival in ((name, each) for name in RIVALS if (each := bench.method(name))):
        bits = implied(bench, proposed, rival, headline.target, AT).bits_per_second
        where = "at no rate" if bits is None else f"up to {rate(bits)}"
        parts.append(f"{where} over {RIVAL_WORDS[name]}")
    return f"{headline.words} at ratio {amount(proposed.ratio)} would hold (modelled, with encoding) {listed(parts)}."
