"""Evaluation of the workers' average, against direct computation."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms import Collectives, Purpose, SoloCollectives
from harness.spec import RunConfig, TaskSpec
from harness.tasks.blobs import TASK
from harness.tasks.task import Batch, TensorSamples
from harness.train.build import build_model, build_optimizer
from harness.train.evaluate import RECALIBRATION_STEPS, Score, evaluate, worker_accuracies
from harness.train.local_workers import MixedPrecision
from harness.train.order import worker_batches
from tests.harness.support import CSER, small_config
from tests.threads import run_workers

SAMPLES = TASK.load(None, TaskSpec(name="blobs"), torch.device("cpu"))
PLAIN = MixedPrecision("fp32", torch.device("cpu"))
NUM_WORKERS = [1, 3]


@dataclass
class Counted:
    """Samples that remember which of them were scored."""

    samples: TensorSamples
    scored: list[int] = field(default_factory=list)

    def training_batches(self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int) -> Iterator[Batch]:
        return self.samples.training_batches(indices, seed, rank, first_step)

    def evaluation_batches(self, indices: Tensor) -> Iterator[Batch]:
        self.scored += indices.tolist()
        return self.samples.evaluation_batches(indices)


@dataclass
class Seen:
    """What one worker had before and after an evaluation, and what came of it."""

    score: Score
    own: nn.Module
    error: Tensor | None
    before: dict[str, Any]
    after: dict[str, Any]
    training: bool


def state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """All that an evaluation must leave as it was."""
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    momenta = {f"momentum of {name}": torch.tensor(module.momentum) for name, module in batch_norms(model).items()}
    optimizer_state = {f"flat {key}": value.clone() for key, value in optimizer._buffers.items()}
    return tensors | momenta | optimizer_state | {"gradients": optimizer.flat.gradients.clone()}


def batch_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


def evaluated(
    num_workers: int, policy: str = "average", algorithm: str = "cser"
) -> tuple[RunConfig, list[Seen], list[int]]:
    """Workers that have trained seven steps on batches of their own, and then scored their average.

    So few steps leave their running statistics alike, so these are then pulled apart.
    """
    table = CSER if algorithm == "cser" else {}
    evaluation = {"per_epoch": 2, "batch_norm": policy}
    config = small_config(algorithm, table, num_workers=num_workers, evaluation=evaluation)
    counted = Counted(SAMPLES)
    built = build_model(config.model, TASK, config.seed, torch.device("cpu"))

    def work(collectives: Collectives) -> Seen:
        model = copy.deepcopy(built)
        optimizer = build_optimizer(config, model, collectives, 40)
        batches = worker_batches(1, 1600, collectives.rank, num_workers, 20, range(7))
        for inputs, labels in SAMPLES.training_batches(batches, 1, collectives.rank, 0):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        for layer in batch_norms(model).values():
            layer.running_var.mul_(1 + collectives.rank)  # type: ignore[union-attr]
        own, before = copy.deepcopy(model), state(model, optimizer)
        error = None if optimizer.error is None else optimizer.error.clone()
        score = evaluate(config, [model], optimizer, PLAIN, counted, 500, 1600)  # type: ignore[arg-type]
        return Seen(score, own, error, before, state(model, optimizer), model.training)

    return config, run_workers(work, num_workers), counted.scored


def mean_of(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.double() for tensor in tensors]).mean(dim=0).float()


def average_model(seen: list[Seen]) -> nn.Module:
    """A model with the workers' mean of every parameter and of every running statistic."""
    average = copy.deepcopy(seen[0].own)
    states = [each.own.state_dict() for each in seen]
    average.load_state_dict({key: mean_of([each[key] for each in states]) for key in states[0]})
    return average


def direct_score(model: nn.Module) -> tuple[int, float]:
    """Correct answers and mean loss over the whole test set, in one pass."""
    model.eval()
    with torch.no_grad():
        outputs = model(SAMPLES.evaluation_inputs)
    labels = SAMPLES.evaluation_labels
    loss = nn.functional.cross_entropy(outputs.double(), labels).item()
    return int((outputs.argmax(dim=1) == labels).sum()), loss


def recalibrated(config: RunConfig, average: nn.Module) -> nn.Module:
    """The average model with statistics from plain formulas: means over all workers' batches, layer by layer."""
    layers = list(batch_norms(average).values())
    sums = [[torch.zeros_like(layer.running_mean), torch.zeros_like(layer.running_var)] for layer in layers]  # type: ignore[arg-type]
    inputs_of: dict[int, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, number=number: inputs_of.update({number: inputs[0]}))
        for number, layer in enumerate(layers)
    ]
    average.train()
    count = config.num_workers * RECALIBRATION_STEPS
    for rank in range(config.num_workers):
        for index in worker_batches(1, 1600, rank, config.num_workers, 20, range(RECALIBRATION_STEPS)):
            with torch.no_grad():
                average(SAMPLES.train_inputs[index])
            for number, (mean, var) in enumerate(sums):
                mean += inputs_of[number].mean(dim=(0, 2, 3)) / count
                var += inputs_of[number].var(dim=(0, 2, 3), unbiased=True) / count
    for hook in hooks:
        hook.remove()
    for layer, (mean, var) in zip(layers, sums, strict=True):
        layer.running_mean, layer.running_var = mean, var
    return average


