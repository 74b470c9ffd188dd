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

from cser_bench.harness.records.experiment import Contrast
from cser_bench.harness.records.packs import read_runs
from cser_bench.harness.records.store import Result
from cser_bench.report.frame import Frames, read_frames, sharing_baseline, status_of
from cser_bench.report.statistics import (
    at_equal_rate,
    contrasts_frame,
    difference,
    seed_correlation,
)

SHIPPED = Path(__file__).parents[2] / "results" / "reference"
SGD = [0.874, 0.877, 0.875, 0.876, 0.8745, 0.8765, 0.8752, 0.8758]
SIDES = ("greater", "less")
A = [0.873, 0.874, 0.875]
B = [0.871, 0.8722, 0.8735]


@pytest.fixture(scope="module")
def shipped() -> Frames:
    return read_frames(SHIPPED / "fashion_mnist_regime")


def test_settings_are_columns(shipped: Frames) -> None:
    row = shipped.by_row.loc["mcser-96"]
    assert (
        row["error_compressor.kind"],
        row["error_compressor.ratio"],
        row["reset_interval"],
    ) == ("top_k", 16, 24)
    assert math.isnan(shipped.by_row.loc["sgd", "reset_interval"])
    assert row["momentum"] == 0.9


def test_the_tuning_is_found_and_named_by_row(shipped: Frames) -> None:
    chosen = shipped.tuning[shipped.tuning["row"] == "sgd"]
    assert chosen["learning_rate"].nunique() >= 9
    assert chosen["score"].notna().all()
    alone = read_frames(SHIPPED.parent / "fashion_mnist_long_tuning")
    assert alone.tuning["trial"].to_list() == alone.runs["row"].to_list()


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
    result: Result | None = next(iter(read_runs(shipped.folder).values())).result
    assert result is not None
    assert status_of(result.model_copy(update={"train_loss": loss})) == status


def made_up(
    shipped: Frames, scores: dict[str, list[float]], *contrasts: tuple[str, str, str]
) -> Frames:
    """Frames of these scores; NaN is a run that diverged."""
    declared = [
        Contrast(row=a, reference=b, kind=kind, question="?", margin=0.005)
        for a, b, kind in contrasts
    ]  # type: ignore[arg-type]
    experiment = shipped.experiment.model_copy(
        update={"baseline": "sgd", "contrasts": declared, "confidence": 0.95}
    )
    lines = [
        {"row": row, "seed": seed, "run_id": f"{row}{seed}", "score": score}
        | {"status": "diverged" if math.isnan(score) else "done"}
        for row, values in scores.items()
        for seed, score in enumerate(values)
    ]
    columns = {
        "learning_rate": 0.1,
        "num_epochs": 1,
        "num_steps": 1,
        "rule": "held_out",
        "base": None,
    }
    rows = pd.DataFrame([{"row": row, "label": row} | columns for row in scores])
    return replace(shipped, experiment=experiment, rows=rows, runs=pd.DataFrame(lines))


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
    assert (first["p"], first["degrees"]) == pytest.approx(
        (welch.pvalue / 2, welch.df), rel=1e-9
    )
    assert (first["low"], first["high"]) == pytest.approx(
        tuple(welch.confidence_interval(0.95)), rel=1e-9
    )
    difference_alone = difference(frames, "a", "sgd")
    without_b = difference(made_up(shipped, {"sgd": SGD, "a": wild}), "a", "sgd")
    assert difference_alone == without_b
    both = CompareMeans(DescrStatsW(calm), DescrStatsW(wild)).ttost_ind(
        -0.005, 0.005, usevar="unequal"
    )
    beyond = stats.ttest_ind(
        np.subtract(calm, 0.005), wild, equal_var=False, alternative="greater"
    ).pvalue
    below = stats.ttest_ind(
        np.add(calm, 0.005), wild, equal_var=False, alternative="less"
    ).pvalue
    assert second["p"] == pytest.approx(min(both[0], beyond, below), rel=1e-9)


