"""Evaluation of the workers' average, against direct computation."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cser_bench.algorithms import DistributedOptimizer, Purpose, StackedCollectives
from cser_bench.harness.spec.run import RunConfig, TaskSpec
from cser_bench.harness.tasks.blobs import TASK
from cser_bench.harness.tasks.samples import Batch, Samples
from cser_bench.harness.tasks.task import EVALUATION_BATCH, TensorSamples
from cser_bench.harness.train.build import build_model, local_workers
from cser_bench.harness.train.evaluate import (
    RECALIBRATION_STEPS,
    Score,
    evaluate,
    worker_accuracies,
)
from cser_bench.harness.train.order import worker_batches
from cser_bench.harness.train.passes import MixedPrecision
from tests.harness.support import CSER, Table, small_config

CPU = torch.device("cpu")
BLOBS = TaskSpec(name="blobs")
SAMPLES = TASK.load(None, BLOBS, CPU)
PLAIN = MixedPrecision("fp32", CPU)
Workers = tuple[RunConfig, list[nn.Module], DistributedOptimizer]


@dataclass(frozen=True)
class Counted(TensorSamples):
    """Samples that remember which of them were scored, and lose the first so many of each
    worker's."""

    lost: int = 0
    scored: list[int] = field(default_factory=list)

    def evaluation_batches(self, indices: Tensor) -> Any:
        self.scored.extend(indices.tolist())
        found = indices[self.lost :]
        return super().evaluation_batches(found)


def batches_of(rank: int, num_workers: int, num_steps: int) -> list[Batch]:
    steps = range(num_steps)
    indices = worker_batches(1, 1600, rank, num_workers, 20, steps)
    batches = SAMPLES.training_batches(indices, 1, rank, 0)
    return list(batches)


def trained(
    num_workers: int, policy: str = "average", algorithm: str = "cser", **changes: Any
) -> Workers:
    """Workers that have trained seven steps; so few leave running statistics alike, which are then
    pulled apart."""
    evaluation = {"per_epoch": 2, "batch_norm": policy}
    table: Table = {}
    if algorithm == "cser":
        table = CSER
    config = small_config(
        algorithm, table, num_workers=num_workers, evaluation=evaluation, **changes
    )
    model = build_model(config.model, TASK, config.seed, CPU)
    collectives = StackedCollectives(num_workers)
    models, optimizer = local_workers(config, model, collectives, 40)
    ranks = range(num_workers)
    of_workers = [batches_of(rank, num_workers, 7) for rank in ranks]
    for batches in zip(*of_workers, strict=True):
        optimizer.zero_grad()
        for own, (inputs, labels) in zip(models, batches, strict=True):
            outputs = own(inputs)
            loss = nn.functional.cross_entropy(outputs, labels)
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for rank, own in enumerate(models):
        for layer in batch_norms(own):
            layer.running_var.mul_(1 + rank)  # type: ignore[union-attr]
    return config, models, optimizer


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def state(models: list[nn.Module], optimizer: DistributedOptimizer) -> list[Tensor]:
    """All that an evaluation must leave as it was."""
    kept: list[Tensor] = []
    for model in models:
        kept += model.state_dict().values()
        for layer in batch_norms(model):
            kept.append(torch.tensor(layer.momentum))
        kept.append(torch.tensor(model.training))
    kept += optimizer.replicas[0].buffers.values()
    kept.append(optimizer.flat.gradients)
    kept.append(torch.get_rng_state())
    return [each.clone() for each in kept]


def average_of(models: list[nn.Module]) -> nn.Module:
    """A model with the workers' mean of every parameter and of every running statistic."""
    average = copy.deepcopy(models[0])
    states = [model.state_dict() for model in models]
    means = {}
    for key, first in states[0].items():
        of_workers = [each[key].double() for each in states]
        values = torch.stack(of_workers)
        mean = values.mean(0)
        means[key] = mean.to(first.dtype)
    average.load_state_dict(means)
    return average


def direct_score(model: nn.Module) -> tuple[int, float]:
    """Correct answers and mean loss over the whole test set, in one pass."""
    labels = SAMPLES.evaluation_labels
    scored = copy.deepcopy(model).eval()
    with torch.no_grad():
        outputs = scored(SAMPLES.evaluation_inputs)
    exact = outputs.double()
    loss = nn.functional.cross_entropy(exact, labels)
    is_correct = outputs.argmax(dim=1) == labels
    correct = int(is_correct.sum())
    return correct, loss.item()


def score_of(
    workers: Workers, samples: Samples = SAMPLES, precision: MixedPrecision = PLAIN
) -> Score:
    """The score of the workers' average, with 500 test samples and 1,600 for training."""
    config, models, optimizer = workers
    return evaluate(config, models, optimizer, precision, samples, 500, 1600)


def recalibrated(average: nn.Module, num_workers: int) -> nn.Module:
    """The average model with the means over all workers' batches of means and variances, layer by
    layer."""
    average = copy.deepcopy(average).train()
    sums = {}
    for layer in batch_norms(average):
        sums[layer] = [
            torch.zeros_like(layer.running_mean),
            torch.zeros_like(layer.running_var),
        ]  # type: ignore[arg-type]

        def add(layer: nn.Module, inputs: tuple[Tensor]) -> None:
            (images,) = inputs  # (samples, channels, height, width)
            means, variances = sums[layer]
            means += images.mean((0, 2, 3))
            variances += images.var((0, 2, 3), unbiased=True)

        layer.register_forward_pre_hook(add)
    with torch.no_grad():
        for rank in range(num_workers):
            batches = batches_of(rank, num_workers, RECALIBRATION_STEPS)
            for inputs, _ in batches:
                average(inputs)
    num_batches = num_workers * RECALIBRATION_STEPS
    for layer, (means, variances) in sums.items():
        layer.running_mean = means / num_batches
        layer.running_var = variances / num_batches
        layer._forward_pre_hooks.clear()
    return average


