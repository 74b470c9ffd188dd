"""Which samples each worker holds, from the definitions of the partitions, and in runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.records.store import read_run
from harness.spec import PartitionSpec, TaskSpec
from harness.tasks import blobs
from harness.tasks.blobs import Blobs
from harness.tasks.task import Batch, TensorSamples
from harness.train.build import num_steps_of
from harness.train.order import class_counts, worker_batches, worker_shards
from harness.workers.attempt import attempt_stacked
from tests.harness.support import Table, job_for, small_config

FIXED: dict[str, Table] = {
    "contiguous": {"kind": "contiguous"},
    "dirichlet": {"kind": "dirichlet", "alpha": 0.5},
    "class_shards": {"kind": "class_shards", "shards_per_worker": 2},
}
CLASSES = 10
LABELS = torch.arange(1_600) % CLASSES
"""As those of the task `blobs`."""


def shards_of(labels: Tensor = LABELS, num_workers: int = 8, seed: int = 1, **spec: Any) -> list[list[int]]:
    shards = worker_shards(PartitionSpec(**spec), labels, num_workers, seed)
    assert shards is not None
    return [shard.tolist() for shard in shards]


SPECS = st.one_of(
    st.just({"kind": "contiguous"}),
    st.builds(lambda alpha: {"kind": "dirichlet", "alpha": alpha}, st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 50.0, 1e9])),
    st.builds(lambda number: {"kind": "class_shards", "shards_per_worker": number}, st.integers(1, 4)),
)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(SPECS, st.lists(st.integers(0, 6), min_size=20, max_size=90), st.integers(1, 5), st.integers(0, 2**32))
def test_shards_are_disjoint_of_one_size_and_leave_out_no_more_than_they_must(
    spec: Table, labels: list[int], num_workers: int, seed: int
) -> None:
    shards = shards_of(torch.tensor(labels), num_workers, seed, **spec)
    assert len(shards) == num_workers
    stretches = num_workers * spec.get("shards_per_worker", 1)
    assert {len(shard) for shard in shards} == {len(labels) // stretches * stretches // num_workers}
    held = [sample for shard in shards for sample in shard]
    assert len(set(held)) == len(held) and set(held) <= set(range(len(labels)))
    assert len(labels) - len(held) < stretches
    counts = class_counts([torch.tensor(shard) for shard in shards], torch.tensor(labels), 7)
    for row, shard in zip(counts, shards, strict=True):
        recount = Counter(labels[sample] for sample in shard)
        assert row == [recount[each] for each in range(7)]


def test_contiguous_shards_are_stretches_of_the_data_set() -> None:
    shards = shards_of(torch.zeros(103, dtype=torch.int64), 4, kind="contiguous")
    assert shards == [list(range(25)), list(range(25, 50)), list(range(50, 75)), list(range(75, 100))]
    assert worker_shards(PartitionSpec(), LABELS, 8, 1) is None  # reshuffled: no partition


def first_shares(labels: Tensor, alpha: float) -> numpy.ndarray[Any, Any]:
    """Class shares of worker 0, who finds all classes full, under a hundred seeds; shape (100, classes)."""
    shards = [shards_of(labels, 20, seed, kind="dirichlet", alpha=alpha)[0] for seed in range(100)]
    return numpy.stack([numpy.bincount(labels[shard].numpy(), minlength=int(labels.max()) + 1) for shard in shards]) / (
        len(labels) // 20
    )


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
def test_shares_have_the_second_moment_of_a_dirichlet_distribution(alpha: float) -> None:
    shares = first_shares(torch.arange(20_000) % CLASSES, alpha)
    squares = (shares**2).sum(axis=1)
    # Of K shares with parameter alpha each: E sum p^2 = (alpha + 1) / (K alpha + 1); 1000 samples are drawn of them.
    expected = (alpha + 1) / (CLASSES * alpha + 1)
    expected += (1 - expected) / 1_000
    assert abs(squares.mean() - expected) < 4 * squares.std() / 10


def test_shares_follow_the_sizes_of_the_classes() -> None:
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([2_000, 6_000, 12_000]))
    shares = first_shares(labels, alpha=1.0)
    assert abs(shares.mean(axis=0) - [0.1, 0.3, 0.6]).max() < 0.08


@pytest.mark.parametrize("num_workers", [5, 10])
def test_class_shards_give_a_worker_few_classes(num_workers: int) -> None:
    shards = shards_of(num_workers=num_workers, kind="class_shards", shards_per_worker=2)
    sets = [set(LABELS[shard].tolist()) for shard in shards]
    assert max(map(len, sets)) == 2
    # They are dealt out at random: not each worker has neighbours.
    assert any(len(each) == 2 and max(each) - min(each) > 1 for each in sets)
    all_of_them = shards_of(num_workers=num_workers, kind="class_shards", shards_per_worker=160 // num_workers)
    assert min(len(set(LABELS[shard].tolist())) for shard in all_of_them) > 2


@pytest.mark.parametrize("kind", FIXED)
def test_shards_depend_on_the_seed_alone(kind: str) -> None:
    first = shards_of(seed=1, **FIXED[kind])
    torch.manual_seed(5)
    assert shards_of(seed=1, **FIXED[kind]) == first
    assert (shards_of(seed=2, **FIXED[kind]) == first) == (kind == "contiguous")


@settings(deadline=None, derandomize=True, max_examples=60)
@given(SPECS, st.integers(1, 5), st.integers(1, 9), st.integers(0, 2))
def test_batches_are_full_and_an_epoch_shows_a_worker_none_of_its_samples_twice(
    spec: Table, num_workers: int, batch_size: int, rank: int
) -> None:
    rank = min(rank, num_workers - 1)
    config = small_config(num_workers=num_workers, batch_size=batch_size, num_epochs=3, partition=spec)
    per_epoch, num_steps = num_steps_of(config)
    shard = shards_of(LABELS, num_workers, **spec)[rank]
    assert len(shard) - batch_size < per_epoch * batch_size <= len(shard)
    batches = list(worker_batches(1, len(LABELS), rank, num_workers, batch_size, range(num_steps), torch.tensor(shard)))
    assert {len(batch) for batch in batches} == {batch_size} and len(batches) == 3 * per_epoch
    epochs = [torch.cat(batches[start : start + per_epoch]).tolist() for start in range(0, num_steps, per_epoch)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(shard)
    assert epochs[0] != epochs[1] != epochs[2]
    resumed = worker_batches(1, len(LABELS), rank, num_workers, batch_size, range(7, num_steps), torch.tensor(shard))
    assert torch.equal(torch.cat(list(resumed)), torch.cat(batches[7:]))


@dataclass(frozen=True)
class WatchedSamples(TensorSamples):
    """Samples that remember which worker trained on which."""

    seen: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def training_batches(self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int) -> Iterator[Batch]:
        for index in indices:
            self.seen[rank] += index.tolist()
            yield self.train_inputs[index], self.train_labels[index]


@dataclass(frozen=True)
class WatchedBlobs(Blobs):
    seen: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> WatchedSamples:
        samples = super().load(data, spec, device)
        return WatchedSamples(*(getattr(samples, each.name) for each in fields(samples)), self.seen)


@pytest.mark.parametrize("kind", [*FIXED, "reshuffled"])
def test_what_each_worker_trains_on_and_recorded_counts_of_classes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, partition = WatchedBlobs(), FIXED.get(kind, {"kind": kind})
    monkeypatch.setattr(blobs, "TASK", task)
    job = job_for(small_config(num_workers=4, partition=partition, num_epochs=2), tmp_path)
    assert attempt_stacked(job)
    result = read_run(job.folder).result
    assert result is not None
    # 4 workers x 20 samples x 20 steps are all 1,600, in each of both epochs.
    first, second = ([task.seen[rank][part] for rank in range(4)] for part in (slice(400), slice(400, 800)))
    for epoch in (first, second):
        assert sorted(sample for own in epoch for sample in own) == list(range(1_600))
    if kind == "reshuffled":
        assert result.class_counts is None
        # By chance a quarter of 400 is seen by the same worker again.
        assert all(60 < len(set(one) & set(two)) < 140 for one, two in zip(first, second, strict=True))
    else:
        shards = shards_of(num_workers=4, **partition)
        assert list(map(sorted, first)) == list(map(sorted, second)) == list(map(sorted, shards)) and first != second
        counts = [Counter(LABELS[own].tolist()) for own in first]
        assert result.class_counts == [[own[each] for each in range(CLASSES)] for own in counts]
