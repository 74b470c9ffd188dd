"""Which worker sees what and when: shards, order, scores, learning rates, and seeds that pair the
algorithms."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from cser_bench.algorithms import StackedCollectives
from cser_bench.algorithms.registry import algorithms
from cser_bench.harness.seeds import derive_seed
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import (
    EvaluationSpec,
    PartitionSpec,
    ScheduleSpec,
    TaskSpec,
)
from cser_bench.harness.tasks.blobs import TASK
from cser_bench.harness.tasks.samples import Batch
from cser_bench.harness.tasks.task import (
    TensorSamples,
    split_sizes,
    training_and_validation_indices,
)
from cser_bench.harness.train.build import build_model, local_workers
from cser_bench.harness.train.order import class_counts, worker_batches, worker_shards
from cser_bench.harness.train.schedule import learning_rate_factor, num_steps_of
from tests.harness.support import BLOCK, Table, done, settings_of, small_config

FIXED: dict[str, Table] = {
    "contiguous": {"kind": "contiguous"},
    "dirichlet": {"kind": "dirichlet", "alpha": 0.5},
    "class_shards": {"kind": "class_shards", "shards_per_worker": 2},
}
CLASSES = 10
LABELS = torch.arange(1_600) % CLASSES
"""As those of the task `blobs`."""


def shards_of(
    labels: Tensor = LABELS, num_workers: int = 8, seed: int = 1, **spec: Any
) -> list[list[int]]:
    partition = PartitionSpec(**spec)
    shards = worker_shards(partition, labels, num_workers, seed)
    assert shards is not None
    return [shard.tolist() for shard in shards]


def dirichlet(alpha: float) -> Table:
    return {"kind": "dirichlet", "alpha": alpha}


def class_shards(number: int) -> Table:
    return {"kind": "class_shards", "shards_per_worker": number}


ALPHAS = st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 50.0, 1e9])
SPECS = st.one_of(
    st.just({"kind": "contiguous"}),
    st.builds(dirichlet, ALPHAS),
    st.builds(class_shards, st.integers(1, 4)),
)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    SPECS,
    st.lists(st.integers(0, 6), min_size=20, max_size=90),
    st.integers(1, 5),
    st.integers(0, 2**32),
)
def test_shards_are_disjoint_of_one_size_and_leave_out_no_more_than_they_must(
    spec: Table, labels: list[int], num_workers: int, seed: int
) -> None:
    classes = torch.tensor(labels)
    num_samples = len(labels)
    shards = shards_of(classes, num_workers, seed, **spec)
    assert len(shards) == num_workers
    torch.manual_seed(5)  # The global generator has no say.
    again = shards_of(classes, num_workers, seed, **spec)
    assert again == shards
    num_stretches = num_workers * spec.get("shards_per_worker", 1)
    stretch = num_samples // num_stretches
    shard_size = stretch * num_stretches // num_workers
    sizes = {len(shard) for shard in shards}
    assert sizes == {shard_size}
    held = list(itertools.chain(*shards))
    assert len(set(held)) == len(held)
    assert set(held) <= set(range(num_samples))
    if spec["kind"] == "contiguous":
        assert held == list(range(len(held)))
    num_left_out = num_samples - len(held)
    assert num_left_out < num_stretches
    indices = [torch.tensor(shard) for shard in shards]
    counts = class_counts(indices, classes, 7)
    for row, shard in zip(counts, shards, strict=True):
        recount = Counter(labels[sample] for sample in shard)
        expected = [recount[each] for each in range(7)]
        assert row == expected


def first_shares(labels: Tensor, alpha: float) -> numpy.ndarray[Any, Any]:
    """Class shares of worker 0, who finds all classes full, under a hundred seeds; shape (100,
    classes)."""
    num_workers = 20
    num_classes = int(labels.max()) + 1
    spec = dirichlet(alpha)
    counts = []
    for seed in range(100):
        shards = shards_of(labels, num_workers, seed, **spec)
        own = labels[shards[0]]
        counts_of_own = numpy.bincount(own, minlength=num_classes)
        counts.append(counts_of_own)
    shard_size = len(labels) // num_workers
    return numpy.stack(counts) / shard_size


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
def test_shares_have_the_second_moment_of_a_dirichlet_distribution_and_follow_the_sizes_of_classes(
    alpha: float,
) -> None:
    labels = torch.arange(20_000) % CLASSES
    shares = first_shares(labels, alpha)
    squares = (shares**2).sum(axis=1)
    # For K shares of a Dirichlet distribution, E sum p^2 = (alpha + 1) / (K alpha + 1); 1000 samples
    # are drawn from them.
    expected = (alpha + 1) / (CLASSES * alpha + 1)
    expected += (1 - expected) / 1_000
    deviation_of_mean = squares.std() / 10
    off_mean = abs(squares.mean() - expected)
    assert off_mean < 4 * deviation_of_mean
    classes = torch.arange(3)
    sizes = torch.tensor([2_000, 6_000, 12_000])
    unequal = torch.repeat_interleave(classes, sizes)
    shares_of_unequal = first_shares(unequal, alpha=1.0)
    mean_shares = shares_of_unequal.mean(axis=0)
    off_shares = mean_shares - [0.1, 0.3, 0.6]
    assert abs(off_shares).max() < 0.08


def test_class_shards_give_a_worker_few_classes_at_random() -> None:
    shards = shards_of(num_workers=10, **FIXED["class_shards"])
    sets = []
    for shard in shards:
        labels = LABELS[shard]
        sets.append(set(labels.tolist()))
    assert max(map(len, sets)) == 2
    pairs = [each for each in sets if len(each) == 2]
    apart = [max(pair) - min(pair) for pair in pairs]
    assert max(apart) > 1, "not neighbours alone"


@pytest.mark.parametrize("kind", ["dirichlet", "class_shards"])
def test_shards_that_are_drawn_depend_on_the_seed(kind: str) -> None:
    spec = FIXED[kind]
    first = shards_of(seed=1, **spec)
    second = shards_of(seed=2, **spec)
    assert first != second


@settings(deadline=None, derandomize=True, max_examples=90)
@given(
    st.one_of(SPECS, st.none()),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(0, 2**32),
    st.integers(0, 20),
)
def test_batches_are_full_an_epoch_shows_no_sample_twice_and_the_order_goes_on_from_any_step(
    spec: Table | None, num_workers: int, batch_size: int, seed: int, first: int
) -> None:
    """Within a worker's shard, or where there are none over all workers."""
    partition = spec or {"kind": "reshuffled"}
    config = small_config(
        num_workers=num_workers,
        batch_size=batch_size,
        num_epochs=3,
        partition=partition,
    )
    per_epoch, num_steps = num_steps_of(config)
    num_samples = len(LABELS)
    if spec:
        shards = shards_of(LABELS, num_workers, seed, **spec)
        num_held = len(shards[0])
    else:
        shards = [list(range(num_samples))]
        num_held = num_samples // num_workers
    num_seen = per_epoch * batch_size
    assert num_held - batch_size < num_seen <= num_held

    def batches(rank: int, start: int = 0, seed: int = seed) -> Tensor:
        """A row of samples for each step."""
        shard = None
        if spec:
            shard = torch.tensor(shards[rank])
        steps = range(start, num_steps)
        found = worker_batches(
            seed, num_samples, rank, num_workers, batch_size, steps, shard
        )
        return torch.stack(list(found))

    found = [batches(rank) for rank in range(num_workers)]
    shapes = {own.shape for own in found}
    assert shapes == {(num_steps, batch_size)}
    epochs = []
    for start in range(0, num_steps, per_epoch):
        steps = slice(start, start + per_epoch)
        seen = []
        for own in found:
            of_epoch = own[steps].flatten()
            seen.append(of_epoch.tolist())
        epochs.append(seen)
        if not spec:
            of_all = itertools.chain(*seen)
            seen = [list(of_all)]
        for each, shard in zip(seen, shards, strict=True):
            assert len(set(each)) == len(each)
            assert set(each) <= set(shard)
    first_epoch, second_epoch, third_epoch = epochs
    assert first_epoch != second_epoch
    assert second_epoch != third_epoch
    torch.manual_seed(first)  # The global generator has no say.
    whole = found[0]
    resumed = batches(0, first)
    assert torch.equal(resumed, whole[first:])
    of_another_seed = batches(0, seed=seed + 1)
    assert not torch.equal(of_another_seed, whole)


