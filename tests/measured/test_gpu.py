"""What experiments rely on on a GPU, tried and measured; on a CPU the same checks, tiny, so that
they are known to run.

`make gpu-check` runs them on a GPU at full size and ends in one table.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cser_bench.algorithms import (
    Collectives,
    ErrorFeedbackState,
    ProcessGroupCollectives,
    Purpose,
    SoloCollectives,
    StackedCollectives,
    algorithms,
)
from cser_bench.algorithms.core.compressors import Draw
from cser_bench.algorithms.core.exchange import Sending
from cser_bench.algorithms.core.layout import Layout
from cser_bench.algorithms.core.topology import rounds_of
from cser_bench.algorithms.registry import baselines
from cser_bench.harness.plan.forecast import dry_steps
from cser_bench.harness.plan.plan import make_plan
from cser_bench.harness.records.store import VERSION, write_record
from cser_bench.harness.records.timings import EncodingTimes
from cser_bench.harness.spec.run import CompressorSettings, Precision, RunConfig
from cser_bench.harness.spec.spec_file import find_spec, load_spec
from cser_bench.harness.tasks.augment import CroppedSamples
from cser_bench.harness.timing.workloads import Problem, short_run
from cser_bench.harness.train.build import format_of, trainable
from cser_bench.harness.train.clock import Clock
from cser_bench.harness.train.method import build_compressor
from cser_bench.harness.train.passes import DryTraining, seconds_to_idle
from cser_bench.report.speed.encoding import TIMES, name_of
from tests.measured import subjects
from tests.measured.subjects import TINY, Scale, learning, on_processes

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400), pytest.mark.whole]

Record = Callable[[str, object], None]
NUM_WORKERS = 8
"""Whose messages arrive where encoding is timed, as in the scored sessions."""
LARGE_BYTES = 100_000_000
"""Bytes of the all-reduce whose bandwidth is measured: about ResNet-50's gradients."""
OVERFLOWS_AT = 3
NUM_STEPS = 6
SAFE_SCALE = 2.0**10
TOO_LARGE = 2.0**120
"""Loss scales: the second keeps the loss finite in fp32, but no gradient in fp16."""
WARM_UP = 3
WATCHED = 8
"""Steps in which constants are made and libraries begin, and steps that are watched, a reset among
them."""
TEMPORARY = 2.0
ROUNDED = 0.05
"""Memory allowed beside parameters, gradients and state, in units of the parameters' size: for a
message, its sum, and the allocator's rounding."""


def trainee_of(
    config: RunConfig, device: torch.device, collectives: Collectives | None = None
) -> DryTraining:
    """The run's worker or workers, by default one that is alone."""
    return DryTraining(
        config, trainable(config, device), collectives or SoloCollectives()
    )


# Processes


@pytest.mark.parametrize("most", [1, 2, 8])
def test_collectives_of_a_group_give_what_they_should(
    device: torch.device, most: int, record_property: Record
) -> None:
    found = on_processes(
        _collectives,
        device,
        1000 if device.type == "cpu" else LARGE_BYTES // 4,
        most=most,
    )
    wrong = [
        f"rank {rank}: {what}" for rank, (each, _) in enumerate(found) for what in each
    ]
    record_property("processes", len(found))
    record_property("GB/s of a large all-reduce", found[0][1])
    assert not wrong


