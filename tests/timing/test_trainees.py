"""Models that take a workload's passes, and what methods are said to send meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _world

from cser_bench.algorithms import DistributedOptimizer, algorithms
from cser_bench.algorithms.core import traffic
from cser_bench.harness.plan.forecast import RESNET50_FORWARD_FLOPS
from cser_bench.harness.records.timings import Message, TimedMethod
from cser_bench.harness.timing import workloads
from cser_bench.harness.timing.methods import METHODS
from cser_bench.harness.timing.turn import messages_of
from cser_bench.harness.timing.worker import TimingWorker
from cser_bench.harness.timing.workloads import (
    Trainee,
    gradients_of,
    gradients_of_model,
    workload,
)
from tests.timing.conftest import GRADIENTS, NUMEL, WORKLOAD, turn_of

CPU = torch.device("cpu")


def test_times_are_published_scaled_or_measured_and_say_so() -> None:
    resnet = workload("resnet50_v100", "cpu")
    wide = workload("wide_resnet_40_8_v100", "cpu")
    passes = resnet.forward_seconds + resnet.backward_seconds
    assert passes == pytest.approx(32 / 1200)
    assert resnet.backward_seconds == pytest.approx(2 * resnet.forward_seconds)
    assert (resnet.num_parameters, resnet.batch_size, wide.num_parameters) == (
        25_557_032,
        32,
        35_794_516,
    )
    assert "NVIDIA DeepLearningExamples" in resnet.source
    # 16 images of 32 x 32 at about 5.1 G multiply-adds (each of two operations), in fp32.
    expected = 16 * 2 * 5.1e9 / (RESNET50_FORWARD_FLOPS * 367)
    assert wide.forward_seconds + wide.backward_seconds == pytest.approx(
        expected, rel=0.05
    )
    assert "modelled" in wide.source
    small = workload("fashion_mnist", "cpu")
    assert small.num_parameters == 25_786
    assert small.batch_size == 16
    assert min(small.forward_seconds, small.backward_seconds) > 0
    assert "measured here" in small.source


def test_gradients_are_in_order_and_modules_have_their_share_of_the_arithmetic() -> (
    None
):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late = nn.Linear(4, 2)
            self.early = nn.Linear(6, 4, bias=False)
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.late(self.norm(self.early(x)))
            return out

    with torch.device("meta"):
        model = Model()
    gradients = gradients_of_model(model, (2, 6))
    assert list(gradients.done) == [1, 0, 3, 4, 2], (
        "of a linear layer the bias is only added"
    )
    # Multiply-adds: 4 x 2 for the late layer's weights and its input, then 6 x 4 for the early
    # one's weights.
    expected = {1: 0.4, 0: 0.4, 3: 0.4, 4: 0.4, 2: 1.0}
    assert gradients.done == pytest.approx(expected)


class Clock:
    """Time that passes by sleeping, and by what is added to it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (workloads, traffic):
        monkeypatch.setattr(module, "time", made)
    return made


def waiting(dilation: float = 10.0) -> Trainee:
    schedule = WORKLOAD.model_copy(
        update={"forward_seconds": 1.0, "backward_seconds": 2.0}
    )
    trainee = Trainee("fashion_mnist", GRADIENTS, CPU, schedule)
    trainee.dilation = dilation
    return trainee


def test_gradients_come_as_scheduled_whatever_else_takes_time_and_the_pass_is_noted_as_it_goes(
    clock: Clock,
) -> None:
    trainee = waiting()
    seen = list[float]()

    def hook(_: object) -> None:
        seen.append(round(trainee.share_done, 6))
        clock.now += 0.5  # as DDP's copies to its buckets do

    for parameter in trainee.module.parameters():
        parameter.register_hook(hook)
    trainee.passes()
    # The forward pass's 10 s, and shares 0.8, 0, 0.2 of the backward pass's 20, which hide three of
    # the four hooks.
    expected = [10.0 + 16.0, 4.0 - 1.5]
    assert clock.slept == pytest.approx(expected)
    assert seen == [0.8, 0.8, 0.8, 1.0]
    assert trainee.scheduled_seconds == 30.0
    assert (trainee.began, trainee.last_gradient, clock.now) == pytest.approx(
        (100.0, 130.0, 130.5)
    )
    for each in trainee.module.parameters():
        assert each.grad is not None and each.grad.any()


