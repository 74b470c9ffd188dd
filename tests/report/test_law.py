"""The law of the gap on made-up runs: what is put in comes out, with intervals that cover it, or it
is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.genmod.families import Poisson
from statsmodels.genmod.generalized_linear_model import GLM

from cser_bench.harness.records.experiment import Choice, Experiment, Exponent, Tuning
from cser_bench.report.advice.by_law import sentences_of
from cser_bench.report.frame import Frames
from cser_bench.report.law.exponents import exponents_frame
from cser_bench.report.law.figure import draw_law
from cser_bench.report.law.fit import (
    LAW,
    MEAN,
    MODELS,
    Law,
    fit_law,
    fitted_cells,
    models_frame,
    predicted,
    why_no_law,
)
from cser_bench.report.law.gaps import (
    SHARED,
    cells_frame,
    diverged_rows,
    gaps_frame,
    rate_costs_frame,
    steps_to,
)
from cser_bench.report.law.section import (
    beaten_in_words,
    beyond_in_words,
    headline_of,
    law_context,
    law_tables,
    order_in_words,
    steps_needed,
)
from cser_bench.report.plotting import DASHES
from cser_bench.report.regime import assay_frame, tells
from cser_bench.report.render import markdown_of
from cser_bench.report.speed.job import TrainingJob
from cser_bench.report.statistics import against_baseline, rows_by_length

SIZES, LENGTHS = (30_000, 110_000, 420_000, 1_600_000), (480, 961, 1922, 3844)
PLACES = list(itertools.product(SIZES, LENGTHS))
EXPONENTS = {"num_parameters": -0.2, "rounds": -0.6, "interval": 0.4}
TYPICAL = 0.08
"""The gap in the middle of the grid, in nats."""


def law_of(place: tuple[int, int], interval: int, exponents: dict[str, float]) -> float:
    """The gap at a size and length."""
    values = {
        "num_parameters": place[0] / 2e5,
        "rounds": place[1] / interval / 150,
        "interval": interval / 16,
    }
    values |= {"num_steps": place[1] / 1500}
    return TYPICAL * math.prod(values[term] ** power for term, power in exponents.items())


def made_up(
    exponents: dict[str, float],
    rows: dict[str, int],
    noise: float = 0.0,
    misfit: float = 0.0,
    seed: int = 0,
    places: list[tuple[int, int]] = PLACES,
) -> pd.DataFrame:
    """Gaps of three seeds of these rows, by their intervals.

    `noise`: of a run, the baseline's too, in nats. `misfit`: of a cell, as a share of its gap.
    """
    random, lines = np.random.default_rng(seed), []
    for place in places:
        baseline = {
            run: 1.5 * (place[1] / 480) ** -0.1 + noise * random.standard_normal()
            for run in (1, 2, 3)
        }
        mean = {row: law_of(place, interval, exponents) for row, interval in rows.items()}
        for row, interval in rows.items():
            level = mean[row] * (1 + misfit * random.standard_normal())
            steps = {
                "num_parameters": place[0],
                "num_steps": place[1],
                "steps_a_parameter": place[1] / place[0],
            }
            own = {
                "row": row,
                "label": row,
                "name": f"{row}@{place}",
                "cell": str(place),
                "held_back": False,
            }
            own |= {"interval": interval, "rounds": place[1] / interval}
            for run, loss in baseline.items():
                gap = (
                    level + 1.5 * (place[1] / 480) ** -0.1 - loss + noise * random.standard_normal()
                )
                lines.append(
                    own | steps | {"seed": run, "score": -loss - gap, "baseline": -loss, "gap": gap}
                )
    return pd.DataFrame(lines)


def fitted(*given: Any, **more: Any) -> Law:
    law = fit_law(cells_frame(made_up(*given, **more)))
    assert law is not None
    return law


BOTH = {"local-8": 8, "local-32": 32}


def test_exponents_without_noise_come_out_as_they_were_put_in() -> None:
    law = fitted(EXPONENTS, BOTH)
    for term, power in EXPONENTS.items():
        assert law.exponent(term) == (pytest.approx(power, abs=1e-8), pytest.approx(0, abs=1e-7))
    assert law.dispersion == pytest.approx(0, abs=1e-9) and law.degrees == 16 - 4
    one = fitted(EXPONENTS, {"local-8": 8})
    assert one.terms == ("num_parameters", "rounds") and one.exponent("rounds")[0] == pytest.approx(
        -0.6
    )


def test_coefficients_are_those_of_poissons_regression() -> None:
    """By another program, which takes positive numbers alone."""
    cells = cells_frame(made_up(EXPONENTS, BOTH, noise=0.001, misfit=0.1))
    assert (cells["gap"] > 0).all()
    law = fit_law(cells)
    assert law is not None
    logs = np.log(cells[list(law.terms)].to_numpy(dtype=float))
    design = np.hstack([np.ones((len(logs), 1)), logs - logs.mean(axis=0)])
    expected = GLM(cells["gap"].to_numpy(), design, family=Poisson()).fit(tol=1e-14).params
    assert law.coefficients == pytest.approx(expected, abs=1e-7)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Of 100 experiments, where seeds differ by 0.003 nats and cells by a tenth of their gap."""
    count, covered, estimates = 100, dict.fromkeys(EXPONENTS, 0), []
    for seed in range(count):
        law = fitted(EXPONENTS, BOTH, noise=0.003, misfit=0.1, seed=seed)
        quantile = stats.t.ppf(0.975, law.degrees)
        for term, power in EXPONENTS.items():
            estimate, error = law.exponent(term)
            covered[term] += abs(estimate - power) <= quantile * error
        estimates.append([law.exponent(term)[0] for term in EXPONENTS])
    low, high = stats.binom.ppf([0.001, 0.9999], count, 0.95)
    assert all(low <= number <= high for number in covered.values()), covered
    apart = np.mean(estimates, axis=0) - list(EXPONENTS.values())
    assert np.abs(apart).max() < 0.02


