"""Tables of methods that are no all-reduce at every step: what neighbours save, and the family's relatives."""

from __future__ import annotations

from collections.abc import Sequence

from harness.records.timings import Message, Method, Rounds, Timing, ring_bytes
from report.kit.document import Cell, Column, Table
from report.kit.wording import count_of, short
from report.speed.cost_model import Link, Links, Network, collective_seconds, exchange_seconds
from report.speed.relatives import relatives_of
from report.speed.study import Bench, Point, is_near
from report.speed.tables_agreement import AIM
from report.speed.tables_modelled import AT
from report.speed.units import factor, milliseconds, rate

NUM_PARAMETERS = 25_557_032
"""Of ResNet-50."""
NUM_WORKERS = 8
RING: Rounds = ((1, 7),)
ONE_PEER: Rounds = ((1,), (2,), (4,))
LATENCIES = (10e-6, 100e-6, 1e-3)
"""Seconds a hop: of a good network in a rack, of TCP in a data centre, of a link between cities."""
RATES = (100e6, 10e9, 100e9)
RULES = 2.0
"""Latency or bytes are said to rule where they take so many times as long as the other in the all-reduce, or more."""

BESIDE = ("all_reduce", "ddp", "ddp_fp16", "mcser")
"""Timed methods, by name, that the relatives stand beside."""
SHOWN_RATES = (100e6, 1e9, 10e9)


