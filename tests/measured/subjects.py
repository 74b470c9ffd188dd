"""What checks of GPUs and benchmarks run: each method on ResNet-50's parameters, and on images
learnt by heart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
    fp16_compress_hook,
)
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    powerSGD_hook,
)
from torch.nn.parallel import DistributedDataParallel

from cser_bench.algorithms import (
    Collectives,
    Compressor,
    DistributedOptimizer,
    ErrorFeedbackState,
    Purpose,
    QuantisedBlocks,
    SoloCollectives,
    TopK,
    error_feedback_hook,
)
from cser_bench.algorithms.core.collectives import Add, share_of
from cser_bench.algorithms.core.compressors import Draw
from cser_bench.algorithms.core.exchange import Sending
from cser_bench.algorithms.core.layout import Layout
from cser_bench.algorithms.registry import methods
from cser_bench.harness.plan.by_traffic import settings_at_traffic
from cser_bench.harness.spec.run import (
    CompressorSettings,
    ModelSpec,
    Precision,
    RunConfig,
)
from cser_bench.harness.timing.session import there_and_back
from cser_bench.harness.timing.workloads import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Problem,
    gradients_of,
    problem_of,
    short_run,
)
from cser_bench.harness.train.build import build_optimizer
from cser_bench.harness.train.method import build_compressor
from cser_bench.harness.train.passes import seconds_to_idle
from cser_bench.harness.workers.attempt import prepare_thread
from cser_bench.harness.workers.process_group import device_groups, joined
from cser_bench.harness.workers.processes import Worker, start_workers
from cser_bench.report.speed.encoding import name_of
from tests.harness.support import BLOCK, settings_of

RATIO = 256
NUM_WORKERS = 8
BLOCKS = {"kind": "block", "ratio": RATIO}
LOCAL_BLOCKS = {
    "compressor": {"kind": "block", "ratio": RATIO // 8},
    "sync_interval": 8,
}
WITHOUT_RATIO: dict[str, dict[str, Any]] = {
    "sgd": {},
    "alone": {},
    "dpsgd": {"topology": "ring", "order": "adapt_then_combine"},
    "powersgd": {"rank": 1},
    "qsr": {"sync_interval": RATIO, "alpha": 0.01},
    "ef_sgd": {"compressor": BLOCKS},
    "ef21_sgdm": {"compressor": BLOCKS},
    "csea": {"error_compressor": BLOCKS},
    "cser_pl": {
        "error_compressor": {"kind": "block", "ratio": 16},
        "reset_interval": 16,
    },
    "qsparse_local_sgd": LOCAL_BLOCKS,
    "sparse_loco": LOCAL_BLOCKS,
}
"""Methods that do not choose settings by it, or not on these models, with what is measured instead: blocks where a
method takes them, as what an encoding takes is no part of an update's time."""
WITHOUT_MOMENTUM = ("cser", "cser_released")
"""The paper's algorithm 2 has none; with it they are M-CSER."""
ENCODED: tuple[dict[str, Any], ...] = (
    *({"kind": "top_k", "ratio": ratio} for ratio in (192, 64, 24, 16)),
    {"kind": "quantised_blocks", "bits": 4},
    {"kind": "block", "ratio": 192},
)
"""Compressors whose encoding is measured: those of tables, and of the scored sessions."""
PASSES = {"sgd": 5, "ef_sgd": 8, "cser_pl": 5, "csea": 5, "mcser": 5, "cser": 3}
"""Vectors of d numbers that a step reads and writes, momentum and gradient among them. Its traffic
limit is their time at the rate that PyTorch's fused step reaches with its own five: x, m and g read,
x and m written. EF-SGD reads x, g, m and e, and writes m and e. It also writes the gradient with the
weight decay in it, and reads it again, since the fused kernel decays what it changes: that is the
error, and the decay is of x. With PyTorch's kernels it cannot be fewer."""
HOOK_COMPRESSORS: dict[str, Compressor] = {
    "error feedback, top-k": TopK(192),
    "error feedback, 4 bits": QuantisedBlocks(4),
}
HOOKS = ("all-reduce", "fp16", "PowerSGD, rank 1", *HOOK_COMPRESSORS)
"""Hooks of DDP that are measured: PyTorch's, and error feedback."""
ONE_BUCKET_MB = 1000
"""More than the gradients take."""
SMALL_SHAPES = ((64, 32), (48,), (3, 3, 16))
T = TypeVar("T")