def test_a_law_of_nine_cells_seldom_says_that_a_gap_shrinks_which_does_not() -> None:
    """Of 100 experiments whose gap is the same everywhere, where three seeds differ by 0.01 nats.

    The second level is what the smallest p of eight tests needs by Holm's correction.
    """
    places = list(itertools.product((9_000, 30_000, 110_000), (480, 961, 1922)))
    cells = cells_frame(made_up({}, {"local-8": 8}, places=places))
    asked = [Exponent(rows=["local-8"], of="rounds", question="?")]
    random = np.random.default_rng(0)
    values = []
    for _ in range(100):
        level = TYPICAL * (1 + 0.1 * random.standard_normal(9))
        # Of a row's run and of the baseline's, at each seed.
        apart = 0.01 * random.standard_normal((2, 3, 9)).mean(axis=1)
        gaps = level + apart[0] - apart[1]
        [value] = exponents_frame(cells.assign(gap=gaps), asked, {}, "adamw")["p"]
        values.append(value)
    for level_of_test in (0.05, 0.00625):
        num_shown = sum(value <= level_of_test for value in values)
        # Three standard errors above the level, of as many that err so often.
        error = math.sqrt(level_of_test * (1 - level_of_test) / 100)
        assert num_shown / 100 <= level_of_test + 3 * error


def test_gaps_below_zero_count_as_they_are() -> None:
    """At the longest length the gap is as small as the noise; what has no logarithm would have to
    be left out."""
    misses, num_below = [], 0
    for seed in range(30):
        cells = cells_frame(made_up({"rounds": -1.5}, {"local-8": 8}, noise=0.02, seed=seed))
        num_below += int((cells["gap"] < 0).sum())
        law = fit_law(cells)
        assert law is not None
        assert predicted(law, cells)["gap"].sum() == pytest.approx(cells["gap"].sum())
        misses.append(law.exponent("rounds")[0] + 1.5)
    assert num_below > 15 and abs(np.mean(misses)) < 0.1


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        (
            list(itertools.product(SIZES[:2], LENGTHS)),
            "a law needs runs of 3 sizes, and there are 2",
        ),
        (
            list(itertools.product(SIZES, LENGTHS[:1])),
            "a law needs runs of 3 lengths, and there are 1",
        ),
        (list(zip(SIZES, LENGTHS, strict=True)), "4 numbers need 8 cells, and there are 4"),
    ],
)
def test_too_few_cells_are_refused(places: list[tuple[int, int]], sentence: str) -> None:
    cells = cells_frame(made_up(EXPONENTS, BOTH, places=places))
    assert why_no_law(cells) == sentence and fit_law(cells) is None


def test_where_nothing_is_lost_there_is_no_law() -> None:
    cells = cells_frame(made_up(EXPONENTS, BOTH))
    assert why_no_law(cells) is None
    nothing = cells.assign(gap=-cells["gap"])
    assert why_no_law(nothing) == "nothing is lost on the whole, so there is no gap to have a law"
    assert fit_law(nothing) is None
    assert fit_law(cells.assign(gap=np.where(cells["num_steps"] > 500, -0.05, 0.3))) is None, (
        "the fit has no end"
    )


@pytest.mark.parametrize(
    ("model", "exponents"),
    [
        (LAW, {"num_parameters": -0.25, "rounds": -0.5, "interval": 0.3}),
        ("size", {"num_parameters": -0.3}),
        ("rounds", {"rounds": -0.6}),
        ("steps", {"num_steps": -0.6}),
        ("steps a parameter", {"num_steps": -0.3, "num_parameters": 0.3}),
        (MEAN, {}),
    ],
)
def test_the_model_that_made_the_gaps_is_chosen(model: str, exponents: dict[str, float]) -> None:
    """A model with numbers that are of no use loses, as it misses what it has not seen by more."""
    frames = [
        models_frame(cells_frame(made_up(exponents, BOTH, noise=0.002, seed=seed)))
        for seed in range(12)
    ]
    assert set(frames[0]["model"]) == set(MODELS)
    chosen = [frame.loc[frame["is_chosen"], "model"].item() for frame in frames]
    assert chosen.count(model) >= 7, chosen


def test_misses_of_what_was_left_out_are_those_of_fits_without_it() -> None:
    cells = cells_frame(made_up(EXPONENTS, {"local-8": 8}, noise=0.004, misfit=0.1))
    squares = 0.0
    for length in LENGTHS:
        there = cells["num_steps"] == length
        logs = np.log(cells[["num_parameters", "rounds"]].to_numpy(dtype=float))
        design = np.hstack([np.ones((len(logs), 1)), logs])
        known = GLM(cells.loc[~there, "gap"].to_numpy(), design[~there], family=Poisson()).fit(
            tol=1e-14
        )
        squares += float(((cells.loc[there, "gap"] - known.predict(design[there])) ** 2).sum())
    found = models_frame(cells).set_index("model").loc[LAW, "length_left_out"]
    assert found == pytest.approx(math.sqrt(squares / 16), rel=1e-6)


