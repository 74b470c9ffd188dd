"""The search for settings and learning rates, by its rules; and what plans predict of time, cost
and power."""

from __future__ import annotations

import re
from collections.abc import Callable
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

Score = float | tuple[float, float] | None
"""Accuracy, or accuracy and training loss; None for a run that diverged."""
Scores = Callable[[int, float, int], Score]
"""By candidate, learning rate and seed."""

GRID = [0.003, 0.01, 0.03]


def tuning_of(**changes: Any) -> TuningSpec:
    return TuningSpec.model_validate(
        {"grid": GRID, "seeds": [101, 102, 103], "held_out": 400} | changes
    )


def row_of(num_candidates: int = 1, **changes: Any) -> RowSpec:
    candidates = (
        [{"x": number} for number in range(num_candidates)]
        if num_candidates > 1
        else []
    )
    return RowSpec(
        row="r", label="R", algorithm="sgd", candidates=candidates, **changes
    )


def outcome_of(score: Score) -> TrialOutcome:
    accuracy, loss = (
        score
        if isinstance(score, tuple)
        else (score, None if score is None else 1 - score)
    )
    return TrialOutcome(accuracy, loss)


def all_rounds(
    tuning: TuningSpec, row: RowSpec, scores: Scores
) -> tuple[list[set[tuple[Trial, int]]], SearchState]:
    """What each round runs, and where the search stands when nothing is missing."""
    done: dict[tuple[Trial, int], TrialOutcome] = {}
    rounds: list[set[tuple[Trial, int]]] = []
    while True:
        found = search(tuning, row, lambda trial, seed: done.get((trial, seed)))
        if not found.missing:
            return rounds, found
        assert found.by_accuracy is None
        assert found.by_training_loss is None
        rounds.append(set(found.missing))
        assert not rounds[-1] & set(done)
        for trial, seed in found.missing:
            done[trial, seed] = outcome_of(
                scores(trial.candidate, trial.learning_rate, seed)
            )


def at(rate: float, seed: int, candidate: int = 0) -> tuple[Trial, int]:
    return Trial(candidate, rate), seed


def test_without_finalists_all_trials_run_at_all_seeds_at_once() -> None:
    rounds, found = all_rounds(
        tuning_of(), row_of(2), lambda candidate, rate, seed: 0.5 + rate + candidate
    )
    assert rounds == [
        {at(rate, seed, c) for rate in GRID for seed in (101, 102, 103) for c in (0, 1)}
    ]
    assert found.by_accuracy == Trial(1, 0.03)
    assert found.at_end(Trial(1, 0.03))
    assert not found.at_end(Trial(1, 0.01))


SCREENED = {0.003: [0.50, 0.9, 0.9], 0.01: [0.70, 0.4, 0.4], 0.03: [0.60, 0.7, 0.7]}
AT_FIRST = {0.003: 0.1, 0.01: 0.6, 0.03: 0.5, 0.1: 0.55}
SEARCHES: dict[str, tuple[dict[str, Any], Callable[[float, int], Score], list[list[float]], float | None, bool]] = {
    # name: (tuning, score by rate and number of the seed, rates of each round, choice, whether it
    # is at an end) The rate that would be best over all seeds is no finalist.
    "the first seed screens": ({"finalists": 2}, lambda r, s: SCREENED[r][s], [GRID, [0.01, 0.03]], 0.03, True),
    "goes on where the best is at its end": (
        {"finalists": 1, "lowest": 1e-4, "highest": 1.0}, lambda r, s: -abs(r - 0.3),
        [GRID, [0.1], [0.3], [1.0], [0.3]], 0.3, False,
    ),
    "goes down to the bound": (
        {"finalists": 1, "lowest": 3e-4}, lambda r, s: -r, [GRID, [0.001], [0.0003], [0.0003]], 0.0003, True
    ),
    # At the first seed the middle is best, over all seeds the end; what lies beyond then takes part
    # as well.
    "a choice at the end is followed": (
        {"finalists": 2, "highest": 0.3}, lambda r, s: AT_FIRST.get(r, 0.0) + 10 * r * (s > 0),
        [GRID, [0.01, 0.03], [0.1], [0.1], [0.3]], 0.1, False,
    ),
    "the next best follows one that diverges": (
        {"finalists": 1}, lambda r, s: None if r >= 0.01 and s == 2 else r, [GRID, [0.03], [0.01], [0.003]], 0.003, True
    ),
    "all diverge": ({"finalists": 2, "lowest": 0.001}, lambda r, s: None, [GRID, [0.001]], None, False),
}  # fmt: skip


