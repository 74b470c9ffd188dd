"""What methods are said to send: against the closed forms of the counted bits, the parameters' bytes, and by rank."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch.distributed as dist

from algorithms import DistributedOptimizer, algorithms
from harness.records.timings import Message, Method
from harness.timing.method_messages import early_begins, messages_of
from harness.timing.methods import METHODS
from harness.timing.trainees import workload
from harness.timing.turn import Turn
from harness.timing.workloads import gradients_of
from tests.timing.conftest import GRADIENTS, NUMEL, setting_of

OWN = [name for name, timed in METHODS.items() if timed.algorithm in algorithms()]
NOT_OF_256 = {"all_reduce": 1, "mcser_32": 32, "mcser_1024": 1024, "dpsgd": 1, "dpsgd_ring": 0.5, "powersgd": None}


def described(name: str, **changed: object) -> Method:
    """A method of the table with its messages, on the small layers."""
    messages = messages_of(Turn(setting_of(**changed), METHODS[name]))
    return METHODS[name].model_copy(update={"messages": messages})


@pytest.fixture(scope="module")
def methods(alone: None) -> dict[str, Method]:
    return {name: described(name) for name in METHODS}


@pytest.mark.parametrize("name", OWN)
def test_messages_of_a_period_are_what_the_closed_form_says(name: str, methods: dict[str, Method], alone: None) -> None:
    turn = Turn(setting_of(), METHODS[name])
    assert isinstance(turn.optimizer, DistributedOptimizer)
    period, messages = METHODS[name].period, methods[name].messages
    # Of the second period: in its first step a method may send more.
    once, twice = (turn.optimizer.expected_traffic(count * period) for count in (1, 2))
    sent = sum(8 * message.payload_bytes * period // message.every for message in messages)
    assert sent == twice.training_bits - once.training_bits
    num_collectives = [sum(entry.collectives for entry in each.training().values()) for each in (once, twice)]
    assert sum(period // message.every for message in messages) == num_collectives[1] - num_collectives[0]
    if ratio := NOT_OF_256.get(name, 256):  # What the name says; blocks of few parameters are rounded up.
        assert methods[name].ratio(NUMEL) == pytest.approx(ratio, rel=0.05)


def test_ddp_sends_the_parameters_and_powersgd_what_is_no_matrix_and_two_factors(methods: dict[str, Method]) -> None:
    for name, bytes_each in (("ddp", 4), ("ddp_fp16", 2)):
        assert sum(message.payload_bytes for message in methods[name].messages) == bytes_each * NUMEL
        assert methods[name].ratio(NUMEL) == 4 / bytes_each
    matrices = [shape for shape in GRADIENTS.shapes if len(shape) > 1]
    rest = sum(shape[0] for shape in GRADIENTS.shapes if len(shape) == 1)
    for rank in (1, 2, 4):
        expected = [rest, sum(rank * rows for rows, _ in matrices), sum(rank * columns for _, columns in matrices)]
        assert [message.payload_bytes for message in methods[f"powersgd_{rank}"].messages] == [4 * n for n in expected]


def test_a_bucket_is_ready_when_its_last_gradient_is(monkeypatch: pytest.MonkeyPatch, alone: None) -> None:
    """Buckets are full at 16 kB: in the small layers with the last's 48 kB, then with the others' 26.4 kB."""
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 16 << 10)
    messages = described("ddp").messages
    assert [message.payload_bytes for message in messages] == [4 * 12000, 4 * 6600]
    assert [message.ready for message in messages] == pytest.approx([0.8, 1.0])


@pytest.mark.parametrize("name", ["ddp", "powersgd_1", "mcser"])
def test_a_trainee_that_waits_has_the_real_models_buckets_and_messages(
    name: str, monkeypatch: pytest.MonkeyPatch, alone: None
) -> None:
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 1 << 10)
    common = {"workload": workload("fashion_mnist", "cpu"), "gradients": gradients_of("fashion_mnist")}
    waiting, real = (described(name, trains=trains, **common).messages for trains in (False, True))
    assert [message.payload_bytes for message in waiting] == [message.payload_bytes for message in real]
    assert [message.ready for message in waiting] == pytest.approx([message.ready for message in real], abs=1e-3)
    assert name == "mcser" or len({message.ready for message in waiting}) > 1


def test_overlapped_messages_may_begin_when_their_blocks_layers_are_done(methods: dict[str, Method]) -> None:
    """Of equal blocks of the flat vector (6000, 300 and 300, 12000 numbers), drawn uniformly."""
    blocks = range(0, NUMEL, -(-NUMEL // 256))
    # A block that touches the first layer's 6000 numbers is ready at 1.0; the others, with layers "norm" and "last",
    # at 0.8.
    expected = sum(1.0 if start < 6000 else 0.8 for start in blocks) / len(blocks)
    for name in ("ef_sgd_overlap", "csea_overlap"):
        [message] = methods[name].messages[:1]
        assert message.ready == pytest.approx(expected, abs=0.02)
        assert {round(draw, 9) for draw in message.ready_draws} == {0.8, 1.0}
    assert [message.ready for message in methods["ef_sgd"].messages] == [1.0]
    assert all(message.ready < 1.0 for message in methods["mcser_overlap"].messages)


def test_an_early_message_begins_after_those_before_it() -> None:
    """Though its own gradient is there first: messages go in the order in which a backward pass comes to tensors."""
    late, early = (SimpleNamespace(tensors=(number,), payload_bits=8 * number) for number in (2, 1))
    assert early_begins([early, late], [1.0, 0.1, 0.4]) == {16: 0.4, 8: 0.4}  # type: ignore[list-item]


@pytest.mark.parametrize("name", OWN)
def test_one_of_the_two_kinds_of_steps_synchronises_and_each_period_has_blocks_of_its_own(
    name: str, alone: None
) -> None:
    turn = Turn(setting_of(num_workers=1), METHODS[name])
    optimizer, period = turn.optimizer, METHODS[name].period
    assert isinstance(optimizer, DistributedOptimizer)
    steps = []
    for number in range(3):
        for synchronises in [False, True] if period > 1 else [True]:
            turn.go_to(number, synchronises)
            steps.append(optimizer.num_steps + 1)
            assert (steps[-1] % period == 0) == synchronises
    assert len(set(steps)) == len(steps)


def test_what_neighbours_are_sent_and_who_they_are(methods: dict[str, Method]) -> None:
    """On eight workers: a ring's two neighbours in each step, or the one at distance 1, 2 and 4 in turn."""
    ring, peers = ((1, 7),), ((1,), (2,), (4,))
    half = 4 * -(-NUMEL // 512)
    sent = {"dpsgd": 4 * NUMEL, "dpsgd_ring": 2 * 4 * NUMEL, "choco_sgd": 2 * half, "deep_squeeze": 2 * half}
    for name, payload_bytes in sent.items():
        rounds = peers if name == "dpsgd" else ring
        expected = Message(collective="exchange", payload_bytes=payload_bytes, every=1, ready=1.0, rounds=rounds)
        assert methods[name].messages == [expected]