def test_predictions_cover_cells_that_were_not_fitted_and_are_the_less_sure_the_further_off() -> (
    None
):
    beyond, places = (6_400_000, 1922), [*PLACES, (6_400_000, 1922), (110_000, 1922)]
    inside, count = 0, 60
    for seed in range(count):
        cells = cells_frame(
            made_up(EXPONENTS, {"local-8": 8}, 0.002, 0.1, seed, places=[*PLACES, beyond])
        )
        other = cells["num_parameters"] == beyond[0]
        law = fit_law(cells[~other])
        assert law is not None
        [line] = predicted(law, cells[other]).to_dict("records")
        inside += bool(line["low"] <= cells.loc[other, "gap"].item() <= line["high"])
    assert inside >= 52
    law = fitted(EXPONENTS, {"local-8": 8}, noise=0.002, misfit=0.1)
    at = cells_frame(made_up(EXPONENTS, {"local-8": 8}, places=places[-2:]))
    far, near = predicted(law, at).to_dict("records")
    assert far["high"] / far["low"] > near["high"] / near["low"]
    assert (near["beyond"], far["beyond"]) == (1, pytest.approx(4))


def test_a_difference_of_exponents_knows_that_both_have_the_same_baseline() -> None:
    """Two methods that differ by a constant factor alone have noise in common, of which nothing is
    left."""
    one = made_up(EXPONENTS, {"local-8": 8}, noise=0.004, misfit=0.1)
    two = one.assign(row="cser-8", gap=2 * one["gap"])
    cells = cells_frame(pd.concat([one, two]))
    asked = [
        Exponent(rows=["cser-8"], of="size", question="?"),
        Exponent(rows=["cser-8"], of="size", than=["local-8"], question="?"),
        Exponent(rows=["cser-8"], of="rounds", question="?"),
    ]
    own, apart, rounds = exponents_frame(cells, asked, {}, "adamw").to_dict("records")
    assert own["standard_error"] > 0.01 and apart["standard_error"] == pytest.approx(0, abs=1e-9)
    assert own["estimate"] == pytest.approx(-0.2, abs=0.1) and apart["estimate"] == pytest.approx(
        0, abs=1e-9
    )
    half = stats.t.ppf(0.975, 16 - 3) * own["standard_error"]
    assert (own["low"], own["high"]) == pytest.approx(
        (own["estimate"] - half, own["estimate"] + half)
    )
    assert own["p"] == pytest.approx(stats.t.cdf(own["estimate"] / own["standard_error"], 13))
    assert rounds["is_shown"] and not apart["is_shown"] and apart["p_holm"] >= apart["p"]


def test_questions_without_an_answer_say_why_and_are_not_shown() -> None:
    cells = cells_frame(made_up(EXPONENTS, {"local-8": 8}))
    few = cells[cells["num_parameters"] == SIZES[0]].assign(row="cser-8")
    asked = [
        Exponent(rows=["cser-8"], of="size", question="?"),
        Exponent(rows=["local-8"], of="size", than=["cser-8"], question="?"),
        Exponent(rows=["local-8"], of="size", question="?"),
    ]
    lines = exponents_frame(pd.concat([cells, few]), asked, {"local-8": "local-8@long"}, "adamw")
    sentence = "cser-8: a law needs runs of 3 sizes, and there are 1"
    assert list(lines["reason"]) == [
        sentence,
        "a run of local-8@long diverged",
        "a run of local-8@long diverged",
    ]
    assert (
        (lines["p"] == 1).all() and not lines["is_shown"].any() and lines["estimate"].isna().all()
    )


def test_cells_that_are_held_back_are_in_no_fit() -> None:
    cells = cells_frame(made_up(EXPONENTS, BOTH))
    cells.loc[cells["num_steps"] == 480, ["held_back", "gap"]] = (True, 9.0)
    kept = fitted_cells(cells, ["local-8", "local-32"])
    assert set(kept["num_steps"]) == set(LENGTHS[1:]) and len(kept) == 24


def test_steps_that_the_baseline_could_leave_out() -> None:
    curve = pd.Series({480: -2.0, 960: -1.5, 1920: -1.25})
    assert steps_to(-1.5, curve) == pytest.approx(960)
    assert steps_to(-1.75, curve) == pytest.approx(480 * 2**0.5)
    assert steps_to(-1.25, curve.iloc[::-1]) == pytest.approx(1920)
    assert steps_to(-1.0, curve) == pytest.approx(3840), "the last stretch goes on"
    assert math.isnan(steps_to(-2.1, curve)) and math.isnan(steps_to(-1.5, curve.iloc[:1]))
    gaps = made_up({"rounds": -0.6}, {"local-8": 8})
    cells = cells_frame(gaps)
    long = cells[cells["num_steps"] == 3844].iloc[0]
    # The baseline's loss is 1.5 (steps / 480)^-0.1, which lies a little below the straight lines.
    assert long["baseline_steps"] == pytest.approx(480 * (-long["score"] / 1.5) ** -10, rel=0.05)
    assert long["steps_saved"] == 3844 - long["baseline_steps"] > 0
    assert long["share"] == pytest.approx(long["gap"] / -long["baseline"])
    assert long["num_seeds"] == 3


def planned(name: str, base: str | None, size: int, steps: int, **more: Any) -> dict[str, Any]:
    return {
        "row": name,
        "base": base,
        "label": name,
        "rule": "held_out",
        "num_parameters": size,
        "num_steps": steps,
    } | more


