"""Tests of what methods are said to send: against the ledger's closed forms, against the parameters' bytes, by rank."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from algorithms import DistributedOptimizer, SoloCollectives, algorithms
from algorithms.registry import baselines
from harness.records.timings import Message
from harness.timing import build
from harness.timing.ddp_buckets import Groups
from harness.timing.messages import Described, described
from harness.timing.methods import METHODS
from harness.timing.passes import calibrate
from harness.timing.study import JOBS, RELATIVES
from harness.timing.workloads import layers_of
from tests.timing.made_up import LAYERS, NUMEL, context

OWN = [name for name, timed in METHODS.items() if timed.algorithm in algorithms()]
NOT_OF_256 = {"all_reduce": 1, "mcser_32": 32, "mcser_1024": 1024, "dpsgd": 1, "dpsgd_ring": 0.5}


@pytest.fixture(scope="module")
def methods(alone: Groups) -> dict[str, Described]:
    """All of the table on the small layers, by name."""
    return {name: described(context(alone), timed, 3, False) for name, timed in METHODS.items()}


def ratio_of(found: Described) -> float:
    return 4 * NUMEL / sum(message.payload_bytes / message.every for message in found.messages)


@pytest.mark.parametrize("name", OWN)
def test_messages_of_a_period_are_what_the_ledgers_closed_form_says(
    name: str, methods: dict[str, Described], alone: Groups
) -> None:
    turn = context(alone).turn(METHODS[name])
    assert isinstance(turn.method.optimizer, DistributedOptimizer)
    period = METHODS[name].period
    # Of the second period: in its first step a method may send more.
    once, twice = (turn.method.optimizer.expected_traffic(count * period) for count in (1, 2))
    messages = methods[name].messages
    sent = sum(8 * message.payload_bytes * period // message.every for message in messages)
    assert sent == twice.training_bits - once.training_bits
    num_collectives = [sum(entry.collectives for entry in each.training().values()) for each in (once, twice)]
    assert sum(period // message.every for message in messages) == num_collectives[1] - num_collectives[0]


@pytest.mark.parametrize(
    ("name", "ratio"),
    [(name, NOT_OF_256.get(name, 256)) for name in OWN if name != "powersgd"],
)
def test_overall_ratios_are_what_names_say(name: str, ratio: float, methods: dict[str, Described]) -> None:
    assert ratio_of(methods[name]) == pytest.approx(ratio, rel=0.05)  # Blocks of few parameters are rounded up.


@pytest.mark.parametrize(("name", "bytes_each"), [("ddp", 4), ("ddp_no_overlap", 4), ("ddp_fp16", 2)])
def test_ddps_buckets_are_the_parameters(name: str, bytes_each: int, methods: dict[str, Described]) -> None:
    assert sum(message.payload_bytes for message in methods[name].messages) == bytes_each * NUMEL
    assert ratio_of(methods[name]) == 4 / bytes_each


@pytest.mark.parametrize("name", [name for name, timed in METHODS.items() if timed.algorithm in baselines()])
def test_a_baseline_sends_what_its_closed_form_says(name: str, methods: dict[str, Described]) -> None:
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in LAYERS.shapes]
    optimizer = baselines()[METHODS[name].algorithm](
        parameters, lr=0.1, collectives=SoloCollectives(), **METHODS[name].settings
    )
    bits = [optimizer.expected_traffic(num_steps).training_bits for num_steps in (10, 11)]
    assert sum(8 * message.payload_bytes for message in methods[name].messages) == bits[1] - bits[0]


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_powersgd_sends_what_is_no_matrix_and_two_factors(rank: int, methods: dict[str, Described]) -> None:
    matrices = [shape for shape in LAYERS.shapes if len(shape) > 1]
    rest = sum(shape[0] for shape in LAYERS.shapes if len(shape) == 1)
    expected = [rest, sum(rank * rows for rows, _ in matrices), sum(rank * columns for _, columns in matrices)]
    assert [message.payload_bytes for message in methods[f"powersgd_{rank}"].messages] == [4 * n for n in expected]


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP's buckets are full at 16 kB: in the small layers with the last's 48 kB, then with the others' 26.4 kB."""
    monkeypatch.setattr(build, "BUCKET_CAP", 16 / 1024)


def messages_of(name: str, groups: Groups, **changed: object) -> list[Message]:
    return described(context(groups, **changed), METHODS[name], 3, False).messages