# Messages


OWN = [name for name, timed in METHODS.items() if timed.algorithm in algorithms()]
NOT_OF_256 = {
    "all_reduce": 1,
    "mcser_32": 32,
    "mcser_1024": 1024,
    "dpsgd": 1,
    "dpsgd_ring": 0.5,
    "powersgd": None,
}
NOT_OF_256 |= {"two_stage_8": 32 / (8 + 32 / 256)}


def described(name: str, **changed: Any) -> TimedMethod:
    """A method of the table with its messages, on the small layers."""
    messages = messages_of(turn_of(METHODS[name], **changed))
    return METHODS[name].model_copy(update={"messages": messages})


@pytest.fixture(scope="module")
def methods(alone: None) -> dict[str, TimedMethod]:
    return {name: described(name) for name in METHODS}


@pytest.mark.parametrize("name", OWN)
def test_messages_of_a_period_are_what_the_closed_form_says(
    name: str, methods: dict[str, TimedMethod], alone: None
) -> None:
    turn = turn_of(METHODS[name])
    assert isinstance(turn.optimizer, DistributedOptimizer)
    period = METHODS[name].period
    messages = methods[name].messages
    # Bits of the second period: in its first step a method may send more.
    expected_traffic = turn.optimizer.expected_traffic
    once = expected_traffic(period)
    twice = expected_traffic(2 * period)
    sent = sum(
        8 * message.payload_bytes * period // message.every for message in messages
    )
    assert sent == twice.training_bits - once.training_bits
    num_collectives = [
        sum(entry.collectives for entry in each.training().values())
        for each in (once, twice)
    ]
    assert (
        sum(period // message.every for message in messages)
        == num_collectives[1] - num_collectives[0]
    )
    if ratio := NOT_OF_256.get(
        name, 256
    ):  # What the name says; blocks of few parameters are rounded up.
        found = methods[name].payload_reduction(NUMEL)
        assert found == pytest.approx(ratio, rel=0.05)


def test_a_bucket_is_ready_when_its_last_gradient_is(
    monkeypatch: pytest.MonkeyPatch, alone: None
) -> None:
    """Buckets are full at 16 kB: in the small layers with the last's 48 kB, then with the others'
    26.4 kB."""
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 16 << 10)
    messages = described("ddp").messages
    sizes = [message.payload_bytes for message in messages]
    ready = [message.ready for message in messages]
    assert sizes == [4 * 12000, 4 * 6600]
    assert ready == pytest.approx([0.8, 1.0])


@pytest.mark.parametrize("name", ["ddp", "powersgd_1", "mcser"])
def test_a_trainee_that_waits_has_the_real_models_buckets_and_messages(
    name: str, monkeypatch: pytest.MonkeyPatch, alone: None
) -> None:
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 1 << 10)
    schedules = (workload("fashion_mnist", "cpu"), None)
    trainees = [
        Trainee("fashion_mnist", gradients_of("fashion_mnist"), CPU, each)
        for each in schedules
    ]
    waits, real = (described(name, trainee=trainee).messages for trainee in trainees)
    assert [message.payload_bytes for message in waits] == [
        message.payload_bytes for message in real
    ]
    assert [message.ready for message in waits] == pytest.approx(
        [message.ready for message in real], abs=1e-3
    )
    moments = {message.ready for message in waits}
    assert name == "mcser" or len(moments) > 1


