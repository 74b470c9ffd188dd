"""The search for settings and learning rates, by its rules; and what plans predict of time, cost
and power."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from cser_bench.harness.places import EXPERIMENTS
from cser_bench.harness.plan import forecast, show
from cser_bench.harness.plan.forecast import MEASURED, StepTime, dry_steps, powers
from cser_bench.harness.plan.plan import make_plan
from cser_bench.harness.plan.search import (
    SearchState,
    Trial,
    TrialOutcome,
    neighbouring_rates,
    next_rate,
    search,
)
from cser_bench.harness.records.experiment import Contrast
from cser_bench.harness.spec.rows import RowSpec
from cser_bench.harness.spec.spec import Spec
from cser_bench.harness.spec.spec_file import load_spec
from cser_bench.harness.spec.tuning import TuningSpec
from tests.harness.support import (
    CSER,
    Table,
    changed,
    small_config,
    small_spec,
    write_spec,
)

Score = float | None
"""Accuracy, or None for a run that diverged."""
Scores = Callable[[int, float, int], Score]
"""By candidate, learning rate and seed."""

GRID = [0.003, 0.01, 0.03]
SEEDS = [101, 102, 103]


def tuning_of(**changes: Any) -> TuningSpec:
    table = {"grid": GRID, "seeds": SEEDS, "held_out": 400}
    return TuningSpec.model_validate(table | changes)


ONE = RowSpec(row="r", label="R", algorithm="sgd")
TWO_CANDIDATES = RowSpec(
    row="r", label="R", algorithm="sgd", candidates=[{"x": 0}, {"x": 1}]
)


def outcome_of(score: Score) -> TrialOutcome:
    if score is None:
        return TrialOutcome(None, None)
    return TrialOutcome(score, 1 - score)


def all_rounds(
    tuning: TuningSpec, row: RowSpec, scores: Scores
) -> tuple[list[set[tuple[Trial, int]]], SearchState]:
    """What each round runs, and where the search stands when nothing is missing."""
    done: dict[tuple[Trial, int], TrialOutcome] = {}
    rounds: list[set[tuple[Trial, int]]] = []

    def outcome(trial: Trial, seed: int) -> TrialOutcome | None:
        return done.get((trial, seed))

    while True:
        found = search(tuning, row, outcome)
        if not found.missing:
            return rounds, found
        assert found.by_accuracy is None
        assert found.by_training_loss is None
        missing = set(found.missing)
        assert not missing & set(done)
        rounds.append(missing)
        for trial, seed in missing:
            score = scores(trial.candidate, trial.learning_rate, seed)
            done[trial, seed] = outcome_of(score)


def at(rate: float, seed: int, candidate: int = 0) -> tuple[Trial, int]:
    return Trial(candidate, rate), seed


def test_without_finalists_all_trials_run_at_all_seeds_at_once() -> None:
    def scores(candidate: int, rate: float, seed: int) -> float:
        return 0.5 + rate + candidate

    rounds, found = all_rounds(tuning_of(), TWO_CANDIDATES, scores)
    of_each = itertools.product(GRID, SEEDS, (0, 1))
    expected = {at(*each) for each in of_each}
    assert rounds == [expected]
    assert found.by_accuracy == Trial(1, 0.03)
    assert found.at_end(Trial(1, 0.03))
    assert not found.at_end(Trial(1, 0.01))


SCREENED = {0.003: [0.50, 0.9, 0.9], 0.01: [0.70, 0.4, 0.4], 0.03: [0.60, 0.7, 0.7]}
AT_FIRST = {0.003: 0.1, 0.01: 0.6, 0.03: 0.5, 0.1: 0.55}


def screened(rate: float, seed: int) -> float:
    """The rate that would be best over all seeds is no finalist."""
    place = SEEDS.index(seed)
    return SCREENED[rate][place]


def best_at_0_3(rate: float, seed: int) -> float:
    return -abs(rate - 0.3)


def the_lower_the_better(rate: float, seed: int) -> float:
    return -rate


def best_at_the_end(rate: float, seed: int) -> float:
    """At the first seed the middle is best, over all seeds the end; what lies beyond then takes
    part as well."""
    first = AT_FIRST.get(rate, 0.0)
    if seed == SEEDS[0]:
        return first
    return first + 10 * rate


def diverges_at_the_last_seed(rate: float, seed: int) -> float | None:
    if rate >= 0.01 and seed == SEEDS[-1]:
        return None
    return rate


def diverges(rate: float, seed: int) -> None:
    return None


@dataclass(frozen=True)
class Search:
    """What a search does that is tuned so, on scores by rate and seed."""

    scores: Callable[[float, int], Score]
    rounds: list[list[float]]
    """The rates of each."""
    choice: float | None
    at_end: bool = False
    tuning: dict[str, Any] = field(default_factory=dict)


SEARCHES = {
    "the first seed screens": Search(
        tuning={"finalists": 2},
        scores=screened,
        rounds=[GRID, [0.01, 0.03]],
        choice=0.03,
        at_end=True,
    ),
    "goes on where the best is at its end": Search(
        tuning={"finalists": 1, "lowest": 1e-4, "highest": 1.0},
        scores=best_at_0_3,
        rounds=[GRID, [0.1], [0.3], [1.0], [0.3]],
        choice=0.3,
    ),
    "goes down to the bound": Search(
        tuning={"finalists": 1, "lowest": 3e-4},
        scores=the_lower_the_better,
        rounds=[GRID, [0.001], [0.0003], [0.0003]],
        choice=0.0003,
        at_end=True,
    ),
    "a choice at the end is followed": Search(
        tuning={"finalists": 2, "highest": 0.3},
        scores=best_at_the_end,
        rounds=[GRID, [0.01, 0.03], [0.1], [0.1], [0.3]],
        choice=0.1,
    ),
    "the next best follows one that diverges": Search(
        tuning={"finalists": 1},
        scores=diverges_at_the_last_seed,
        rounds=[GRID, [0.03], [0.01], [0.003]],
        choice=0.003,
        at_end=True,
    ),
    "all diverge": Search(
        tuning={"finalists": 2, "lowest": 0.001},
        scores=diverges,
        rounds=[GRID, [0.001]],
        choice=None,
    ),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_the_first_seed_screens_the_others_decide_and_the_grid_goes_on_at_its_ends(
    name: str,
) -> None:
    case = SEARCHES[name]

    def scores(candidate: int, rate: float, seed: int) -> Score:
        return case.scores(rate, seed)

    tuning = tuning_of(**case.tuning)
    rounds, found = all_rounds(tuning, ONE, scores)
    rates = []
    for each in rounds:
        tried = {trial.learning_rate for trial, _ in each}
        rates.append(sorted(tried))
    assert rates == case.rounds
    if case.choice is None:
        assert found.by_accuracy is None
        assert found.by_training_loss is None
        return
    assert found.by_accuracy == Trial(0, case.choice)
    assert found.at_end(found.by_accuracy) is case.at_end
    # Former finalists stay in the plan with all that was run of them.
    ran = set().union(*rounds)
    wanted = set()
    for trial, seeds in found.wanted.items():
        for seed in seeds:
            wanted.add((trial, seed))
    assert ran == wanted
    seeds_of_best = {seed for trial, seed in ran if trial == found.by_accuracy}
    assert seeds_of_best == set(SEEDS)


def test_each_table_of_settings_is_searched_by_itself() -> None:
    best = [0.01, 0.3]

    def scores(candidate: int, rate: float, seed: int) -> float:
        return candidate - abs(rate - best[candidate])

    tuning = tuning_of(finalists=1, highest=1.0)
    rounds, found = all_rounds(tuning, TWO_CANDIDATES, scores)
    of_both = itertools.product(GRID, [101], (0, 1))
    expected = {at(*each) for each in of_both}
    assert rounds[0] == expected
    assert rounds[1] == {at(0.1, 101, 1)}
    assert rounds[2] == {at(0.3, 101, 1)}
    assert rounds[3] == {at(1.0, 101, 1)}
    assert found.by_accuracy == Trial(1, 0.3)
    of_first = [trial for trial in found.wanted if trial.candidate == 0]
    assert len(of_first) == 3


def test_of_equals_the_smaller_rate_and_then_the_first_settings_win() -> None:
    tuning = tuning_of(grid=[1.0, 0.1, 0.01], seeds=[101, 102])
    by_rate = {0.01: [0.5, 0.25], 0.1: [0.75, 0.5], 1.0: [0.5, 0.75]}

    def scores(candidate: int, rate: float, seed: int) -> float:
        return by_rate[rate][seed - 101]

    _, found = all_rounds(tuning, TWO_CANDIDATES, scores)
    assert found.by_accuracy == Trial(0, 0.1)


def test_next_rates_repeat_the_steps_of_the_grid_and_neighbours_go_on_in_the_row_of_ones_and_threes() -> (
    None
):
    assert next_rate([0.003, 0.01, 0.03]) == 0.1
    assert next_rate([0.01, 0.03, 0.1]) == 0.3
    assert next_rate([0.03, 0.01, 0.003]) == 0.001
    assert next_rate([1.0, 2.0]) == 4.0
    assert next_rate([1, 2, 4]) == 8.0
    assert neighbouring_rates(0.003) == (0.001, 0.01)
    assert neighbouring_rates(0.1) == (0.03, 0.3)
    lower, higher = neighbouring_rates(0.2)
    assert lower == pytest.approx(0.2 / 3, rel=1e-5)
    assert higher == pytest.approx(0.6, rel=1e-5)


# Forecasts


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_dry_steps_need_no_data_and_leave_the_global_generator_alone(
    precision: str,
) -> None:
    before = torch.random.get_rng_state()
    config = small_config("cser", CSER, precision=precision)
    measured = dry_steps(config, torch.device("cpu"))
    assert 0 < measured.seconds < 10
    assert measured.activation_bytes is None  # counted on GPUs alone
    assert torch.equal(torch.random.get_rng_state(), before)


def test_with_a_gpu_time_and_activations_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes half a second and 3 MB."""
    step = StepTime(0.5, "NVIDIA X1", MEASURED, 3_000_000)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "NVIDIA X1")
    monkeypatch.setattr(forecast, "dry_steps", lambda config, device: step)
    monkeypatch.setattr(forecast, "_STEP_TIMES", {})
    file = write_spec(tmp_path, small_spec())
    spec = load_spec(file)
    plan = make_plan(spec, tmp_path)
    show.show_plan(plan)
    output = capsys.readouterr().out
    measured = "measured on dry steps on random images"
    assert f"activations add 3 MB ({measured}: 20 of them, fp32)" in output
    # 6 runs of 40 steps of half a second.
    hours = 40 * 0.5 / 3600
    whole = 6 * hours
    assert f"  {hours:.2g} and {whole:.2g} (NVIDIA X1; {measured})" in output
    assert "no price" in output
    assert "dollars" not in output