def test_a_bucket_is_ready_when_its_last_gradient_is(small_buckets: None, alone: Groups) -> None:
    messages = messages_of("ddp", alone)
    assert [(message.payload_bytes, round(message.ready, 6)) for message in messages] == [
        (4 * 12000, 0.8),
        (4 * 6600, 1.0),
    ]
    held_back = messages_of("ddp_no_overlap", alone)
    assert [message.payload_bytes for message in held_back] == [4 * 12000, 4 * 6600]
    assert [message.ready for message in held_back] == [1.0, 1.0]


@pytest.mark.parametrize("name", ["ddp", "powersgd_1", "mcser"])
def test_a_trainee_that_waits_has_the_real_models_buckets_and_messages(
    name: str, monkeypatch: pytest.MonkeyPatch, alone: Groups
) -> None:
    monkeypatch.setattr(build, "BUCKET_CAP", 1 / 1024)
    layers = layers_of("fashion_mnist")
    common = {"workload": calibrate("fashion_mnist", "cpu"), "layers": layers}
    waiting = messages_of(name, alone, **common)
    real = messages_of(name, alone, trains=True, **common)
    assert [message.payload_bytes for message in waiting] == [message.payload_bytes for message in real]
    assert [message.ready for message in waiting] == pytest.approx([message.ready for message in real], abs=1e-3)
    assert name == "mcser" or len({message.ready for message in waiting}) > 1


def test_overlapped_messages_may_begin_when_their_blocks_layers_are_done(methods: dict[str, Described]) -> None:
    """Of equal blocks of the flat vector (6000, 300 and 300, 12000 numbers), drawn uniformly."""
    ratio = 256
    size = -(-NUMEL // ratio)
    blocks = range(0, NUMEL, size)
    # A block that touches the first layer's 6000 numbers is ready at 1.0; the others, with layers "norm" and "last",
    # at 0.8.
    expected = sum(1.0 if start < 6000 else 0.8 for start in blocks) / len(blocks)
    for name in ("ef_sgd_overlap", "csea_overlap"):
        [message] = methods[name].messages[:1]
        assert message.ready == pytest.approx(expected, abs=0.02)
        assert {round(draw, 9) for draw in message.ready_draws} == {0.8, 1.0}
    assert [message.ready for message in methods["ef_sgd"].messages] == [1.0]
    assert all(message.ready < 1.0 for message in methods["mcser_overlap"].messages)


@pytest.mark.parametrize("name", OWN)
def test_one_of_the_two_kinds_of_steps_synchronises_and_each_period_has_blocks_of_its_own(
    name: str, alone: Groups
) -> None:
    turn = context(alone, num_workers=1).turn(METHODS[name])
    optimizer, period = turn.method.optimizer, METHODS[name].period
    assert isinstance(optimizer, DistributedOptimizer)
    steps = []
    for number in range(3):
        for synchronises in [False, True] if period > 1 else [True]:
            turn.method.go_to(number, synchronises)
            steps.append(optimizer.num_steps + 1)
            assert (steps[-1] % period == 0) == synchronises
    assert len(set(steps)) == len(steps)


def test_what_neighbours_are_sent_and_who_they_are(alone: Groups) -> None:
    """On eight workers: a ring's two neighbours in each step, or the one at distance 1, 2 and 4 in turn."""
    ring, peers = ((1, 7),), ((1,), (2,), (4,))
    half = 4 * -(-NUMEL // 512)
    expected = {
        "dpsgd": (4 * NUMEL, peers),
        "dpsgd_ring": (2 * 4 * NUMEL, ring),
        "choco_sgd": (2 * half, ring),
        "deep_squeeze": (2 * half, ring),
    }
    for name, (payload_bytes, rounds) in expected.items():
        [message] = messages_of(name, alone)
        assert (message.collective, message.payload_bytes, message.every) == ("exchange", payload_bytes, 1)
        assert message.rounds == rounds


def test_all_relatives_are_timed_on_two_layouts_and_where_latency_rules() -> None:
    for name in RELATIVES:
        assert {(j.num_machines, j.workers_per_machine) for j in JOBS if name in j.methods} >= {
            (8, 1),
            (2, 4),
        }
    rates = [j.bits_per_second for j in JOBS if j.workload == "fashion_mnist" and "dpsgd" in j.methods]
    assert max(rates) == 10e9
