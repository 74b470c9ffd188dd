"""What a gossip ring saves, by the clock: the waiting of an all-reduce's many hops, and none of its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from harness.records.timings import Timing, ring_bytes
from report.kit.document import Cell, Column, Table
from report.speed.fitting import network_on, sped_up
from report.speed.study import Bench, Point, SpeedStudy
from report.speed.units import factor, milliseconds

PAIRS = (("a model", "all_reduce", "dpsgd_ring", "dpsgd"), ("1/256 of a model", "csea", "choco_sgd", None))
"""What a step sends, and by name the methods that send it: in an all-reduce, on a ring, and to one peer."""


@dataclass(frozen=True)
class Gossip:
    """A timing of both: an all-reduce's communication, and the exchanges' of as many bytes, by clock and model."""

    bench: Bench
    timing: Timing
    words: str
    summed: Point
    ring: Point
    peer: Point | None

    @property
    def gain(self) -> float:
        """How many times as fast the ring's exchange is as the all-reduce."""
        return self.summed.communication / self.ring.communication

    @property
    def latency_over_bytes(self) -> float | None:
        """Of the all-reduce, by the fitted model; None without a sweep."""
        network = network_on(self.timing.fabric, self.bench.fits)
        if network is None:
            return None
        link = sped_up(network, self.timing.fabric.dilation).links["all_reduce"].between
        workers, payload = network.num_workers, sum(message.payload_bytes for message in self.summed.method.messages)
        return 2 * (workers - 1) * link.alpha / (ring_bytes("all_reduce", payload, workers) * link.beta)

    @property
    def rules(self) -> str:
        """What the all-reduce mostly waits for."""
        share = self.latency_over_bytes
        return "not swept" if share is None else "latency" if share > 1 else "bytes"


def gossips(study: SpeedStudy) -> list[Gossip]:
    """Every timing that has both, workload by workload."""
    found = []
    for bench in study.benches:
        for words, summed_name, ring_name, peer_name in PAIRS:
            for timing in bench.ordered:
                summed, ring = bench.point(timing, summed_name), bench.point(timing, ring_name)
                if summed and ring and summed.communicates and ring.communicates:
                    peer = bench.point(timing, peer_name) if peer_name else None
                    found.append(Gossip(bench, timing, words, summed, ring, peer))
    return found


def gossip_sentence(study: SpeedStudy) -> str:
    """The network where latency rules most beside the one where bytes do; "" where either was not timed."""
    found = gossips(study)
    quick = max((g for g in found if g.rules == "latency"), key=lambda g: g.latency_over_bytes or 0.0, default=None)
    sent = min((g for g in found if g.rules == "bytes"), key=lambda g: g.latency_over_bytes or 0.0, default=None)
    if quick is None or sent is None:
        return ""
    says = "saves latency, not bytes" if quick.gain > 1 >= sent.gain else "does not do here as the model says"
    return (
        f"A gossip ring {says}: its exchange is {factor(quick.gain)} as fast as an all-reduce of as many numbers where "
        f"latency rules ({_where(quick)}), and {factor(sent.gain)} where bytes do ({_where(sent)})."
    )


def _where(gossip: Gossip) -> str:
    return f"{gossip.words}, {gossip.bench.workload.name}, {gossip.bench.name_of(gossip.timing)}"


def gossip_table(study: SpeedStudy) -> Table:
    """Communication of an all-reduce, of an exchange on a ring and of one with a peer, network by network."""
    heads = ("latency over bytes", "all-reduce, ms", "on a ring, ms", "it is", "modelled", "with one peer, ms", "it is")
    columns = (
        *(Column(head, "left") for head in ("workload", "network", "sent", "what rules")),
        *(Column(head) for head in heads),
        Column("modelled"),
    )
    rows = []
    for gossip in gossips(study):
        share = gossip.latency_over_bytes
        texts = (
            gossip.bench.workload.name,
            gossip.bench.name_of(gossip.timing),
            gossip.words,
            gossip.rules,
            "–" if share is None else f"{share:.2g}",
            milliseconds(gossip.summed.communication),
            *_beside(gossip.summed, gossip.ring),
            *_beside(gossip.summed, gossip.peer),
        )
        rows.append(tuple(Cell(text) for text in texts))
    found = gossip_sentence(study) or "No two networks were timed of which latency rules one, and bytes the other."
    notes = (
        "Emulated or measured milliseconds of a step in which nothing is computed; how many times as fast as the "
        "all-reduce, by the clock and modelled. A model: SGD's all-reduce beside D-PSGD; 1/256: CSEA's beside "
        "CHOCO-SGD, which sends 1/512 to each of two. Latency over bytes: of the all-reduce, by the fitted model; "
        f"the longer of the two rules.{_reached(study)} One exchange is not one average: after it workers differ.",
    )
    return Table("What neighbours save, by the clock", found, columns, tuple(rows), notes)


def _reached(study: SpeedStudy) -> str:
    """How much of a link the swept exchanges reach, and all-reduces."""
    shares = {
        name: [min(fit.efficiency, 1.0) for fit in study.fits if fit.collective == name and fit.efficiency is not None]
        for name in ("exchange", "all_reduce")
    }
    if not all(shares.values()):
        return ""
    said = {name: f"{100 * median(each):.0f} %" for name, each in shares.items()}
    return (
        f" In the median sweep a ring's exchange reaches {said['exchange']} of a link, and an all-reduce "
        f"{said['all_reduce']}: messages from point to point take longer here than their bytes need."
    )


def _beside(summed: Point, exchanged: Point | None) -> tuple[str, str, str]:
    if exchanged is None or not exchanged.communicates:
        return "–", "–", "–"
    own, base = exchanged.predicted_communication, summed.predicted_communication
    modelled = factor(base / own) if base and own else "–"
    return milliseconds(exchanged.communication), factor(summed.communication / exchanged.communication), modelled
