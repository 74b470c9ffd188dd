"""What each method sends, counted by hand: a closed form says it beforehand, and the ledger after a
training."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cser_bench.algorithms import Purpose, Traffic
from cser_bench.algorithms.core.compressors import Gathered
from cser_bench.algorithms.core.traffic import Entry
from tests.algorithms.following import rises_and_falls
from tests.algorithms.problems import (
    ADAMW,
    COMPRESSORS,
    MESSAGE_BITS,
    NUM_PARAMETERS,
    make_model,
    make_optimizer,
    named_compressors,
    own_settings,
    stacked,
)

COUNTS: dict[str, dict[str, int]] = {
    "ef_sgd": {"gradient": 13},
    "qsparse_local_sgd": {"model": 3},
    "sparse_loco": {"model": 3},
    "cser": {"gradient": 13, "error": 3},
    "mcser": {"gradient": 13, "error": 3},
    "csea": {"error": 13},
    "cser_pl": {"error": 3},
    "cser_released": {"gradient": 10, "error": 3},
    "mcser_released": {"gradient": 10, "error": 3},
}
"""Messages that 13 steps take, with an interval of 4, by purpose."""
NEIGHBOURS = {"ring": 2, "exponential": 3, "one_peer": 1, "complete": 7}
"""Neighbours of each of eight workers, by topology."""
MOMENTS = {"sync_interval": 2, "first_moment_interval": 6, "second_moment_interval": 12}


def message(key: str, count: int) -> Entry:
    """So many messages of a compressor that all workers take."""
    bits = count * MESSAGE_BITS[key]
    return Entry(
        bits,
        count if bits else 0,
        bits if isinstance(COMPRESSORS[key], Gathered) else 0,
    )


def model(numbers: int, num_syncs: int) -> dict[str, Entry]:
    return {"model": Entry(32 * numbers, num_syncs)}


def cases() -> Iterator[tuple[str, dict[str, Any], int, int, dict[str, Entry]]]:
    """A method with settings of its own, so many workers and steps, and what is sent by purpose."""
    whole = message("identity", 1)
    for key in MESSAGE_BITS:
        for name, counts in COUNTS.items():
            if key in named_compressors(name, COMPRESSORS):
                released = (
                    {"skip_gradient_at_reset": True} if "released" in name else {}
                )
                own = own_settings(name, [COMPRESSORS[key]], 4, **released)
                yield (
                    name,
                    own,
                    2,
                    13,
                    {purpose: message(key, count) for purpose, count in counts.items()},
                )
        later = message(key, 12)  # the first message of EF21 is whole
        total = Entry(
            whole.bits + later.bits, 1 + later.collectives, later.gathered_bits
        )
        yield "ef21_sgdm", {"compressor": COMPRESSORS[key]}, 2, 13, {"gradient": total}
        for kind, count in NEIGHBOURS.items():
            bits = 5 * count * MESSAGE_BITS[key]
            sent = {"model": Entry(bits, 5 if bits else 0, 0, bits)}
            for name in ("dpsgd", "choco_sgd", "deep_squeeze"):
                if not (name == "dpsgd" and key != "identity") and not (
                    name == "choco_sgd" and kind == "one_peer"
                ):
                    yield (
                        name,
                        own_settings(name, [COMPRESSORS[key]], 4, topology=kind),
                        8,
                        5,
                        sent,
                    )
    for name in ("dpsgd", "choco_sgd", "deep_squeeze"):
        yield (
            name,
            own_settings(name, [COMPRESSORS["block"]], 4),
            1,
            3,
            {},
        )  # one worker has nobody to send to
    yield "ef21_sgdm", {"compressor": COMPRESSORS["block"]}, 2, 1, {"gradient": whole}
    yield (
        "sgd_accumulate",
        {"accumulation_steps": 4},
        2,
        13,
        {"gradient": message("identity", 3)},
    )
    for (interval, fragments), num_steps, numbers, num_syncs in (
        ((4, 1), 13, 3 * 51, 3),
        ((6, 3), 13, 2 * 51, 6),
        ((6, 3), 5, 17 + 17, 2),
        ((4, 4), 3, 12 + 13 + 13, 3),  # fragments end at 12, 25, 38, 51
        ((4, 4), 13, 3 * 51 + 12, 13),
        ((102, 51), 5, 2, 2),
    ):
        own = {"sync_interval": interval, "num_fragments": fragments}
        yield "diloco", own, 2, num_steps, model(numbers, num_syncs)
        yield "streaming_diloco", own, 2, num_steps, model(numbers, num_syncs)
    yield (
        "noloco",
        {"sync_interval": 4, "group_size": 3},
        6,
        13,
        {"model": Entry(32 * 2 * 3 * 51, 3, 0, 32 * 2 * 3 * 51)},
    )
    for rank, numbers in (
        (1, 10 + 9 + 9),
        (3, 30 + 27 + 9),
        (9, 40 + 27 + 9),
    ):  # of 6 x 4 and 3 x 6; 9 are in none
        yield (
            "powersgd",
            {"rank": rank},
            2,
            5,
            {"gradient": Entry(5 * 32 * numbers, 10)},
        )
    yield "local_sgd", MOMENTS, 2, 13, model((6 + 2 + 1) * NUM_PARAMETERS, 6 + 2 + 1)


@pytest.mark.parametrize(
    ("name", "own", "num_workers", "num_steps", "expected"), cases()
)
def test_what_is_sent_is_what_a_hand_counts(
    name: str, own: Any, num_workers: int, num_steps: int, expected: dict[str, Entry]
) -> None:
    optimizer, _ = stacked(
        name, own, num_workers, num_steps, **(ADAMW if own is MOMENTS else {})
    )
    entries = {
        purpose: Entry() for purpose in ("gradient", "error", "model")
    } | expected
    assert (
        optimizer.traffic.training()
        == entries
        == optimizer.expected_traffic(num_steps).training()
    )
    assert optimizer.expected_traffic(0) == Traffic()


AVERAGED_AT = [2, 4, 6, 8, 10, 12, 14, 17, 20, 24, 29, 36, 48]
"""Five rounds begin at rising rates; then (0.15 / rate)^2 is 2.5, 2.8, 3.04, 3.5, 4.1, 5.2, 7.2,
12.8."""


def test_with_a_schedule_it_is_known_before_when_qsr_averages() -> None:
    own = {"sync_interval": 2, "alpha": 0.15}
    optimizer = make_optimizer("qsr", make_model(), own)
    assert optimizer.expected_traffic(50)["model"].collectives == 25, (
        "with none, at the rate that is"
    )
    optimizer.schedule = rises_and_falls
    for step in range(51):
        assert optimizer.expected_traffic(step)["model"].collectives == sum(
            each <= step for each in AVERAGED_AT
        )
    averaged = [step for step in range(1, 51) if optimizer.agree_after(step)]
    assert averaged == AVERAGED_AT


def test_a_logger_gets_plain_numbers_with_their_units() -> None:
    traffic = Traffic()
    traffic.add(Purpose.GRADIENT, 320, collectives=2)
    traffic.add(Purpose.MODEL, 64)
    traffic.add(Purpose.CONTROL, 8)
    numbers = traffic.as_dict()
    for number in numbers.values():
        assert type(number) is int
    assert json.loads(json.dumps(numbers)) == numbers
    sent = {name: number for name, number in numbers.items() if number}
    assert sent == {
        "gradient_bits": 320,
        "gradient_collectives": 2,
        "model_bits": 64,
        "model_collectives": 1,
        "control_bits": 8,
        "control_collectives": 1,
        "training_bits": 384,
        "training_collectives": 3,
    }
    assert numbers.keys() == Traffic().as_dict().keys(), (
        "a logger's columns stay the same"
    )
