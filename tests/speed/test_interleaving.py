"""Tests of the order in which methods take turns, and of the steps of a turn."""

from __future__ import annotations

from harness.speed.methods import METHODS
from harness.speed.session import kinds_of_steps
from harness.train.stopwatch import there_and_back


def test_methods_go_there_and_back_again() -> None:
    order = list(there_and_back(["A", "B", "C"], 3))
    assert "".join(name for _, name in order) == "ABC" + "CBA" + "ABC"
    assert [number for number, _ in order] == [0] * 3 + [1] * 3 + [2] * 3


def test_a_method_with_a_period_takes_steps_of_both_kinds_on_every_visit() -> None:
    assert kinds_of_steps(period=1, steps_per_visit=2) == [True, True]
    for steps_per_visit in (1, 3):
        kinds = kinds_of_steps(period=32, steps_per_visit=steps_per_visit)
        assert kinds.count(True) == kinds.count(False) == steps_per_visit


def test_periods_are_those_of_the_settings() -> None:
    periods = {name: timed.period for name, timed in METHODS.items() if timed.period > 1}
    assert periods == {
        "qsparse_local_sgd": 8,
        "local_sgd": 256,
        "diloco": 256,
        "cser_pl": 16,
        "mcser": 32,
        "mcser_32": 16,
        "mcser_1024": 256,
        "mcser_overlap": 32,
    }
