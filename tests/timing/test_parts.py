"""Tests of how a step is split, on steps made up by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.timing.parts import RankStep, parts_of

INFINITE = math.inf


def step(
    ended: float, collectives: list[tuple[float, float]], scheduled: float = INFINITE, **changed: float
) -> RankStep:
    """Begins at 0, its passes from 1 to 10."""
    own = {("world", number): interval for number, interval in enumerate(collectives)}
    return replace(RankStep(0.0, 1.0, 10.0, ended, own, scheduled, "here"), **changed)


def test_what_is_neither_compute_nor_on_its_way_is_codec() -> None:
    # 1 before the passes, 9 of them, 2 to encode, 5 to send, 3 to update.
    parts = parts_of([step(20.0, [(12.0, 17.0)])])
    assert (parts.total, parts.compute, parts.codec, parts.waiting, parts.transfer) == (20.0, 9.0, 6.0, 0.0, 5.0)


def test_what_is_hidden_behind_the_backward_pass_costs_nothing() -> None:
    parts = parts_of([step(13.0, [(3.0, 8.0), (9.0, 12.0)])])
    assert parts.transfer == 2.0 and parts.codec == 2.0


def test_collectives_at_once_are_counted_once() -> None:
    parts = parts_of([step(20.0, [(10.0, 15.0), (12.0, 18.0), (11.0, 13.0)])])
    assert parts.transfer == 8.0 and parts.codec == 3.0


def test_a_worker_waits_until_the_last_has_come() -> None:
    early, late = step(20.0, [(11.0, 18.0)]), step(20.0, [(15.0, 18.0)], last_gradient=15.0)
    parts = parts_of([early, late])
    assert parts.waiting == (4.0 + 0.0) / 2 and parts.transfer == 3.0
    assert parts.compute == (9.0 + 14.0) / 2


def test_without_a_common_clock_waiting_is_part_of_transfer() -> None:
    early, late = step(20.0, [(11.0, 18.0)]), replace(step(20.0, [(15.0, 18.0)]), clock="there")
    for workers in ([early, late], [replace(early, clock=None), replace(early, clock=None)]):
        assert parts_of(workers).waiting is None
    assert parts_of([early, late]).transfer == (7.0 + 3.0) / 2


def test_where_compute_is_scheduled_its_delay_is_codec() -> None:
    parts = parts_of([step(12.0, [(10.0, 12.0)], scheduled=6.0)])
    assert parts.compute == 6.0 and parts.codec == 1.0 + 3.0 and parts.transfer == 2.0


def test_where_compute_is_scheduled_waiting_for_anothers_codec_is_codec() -> None:
    quick, slow = step(20.0, [(11.0, 18.0)], scheduled=9.0), step(20.0, [(15.0, 18.0)], scheduled=9.0)
    parts = parts_of([quick, slow])
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
        workers.append(RankStep(0.0, before, last, ended, own, 3.0 if scheduled else INFINITE, "here"))
    parts = parts_of(workers)
    assert parts.waiting is not None
    total = parts.compute + parts.codec + parts.waiting + parts.transfer
    assert total == pytest.approx(sum(worker.ended for worker in workers) / len(workers))
    assert parts.total == max(worker.ended for worker in workers)
    assert min(parts.compute, parts.codec, parts.waiting) >= -1e-9