def _settings() -> dict[str, dict[str, Any]]:
    found = {"ddp": {}, **WITHOUT_RATIO}
    for name in methods():
        with suppress(ValueError):
            method = methods()[name]
            settings = settings_at_traffic(method, 1 / RATIO, NUM_WORKERS)
            found.setdefault(name, settings.table)
    return found


SETTINGS = _settings()
"""As a spec has them."""
RESET_INTERVAL: int = SETTINGS["mcser"]["reset_interval"]


def config_of(algorithm: str) -> RunConfig:
    """A run of eight workers on the Fashion-MNIST network with this algorithm."""
    momentum = 0.0 if algorithm in WITHOUT_MOMENTUM else MOMENTUM
    return short_run(
        problem_of("fashion_mnist"),
        algorithm,
        SETTINGS[algorithm],
        num_workers=8,
        momentum=momentum,
    )


def build(
    algorithm: str, model: nn.Module, collectives: Collectives
) -> DistributedOptimizer:
    """The algorithm on any model."""
    return build_optimizer(config_of(algorithm), model, collectives, num_steps=0)


def skip_to_reset(optimizer: DistributedOptimizer) -> None:
    """Let the next step but one be a reset's or a synchronisation's."""
    settings = SETTINGS[optimizer.name]
    optimizer.num_steps = (
        settings.get("reset_interval", settings.get("sync_interval", 2)) - 2
    )


def random_parameters(
    shapes: Iterable[tuple[int, ...]] | None = None, device: str | torch.device = "cpu"
) -> nn.ParameterList:
    """Small random numbers of these shapes, by default of ResNet-50's 161 tensors, without
    gradients."""
    generator = torch.Generator().manual_seed(1)
    tensors = (
        1e-2 * torch.randn(shape, generator=generator)
        for shape in shapes or gradients_of("resnet50").shapes
    )
    parameters = [nn.Parameter(tensor.to(device)) for tensor in tensors]
    return nn.ParameterList(parameters)


def touch_gradients(parameters: nn.ParameterList) -> None:
    """Write every gradient, as a backward pass does, into the tensor that there is for it or into a
    new one."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.fill_(1e-3)


class Stepper(NamedTuple):
    """An optimiser to be timed: the parameters' gradients are made new before each step, as by a
    backward pass."""

    parameters: nn.ParameterList
    step: Callable[[], object]


def own_stepper(algorithm: str, parameters: nn.ParameterList) -> Stepper:
    """One of the algorithms, for a worker who is alone."""
    optimizer = build(algorithm, parameters, SoloCollectives())
    return Stepper(parameters, optimizer.step)


def torch_stepper(momentum: float, parameters: nn.ParameterList) -> Stepper:
    """PyTorch's own fused optimiser."""
    optimizer = torch.optim.SGD(
        parameters.parameters(),
        LEARNING_RATE,
        momentum,
        0.0,
        WEIGHT_DECAY,
        nesterov=momentum > 0,
        fused=True,
    )
    return Stepper(parameters, optimizer.step)


class Spread(nn.Module):
    """Parameters whose backward pass does nothing but write gradients, one after the other.

    So what is left of its time is what becomes of the gradients.
    """

    def __init__(self, parameters: nn.ParameterList) -> None:
        super().__init__()
        self.parameters_of = parameters

    def forward(self) -> Tensor:
        means = [parameter.mean() for parameter in self.parameters_of]
        return torch.stack(means).sum()


