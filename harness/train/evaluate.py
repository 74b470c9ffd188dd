"""The score of the workers' average: every sample of the evaluated split counted once, over all workers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from algorithms import Collectives, DistributedOptimizer, Purpose
from harness.spec import RunConfig
from harness.tasks.pairs import PairSamples
from harness.tasks.task import Samples
from harness.train.order import worker_batches
from harness.train.precision import MixedPrecision
from harness.train.translation import translation_sums

RECALIBRATION_STEPS = 32
"""Training batches per worker from which "recalibrate" estimates batch-norm statistics."""


@dataclass(frozen=True)
class Score:
    """`loss` is the mean over samples, of text over tokens.

    The two norms are roots of means over workers of squared 2-norms.
    """

    correct: int
    count: int
    loss: float
    error_norm: float | None
    worker_distance: float
    metrics: dict[str, float] | None = None
    """What else a text task's sentences are scored by, as shares."""

    @property
    def accuracy(self) -> float:
        return self.correct / self.count


@torch.no_grad()
def evaluate(
    config: RunConfig,
    models: Sequence[nn.Module],
    optimizer: DistributedOptimizer,
    precision: MixedPrecision,
    samples: Samples,
    num_evaluation: int,
    num_train: int,
) -> Score:
    """Score the average model in the run's precision; models, optimiser and generators are then what they were.

    Every sample counts once; with the batch-norm policy "local", and for a method that never averages, whose result is
    each worker's own model, once per worker, so that the score is the mean of the workers' scores.

    Args:
        models: of the workers at this end, see `Collectives.own_ranks`.

    Raises:
        RuntimeError: another number of samples was scored.
    """
    collectives, averages = optimizer.collectives, optimizer.averages_models
    num_workers, every = collectives.world_size, torch.arange(num_evaluation)
    each_scores_all = config.evaluation.batch_norm == "local" or not averages
    shares = [every if each_scores_all else every[rank::num_workers] for rank in collectives.own_ranks]
    own = optimizer.flat.parameters.clone()

    def scores_now() -> list[Tensor]:
        with scoring(models):
            pairs = zip(models, shares, strict=True)
            return [_score(*pair, precision, samples, config.evaluation.beam) for pair in pairs]

    with optimizer.consensus(), _batch_norm(config, models, precision, samples, collectives, num_train):
        squares = _squares(own - optimizer.flat.parameters)
        scores = scores_now() if averages else []
    scores = scores or scores_now()
    error = optimizer.error
    errors = [torch.zeros_like(square) for square in squares] if error is None else _squares(error)
    rows = [torch.cat([score, torch.stack(more)]) for score, *more in zip(scores, errors, squares, strict=True)]
    totals = torch.stack(rows)
    collectives.all_reduce_sum_(totals, Purpose.EVALUATION)
    correct, count, loss, *sums, error_square, distance_square = totals[0].tolist()
    expected = num_evaluation * labels_per_sample(samples) * (num_workers if each_scores_all else 1)
    if int(count) != expected:
        raise RuntimeError(f"{int(count)} samples were scored where there should be {expected}")
    return Score(
        correct=int(correct),
        count=int(count),
        loss=loss / (sums[0] if sums else count),
        error_norm=None if error is None else (error_square / num_workers) ** 0.5,
        worker_distance=(distance_square / num_workers) ** 0.5,
        metrics=samples.measure.metrics(sums[1:]) if isinstance(samples, PairSamples) else None,
    )


def labels_per_sample(samples: Samples) -> int:
    """Answers that a sample asks for, each of which counts: one, or of a window of a text one a symbol."""
    return getattr(samples, "labels_per_sample", 1)


