"""The cost model against times worked out by hand; all in milliseconds, with 1 ms a hop and 1 ms a
kilobyte."""

from __future__ import annotations

from typing import get_args

import pytest

from cser_bench.harness.records.timings import Collective, Message
from cser_bench.report.speed.cost_model import (
    Algorithm,
    Compute,
    Link,
    Links,
    Network,
    collective_seconds,
    period_seconds,
    step_seconds,
)

BETWEEN = Link(1e-3, 1e-6)
INSIDE = Link(0.1e-3, 0.1e-6)
COMPUTE = Compute(10e-3, 30e-3)


def _network(
    machines: int, workers: int, algorithm: Algorithm = "ring", inside: Link = INSIDE
) -> Network:
    links = Links(BETWEEN, inside)
    return Network(
        machines, workers, dict.fromkeys(get_args(Collective), links), algorithm
    )


def _message(
    num_bytes: int, ready: float, every: int = 1, collective: Collective = "all_reduce"
) -> Message:
    return Message(
        collective=collective, payload_bytes=num_bytes, every=every, ready=ready
    )


@pytest.mark.parametrize(
    ("network", "collective", "milliseconds"),
    [
        (_network(8, 1), "all_reduce", 28.0),  # 2 x 7 hops of 1 kB: 14 (1 + 1)
        (_network(8, 1), "all_gather", 63.0),  # 7 hops of 8 kB: 7 (1 + 8)
        # The slow link between sets the pace of all 14 hops
        (_network(2, 4), "all_reduce", 28.0),
        (
            _network(2, 4, inside=Link(2e-3, 3e-6)),
            "all_reduce",
            70.0,
        ),  # or the one inside: 14 (2 + 3)
        (_network(1, 8), "all_reduce", 2.8),  # inside alone: 14 (0.1 + 0.1)
        # Nothing inside: the ring
        (_network(8, 1, "hierarchical"), "all_reduce", 28.0),
        # Chain of 3 hops and 8 kB inside, 2 (0.3 + 0.8); between two machines 2 hops of 4 kB, 2 (1
        # + 4).
        (_network(2, 4, "hierarchical"), "all_reduce", 12.2),
        # Gather 3 (0.1 + 0.8); between, four workers' 8 kB, 1 (1 + 32); all 64 kB on, 0.3 + 6.4.
        (_network(2, 4, "hierarchical"), "all_gather", 42.4),
        (_network(1, 1), "all_reduce", 0.0),
        # 2 x 7 messages of 1 kB, as in a ring
        (_network(8, 1, "hierarchical"), "two_stages", 28.0),
        (_network(1, 8), "two_stages", 2.8),
        # Four workers send 1 kB to each of the four of the other machine, twice: 2 x 4 (1 + 4).
        (_network(2, 4, "hierarchical"), "two_stages", 40.0),
        (
            _network(2, 4, inside=Link(50e-3, 0.1e-6)),
            "two_stages",
            300.6,
        ),  # or inside: 2 x 3 (50 + 0.1)
    ],
)
def test_a_collective_of_eight_kilobytes(
    network: Network, collective: Collective, milliseconds: float
) -> None:
    assert collective_seconds(network, collective, 8000) == pytest.approx(
        1e-3 * milliseconds, rel=1e-12
    )


BUCKETS = [_message(8000, 1 / 3), _message(8000, 2 / 3), _message(8000, 1.0)]
"""Ready at 20, 30 and 40 ms."""
DRAWN = _message(8000, 2 / 3).model_copy(update={"ready_draws": [1 / 3, 1.0]})
"""Ready at 20 or at 40 ms, as is drawn."""


