"""Plain words for texts of shipped specs: each has such a text, and brings no number of its own."""

from __future__ import annotations

import re

import pytest

from cser_bench.harness.records.experiment import read_experiment
from cser_bench.harness.records.shipped import shipped_experiments
from cser_bench.report.plain_words import TEXTS, in_plain_words, plain_words


def _numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d.,]*\d|\d", text))


@pytest.mark.parametrize("recorded", plain_words())
def test_plain_words_bring_no_number_of_their_own(recorded: str) -> None:
    assert _numbers(plain_words()[recorded]) <= _numbers(recorded)


def test_every_entry_is_a_text_of_an_experiment_that_ships() -> None:
    recorded = set()
    for folder in shipped_experiments():
        experiment = read_experiment(folder)
        recorded |= {getattr(experiment, name) for name in TEXTS}
    assert set(plain_words()) <= recorded


def test_texts_without_an_entry_stay_as_recorded() -> None:
    shipped = {folder.name: folder for folder in shipped_experiments()}
    experiment = read_experiment(shipped["resnet_regime"])
    plain = in_plain_words(experiment)
    assert plain.declared == "before any run of this network"
    assert plain.title == experiment.title
    assert plain.rows == experiment.rows