def _collectives(device: torch.device, numel: int) -> tuple[list[str], float]:
    """What is wrong, and the bandwidth (payload over time) of an all-reduce in GB/s."""
    collectives = ProcessGroupCollectives(overlap=True)
    wrong = []
    rank = collectives.rank
    size = collectives.world_size
    # Messages of the harness itself, on a CPU, must travel by the same group.
    for place in {device, torch.device("cpu")}:
        for dtype in (torch.float32, torch.float16):
            number = float(rank + 1)
            total = torch.full((1003,), number, device=place, dtype=dtype)
            mean = total.clone()
            first = total.clone()
            collectives.all_reduce_sum_(total, Purpose.CONTROL)
            collectives.all_reduce_mean_(mean, Purpose.CONTROL)
            collectives.broadcast_(first, Purpose.CONTROL)
            right = {
                "sum": size * (size + 1) / 2,
                "mean": (size + 1) / 2,
                "broadcast": 1.0,
            }
            found = {"sum": total, "mean": mean, "broadcast": first}
            wrong += [
                f"{key} of {dtype} on {place}"
                for key in right
                if not bool((found[key] == right[key]).all())
            ]
        codes = collectives.all_gather(
            torch.full((1, 3), rank, dtype=torch.uint8, device=place), Purpose.CONTROL
        )
        if not torch.equal(
            codes.cpu(), torch.arange(size, dtype=torch.uint8)[:, None].expand(-1, 3)
        ):
            wrong.append(f"gather on {place}")
        [ring] = rounds_of("ring", size)
        received = collectives.exchange_with_neighbours(
            torch.full((1, 5), rank, device=place), ring, Purpose.CONTROL
        )
        are_sent = []
        for sender, message in received.items():
            are_sent.append(bool((message == sender).all()))
        if not all(are_sent):
            wrong.append(f"neighbours on {place}")
    large = torch.zeros(numel, device=device)
    dist.all_reduce(large)
    seconds = median(
        seconds_to_idle(lambda: dist.all_reduce(large), device) for _ in range(5)
    )
    return wrong, 4e-9 * numel / seconds


@pytest.mark.parametrize(
    ("name", "own"), [("mcser", {"explicit_error": True}), ("qsparse_local_sgd", {})]
)
def test_an_overflow_of_one_worker_is_skipped_by_all_without_a_trace(
    device: torch.device,
    scale: Scale,
    name: str,
    own: dict[str, object],
    record_property: Record,
) -> None:
    unchanged, steps, losses = zip(
        *on_processes(_overflowing, device, scale, name, own), strict=True
    )
    record_property("processes", len(steps))
    record_property("last losses", [each[-1] for each in losses])
    assert all(unchanged)
    assert set(steps) == {NUM_STEPS - 1}
    for of_worker in losses:
        for loss in of_worker:
            assert math.isfinite(loss)


def _overflowing(
    device: torch.device, scale: Scale, name: str, own: dict[str, object]
) -> tuple[bool, int, list[float]]:
    """Whether the state is as before after a step in which the last worker overflows; steps that
    counted; losses."""
    collectives = ProcessGroupCollectives()
    config = learning(name, scale, "fp16", **own)
    trainee = trainee_of(config, device, collectives)
    losses = []
    unchanged = True
    for step in range(NUM_STEPS):
        overflows = step == OVERFLOWS_AT
        before = _state(trainee)
        alone = overflows and collectives.rank == collectives.world_size - 1
        if step:  # before the first loss there is no scale to change
            trainee.precision.scaler.update(TOO_LARGE if alone else SAFE_SCALE)
        losses.append(float(trainee.step()))
        if overflows:
            after = _state(trainee)
            are_kept = [torch.equal(before[key], after[key]) for key in before]
            unchanged = all(are_kept)
    return unchanged, trainee.optimizer.num_steps, losses


def _state(trainee: DryTraining) -> dict[str, Tensor]:
    """Parameters, momentum, error and anchor, as copies."""
    flat = trainee.optimizer.state_dict()["param_groups"][0]["flat"] | {
        "x": trainee.optimizer.flat.parameters
    }
    return {
        key: value.clone() for key, value in flat.items() if isinstance(value, Tensor)
    }


@pytest.mark.parametrize("name", sorted(baselines()))
def test_a_baseline_learns(
    device: torch.device, scale: Scale, name: str, record_property: Record
) -> None:
    for losses in on_processes(_learn, device, scale, name):
        record_property("first and last loss", [losses[0], losses[-1]])
        assert losses[-1] < losses[0] / 2


def _learn(device: torch.device, scale: Scale, name: str) -> list[float]:
    config = learning(name, scale)
    trainee = trainee_of(config, device, ProcessGroupCollectives())
    return [float(trainee.step()) for _ in range(scale.num_steps)]


@pytest.mark.parametrize("name", subjects.HOOK_COMPRESSORS)
def test_error_feedback_as_a_hook_makes_no_host_wait_for_its_gpu(
    device: torch.device, scale: Scale, name: str
) -> None:
    """And nothing of the gradients is lost: what was sent, with the mean of what was not, is their
    sum."""
    for lost in on_processes(_lost_by_hook, device, scale.shapes, name):
        assert lost < 1e-5