@pytest.mark.parametrize("kind", [*FIXED, "reshuffled"])
def test_what_each_worker_trains_on_and_recorded_counts_of_classes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[int]] = defaultdict(list)

    def watched(
        samples: TensorSamples,
        indices: Iterable[Tensor],
        seed: int,
        rank: int,
        first: int,
    ) -> Iterator[Batch]:
        for index in indices:
            seen[rank] += index.tolist()
            yield samples.train_inputs[index], samples.train_labels[index]

    monkeypatch.setattr(TensorSamples, "training_batches", watched)
    partition = FIXED.get(kind, {"kind": kind})
    config = small_config(num_workers=4, partition=partition, num_epochs=2)
    result = done(config, tmp_path).result
    # 4 workers x 20 samples x 20 steps are all 1,600, in each of both epochs.
    first = []
    second = []
    for rank in range(4):
        own = seen[rank]
        first.append(own[:400])
        second.append(own[400:800])
    for epoch in (first, second):
        both = sorted(itertools.chain(*epoch))
        assert both == list(range(1_600))
    if kind == "reshuffled":
        assert result.class_counts is None
        # By chance a quarter of 400 is seen by the same worker again.
        for one, two in zip(first, second, strict=True):
            again = set(one).intersection(two)
            num_again = len(again)
            assert 60 < num_again < 140
    else:
        shards = shards_of(num_workers=4, **partition)
        expected = [sorted(shard) for shard in shards]
        for epoch in (first, second):
            held = [sorted(own) for own in epoch]
            assert held == expected
        assert first != second
        counts = []
        for own in first:
            labels = Counter(LABELS[own].tolist())
            counts_of_worker = [labels[each] for each in range(CLASSES)]
            counts.append(counts_of_worker)
        assert result.class_counts == counts