def neighbours_table() -> Table:
    """One ring all-reduce beside one exchange on a ring and one with a single peer, by latency and bandwidth."""
    heads = ("ring all-reduce", "exchange on a ring", "exchange with one peer")
    columns = (
        *(Column(text, "left") for text in ("message", "latency a hop", "bandwidth", "what rules")),
        *(Column(head) for head in heads),
    )
    rows, gains = [], []
    for words, num_bytes in (("a model", 4 * NUM_PARAMETERS), ("1/256 of it", 4 * NUM_PARAMETERS // 256)):
        for alpha in LATENCIES:
            for bits in RATES:
                seconds = neighbour_seconds(num_bytes, alpha, bits)
                gains.append((seconds[0] / seconds[1], seconds[0] / seconds[2]))
                said = (words, f"{milliseconds(alpha)} ms", rate(bits), _rules(num_bytes, alpha, bits))
                rows.append((*(Cell(text) for text in (*said, milliseconds(seconds[0]))), *_beside(seconds)))
    sent = ring_bytes("all_reduce", 4 * NUM_PARAMETERS, NUM_WORKERS) / (4 * NUM_PARAMETERS)
    least, most = min(gain for gain, _ in gains), max(gain for gain, _ in gains)
    least_peer, most_peer = min(gain for _, gain in gains), max(gain for _, gain in gains)
    found = (
        f"A gossip ring saves latency, not bytes: it waits for one hop where an all-reduce waits for "
        f"{2 * (NUM_WORKERS - 1)}, and puts 2 messages on a link where that puts {short(sent)}. So an exchange on a "
        f"ring is {factor(least)} to {factor(most)} as fast as an all-reduce of the same message, and one "
        f"with a single peer {factor(least_peer)} to {factor(most_peer)}."
    )
    notes = (
        f"Modelled, {NUM_WORKERS} workers in machines of their own, ResNet-50's {NUM_PARAMETERS:,} parameters in fp32, "
        "milliseconds; in brackets how many times as fast as the all-reduce. A hop takes its latency and its bytes' "
        f"time. What rules the all-reduce takes {RULES:g} times as long as the other, or more. One exchange is not one "
        "average: after it workers differ, which the accuracy experiments have to judge.",
    )
    return Table("What neighbours save", found, columns, tuple(rows), notes)


def neighbour_seconds(num_bytes: int, alpha: float, bits_per_second: float) -> tuple[float, float, float]:
    """Of a ring all-reduce, an exchange on a ring and one with a single peer, each of messages of so many bytes."""
    links = Links(Link(alpha, 8 / bits_per_second), Link(0.0, 0.0))
    network = Network(NUM_WORKERS, 1, {"all_reduce": links, "exchange": links})
    return (
        collective_seconds(network, "all_reduce", num_bytes),
        exchange_seconds(network, 2 * num_bytes, RING),
        exchange_seconds(network, num_bytes, ONE_PEER),
    )


def _rules(num_bytes: int, alpha: float, bits_per_second: float) -> str:
    latency = 2 * (NUM_WORKERS - 1) * alpha
    sending = ring_bytes("all_reduce", num_bytes, NUM_WORKERS) * 8 / bits_per_second
    return "latency" if latency >= RULES * sending else "bytes" if sending >= RULES * latency else "neither"


def _beside(seconds: Sequence[float]) -> tuple[Cell, ...]:
    return tuple(Cell(f"{milliseconds(each)} ({factor(seconds[0] / each)})") for each in seconds[1:])


def relatives_table(bench: Bench) -> Table:
    """Every relative of the family: what it sends, and its step by the clock with the model's beside it."""
    beside = [method for name in BESIDE if (method := bench.method(name))]
    relatives = relatives_of(bench)
    timings = relatives_timings(bench)
    heads = ["ratio", "on a link, MB a step", "hops a step", *(f"{bench.name_of(timing)}" for timing in timings)]
    others = [bits for bits in SHOWN_RATES if not any(_is_at(timing, bits) for timing in timings)]
    heads += [f"{rate(bits)}, modelled" for bits in others]
    rows = []
    for method in (*beside, *relatives):
        sent = (short(method.ratio), f"{_link_bytes(bench, method) / 1e6:,.3g}", f"{_hops(bench, method):,.3g}")
        clock = [_clock(bench, timing, method) for timing in timings]
        networks = [bench.network(bits) for bits in others]
        times = [milliseconds(bench.network_seconds(method, network)) if network else "–" for network in networks]
        rows.append(tuple(Cell(text) for text in (method.label, *sent, *clock, *times)))
    notes = (
        f"{bench.basis.capitalize()} milliseconds a step, in brackets the modelled ones; without encoding, decoding "
        "and update. Messages of what was not timed are by closed form, and PowerSGD's are its hook's bytes in two "
        "messages. Messages follow the backward pass, but DDP's. A hop of an exchange is taken to cost what a hop of "
        "the swept all-reduce costs, where no exchange was swept.",
    )
    columns = (Column("method", "left"), *(Column(head) for head in heads))
    title = f"{bench.workload.name}: relatives of the family"
    return Table(title, _relatives_found(bench, relatives), columns, tuple(rows), notes)


def relatives_timings(bench: Bench) -> list[Timing]:
    """Those in which any relative was timed, in the order of tables."""
    names = {method.name for method in relatives_of(bench)}
    return [t for t in bench.ordered if any(bench.point(t, name) for name in names)]


def _is_at(timing: Timing, bits_per_second: float) -> bool:
    return timing.fabric.workers_per_machine == 1 and is_near(timing.fabric.stands_for_bits_per_second, bits_per_second)


def _clock(bench: Bench, timing: Timing, method: Method) -> str:
    point = bench.point(timing, method.name)
    if point is not None:
        modelled = f" ({milliseconds(point.predicted)})" if point.predicted is not None else ""
        return f"{milliseconds(point.timed.seconds)}{modelled}"
    predicted = bench.predicted(timing, method)
    return "not timed" if predicted is None else f"({milliseconds(predicted)})"


def relatives_sentence(bench: Bench) -> str:
    """The fastest and the slowest relative by the clock at one rate; "" if none was timed there."""
    timing = bench.timing_at(AT)
    base = bench.point(timing, "ddp") if timing else None
    names = [method.name for method in relatives_of(bench)]
    points = [point for name in names if timing and (point := bench.point(timing, name))]
    if base is None or not points:
        return ""
    fastest, slowest = (pick(points, key=lambda p: p.timed.seconds) for pick in (min, max))
    return (
        f"{bench.workload.name} at {rate(AT)}: of {count_of(len(points), 'relative')} of the family "
        f"{_over(base, fastest)} as fast as DDP in fp32, the most, and {_over(base, slowest)}, the least."
    )


def _over(base: Point, point: Point) -> str:
    return f"{point.method.label} is {factor(base.timed.seconds / point.timed.seconds)}"


def _relatives_found(bench: Bench, relatives: Sequence[Method]) -> str:
    timed = [point for point in bench.points if any(point.method.name == method.name for method in relatives)]
    named = {point.method.name for point in timed}
    text = f"{len(named)} of {len(relatives)} were timed"
    errors = [abs(point.error) for point in timed if point.error is not None]
    if errors:
        within = sum(error <= AIM for error in errors)
        return f"{text}; the modelled step is within {100 * AIM:g} % of the clock's in {within} of {len(errors)} steps."
    network, base = bench.network(AT), bench.method("ddp")
    if network is None or base is None:
        return f"{text}."
    seconds = bench.network_seconds(base, network)
    gains = [(seconds / bench.network_seconds(method, network), method.label) for method in relatives]
    (least, slowest), (most, fastest) = min(gains), max(gains)
    return (
        f"{text}; modelled at {rate(AT)} they are {factor(least)} ({slowest}) to {factor(most)} ({fastest}) as fast as "
        "overlapped DDP in fp32."
    )


def _link_bytes(bench: Bench, method: Method) -> float:
    """That a worker's link carries one way in a step, where each worker has a machine of its own."""
    num_workers = bench.main.fabric.num_workers
    return sum(ring_bytes(m.collective, m.payload_bytes, num_workers) / m.every for m in method.messages)


def _hops(bench: Bench, method: Method) -> float:
    """That a step waits for, on average over its period."""
    return sum(_hops_of(message, bench.main.fabric.num_workers) / message.every for message in method.messages)


def _hops_of(message: Message, num_workers: int) -> int:
    if message.collective == "exchange":
        return 1
    return (2 if message.collective == "all_reduce" else 1) * (num_workers - 1)
