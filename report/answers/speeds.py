"""Answers on time and money, from the study of step times and its model, on ResNet-50's workload."""

from __future__ import annotations

from harness.records.timings import Method
from report.accuracy.models_needed import needed_of
from report.accuracy.regime import regime_of as map_of
from report.answers.answer import Answer, Number, Picture, nothing, table
from report.answers.evidence import LONG, Evidence
from report.kit.document import Cell
from report.kit.wording import amount, listed, whole
from report.speed.cost_model import Compute
from report.speed.figure_bandwidth import draw_step_times, step_times_note
from report.speed.headlines import HEADLINES, METHODS, PROPOSED, RIVALS
from report.speed.ratios import needed_ratio
from report.speed.speedups import CLEARLY, faster_spans, implied, speedup
from report.speed.study import Bench, SpeedStudy
from report.speed.tables_agreement import AIM, LARGE, agreement
from report.speed.tables_large import ALIKE
from report.speed.tables_modelled import headline_bench, layout_network, layouts_of, spans_text
from report.speed.to_target import rentals
from report.speed.units import factor, milliseconds, rate, signed_percent

AT = 10e9
"""Bits per second at which single numbers are given."""
WORKLOAD = "resnet50_v100"
NO_STUDY = "No study of step times is at hand."


def bench_of(evidence: Evidence) -> Bench | None:
    """ResNet-50's workload, or else the first that is modelled."""
    benches = [b for b in evidence.speed.benches if b.is_modelled and b.method(PROPOSED)] if evidence.speed else []
    return next((b for b in benches if b.workload.name == WORKLOAD), benches[0] if benches else None)


def regime(bench: Bench, study: SpeedStudy | None) -> str:
    """The set-up, and how far the model's predictions lie from the clock."""
    return f"Modelled with encoding and update, from steps that were {bench.basis}: {_set_up(bench)}.{_misses(study)}"


def _set_up(bench: Bench) -> str:
    work, fabric = bench.workload, bench.main.fabric
    return (
        f"{work.name}, {whole(work.num_parameters)} parameters, {work.device}, {fabric.num_machines} x "
        f"{fabric.workers_per_machine} workers"
    )


def _misses(study: SpeedStudy | None) -> str:
    """How near the model's communication time is to the clock's, where there is much of it."""
    points = [point for point in study.points if point.communication > LARGE * point.timed.compute] if study else []
    near, _, many = agreement(points)
    if not many:
        return ""
    return (
        f" Where communication takes over {100 * LARGE:g} % of the compute, the model of it is within {100 * AIM:g} % "
        f"of the clock in {near} of {many} timed steps."
    )


def _rivals(bench: Bench) -> list[Method]:
    return [rival for name in (*RIVALS, "all_reduce") if (rival := bench.method(name))]


def _plain(method: Method) -> str:
    """Its label as it stands in a list: DDP with fp16."""
    return method.label.replace(", ", " with ", 1)


def what_is_the_baseline(evidence: Evidence) -> Answer:
    """Question 2: the speed-up of the same method over each baseline, at one rate."""
    bench = bench_of(evidence)
    if bench is None:
        return nothing(NO_STUDY)
    proposed = bench.method(PROPOSED)
    assert proposed
    gains = {base.label: speedup(bench, proposed, base, AT) for base in bench.baselines}
    timed = {p.method.name: p for p in bench.points if p.timing is bench.main}
    over = [f"{factor(gains[r.label])} over {_plain(r)}" for r in _rivals(bench)]
    said = (
        f"At {rate(AT)} one method, {proposed.label} at ratio {amount(proposed.ratio)}, is {listed(over)}: by the "
        "baseline "
        f"alone the factor differs up to {factor(max(gains.values()) / min(gains.values()))}.",
        f"Here {sum(b.overlap for b in bench.baselines)} of {len(bench.baselines)} baselines overlap with the "
        "backward pass "
        f"({bench.main.fabric.backend}); what the paper's baseline overlapped is not known.",
    )
    rows = []
    for base in bench.baselines:
        point = timed.get(base.name)
        bounds = f"{milliseconds(point.timed.low)} to {milliseconds(point.timed.high)}" if point else "not timed"
        cells = (Cell("yes" if base.overlap else "no"), Cell(bounds), Cell(factor(gains[base.label])))
        rows.append((Cell(base.label), *cells))
    heads = ("baseline", "overlapped", "its step, ms (95 %)", f"{proposed.label} over it")
    note = f"Steps as timed on {rate(bench.main.fabric.stands_for_bits_per_second)}; factors modelled at {rate(AT)}."
    exhibit = table("Every baseline", f"{len(rows)} baselines.", heads, rows, note)
    numbers = tuple(Number(f"speed-up over {name}", value) for name, value in gains.items())
    return Answer(said, regime(bench, evidence.speed), exhibit, numbers)


