"""From a run's config to live objects: models and optimiser of the workers at this end."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cser_bench.algorithms import Collectives, DistributedOptimizer, StackedCollectives
from cser_bench.algorithms.baselines.ddp import DDP
from cser_bench.algorithms.core.local_step import LocalStep, local_step_named
from cser_bench.harness.models import NETWORKS
from cser_bench.harness.seeds import derive_seed
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.options import check_options, refused
from cser_bench.harness.spec.run import LOCAL_NUMBERS, ModelSpec, RunConfig
from cser_bench.harness.tasks.task import Task, find_task
from cser_bench.harness.train.method import arguments_of, method_of
from cser_bench.harness.train.schedule import learning_rate_at


def build_model(
    spec: ModelSpec, task: Task, seed: int, device: torch.device
) -> nn.Module:
    """Return a model whose initial parameters depend on the seed alone.

    The global generator is left as it was.

    Raises SpecError: unknown model or options.
    """
    if spec.name not in NETWORKS:
        raise SpecError(
            f"unknown model {spec.name!r}; the models are {', '.join(sorted(NETWORKS))}"
        )
    build = getattr(
        importlib.import_module(f"cser_bench.harness.models.{NETWORKS[spec.name]}"),
        spec.name,
    )
    check_options(f"model {spec.name}", spec.options, build)
    # nn.Module draws initial values from the global generator and offers no other.
    # That of the CPU, so that a seed gives the same values on every device.
    place = torch.device("cpu" if device.type != "meta" else "meta")
    with torch.random.fork_rng(devices=[]), place, refused(f"model {spec.name}: "):
        torch.manual_seed(derive_seed(seed, "init"))
        model: nn.Module = build(task.input_shape, task.num_classes, **spec.options)
    return model.to(device)


MemoryFormat = Literal["contiguous", "channels_last"]


def lay_out(model: nn.Module, keep_contiguous: bool = False) -> None:
    """Bring an image model on a GPU into the order channels last, as tensor cores want it.

    Only models with convolutions of images are changed.

    Call it before an optimiser is made of the model. Layers' inputs come along by themselves, since
    a convolution computes in the format of its weights.
    """
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if convolves and next(model.parameters()).is_cuda and not keep_contiguous:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def format_of(model: nn.Module) -> MemoryFormat:
    """Return the format that a model is in."""
    filters = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    # A kernel of 1 x 1, or of one channel, is contiguous in both formats: one alone tells nothing.
    if all(parameter.is_contiguous() for parameter in filters):
        return "contiguous"
    return "channels_last"


def use_device(device: str) -> None:
    """Make a GPU this thread's device, with full fp32 arithmetic: by default cuDNN rounds to TF32.

    A run's batches have one shape, so cuDNN may try its algorithms once and keep the fastest.
    """
    if device != "cpu":
        torch.cuda.set_device(device)
        # TF32 keeps 10 bits of a number's fraction, where fp32 has 23.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True


def trainable(config: RunConfig, device: torch.device) -> nn.Module:
    """Return the run's model as training has it on the device.

    Its numbers are in the format that is chosen there.
    """
    use_device(str(device))
    model = build_model(config.model, find_task(config.task.name), config.seed, device)
    lay_out(model, method_of(config).needs_contiguous)
    return model


def build_optimizer(
    config: RunConfig,
    model: nn.Module,
    collectives: Collectives | None,
    num_steps: int,
    stacked: Sequence[nn.Parameter] | None = None,
) -> DistributedOptimizer:
    """Return the run's optimiser.

    On a meta model this is how a plan checks settings and counts bits.

    `stacked` are the parameters of all workers, in the model's order, which are then trained in
    place of the model's. Raises SpecError: an unknown algorithm, setting or compressor, or values
    that it cannot take.
    """
    algorithm = method_of(config)
    arguments = arguments_of(algorithm, config.settings, num_steps)
    # Stacked parameters are (workers, *shape), else they are of the model's own shapes.
    parameters = model.parameters() if stacked is None else stacked
    local_step = local_step_named(config.local_step)
    spoilt_by_overflow = issubclass(algorithm, DDP) and not algorithm.survives_overflow
    if config.precision == "fp16" and spoilt_by_overflow:
        raise SpecError(
            f"{config.algorithm}: an overflow would spoil the hook's state for ever; take fp32 or "
            "bf16"
        )
    try:
        optimizer = algorithm(
            local_step.groups(model, parameters),
            lr=config.learning_rate,
            local_step=config.local_step,
            weight_decay=config.weight_decay,
            collectives=collectives,
            seed=derive_seed(config.seed, "compression"),
            communication_dtype=torch.float16
            if config.communication_dtype == "fp16"
            else None,
            **_local_numbers(config, local_step),
            **arguments,
        )
    # And no other: what a collective raises here is no mistake of the spec's.
    except ValueError as error:
        raise SpecError(str(error)) from None
    # Dry training has no length, and so no schedule.
    if algorithm.traffic_follows_rate and num_steps:
        optimizer.schedule = partial(learning_rate_at, config, num_steps)
    return optimizer


def _local_numbers(config: RunConfig, local_step: type[LocalStep]) -> dict[str, Any]:
    """Return the numbers that the local step reads, and any other that a config has all the same."""
    numbers = {}
    for key, unread in LOCAL_NUMBERS.items():
        value = getattr(config, key)
        # An optimiser refuses a number that its local step does not read.
        if key in local_step.numbers or value != unread:
            # A config is JSON, which has no tuples: betas come as a list.
            numbers[key] = tuple(value) if isinstance(value, list) else value
    return numbers


def local_workers(
    config: RunConfig, model: nn.Module, collectives: Collectives, num_steps: int
) -> tuple[list[nn.Module], DistributedOptimizer]:
    """Return a model of each worker at this end, and the optimiser of all of them.

    See `Collectives.own_ranks` for which these are.

    Stacked workers have copies of the model, with buffers of their own. Their parameters and
    gradients are rows of the optimiser's: `optimizer.flat.tensors[k][rank]` is parameter k of
    `models[rank]`.
    """
    if not isinstance(collectives, StackedCollectives):
        return [model], build_optimizer(config, model, collectives, num_steps)
    num_workers = collectives.world_size
    # Buffers such as batch norm's are each worker's own; parameters become rows below.
    models = [copy.deepcopy(model) for _ in range(num_workers)]
    stacked = [
        _rows_of(parameter.detach(), num_workers) for parameter in model.parameters()
    ]
    optimizer = build_optimizer(config, model, collectives, num_steps, stacked)
    bind_rows(models, optimizer)
    return models, optimizer


def bind_rows(models: Sequence[nn.Module], optimizer: DistributedOptimizer) -> None:
    """Make the parameters and gradients of stacked workers' models rows of the optimiser's."""
    for rank, model in enumerate(models):
        for parameter, stacked in zip(
            model.parameters(), optimizer.flat.tensors, strict=True
        ):
            assert stacked.grad is not None
            # By `.data`: a row of a parameter is no leaf of the graph, and would get no gradient.
            parameter.data = stacked.data[rank]
            # A backward pass adds in place to a gradient that is there: so it fills this one.
            parameter.grad = stacked.grad[rank]


def _rows_of(tensor: Tensor, num_rows: int) -> nn.Parameter:
    """Return copies along a new first axis, each in the tensor's own order in memory."""
    rows = torch.empty_strided(
        (num_rows, *tensor.shape),
        (tensor.numel(), *tensor.stride()),
        dtype=tensor.dtype,
        device=tensor.device,
    )
    return nn.Parameter(rows.copy_(tensor))


def module_to_train(optimizer: DistributedOptimizer, model: nn.Module) -> nn.Module:
    """Return what forward passes in training go through.

    It is the model, or what a baseline puts around it.
    """
    if not isinstance(optimizer, DDP):
        return model
    try:
        return optimizer.through(model)
    except ValueError as error:
        raise SpecError(str(error)) from None
