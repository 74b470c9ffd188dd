"""How a step is split, on steps made up by hand; and what is seen of a worker's collectives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms import ProcessGroupCollectives, Purpose
from algorithms.core.topology import Topology
from harness.timing.timed_step import RankStep, parts_of, recorded
from harness.workers.process_group import joined
from harness.workers.processes import Worker, start_workers

INFINITE = math.inf


def step(
    ended: float, collectives: list[tuple[float, float]], scheduled: float = INFINITE, **changed: float
) -> RankStep:
    """Begins at 0, its passes from 1 to 10."""
    own = {("world", number): interval for number, interval in enumerate(collectives)}
    return replace(RankStep(0.0, 1.0, 10.0, ended, own, scheduled), **changed)


@pytest.mark.parametrize(
    ("ended", "collectives", "scheduled", "compute", "codec", "transfer"),
    [
        # 1 before the passes, 9 of them, 2 to encode, 5 to send, 3 to update.
        (20.0, [(12.0, 17.0)], INFINITE, 9.0, 6.0, 5.0),
        # What is hidden behind the backward pass costs nothing.
        (13.0, [(3.0, 8.0), (9.0, 12.0)], INFINITE, 9.0, 2.0, 2.0),
        # Collectives at once are counted once.
        (20.0, [(10.0, 15.0), (12.0, 18.0), (11.0, 13.0)], INFINITE, 9.0, 3.0, 8.0),
        # Where compute is scheduled its delay is codec.
        (12.0, [(10.0, 12.0)], 6.0, 6.0, 1.0 + 3.0, 2.0),
    ],
)
def test_a_workers_step_is_split(
    ended: float,
    collectives: list[tuple[float, float]],
    scheduled: float,
    compute: float,
    codec: float,
    transfer: float,
) -> None:
    parts = parts_of([step(ended, collectives, scheduled)], True)
    assert (parts.total, parts.compute, parts.codec, parts.transfer) == (ended, compute, codec, transfer)
    assert parts.waiting == 0.0


def test_a_worker_waits_until_the_last_has_come() -> None:
    early, late = step(20.0, [(11.0, 18.0)]), step(20.0, [(15.0, 18.0)], last_gradient=15.0)
    parts = parts_of([early, late], True)
    assert parts.waiting == (4.0 + 0.0) / 2 and parts.transfer == 3.0
    assert parts.compute == (9.0 + 14.0) / 2
    parts = parts_of([early, late], False)
    assert parts.waiting == 0.0 and parts.transfer == (7.0 + 3.0) / 2, "without a common clock it is part of transfer"


def test_where_compute_is_scheduled_waiting_for_anothers_codec_is_codec() -> None:
    quick, slow = step(20.0, [(11.0, 18.0)], scheduled=9.0), step(20.0, [(15.0, 18.0)], scheduled=9.0)
    parts = parts_of([quick, slow], True)
    assert parts.waiting == 0.0 and parts.codec == 1.0 + 5.0 + 2.0 and parts.transfer == 3.0


# Other tests let this process flush denormal numbers.
times = st.floats(0, 10, allow_subnormal=False)


@settings(deadline=None)  # How long an example takes is the machine's affair.
@given(st.lists(st.tuples(times, times, times, times, times, times), min_size=1, max_size=4), st.booleans())
def test_parts_add_up_to_the_mean_workers_step(rows: list[tuple[float, ...]], scheduled: bool) -> None:
    workers = []
    for before, passes, gap, first, pause, second in rows:
        last = before + passes
        begun = last + gap
        own = {("a", 0): (begun, begun + first), ("a", 1): (begun + first + pause, begun + first + pause + second)}
        ended = begun + first + pause + second
        workers.append(RankStep(0.0, before, last, ended, own, 3.0 if scheduled else INFINITE))
    parts = parts_of(workers, True)
    total = parts.compute + parts.codec + parts.waiting + parts.transfer
    assert total == pytest.approx(sum(worker.ended for worker in workers) / len(workers))
    assert parts.total == max(worker.ended for worker in workers)
    assert min(parts.compute, parts.codec, parts.waiting) >= -1e-9


def test_every_collective_of_a_worker_is_seen_once_with_its_payload() -> None:
    """Means of 16-bit numbers too, which go by two collectives of other kinds and send as much as an all-reduce."""
    expected = [
        ("all_reduce", 4000, 0, True),
        ("all_reduce", 2000, 1, True),
        ("all_gather", 1000, 2, True),
        ("exchange", 4000, 3, True),
    ]
    with start_workers(_talk, [()] * 2) as workers:
        for seen in workers.hear_all():
            assert seen == expected


def _talk(worker: Worker) -> list[tuple[str, int, int, bool]]:
    with joined("cpu", 60.0, worker.init_method, worker.rank, worker.world_size):
        collectives, numbers, purpose = ProcessGroupCollectives(), torch.ones(1, 1000), Purpose.GRADIENT
        [ring] = Topology("ring").rounds(2)
        with recorded(lambda: 0.5, torch.device("cpu")) as seen:
            collectives.all_reduce_mean_(numbers, purpose)
            collectives.all_reduce_mean_(numbers.half(), purpose)
            collectives.all_gather(numbers.byte(), purpose)
            collectives.exchange_with_neighbours(numbers, ring, purpose)
        return [
            (each.collective, each.payload_bytes, each.key[1], each.ended is not None and each.ended >= each.began)
            for each in seen
        ]
