"""Frames, and the declared contrasts: estimates, p, Holm's correction and words, against scipy and
statsmodels."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from cser_bench.harness.records.ending import ending_of
from cser_bench.harness.records.experiment import Contrast, Exponent
from cser_bench.harness.records.packs import read_runs
from cser_bench.harness.records.store import Result
from cser_bench.report.frame import Frames, read_frames, sharing_baseline
from cser_bench.report.statistics import (
    at_equal_rate,
    claims_of,
    contrasts_frame,
    difference,
    seed_correlation,
)

SHIPPED = Path(__file__).parents[2] / "results" / "reference"
SGD = [0.874, 0.877, 0.875, 0.876, 0.8745, 0.8765, 0.8752, 0.8758]
MARGIN = 0.005
A = [0.873, 0.874, 0.875]
B = [0.871, 0.8722, 0.8735]


@pytest.fixture(scope="module")
def shipped() -> Frames:
    return read_frames(SHIPPED / "fashion_mnist_long")


def test_settings_are_columns(shipped: Frames) -> None:
    row = shipped.by_row.loc["mcser-96"]
    assert row["error_compressor.kind"] == "top_k"
    assert row["error_compressor.ratio"] == 16
    assert row["reset_interval"] == 24
    assert math.isnan(shipped.by_row.loc["sgd", "reset_interval"])
    assert row["momentum"] == 0.9


def test_the_tuning_is_found_and_named_by_row(shipped: Frames) -> None:
    chosen = shipped.tuning[shipped.tuning["row"] == "sgd"]
    assert chosen["learning_rate"].nunique() >= 9
    assert chosen["score"].notna().all()
    alone = read_frames(SHIPPED.parent / "fashion_mnist_long_tuning")
    trials = alone.tuning["trial"].to_list()
    assert trials == alone.runs["row"].to_list()


@pytest.mark.parametrize(
    ("loss", "status"),
    [
        (0.5, "done"),
        (2302.0, "done"),
        (2303.0, "diverged"),
        (math.inf, "diverged"),
        (math.nan, "diverged"),
    ],
)
def test_a_loss_beyond_a_thousand_guesses_has_diverged(
    shipped: Frames, loss: float, status: str
) -> None:
    """Ten classes: a constant guess loses ln 10 = 2.3026."""
    runs = read_runs(shipped.folder).values()
    result: Result | None = next(iter(runs)).result
    assert result is not None
    with_loss = result.model_copy(update={"train_loss": loss})
    assert ending_of(with_loss) == status


def made_up(
    shipped: Frames, scores: dict[str, list[float]], *contrasts: tuple[str, str, str]
) -> Frames:
    """Frames of these scores; NaN is a run that diverged."""
    declared = []
    for row, reference, kind in contrasts:
        contrast = Contrast(
            row=row,
            reference=reference,
            kind=kind,  # type: ignore[arg-type]
            question="?",
            margin=MARGIN,
        )
        declared.append(contrast)
    experiment = shipped.experiment.model_copy(
        update={"baseline": "sgd", "contrasts": declared, "confidence": 0.95}
    )
    rows = []
    runs = []
    for row, values in scores.items():
        rows.append(
            {
                "row": row,
                "label": row,
                "learning_rate": 0.1,
                "num_epochs": 1,
                "num_steps": 1,
                "rule": "held_out",
                "base": None,
            }
        )
        for seed, score in enumerate(values):
            runs.append(
                {
                    "row": row,
                    "seed": seed,
                    "run_id": f"{row}{seed}",
                    "score": score,
                    "status": "diverged" if math.isnan(score) else "done",
                }
            )
    return replace(
        shipped, experiment=experiment, rows=pd.DataFrame(rows), runs=pd.DataFrame(runs)
    )


def p_greater(scores: list[float], others: list[float], by: float = 0.0) -> float:
    """Of Welch's test that the mean of `scores` exceeds that of `others` by more."""
    test = stats.ttest_ind(
        np.subtract(scores, by), others, equal_var=False, alternative="greater"
    )
    return float(test.pvalue)


def p_less(scores: list[float], others: list[float], by: float = 0.0) -> float:
    """Of Welch's test that the mean of `scores` exceeds that of `others` by less."""
    test = stats.ttest_ind(
        np.subtract(scores, by), others, equal_var=False, alternative="less"
    )
    return float(test.pvalue)


