"""The model's numbers of the shipped study, held to those that older code shipped, which fitted in its own way."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from report.speed.comparisons import RIVALS, spans_frame
from report.speed.workload_model import SpeedStudy, read_study

BEFORE = Path(__file__).parent / "speed_before"
UNSEEN = 1e-8
"""Seconds a hop: two sweeps say nothing of a latency that hides behind sending, so any that is so short is as good."""


@pytest.fixture(scope="module")
def study() -> SpeedStudy:
    return read_study(Path(__file__).parents[2] / "results/speedups")


def test_fitted_parameters_are_what_they_were(study: SpeedStudy) -> None:
    before = pd.read_csv(BEFORE / "fits.csv")
    assert len(before) == len(study.fits) == 30
    for fit, line in zip(study.fits, before.itertuples(), strict=True):
        assert fit.collective == line.collective
        assert fit.link.beta == pytest.approx(line.beta_seconds_per_byte, rel=1e-6)
        assert fit.worst == pytest.approx(line.worst_relative_error, rel=1e-6)
        assert max(fit.link.alpha, UNSEEN) == pytest.approx(max(line.alpha_seconds, UNSEEN), rel=1e-6)


def test_steps_by_the_clock_and_by_the_model_are_what_they_were(study: SpeedStudy) -> None:
    before = pd.read_csv(BEFORE / "step_times.csv")
    both = study.cells.merge(before, on=["workload", "machines", "dilation", "method"], suffixes=("", "_before"))
    both = both[(both["bits_per_second"] / both["bits_per_second_before"] - 1).abs() < 1e-9]
    assert len(both) == len(before) == len(study.cells)
    for name in ("seconds", "predicted_seconds", "communication_seconds"):
        assert both[name].to_numpy() == pytest.approx(both[f"{name}_before"].to_numpy(), rel=1e-6)


def test_modelled_steps_at_any_rate_are_what_they_were(study: SpeedStudy) -> None:
    for line in pd.read_csv(BEFORE / "modelled.csv").itertuples():
        model = study.models[line.workload]
        method = model.methods[line.method]
        # Between rates of which one's latency of an exchange is unseen, as in two sweeps of this workload's links.
        is_unsure = line.workload == "fashion_mnist" and any(m.collective == "exchange" for m in method.messages)
        seconds = model.seconds_at(method, line.bits_per_second)
        assert seconds == pytest.approx(line.seconds, rel=1e-3 if is_unsure else 1e-6), line


def test_rates_at_which_methods_pay_are_what_they_were(study: SpeedStudy) -> None:
    keys = ["workload", "method", "baseline"]
    before = pd.read_csv(BEFORE / "break_even.csv").sort_values([*keys, "from_bits_per_second"], ignore_index=True)
    now = pd.concat([spans_frame(model) for model in study.models.values()]).sort_values([*keys, "from"])
    assert set(before["baseline"]) == set(RIVALS) and now[keys].to_numpy().tolist() == before[keys].to_numpy().tolist()
    # The edges had been found by halving, to a millionth.
    assert now["from"].to_numpy() == pytest.approx(before["from_bits_per_second"].to_numpy(), rel=2e-6)
    assert now["to"].to_numpy() == pytest.approx(before["to_bits_per_second"].to_numpy(), rel=2e-6)
