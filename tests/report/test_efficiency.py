"""Statistical efficiency on made-up curves: what is put in comes out, is covered, or is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq

from cser_bench.harness.errors import UsageError
from cser_bench.report import efficiency
from cser_bench.report.efficiency import (
    Curve,
    efficiency_frame,
    pooled_deviation,
    quadratic_steps,
    steps_in_draws,
)
from cser_bench.report.frame import Frames, read_frames
from tests.harness.support import ROOT

SHIPPED = ROOT / "results"

T = 4800
LENGTHS = [600, 857, 1200, 1714, 2400, 3429, 4000, 4800]
TUNED = (600, 1714, 4800)
Score = Callable[[float], float]


def falling_loss(steps: float) -> float:
    """Score of a loss that falls ever more slowly; more is better."""
    return -0.2 - 40 / (steps + 200)


def curve_through(
    score: Score,
    deviation: float = 0.0,
    lengths: list[int] = LENGTHS,
    tuned: tuple[int, ...] = TUNED,
    num_runs: int = 5,
    generator: np.random.Generator | None = None,
) -> Curve:
    """The curve of runs that differ from a true score by normal noise."""
    drawn = generator or np.random.default_rng(0)
    samples = []
    for steps in lengths:
        noise = deviation * drawn.standard_normal(num_runs)
        samples.append(score(steps) + noise)
    pooled, degrees = pooled_deviation(samples)
    means = [values.mean() for values in samples]
    return Curve(
        steps=np.array(lengths, dtype=float),
        means=np.array(means),
        counts=np.full(len(lengths), num_runs),
        deviation=pooled,
        degrees=degrees,
        tuned=tuned,
    )


def steps_to(curve: Curve, score: float) -> float:
    """The steps that the baseline needs for a score of five like runs."""
    scores = np.full(5, score)
    (drawn,) = steps_in_draws(curve, [scores])
    # The first is of the scores as they are, the others are draws.
    return float(drawn[0])


@pytest.mark.parametrize("share", [0.13, 0.3, 0.5, 0.77, 0.97])
def test_a_score_is_valued_by_the_steps_that_the_baseline_needs_for_it(
    share: float,
) -> None:
    """A score that is linear in ln t: cubic, quadratic and the truth are then one line."""
    curve = curve_through(math.log)
    reached = math.log(share * T)
    by_cubic = steps_to(curve, reached) / T
    by_quadratic = quadratic_steps(curve, reached) / T
    assert by_cubic == pytest.approx(share, rel=1e-6)
    assert by_quadratic == pytest.approx(share, rel=1e-6)


def test_a_score_equal_to_the_curves_first_is_worth_its_shortest_length() -> None:
    """Draws of the curve reach the score elsewhere, and so take more rounds of bisection."""
    curve = curve_through(falling_loss, deviation=0.002)
    first = float(curve.means[0])
    assert steps_to(curve, first) == pytest.approx(600)


def test_between_lengths_a_cubic_errs_less_than_a_straight_line() -> None:
    """Straight lines below a concave curve overstate the steps that a score needs."""
    curve = curve_through(falling_loss)
    for steps in (700, 1400, 2000, 2900, 4400):
        reached = falling_loss(steps)
        found = steps_to(curve, reached)
        log_steps = np.interp(reached, curve.means, np.log(curve.steps))
        straight = math.exp(log_steps)
        error = abs(math.log(found / steps))
        error_of_straight = abs(math.log(straight / steps))
        assert error < 0.004
        assert error < error_of_straight


def test_a_longer_run_that_came_less_far_does_not_turn_the_curve_back() -> None:
    curve = Curve(
        steps=np.array([1.0, 2, 4, 8, 16]),
        means=np.array([1.0, 2.0, 4.0, 3.0, 5.0]),
        counts=np.array([5, 5, 5, 5, 5]),
        deviation=0.0,
        degrees=20,
        tuned=(1, 16),
    )
    assert not curve.is_monotone
    # The means of 4 and of 8 steps pool to 3.5, which the smaller of the lengths reaches.
    assert steps_to(curve, 3.5) == pytest.approx(4.0)
    counts = np.array([5, 5, 15, 5, 5])
    heavier = replace(curve, counts=counts)
    # By runs the pool is (15 x 4 + 5 x 3) / 20 = 3.75.
    assert steps_to(heavier, 3.75) == pytest.approx(4.0)


def test_intervals_cover_the_truth_about_as_often_as_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(efficiency, "NUM_DRAWS", 300)
    generator = np.random.default_rng(7)
    deviation = 0.0004
    truth = 0.5 * T
    num_covered = 0
    num_tries = 100
    for _ in range(num_tries):
        curve = curve_through(falling_loss, deviation, generator=generator)
        noise = deviation * generator.standard_normal(5)
        scores = falling_loss(truth) + noise
        (steps,) = steps_in_draws(curve, [scores])
        drawn = steps[1:]
        low, high = np.quantile(drawn, [0.025, 0.975])
        num_covered += bool(low <= truth <= high)
    # 95 of 100, and by chance 88 or more in 99.9 % of such trials.
    assert num_covered >= 88


def test_methods_share_the_draws_of_their_baseline() -> None:
    """Two rows of one score, known without error, have the same steps in every draw."""
    curve = curve_through(falling_loss, 0.001)
    scores = np.full(5, falling_loss(2000))
    first, second = steps_in_draws(curve, [scores, scores.copy()])
    assert (first == second).all()
    assert first[1:].std() > 0


def judged(curve: Curve, scores: np.ndarray) -> tuple[str, float, str]:
    (steps,) = steps_in_draws(curve, [scores])
    estimate, *drawn = steps.tolist()
    low = float(np.quantile(drawn, 0.025, method="lower"))
    high = float(np.quantile(drawn, 0.975, method="higher"))
    return efficiency._judged(curve, estimate, low, high)


def test_beyond_the_curve_there_is_a_bound_and_no_number() -> None:
    curve = curve_through(falling_loss, 0.0001)
    before_it = np.full(5, falling_loss(300))
    kind, steps, _ = judged(curve, before_it)
    assert kind == "at most"
    assert steps == 600
    behind_it = np.full(5, falling_loss(9000))
    kind, steps, _ = judged(curve, behind_it)
    assert kind == "at least"
    assert steps == 4800
    # On the edge the interval's other end is what is known.
    on_edge = falling_loss(4790) + 0.0002 * np.arange(-2, 3)
    kind, steps, _ = judged(curve, on_edge)
    assert kind == "at least"
    assert 4000 < steps < 4800


@pytest.mark.parametrize(
    ("changes", "scores", "reason"),
    [
        pytest.param(
            {"deviation": 0.02},
            falling_loss(2400) + 0.001 * np.arange(5),
            "interval too wide",
            id="noisy",
        ),
        pytest.param(
            {"lengths": [*LENGTHS[:4], 4800]},
            np.full(5, falling_loss(3000)),
            "curve too coarse there",
            id="few lengths",
        ),
        pytest.param(
            {"tuned": (600, 4800)},
            np.full(5, falling_loss(1700)),
            "rate not tuned near there",
            id="tuned at the ends alone",
        ),
        pytest.param(
            {"num_runs": 1},
            np.full(5, falling_loss(1700)),
            "too few runs",
            id="one run",
        ),
    ],
)
def test_what_is_not_known_is_a_dash_with_its_reason(
    changes: dict[str, object], scores: np.ndarray, reason: str
) -> None:
    settings = {"deviation": 0.0001} | changes
    curve = curve_through(falling_loss, **settings)  # type: ignore[arg-type]
    kind, steps, why = judged(curve, scores)
    assert kind == "none"
    assert math.isnan(steps)
    assert why == reason


# On records


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> Frames:
    """An experiment whose baseline has four lengths, as if so few were enough."""
    monkeypatch.setattr(efficiency, "LEAST_LENGTHS", 4)
    return read_frames(SHIPPED / "reference" / "gap_text_longer")


def test_a_row_has_one_line_a_score_and_the_baseline_none(frames: Frames) -> None:
    table = efficiency_frame(frames)
    assert not table["row"].str.startswith("adamw").any()
    assert set(table["score_name"]) == {"test_loss"}, "the experiment compares losses"
    assert not table.duplicated(["row", "score_name"]).any()
    kinds = table["kind"]
    shown = table[kinds == "estimate"]
    assert (shown["low"] <= shown["efficiency"]).all()
    assert (shown["efficiency"] <= shown["high"]).all()
    reasons = table.loc[kinds == "none", "reason"]
    assert (reasons != "").all()


def test_too_few_lengths_give_an_empty_frame(frames: Frames) -> None:
    regime = read_frames(SHIPPED / "reference" / "resnet_regime")
    assert efficiency_frame(regime).empty


def test_a_curve_of_another_network_is_refused(frames: Frames, tmp_path: Path) -> None:
    other = read_frames(SHIPPED / "reference" / "resnet_regime")
    words = "takes its baseline's curve from gap_text_longer, whose"
    with pytest.raises(UsageError, match=words):
        efficiency_frame(other, frames)


# A second working-out, from the packs alone


def losses_in_packs(*names: str) -> pd.DataFrame:
    """Test losses of finished runs, by row, model width and steps, each run once."""
    lines = {}
    for name in names:
        pack = SHIPPED / "reference" / name / "runs.jsonl"
        _header, *texts = pack.read_text().splitlines()
        for text in texts:
            files = json.loads(text)
            run = files["run"]
            result = files["result"]
            if result["status"] != "done":
                continue
            row, _, _ = run["row"].partition("@")
            options = run["config"]["model"]["options"]
            lines[files["run_id"]] = {
                "row": row,
                "width": options["width"],
                "steps": result["num_steps"],
                "loss": result["test_loss"],
            }
    return pd.DataFrame(lines.values())


def pooled_by_max_of_min(means: np.ndarray, counts: np.ndarray) -> list[float]:
    """Isotonic regression, falling, by its formula: the largest of the smallest mean of blocks."""
    size = len(means)

    def block(first: int, last: int) -> float:
        own_means = means[first : last + 1]
        own_counts = counts[first : last + 1]
        whole = (own_means * own_counts).sum()
        return float(whole / own_counts.sum())

    pooled = []
    for here in range(size):
        largest = [
            max(block(first, last) for last in range(here, size))
            for first in range(here + 1)
        ]
        pooled.append(min(largest))
    return pooled


def steps_by_root(losses: pd.DataFrame, target: float) -> float:
    """The steps to a loss: a cubic through the pooled means, and the root of it less the target."""
    by_steps = losses.groupby("steps")["loss"]
    means = by_steps.mean()
    counts = by_steps.count()
    pooled = pooled_by_max_of_min(means.to_numpy(), counts.to_numpy())
    steps = means.index.to_numpy(dtype=float)
    knots = np.log(steps)
    cubic = PchipInterpolator(knots, pooled)

    def above_target(x: float) -> float:
        return float(cubic(x)) - target

    root = brentq(above_target, knots[0], knots[-1])
    return math.exp(root)


def pooled_spread(groups: Any) -> tuple[float, int]:
    """The standard deviation within groups of losses, and its degrees of freedom."""
    own_degrees = groups.count() - 1
    degrees = int(own_degrees.sum())
    squares = own_degrees * groups.var()
    variance = float(squares.sum()) / degrees
    return math.sqrt(variance), degrees


def test_the_efficiencies_of_the_dictionary_follow_from_the_packs() -> None:
    losses = losses_in_packs("gap_text", "gap_text_longer", "gap_text_load")
    baseline = losses[losses["row"] == "adamw"]
    table = pd.read_csv(SHIPPED / "statistics" / "dictionary_efficiency.csv")
    widths = {9056: 16, 30400: 32, 109952: 64, 416512: 128}
    assert len(table) == 28
    for line in table.itertuples():
        width = widths[line.num_parameters]
        has_size = losses["width"] == width
        has_length = losses["steps"] == line.num_steps
        has_method = losses["row"] == line.method
        own = losses.loc[has_size & has_length & has_method, "loss"]
        assert len(own) == line.num_runs
        as_large = baseline[baseline["width"] == width]
        steps = steps_by_root(as_large, own.mean())
        share = steps / line.num_steps
        assert share == pytest.approx(line.efficiency, abs=2e-4)


def test_an_interval_follows_from_the_packs_by_draws_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CSER by blocks on the middle network, in the longest runs: the curve is steep there."""
    losses = losses_in_packs("gap_text_longer")
    losses = losses[losses["width"] == 32]
    is_baseline = losses["row"] == "adamw"
    is_longest = losses["steps"] == 3844
    baseline = losses[is_baseline]
    own = losses[is_longest & ~is_baseline]
    target = own.loc[own["row"] == "cser-8", "loss"]
    by_steps = baseline.groupby("steps")["loss"]
    counts = by_steps.count()
    pooled, degrees = pooled_spread(by_steps)
    own_pooled, own_degrees = pooled_spread(own.groupby("row")["loss"])

    generator = np.random.default_rng(11)
    drawn = []
    for _ in range(600):
        noise = generator.standard_t(degrees, len(by_steps)) * pooled
        means = by_steps.mean() + noise / np.sqrt(counts)
        redrawn = pd.DataFrame({"steps": means.index, "loss": means.to_numpy()})
        redrawn = redrawn.loc[redrawn.index.repeat(counts)]
        own_noise = generator.standard_t(own_degrees) * own_pooled
        error_of_mean = own_noise / math.sqrt(len(target))
        aim = target.mean() + error_of_mean
        try:
            drawn.append(steps_by_root(redrawn, aim))
        except ValueError:  # beyond the curve
            drawn.append(math.inf)
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")

    monkeypatch.setattr(efficiency, "LEAST_LENGTHS", 4)
    frames = read_frames(SHIPPED / "reference" / "gap_text_longer")
    row = "cser-8@w32-s3844"
    size = int(frames.row(row)["num_parameters"])
    curve = efficiency.curve_of(frames, None, size, "test_loss")
    assert curve is not None
    rows = efficiency.draws(frames, curve, size, "test_loss")
    ours = next(steps for reached, steps in rows if reached.row == row)
    our_draws = ours[1:]
    our_low, our_high = np.quantile(our_draws, [0.025, 0.975], method="nearest")
    off_low = math.log(our_low / low)
    off_high = math.log(our_high / high)
    assert off_low == pytest.approx(0, abs=0.05)
    assert off_high == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    ("experiment", "baseline", "fold", "network"),
    [
        ("curve_gpt_bf16", "adamw", 13, "text"),
        ("curve_resnet", "sgd", 19, "the residual network"),
        ("table_cnn", "sgd", 3, "the small CNN"),
    ],
)
def test_the_page_says_how_far_the_pooled_deviation_falls_with_length(
    experiment: str, baseline: str, fold: int, network: str
) -> None:
    frames = read_frames(SHIPPED / "reference" / experiment)
    runs = frames.runs.merge(frames.rows[["row", "num_steps"]], on="row")
    of_baseline = runs[runs["row"].str.startswith(baseline)]
    deviations = of_baseline.groupby("num_steps")["test_loss"].std()
    assert len(deviations) >= 5
    assert round(deviations.iloc[0] / deviations.iloc[-1]) == fold
    page = (ROOT / "docs" / "efficiency.md").read_text()
    assert f"{fold}-fold on {network}" in page