def expected_scores(policy: str, config: RunConfig, seen: list[Seen]) -> list[tuple[int, float]]:
    """Correct answers and loss of each model that is scored: the average, or all workers with its parameters."""
    average = average_model(seen)
    if policy != "local":
        return [direct_score(average if policy == "average" else recalibrated(config, average))]
    for each in seen:
        each.own.load_state_dict(each.own.state_dict() | dict(average.named_parameters()))
    return [direct_score(each.own) for each in seen]


@pytest.mark.parametrize("policy", ["average", "recalibrate", "local"])
@pytest.mark.parametrize("num_workers", NUM_WORKERS)
def test_every_sample_is_scored_once_by_the_average_model_under_each_policy_and_nothing_is_changed(
    policy: str, num_workers: int
) -> None:
    """Of running statistics: their mean, those of the average model, or each worker's own."""
    torch.manual_seed(3)
    generator = torch.get_rng_state()
    config, seen, scored = evaluated(num_workers, policy)
    assert torch.get_rng_state().equal(generator)
    for each in seen:
        assert each.training and each.before.keys() == each.after.keys()
        assert not [key for key, value in each.before.items() if not value.equal(each.after[key])]
        assert int(each.after["1.num_batches_tracked"]) == 7
    # The workers themselves differ, so that the comparison says something.
    assert len({direct_score(each.own)[1] for each in seen}) == num_workers
    expected = expected_scores(policy, config, seen)
    assert sorted(scored) == sorted(list(range(500)) * len(expected))
    (score,) = {each.score for each in seen}
    count = 500 * len(expected)
    correct = sum(number for number, _ in expected)
    assert (score.correct, score.count, score.accuracy) == (correct, count, pytest.approx(correct / count))
    assert score.loss == pytest.approx(sum(loss for _, loss in expected) / len(expected), rel=1e-4)
    assert policy != "local" or len({loss for _, loss in expected}) == num_workers


def norm(vector: Tensor) -> float:
    return float(vector.double().square().sum())


@pytest.mark.parametrize("num_workers", NUM_WORKERS)
def test_worker_distance_and_error_norm(num_workers: int) -> None:
    _, seen, _ = evaluated(num_workers)
    own = [torch.cat([p.detach().reshape(-1) for p in each.own.parameters()]) for each in seen]
    distances = [norm(each - mean_of(own)) for each in own]
    errors = [norm(each.error) for each in seen if each.error is not None]
    assert len(errors) == num_workers and min(errors) > 0
    score = seen[0].score
    assert score.worker_distance == pytest.approx((sum(distances) / num_workers) ** 0.5, rel=1e-4, abs=1e-6)
    assert (score.worker_distance > 0) == (num_workers > 1)
    assert score.error_norm == pytest.approx((sum(errors) / num_workers) ** 0.5, rel=1e-6)
    _, plain, _ = evaluated(2, algorithm="sgd")
    assert {(each.score.error_norm, each.score.worker_distance) for each in plain} == {(None, 0.0)}


class Lossy:
    """Samples that lose the first of each worker's."""

    def evaluation_batches(self, indices: Tensor) -> Iterator[Batch]:
        return SAMPLES.evaluation_batches(indices[1:])


def test_evaluation_is_no_training_traffic_and_too_few_scored_samples_are_an_error() -> None:
    config = small_config(num_workers=2)
    built = build_model(config.model, TASK, 1, torch.device("cpu"))

    def work(collectives: Collectives, samples: Any) -> tuple[int, int]:
        model = copy.deepcopy(built)
        optimizer = build_optimizer(config, model, collectives, 40)
        evaluate(config, [model], optimizer, PLAIN, samples, 500, 1600)
        return collectives.traffic.training_bits, collectives.traffic[Purpose.EVALUATION].bits

    # The parameters once, two statistics of 4 + 8 channels, and five sums of 64 bits.
    assert set(run_workers(partial(work, samples=SAMPLES), 2)) == {(0, 32 * 742 + 32 * 24 + 64 * 5)}
    with pytest.raises(RuntimeError, match=r"498 samples were scored where there .* 500"):
        run_workers(partial(work, samples=Lossy()), 2)


def test_scores_are_made_in_the_precision_that_was_trained_in() -> None:
    config = small_config(precision="bf16")
    model = build_model(config.model, TASK, 1, torch.device("cpu"))
    optimizer = build_optimizer(config, model, SoloCollectives(), 40)
    precision = MixedPrecision("bf16", torch.device("cpu"))
    score = evaluate(config, [model], optimizer, precision, SAMPLES, 500, 1600)
    (accuracy,) = worker_accuracies([model], precision, SoloCollectives(), SAMPLES, 500)
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(SAMPLES.evaluation_inputs)
    assert outputs.dtype == torch.bfloat16
    labels = SAMPLES.evaluation_labels
    assert score.loss == pytest.approx(nn.functional.cross_entropy(outputs.float(), labels).item(), rel=1e-6)
    assert accuracy == score.accuracy == (outputs.argmax(1) == labels).double().mean().item()
    plain = evaluate(config, [model], optimizer, PLAIN, SAMPLES, 500, 1600)
    assert abs(plain.loss - score.loss) > 1e-5 * score.loss
