"""Words and a Bible: miniatures in their real formats are read and split, and bad ones refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.cmudict import SYMBOLS, CMUDict
from cser_bench.harness.tasks.pairs import (
    BEGIN,
    END,
    IGNORED,
    PAD,
    Pairs,
    PairSamples,
    PhoneErrors,
    plain,
)
from cser_bench.harness.tasks.sword import FOLDER, plain_text, read_slots
from tests.tasks.miniatures import bible, made_up_entries

CPU = torch.device("cpu")
WORDS = CMUDict(
    num_train=25, num_test=15, sha256=None, entries=partial(made_up_entries, 40)
)


def load(task: CMUDict, folder: Path, **spec: int) -> PairSamples:
    task_spec = TaskSpec(name="any", **spec)
    return task.load(folder, task_spec, CPU)


def texts(samples: PairSamples, split: str) -> list[tuple[str, str]]:
    pairs = getattr(samples, split)
    every = torch.arange(len(pairs.groups))
    sources = pairs.sentences(0, every)
    targets = pairs.sentences(1, every)
    found = []
    for source, target in zip(sources, targets, strict=True):
        letters = [SYMBOLS[token - END - 1] for token in source]
        phones = [SYMBOLS[token - END - 1] for token in target]
        word = "".join(letters)
        pronunciation = " ".join(phones)
        found.append((word, pronunciation))
    return found


def test_splits_share_nothing_and_are_the_same_each_time(tmp_path: Path) -> None:
    task, folder = WORDS, tmp_path
    samples = load(task, folder)
    train = texts(samples, "train")
    test = texts(samples, "evaluation")
    assert len(train) == 25
    assert len(test) == 15
    assert not set(train) & set(test)
    again = load(task, folder)
    assert again.sha256 == samples.sha256
    assert texts(again, "train") == train
    held = load(task, folder, held_out=5, num_train=10)
    kept = texts(held, "train")
    scored = texts(held, "evaluation")
    assert len(kept) == 10
    assert len(scored) == 5
    assert not set(kept) & set(scored)
    of_either = kept + scored
    assert set(of_either) <= set(train)
    changes_of_length = samples.evaluation.num_tokens.diff()
    assert (changes_of_length >= 0).all()


def test_a_batch_is_the_source_the_target_so_far_and_what_follows() -> None:
    sources = [[7, 8, 9], [5]]
    targets = [[4], [6, 7]]
    sides = (sources, targets, [0, 0])
    pairs = Pairs.of(sides, range(2), CPU)
    assert pairs.num_tokens.tolist() == [2, 3]
    assert pairs.lengths.tolist() == [4, 3]
    both = torch.arange(2)
    inputs, labels = pairs.batch(both)
    first, second = inputs.tolist()
    first_source, first_target = first
    second_source, second_target = second
    assert first_source == [7, 8, 9, END]
    assert first_target == [BEGIN, 4, END, PAD]
    assert second_source == [5, END, PAD, PAD]
    assert second_target == [BEGIN, 6, 7, END]
    first_labels, second_labels = labels.tolist()
    assert first_labels == [4, END, IGNORED, IGNORED]
    assert second_labels == [6, 7, END, IGNORED]
    assert inputs.dtype == torch.int64
    assert labels.dtype == torch.int64
    # What comes after the end is no part of a sentence.
    assert plain([BEGIN, 5, 6, END, 7]) == [5, 6]
    assert plain([END]) == []
    assert plain([4, 5]) == [4, 5]


def test_the_first_pronunciation_counts_without_stress(tmp_path: Path) -> None:
    samples = load(WORDS, tmp_path)
    train = texts(samples, "train")
    in_turn = ["AH", "B", "EH", "T"]
    for word, phones in train:
        num_phones = 1 + len(word) % 4
        expected = in_turn[:num_phones]
        assert phones == " ".join(expected)
    by_first_letter = []
    for word, _ in train:
        place = ord(word[0]) - ord("a")
        by_first_letter.append(place)
    assert samples.train.groups.tolist() == by_first_letter


def test_notes_titles_and_tags_are_no_words() -> None:
    osis = (
        '<title type="x">A title</title><w lemma="x">In the</w> be<i>gin</i>ning<note n="1">or '
        "<i>x</i></note>"
    )
    assert plain_text(osis + "<div/>was ¶ it") == "In the beginning was it"


def without_places(path: Path) -> None:
    path.with_suffix(".bzs").unlink()


def cut_by(suffix: str, num_bytes: int, path: Path) -> None:
    """Leave out the last bytes of the file with this suffix."""
    file = path.with_suffix(suffix)
    raw = file.read_bytes()
    file.write_bytes(raw[:-num_bytes])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (without_places, "apt-get install sword-text-kjv"),
    "cut text": (partial(cut_by, ".bzz", 20), "nt.* are damaged"),
    "fewer verses": (partial(cut_by, ".bzv", 10), "another versification"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_bibles_are_refused_in_a_sentence(damage: str, tmp_path: Path) -> None:
    num_slots = bible(tmp_path, 1)
    read_slots(tmp_path, num_slots)
    harm, words = DAMAGE[damage]
    harm(tmp_path / FOLDER / "nt.bzs")
    with pytest.raises(DataError, match=words) as error:
        read_slots(tmp_path, num_slots)
    said = str(error.value)
    assert str(tmp_path) in said
    assert "\n" not in said


def test_another_dictionary_is_refused(tmp_path: Path) -> None:
    entries = partial(made_up_entries, 41)
    larger = replace(WORDS, entries=entries)
    with pytest.raises(DataError, match=r"41 of up to .* expected 40"):
        load(larger, tmp_path)
    other = replace(WORDS, sha256="0" * 64)
    with pytest.raises(DataError, match="other words or pronunciations"):
        load(other, tmp_path)


def test_phone_errors_are_insertions_deletions_and_substitutions_of_all_words() -> None:
    measure = PhoneErrors()
    said = [[1, 2, 3], [5, 6], [7], []]
    expected = [[1, 3], [6, 5], [8], [9, 9, 9]]
    sums = measure.sums(said, expected)
    assert sums == [1 + 2 + 1 + 3, 8]
    assert measure.metrics(sums) == {"phone_error_rate": 7 / 8}