STEPS = 120 * (1_281_167 // 256)
NUM_RUNS = 80


def hours_of(images_per_second: float) -> float:
    """Hours of all runs, at this rate of eight GPUs together."""
    num_images = NUM_RUNS * STEPS * 256
    seconds = num_images / images_per_second
    return seconds / 3600


def number_in(words: str) -> float:
    return float(words.replace(",", ""))


def column_of(output: str, name: str) -> dict[str, str]:
    """The cells under this header, by the first of each line of a table."""
    table = []
    for line in output.splitlines():
        if "  " in line.strip():
            cells = re.split(r"\s{2,}", line)
            table.append(cells)
    header, *rows = table
    place = header.index(name)
    column = {}
    for cells in rows:
        if len(cells) > place:
            first = cells[0]
            column[first] = cells[place]
    return column


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_hours_and_dollars_are_ranges_with_a_source_for_each_end_and_the_links_hours_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network is not quite the ResNet-50 v1.5 of the published rates, and scaled by
    arithmetic."""
    spec = load_spec(EXPERIMENTS / "imagenet.toml")
    imagenet = make_plan(spec, tmp_path)
    show.show_plan(imagenet, 25e9)
    output = capsys.readouterr().out
    found = re.findall(r"^  [\d,.]+ and ([\d,.]+) \(V100-16GB; (.*)\)$", output, re.M)
    published = {
        5815.8: "before NHWC",
        4808.0: "GluonCV, training log",
    }  # and not 8322, of batches of 256
    ranges = zip(found, published.items(), strict=True)
    for (hours, source), (rate, words) in ranges:
        found_hours = number_in(hours)
        expected = hours_of(rate)
        assert found_hours == pytest.approx(expected, rel=0.05)
        assert words in source
        assert f"{rate:g} images/s" in source
    prices = r"about ([\d,]+) to ([\d,]+) dollars on \d x (p3\.\d+xlarge) \(AWS"
    dollars = {}
    for least, most, name in re.findall(prices, output):
        low = number_in(least)
        high = number_in(most)
        dollars[name] = (low, high)
    rows = imagenet.experiment.rows
    size = 32 * rows[0].num_parameters
    models_sent = 0.0
    for row in rows:
        link_models = row.link_models or 0
        models_sent += len(row.runs) * link_models
    bits_sent = models_sent * size
    added = bits_sent / 10e9 / 3600
    price = 24.48  # dollars an hour
    low = hours_of(5815.8) * price
    high = hours_of(4808) * price
    high_with_links = high + added * price
    of_one = dollars["p3.2xlarge"]
    of_eight = dollars["p3.16xlarge"]
    assert of_one == pytest.approx((low, high_with_links), rel=0.05)
    # Nothing leaves it
    assert of_eight == pytest.approx((low, high), rel=0.05)
    hours_on_links = column_of(output, "hours at 25 Gb/s")
    # fp16 messages: each worker's link carries 2 (n - 1) / n of the payload.
    per_ring = 2 * 7 / 8
    bits_a_step = per_ring * size / 2
    sgd = bits_a_step * STEPS / 25e9 / 3600
    of_sgd = float(hours_on_links["sgd"])
    of_ef_sgd = float(hours_on_links["ef_sgd-256"])
    assert of_sgd == pytest.approx(sgd, rel=0.01)
    assert of_ef_sgd == pytest.approx(sgd / 256, abs=0.01)


# What contrasts can show.

DEVIATION = 0.004
MARGIN = 0.006
DRAWS = 4000


def table_of(**changes: object) -> Table:
    table = small_spec()
    table = changed(table, "statistics.declared", "nothing")
    table = changed(table, "statistics.margin", MARGIN)
    for name, value in changes.items():
        path = name.replace("__", ".")
        table = changed(table, path, value)
    return table


def contrast(kind: str) -> Table:
    return {"row": "cser", "reference": "sgd", "kind": kind, "question": "?"}


def drawn(kind: str, apart: float) -> float:
    """The share of drawn experiments, 3 seeds against 6, that Welch's t decides for the claim: its
    tests share 5 %."""
    generator = np.random.default_rng(0)
    row = generator.normal(apart, DEVIATION, (DRAWS, 3))
    reference = generator.normal(0, DEVIATION, (DRAWS, 6))

    def p(bound: float, side: str) -> NDArray[np.float64]:
        test = stats.ttest_ind(
            row - bound, reference, axis=1, equal_var=False, alternative=side
        )
        return np.asarray(test.pvalue)

    above = p(-MARGIN, "greater")
    below = p(MARGIN, "less")
    match kind:
        case "superiority":
            better = p(0, "greater")
            worse = p(0, "less")
            p_either = np.minimum(better, worse)
            decided = p_either < 0.05 / 2
        case "non-inferiority":
            decided = above < 0.05 / 2
        case _:
            p_both = np.maximum(above, below)
            decided = p_both < 0.05 / 3
    return float(decided.mean())


@pytest.mark.parametrize(
    ("kind", "apart"),
    [("non-inferiority", 0.0), ("superiority", MARGIN), ("equivalence", 0.0)],
)
def test_the_power_of_a_plan_is_the_share_of_drawn_experiments_that_show_it(
    kind: str, apart: float, tmp_path: Path
) -> None:
    table = table_of(
        contrasts=[contrast(kind)],
        statistics__seeds=[1, 2, 3],
        statistics__baseline_seeds=[1, 2, 3, 4, 5, 6],
    )
    spec = Spec.model_validate(table)
    plan = make_plan(spec, tmp_path)
    num_runs = [len(row.runs) for row in plan.experiment.rows]
    assert num_runs == [6, 3, 3]
    (power,) = powers(plan.experiment, DEVIATION)
    found, alone, first = power
    declared = Contrast(**contrast(kind), margin=MARGIN)
    assert found == declared
    expected = drawn(kind, apart)
    assert alone == pytest.approx(expected, abs=0.03)
    assert first == alone, "one contrast has no other to be corrected for"
    two = [contrast("non-inferiority"), contrast("superiority")]
    table_of_two = table_of(contrasts=two)
    spec = Spec.model_validate(table_of_two)
    plan = make_plan(spec, tmp_path)
    for _, alone, first in powers(plan.experiment, DEVIATION):
        assert first < alone


def test_rates_beside_the_chosen_one_are_rows_of_their_own_at_the_seeds_asked_for(
    tmp_path: Path,
) -> None:
    table = table_of(sensitivity={"seeds": [2]})
    spec = Spec.model_validate(table)
    plan = make_plan(spec, tmp_path)
    rows = plan.experiment.rows
    beside = [row for row in rows if row.chosen_by == "sensitivity"]
    bases = {row.repeats for row in beside}
    assert "sgd" in bases
    rates = {row.row: row.learning_rate for row in rows}
    for row in beside:
        assert list(row.runs) == ["2"]
        assert row.repeats is not None
        chosen = rates[row.repeats]
        assert row.learning_rate in neighbouring_rates(chosen)
