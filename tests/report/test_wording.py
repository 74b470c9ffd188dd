"""What is printed of a gap, its interval and its test: one form each, positive where a row is worse."""

from __future__ import annotations

import math
import re

import pytest

from cser_bench.harness.measures.declared import RunsBegun
from cser_bench.harness.measures.metrics import ACCURACY, METRICS
from cser_bench.report import statistics, wording

NAN = math.nan


def test_a_gap_is_positive_where_a_row_is_worse() -> None:
    differences = (-0.0127, 0.0002, 0.00001, -0.00001, NAN)
    assert [wording.gap(each, "points") for each in differences] == [
        *("1.27", "-0.02", "0.00", "0.00", "–")
    ]
    assert wording.gap(-0.136, "nats") == "0.1360"


@pytest.mark.parametrize(
    ("low", "high", "interval"),
    [
        (-0.0085, -0.0025, "0.25 to 0.85"),
        (0.0005, 0.0044, "-0.44 to -0.05"),
        (-0.0028, 0.0033, "-0.33 to 0.28"),
        (-0.0031, 0.00001, "0.00 to 0.31"),
        (NAN, NAN, "–"),
    ],
)
def test_an_interval_goes_from_the_best_to_the_worst(
    low: float, high: float, interval: str
) -> None:
    assert wording.interval(low, high, "points") == interval


def test_an_interval_has_one_form_in_cells_and_one_in_prose() -> None:
    ends = (-0.0022, -0.0037, -0.0006)
    assert wording.gap_cell(*ends, "points") == "0.22 (0.06 to 0.37)"
    assert wording.gap_in_prose(*ends, "points") == "0.22 points (95 % CI 0.06 to 0.37)"
    of_one_run = wording.gap_cell(-0.0022, NAN, NAN, "points")
    assert of_one_run == "0.22"
    assert wording.gap_in_prose(-0.0022, NAN, NAN, "points") == "0.22 points"


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0, "0"),
        (1 / 24, "1/24"),
        (1 / 1234.5, "1/1,234"),
        (2 / 3, "0.67"),
        (1, "1"),
        # A ring of 8 that sends a model to each of two neighbours, over 2 x 7/8 of an all-reduce.
        (2 / (2 * 7 / 8), "1.14"),
    ],
)
def test_a_share_of_traffic_has_three_digits_where_it_is_more_than_all(
    share: float, words: str
) -> None:
    assert wording.traffic(share) == words


def test_each_verdict_is_a_finding_of_the_row_against_its_reference() -> None:
    line = {"margin": 0.005, "unit": "points"}
    found = {
        word: wording.finding(line | {"verdict": word}) for word in statistics.VERDICTS
    }
    assert found[statistics.LESS] == "below 0.5 points"
    assert found[statistics.WORSE_BY_MARGIN] == "worse by over 0.5 points"
    assert (
        found[statistics.UNDECIDED] == found[statistics.NO_DIFFERENCE] == "inconclusive"
    )
    is_open = {word for word, said in found.items() if said.startswith("inconclusive")}
    assert is_open.isdisjoint(wording.SIGNIFICANT)
    assert wording.finding(line | {"verdict": None}) == "not tested"


def test_each_verdict_answers_yes_no_or_leaves_its_question_open() -> None:
    line = {"margin": 0.005, "unit": "points"}
    answers = {
        word: wording.answer(line | {"verdict": word}) for word in statistics.VERDICTS
    }
    first = {word: re.split(r"[: ]", said)[0] for word, said in answers.items()}
    good = (statistics.LESS, statistics.BETTER, statistics.BETTER_BY_MARGIN)
    for word in wording.SIGNIFICANT:
        assert first[word] == ("yes" if word in good else "no")
    is_open = {
        word for word, said in answers.items() if said.startswith("inconclusive")
    }
    assert is_open == set(wording.INCONCLUSIVE_VERDICTS)
    assert answers[statistics.BETTER] == "yes: better"
    assert answers[statistics.MORE] == "no: above 0.5 points"
    assert answers[statistics.EQUAL] == "no: equal within 0.5 points"


def test_a_margin_has_its_unit_and_a_gap_its_name() -> None:
    margins = ((0.005, "points"), (0.01, "points"), (0.01, "nats"))
    assert [wording.margin_text(*each) for each in margins] == [
        "0.5 points",
        "1 point",
        "0.01 nats",
    ]
    assert wording.gap_name(ACCURACY) == "accuracy drop"
    assert wording.gap_name(METRICS["bleu"]) == "BLEU drop"
    assert wording.gap_name(METRICS["loss"]) == "loss gap"


def test_a_declaration_says_what_had_been_run() -> None:
    assert wording.declaration(None) == "not known"
    assert wording.declaration(RunsBegun(0, 6, 0)) == "pre-registered"
    assert (
        wording.declaration(RunsBegun(3, 6, 1)) == "3 of 6 runs begun, all of one row"
    )
    assert wording.declaration(RunsBegun(4, 6, 2)) == "post hoc, 4 of 6 runs begun"