def other_topologies(evidence: Evidence) -> Answer:
    """Question 3: the most that any method gains over overlapped DDP, layout by layout."""
    bench = bench_of(evidence)
    base = bench.method("ddp") if bench else None
    if bench is None or base is None:
        return nothing(NO_STUDY)
    shapes = dict.fromkeys((each.machines, each.workers) for each in layouts_of(bench.main.fabric.num_workers))
    best, rows = {}, []
    for shape in shapes:
        own, mine = _fastest(bench, base, shape), {m.label: _fastest(bench, m, shape) for m in bench.compared}
        known = [(own / seconds, label) for label, seconds in mine.items() if own and seconds]
        proposed = bench.method(PROPOSED)
        if not own or not known or proposed is None:
            continue
        gain, label = max(known)
        name = f"{shape[0]} x {shape[1]}"
        best[name] = gain
        seconds = mine[proposed.label] or own
        cells = (milliseconds(own), factor(own / seconds), f"{factor(gain)} ({label})")
        rows.append((Cell(name), *(Cell(text) for text in cells)))
    parts = [f"{factor(gain)} with {name}" for name, gain in best.items()]
    said = (
        f"The most that any method gains over overlapped DDP at {rate(AT)} between machines is {listed(parts)} "
        "(machines x "
        "GPUs), each with the faster of the algorithms that are modelled.",
    )
    heads = ("layout", "DDP's step, ms", f"{PROPOSED} over it".replace("mcser", "M-CSER"), "best over it")
    numbers = tuple(Number(f"best over DDP, {name}", gain) for name, gain in best.items())
    exhibit = table("Layouts", f"{rate(AT)} between machines; inside, the device's fastest link.", heads, rows)
    return Answer(said, regime(bench, evidence.speed), exhibit, numbers)


def _fastest(bench: Bench, method: Method, shape: tuple[int, int]) -> float | None:
    """Seconds of a step on so many machines of so many workers, by the fastest algorithm; None: not modelled."""
    layouts = [each for each in layouts_of(bench.main.fabric.num_workers) if (each.machines, each.workers) == shape]
    networks = [network for each in layouts if (network := layout_network(bench, each))]
    return min((bench.seconds(method, network) for network in networks), default=None)


def when_it_pays(evidence: Evidence) -> Answer:
    """Question 4: below which rate, over each baseline, and whether older methods do as well."""
    bench = bench_of(evidence)
    if bench is None:
        return nothing(NO_STUDY)
    proposed, rivals = bench.method(PROPOSED), [r for n in RIVALS if (r := bench.method(n))]
    assert proposed
    spans = {_plain(r): faster_spans(bench, proposed, r, CLEARLY) for r in rivals}
    plain = [m for m in bench.compared if m.ratio >= 64 and not m.overlap]
    base = bench.method("ddp")
    gains = {m.label: speedup(bench, m, base, AT) for m in plain} if base else {}
    said = [
        f"{proposed.label} at ratio {amount(proposed.ratio)} is over {100 * (CLEARLY - 1):.0f} % faster than "
        f"{listed([f'{name} {spans_text(each)}' for name, each in spans.items()])}."
    ]
    if gains:
        low, high = min(gains.values()), max(gains.values())
        alike = high / low <= ALIKE
        word = "the older methods do as well, so choose by accuracy" if alike else "the methods differ"
        said.append(
            f"At {rate(AT)} every method of ratio 64 and more that does not overlap is {factor(low)} to "
            f"{factor(high)} over "
            f"DDP: {word}."
        )
    numbers = [Number(f"up to, over {name}, b/s", max(s.high for s in each)) for name, each in spans.items() if each]
    numbers += [Number(f"over DDP, {name}", gain) for name, gain in gains.items()]
    ends = [f"Over {name}: {spans_text(each)}." for name, each in spans.items()]
    head = f"Modelled, {proposed.label} at ratio {amount(proposed.ratio)} is over {100 * (CLEARLY - 1):.0f} % faster"
    brief = f"{head} at these rates of a link. {' '.join([*ends, *said[1:]])}"
    exhibit = _step_times(evidence.speed, bench)
    return Answer(tuple(said), regime(bench, evidence.speed), exhibit, tuple(numbers), brief=brief)


