"""A text by symbols: windows follow each other, labels are what follows, books are groups."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.kjv_text import SYMBOLS, TASK, BibleText
from cser_bench.harness.tasks.sword import chapters_of, read_slots
from cser_bench.harness.tasks.windows import TextWindows
from tests.tasks.miniatures import bible

CPU = torch.device("cpu")


def miniature(share: Path, **fields: Any) -> BibleText:
    own = {
        "num_train": 150,
        "num_test": 40,
        "num_slots": bible(share, 1, chapters=(9, 5)),
    }
    return replace(TASK, **(own | fields), length=8, num_test_chapters=3, sha256=None)


def text(symbols: Tensor) -> str:
    letters = [SYMBOLS[symbol] for symbol in symbols.tolist()]
    return "".join(letters)


def loaded(task: BibleText, share: Path, **spec: Any) -> TextWindows:
    task_spec = TaskSpec(name="kjv_text", **spec)
    return task.load(share, task_spec, CPU)


def test_windows_are_the_text_and_labels_what_follows(tmp_path: Path) -> None:
    task = miniature(tmp_path)
    samples = loaded(task, tmp_path)
    slots = read_slots(tmp_path, task.num_slots)
    lines = [
        " ".join(verse.text for verse in chapter) + "\n"
        for chapter in chapters_of(slots)
    ]
    every = torch.arange(40)
    [(inputs, labels)] = list(samples.evaluation_batches(every))
    scored = text(inputs.flatten())
    said = text(labels.flatten())
    assert said[:-1] == scored[1:]
    inputs_of_training = samples.train_inputs[:, :-1]
    trained = sorted(text(window) for window in inputs_of_training)
    fitting = []
    for chosen in itertools.combinations(range(len(lines)), 3):
        rest = "".join(
            line for number, line in enumerate(lines) if number not in chosen
        )
        starts = range(0, 8 * 150, 8)
        windows = sorted(rest[start : start + 8] for start in starts)
        if (
            "".join(lines[number] for number in chosen).startswith(scored)
            and windows == trained
        ):
            fitting.append(chosen)
    assert fitting, (
        "three whole chapters are scored, and the windows of the others trained on"
    )
    books = ["", ""]
    chapters = chapters_of(slots)
    for chapter, line in zip(chapters, lines, strict=True):
        books[chapter[0].book] += line
    for window, group in zip(
        samples.train_inputs[:, :-1], samples.train_labels.tolist(), strict=True
    ):
        assert text(window).split("\n")[0] in books[group], (
            "a window's group is the book it begins in"
        )


def test_windows_held_out_are_not_trained_on(tmp_path: Path) -> None:
    task = miniature(tmp_path)
    every = loaded(task, tmp_path)
    some = loaded(task, tmp_path, held_out=15)
    assert len(some.train_inputs) == 135
    assert len(some.evaluation_inputs) == 15
    windows = torch.cat([some.train_inputs, some.evaluation_inputs])
    parts = sorted(text(window) for window in windows)
    assert parts == sorted(map(text, every.train_inputs))


def test_another_text_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for task in (
        miniature(tmp_path, num_train=10_000),
        replace(miniature(tmp_path), sha256="0" * 64),
    ):
        with pytest.raises(
            DataError,
            match=r"another text than it should .* install the package sword-text-kjv",
        ):
            task.prepare(tmp_path)