def hook_of(
    name: str, wrapper: DistributedDataParallel
) -> tuple[object, Callable[..., Any]]:
    """A hook's state and the hook: PyTorch's, and error feedback."""
    if name == "all-reduce":
        return None, allreduce_hook
    if name == "fp16":
        return None, fp16_compress_hook
    if name == "PowerSGD, rank 1":
        return PowerSGDState(None, 1, start_powerSGD_iter=2), powerSGD_hook
    return ErrorFeedbackState(wrapper, HOOK_COMPRESSORS[name]), error_feedback_hook


def hook_seconds(
    device: torch.device, shapes: Iterable[tuple[int, ...]] | None, repetitions: int
) -> dict[str, list[float]]:
    """Seconds of both passes in DDP with each hook, in turn, on one of a group's processes.

    All gradients are one bucket: over gloo the all-reduces that PowerSGD's hook has for several may
    come in another order on another worker.
    """
    wrappers = {}
    for name in HOOKS:
        model = Spread(random_parameters(shapes, device))
        wrappers[name] = DistributedDataParallel(model, bucket_cap_mb=ONE_BUCKET_MB)
        wrappers[name].register_comm_hook(*hook_of(name, wrappers[name]))

    def seconds(wrapper: DistributedDataParallel) -> float:
        wrapper.zero_grad()
        # All workers begin at once, so that none's time is a wait for another's turn.
        dist.barrier()
        return seconds_to_idle(lambda: wrapper().backward(), device)

    # Buckets are made anew after the first pass, and PowerSGD compresses from the third on.
    for _, wrapper in there_and_back(list(wrappers.values()), 3):
        seconds(wrapper)
    calls = {name: lambda each=each: seconds(each) for name, each in wrappers.items()}
    return interleave(calls, repetitions)


class AlikeCollectives(Collectives):
    """One of a group whose workers all send what this one sends.

    No message travels, but as much arrives as from a real group, and is decoded.
    """

    def _sum_(self, tensor: Tensor) -> None:
        tensor.mul_(self.world_size)

    def _gather(self, tensor: Tensor) -> Tensor:
        return tensor.expand(self.world_size, *tensor.shape[1:])

    def _reduce_blocks(self, blocks: Tensor, add: Add) -> tuple[Tensor, Tensor]:
        [message] = blocks
        own = share_of(self.own_ranks, len(message), self.world_size)
        share = message[own]
        of_all = share.expand(self.world_size, *share.shape)
        _, rest = add(of_all)
        return message, rest


def encoding_calls(
    shapes: Iterable[tuple[int, ...]] | None, num_workers: int, device: torch.device
) -> dict[str, Callable[[], float]]:
    """What gives the seconds of encoding, decoding and the error's update, by the compressor's name.

    Each is on one vector as long as all parameters. PowerSGD, which has matrices, is its step
    without the one of SGD.
    """
    vector = torch.cat(
        [each.detach().view(-1) for each in random_parameters(shapes, device)]
    )
    error = vector[None].clone()
    parameters = vector[None].clone()
    calls = {
        "ddp_fp16": lambda: seconds_to_idle(lambda: vector.copy_(vector.half()), device)
    }
    for number, table in enumerate(ENCODED):
        compressor = build_compressor("compressor", CompressorSettings(**table))
        sending = Sending(AlikeCollectives(0, num_workers))
        layout = Layout.flat(slice(0, len(vector)))
        draw = Draw(1, number, Purpose.GRADIENT.value)

        def work(
            sending: Sending = sending,
            compressor: Any = compressor,
            layout: Layout = layout,
            draw: Draw = draw,
        ) -> None:
            sent = sending.exchange(error, compressor, layout, draw, Purpose.GRADIENT)
            sent.support.add_(error, sent.own, alpha=-1)
            sent.support.add_(parameters, sent.mean, alpha=-1)

        def encode(work: Callable[[], None] = work) -> float:
            # A vector whose largest are gone is another one, so that each call has the first.
            error.copy_(vector)
            seconds_to_idle(lambda: None, device)
            return seconds_to_idle(work, device)

        calls[name_of(table)] = encode
    plain = own_stepper("sgd", random_parameters(shapes, device))
    low_rank = own_stepper("powersgd", random_parameters(shapes, device))

    def factorise() -> float:
        seconds = []
        for stepper in (plain, low_rank):
            touch_gradients(stepper.parameters)
            seconds_to_idle(lambda: None, device)
            seconds.append(seconds_to_idle(stepper.step, device))
        return seconds[1] - seconds[0]

    powersgd = {"kind": "powersgd", **SETTINGS["powersgd"]}
    calls[name_of(powersgd)] = factorise
    return calls