def _step_times(study: SpeedStudy | None, bench: Bench) -> Picture | None:
    """The report of speed-ups' own figure, of this workload alone."""
    if study is None:
        return None
    found = f"{bench.basis.capitalize()} points on modelled lines, of {bench.workload.name}."
    note = step_times_note([bench])
    return Picture("Step time against bandwidth", found, lambda path: draw_step_times(bench, path), (note,))


def over_older_methods(evidence: Evidence) -> Answer:
    """Question 5: the step beside QSparse's and EF-SGD's, and the models that each needs for the margin."""
    bench, study = bench_of(evidence), evidence.study(LONG)
    proposed = bench.method(PROPOSED) if bench else None
    if bench is None or proposed is None:
        return nothing(NO_STUDY)
    olders = [m for name in ("qsparse", "qsparse_local_sgd", "ef_sgd", "local_sgd") if (m := bench.method(name))]
    gains = {m.label: {r: speedup(bench, proposed, m, r) for r in (1e9, AT, 100e9)} for m in olders}
    by = [f"{factor(g[AT])} that of {n}" for n, g in gains.items()]
    faster = sum(g[AT] > CLEARLY for g in gains.values())
    said = [
        f"At equal ratio and {rate(AT)} the speed of {proposed.label} is {listed(by)}: it is over "
        f"{100 * (CLEARLY - 1):.0f} % faster than {faster or 'none'} of them."
    ]
    found = map_of(study) if study else None
    needed = {n.method: n for n in needed_of(found) if n.kind in ("between", "at most")} if found else {}
    wanted = [
        needed[n] for n in ("M-CSER", "M-CSER block", "QSparse-local-SGD", "EF-SGD top-k", "local SGD") if n in needed
    ]
    if wanted and study:
        margin = f"{100 * (study.records.experiment.margin or 0):.2f}"
        each = [f"{n.method} {n.said()} ({n.interval()})" for n in wanted]
        said.append(f"At equal accuracy, a loss of {margin} points, models needed are (95 %): {listed(each)}.")
    rows = [(Cell(name), *(Cell(factor(value)) for value in by.values())) for name, by in gains.items()]
    heads = (f"{proposed.label} over", rate(1e9), rate(AT), rate(100e9))
    numbers = [
        Number(f"{proposed.label} over {name} at {rate(r)}", v) for name, by in gains.items() for r, v in by.items()
    ]
    numbers += [Number(f"models needed, {n.method}", n.models or 0.0, n.low, n.high) for n in wanted]
    exhibit = table("Over the older methods", "At equal ratio.", heads, rows)
    return Answer(tuple(said), regime(bench, evidence.speed), exhibit, tuple(numbers))


def what_the_headlines_ask(evidence: Evidence) -> Answer:
    """Question 6: rate and compute time at which the published factors would hold."""
    study = evidence.speed
    said, rows, numbers, short = [], [], [], []
    seen: dict[str, str] = {}
    for headline in HEADLINES:
        bench = headline_bench(study, headline) if study else None
        if bench is None:
            continue
        seen[bench.workload.name] = f"{_set_up(bench)} ({bench.basis})"
        parts = []
        for base in _rivals(bench)[:3]:
            asked = [(implied(bench, m, base, headline.target, AT), m) for name in METHODS if (m := bench.method(name))]
            found, method = max(asked, key=lambda pair: pair[0].bits_per_second or 0.0)
            up_to = rate(found.bits_per_second) if found.bits_per_second else "never"
            parts.append(f"{'never' if up_to == 'never' else 'up to ' + up_to} over {_plain(base)}")
            compute = milliseconds(found.compute_seconds) if found.compute_seconds else "never"
            cells = (base.label, amount(method.ratio), up_to, factor(found.at_rate), compute)
            rows.append((Cell(headline.words), *(Cell(text) for text in cells)))
            numbers.append(Number(f"{headline.words} over {base.label}, b/s", found.bits_per_second or 0.0))
        compute = milliseconds(bench.workload.forward_seconds + bench.workload.backward_seconds)
        short.append(f'"{headline.words}" holds {listed(parts)}.')
        said.append(
            f'"{headline.words}" would hold, with {compute} ms of compute a step, {listed(parts)}, '
            "at the best of its ratios."
        )
    if not said:
        return nothing(NO_STUDY)
    where = f"Modelled with encoding and update, from steps of {'; '.join(seen.values())}."
    heads = ("published", "over", "ratio", "holds up to", f"at {rate(AT)}", f"compute at {rate(AT)}, ms, up to")
    exhibit = table("What the published factors ask for", "Modelled.", heads, rows)
    brief = f"Modelled, at the best of its ratios: {' '.join(short)}"
    return Answer(tuple(said), f"{where}{_misses(study)}", exhibit, tuple(numbers), brief=brief)