def scored_models(policy: str, models: list[nn.Module]) -> list[nn.Module]:
    """The models that are scored: the average, or all workers with its parameters."""
    average = average_of(models)
    if policy == "average":
        return [average]
    if policy == "recalibrate":
        return [recalibrated(average, len(models))]
    parameters = dict(average.named_parameters())
    own = copy.deepcopy(models)
    for each in own:
        with_average = each.state_dict() | parameters
        each.load_state_dict(with_average)
    return own


@pytest.mark.parametrize("policy", ["average", "recalibrate", "local"])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_sample_is_scored_once_by_the_average_model_under_each_policy_and_nothing_is_changed(
    policy: str, num_workers: int
) -> None:
    """Running statistics: their mean, those of the average model, or each worker's own."""
    workers = trained(num_workers, policy)
    _, models, optimizer = workers
    samples = Counted(**vars(SAMPLES))
    before = state(models, optimizer)
    score = score_of(workers, samples)
    after = state(models, optimizer)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old, new)
    # The workers themselves differ, so that the comparison says something.
    own_losses = set()
    for model in models:
        _, loss = direct_score(model)
        own_losses.add(loss)
    assert len(own_losses) == num_workers
    scored = scored_models(policy, models)
    expected = [direct_score(model) for model in scored]
    num_models = len(expected)
    once = list(range(500))
    assert sorted(samples.scored) == sorted(once * num_models)
    count = 500 * num_models
    correct = sum(number for number, _ in expected)
    assert score.correct == correct
    assert score.count == count
    assert score.accuracy == pytest.approx(correct / count)
    losses = [loss for _, loss in expected]
    mean_loss = sum(losses) / num_models
    assert score.loss == pytest.approx(mean_loss, rel=1e-4)
    if policy == "local":
        assert len(set(losses)) == num_workers


@pytest.mark.parametrize("num_workers", [1, 3])
def test_worker_distance_and_error_norm_are_roots_of_mean_squares(
    num_workers: int,
) -> None:
    workers = trained(num_workers)
    _, _, optimizer = workers

    def root_of_mean_square(rows: Tensor) -> float:
        """Of the norms of workers' vectors, a row each."""
        squares = rows.square().sum(1)
        root = squares.mean().sqrt()
        return root.item()

    parameters = optimizer.flat.parameters.double()
    error = optimizer.error
    assert error is not None
    assert error.any(1).all()
    score = score_of(workers)
    from_mean = parameters - parameters.mean(0)
    distance = root_of_mean_square(from_mean)
    expected = pytest.approx(distance, rel=1e-4, abs=1e-6)
    assert score.worker_distance == expected
    are_apart = score.worker_distance > 0
    assert are_apart == (num_workers > 1)
    norm = root_of_mean_square(error.double())
    assert score.error_norm == pytest.approx(norm, rel=1e-6)
    without_error = trained(2, algorithm="sgd")
    score = score_of(without_error)
    assert score.error_norm is None
    assert score.worker_distance == 0.0


def test_evaluation_is_no_training_traffic_and_too_few_scored_samples_are_an_error() -> (
    None
):
    workers = trained(2, algorithm="sgd")
    _, _, optimizer = workers
    before = optimizer.traffic.training_bits
    score_of(workers)
    assert optimizer.traffic.training_bits == before
    parameters = 32 * 742
    statistics = 32 * 2 * (4 + 8)  # two for each channel
    sums = 64 * 5
    counted = optimizer.traffic[Purpose.EVALUATION]
    assert counted.bits == parameters + statistics + sums
    lossy = Counted(**vars(SAMPLES), lost=1)
    words = r"498 samples were scored where there .* 500"
    with pytest.raises(RuntimeError, match=words):
        score_of(workers, lossy)


def test_scores_are_made_in_the_precision_that_was_trained_in() -> None:
    workers = trained(1, algorithm="sgd", precision="bf16")
    _, models, optimizer = workers
    precision = MixedPrecision("bf16", CPU)
    collectives = optimizer.collectives
    score = score_of(workers, precision=precision)
    (accuracy,) = worker_accuracies(models, precision, collectives, SAMPLES, 500)
    model = models[0].eval()
    # In the same batches: of other sizes, products may be rounded otherwise.
    batches = SAMPLES.evaluation_inputs.split(EVALUATION_BATCH)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = torch.cat([model(batch) for batch in batches])
    assert outputs.dtype == torch.bfloat16
    labels = SAMPLES.evaluation_labels
    in_fp32 = outputs.float()
    loss = nn.functional.cross_entropy(in_fp32, labels)
    assert score.loss == pytest.approx(loss.item(), rel=1e-6)
    is_correct = outputs.argmax(1) == labels
    share_correct = is_correct.double().mean()
    expected = share_correct.item()
    assert score.accuracy == expected
    assert accuracy == expected
    plain = score_of(workers)
    change = abs(plain.loss - score.loss)
    assert change > 1e-5 * score.loss
