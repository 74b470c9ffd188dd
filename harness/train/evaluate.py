"""The score of the workers' average: every sample once, sentences decoded greedily."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from cser_bench.algorithms import Collectives, DistributedOptimizer, Purpose
from cser_bench.harness.models.transformer import Transformer
from cser_bench.harness.spec.run import RunConfig
from cser_bench.harness.tasks.pairs import BEGIN, END, PAD, plain
from cser_bench.harness.tasks.samples import Samples
from cser_bench.harness.train.order import worker_batches
from cser_bench.harness.train.passes import MixedPrecision

RECALIBRATION_STEPS = 32
"""Training batches per worker from which "recalibrate" estimates batch-norm statistics."""


@dataclass(frozen=True)
class Score:
    """The score of an average model.

    `loss` is the mean over samples, of text over tokens. The two norms are roots of means over
    workers of squared 2-norms.
    """

    correct: int
    count: int
    loss: float
    metrics: dict[str, float] | None
    """What else the task is scored by, by name, as shares."""
    error_norm: float | None
    worker_distance: float

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
    """Score the average model in the run's precision.

    Models, optimiser and generators are then what they were.

    Every sample counts once, or a RuntimeError is raised; with the batch-norm policy "local", and
    for a method that never averages, whose result is each worker's own model, once per worker, so
    that the score is the mean of theirs. `models` are those of the workers at this end, see
    `Collectives.own_ranks`.
    """
    collectives = optimizer.collectives
    num_workers = collectives.world_size
    each_scores_all = (
        config.evaluation.batch_norm == "local" or not optimizer.averages_models
    )
    shares = _shares(collectives, num_evaluation, each_scores_all)
    sums_now = partial(_sums, models, precision, samples, shares)
    # x_i: (local workers, d)
    parameters_before = optimizer.flat.parameters.clone()
    sums: list[Tensor] = []
    batch_norm = _batch_norm(config, models, precision, samples, collectives, num_train)
    # In this order, so that "recalibrate" has the average model go through its batches.
    with optimizer.consensus(), batch_norm:
        # |x_i - mean x|^2
        distance_squares = _squares(parameters_before - optimizer.flat.parameters)
        if optimizer.averages_models:
            sums = sums_now()
    # Outside of the consensus, where each model is its worker's own again: that is such a method's
    # result.
    if not optimizer.averages_models:
        sums = sums_now()
    error = optimizer.error
    error_squares = [torch.zeros_like(square) for square in distance_squares]
    if error is not None:
        error_squares = _squares(error)
    rows = [
        torch.cat([sums_of_worker, torch.stack(squares)])
        for sums_of_worker, *squares in zip(
            sums, error_squares, distance_squares, strict=True
        )
    ]
    # (local workers, sums of the score + 2)
    totals = torch.stack(rows)
    collectives.all_reduce_sum_(totals, Purpose.EVALUATION)
    expected = num_evaluation * samples.modality.labels_per_sample
    if each_scores_all:
        expected *= num_workers
    return _score_of(
        totals[0].tolist(), samples, expected, num_workers, has_error=error is not None
    )


def _shares(
    collectives: Collectives, num_evaluation: int, each_scores_all: bool
) -> list[Tensor]:
    """Return the indices of the samples that each worker at this end scores."""
    all_samples = torch.arange(num_evaluation)
    if each_scores_all:
        return [all_samples for _ in collectives.own_ranks]
    # Worker r of n scores samples r, r + n, r + 2 n, ...: every sample once.
    return [
        all_samples[rank :: collectives.world_size] for rank in collectives.own_ranks
    ]


def _sums(
    models: Sequence[nn.Module],
    precision: MixedPrecision,
    samples: Samples,
    shares: Sequence[Tensor],
) -> list[Tensor]:
    """Return what `Modality.sums` does for each model as it is now, on its share of the samples."""
    with scoring(models):
        return [
            samples.modality.sums(Answers(model, precision), samples, share)
            for model, share in zip(models, shares, strict=True)
        ]


def _score_of(
    totals: Sequence[float],
    samples: Samples,
    expected: int,
    num_workers: int,
    has_error: bool,
) -> Score:
    """Return the score from sums over all workers.

    Args:
        totals: of what `Modality.sums` returns, then of squares of the error and of the distance.
        expected: how many answers must have been scored.

    Raises RuntimeError: so many were not scored.
    """
    *sums, error_square, distance_square = totals
    count = int(sums[1])
    if count != expected:
        raise RuntimeError(
            f"{count} samples were scored where there should be {expected}"
        )
    scored = samples.modality.scored(sums)
    return Score(
        correct=scored.correct,
        count=count,
        loss=scored.loss,
        metrics=scored.metrics,
        # sqrt(mean over workers of |e_i|^2); the distance is sqrt(mean of |x_i - mean x|^2).
        error_norm=(error_square / num_workers) ** 0.5 if has_error else None,
        worker_distance=(distance_square / num_workers) ** 0.5,
    )


@torch.no_grad()
def worker_accuracies(
    models: Sequence[nn.Module],
    precision: MixedPrecision,
    collectives: Collectives,
    samples: Samples,
    num_evaluation: int,
) -> list[float]:
    """Return the accuracy of each worker's own model on all samples, by rank.

    The model has its own batch-norm statistics.
    """
    all_samples = torch.arange(num_evaluation)
    with scoring(models):
        scores = [
            samples.modality.sums(Answers(model, precision), samples, all_samples)
            for model in models
        ]
    # (local workers, 1): sums begin with the number of right answers.
    correct = torch.stack([score[:1] for score in scores])
    num_labels = num_evaluation * samples.modality.labels_per_sample
    # (workers, 1), by rank on every worker. As control, it is no part of a method's cost.
    gathered = collectives.all_gather(correct, Purpose.CONTROL)
    return [float(count) / num_labels for count in gathered.view(-1)]


@contextmanager
def scoring(models: Sequence[nn.Module]) -> Iterator[None]:
    """Put models in their mode for evaluation, and afterwards in the one before."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    yield
    for model, mode in zip(models, modes, strict=True):
        model.train(mode)


