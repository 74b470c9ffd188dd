"""Tables of methods that are no all-reduce at every step: what neighbours save, and the family's relatives."""

from __future__ import annotations

from collections.abc import Sequence

from harness.records.timings import Message, Method, Rounds, ring_bytes
from report.kit.document import Cell, Column, Table
from report.kit.wording import short
from report.speed.cost_model import Link, Links, Network, collective_seconds, exchange_seconds
from report.speed.relatives import relatives_of
from report.speed.study import Bench
from report.speed.tables_modelled import AT, MachineLayout, layout_network
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
    """Every relative of the family: what it sends, what the clock said where it was timed, and what the model says."""
    beside = [method for name in BESIDE if (method := bench.method(name))]
    relatives = relatives_of(bench)
    two = MachineLayout(2, bench.main.fabric.num_workers // 2, "ring")
    heads = ("ratio", "on a link, MB a step", "hops a step", f"clock, {rate(AT)}")
    modelled = [*(f"{rate(bits)}, modelled" for bits in SHOWN_RATES), f"2 x {two.workers}, {rate(AT)}, modelled"]
    columns = (Column("method", "left"), *(Column(head) for head in (*heads, *modelled)))
    networks = [*(bench.network(bits) for bits in SHOWN_RATES), layout_network(bench, two)]
    rows = []
    for method in (*beside, *relatives):
        sent = (short(method.ratio), f"{_link_bytes(bench, method) / 1e6:,.3g}", f"{_hops(bench, method):,.3g}")
        times = [milliseconds(bench.network_seconds(method, network)) if network else "–" for network in networks]
        rows.append(tuple(Cell(text) for text in (method.label, *sent, _clock(bench, method), *times)))
    notes = (
        "Milliseconds a step without encoding, decoding and update. Not timed: make speedups times it; until then "
        "its messages are by closed form, and PowerSGD's are its hook's bytes in two messages. Messages follow the "
        "backward pass, but DDP's. A hop of an exchange is taken to cost what a hop of the swept all-reduce costs, "
        "where no exchange was swept.",
    )
    title = f"{bench.workload.name}: relatives of the family"
    return Table(title, _relatives_found(bench, relatives), columns, tuple(rows), notes)


def _clock(bench: Bench, method: Method) -> str:
    layout = (bench.main.fabric.num_machines, bench.main.fabric.workers_per_machine)
    for point in bench.points:
        fabric = point.timing.fabric
        here = (fabric.num_machines, fabric.workers_per_machine) == layout
        if here and point.method.name == method.name and _near(fabric.stands_for_bits_per_second, AT):
            return milliseconds(point.timed.seconds)
    return "not timed"


def _near(bits: float | None, wanted: float) -> bool:
    return bits is not None and abs(bits / wanted - 1) < 0.01


def _relatives_found(bench: Bench, relatives: Sequence[Method]) -> str:
    timed = [method for method in relatives if bench.method(method.name)]
    network, base = bench.network(AT), bench.method("ddp")
    if network is None or base is None:
        return f"{len(timed)} of {len(relatives)} were timed."
    seconds = bench.network_seconds(base, network)
    gains = [(seconds / bench.network_seconds(method, network), method.label) for method in relatives]
    (least, slowest), (most, fastest) = min(gains), max(gains)
    return (
        f"{len(timed)} of {len(relatives)} were timed; modelled at {rate(AT)} they are {factor(least)} ({slowest}) to "
        f"{factor(most)} ({fastest}) as fast as overlapped DDP in fp32."
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