def does_it_save_money(evidence: Evidence) -> Answer:
    """Question 7: dollars per thousand steps, layout by layout."""
    bench = bench_of(evidence)
    base, proposed = (bench.method("ddp"), bench.method(PROPOSED)) if bench else (None, None)
    machines = rentals(bench) if bench else []
    if bench is None or base is None or proposed is None or not machines:
        return nothing("No prices of the workload's machines, or no study of step times, are at hand.")

    def dollars(method: Method, place: int) -> float:
        machine = machines[place]
        return 1000 * bench.seconds(method, machine.network) / 3600 * machine.dollars_per_hour

    rows, numbers = [], []
    for place, machine in enumerate(machines):
        own, mine = dollars(base, place), dollars(proposed, place)
        rows.append((Cell(machine.head), *(Cell(f"{x:.3f}") for x in (machine.dollars_per_hour, own, mine))))
        numbers += [Number(f"DDP, {machine.head}", own), Number(f"M-CSER, {machine.head}", mine)]
    cheapest = min(
        ((dollars(m, p), m, machine) for p, machine in enumerate(machines) for m in (base, proposed)),
        key=lambda c: c[0],
    )
    where = min(range(len(machines)), key=lambda place: dollars(base, place))
    change = dollars(proposed, where) / dollars(base, where) - 1
    said = (
        f"The cheapest step of the two is {cheapest[1].label}'s on {cheapest[2].head}, {cheapest[0]:.3f} dollars a "
        "thousand; "
        f"overlapped DDP's cheapest is {dollars(base, where):.3f} on {machines[where].head}, where {proposed.label} "
        "changes "
        f"the bill by {signed_percent(change)}.",
    )
    heads = ("machines", "dollars an hour", "DDP, $ per 1,000 steps", f"{proposed.label}, $ per 1,000 steps")
    note = "; ".join(dict.fromkeys(f"{m.name}: {m.source}" for m in machines))
    return Answer(said, regime(bench, evidence.speed), table("Cost", "Modelled.", heads, rows, note), tuple(numbers))


def which_ratio_is_needed(evidence: Evidence) -> Answer:
    """Question 22: the least ratio at which communication is a tenth of a step or less."""
    bench = bench_of(evidence)
    ddp = bench.method("ddp") if bench else None
    if bench is None or ddp is None:
        return nothing(NO_STUDY)
    rows, numbers, large = [], [], []
    work = bench.workload
    for bits in (100e6, 1e9, AT, 25e9, 100e9):
        network = bench.network(bits)
        compute = Compute(work.forward_seconds, work.backward_seconds)
        ratio = needed_ratio(compute, ddp.messages, network) if network else None
        rows.append((Cell(rate(bits)), Cell("none suffices" if ratio is None else amount(ratio))))
        numbers += [] if ratio is None else [Number(f"ratio at {rate(bits)}", ratio)]
        if ratio is None or ratio >= 256:
            large.append(bits)
    at = next((n.value for n in numbers if n.key == f"ratio at {rate(AT)}"), None)
    first = (
        f"Ratios of 256 and more are needed only at {rate(max(large))} and below"
        if large
        else "No ratio of 256 is needed"
    )
    second = (
        f"; at {rate(AT)} a ratio of {amount(at)} brings communication that is sent at every step under a tenth of "
        "the compute"
        if at
        else ""
    )
    found = "Least ratio at which DDP's buckets, so compressed, make a step at most 10 % longer than its compute."
    exhibit = table("Ratio that is needed", found, ("link", "ratio"), rows)
    return Answer((f"{first}{second}.",), regime(bench, evidence.speed), exhibit, tuple(numbers))