def frames_of(
    rows: list[dict[str, Any]],
    scores: dict[str, dict[int, float | None]],
    trials: list[dict[str, Any]] | None = None,
    tuning: Tuning | None = None,
    **more: Any,
) -> Frames:
    """An experiment of these rows and runs; None for a run that diverged."""
    runs = [
        {
            "row": row,
            "seed": seed,
            "run_id": f"{row} {seed}",
            "status": "diverged" if score is None else "done",
            "score": score,
        }
        for row, of_row in scores.items()
        for seed, score in of_row.items()
    ]
    experiment = Experiment.model_construct(
        baseline="adamw", tuning=tuning, rows=[], **({"floor": None, "margin": None} | more)
    )
    empty = pd.DataFrame()
    return Frames(
        Path("none"),
        experiment,
        pd.DataFrame(rows),
        pd.DataFrame(runs),
        empty,
        pd.DataFrame(trials or []),
        pd.DataFrame(columns=["run_id", "started_at"]),
    )


def test_a_gap_is_to_the_baseline_of_the_same_size_length_and_seed() -> None:
    rows = [
        planned("adamw", None, 100, 40),
        planned("adamw@wide", "adamw", 400, 40),
        planned("adamw@long", "adamw", 100, 80),
        planned("local-8", None, 100, 40, sync_interval=8),
        planned("local-8@wide", "local-8", 400, 40, sync_interval=8, held_back=True),
        planned("cser-4@long", "cser-4", 100, 80, reset_interval=4),
        planned("ef@long", "ef", 100, 80),
        planned("lost@wide", "lost", 400, 99),
    ]
    scores: dict[str, dict[int, float | None]] = {
        "adamw": {1: -1.0, 2: -1.1},
        "adamw@wide": {1: -0.5, 2: None},
        "adamw@long": {1: -0.7},
        "local-8": {1: -1.2, 2: -1.4, 3: -9.0},
        "local-8@wide": {1: -0.6, 2: -0.9},
        "cser-4@long": {1: -0.95},
        "ef@long": {1: -0.7},
        "lost@wide": {1: -0.7},
    }
    frames = frames_of(rows, scores)
    gaps = gaps_frame(frames)
    found = {(line["name"], line["seed"]): line["gap"] for line in gaps.to_dict("records")}
    assert found == {
        ("local-8", 1): pytest.approx(0.2),
        ("local-8", 2): pytest.approx(0.3),
        ("local-8@wide", 1): pytest.approx(0.1),
        ("cser-4@long", 1): pytest.approx(0.25),
        ("ef@long", 1): pytest.approx(0.0),
    }
    by_name = gaps.drop_duplicates("name").set_index("name")
    assert list(by_name["interval"]) == [8, 8, 4, 1] and list(by_name["rounds"]) == [5, 5, 20, 80]
    assert list(by_name["held_back"]) == [False, True, False, False] and list(by_name["cell"]) == [
        "",
        "wide",
        "long",
        "long",
    ]
    assert list(by_name["row"]) == ["local-8", "local-8", "cser-4", "ef"]
    assert diverged_rows(frames) == {"adamw": "adamw@wide"}
    empty = gaps_frame(frames_of(rows, {"adamw": {1: -1.0}}))
    assert empty.empty and set(SHARED) <= set(cells_frame(empty).columns)


def test_a_row_is_held_against_the_baseline_of_its_own_size() -> None:
    """In the report's own table too, at whatever place in the plan."""
    rows = [
        planned("adamw", None, 100, 40),
        planned("local-8", None, 100, 40),
        planned("adamw@wide", "adamw", 400, 40),
        planned("local-8@wide", "local-8", 400, 40),
        planned("adamw@long", "adamw", 100, 80),
    ]
    scores: dict[str, dict[int, float | None]] = {
        "adamw": {1: -1.0, 2: -1.1},
        "local-8": {1: -1.2, 2: -1.4},
        "adamw@wide": {1: -0.5, 2: -0.6},
        "local-8@wide": {1: -0.6, 2: -0.8},
        "adamw@long": {1: -0.9, 2: -0.8},
    }
    frames = frames_of(rows, scores)
    lines = against_baseline(frames).set_index("row")
    assert dict(lines["reference"]) == {"local-8": "adamw", "local-8@wide": "adamw@wide"}
    assert list(lines["estimate"]) == [pytest.approx(-0.25), pytest.approx(-0.15)]
    assert rows_by_length(frames, "adamw") == {40: "adamw", 80: "adamw@long"}


def test_whether_an_experiment_can_tell_a_loss_is_asked_of_its_own_size_and_length() -> None:
    """Of no other is there a worker alone, and the longest is not its own."""
    rows = [
        planned("adamw", None, 100, 40, tunes=None),
        planned("alone", None, 100, 40, tunes=None),
        planned("adamw@long", "adamw", 100, 80, tunes=None),
        planned("adamw@wide", "adamw", 400, 99, tunes=None),
    ]
    scores: dict[str, dict[int, float | None]] = {
        "adamw": {1: -1.0, 2: -1.01},
        "alone": {1: -1.6, 2: -1.61},
        "adamw@long": {1: -0.9, 2: -0.91},
        "adamw@wide": {1: -0.5, 2: -0.51},
    }
    frames = frames_of(rows, scores, margin=0.01, floor="alone")
    lengths = assay_frame(frames)
    assert list(lengths["num_steps"]) == [40, 80] and tells(frames)
    own, longer = lengths.to_dict("records")
    assert own["reason"] is None and "lacks finished runs of a worker alone" in longer["reason"]