@pytest.mark.parametrize(
    ("messages", "network", "milliseconds"),
    [
        (
            BUCKETS,
            _network(8, 1),
            104.0,
        ),  # 28 ms each queue behind each other: 20 to 48, 48 to 76, 76 to 104
        (BUCKETS[::-1], _network(8, 1), 104.0),
        (
            BUCKETS,
            _network(1, 8),
            42.8,
        ),  # 2.8 ms each wait to be ready: 20 to 22.8, 30 to 32.8, 40 to 42.8
        (BUCKETS[:1], _network(1, 8), 40.0),  # sent early enough to be hidden
        (
            [_message(8000, 1.0)] * 3,
            _network(8, 1),
            124.0,
        ),  # without overlap all of it shows: 40 + 3 x 28
        # Drawn blocks cost what their draws do on average: done at 48 and at 68; where sending
        # takes 2.8 ms these are hidden in the one case and not in the other, (40 + 42.8) / 2, where
        # the mean would hide them.
        ([DRAWN], _network(8, 1), 58.0),
        ([DRAWN], _network(1, 8), 41.4),
        (
            [BUCKETS[0], DRAWN],
            _network(1, 8),
            41.4,
        ),  # what is always ready at 20 ms is through before
        (
            [DRAWN, BUCKETS[2]],
            _network(1, 8),
            44.2,
        ),  # what follows queues behind each draw: (40 + 2.8 + 40 + 5.6) / 2
    ],
)
def test_a_step(messages: list[Message], network: Network, milliseconds: float) -> None:
    assert step_seconds(COMPUTE, messages, network) == pytest.approx(
        1e-3 * milliseconds
    )


def test_encoding_comes_on_top() -> None:
    passes = Compute(10e-3, 30e-3, 5e-3)
    seconds = step_seconds(passes, BUCKETS[2:] * 3, _network(8, 1))
    assert seconds == pytest.approx(129e-3)


def test_a_period_has_one_step_that_sends_what_is_not_sent_in_each() -> None:
    # Three steps of 40 + 28, one of 40 + 28 + 63: (3 x 68 + 131) / 4.
    messages = [
        _message(8000, 1.0),
        _message(8000, 1.0, every=4, collective="all_gather"),
    ]
    assert period_seconds(COMPUTE, messages, 4, _network(8, 1)) == pytest.approx(
        83.75e-3
    )


RING = ((1, 7),)
PEERS = ((1,), (2,), (4,))


@pytest.mark.parametrize(
    ("network", "payload_bytes", "rounds", "milliseconds"),
    [
        (
            _network(8, 1),
            16000,
            RING,
            17.0,
        ),  # two messages of 8 kB at once: 1 + 16, whatever the number of workers
        (_network(8, 1), 8000, PEERS, 9.0),  # one, of whatever distance: 1 + 8
        (
            _network(2, 4),
            16000,
            RING,
            17.0,
        ),  # two edges of the ring leave a machine, one message each
        (_network(1, 8), 16000, RING, 1.7),  # all of it inside: 0.1 + 1.6
        # At distance 1 one of a machine's four messages leaves it, at 2 two, at 4 all: 1 + 8, 1 +
        # 16, 1 + 32.
        (_network(2, 4), 8000, PEERS, 59 / 3),
        # Hardly anything leaves: a link inside then sets the pace, 2 + 3 x 8 for one message.
        (_network(2, 4, inside=Link(2e-3, 3e-6)), 8000, ((1,),), 26.0),
    ],
)
def test_an_exchange_with_neighbours(
    network: Network,
    payload_bytes: int,
    rounds: tuple[tuple[int, ...], ...],
    milliseconds: float,
) -> None:
    seconds = collective_seconds(network, "exchange", payload_bytes, rounds)
    assert seconds == pytest.approx(1e-3 * milliseconds, rel=1e-12)
    message = _message(payload_bytes, 1.0, collective="exchange").model_copy(
        update={"rounds": rounds}
    )
    assert step_seconds(COMPUTE, [message], network) == pytest.approx(
        40e-3 + 1e-3 * milliseconds, rel=1e-12
    )


def test_a_published_measurement_is_met() -> None:
    """DiLoCo over shaped links, in a public study of 2026: the share of the time in which each of
    four nodes computes.

    One point solves the compute of a step, the model's one unknown; a ring of 30.8 M parameters
    overlaps nothing.
    """
    published = {
        1e9: {1: 0.0174, 8: 0.1235, 32: 0.3601, 128: 0.7152},
        5e9: {1: 0.0776, 8: 0.4024, 32: 0.681, 128: 0.87},
    }
    links = {bits: Links(Link(0.0, 8 / bits), INSIDE) for bits in published}
    sending = {
        bits: collective_seconds(
            Network(4, 1, {"all_reduce": each}), "all_reduce", 4 * 30_800_000
        )
        for bits, each in links.items()
    }
    compute = 0.0174 / (1 - 0.0174) * sending[1e9]
    for bits, shares in published.items():
        for interval, share in shares.items():
            assert interval * compute / (
                interval * compute + sending[bits]
            ) == pytest.approx(share, rel=0.1)
