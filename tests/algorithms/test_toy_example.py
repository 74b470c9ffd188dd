"""DeepMind's sanity check of local SGD with an outer step: DiLoCo has the losses of its arithmetic, and those that it
prints.

Source: google-deepmind/asyncdiloco, AsyncLocalSGDToyExample.ipynb at commit e783a30, "Sanity Check", whose synchronous
run prints the losses. Numbers and the order of draws are theirs, the code is not. The notebook's first version
(26e0d9a) scored other samples, and printed other losses of the same training.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cser_bench.algorithms import DiLoCo, StackedCollectives

Vectors = NDArray[np.float64]

SEED = 42
NUM_INPUTS = 512
NUM_CLASSES = 4
NUM_WORKERS = 4
BATCH_SIZE = 32
NUM_ROUNDS = 5
SYNC_INTERVAL = 20
OUTER_LR = 0.5
LR = 2e-4
LOWEST_LR = 1e-6
WEIGHT_DECAY = 1e-3
BETAS = (0.9, 0.999)
EPS = 1e-8
PRINTED = [1.391600, 1.357046, 1.325124, 1.307899, 1.300403, 1.298819]
"""Before training and after each round, with 65,000 hidden units and all of the data."""


@dataclass(frozen=True)
class Problem:
    """Samples and their classes, a row each; which of them each worker takes, in order; which are scored."""

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    order: NDArray[np.int64]
    scored: list[int]

    def batches(self, step: int) -> NDArray[np.int64]:
        """Each worker's samples at this step of all, counted from 0."""
        first = step * BATCH_SIZE
        return self.order[:, first : first + BATCH_SIZE]


def drawn(num_samples: int, clusters_per_class: int, num_scored: int) -> Problem:
    """Gaussian clusters about points of the unit sphere, a like number of each class."""
    generator = np.random.RandomState(SEED)
    normal = generator.randn
    num_clusters = clusters_per_class * NUM_CLASSES
    centres = normal(num_clusters, NUM_INPUTS)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    size = num_samples // num_clusters
    # Cluster by cluster, so that numbers of 64 bits are not all held at once.
    clusters = []
    for centre in centres:
        noise = 0.5 * normal(size, NUM_INPUTS)
        cluster = noise + centre
        clusters.append(cluster.astype(np.float32))
    per_class = size * clusters_per_class
    labels = np.repeat(np.arange(NUM_CLASSES), per_class)
    of_data = random.Random(SEED)
    shards = list(range(num_samples))
    of_data.shuffle(shards)
    scored = of_data.sample(range(num_samples), num_scored)
    of_training = random.Random(SEED)
    shard_size = num_samples // NUM_WORKERS
    order = []
    for first in range(0, num_samples, shard_size):
        places = list(range(shard_size))
        of_training.shuffle(places)
        of_shard = shards[first : first + shard_size]
        order.append([of_shard[place] for place in places])
    inputs = np.concatenate(clusters)
    return Problem(inputs, labels, np.array(order), scored)


def initial(hidden: int) -> list[Tensor]:
    """The weights and biases of two layers, by PyTorch's default."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        hidden_layer = nn.Linear(NUM_INPUTS, hidden)
        output_layer = nn.Linear(hidden, NUM_CLASSES)
    parameters = [*hidden_layer.parameters(), *output_layer.parameters()]
    return [parameter.detach() for parameter in parameters]


def learning_rates() -> Iterator[float]:
    """A cosine over all steps, but that each round's first step has the highest."""
    num_steps = NUM_ROUNDS * SYNC_INTERVAL
    for step in range(num_steps):
        share = step / num_steps
        falling = 0.5 * (1 + math.cos(math.pi * share))
        is_first = step % SYNC_INTERVAL == 0
        if is_first:
            yield LR
        else:
            yield LOWEST_LR + (LR - LOWEST_LR) * falling


# Their arithmetic, in NumPy.


def scores(x: list[Vectors], inputs: Vectors) -> tuple[Vectors, Vectors]:
    """What the hidden units are, and the logarithms of the classes' probabilities."""
    first, first_bias, second, second_bias = x
    before_relu = inputs @ first.T + first_bias
    units = np.maximum(before_relu, 0)
    logits = units @ second.T + second_bias
    logits -= logits.max(axis=1, keepdims=True)
    sums = np.exp(logits).sum(axis=1, keepdims=True)
    logarithms = logits - np.log(sums)
    return units, logarithms


def gradients(
    x: list[Vectors], inputs: Vectors, labels: NDArray[np.int64]
) -> list[Vectors]:
    """Gradient of the mean cross-entropy."""
    units, logarithms = scores(x, inputs)
    expected = np.eye(NUM_CLASSES)[labels]
    probabilities = np.exp(logarithms)
    wrong = (probabilities - expected) / len(labels)
    is_active = units > 0
    back = (wrong @ x[2]) * is_active
    first = back.T @ inputs
    first_bias = back.sum(axis=0)
    second = wrong.T @ units
    second_bias = wrong.sum(axis=0)
    return [first, first_bias, second, second_bias]