def test_overlapped_messages_may_begin_when_their_blocks_layers_are_done(
    methods: dict[str, TimedMethod],
) -> None:
    """Equal blocks of the flat vector (6000, 300 and 300, 12000 numbers) are drawn uniformly."""
    blocks = range(0, NUMEL, -(-NUMEL // 256))
    # A block that touches the first layer's 6000 numbers is ready at 1.0; the others, with layers
    # "norm" and "last", at 0.8.
    ready_at = [1.0 if start < 6000 else 0.8 for start in blocks]
    expected = sum(ready_at) / len(blocks)
    for name in ("ef_sgd_overlap", "csea_overlap"):
        [message] = methods[name].messages[:1]
        assert message.ready == pytest.approx(expected, abs=0.02)
        draws = {round(draw, 9) for draw in message.ready_draws}
        assert draws == {0.8, 1.0}
    ready = [message.ready for message in methods["ef_sgd"].messages]
    assert ready == [1.0]
    for message in methods["mcser_overlap"].messages:
        assert message.ready < 1.0


@pytest.mark.parametrize("name", OWN)
def test_one_of_the_two_kinds_of_steps_synchronises_and_each_period_has_blocks_of_its_own(
    name: str, alone: None
) -> None:
    turn = turn_of(METHODS[name], num_workers=1)
    optimizer = turn.optimizer
    period = METHODS[name].period
    assert isinstance(optimizer, DistributedOptimizer)
    steps = []
    for number in range(3):
        for synchronises in [False, True] if period > 1 else [True]:
            turn.go_to(number, synchronises)
            steps.append(optimizer.num_steps + 1)
            assert (steps[-1] % period == 0) == synchronises
    assert len(set(steps)) == len(steps)


def test_what_neighbours_are_sent_and_who_they_are(
    methods: dict[str, TimedMethod],
) -> None:
    """On eight workers: a ring's two neighbours in each step, or the one at distance 1, 2 and 4 in
    turn."""
    ring = ((1, 7),)
    peers = ((1,), (2,), (4,))
    half = 4 * -(-NUMEL // 512)
    sent = {
        "dpsgd": 4 * NUMEL,
        "dpsgd_ring": 2 * 4 * NUMEL,
        "choco_sgd": 2 * half,
        "deep_squeeze": 2 * half,
    }
    for name, payload_bytes in sent.items():
        rounds = peers if name == "dpsgd" else ring
        expected = Message(
            collective="exchange",
            payload_bytes=payload_bytes,
            every=1,
            ready=1.0,
            rounds=rounds,
        )
        assert methods[name].messages == [expected]


def test_a_method_is_timed_with_its_local_step(alone: None) -> None:
    changed = {"local_step": "adamw", "momentum": 0.0}
    ddp, own = (
        turn_of(METHODS[name].model_copy(update=changed)).optimizer
        for name in ("ddp", "local_sgd")
    )
    assert isinstance(ddp, torch.optim.AdamW)
    assert isinstance(own, DistributedOptimizer)
    assert own.local_step == "adamw"


def test_a_turn_that_is_over_keeps_no_process_group(alone: None) -> None:
    """With NCCL each is a communicator, which holds a GPU's memory."""
    worker = TimingWorker(CPU)
    overlapping = METHODS["mcser_overlap"]
    worker.begin(WORKLOAD, GRADIENTS, False, 1, [overlapping])
    before = len(_world.pg_map)
    for method in (overlapping, overlapping, METHODS["mcser"]):
        worker.build(method)
        assert len(_world.pg_map) == before + method.overlap
    worker.begin(WORKLOAD, GRADIENTS, False, 1, [overlapping])
    num_made = len(_world.pg_map) - before
    three = [overlapping, overlapping, overlapping]
    worker.begin(WORKLOAD, GRADIENTS, False, 1, three)
    assert len(_world.pg_map) - before == 2 * num_made, "a session's own groups alone"