@pytest.mark.parametrize(
    "calm", [[0.8701, 0.8702, 0.8703], [0.80, 0.95, 0.70]], ids=["unlike", "alike"]
)
def test_each_row_has_its_own_variance_whatever_the_others_have(
    shipped: Frames, calm: list[float]
) -> None:
    wild = [0.80, 0.95, 0.70, 0.99, 0.60, 0.9]
    frames = made_up(
        shipped,
        {"sgd": SGD, "a": wild, "b": calm},
        ("a", "sgd", "superiority"),
        ("b", "a", "equivalence"),
    )
    first, second = (line for _, line in contrasts_frame(frames).iterrows())
    welch = stats.ttest_ind(wild, SGD, equal_var=False)
    interval = welch.confidence_interval(0.95)
    one_sided = welch.pvalue / 2
    assert first["p"] == pytest.approx(one_sided, rel=1e-9)
    assert first["degrees"] == pytest.approx(welch.df, rel=1e-9)
    assert first["low"] == pytest.approx(interval.low, rel=1e-9)
    assert first["high"] == pytest.approx(interval.high, rel=1e-9)
    without_b = made_up(shipped, {"sgd": SGD, "a": wild})
    found = difference(frames, "a", "sgd")
    expected = difference(without_b, "a", "sgd")
    assert found == expected
    pair = CompareMeans(DescrStatsW(calm), DescrStatsW(wild))
    equal, _ = pair.ttost_ind(-MARGIN, MARGIN, usevar="unequal")
    beyond = p_greater(calm, wild, by=MARGIN)
    below = p_less(calm, wild, by=-MARGIN)
    smallest = min(equal, beyond, below)
    assert second["p"] == pytest.approx(smallest, rel=1e-9)


def test_all_one_sided_tests_of_an_experiment_share_its_level(shipped: Frames) -> None:
    """Seven of three contrasts: each p of the least is multiplied by the number of those that are
    no smaller."""
    three = (
        ("a", "sgd", "non-inferiority"),
        ("b", "sgd", "superiority"),
        ("b", "a", "equivalence"),
    )
    scores = {"sgd": SGD, "a": A, "b": B}
    frames = made_up(shipped, scores, *three)
    frame = contrasts_frame(frames)
    # a and SGD
    not_inferior = p_greater(A, SGD, by=-MARGIN)
    inferior = p_less(A, SGD, by=-MARGIN)
    # b and SGD
    better = p_greater(B, SGD)
    worse = p_less(B, SGD)
    # b and a
    above = p_greater(B, A, by=-MARGIN)
    under = p_less(B, A, by=MARGIN)
    equal = max(above, under)
    below = p_less(B, A, by=-MARGIN)
    beyond = p_greater(B, A, by=MARGIN)
    family = [not_inferior, inferior, better, worse, equal, beyond, below]
    _, corrected, _, _ = multipletests(family, method="holm")
    expected = [not_inferior, worse, equal]
    assert frame["p"].to_list() == pytest.approx(expected)
    expected = [corrected[0], corrected[3], corrected[4]]
    assert frame["p_holm"].to_list() == pytest.approx(expected)
    assert frame["claim"].to_list() == [
        "loses less than the margin",
        "worse",
        "equal within the margin",
    ]


def by_holm(p: float, family: list[float]) -> float:
    """The least level at which Holm's procedure rejects a test, by its definition.

    It rejects in the order of p, the smallest first, while p times the number of tests that are not
    yet rejected is within the level. So a test is rejected at the largest such product up to its own.
    """
    products = []
    for other in family:
        num_left = sum(each >= other for each in family)
        if other <= p:
            products.append(min(1.0, num_left * other))
    return max(products)


@pytest.mark.parametrize(
    "name", ["gap_text", "gap_text_longer", "gap_text_load", "gap_images"]
)
def test_old_questions_of_exponents_are_in_the_family_with_their_own_p(
    name: str,
) -> None:
    """They were declared with the contrasts, evaluated once, and written down in a CSV."""
    frames = read_frames(SHIPPED / name)
    law = pd.read_csv(SHIPPED.parent / "statistics" / "law" / "exponents.csv")
    family = law.loc[law["experiment"] == name, "p"].tolist()
    assert len(family) == len(frames.experiment.exponents or [])
    for contrast in frames.contrasts:
        estimated = difference(frames, contrast.row, contrast.reference)
        assert estimated is not None
        family += claims_of(contrast, estimated).values()
    frame = contrasts_frame(frames)
    expected = [by_holm(p, family) for p in frame["p"]]
    assert frame["p_holm"].tolist() == pytest.approx(expected)