def test_what_half_a_step_of_the_rate_costs() -> None:
    """Trials on a parabola in log rate, a factor of 2 apart: 0.02 for a whole step, so 0.005 for
    half of one."""
    rates = [0.001, 0.002, 0.004, 0.008]
    trials = [
        {
            "row": row,
            "candidate": None,
            "learning_rate": rate,
            "score": -1 - 0.02 * (number - best) ** 2,
        }
        for row, best in (("local-8@wide", 2), ("local-8@long", 3))
        for number, rate in enumerate(rates)
    ]
    choices = {
        row: Choice(learning_rate=rate, candidate=0, settings={}, num_trials=4, at_end=False)
        for row, rate in (("local-8@wide", 0.004), ("local-8@long", 0.008))
    }
    tuning = Tuning(experiment="t", grid=rates, seeds=[101], selected={}, choices=choices)
    frames = frames_of([planned("local-8@wide", "local-8", 1, 1)], {}, trials, tuning)
    inside, at_end = rate_costs_frame(frames).to_dict("records")
    assert (
        inside["half_step"] == pytest.approx(0.005)
        and not inside["at_end"]
        and inside["row"] == "local-8"
    )
    assert math.isnan(at_end["half_step"]) and at_end["at_end"]


def grid_frames(
    gap_held_back: float | None = None, metric: str = "loss", intervals: Sequence[int] = (8,)
) -> Frames:
    """Runs of 3 sizes x 3 lengths without noise, whose gap is 0.1 (N / 100)^-0.25 (R / 5)^-0.5
    (H / 8)^-0.1, and a cell of four times the largest size that is held back."""
    rows, scores = [], {}
    places = [*itertools.product((100, 400, 1600), (40, 80, 160)), (6400, 40)]
    for size, steps in places:
        cell = f"@{size}-{steps}"
        base = "" if (size, steps) == (100, 40) else cell
        held_back = {"held_back": True} if size == 6400 else {}
        methods: list[tuple[str, str, dict[str, Any]]] = [("adamw", "AdamW", {})]
        for interval in intervals:
            label = "local AdamW" if interval == 8 else f"local AdamW (H {interval})"
            methods.append((f"local-{interval}", label, {"sync_interval": interval}))
        for row, label, more in methods:
            name = f"{row}{base}"
            planned_base = row if base else None
            rows.append(
                planned(name, planned_base, size, steps, tunes=None, **more, **held_back)
                | {"label": label}
            )
        if held_back and gap_held_back is None:
            continue
        scores[f"adamw{base}"] = {1: -1.0, 2: -1.01, 3: -1.02}
        for interval in intervals:
            gap = 0.1 * (size / 100) ** -0.25 * (steps / interval / 5) ** -0.5
            gap *= (interval / 8) ** -0.1
            if held_back:
                gap = gap_held_back or 0.0
            scores[f"local-{interval}{base}"] = {
                seed: score - gap for seed, score in scores[f"adamw{base}"].items()
            }
    asked = [
        Exponent(rows=["local-8"], of="size", question="with size?"),
        Exponent(rows=["local-8"], of="rounds", question="with rounds?"),
    ]
    if len(intervals) > 1:
        together = [f"local-{interval}" for interval in intervals]
        asked.append(Exponent(rows=together, of="interval", question="with H?"))
    return frames_of(
        rows,
        scores,
        exponents=asked,
        contrasts=None,
        confidence=0.95,
        name="made_up",
        metric=metric,
    )


def test_a_report_says_what_twice_as_much_does() -> None:
    """2^-0.25 is 0.84 and 2^-0.5 is 0.71: 16 and 29 per cent less."""
    frames = grid_frames()
    context = law_context(frames, law_tables(frames))
    answers = context["law_answers"].set_index("of")
    assert set(answers["label"]) == {"local AdamW"} and set(answers["answer"]) == {"Yes"}
    assert answers.loc["size", ["twice_of", "twice", "interval"]].to_list() == [
        "the parameters",
        "16 % less",
        "16 to 16 % less",
    ]
    assert answers.loc["rounds", ["twice_of", "twice", "interval"]].to_list() == [
        "the rounds",
        "29 % less",
        "29 to 29 % less",
    ]
    assert context["law_headline"] == (
        "in 40 to 160 steps local AdamW is shown to lose less on larger networks and in longer runs"
    )


def test_rows_that_differ_in_it_have_a_law_of_the_steps_between_rounds() -> None:
    """2^-0.1 is 0.93: 7 per cent less. The headline is of size and length, and stays as it was."""
    frames = grid_frames(intervals=(8, 32))
    context = law_context(frames, law_tables(frames))
    answer = context["law_answers"].set_index("of").loc["interval"]
    assert answer["label"] == "local AdamW and local AdamW (H 32)"
    assert (answer["twice_of"], answer["twice"]) == ("the steps between rounds", "7 % less")
    assert answer["answer"] == "Yes" and answer["estimate"] == pytest.approx(-0.1)
    assert context["law_headline"] == (
        "in 40 to 160 steps local AdamW is shown to lose less on larger networks and in longer runs"
    )


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        (
            {"A": [1, 1, 1], "B": [2, 2, 2]},
            "By mean A loses less than B at all 3 sizes and lengths",
        ),
        (
            {"A": [1, 3, 1], "B": [2, 2, 2]},
            "By mean A loses less than B at 2 of 3 sizes and lengths",
        ),
        (
            {"A": [1, 1, 1], "B": [3, 2, 2], "C": [2, 3, 3]},
            "By mean A loses least, then B, then C, at 2 of 3 sizes and lengths; it loses least at all",
        ),
        (
            {"A": [1, 1, 3], "B": [2, 2, 2], "C": [3, 3, 1]},
            "By mean A loses least, then B, then C, at 2 of 3 sizes and lengths; it loses least at 2, C at 1",
        ),
        # A row that was not run everywhere is left out.
        ({"A": [1, 1, 1], "B": [2]}, ""),
    ],
)
def test_the_order_of_methods_is_counted_over_sizes_and_lengths(
    gaps: dict[str, list[float]], said: str
) -> None:
    lines = []
    for row, values in gaps.items():
        for number, gap in enumerate(values):
            place = {"num_parameters": 100, "num_steps": 40 * (1 + number), "held_back": False}
            lines.append(place | {"row": row, "label": row, "gap": gap})
    lines.append({**lines[0], "num_steps": 640, "held_back": True, "gap": 9.0})
    lines.append({**lines[0], "row": "alone", "label": "alone", "gap": 0.0})
    assert order_in_words(pd.DataFrame(lines), "alone") == said