def test_all_one_sided_tests_of_an_experiment_share_its_level(shipped: Frames) -> None:
    """Seven of three contrasts: each p of the least is multiplied by the number of those that are
    no smaller."""
    three = (
        ("a", "sgd", "non-inferiority"),
        ("b", "sgd", "superiority"),
        ("b", "a", "equivalence"),
    )
    frame = contrasts_frame(made_up(shipped, {"sgd": SGD, "a": A, "b": B}, *three))
    greater, less = (
        stats.ttest_ind(np.add(A, 0.005), SGD, equal_var=False, alternative=side).pvalue
        for side in SIDES
    )
    better, worse = (
        stats.ttest_ind(B, SGD, equal_var=False, alternative=side).pvalue
        for side in SIDES
    )
    above, below = (
        stats.ttest_ind(np.add(B, 0.005), A, equal_var=False, alternative=side).pvalue
        for side in SIDES
    )
    under, beyond = (
        stats.ttest_ind(
            np.subtract(B, 0.005), A, equal_var=False, alternative=side
        ).pvalue
        for side in SIDES[::-1]
    )
    family = multipletests(
        [greater, less, better, worse, max(above, under), beyond, below], method="holm"
    )[1]
    assert frame["p"].to_list() == pytest.approx([greater, worse, max(above, under)])
    assert frame["p_holm"].to_list() == pytest.approx(family[[0, 3, 4]])
    assert frame["claim"].to_list() == [
        "loses less than the margin",
        "worse",
        "equal within the margin",
    ]


def test_scores_at_the_same_seed_correlate_as_an_analysis_of_variance_says(
    shipped: Frames,
) -> None:
    """By its definition: mean squares of a two-way layout, as statsmodels has them."""
    generator = np.random.default_rng(0)
    common = generator.normal(0, 0.01, 6)
    scores = {
        row: list(0.8 + common + generator.normal(0, 0.01, 6))
        for row in ("a", "b", "c")
    }
    scores["a"].append(0.9)  # a seed that the others lack
    frames = made_up(
        shipped, scores, ("a", "b", "superiority"), ("c", "b", "superiority")
    )
    lines = [
        (row, seed, score)
        for row, values in scores.items()
        for seed, score in enumerate(values[:6])
    ]
    table = anova_lm(
        ols(
            "score ~ C(row) + C(seed)",
            pd.DataFrame(lines, columns=["row", "seed", "score"]),
        ).fit()
    )
    between, within = table.loc[["C(seed)", "Residual"], "mean_sq"]
    found = seed_correlation(frames)
    assert found is not None
    assert (found.num_seeds, found.num_rows) == (6, 3)
    assert found.value == pytest.approx((between - within) / (between + 2 * within))
    assert found.low < found.value < found.high
    assert (
        seed_correlation(
            made_up(shipped, {"a": A, "b": B[:1]}, ("a", "b", "superiority"))
        )
        is None
    )


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
    found = [sharing_baseline(read_frames(results / name)) for name in names]
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
    frames = made_up(shipped, {"sgd": SGD, "a": scores}, ("a", "sgd", kind))
    assert contrasts_frame(frames)["verdict"].to_list() == [word]


def test_what_cannot_be_said_stays_in_its_family(shipped: Frames) -> None:
    """Else a run that diverges would make the other contrasts easier to show."""
    two = (("a", "sgd", "non-inferiority"), ("b", "sgd", "non-inferiority"))
    broken = contrasts_frame(
        made_up(shipped, {"sgd": SGD, "a": A, "b": [math.nan, *B]}, *two)
    )
    assert broken["p"][1] == 1
    assert broken["p_holm"][0] == pytest.approx(4 * broken["p"][0])


def test_equal_scores_leave_no_doubt_and_nothing_declared_says_nothing(
    shipped: Frames,
) -> None:
    frames = made_up(
        shipped, {"sgd": [0.5, 0.5], "a": [0.5, 0.5]}, ("a", "sgd", "non-inferiority")
    )
    found = difference(frames, "a", "sgd")
    assert found is not None
    assert found.p_above(-0.005) == 0
    assert found.p_below(-0.005) == 1
    assert contrasts_frame(made_up(shipped, {"sgd": SGD})).empty


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
    lines = [
        {"row": row, "kind": "test", "learning_rate": rate, "score": score}
        for (row, rate), score in scores.items()
    ]
    rates = pd.DataFrame(lines, columns=["row", "kind", "learning_rate", "score"])
    assert at_equal_rate(replace(shipped, rows=rows), rates, "a", "b") == pytest.approx(
        expected, nan_ok=True
    )
    equal = replace(
        shipped,
        rows=rows.assign(learning_rate=0.1),
        runs=made_up(shipped, {"a": A, "b": B}).runs,
    )
    assert at_equal_rate(equal, rates[:0], "a", "b") == pytest.approx(
        np.mean(A) - np.mean(B)
    )


def test_a_difference_of_rates_is_not_called_better(shipped: Frames) -> None:
    """M-CSER blocks and EF blocks were run at learning rates 100 times apart, and never alike."""
    verdicts = contrasts_frame(shipped).set_index(["row", "reference"])
    line = verdicts.loc[("mcser_block-96", "ef_block-96")]
    assert line["p_holm"] < 0.001
    assert line["verdict"] == "not run at equal rate"