def _lost_by_hook(
    device: torch.device, shapes: tuple[tuple[int, ...], ...] | None, name: str
) -> float:
    """What was lost of a parameter's gradients in some passes, at most, in units of their sum."""
    parameters = subjects.random_parameters(shapes, device)
    wrapper = DistributedDataParallel(subjects.Spread(parameters))
    state, hook = subjects.hook_of(name, wrapper)
    assert isinstance(state, ErrorFeedbackState)
    wrapper.register_comm_hook(state, hook)
    received = torch.zeros_like(parameters[0])
    for step in range(WARM_UP + WATCHED):
        wrapper.zero_grad()
        loss = wrapper()
        with waits_are_errors(device, step >= WARM_UP):
            loss.backward()
        assert parameters[0].grad is not None
        received += parameters[0].grad
    unsent = state.errors["parameters_of.0"].clone()
    collectives = ProcessGroupCollectives()
    collectives.all_reduce_mean_(unsent.unsqueeze(0), Purpose.CONTROL)
    # As a share of the mean of the parameter's numbers, the same on all workers.
    whole = (WARM_UP + WATCHED) / received.numel()
    lost = received + unsent - whole
    return float(lost.abs().max()) / whole


# One process


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "fp32") for name in algorithms()), ("mcser", "bf16")],
)
def test_a_method_learns_with_stacked_workers(
    device: torch.device,
    scale: Scale,
    name: str,
    precision: Precision,
    record_property: Record,
) -> None:
    if (
        precision == "bf16"
        and device.type == "cuda"
        and torch.cuda.get_device_capability(device) < (8, 0)
    ):
        pytest.skip("this GPU has no bf16; use fp16")
    config = learning(name, scale, precision)
    trainee = trainee_of(config, device, StackedCollectives(config.num_workers))
    steps_of_one = config.settings.table.get("accumulation_steps", 1)
    num_steps = scale.num_steps * steps_of_one
    losses = [float(trainee.step().mean()) for _ in range(num_steps)]
    record_property("first and last loss", [losses[0], losses[-1]])
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0] / 2
    assert trainee.optimizer.flat.parameters.dtype == torch.float32


@pytest.mark.parametrize("name", ["mcser", "ef_sgd"])
def test_stacked_workers_on_a_gpu_end_where_they_end_on_a_cpu(
    device: torch.device, name: str, record_property: Record
) -> None:
    """In float64, relative to the way that training took them: only the order of additions may
    differ."""
    (before, there), (_, here) = (
        _ways(place, name) for place in (device, torch.device("cpu"))
    )
    apart = (there - here).norm(dim=1)
    ways = (here - before).norm(dim=1)
    distance = float((apart / ways).max())
    record_property("relative distance", distance)
    assert distance <= 1e-8


def _ways(device: torch.device, name: str) -> tuple[Tensor, Tensor]:
    """All workers' parameters before and after, on the CPU."""
    four_workers = {"num_workers": 4}
    config = learning(name, TINY).model_copy(update=four_workers)
    trainee = DryTraining(
        config,
        trainable(config, device).double(),
        StackedCollectives(config.num_workers),
    )
    parameters = trainee.optimizer.flat.parameters
    before = parameters.cpu().clone()
    for _ in range(5):
        trainee.step()
    return before, parameters.cpu()


def test_channels_last_keeps_its_format_and_the_losses(
    device: torch.device, scale: Scale, record_property: Record
) -> None:
    """The GPU's default. Losses in fp32 after few steps, to a thousandth: the formats add in
    different orders."""
    default = format_of(trainable(learning("mcser", scale), device))
    assert default == ("channels_last" if device.type == "cuda" else "contiguous")
    orders = (torch.contiguous_format, torch.channels_last)
    usual, last = (_in_format(device, scale, "fp32", order) for order in orders)
    pairs = [(float(usual.step()), float(last.step())) for _ in range(3)]
    kernels = [
        parameter for parameter in last.models[0].parameters() if parameter.dim() == 4
    ]
    trainees = [
        _in_format(device, scale, "fp16" if device.type == "cuda" else "fp32", order)
        for order in orders
    ]
    seconds = [
        sum(seconds_to_idle(each.step, device) for _ in range(5)) for each in trainees
    ]
    record_property("step, usual / channels last", seconds[0] / seconds[1])
    for kernel in kernels:
        assert kernel.is_contiguous(memory_format=torch.channels_last)
    off = [abs(a - b) / abs(a) for a, b in pairs]
    assert max(off) <= 1e-3