def interval_seconds(
    steppers: dict[str, Stepper], num_intervals: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of whole reset intervals of each one's steps, which take turns; gradients are not
    timed."""

    def seconds(stepper: Stepper) -> float:
        touch_gradients(stepper.parameters)
        return seconds_to_idle(stepper.step, device)

    calls = {name: lambda each=each: seconds(each) for name, each in steppers.items()}
    starts = range(0, num_intervals * RESET_INTERVAL, RESET_INTERVAL)
    found = interleave(calls, num_intervals * RESET_INTERVAL)
    return {
        name: [sum(own[start : start + RESET_INTERVAL]) for start in starts]
        for name, own in found.items()
    }


def interleave(
    calls: Mapping[str, Callable[[], float]], repetitions: int
) -> dict[str, list[float]]:
    """What each call says in each repetition, there and back again, after a turn that is not
    counted."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number, name in there_and_back(list(calls), 1 + repetitions):
        said = calls[name]()
        if number:
            found[name].append(said)
    return found


@dataclass(frozen=True)
class Scale:
    """How large the checks are.

    Attributes:
        model: trained by every method, on random images of CIFAR's shape.
        batch_size: images of a worker.
        num_steps: of a training.
        shapes: of the parameters whose updates are timed; None for ResNet-50's.
        num_intervals: how many reset intervals are timed.
    """

    model: ModelSpec
    batch_size: int
    num_steps: int
    shapes: tuple[tuple[int, ...], ...] | None
    num_intervals: int


FULL = Scale(
    ModelSpec(name="wide_resnet", options={"depth": 40, "width": 8}), 16, 40, None, 5
)
TINY = Scale(
    ModelSpec(name="wide_resnet", options={"depth": 10, "width": 1}),
    4,
    12,
    SMALL_SHAPES,
    2,
)


def learning(
    algorithm: str, scale: Scale, precision: Precision = "fp32", **own: Any
) -> RunConfig:
    """A run of two workers with this algorithm, with so little compression and such short intervals
    that a few steps show whether it learns; `own` are settings besides those that it requires."""
    # A dampened momentum steps 1 - 0.9 times as far.
    rate = 0.05 if methods()[algorithm].nesterov else 0.5
    problem = Problem("cifar100", scale.model, scale.batch_size)
    table = settings_of(algorithm, BLOCK) | own
    return short_run(
        problem,
        algorithm,
        table,
        num_workers=2,
        learning_rate=rate,
        precision=precision,
    )


def on_processes(
    work: Callable[..., T], device: torch.device, *arguments: object, most: int = 2
) -> list[T]:
    """What `work(device, *arguments)` gives on each of a group's processes: as many as there are
    GPUs, at most `most`.

    On a CPU there are two, over gloo.
    """
    num_devices = torch.cuda.device_count() if device.type == "cuda" else 2
    world_size = min(most, num_devices)
    groups = device_groups(device.type, world_size, torch.cuda.device_count())
    devices = groups[0]
    with start_workers(
        _join_and, [(work, own, *arguments) for own in devices]
    ) as workers:
        return workers.hear_all()


def _join_and(
    worker: Worker, work: Callable[..., T], device: str, *arguments: object
) -> T:
    prepare_thread(device)
    with joined(device, 120.0, worker.init_method, worker.rank, worker.world_size):
        return work(torch.device(device), *arguments)