@pytest.mark.parametrize("name", SEARCHES)
def test_the_first_seed_screens_the_others_decide_and_the_grid_goes_on_at_its_ends(
    name: str,
) -> None:
    changes, scores, expected, choice, at_end = SEARCHES[name]
    rounds, found = all_rounds(
        tuning_of(**changes), row_of(), lambda _, rate, seed: scores(rate, seed - 101)
    )
    assert [
        sorted({trial.learning_rate for trial, _ in each}) for each in rounds
    ] == expected
    if choice is None:
        assert found.by_accuracy is None
        assert found.by_training_loss is None
        return
    assert found.by_accuracy == Trial(0, choice)
    assert found.at_end(found.by_accuracy) is at_end
    # Former finalists stay in the plan with all that was run of them.
    ran = {(trial, seed) for each in rounds for trial, seed in each}
    assert ran == {
        (trial, seed) for trial, seeds in found.wanted.items() for seed in seeds
    }
    assert {seed for trial, seed in ran if trial == found.by_accuracy} == {
        101,
        102,
        103,
    }


def test_each_table_of_settings_is_searched_by_itself() -> None:
    best = {0: 0.01, 1: 0.3}
    rounds, found = all_rounds(
        tuning_of(finalists=1, highest=1.0),
        row_of(2),
        lambda c, r, _: c - abs(r - best[c]),
    )
    assert rounds[0] == {at(rate, 101, c) for rate in GRID for c in (0, 1)}
    assert rounds[1:4] == [{at(0.1, 101, 1)}, {at(0.3, 101, 1)}, {at(1.0, 101, 1)}]
    assert found.by_accuracy == Trial(1, 0.3)
    assert sum(trial.candidate == 0 for trial in found.wanted) == 3


def test_of_equals_the_smaller_rate_and_then_the_first_settings_win() -> None:
    tuning = tuning_of(grid=[1.0, 0.1, 0.01], seeds=[101, 102])
    scores = {0.01: [0.5, 0.25], 0.1: [0.75, 0.5], 1.0: [0.5, 0.75]}
    _, found = all_rounds(
        tuning, row_of(2), lambda _, rate, seed: scores[rate][seed - 101]
    )
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
    assert neighbouring_rates(0.2) == pytest.approx((0.2 / 3, 0.6), rel=1e-5)


# Forecasts


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_dry_steps_need_no_data_and_leave_the_global_generator_alone(
    precision: str,
) -> None:
    before = torch.random.get_rng_state()
    measured = dry_steps(
        small_config("cser", CSER, precision=precision), torch.device("cpu")
    )
    assert 0 < measured.seconds < 10
    assert measured.activation_bytes is None  # counted on GPUs alone
    assert torch.equal(torch.random.get_rng_state(), before)


def test_with_a_gpu_time_and_activations_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes half a second and 3 MB."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "NVIDIA X1")
    monkeypatch.setattr(
        forecast,
        "dry_steps",
        lambda config, device: StepTime(0.5, "NVIDIA X1", MEASURED, 3_000_000),
    )
    monkeypatch.setattr(forecast, "_STEP_TIMES", {})
    show.show_plan(make_plan(load_spec(write_spec(tmp_path, small_spec())), tmp_path))
    output = capsys.readouterr().out
    assert (
        "activations add 3 MB (measured on dry steps on random images: 20 of them, fp32)"
        in output
    )
    # 6 runs of 40 steps of half a second.
    each = 40 * 0.5 / 3600
    whole = 6 * 40 * 0.5 / 3600
    assert (
        f"  {each:.2g} and {whole:.2g} (NVIDIA X1; measured on dry steps on random images)"
        in output
    )
    assert "no price" in output
    assert "dollars" not in output