def _in_format(
    device: torch.device, scale: Scale, precision: Precision, order: torch.memory_format
) -> DryTraining:
    config = learning("mcser", scale, precision)
    model = trainable(config, device).to(memory_format=order)  # type: ignore[call-overload]
    return DryTraining(config, model, SoloCollectives())


@pytest.mark.parametrize("name", algorithms())
def test_the_host_never_waits_for_the_gpu_in_a_step(
    device: torch.device, scale: Scale, name: str
) -> None:
    """Training on images in memory, augmented; a wait is an error of torch's, which says for what.

    Neither does it for the times at which the GPU comes to the work, which are read at the end.
    """
    config = learning(name, scale)
    trainee = trainee_of(config, device)
    began = time.perf_counter()
    clock = Clock(trainee.optimizer.collectives, device)
    images = torch.randint(
        256, (256, 3, 32, 32), generator=torch.Generator().manual_seed(1)
    ).to(torch.uint8)
    labels = torch.zeros(256, dtype=torch.int64, device=device)
    padded = nn.functional.pad(images, [4] * 4)
    samples = CroppedSamples(
        padded.to(device), labels, images.to(device), labels, [0.5] * 3, [0.2] * 3
    )
    indices = (torch.arange(config.batch_size) for _ in range(WARM_UP + WATCHED))
    batches = samples.training_batches(indices, 1, 0, 0)
    try:
        for step in range(WARM_UP + WATCHED):
            if device.type == "cuda" and step == WARM_UP:
                torch.cuda.set_sync_debug_mode("error")
            clock.switch("data")
            trainee.batches = [next(batches)]
            clock.switch("compute")
            trainee.step()
        clock.switch("evaluate")
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert trainee.optimizer.num_steps == WARM_UP + WATCHED
    seconds = clock.seconds
    wall = time.perf_counter() - began
    assert min(seconds["data"], seconds["compute"]) > 0
    assert seconds["evaluate"] == 0
    assert sum(seconds.values()) <= wall


def test_who_sends_what_is_not_finite_is_named_and_the_host_waits_for_no_gpu(
    device: torch.device,
) -> None:
    """A GPU tells it once it has come so far, and here it has come to the end before the last
    step."""
    zeros = torch.zeros(2, 1000, device=device)
    weight = nn.Parameter(zeros)
    collectives = StackedCollectives(2)
    optimizer = algorithms()["sgd"]([weight], lr=0.1, collectives=collectives)
    with pytest.warns(
        UserWarning, match="what worker 1 sent at step 3 is not finite"
    ) as warned:
        for step in range(1, 6):
            weight.grad = torch.ones_like(weight)
            if step >= 3:
                weight.grad[1].fill_(math.nan)
            if device.type == "cuda" and step == 5:
                torch.cuda.synchronize(device)
            with waits_are_errors(device, step > 1):
                optimizer.step()
    assert len(warned) == 1


