"""The score of the workers' average: every sample of the evaluated split counted once, over all workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from algorithms import Collectives, DistributedOptimizer, Purpose
from harness.order import worker_batches
from harness.spec import RunConfig
from harness.tasks.task import Samples

RECALIBRATION_STEPS = 32
"""Training batches per worker from which "recalibrate" estimates batch-norm statistics."""


@dataclass(frozen=True)
class Score:
    """`loss` is the mean over samples. The two norms are roots of means over workers of squared 2-norms."""

    correct: int
    count: int
    loss: float
    error_norm: float | None
    worker_distance: float

    @property
    def accuracy(self) -> float:
        return self.correct / self.count


@torch.no_grad()
def evaluate(
    config: RunConfig,
    model: nn.Module,
    optimizer: DistributedOptimizer,
    samples: Samples,
    num_evaluation: int,
    num_train: int,
) -> Score:
    """Score the average model; model, optimiser and generators are afterwards what they were.

    Every sample counts once; with the batch-norm policy "local" once per worker, so that the score is the mean of the
    workers' scores.

    Raises:
        RuntimeError: another number of samples was scored.
    """
    collectives = optimizer.collectives
    own = optimizer.flat.parameters.clone()
    with optimizer.consensus(), _batch_norm(config, model, samples, collectives, num_train):
        distance = (own - optimizer.flat.parameters).double().square().sum()
        model.eval()
        totals = _totals(config.evaluation.batch_norm, model, samples, collectives, num_evaluation)
        model.train()
    error = optimizer.error
    squares = torch.zeros_like(distance) if error is None else error.double().square().sum()
    totals = torch.cat([totals, torch.stack([squares, distance])])
    collectives.all_reduce_sum_(totals, Purpose.EVALUATION)
    correct, count, loss, errors, distances = totals.tolist()
    num_workers = collectives.world_size
    expected = num_evaluation * (num_workers if config.evaluation.batch_norm == "local" else 1)
    if int(count) != expected:
        raise RuntimeError(f"{int(count)} samples were scored where there should be {expected}")
    return Score(
        correct=int(correct),
        count=int(count),
        loss=loss / count,
        error_norm=None if error is None else (errors / num_workers) ** 0.5,
        worker_distance=(distances / num_workers) ** 0.5,
    )


def _totals(policy: str, model: nn.Module, samples: Samples, collectives: Collectives, num_evaluation: int) -> Tensor:
    """This worker's share: correct answers, samples, summed loss; float64, shape (3,)."""
    every = torch.arange(num_evaluation)
    mine = every if policy == "local" else every[collectives.rank :: collectives.world_size]
    # On the model's device throughout, since a look from the CPU would wait for every batch.
    totals = torch.zeros(3, dtype=torch.float64, device=next(model.parameters()).device)
    for inputs, labels in samples.evaluation_batches(mine):
        outputs = model(inputs)
        correct = (outputs.argmax(dim=1) == labels).sum().double()
        loss = nn.functional.cross_entropy(outputs, labels, reduction="sum").double()
        totals += torch.stack([correct, torch.full_like(correct, labels.numel()), loss])
    return totals


@contextmanager
def _batch_norm(
    config: RunConfig, model: nn.Module, samples: Samples, collectives: Collectives, num_train: int
) -> Iterator[None]:
    """Inside, batch norm's running statistics follow the policy; afterwards they are the worker's own again."""
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    statistics = [
        buffer for layer in layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None
    ]
    if not statistics or config.evaluation.batch_norm == "local":
        yield
        return
    kept = [buffer.clone() for buffer in _buffers(layers)]
    if config.evaluation.batch_norm == "recalibrate":
        _recalibrate(config, model, layers, samples, collectives, num_train)
    flat = torch.cat([buffer.view(-1) for buffer in statistics])
    collectives.all_reduce_mean_(flat, Purpose.EVALUATION)
    for buffer, mean in zip(statistics, torch.split(flat, [buffer.numel() for buffer in statistics]), strict=True):
        buffer.copy_(mean.view_as(buffer))
    try:
        yield
    finally:
        for buffer, value in zip(_buffers(layers), kept, strict=True):
            buffer.copy_(value)


def _buffers(layers: Sequence[nn.Module]) -> list[Tensor]:
    """All buffers of these layers, the counters of batches included."""
    return [buffer for layer in layers for buffer in layer.buffers()]


def _recalibrate(
    config: RunConfig,
    model: nn.Module,
    layers: list[nn.modules.batchnorm._BatchNorm],
    samples: Samples,
    collectives: Collectives,
    num_train: int,
) -> None:
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    indices = worker_batches(
        config.seed, num_train, collectives.rank, config.num_workers, config.batch_size, range(RECALIBRATION_STEPS)
    )
    for inputs, _ in samples.training_batches(indices, config.seed, collectives.rank, 0):
        model(inputs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