STEPS = 120 * (1_281_167 // 256)
NUM_RUNS = 80


def hours_of(images_per_second: float) -> float:
    """Hours of all runs, at this rate of eight GPUs together."""
    return NUM_RUNS * STEPS * 256 / images_per_second / 3600


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_hours_and_dollars_are_ranges_with_a_source_for_each_end_and_the_links_hours_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network is not quite the ResNet-50 v1.5 of the published rates, and scaled by
    arithmetic."""
    imagenet = make_plan(load_spec(EXPERIMENTS / "imagenet.toml"), tmp_path)
    show.show_plan(imagenet, 25e9)
    output = capsys.readouterr().out
    found = re.findall(r"^  [\d,.]+ and ([\d,.]+) \(V100-16GB; (.*)\)$", output, re.M)
    published = {
        5815.8: "before NHWC",
        4808.0: "GluonCV, training log",
    }  # and not 8322, of batches of 256
    for (hours, source), (rate, words) in zip(found, published.items(), strict=True):
        assert float(hours.replace(",", "")) == pytest.approx(hours_of(rate), rel=0.05)
        assert words in source
        assert f"{rate:g} images/s" in source
    dollars = {
        name: (float(low.replace(",", "")), float(high.replace(",", "")))
        for low, high, name in re.findall(
            r"about ([\d,]+) to ([\d,]+) dollars on \d x (p3\.\d+xlarge) \(AWS", output
        )
    }
    rows = imagenet.experiment.rows
    size = 32 * imagenet.experiment.rows[0].num_parameters
    added = (
        sum(len(row.runs) * (row.link_models or 0) for row in rows) * size / 10e9 / 3600
    )
    low = hours_of(5815.8) * 24.48
    high = hours_of(4808) * 24.48
    assert dollars["p3.2xlarge"] == pytest.approx((low, high + added * 24.48), rel=0.05)
    # Nothing leaves it
    assert dollars["p3.16xlarge"] == pytest.approx((low, high), rel=0.05)
    # fp16 messages: each worker's link carries 2 (n - 1) / n of the payload.
    header, *lines = (
        re.split(r"\s{2,}", line)
        for line in output.splitlines()
        if "  " in line.strip()
    )
    shown = {
        cells[0]: cells[header.index("hours at 25 Gb/s")]
        for cells in lines
        if cells[0] in ("sgd", "ef_sgd-256")
    }
    sgd = 2 * 7 / 8 * size / 2 * STEPS / 25e9 / 3600
    assert float(shown["sgd"]) == pytest.approx(sgd, rel=0.01)
    assert float(shown["ef_sgd-256"]) == pytest.approx(sgd / 256, abs=0.01)


# What contrasts can show.

DEVIATION = 0.004
MARGIN = 0.006
DRAWS = 4000


def table_of(**changes: object) -> Table:
    table = small_spec()
    for path, value in {
        "statistics.declared": "nothing",
        "statistics.margin": MARGIN,
        **changes,
    }.items():
        table = changed(table, path.replace("__", "."), value)
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
        return np.asarray(
            stats.ttest_ind(
                row - bound, reference, axis=1, equal_var=False, alternative=side
            ).pvalue
        )

    if kind == "superiority":
        return float((np.minimum(p(0, "greater"), p(0, "less")) < 0.05 / 2).mean())
    above = p(-MARGIN, "greater")
    if kind == "non-inferiority":
        return float((above < 0.05 / 2).mean())
    return float((np.maximum(above, p(MARGIN, "less")) < 0.05 / 3).mean())


@pytest.mark.parametrize(
    ("kind", "apart"),
    [("non-inferiority", 0.0), ("superiority", MARGIN), ("equivalence", 0.0)],
)
def test_the_power_of_a_plan_is_the_share_of_drawn_experiments_that_show_it(
    kind: str, apart: float, tmp_path: Path
) -> None:
    spec = Spec.model_validate(
        table_of(
            contrasts=[contrast(kind)],
            statistics__seeds=[1, 2, 3],
            statistics__baseline_seeds=[1, 2, 3, 4, 5, 6],
        )
    )
    plan = make_plan(spec, tmp_path)
    assert [len(row.runs) for row in plan.experiment.rows] == [6, 3, 3]
    ((found, alone, first),) = powers(plan.experiment, DEVIATION)
    assert found == Contrast(**contrast(kind), margin=MARGIN)
    assert alone == pytest.approx(drawn(kind, apart), abs=0.03)
    assert first == alone, "one contrast has no other to be corrected for"
    two = Spec.model_validate(
        table_of(contrasts=[contrast("non-inferiority"), contrast("superiority")])
    )
    assert all(
        first < alone
        for _, alone, first in powers(make_plan(two, tmp_path).experiment, DEVIATION)
    )


def test_rates_beside_the_chosen_one_are_rows_of_their_own_at_the_seeds_asked_for(
    tmp_path: Path,
) -> None:
    plan = make_plan(
        Spec.model_validate(table_of(sensitivity={"seeds": [2]})), tmp_path
    )
    beside = [row for row in plan.experiment.rows if row.chosen_by == "sensitivity"]
    assert {row.repeats for row in beside} >= {"sgd"}
    assert all(list(row.runs) == ["2"] for row in beside)
    rates = {row.row: row.learning_rate for row in plan.experiment.rows}
    assert all(
        row.learning_rate in neighbouring_rates(rates[row.repeats or ""])
        for row in beside
    )