@contextmanager
def waits_are_errors(device: torch.device, are_errors: bool = True) -> Iterator[None]:
    """Inside, torch raises where the host waits for the GPU."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error" if are_errors else "default")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", algorithms())
def test_a_step_takes_the_memory_that_plans_count(
    device: torch.device, scale: Scale, name: str, record_property: Record
) -> None:
    cuda = device.type == "cuda"
    held = 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    parameters = subjects.random_parameters(scale.shapes, device)
    optimizer = subjects.build(name, parameters, SoloCollectives())
    subjects.skip_to_reset(optimizer)
    first = optimizer.num_steps
    for _ in range(3):
        subjects.touch_gradients(parameters)
        optimizer.step()
    unit = 4 * sum(parameter.numel() for parameter in parameters)
    counted = 2 + optimizer.memory_in_parameters()
    record_property("counted / parameters", counted)
    if cuda:
        peak = (torch.cuda.max_memory_allocated(device) - held) / unit
        record_property("peak / parameters", peak)
        assert peak <= counted + TEMPORARY + ROUNDED
    assert optimizer.num_steps == first + 3


def test_times_of_a_step_of_every_method(
    device: torch.device, scale: Scale, record_property: Record
) -> None:
    """At ResNet-50's size, and over PyTorch's fused step; a repetition is a whole reset
    interval."""
    steppers = {
        "torch fused": subjects.torch_stepper(
            0.9, subjects.random_parameters(scale.shapes, device)
        )
    }
    for name in algorithms():
        steppers[name] = subjects.own_stepper(
            name, subjects.random_parameters(scale.shapes, device)
        )
    intervals = subjects.interval_seconds(steppers, scale.num_intervals, device)
    for name, seconds in intervals.items():
        ratio = median(
            own / fused
            for own, fused in zip(seconds, intervals["torch fused"], strict=True)
        )
        record_property(
            name,
            {
                "ms": 1e3 * median(seconds) / subjects.RESET_INTERVAL,
                "over torch": ratio,
            },
        )
        assert min(seconds) > 0


def test_times_of_encoding(
    device: torch.device,
    scale: Scale,
    pytestconfig: pytest.Config,
    record_property: Record,
) -> None:
    """At ResNet-50's size and eight workers; a GPU's go into a record that reports read."""
    calls = subjects.encoding_calls(scale.shapes, NUM_WORKERS, device)
    found = subjects.interleave(calls, 4 * scale.num_intervals)
    # A difference of two steps, which on tiny vectors can be below 0.
    seconds = {name: max(0.0, median(each)) for name, each in found.items()}
    milliseconds = {name: 1e3 * each for name, each in seconds.items()}
    record_property("ms", milliseconds)
    times = EncodingTimes(
        version=VERSION,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        torch=torch.__version__,
        num_parameters=sum(
            each.numel() for each in subjects.random_parameters(scale.shapes)
        ),
        num_workers=NUM_WORKERS,
        seconds=seconds,
    )
    report = pytestconfig.getoption("xmlpath")
    # A CPU's times say nothing of a GPU, and a single test that is tried writes nothing.
    if device.type == "cuda" and report:
        write_record(Path(report).parent / TIMES.name, times)
    encoded = {name_of(each) for each in subjects.ENCODED}
    assert set(seconds) >= encoded


def test_what_arrives_from_workers_alike_is_decoded_to_their_mean(
    device: torch.device,
) -> None:
    """Else what is timed as eight workers' messages would be something else."""
    generator = torch.Generator().manual_seed(1)
    vector = torch.randn(1, 5000, generator=generator).to(device)
    layout = Layout.flat(slice(0, 5000))
    for table in subjects.ENCODED:
        compressor = build_compressor("compressor", CompressorSettings(**table))
        draw = Draw(1, 1, Purpose.GRADIENT.value)
        ends = (SoloCollectives(), subjects.AlikeCollectives(0, NUM_WORKERS))
        alone, alike = (
            Sending(end).exchange(vector, compressor, layout, draw, Purpose.GRADIENT)
            for end in ends
        )
        # In two stages the mean is rounded a second time, where it is a worker's share.
        tolerance = (
            float(vector.abs().max()) / 7
            if table["kind"] == "quantised_blocks"
            else 1e-6
        )
        apart = (alike.mean - alone.mean).abs()
        assert float(apart.max()) <= tolerance


@pytest.mark.parametrize("experiment", ["cifar100", "imagenet"])
def test_images_per_second_of_the_real_experiments(
    device: torch.device, experiment: str, tmp_path: Path, record_property: Record
) -> None:
    """By the dry steps that plans measure: one worker, random images, plain SGD; hours are of all
    planned runs."""
    spec = load_spec(find_spec(experiment))
    cuda = device.type == "cuda"
    full = Problem(
        spec.task.name, spec.model, spec.training.batch_size, spec.training.precision
    )
    small = Problem("cifar100", TINY.model, TINY.batch_size)
    problem = full if cuda else small
    measured = dry_steps(
        short_run(problem, "sgd", {}, precision=problem.precision), device
    )
    rows = make_plan(spec, tmp_path).experiment.rows
    training = spec.training
    images = (
        sum(len(row.runs) * row.num_steps for row in rows)
        * training.num_workers
        * training.batch_size
    )
    images_per_second = problem.batch_size / measured.seconds
    record_property("images/s", images_per_second)
    record_property("GPU hours of the experiment", images / images_per_second / 3600)
    assert measured.seconds > 0
