"""Declared contrasts in a plan: which runs they ask for, and a power that agrees with drawn scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from harness.plan.forecast import powers
from harness.plan.plan import make_plan
from harness.plan.search import neighbouring_rates
from harness.records.experiment import Contrast
from harness.spec import Spec
from tests.harness.support import Table, changed, small_spec

DEVIATION, MARGIN, DRAWS = 0.004, 0.006, 4000


def table_of(**changes: object) -> Table:
    table = small_spec()
    for path, value in {"statistics.declared": "nothing", "statistics.margin": MARGIN, **changes}.items():
        table = changed(table, path.replace("__", "."), value)
    return table


def contrast(kind: str) -> Table:
    return {"row": "cser", "reference": "sgd", "kind": kind, "question": "?"}


def drawn(kind: str, apart: float) -> float:
    """The share of drawn experiments, 3 seeds against 6, that a pooled t test decides for the contrast's claim."""
    generator = np.random.default_rng(0)
    row = generator.normal(apart, DEVIATION, (DRAWS, 3))
    reference = generator.normal(0, DEVIATION, (DRAWS, 6))
    if kind == "superiority":
        return float((stats.ttest_ind(row, reference, axis=1).pvalue < 0.05).mean())
    above = stats.ttest_ind(row + MARGIN, reference, axis=1, alternative="greater").pvalue < 0.05
    if kind == "non-inferiority":
        return float(above.mean())
    below = stats.ttest_ind(row - MARGIN, reference, axis=1, alternative="less").pvalue < 0.05
    return float((above & below).mean())


@pytest.mark.parametrize(("kind", "apart"), [("non-inferiority", 0.0), ("superiority", MARGIN), ("equivalence", 0.0)])
def test_the_power_of_a_plan_is_the_share_of_drawn_experiments_that_show_it(
    kind: str, apart: float, tmp_path: Path
) -> None:
    spec = Spec.model_validate(
        table_of(contrasts=[contrast(kind)], statistics__seeds=[1, 2, 3], statistics__baseline_seeds=[1, 2, 3, 4, 5, 6])
    )
    plan = make_plan(spec, tmp_path)
    assert [len(row.runs) for row in plan.experiment.rows] == [6, 3, 3]
    (found,) = powers(plan.experiment, DEVIATION)
    assert found.contrast == Contrast(**contrast(kind), margin=MARGIN)
    assert found.alone == pytest.approx(drawn(kind, apart), abs=0.03)
    assert found.first == found.alone, "one contrast has no other to be corrected for"


def test_more_contrasts_leave_each_less_power_at_holms_first_step(tmp_path: Path) -> None:
    kinds = ["non-inferiority", "superiority"]
    plan = make_plan(Spec.model_validate(table_of(contrasts=[contrast(kind) for kind in kinds])), tmp_path)
    assert all(each.first < each.alone for each in powers(plan.experiment, DEVIATION))


def test_rates_beside_the_chosen_one_are_rows_of_their_own_at_the_seeds_asked_for(tmp_path: Path) -> None:
    plan = make_plan(Spec.model_validate(table_of(sensitivity={"seeds": [2]})), tmp_path)
    beside = [row for row in plan.experiment.rows if row.rule == "sensitivity"]
    assert {row.base for row in beside} >= {"sgd"} and all(list(row.runs) == ["2"] for row in beside)
    rates = {row.row: row.learning_rate for row in plan.experiment.rows}
    assert all(row.learning_rate in neighbouring_rates(rates[row.base or ""]) for row in beside)


def test_neighbours_go_on_in_the_row_of_ones_and_threes() -> None:
    assert neighbouring_rates(0.003) == (0.001, 0.01)
    assert neighbouring_rates(0.1) == (0.03, 0.3)
    assert neighbouring_rates(0.2) == pytest.approx((0.2 / 3, 0.6), rel=1e-5)