@torch.no_grad()
def worker_accuracies(
    models: Sequence[nn.Module],
    precision: MixedPrecision,
    collectives: Collectives,
    samples: Samples,
    num_evaluation: int,
) -> list[float]:
    """Accuracy of each worker's own model, with its own batch-norm statistics, on all samples, by rank.

    Sentences are decoded greedily here, whatever the number of beams.
    """
    every = torch.arange(num_evaluation)
    with scoring(models):
        correct = torch.stack([_score(model, every, precision, samples)[:1] for model in models])
    num_labels = num_evaluation * labels_per_sample(samples)
    return [float(row) / num_labels for row in collectives.all_gather(correct, Purpose.CONTROL).view(-1)]


@contextmanager
def scoring(models: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, models are in their mode for evaluation; afterwards in the one before."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    yield
    for model, mode in zip(models, modes, strict=True):
        model.train(mode)


def _squares(vectors: Tensor) -> list[Tensor]:
    """Squared 2-norm of each worker's vector at this end, float64."""
    return [row.double().square().sum() for row in vectors]


def _score(
    model: nn.Module, indices: Tensor, precision: MixedPrecision, samples: Samples, num_beams: int = 1
) -> Tensor:
    """One model on these samples: correct answers, samples, summed loss, and of text more; float64, one dimension."""
    if isinstance(samples, PairSamples):
        return translation_sums(model, indices, precision, samples, num_beams)
    # On the model's device throughout, since a look from the CPU would wait for every batch.
    totals = torch.zeros(3, dtype=torch.float64, device=next(model.parameters()).device)
    for inputs, labels in samples.evaluation_batches(indices):
        outputs = precision.outputs(model, inputs)
        correct = (outputs.argmax(dim=1) == labels).sum().double()
        loss = nn.functional.cross_entropy(outputs, labels, reduction="sum").double()
        totals += torch.stack([correct, torch.full_like(correct, labels.numel()), loss])
    return totals


@contextmanager
def _batch_norm(
    config: RunConfig,
    models: Sequence[nn.Module],
    precision: MixedPrecision,
    samples: Samples,
    collectives: Collectives,
    num_train: int,
) -> Iterator[None]:
    """Inside, batch norm's running statistics follow the policy; afterwards they are the worker's own again."""
    layers = [[each for each in model.modules() if isinstance(each, _BatchNorm)] for model in models]
    statistics = [
        [buffer for layer in own for buffer in (layer.running_mean, layer.running_var) if buffer is not None]
        for own in layers
    ]
    if not statistics[0] or config.evaluation.batch_norm == "local":
        yield
        return
    kept = [[copy.deepcopy(layer.state_dict()) for layer in own] for own in layers]
    if config.evaluation.batch_norm == "recalibrate":
        for rank, model, own in zip(collectives.own_ranks, models, layers, strict=True):
            _recalibrate(config, model, own, precision, samples, rank, num_train)
    flat = torch.stack([torch.cat([buffer.view(-1) for buffer in own]) for own in statistics])
    collectives.all_reduce_mean_(flat, Purpose.EVALUATION)
    for own_statistics, mean in zip(statistics, flat, strict=True):
        for buffer, part in zip(own_statistics, mean.split([each.numel() for each in own_statistics]), strict=True):
            buffer.copy_(part.view_as(buffer))
    try:
        yield
    finally:
        for layer, state in zip(chain(*layers), chain(*kept), strict=True):
            layer.load_state_dict(state)


def _recalibrate(
    config: RunConfig,
    model: nn.Module,
    layers: list[_BatchNorm],
    precision: MixedPrecision,
    samples: Samples,
    rank: int,
    num_train: int,
) -> None:
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
    sizes = config.num_workers, config.batch_size
    indices = worker_batches(config.seed, num_train, rank, *sizes, range(RECALIBRATION_STEPS))
    for number, (inputs, _) in enumerate(samples.training_batches(indices, config.seed, rank, 0), 1):
        for layer in layers:
            # The mean of all batches. PyTorch's momentum of None is the same, but asks the GPU for the number.
            layer.momentum = 1.0 / number
        precision.outputs(model, inputs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
