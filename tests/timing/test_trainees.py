"""Models that take a workload's passes, and what methods are said to send meanwhile."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from algorithms import DistributedOptimizer, algorithms
from algorithms.core import traffic
from harness.plan.footprint import RESNET50_FORWARD_FLOPS
from harness.records.timings import Message, Method
from harness.timing import workloads
from harness.timing.methods import METHODS
from harness.timing.turn import Turn, messages_of
from harness.timing.workloads import Trainee, gradients_of, gradients_of_model, real_trainee, waiting_trainee, workload
from tests.timing.conftest import GRADIENTS, NUMEL, WORKLOAD, setting_of

CPU = torch.device("cpu")


def test_times_are_published_scaled_or_measured_and_say_so() -> None:
    resnet, wide = workload("resnet50_v100", "cpu"), workload("wide_resnet_40_8_v100", "cpu")
    assert resnet.forward_seconds + resnet.backward_seconds == pytest.approx(32 / 1200)
    assert resnet.backward_seconds == pytest.approx(2 * resnet.forward_seconds)
    assert (resnet.num_parameters, resnet.batch_size, wide.num_parameters) == (25_557_032, 32, 35_794_516)
    assert "NVIDIA DeepLearningExamples" in resnet.source and "assumption" in resnet.source
    # 16 images of 32 x 32 at about 5.1 G multiply-adds (each of two operations), in fp32.
    expected = 16 * 2 * 5.1e9 / (RESNET50_FORWARD_FLOPS * 367)
    assert wide.forward_seconds + wide.backward_seconds == pytest.approx(expected, rel=0.05)
    assert "modelled" in wide.source
    small = workload("fashion_mnist", "cpu")
    assert (small.num_parameters, small.batch_size) == (25_786, 16)
    assert min(small.forward_seconds, small.backward_seconds) > 0 and "measured here" in small.source
    assert "on random images, fp32; forward to backward as 1 to 2" in small.source


def test_gradients_are_in_order_and_modules_have_their_share_of_the_arithmetic() -> None:
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
    assert gradients.order == (1, 0, 3, 4, 2), "of a linear layer the bias is only added"
    # Multiply-adds: 6 x 4 and 4 x 2.
    assert gradients.done == pytest.approx([0.25, 0.25, 1.0, 0.25, 0.25])


def test_resnet50_has_all_its_parameters_in_the_order_of_their_gradients() -> None:
    gradients = gradients_of("resnet50_v100")
    assert sorted(gradients.order) == list(range(161))
    done = [gradients.done[number] for number in gradients.order]
    assert done == sorted(done) and done[-1] == pytest.approx(1.0)
    assert gradients.order[-1] == 0 and set(gradients.order[:2]) == {159, 160}, "the first convolution, the last layer"


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
    trainee = waiting_trainee(GRADIENTS, WORKLOAD.model_copy(update={"forward_seconds": 1.0, "backward_seconds": 2.0}))
    trainee.slow_down(dilation)
    return trainee


def test_gradients_come_as_scheduled_and_the_pass_is_noted_as_it_goes(clock: Clock) -> None:
    trainee, seen = waiting(), list[float]()
    for parameter in trainee.module.parameters():
        parameter.register_hook(lambda _: seen.append(round(trainee.share_done, 6)))
    trainee.passes()
    # The forward pass's 10 s, and shares 0.8, 0, 0.2 of the backward pass's 20; without arithmetic nothing sleeps.
    assert clock.slept == pytest.approx([10.0 + 16.0, 4.0])
    assert seen == [0.8, 0.8, 0.8, 1.0]
    assert trainee.began == 100.0 and trainee.last_gradient == pytest.approx(130.0)


def test_in_all_it_waits_what_is_scheduled_whatever_else_takes_time(clock: Clock) -> None:
    trainee = waiting()

    def hook(_: object) -> None:
        clock.now += 0.5  # as DDP's copies to its buckets do

    for parameter in trainee.module.parameters():
        parameter.register_hook(hook)
    started = clock.now
    trainee.passes()
    assert trainee.scheduled_seconds == 30.0
    # The first layer's gradient comes last, and nothing after it could hide its hook.
    assert clock.now - started == pytest.approx(30.0 + 0.5)


def test_without_a_dilation_it_does_not_wait_and_gradients_are_the_same_in_every_step(clock: Clock) -> None:
    trainee, gradients = waiting(0.0), []
    parameters = list(trainee.module.parameters())
    assert [tuple(parameter.shape) for parameter in parameters] == list(GRADIENTS.shapes)
    for _ in range(2):
        trainee.module.zero_grad()
        trainee.passes()
        gradients.append([parameter.grad.clone() for parameter in parameters if parameter.grad is not None])
    assert clock.slept == [] and len(gradients[0]) == len(parameters)
    assert all(torch.equal(a, b) and a.isfinite().all() and a.any() for a, b in zip(*gradients, strict=True))


def test_passes_in_half_precision_have_gradients_that_nothing_has_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU's autocast, which stands for the GPU's."""
    gradients = []
    for precision in ("fp32", "fp16"):
        monkeypatch.setattr(workloads, "computes_in", lambda name, device, precision=precision: precision)
        made = real_trainee("fashion_mnist", gradients_of("fashion_mnist"), CPU, 0)
        made.passes()
        gradients.append([parameter.grad for parameter in made.module.parameters()])
    for exact, half in zip(*gradients, strict=True):
        assert exact is not None and half is not None and half.dtype == torch.float32
        assert not torch.equal(exact, half) and (exact - half).norm() < 0.1 * exact.norm()


# Messages


OWN = [name for name, timed in METHODS.items() if timed.algorithm in algorithms()]
NOT_OF_256 = {"all_reduce": 1, "mcser_32": 32, "mcser_1024": 1024, "dpsgd": 1, "dpsgd_ring": 0.5, "powersgd": None}
NOT_OF_256 |= {"two_stage_8": 32 / (8 + 32 / 256)}


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