def _squares(vectors: Tensor) -> list[Tensor]:
    """Return the squared 2-norm of each worker's vector at this end, float64."""
    return [row.double().square().sum() for row in vectors]


@dataclass(frozen=True)
class Answers:
    """A model's answers in the run's precision; it must be in its mode for evaluation."""

    model: nn.Module
    precision: MixedPrecision

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def outputs(self, inputs: Tensor) -> Tensor:
        return self.precision.outputs(self.model, inputs)

    def sentences(self, source: Tensor, max_length: int) -> list[list[int]]:
        assert isinstance(self.model, Transformer), "no other network takes pairs"
        with self.precision.autocast():
            tokens = greedy(self.model, source, max_length)
        return [plain(row) for row in tokens.tolist()]


@contextmanager
def _batch_norm(
    config: RunConfig,
    models: Sequence[nn.Module],
    precision: MixedPrecision,
    samples: Samples,
    collectives: Collectives,
    num_train: int,
) -> Iterator[None]:
    """Have batch norm's running statistics follow the policy.

    Afterwards they are the worker's own again.
    """
    buffers_by_model = [_batch_norm_buffers(model) for model in models]
    if not buffers_by_model[0] or config.evaluation.batch_norm == "local":
        yield
        return
    buffers = list(chain(*buffers_by_model))
    kept = [buffer.clone() for buffer in buffers]
    if config.evaluation.batch_norm == "recalibrate":
        for rank, model in zip(collectives.own_ranks, models, strict=True):
            indices = worker_batches(
                config.seed,
                num_train,
                rank,
                config.num_workers,
                config.batch_size,
                range(RECALIBRATION_STEPS),
            )
            with precision.autocast():
                # It forgets the running statistics, and takes the plain mean over these batches in
                # their place.
                update_bn(
                    samples.training_batches(indices, config.seed, rank, 0), model
                )
    # The numbers of batches that were seen are no statistics, and are not averaged.
    statistics_by_model = [
        [buffer for buffer in model_buffers if buffer.is_floating_point()]
        for model_buffers in buffers_by_model
    ]
    # (local workers, statistics): one collective for the buffers of all layers.
    flat = torch.stack([_flattened(statistics) for statistics in statistics_by_model])
    collectives.all_reduce_mean_(flat, Purpose.EVALUATION)
    for statistics, mean in zip(statistics_by_model, flat, strict=True):
        parts = mean.split([buffer.numel() for buffer in statistics])
        for buffer, part in zip(statistics, parts, strict=True):
            buffer.copy_(part.view_as(buffer))
    try:
        yield
    finally:
        for buffer, before in zip(buffers, kept, strict=True):
            buffer.copy_(before)


def _batch_norm_buffers(model: nn.Module) -> list[Tensor]:
    buffers: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            buffers += module.buffers()
    return buffers


def _flattened(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.view(-1) for tensor in tensors])


def greedy(model: Transformer, source: Tensor, max_length: int) -> Tensor:
    """Return the likeliest token each time, int64 of shape (batch, at most max_length).

    After END comes PAD.
    """
    # One token for each sentence at a time: (batch,).
    state = model.begin(source)
    newest = source.new_full(source.shape[:1], BEGIN)
    ended = torch.zeros_like(newest, dtype=torch.bool)
    tokens: list[Tensor] = []
    while len(tokens) < max_length and not (tokens and bool(ended.all())):
        # (batch, tokens of the vocabulary)
        scores, state = model.next_scores(newest, state)
        scores[:, :END] = -torch.inf  # what no sentence holds: PAD and BEGIN
        newest = scores.argmax(1).masked_fill(ended, PAD)
        ended = ended | (newest == END)
        tokens.append(newest)
    return torch.stack(tokens, 1)