def test_a_headline_names_other_methods_for_size_than_for_length() -> None:
    shown = {"than": "", "reason": None, "is_shown": True, "low": -0.1}
    lines = [("CSER", "size"), ("DiLoCo", "rounds"), ("local SGD", "rounds")]
    answers = pd.DataFrame([shown | {"label": label, "of": of} for label, of in lines])
    assert headline_of(answers, (40, 160)) == (
        "in 40 to 160 steps CSER is shown to lose less on larger networks, and DiLoCo and local SGD in "
        "longer runs"
    )
    assert headline_of(answers[1:], (40, 160)) == (
        "in 40 to 160 steps DiLoCo and local SGD are shown to lose less in longer runs, and none on "
        "larger networks"
    )


def test_a_headline_names_all_that_were_asked_about() -> None:
    undecided = {"than": "", "reason": None, "is_shown": False, "low": -0.1, "of": "rounds"}
    answers = pd.DataFrame([undecided | {"label": label} for label in ("CSER", "DiLoCo", "QSR")])
    where = "shown to lose less on larger networks or in longer runs"
    assert headline_of(answers, (40, 160)) == (
        f"in 40 to 160 steps none of CSER, DiLoCo and QSR is {where}"
    )
    assert headline_of(answers[1:], (40, 160)) == (
        f"in 40 to 160 steps neither DiLoCo nor QSR is {where}"
    )
    none_answered = answers.assign(reason="a run diverged")
    assert headline_of(none_answered, (40, 160)) == (
        "in 40 to 160 steps no question of size or length has an answer"
    )


@pytest.mark.parametrize(
    ("size", "rounds", "said"),
    [
        (
            {},
            {},
            "CSER is not shown to lose less on larger networks or in longer runs",
        ),
        (
            {"low": 0.1},
            {"is_shown": True},
            "CSER is shown to lose less in longer runs, and none on larger networks; by "
            "its interval CSER loses more on larger networks",
        ),
        (
            {"is_shown": True},
            {"low": 0.1},
            "CSER is shown to lose less on larger networks, and none in longer runs; by "
            "its interval CSER loses more in longer runs",
        ),
        (
            {"is_shown": True},
            {"is_shown": True},
            "CSER is shown to lose less on larger networks and in longer runs",
        ),
    ],
)
def test_a_headline_names_who_loses_less_and_who_loses_more(
    size: dict[str, Any], rounds: dict[str, Any], said: str
) -> None:
    undecided = {"label": "CSER", "than": "", "reason": None, "is_shown": False, "low": -0.1}
    answers = pd.DataFrame(
        [undecided | {"of": "size"} | size, undecided | {"of": "rounds"} | rounds]
    )
    assert headline_of(answers, (40, 160)) == f"in 40 to 160 steps {said}"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], ""),
        (
            [(320, 0.15), (640, 0.05)],
            "In runs longer than these 2 of 2 losses were less than predicted; they are of 2 sizes and "
            "lengths, and methods share a baseline there. Of 2 predicted losses 1 lay outside the interval",
        ),
        (
            [(320, 0.35), (640, 0.45), (640, 0.25), (80, 0.15)],
            "In runs longer than these none of 3 losses were less than predicted; they are of 2 sizes "
            "and lengths, and methods share a baseline there. Of 4 predicted losses 2 lay outside the "
            "interval",
        ),
        (
            [(320, 0.15), (320, 0.25)],
            "In runs longer than these 1 of 2 losses were less than predicted; they are of 1 size and "
            "length, and methods share a baseline there. Of 2 predicted losses none lay outside the "
            "interval, and the widest interval was 0.50 to 1.50 times what was predicted",
        ),
        ([(80, 0.15), (160, 0.35)], "Of 2 predicted losses 1 lay outside the interval"),
        ([(80, 0.05)], "The loss that was predicted lay outside the interval"),
        (
            [(320, 0.15)],
            "The loss that was predicted lay inside the interval, and the widest interval was 0.50 to "
            "1.50 times what was predicted",
        ),
    ],
)
def test_it_is_said_how_what_was_held_back_came_out(
    found: list[tuple[int, float]], said: str
) -> None:
    """Each was predicted to be 0.2 (0.1 to 0.3); the law is fitted to 40 to 160 steps."""
    assert beyond_in_words(held_back(*found), (40, 160)) == said


def held_back(*found: tuple[int, float]) -> pd.DataFrame:
    """Cells that were predicted to lose 0.2 (0.1 to 0.3): the steps of each, and what was found."""
    lines = [
        {
            "num_parameters": 100,
            "num_steps": steps,
            "found": value,
            "predicted": 0.2,
            "predicted_low": 0.1,
            "predicted_high": 0.3,
            "is_inside": 0.1 <= value <= 0.3,
        }
        for steps, value in found
    ]
    columns = [
        "num_parameters",
        "num_steps",
        "found",
        "predicted",
        "predicted_low",
        "predicted_high",
        "is_inside",
    ]
    return pd.DataFrame(lines, columns=columns)