def test_an_old_question_without_a_p_counts_as_one_that_shows_nothing(
    shipped: Frames,
) -> None:
    frames = made_up(shipped, {"sgd": SGD, "a": A}, ("a", "sgd", "superiority"))
    asked = Exponent(rows=["a"], of="size", question="?")
    experiment = frames.experiment.model_copy(update={"exponents": [asked]})
    line = contrasts_frame(replace(frames, experiment=experiment)).iloc[0]
    assert line["p_holm"] == pytest.approx(3 * line["p"])


def test_scores_at_the_same_seed_correlate_as_an_analysis_of_variance_says(
    shipped: Frames,
) -> None:
    """By its definition: mean squares of a two-way layout, as statsmodels has them."""
    generator = np.random.default_rng(0)
    common = generator.normal(0, 0.01, 6)
    scores = {}
    for row in ("a", "b", "c"):
        own = generator.normal(0, 0.01, 6)
        scores[row] = list(0.8 + common + own)
    lines = []
    for row, values in scores.items():
        for seed, score in enumerate(values):
            lines.append({"row": row, "seed": seed, "score": score})
    fitted = ols("score ~ C(row) + C(seed)", pd.DataFrame(lines)).fit()
    mean_squares = anova_lm(fitted)["mean_sq"]
    between = mean_squares["C(seed)"]
    within = mean_squares["Residual"]
    scores["a"].append(0.9)  # a seed that the others lack
    two = (("a", "b", "superiority"), ("c", "b", "superiority"))
    found = seed_correlation(made_up(shipped, scores, *two))
    assert found is not None
    assert found.num_seeds == 6
    assert found.num_rows == 3
    expected = (between - within) / (between + 2 * within)
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    scores = {"a": A, "b": B[:1]}
    single = made_up(shipped, scores, ("a", "b", "superiority"))
    assert seed_correlation(single) is None


def test_experiments_that_share_runs_of_their_baseline_name_each_other(
    shipped: Frames, tmp_path: Path
) -> None:
    names = ("gpt_text", "gpt_text_methods", "kjv_es")
    # Two folders down, as the folder above is looked into, where other tests have theirs.
    results = tmp_path / "results"
    for name in names:
        (results / name).mkdir(parents=True)
        shutil.copy(SHIPPED / name / "experiment.json", results / name)
    (results / "broken").mkdir()
    (results / "broken" / "experiment.json").write_text("{")
    all_frames = [read_frames(results / name) for name in names]
    found = [sharing_baseline(each) for each in all_frames]
    assert found == [["gpt_text_methods"], ["gpt_text"], []]


@pytest.mark.parametrize(
    ("kind", "scores", "word"),
    [
        ("superiority", [0.9, 0.901, 0.902], "better"),
        ("superiority", [0.8, 0.801, 0.802], "worse"),
        ("superiority", [0.8752, 0.8758, 0.8755], "no difference seen"),
        ("equivalence", [0.8752, 0.8758, 0.8755], "equal within the margin"),
        ("equivalence", [0.85, 0.89, 0.88], "undecided"),
        # About the margin apart
        ("equivalence", [0.8703, 0.8709, 0.8706], "undecided"),
        ("equivalence", [0.86, 0.861, 0.862], "worse by more than the margin"),
        ("equivalence", [0.89, 0.891, 0.892], "better by more than the margin"),
        ("non-inferiority", [0.8752, math.nan, 0.8755], "diverged"),
        ("non-inferiority", [0.8752], "not enough runs"),
        ("non-inferiority", [], "not enough runs"),
    ],
)
def test_words(shipped: Frames, kind: str, scores: list[float], word: str) -> None:
    contrast = ("a", "sgd", kind)
    frames = made_up(shipped, {"sgd": SGD, "a": scores}, contrast)
    verdicts = contrasts_frame(frames)["verdict"]
    assert verdicts.to_list() == [word]


