"""The regime map on made-up records whose truth is known."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from report.accuracy.build import build_report
from report.accuracy.findings import study_of
from report.accuracy.models_needed import Needed, needed_of
from report.accuracy.regime import Regime, regime_of
from report.accuracy.regime_predictors import ALL, PREDICTORS, Explained, curve_of_method, explained, noise_share
from report.accuracy.tables_regime import (
    needed_table,
    predictors_found,
    predictors_table,
    regime_table,
    residuals_table,
)
from report.kit.logistic import fit_logistic
from tests.report.made_up_regime import METHODS, Lost, Map, records_of, write_records

HALF = {label: 6.0 * 1.4**index for index, label in enumerate(METHODS.values())}
"""Models sent at which half of the gap is closed."""


def by_models(method: str, models: float, steps: int, ratio: float) -> float:
    return 1 / (1 + (models / HALF[method]) ** 1.3)


def by_ratio(method: str, models: float, steps: int, ratio: float) -> float:
    return 1 / (1 + (40 * HALF[method] / ratio) ** 1.3)


def by_both(method: str, models: float, steps: int, ratio: float) -> float:
    return 1 / (1 + (models / HALF[method] * (steps / 5_000) ** -0.6) ** 1.3)


def regime(lost: Lost, **other: object) -> Regime:
    found = regime_of(study_of(records_of(Map(lost, **other))))  # type: ignore[arg-type]
    assert found
    return found


def together(found: list[Explained]) -> dict[str, Explained]:
    return {entry.predictor: entry for entry in found if entry.method == ALL}


def needs(found: Regime) -> dict[str, Needed]:
    return {needed.method: needed for needed in needed_of(found)}


def test_points_are_those_of_the_definition() -> None:
    records = records_of(Map(by_models))
    scores = {
        (rows.row.base or rows.row.row, rows.row.num_steps): {s: run.result for s, run in rows.runs.items() if run}
        for rows in records.rows
    }
    accuracy = {
        key: {seed: result.test_accuracy or math.nan for seed, result in runs.items() if result}
        for key, runs in scores.items()
    }
    found = regime_of(study_of(records))
    assert found and [length.num_steps for length in found.lengths] == [28_050, 14_025, 4_675, 1_309]
    for point in found.points:
        steps, name = point.length.num_steps, point.rows.row.base or point.rows.row.row
        own, ceiling, floor = accuracy[name, steps], accuracy["sgd", steps], accuracy["alone", steps]
        difference = fmean(own[seed] - ceiling[seed] for seed in own)
        assert point.comparison and point.comparison.difference == pytest.approx(difference)
        gap = fmean(ceiling.values()) - fmean(floor.values())
        assert point.closed == pytest.approx((fmean(own.values()) - fmean(floor.values())) / gap)
        assert point.ratio * point.models == pytest.approx(steps)
    assert len(found.points) == 9 * 16 + 4 - 3
    assert set(found.methods) == set(METHODS.values())


def test_a_curve_is_found_again_and_is_the_least_squares_one() -> None:
    logs = np.log(np.array([[2.0], [8.0], [30.0], [100.0], [400.0], [2_000.0]]))
    exact = 1 / (1 + np.exp(-(2.0 - 0.9 * logs[:, 0])))
    curve = fit_logistic(logs, exact)
    assert curve.slopes[0] == pytest.approx(-0.9, abs=2e-3)
    assert math.exp(curve.where(0.1) or 0) == pytest.approx(math.exp((2.0 + math.log(9)) / 0.9), rel=5e-3)
    noisy = exact + np.array([0.05, -0.04, 0.03, 0.05, -0.02, -0.04])
    best = fit_logistic(logs, noisy)
    cost = ((best.at(logs) - noisy) ** 2).sum()
    for intercept in np.linspace(-4, 4, 81):
        for slope in np.linspace(-3, 1, 81):
            tried = 1 / (1 + np.exp(-(intercept + slope * (logs[:, 0] - logs.mean()))))
            assert cost <= ((tried - noisy) ** 2).sum() + 1e-6


def test_what_made_the_losses_is_what_predicts_them() -> None:
    made_by = {lost: together(explained(regime(lost))) for lost in (by_models, by_ratio, by_both)}
    models, ratio, both = made_by[by_models], made_by[by_ratio], made_by[by_both]
    assert models["models sent"].left_out and models["models sent"].left_out > 0.99
    assert (models["ratio"].left_out or 0) < 0.4 and (models["steps"].left_out or 0) < 0.5
    assert ratio["ratio"].left_out and ratio["ratio"].left_out > 0.99
    assert (ratio["models sent"].left_out or 0) < 0.8
    assert both["steps and ratio"].left_out and both["steps and ratio"].left_out > 0.98
    assert (both["models sent"].left_out or 0) < both["steps and ratio"].left_out - 0.02


def test_explained_variance_is_that_of_its_definition() -> None:
    found = regime(by_both)
    entries = explained(found)
    residual = total = 0.0
    for method, points in found.methods.items():
        logs = np.array([[math.log(point.models)] for point in points])
        lost = np.array([min(1.0, 1 - (point.closed or 0)) for point in points])
        predicted = np.empty(len(points))
        for steps in {point.length.num_steps for point in points}:
            there = np.array([point.length.num_steps == steps for point in points])
            predicted[there] = fit_logistic(logs[~there], lost[~there]).at(logs[there])
        residual += float(((lost - predicted) ** 2).sum())
        total += float(((lost - lost.mean()) ** 2).sum())
        own = next(e for e in entries if (e.method, e.predictor) == (method, "models sent"))
        assert own.left_out == pytest.approx(1 - ((lost - predicted) ** 2).sum() / ((lost - lost.mean()) ** 2).sum())
    assert together(entries)["models sent"].left_out == pytest.approx(1 - residual / total)


def test_the_sentence_follows_the_numbers() -> None:
    assert predictors_found(regime(by_models)).startswith("Models sent alone explains 100 % ")
    assert predictors_found(regime(by_ratio)).startswith("Ratio alone explains ")
    assert "points more" in predictors_found(regime(by_both))
    assert predictors_found(regime(by_models, floor=False)).startswith("Too few rows, or lengths that cannot tell")


def test_models_needed_are_near_the_truth_and_in_their_interval() -> None:
    found = needs(regime(by_models))
    for method, needed in found.items():
        # A loss of one margin is an eighth of the gap.
        truth = HALF[method] * 7 ** (1 / 1.3)
        assert needed.kind == "between" and needed.models == pytest.approx(truth, rel=0.12)
        assert needed.low and needed.high and needed.low < needed.models < needed.high
    assert [needed.method for needed in needed_of(regime(by_models))] == sorted(HALF, key=lambda name: HALF[name])
    assert found["EF-SGD top-k"].links == pytest.approx(7) and found["CSEA"].links == pytest.approx(1.75)
    assert needs(regime(by_models)) == found


def test_more_noise_means_a_wider_interval() -> None:
    def width(noise: float) -> float:
        needed = needs(regime(by_models, noise=noise))["CSEA"]
        return (needed.high or 0) / (needed.low or math.inf)

    assert 1 < width(0.0002) < width(0.001)


def test_what_lies_beyond_the_rows_is_said_so() -> None:
    none = needs(regime(lambda *_: 0.0))
    assert all(needed.kind == "at most" for needed in none.values())
    assert none["CSEA"].said() == "at most 1.85"
    all_lost = needs(regime(lambda *_: 0.9))
    assert {needed.said() for needed in all_lost.values()} <= {"more than 2,338", "more than 2,339"}
    unknown = needs(regime(by_models, floor=False))
    assert {needed.said() for needed in unknown.values()} == {"cannot tell"}


def test_a_diverged_row_is_in_the_map_and_in_no_curve() -> None:
    found = regime(by_models, diverged=frozenset({("csea-96", 2)}))
    point = next(p for p in found.points if p.rows.row.row == "csea-96")
    assert point.word == "diverged" and not point.fits
    assert next(e for e in explained(found) if e.method == "CSEA").num_rows == 15


def test_a_length_that_cannot_tell_is_not_fitted() -> None:
    found = regime(by_models, gap=0.012)
    assert not found.telling and explained(found) == [] and noise_share(found) is None
    assert not {point.word for point in found.points} & {"non-inferior"}
    assert curve_of_method(found.methods["CSEA"]) is None


def test_one_length_makes_no_map() -> None:
    assert regime_of(study_of(records_of(Map(by_models, seeds={150: (1, 2, 3)})))) is None


def test_few_rows_and_two_lengths_are_enough_to_be_drawn(tmp_path: Path) -> None:
    made = Map(by_models, seeds={30: (1, 2), 10: (1, 2)}, ratios=(96, 384), methods={"csea": "CSEA"})
    write_records(made, tmp_path / "records")
    text = build_report(tmp_path / "records", output=tmp_path / "report").read_text()
    assert "Too few rows" in text and (tmp_path / "report/figures/regime.pdf").exists()


def test_the_report_holds_the_map(tmp_path: Path) -> None:
    write_records(Map(by_models), tmp_path / "records")
    text = build_report(tmp_path / "records", output=tmp_path / "report").read_text()
    assert "How many models are enough?" in text and predictors_found(regime(by_models)) in text
    assert "![Figure 1: Accuracy against models sent](figures/accuracy_against_models.png)" in text
    with (tmp_path / "report/csv/regime_needed.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["method"] for line in lines} == set(METHODS.values())
    assert all(float(line["low"]) <= float(line["models"]) <= float(line["high"]) for line in lines)


def test_tables_know_their_runs() -> None:
    found = regime(by_models)
    table = regime_table(found)
    assert len(table.rows) == len(found.points) and all(cell.runs for row in table.rows for cell in row)
    assert len(predictors_table(found).rows) == len(METHODS) + 1
    assert len(residuals_table(found).rows) == 4 and len(needed_table(found).rows) == len(METHODS)
    assert all(len(predictors_table(found).columns) == len(row) for row in predictors_table(found).rows)
    assert set(PREDICTORS) == {"models sent", "ratio", "steps", "steps and ratio"}
