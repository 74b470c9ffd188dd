"""A dictionary by symbols: entries are whole, each is read once, and what is missing or another is
said."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cser_bench.harness.spec.run import PartitionSpec, TaskSpec
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.gcide import RARE, SYMBOLS, TASK, Dictionary, read_entries
from cser_bench.harness.tasks.windows import TextWindows
from cser_bench.harness.train.order import worker_batches, worker_shards
from tests.tasks.miniatures import dictionary, write

CPU = torch.device("cpu")
LENGTH = 8


def miniature(**fields: Any) -> Dictionary:
    sizes = {"num_train": 150, "num_test": 20, "num_test_entries": 5}
    return replace(TASK, **(sizes | fields), length=LENGTH, sha256=None)


def text(symbols: Tensor) -> str:
    letters = [SYMBOLS[symbol] for symbol in symbols.tolist()]
    return "".join(letters)


def loaded(task: Dictionary, share: Path, **spec: Any) -> TextWindows:
    task_spec = TaskSpec(name="gcide", **spec)
    return task.load(share, task_spec, CPU)


def test_entries_are_read_once_without_the_notes_and_with_single_spaces(
    tmp_path: Path,
) -> None:
    made_up = dictionary(tmp_path, 1, 40)
    entries = [" ".join(entry.split()) for entry in made_up]
    assert read_entries(tmp_path) == entries


def test_whole_entries_are_scored_or_trained_on_and_labels_are_what_follows(
    tmp_path: Path,
) -> None:
    made_up = dictionary(tmp_path, 1, 60)
    lines = {" ".join(entry.split()) for entry in made_up}
    samples = loaded(miniature(), tmp_path)
    windows = samples.train_inputs[:, :-1]
    trained = text(windows.flatten())
    every = torch.arange(20)
    [(inputs, labels)] = list(samples.evaluation_batches(every))
    scored = text(inputs.flatten())
    said = text(labels.flatten())
    assert said[:-1] == scored[1:]
    *trained_on, _ = trained.split("\n")
    *tested_on, _ = scored.split("\n")
    assert trained_on
    assert tested_on
    assert set(trained_on) | set(tested_on) < lines
    assert not set(trained_on) & set(tested_on)
    assert trained_on != sorted(trained_on)
    assert samples.sha256 == loaded(miniature(), tmp_path).sha256


def test_no_worker_reads_a_symbol_twice_in_an_epoch_nor_what_another_reads(
    tmp_path: Path,
) -> None:
    dictionary(tmp_path, 1, 60)
    samples = loaded(miniature(), tmp_path)
    workers = 3
    shards = worker_shards(
        PartitionSpec(kind="contiguous"), samples.train_labels, workers, seed=1
    )
    assert shards is not None
    steps = range(150 // workers // 2)
    batches = [
        worker_batches(1, 150, rank, workers, 2, steps, shards[rank])
        for rank in range(workers)
    ]
    read = [torch.cat(list(indices)) for indices in batches]
    every = sorted(torch.cat(read).tolist())
    assert every == list(range(150))
    for rank, indices in enumerate(read):
        assert indices.min() >= 50 * rank and indices.max() < 50 * (rank + 1), (
            "a stretch of entries each"
        )


def test_rare_characters_are_one_symbol(tmp_path: Path) -> None:
    entries = gzip.compress(b"abc #@ abcdefghijklm" + b"\x9223456789 1234567890")
    write(tmp_path, {"gcide.index": b"a\tA\tU\nb\tU\tU\n", "gcide.dict.dz": entries})
    tiny = miniature(num_train=2, num_test=2, num_test_entries=1)
    samples = loaded(tiny, tmp_path)
    both = text(
        torch.cat(
            [samples.train_inputs[:, :-1], samples.evaluation_inputs[:, :-1]]
        ).flatten()
    )
    assert f"abc {RARE}{RARE} a" in both
    assert f"{RARE}2345678" in both


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "text missing": (
        lambda share: (share / "gcide.dict.dz").unlink(),
        "apt-get install dict-gcide",
    ),
    "index missing": (
        lambda share: (share / "gcide.index").unlink(),
        "apt-get install dict-gcide",
    ),
    "no gzip": (
        lambda share: (share / "gcide.dict.dz").write_bytes(b"text"),
        "damaged: .* install dict-gcide anew",
    ),
    "torn": (
        lambda share: (share / "gcide.dict.dz").write_bytes(
            (share / "gcide.dict.dz").read_bytes()[:-30]
        ),
        "damaged: .* install dict-gcide anew",
    ),
    "beyond the end": (
        lambda share: (share / "gcide.index").write_bytes(b"a\tA\t////\n"),
        "damaged: an entry lies",
    ),
    "no index": (
        lambda share: (share / "gcide.index").write_bytes(b"a word\n"),
        "damaged: .* install dict-gcide anew",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_missing_or_damaged_dictionary_is_said_in_a_sentence(
    damage: str, tmp_path: Path
) -> None:
    dictionary(tmp_path, 1, 40)
    spoil, message = DAMAGE[damage]
    spoil(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        miniature().prepare(tmp_path)
    assert "\n" not in str(error.value)


def test_another_dictionary_is_refused(tmp_path: Path) -> None:
    dictionary(tmp_path, 1, 60)
    too_large = miniature(num_train=10_000)
    other = replace(miniature(), sha256="0" * 64)
    for task in (too_large, other):
        with pytest.raises(
            DataError,
            match=r"another one than it should be .* install the package dict-gcide",
        ):
            task.prepare(tmp_path)