# Order and schedule


def test_a_run_of_fewer_steps_takes_the_first_of_its_epochs_and_has_a_schedule_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 of the 40 steps of an epoch, with a warm-up of a quarter and a score in each half."""
    seen: list[list[int]] = []

    def watched(
        samples: TensorSamples,
        indices: Iterable[Tensor],
        seed: int,
        rank: int,
        first: int,
    ) -> Iterator[Batch]:
        for index in indices:
            seen.append(index.tolist())
            yield samples.train_inputs[index], samples.train_labels[index]

    monkeypatch.setattr(TensorSamples, "training_batches", watched)
    schedule = {"kind": "cosine", "warmup_share": 0.25}
    of_12_steps = small_config(schedule=schedule, num_steps=12)
    of_an_epoch = small_config(schedule=schedule, evaluation={"num_scores": 40})
    short = done(of_12_steps, tmp_path)
    whole = done(of_an_epoch, tmp_path)
    assert short.result.num_steps == 12
    assert whole.result.num_steps == 40
    # Two workers: a batch each at every step.
    assert seen[:24] == seen[24:48]
    assert len(seen) == 24 + 80
    # The last steps before the scores are 5 and 11; 3 steps warm up, 9 follow the cosine.
    rates = []
    for step in (5, 11):
        share = (step - 3) / 9
        cosine = math.cos(math.pi * share)
        rate = 0.05 * (1 + cosine) / 2
        rates.append(rate)
    steps = [event.step for event in short.events]
    assert steps == [6, 12]
    found = [event.learning_rate for event in short.events]
    assert found == pytest.approx(rates)


def factors(schedule: ScheduleSpec, per_epoch: int, num_epochs: int) -> list[float]:
    return [
        learning_rate_factor(schedule, step, per_epoch, num_epochs)
        for step in range(per_epoch * num_epochs)
    ]


TEN = [step / 10 for step in range(1, 11)]
SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    # Three epochs of ten steps.
    "constant": ({"kind": "constant"}, [1.0] * 30),
    "warm-up": (
        {"kind": "constant", "warmup_epochs": 0.5},
        [0.2, 0.4, 0.6, 0.8, *[1.0] * 26],
    ),
    "a share of the run": (
        {"kind": "constant", "warmup_epochs": 0.4, "warmup_share": 0.2},
        [*TEN, *[1.0] * 20],
    ),
    "warm-up beyond the run": (
        {"kind": "constant", "warmup_epochs": 3200.0},
        [(n + 1) / 32_000 for n in range(30)],
    ),
    "cosine": (
        {"kind": "cosine", "warmup_epochs": 1.0},
        [*TEN, *(math.cos(math.pi * number / 40) ** 2 for number in range(20))],
    ),
    "milestones during the warm-up": (
        {
            "kind": "milestones",
            "milestones": [1.0, 2.5],
            "factor": 0.2,
            "warmup_epochs": 2.0,
        },
        [
            *(n / 20 for n in range(1, 11)),
            *(0.2 * n / 20 for n in range(11, 21)),
            *[0.2] * 5,
            *[0.04] * 5,
        ],
    ),
    "staircase": (
        {
            "kind": "milestones",
            "milestones": [9.0],
            "warmup_epochs": 2.5,
            "staircase_warmup": True,
        },
        [*[1 / 2.5] * 10, *[2 / 2.5] * 10, *[1.0] * 10],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    table, expected = SCHEDULES[name]
    schedule = ScheduleSpec.model_validate(table)
    found = factors(schedule, per_epoch=10, num_epochs=3)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("per_epoch", "scores", "num_epochs", "expected"),
    [
        (40, {"per_epoch": 2}, 1, {20, 40}),
        (40, {"per_epoch": 1}, 3, {40, 80, 120}),
        (10, {"per_epoch": 3}, 2, {3, 7, 10, 13, 17, 20}),
        (3, {"per_epoch": 10}, 1, {1, 2, 3}),
        (7, {"num_scores": 4}, 10, {18, 35, 52, 70}),
        (7, {"num_scores": 500}, 1, set(range(1, 8))),
    ],
)
def test_scores_are_evenly_spaced_and_the_last_step_has_one(
    per_epoch: int, scores: dict[str, int], num_epochs: int, expected: set[int]
) -> None:
    evaluation = EvaluationSpec.model_validate(scores)
    assert evaluation.steps(num_epochs, per_epoch) == expected


def test_validation_samples_are_always_the_same_and_apart_from_those_that_are_trained_on() -> (
    None
):
    everyone = set(range(1600))
    kept, validation = training_and_validation_indices(1600, 400)
    in_either = kept.tolist() + validation.tolist()
    both = set(in_either)
    assert both == everyone
    assert len(kept) == 1200
    torch.manual_seed(7)
    _, again = training_and_validation_indices(1600, 400)
    assert again.equal(validation)
    numbers = validation.tolist()
    first_ones = list(range(400))
    last_ones = list(range(1200, 1600))
    assert numbers != first_ones
    assert numbers != last_ones
    trained, _ = training_and_validation_indices(1600, 0, 800)
    for number in (1, 400, 800):
        kept, held = training_and_validation_indices(1600, number, 800)
        _, of_all = training_and_validation_indices(1600, number)
        assert kept.equal(trained)
        assert held.equal(of_all)
        assert len(kept) == 800
        trained_on = set(kept.tolist())
        held_out = set(held.tolist())
        assert not trained_on & held_out
    cpu = torch.device("cpu")
    task = TaskSpec(name="blobs")
    whole = TASK.load(None, task, cpu)
    expected = whole.train_inputs[trained]
    for number, scored in ((0, 500), (400, 400)):
        spec = TaskSpec(name="blobs", num_train=800, held_out=number)
        samples = TASK.load(None, spec, cpu)
        assert samples.train_inputs.equal(expected)
        assert len(samples.evaluation_labels) == scored
        assert split_sizes(TASK, spec) == (800, scored)
    too_many = TaskSpec(name="blobs", num_train=801, held_out=800)
    words = "num_train = 801 and held_out = 800 are together more than the 1600"
    with pytest.raises(SpecError, match=words):
        split_sizes(TASK, too_many)


def test_seeds_of_different_streams_differ_and_never_change() -> None:
    streams = {
        derive_seed(1, "init"),
        derive_seed(2, "init"),
        derive_seed(1, "order"),
        derive_seed(1, "order", 0),
        derive_seed(11, "init"),
    }
    assert len(streams) == 5
    for seed in streams:
        assert 0 <= seed < 2**63
    # Written down, so that records of today can be repeated tomorrow: the start of sha256("(1,
    # 'init')").
    digest = bytes.fromhex("c533243a0e98fb04")
    expected = int.from_bytes(digest, "little") >> 1
    assert derive_seed(1, "init") == expected


def test_all_algorithms_start_from_the_same_parameters() -> None:
    """The seed alone decides each worker's model, and the global generator is left as it was."""
    before = torch.get_rng_state()
    spec = small_config().model
    cpu = torch.device("cpu")
    first = build_model(spec, TASK, 1, cpu)
    other = build_model(spec, TASK, 2, cpu)
    assert torch.get_rng_state().equal(before)
    own = parameters_to_vector(first.parameters())
    others = parameters_to_vector(other.parameters())
    assert not torch.equal(own, others)
    for name in algorithms():
        table = settings_of(name, BLOCK)
        config = small_config(name, table)
        collectives = StackedCollectives(2)
        _, optimizer = local_workers(config, first, collectives, 40)
        expected = own.expand(2, -1)
        assert torch.equal(optimizer.flat.parameters, expected)
