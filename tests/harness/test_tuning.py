"""The search for settings and learning rates, by its rules, on made-up outcomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.plan.tuning import SearchState, Trial, TrialOutcome, next_rate, search
from harness.rows import RowSpec
from harness.spec import TuningSpec

Score = float | tuple[float, float] | None
"""Accuracy, or accuracy and training loss; None for a run that diverged."""
Scores = Callable[[int, float, int], Score]
"""By candidate, learning rate and seed."""

GRID = [0.003, 0.01, 0.03]


def tuning_of(**changes: Any) -> TuningSpec:
    return TuningSpec.model_validate({"grid": GRID, "seeds": [101, 102, 103], "held_out": 400} | changes)


def row_of(num_candidates: int = 1, **changes: Any) -> RowSpec:
    candidates = [{"x": number} for number in range(num_candidates)] if num_candidates > 1 else []
    return RowSpec(row="r", label="R", algorithm="sgd", candidates=candidates, **changes)


def outcome_of(score: Score) -> TrialOutcome:
    accuracy, loss = score if isinstance(score, tuple) else (score, None if score is None else 1 - score)
    return TrialOutcome(accuracy, loss)


def all_rounds(tuning: TuningSpec, row: RowSpec, scores: Scores) -> tuple[list[set[tuple[Trial, int]]], SearchState]:
    """What each round runs, and where the search stands when nothing is missing."""
    done: dict[tuple[Trial, int], TrialOutcome] = {}
    rounds: list[set[tuple[Trial, int]]] = []
    while True:
        found = search(tuning, row, lambda trial, seed: done.get((trial, seed)))
        if not found.missing:
            return rounds, found
        assert found.by_accuracy is None and found.by_training_loss is None
        rounds.append(set(found.missing))
        assert not rounds[-1] & set(done)
        for trial, seed in found.missing:
            done[trial, seed] = outcome_of(scores(trial.candidate, trial.learning_rate, seed))


def at(rate: float, seed: int, candidate: int = 0) -> tuple[Trial, int]:
    return Trial(candidate, rate), seed


def test_without_finalists_all_trials_run_at_all_seeds_at_once() -> None:
    rounds, found = all_rounds(tuning_of(), row_of(2), lambda candidate, rate, seed: 0.5 + rate + candidate)
    assert rounds == [{at(rate, seed, c) for rate in GRID for seed in (101, 102, 103) for c in (0, 1)}]
    assert found.by_accuracy == Trial(1, 0.03)
    assert found.at_end(Trial(1, 0.03)) and not found.at_end(Trial(1, 0.01))


def test_the_first_seed_screens_and_the_others_decide_among_the_finalists() -> None:
    scores = {0.003: [0.50, 0.9, 0.9], 0.01: [0.70, 0.4, 0.4], 0.03: [0.60, 0.7, 0.7]}
    rounds, found = all_rounds(tuning_of(finalists=2), row_of(), lambda _, rate, seed: scores[rate][seed - 101])
    assert rounds == [
        {at(rate, 101) for rate in GRID},
        {at(rate, seed) for rate in (0.01, 0.03) for seed in (102, 103)},
    ]
    # The rate that would have been best over all seeds was no finalist.
    assert found.by_accuracy == Trial(0, 0.03)
    assert found.wanted == {Trial(0, 0.003): [101], Trial(0, 0.01): [101, 102, 103], Trial(0, 0.03): [101, 102, 103]}


def test_the_grid_goes_on_where_the_best_is_at_its_end() -> None:
    best = {0: 0.01, 1: 0.3}
    tuning = tuning_of(finalists=1, lowest=0.0001, highest=1.0)
    rounds, found = all_rounds(tuning, row_of(2), lambda c, rate, seed: c - abs(rate - best[c]))
    extended = [{at(0.1, 101, 1)}, {at(0.3, 101, 1)}, {at(1.0, 101, 1)}]
    assert rounds == [
        {at(rate, 101, c) for rate in GRID for c in (0, 1)},
        *extended,
        {at(0.3, s, 1) for s in (102, 103)},
    ]
    assert found.by_accuracy == Trial(1, 0.3) and not found.at_end(found.by_accuracy)
    assert sum(trial.candidate == 0 for trial in found.wanted) == 3


def test_it_goes_down_as_well_and_stops_at_the_bound() -> None:
    tuning = tuning_of(finalists=1, lowest=0.0003)
    rounds, found = all_rounds(tuning, row_of(), lambda _, rate, seed: -rate)
    assert rounds[1:3] == [{at(0.001, 101)}, {at(0.0003, 101)}]
    assert found.by_accuracy == Trial(0, 0.0003) and found.at_end(found.by_accuracy)


def test_without_bounds_it_stays_on_the_grid() -> None:
    _, found = all_rounds(tuning_of(finalists=1), row_of(), lambda _, rate, seed: rate)
    assert {trial.learning_rate for trial in found.wanted} == set(GRID)
    assert found.by_accuracy == Trial(0, 0.03) and found.at_end(found.by_accuracy)


def test_a_choice_at_the_end_is_followed_too() -> None:
    """At the first seed the middle is best, over all seeds the end; what lies beyond then takes part as well."""

    def scores(_: int, rate: float, seed: int) -> float:
        return {0.003: 0.1, 0.01: 0.6, 0.03: 0.5, 0.1: 0.55}.get(rate, 0.0) + (rate if seed > 101 else 0) * 10

    rounds, found = all_rounds(tuning_of(finalists=2, highest=0.3), row_of(), scores)
    assert [sorted({trial.learning_rate for trial, _ in each}) for each in rounds] == [
        GRID,
        [0.01, 0.03],
        [0.1],
        [0.1],
        [0.3],
    ]
    assert found.by_accuracy == Trial(0, 0.1) and not found.at_end(found.by_accuracy)
    # Former finalists stay in the plan with all that was run of them.
    assert found.wanted[Trial(0, 0.03)] == [101, 102, 103]


def test_a_finalist_that_diverges_gives_its_place_to_the_next_best() -> None:
    def scores(_: int, rate: float, seed: int) -> Score:
        return None if rate >= 0.01 and seed == 103 else rate

    rounds, found = all_rounds(tuning_of(finalists=1), row_of(), scores)
    assert [sorted({trial.learning_rate for trial, _ in each}) for each in rounds] == [GRID, [0.03], [0.01], [0.003]]
    assert found.by_accuracy == found.by_training_loss == Trial(0, 0.003)


def test_where_all_diverge_smaller_rates_are_tried_and_then_there_is_no_choice() -> None:
    rounds, found = all_rounds(tuning_of(finalists=2, lowest=0.001), row_of(), lambda *_: None)
    assert rounds[1:] == [{at(0.001, 101)}]
    assert found.by_accuracy is None and found.by_training_loss is None


def test_least_training_loss_is_a_rule_of_its_own_over_all_trials_at_the_first_seed() -> None:
    table = {0.003: (0.9, 0.3), 0.01: (0.8, 0.2), 0.03: (0.7, 0.1)}
    _, found = all_rounds(tuning_of(finalists=1), row_of(), lambda _, rate, seed: table[rate])
    assert found.by_accuracy == Trial(0, 0.003) and found.by_training_loss == Trial(0, 0.03)


@pytest.mark.parametrize("grid", [[0.01, 0.1, 1.0], [1.0, 0.1, 0.01], [0.1, 1.0, 0.01]])
def test_of_equals_the_smaller_rate_and_then_the_first_settings_win(grid: list[float]) -> None:
    tuning = tuning_of(grid=grid, seeds=[101, 102])
    scores = {0.01: [0.5, 0.25], 0.1: [0.75, 0.5], 1.0: [0.5, 0.75]}
    _, found = all_rounds(tuning, row_of(2), lambda _, rate, seed: scores[rate][seed - 101])
    assert found.by_accuracy == Trial(0, 0.1)


def test_next_rates_repeat_the_steps_of_the_grid() -> None:
    assert next_rate([0.003, 0.01, 0.03]) == 0.1 and next_rate([0.01, 0.03, 0.1]) == 0.3
    assert next_rate([0.03, 0.01, 0.003]) == 0.001 and next_rate([1.0, 2.0]) == 4.0 and next_rate([1, 2, 4]) == 8.0