def test_steps_that_the_baseline_needs_are_a_share_of_the_methods_own() -> None:
    """Cells where nothing is known of it are left out."""
    cells = pd.DataFrame(
        {
            "row": ["local-8"] * 3,
            "label": ["local AdamW"] * 3,
            "num_steps": [100, 200, 400],
            "baseline_steps": [np.nan, 150.0, 200.0],
            "baseline_steps_below": [np.nan] * 3,
        }
    )
    assert steps_needed(cells, ["local-8", "cser-8"], "AdamW") == (
        "By mean, AdamW needs 50 to 75 % of the steps to come as far as local AdamW, in the 2 of 3 "
        "cases where that is known"
    )
    assert steps_needed(cells, ["cser-8"], "AdamW") == ""
    one = steps_needed(cells[:2], ["local-8"], "AdamW")
    assert one.startswith("By mean, AdamW needs 75 % of the steps")
    bounded = cells.assign(baseline_steps_below=[60.0, np.nan, np.nan])
    assert steps_needed(bounded, ["local-8"], "AdamW").endswith(
        "that is known; in 1 more it needs less than 60 %"
    )


def test_where_the_baselines_shortest_run_came_further_its_steps_bound_what_it_needs() -> None:
    """The row's own shortest length says nothing: there the baseline has no shorter run."""
    exponents = {"num_parameters": 0.0, "rounds": 0.0}
    gaps = made_up(exponents, {"local-8": 8}, noise=0.0)
    cells = cells_frame(gaps.assign(score=gaps["baseline"].min() - 1.0)).set_index("num_steps")
    shortest = min(LENGTHS)
    assert cells["baseline_steps"].isna().all()
    assert cells.loc[[shortest], "baseline_steps_below"].isna().all()
    assert (cells.drop(index=shortest)["baseline_steps_below"] == shortest).all()


def test_the_mean_of_all_cells_stands_beside_the_laws_and_who_it_beats_is_named() -> None:
    """Of gaps that know neither size nor length a law of both misses more than their mean does."""
    flat = law_context(grid_frames(), law_tables(grid_frames()))
    assert flat["law_beaten"] == "", "gaps that follow the law"
    models = pd.DataFrame(
        {
            "label": ["local AdamW", "local AdamW", "CSER", "CSER"],
            "model": [LAW, MEAN] * 2,
            "size_left_out": [0.2, 0.1, 0.2, 0.1],
            "length_left_out": [0.2, 0.1, 0.1, 0.2],
        }
    )
    assert beaten_in_words(models) == (
        "The plain mean of all losses does better than the law on a size left out for local AdamW and "
        "CSER, and on a length left out for local AdamW"
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "not all run yet"),
        (0.1 * 64**-0.25, "inside the interval"),
        (0.1, "outside the interval"),
        (0.01, "outside the interval"),
    ],
)
def test_what_is_held_back_is_predicted_before_and_after_its_runs(
    found: float | None, said: str
) -> None:
    frames = grid_frames(found)
    tables = law_tables(frames)
    [line] = tables["law_predictions"].to_dict("records")
    assert line["predicted"] == pytest.approx(0.1 * 64**-0.25) and line["beyond"] == 4
    context = law_context(frames, tables)
    [words] = context["law_predictions"].to_dict("records")
    assert words["verdict"] == said
    for place in ("inside", "outside"):
        is_said = f"predicted lay {place} the interval" in context["law_beyond"]
        assert is_said == said.startswith(place)


def test_a_fit_with_what_was_held_back_waits_for_all_of_it_and_has_no_verdict() -> None:
    """The gap that was found there lies on the law, so that the exponents stay -0.25 and -0.5."""
    waiting = law_tables(grid_frames())
    assert waiting["law_fits_of_all"].empty
    frames = grid_frames(0.1 * 64**-0.25)
    tables = law_tables(frames)
    fits = tables["law_fits_of_all"].set_index("term")
    assert fits.loc["num_parameters", "exponent"] == pytest.approx(-0.25)
    assert fits.loc["num_parameters", "largest"] == 6400
    answers = law_context(frames, tables)["law_answers"].set_index("of")
    assert answers.loc["size", "of_all"] == "16 % less (16 to 16 % less)"
    assert answers.loc["rounds", "of_all"] == "29 % less (29 to 29 % less)"


def test_questions_of_exponents_and_contrasts_are_one_family() -> None:
    """A test's p is multiplied by the number of those whose p is no smaller, of either kind."""
    cells = cells_frame(made_up(EXPONENTS, {"local-8": 8}, noise=0.004, misfit=0.1))
    asked = [Exponent(rows=["local-8"], of="rounds", question="?")]
    [alone] = exponents_frame(cells, asked, {}, "adamw")["p_holm"]
    of_contrasts = [alone / 2, 0.9, 0.9]
    [beside] = exponents_frame(cells, asked, {}, "adamw", other_p_values=of_contrasts)["p_holm"]
    assert beside == pytest.approx(3 * alone), "the one that is smaller takes a step of its own"


def test_the_section_and_its_figure_have_every_cell_and_say_what_is_held_back() -> None:
    frames = grid_frames()
    tables = law_tables(frames)
    context = law_context(frames, tables)
    beside = {
        "captions": {"law": "A finding"},
        "unit": "nats",
        "baseline": "AdamW",
        "heading": "Test loss",
    }
    page = markdown_of("law.md.j2", context | beside | {"experiment": frames.experiment})
    cells = [line for line in page.splitlines() if line.startswith("| local AdamW |")]
    assert len(cells) == 1 + 9 + len(MODELS) - 1, "a prediction, the cells, and the other laws"
    assert "| 16 % less | 16 to 16 % less |" in page
    assert "not all run yet" in page and "![A finding." in page
    figure = draw_law(frames, tables, "A finding")
    lengths = [line for line in figure.axes[0].lines if line.get_linestyle() in DASHES]
    assert [len(line.get_xdata()) for line in lengths].count(3) == 3, "a line a length"