def trained_alone(
    x: list[Vectors], problem: Problem, worker: int, first: int, rates: list[float]
) -> list[Vectors]:
    """What a worker makes of the model in a round, by an AdamW whose moments begin at 0."""
    x = [vector.copy() for vector in x]
    means = [np.zeros_like(vector) for vector in x]
    squares = [np.zeros_like(vector) for vector in x]
    for count, rate in enumerate(rates, 1):
        step = first + count - 1
        here = problem.batches(step)[worker]
        inputs = problem.inputs[here].astype(np.float64)
        labels = problem.labels[here]
        found = gradients(x, inputs, labels)
        for vector, gradient, mean, square in zip(
            x, found, means, squares, strict=True
        ):
            mean += (1 - BETAS[0]) * (gradient - mean)
            square += (1 - BETAS[1]) * (gradient**2 - square)
            unbiased = mean / (1 - BETAS[0] ** count)
            unbiased_square = square / (1 - BETAS[1] ** count)
            scale = np.sqrt(unbiased_square) + EPS
            vector *= 1 - rate * WEIGHT_DECAY
            vector -= rate * unbiased / scale
    return x


def losses_by_hand(problem: Problem, hidden: int) -> list[float]:
    """Their server steps by SGD on the mean of what workers have moved by."""
    parameters = initial(hidden)
    x = [parameter.double().numpy() for parameter in parameters]
    inputs = problem.inputs[problem.scored].astype(np.float64)
    labels = problem.labels[problem.scored]
    places = np.arange(len(labels))

    def loss() -> float:
        _, logarithms = scores(x, inputs)
        of_labels = logarithms[places, labels]
        return float(-of_labels.mean())

    rates = list(learning_rates())
    found = [loss()]
    for first in range(0, len(rates), SYNC_INTERVAL):
        own_rates = rates[first : first + SYNC_INTERVAL]
        moved = []
        for worker in range(NUM_WORKERS):
            own_x = trained_alone(x, problem, worker, first, own_rates)
            moved.append(own_x)
        for number, vector in enumerate(x):
            pseudo_gradient = np.zeros_like(vector)
            for own in moved:
                pseudo_gradient += (vector - own[number]) / NUM_WORKERS
            vector -= OUTER_LR * pseudo_gradient
        found.append(loss())
    return found


# Ours.


def losses_by_diloco(
    problem: Problem, hidden: int, dtype: torch.dtype, device: str = "cpu"
) -> list[float]:
    parameters = []
    for parameter in initial(hidden):
        # The same of each worker: a row each.
        stacked = torch.stack([parameter] * NUM_WORKERS)
        of_type = stacked.to(device, dtype)
        parameters.append(nn.Parameter(of_type))

    def logits(worker: int, here: list[int] | NDArray[np.int64]) -> Tensor:
        own = [parameter[worker] for parameter in parameters]
        first, first_bias, second, second_bias = own
        numbers = torch.from_numpy(problem.inputs[here])
        inputs = numbers.to(device, dtype)
        before_relu = inputs @ first.T + first_bias
        units = before_relu.relu()
        return units @ second.T + second_bias

    def loss(worker: int, here: list[int] | NDArray[np.int64]) -> Tensor:
        own_labels = problem.labels[here]
        labels = torch.from_numpy(own_labels).to(device)
        own_logits = logits(worker, here)
        return cross_entropy(own_logits, labels)

    def scored() -> float:
        num_scored = len(problem.scored)
        total = 0.0
        with torch.no_grad():
            for at in range(0, num_scored, 1000):
                part = problem.scored[at : at + 1000]
                mean = float(loss(0, part))
                total += mean * len(part)
        return total / num_scored

    found = [scored()]
    rates = iter(learning_rates())
    for first in range(0, NUM_ROUNDS * SYNC_INTERVAL, SYNC_INTERVAL):
        # A new one in each round: theirs begin with moments of 0, ours would keep them.
        optimizer = DiLoCo(
            parameters,
            lr=LR,
            weight_decay=WEIGHT_DECAY,
            local_step="adamw",
            betas=BETAS,
            eps=EPS,
            sync_interval=SYNC_INTERVAL,
            outer_lr=OUTER_LR,
            outer_momentum=0.0,
            collectives=StackedCollectives(NUM_WORKERS),
        )
        for step in range(first, first + SYNC_INTERVAL):
            optimizer.param_groups[0]["lr"] = next(rates)
            optimizer.zero_grad()
            for worker, here in enumerate(problem.batches(step)):
                own_loss = loss(worker, here)
                own_loss.backward()
            optimizer.step()
        found.append(scored())
    return found


def test_diloco_has_the_losses_of_their_arithmetic() -> None:
    """At a size that takes seconds: fewer samples, clusters and hidden units, and 64 bits."""
    problem = drawn(num_samples=16_000, clusters_per_class=2, num_scored=1000)
    by_hand = losses_by_hand(problem, hidden=60)
    assert by_hand[-1] < by_hand[0] - 0.01
    found = losses_by_diloco(problem, 60, torch.float64)
    assert found == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes minutes without a GPU")
def test_diloco_has_the_losses_that_they_print() -> None:
    problem = drawn(num_samples=128_000, clusters_per_class=8, num_scored=10_000)
    found = losses_by_diloco(problem, 65_000, torch.float32, "cuda")
    assert found == pytest.approx(PRINTED, abs=2e-6)