def test_what_cannot_be_said_stays_in_its_family(shipped: Frames) -> None:
    """Else a run that diverges would make the other contrasts easier to show."""
    two = (("a", "sgd", "non-inferiority"), ("b", "sgd", "non-inferiority"))
    scores = {"sgd": SGD, "a": A, "b": [math.nan, *B]}
    broken = contrasts_frame(made_up(shipped, scores, *two))
    of_a, of_b = broken["p"]
    assert of_b == 1
    corrected = broken["p_holm"][0]
    assert corrected == pytest.approx(4 * of_a)


def test_equal_scores_leave_no_doubt_and_nothing_declared_says_nothing(
    shipped: Frames,
) -> None:
    equal = {"sgd": [0.5, 0.5], "a": [0.5, 0.5]}
    frames = made_up(shipped, equal, ("a", "sgd", "non-inferiority"))
    found = difference(frames, "a", "sgd")
    assert found is not None
    assert found.p_above(-0.005) == 0
    assert found.p_below(-0.005) == 1
    undeclared = made_up(shipped, {"sgd": SGD})
    assert contrasts_frame(undeclared).empty


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({}, math.nan),  # nothing was run at one rate
        ({("a", 0.1): 0.9, ("b", 0.1): 0.8}, 0.1),  # at one of the two rates
        (
            {("a", 0.1): 0.9, ("b", 0.1): 0.8, ("a", 0.01): 0.7, ("b", 0.01): 0.68},
            0.02,
        ),  # at both: the nearer to zero
        (
            {("a", 0.1): 0.9, ("b", 0.1): 0.8, ("a", 0.01): 0.7, ("b", 0.01): 0.71},
            0.0,
        ),  # it turns round
        # A rate that neither was chosen at
        ({("a", 1.0): 0.9, ("b", 1.0): 0.8}, math.nan),
        ({("a", 0.1): 0.9, ("b", 0.1): math.nan}, math.nan),  # one diverged
    ],
)
def test_a_difference_needs_one_rate_for_both(
    shipped: Frames, scores: dict[tuple[str, float], float], expected: float
) -> None:
    rows = pd.DataFrame({"row": ["a", "b"], "learning_rate": [0.1, 0.01]})
    lines = []
    for (row, rate), score in scores.items():
        lines.append(
            {"row": row, "kind": "test", "learning_rate": rate, "score": score}
        )
    rates = pd.DataFrame(lines, columns=["row", "kind", "learning_rate", "score"])
    frames = replace(shipped, rows=rows)
    found = at_equal_rate(frames, rates, "a", "b")
    assert found == pytest.approx(expected, nan_ok=True)
    equal = replace(
        shipped,
        rows=rows.assign(learning_rate=0.1),
        runs=made_up(shipped, {"a": A, "b": B}).runs,
    )
    no_rates = rates[:0]
    found = at_equal_rate(equal, no_rates, "a", "b")
    difference_of_means = np.mean(A) - np.mean(B)
    assert found == pytest.approx(difference_of_means)


def test_a_row_is_compared_by_the_trials_of_the_experiment_that_tuned_it() -> None:
    """Top-k on updates is table_cnn's row, run for run; both forms have trials at the same nine rates."""
    frames = read_frames(SHIPPED.parent / "study_cnn_hooks")
    updates, gradients = "ef_topk", "ef_topk_gradients"
    at_rates = {}
    for folder, row in ((SHIPPED / "table_cnn", updates), (frames.folder, gradients)):
        trials = read_frames(folder).tuning
        of_row = trials[trials["row"] == row]
        at_rates[row] = of_row.set_index("learning_rate")["score"]
    apart = at_rates[updates] - at_rates[gradients]
    assert len(apart.dropna()) == 9
    chosen = [frames.row(row)["learning_rate"] for row in (updates, gradients)]
    nearest = min(apart[chosen], key=abs)
    table = contrasts_frame(frames).set_index(["row", "reference"])
    line = table.loc[(updates, gradients)]
    assert line["at_equal_rate"] == pytest.approx(nearest)
    assert line["verdict"] == "better"


def test_a_difference_of_rates_is_not_called_better(shipped: Frames) -> None:
    """M-CSER blocks and EF blocks were run at learning rates 100 times apart, and never alike."""
    verdicts = contrasts_frame(shipped).set_index(["row", "reference"])
    line = verdicts.loc[("mcser_block-96", "ef_block-96")]
    assert line["p_holm"] < 0.001
    assert line["verdict"] == "not run at equal rate"