def test_a_figure_of_accuracies_is_in_points() -> None:
    """Scores are shares, and a point is a hundredth of one."""
    heights = []
    for metric in ("loss", "accuracy"):
        frames = grid_frames(metric=metric)
        [axes] = draw_law(frames, law_tables(frames), "A finding").axes
        heights.append([line.get_ydata()[0] for line in axes.lines[:9]])
    in_nats, in_points = np.array(heights)
    assert in_points == pytest.approx(100 * in_nats)


@pytest.mark.parametrize(
    ("row", "status", "said"),
    [
        ("local-8@6400-40", "missing", "not all run yet"),
        ("adamw@6400-40", "missing", "not all run yet"),
        ("local-8@6400-40", "diverged", "a run diverged"),
        ("adamw@6400-40", "diverged", "a run diverged"),
    ],
)
def test_a_part_of_the_runs_of_what_was_held_back_finds_nothing(
    row: str, status: str, said: str
) -> None:
    """Two of three seeds are done, and would tell of another mean than was planned."""
    whole = grid_frames(0.1)
    runs = whole.runs.copy()
    is_one = (runs["row"] == row) & (runs["seed"] == 3)
    assert is_one.sum() == 1
    runs.loc[is_one, "status"] = status
    tables = law_tables(replace(whole, runs=runs))
    [line] = tables["law_predictions"].to_dict("records")
    assert math.isnan(line["found"]) and not line["is_inside"]
    assert tables["law_fits_of_all"].empty and not tables["law_fits"].empty
    assert not tables["law_cells"]["held_back"].any()
    [axes] = draw_law(replace(whole, runs=runs), tables, "A finding").axes
    assert "white" not in [line.get_markerfacecolor() for line in axes.lines]
    [axes] = draw_law(whole, law_tables(whole), "A finding").axes
    assert "white" in [line.get_markerfacecolor() for line in axes.lines]
    context = law_context(replace(whole, runs=runs), tables)
    assert list(context["law_predictions"]["verdict"]) == [said] and context["law_beyond"] == ""


def test_where_a_run_of_the_baseline_diverged_no_method_has_a_law() -> None:
    whole = grid_frames()
    runs = whole.runs.copy()
    runs.loc[(runs["row"] == "adamw@400-80") & (runs["seed"] == 3), "status"] = "diverged"
    tables = law_tables(replace(whole, runs=runs))
    assert set(tables["law_exponents"]["reason"]) == {"a run of adamw@400-80 diverged"}
    assert tables["law_fits"].empty


def test_advice_foretells_by_the_law_and_says_nothing_beyond_thirty_times_off_a_run() -> None:
    frames = grid_frames()
    near = TrainingJob(800, 80, 8, 1, 0.01, 1e9)
    [sentence] = sentences_of([frames], near)
    # 0.1 (800 / 100)^-0.25 (80 / 8 / 5)^-0.5; the nearest runs have twice and half the parameters.
    assert f": {0.1 * 8**-0.25 * 2**-0.5:.4f} nats (" in sentence
    assert sentence.endswith("), 2 times off the nearest run (made_up).")
    [sentence] = sentences_of([frames], replace(near, num_parameters=1600 * 31))
    assert sentence.endswith(
        ": no evidence. This job is 31 times off the nearest run, in parameters or rounds (made_up)."
    )
    # What was held back has four times the parameters, and half the steps.
    whole = grid_frames(0.1 * 64**-0.25)
    [sentence] = sentences_of([whole], replace(near, num_parameters=6400 * 8))
    assert f": {0.1 * 512**-0.25 * 2**-0.5:.4f} nats (" in sentence
    assert sentence.endswith("), 8 times off the nearest run (made_up).")


def test_advice_does_not_take_a_corner_where_nothing_was_run_for_a_run() -> None:
    """Of the largest network there are runs of 40 steps, and of the longest runs smaller networks."""
    job = TrainingJob(6400, 160, 8, 1, 0.01, 1e9)
    [sentence] = sentences_of([grid_frames(0.1 * 64**-0.25)], job)
    assert sentence.endswith("), 4 times off the nearest run (made_up).")


def test_advice_has_no_law_of_a_part_of_its_runs_and_no_run_that_a_law_does_not_know() -> None:
    whole = grid_frames(0.1 * 64**-0.25)
    job = TrainingJob(6400, 40, 8, 1, 0.01, 1e9)
    assert sentences_of([whole], job)[0].endswith("), as was run (made_up).")

    def without(row: str) -> Frames:
        runs = whole.runs.copy()
        runs.loc[(runs["row"] == row) & (runs["seed"] == 3), "status"] = "missing"
        return replace(whole, runs=runs)

    assert sentences_of([without("local-8@400-80")], job) == []
    [sentence] = sentences_of([without("local-8@6400-40")], job)
    assert sentence.endswith("), 4 times off the nearest run (made_up).")


def test_of_two_laws_of_a_method_advice_takes_the_one_with_the_nearest_run() -> None:
    small = grid_frames()
    large = grid_frames(0.2)
    large = replace(large, experiment=large.experiment.model_copy(update={"name": "larger"}))
    job = TrainingJob(1600 * 8, 40, 8, 1, 0.01, 1e9)
    assert sentences_of([small], job)[0].endswith("), 8 times off the nearest run (made_up).")
    assert sentences_of([large], job)[0].endswith("), 2 times off the nearest run (larger).")
    assert sentences_of([small, large], job) == sentences_of([large], job)
    assert sentences_of([large, small], job) == sentences_of([large], job)
