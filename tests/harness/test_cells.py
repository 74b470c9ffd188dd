"""Rows at other sizes and lengths, and the learning rates that they have from the corners of the
tuning."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from cser_bench.harness.plan import tuning
from cser_bench.harness.plan.plan import Plan, make_plan
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import RunConfig
from cser_bench.harness.spec.spec import Spec
from tests.harness.support import TUNING, Table, changed, small_spec

NARROW = {"widths": [4, 8]}
WIDE = {"widths": [8, 16]}
CELLS = [
    {"cell": "narrow-10", "num_steps": 10},
    {"cell": "narrow-20", "num_steps": 20},
    {
        "cell": "wide-10",
        "model_options": WIDE,
        "num_steps": 10,
        "learning_rates": [0.02, 0.2],
    },
    {"cell": "wide-40", "model_options": WIDE, "num_steps": 40, "seeds": [1]},
    {"cell": "narrow-40", "num_steps": 40},
]
CORNERS = ["narrow-10", "narrow-40", "wide-10", "wide-40"]
Best = Callable[[str, RunConfig], float]


def gridded(**more: object) -> Table:
    """Three rows of 30 steps, of which two leave their rate to four corners and the third is in one
    cell alone."""
    spec = small_spec()
    spec["cells"] = CELLS
    spec["training"]["num_epochs"] = 2
    spec["training"]["num_steps"] = 30
    sgd, cser, ef_sgd = spec["rows"]
    del sgd["learning_rate"]
    del cser["learning_rate"]
    ef_sgd["cells"] = ["wide-10"]
    spec["schedule"] = {"kind": "cosine", "warmup_share": 0.1}
    spec["tuning"] = TUNING | {
        "corners": CORNERS,
        "num_trials": 2,
        "lowest": 0.0001,
        "highest": 10.0,
    }
    return spec | more


def plan_after(
    table: Table,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    best: Best,
    untuned: tuple[str, ...] = (),
) -> tuple[Plan, Plan]:
    """The plan of the tuning and that of the experiment, when trials are the worse the further from
    the best rate."""
    spec = Spec.model_validate(table)
    scores = dict[str, float]()

    def result(place: Path) -> SimpleNamespace | None:
        if place.name not in scores:
            return None
        return SimpleNamespace(
            test_accuracy=scores[place.name],
            test_loss=None,
            metrics=None,
            train_loss=0.0,
        )

    monkeypatch.setattr(tuning, "read_result", result)
    while True:
        trials = make_plan(spec, folder, tuning=True)
        asked = [run for run in trials.runs if not run.row.startswith(untuned)]
        left = [run for run in asked if run.run_id not in scores]
        if not left:
            return trials, make_plan(spec, folder)
        for run in left:
            row, _, _ = run.row.partition("@")
            best_rate = best(row, run.config)
            ratio = run.config.learning_rate / best_rate
            apart = math.log(ratio)
            scores[run.run_id] = 1 - abs(apart) / 100


def rates_of(plan: Plan) -> dict[str, float | None]:
    """Learning rates by row."""
    return {row.row: row.learning_rate for row in plan.experiment.rows}


def by_law(row: str, config: RunConfig) -> float:
    """A best rate that is a power of the length on each network, and not the same one."""
    assert config.num_steps is not None
    steps = config.num_steps / 10
    rate = 0.2
    if row == "sgd":
        rate = 0.1
    if config.model.options == WIDE:
        return rate * 0.2 * steps**-0.5
    return rate / steps


def test_a_cell_has_the_experiments_rows_with_its_own_model_length_and_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = gridded()
    _, plan = plan_after(table, tmp_path, monkeypatch, by_law)
    rows = {row.row: row for row in plan.experiment.rows}
    in_cells = set()
    for cell in CELLS:
        name = cell["cell"]
        in_cells.add(f"sgd@{name}")
        in_cells.add(f"cser@{name}")
    others = {"sgd", "cser", "ef_sgd", "ef_sgd@wide-10"}
    assert rows.keys() == in_cells | others
    assert rows["sgd"].repeats is None
    assert rows["sgd@wide-40"].repeats == "sgd"
    assert rows["ef_sgd@wide-10"].repeats == "ef_sgd"
    sizes = {name: row.num_parameters for name, row in rows.items()}
    lengths = {name: row.num_steps for name, row in rows.items()}
    assert sizes["sgd"] == 742
    assert lengths["sgd"] == 30
    assert sizes["sgd@narrow-20"] == 742
    assert lengths["sgd@narrow-20"] == 20
    assert sizes["cser@wide-40"] == sizes["sgd@wide-10"]
    assert sizes["sgd@wide-40"] == sizes["sgd@wide-10"]
    assert lengths["cser@wide-40"] == 40
    assert lengths["sgd@wide-40"] == 40
    assert lengths["sgd@wide-10"] == 10
    configs = {run.row: run.config for run in plan.runs}
    assert configs["sgd@wide-10"].model.options == WIDE
    assert configs["sgd"].model.options == NARROW
    assert list(rows["sgd@wide-40"].runs) == ["1"]
    assert list(rows["sgd@wide-10"].runs) == ["1", "2"]
    assert plan.experiment.config["model"]["options"] == NARROW


def between(low: float, high: float, share: float) -> float:
    """The number that lies at this share of the way on a logarithmic scale."""
    factor = high / low
    return low * factor**share


def test_rates_lie_between_those_of_the_corners_on_logarithmic_scales(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grid of trials goes on until the best is no end; what is between follows from what was
    chosen."""
    middle = {
        "cell": "middle-20",
        "model_options": {"widths": [6, 12]},
        "num_steps": 20,
    }
    table = gridded(cells=[*CELLS, middle])
    trials, plan = plan_after(table, tmp_path, monkeypatch, by_law)
    sizes = {row.row: row.num_parameters for row in plan.experiment.rows}
    narrow = sizes["sgd@narrow-10"]
    inside = sizes["sgd@middle-20"]
    wide = sizes["sgd@wide-10"]
    log_inside = math.log(inside / narrow)
    log_wide = math.log(wide / narrow)
    share = log_inside / log_wide
    assert 0.2 < share < 0.8
    share_of_30_steps = math.log(30 / 10) / math.log(40 / 10)
    rates = rates_of(plan)
    rows = trials.experiment.rows
    tried = set()
    for row in rows:
        tuned, _, _ = row.row.partition("_lr")
        tried.add(tuned)
    of_sgd = {f"sgd@{corner}" for corner in CORNERS}
    of_cser = {f"cser@{corner}" for corner in CORNERS}
    assert tried == of_sgd | of_cser
    of_wide_10 = [row.learning_rate for row in rows if row.tunes == "sgd@wide-10"]
    assert of_wide_10[:2] == [0.02, 0.2], "a cell's own rates to begin with"
    for name in ("sgd", "cser"):
        narrow_10 = rates[f"{name}@narrow-10"]
        narrow_40 = rates[f"{name}@narrow-40"]
        wide_10 = rates[f"{name}@wide-10"]
        wide_40 = rates[f"{name}@wide-40"]
        narrow_20 = math.sqrt(narrow_10 * narrow_40)
        wide_20 = math.sqrt(wide_10 * wide_40)
        middle_20 = between(narrow_20, wide_20, share)
        narrow_30 = between(narrow_10, narrow_40, share_of_30_steps)
        assert rates[f"{name}@narrow-20"] == pytest.approx(narrow_20, rel=0.01)
        assert rates[f"{name}@middle-20"] == pytest.approx(middle_20, rel=0.01)
        assert rates[name] == pytest.approx(narrow_30, rel=0.01)
    assert rates["ef_sgd@wide-10"] == 0.05, "a rate that is given holds everywhere"
    searched = plan.experiment.tuning
    assert searched is not None
    assert searched.choices.keys() == tried
    for name, choice in searched.choices.items():
        assert not choice.at_end, name


@pytest.mark.parametrize("steps", [5, 25, 80])
def test_rates_go_on_beyond_the_corners_as_between_them(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two corners that differ in length alone, 10 and 40 steps, whose best rates are 0.1 and
    0.01."""
    table = sgd_alone(steps, corners=["narrow-10", "narrow-40"])

    def best(row: str, config: RunConfig) -> float:
        if config.num_steps == 10:
            return 0.1
        return 0.01

    _, plan = plan_after(table, tmp_path, monkeypatch, best)
    log_length = math.log(steps / 10)
    power = log_length / math.log(40 / 10)
    expected = 0.1 * 10**-power
    found = rates_of(plan)["sgd@other"]
    assert found == pytest.approx(expected, rel=0.01)


def sgd_alone(steps: int, **row: object) -> Table:
    """One row with these fields, tuned in corners, and a cell of so many steps."""
    other = {"cell": "other", "num_steps": steps}
    sgd = small_spec()["rows"][0] | row
    del sgd["learning_rate"]
    return gridded(cells=[*CELLS, other], rows=[sgd])


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(14, 0.04), (28, 0.02 * 2**0.5), (80, 0.08)],
    ids=["between the first two", "between the last two", "beyond"],
)
def test_between_three_lengths_the_two_nearest_give_the_rate(
    steps: int, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best rates are 0.08, 0.02 and 0.04 at 10, 20 and 40 steps: they fall, and then rise.

    14 lies half-way from 10 to 20 on a logarithmic scale, 28 half-way from 20 to 40, and 80 as far
    beyond 40.
    """
    corners = ["narrow-10", "narrow-20", "narrow-40"]
    table = sgd_alone(steps, corners=corners, learning_rates=[0.02, 0.04])
    by_length = {10: 0.08, 20: 0.02, 40: 0.04}

    def best(row: str, config: RunConfig) -> float:
        assert config.num_steps is not None
        return by_length[config.num_steps]

    _, plan = plan_after(table, tmp_path, monkeypatch, best)
    found = rates_of(plan)["sgd@other"]
    assert found == pytest.approx(expected, rel=0.03)


def test_a_cell_that_is_tuned_has_its_own_rates_and_leaves_all_others_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A best rate that is a power of the length between the corners, and another one beyond."""

    def best(row: str, config: RunConfig) -> float:
        if config.num_steps == 60:
            return 0.7
        return by_law(row, config)

    _, without = plan_after(gridded(), tmp_path, monkeypatch, best)
    far = {"cell": "far", "num_steps": 60, "learning_rates": [0.35, 0.7], "tuned": True}
    table = gridded(cells=[*CELLS, far])
    trials, plan = plan_after(table, tmp_path, monkeypatch, best)
    before = rates_of(without)
    rates = rates_of(plan)
    assert before.items() <= rates.items()
    assert rates["sgd@far"] == 0.7
    assert rates["cser@far"] == 0.7
    tried = {row.tunes for row in trials.experiment.rows}
    assert {"sgd@far", "cser@far"} <= tried
    assert "sgd" not in tried


def test_a_row_has_the_settings_of_the_nearest_corner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = gridded()
    sgd, cser, _ = table["rows"]
    settings = cser.pop("settings")
    shorter = settings | {"reset_interval": 2}
    longer = settings | {"reset_interval": 5}
    cser["candidates"] = [shorter, longer]
    table["rows"] = [sgd, cser]
    table["tuning"]["corners"] = ["narrow-10", "narrow-40"]
    del table["tuning"]["num_trials"]
    table["cells"] = [
        CELLS[0],
        {"cell": "narrow-15", "num_steps": 15},
        CELLS[1],
        CELLS[4],
    ]

    def best(row: str, config: RunConfig) -> float:
        interval = config.settings.table.get("reset_interval")
        fitting = 5
        if config.num_steps == 10:
            fitting = 2
        if interval in (None, fitting):
            return 0.1
        return 0.0001

    _, plan = plan_after(table, tmp_path, monkeypatch, best)
    intervals = {}
    for row in plan.experiment.rows:
        intervals[row.row] = row.settings.get("reset_interval")
    assert intervals["cser@narrow-10"] == 2
    assert intervals["cser@narrow-15"] == 2
    assert intervals["cser@narrow-40"] == 5


def test_rows_that_are_not_tuned_yet_are_left_out_unless_a_contrast_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = gridded()
    table["statistics"]["floor"] = "cser"
    untuned = ("cser",)
    _, plan = plan_after(table, tmp_path, monkeypatch, by_law, untuned)
    rows = plan.experiment.rows
    bases = {row.row.partition("@")[0] for row in rows}
    assert bases == {"sgd", "ef_sgd"}
    assert plan.experiment.floor is None
    (left_out,) = plan.left_out
    assert left_out.startswith("cser is left out: row 'cser@narrow-10'")
    table["statistics"]["declared"] = "before all"
    contrast = {
        "row": "cser",
        "reference": "sgd",
        "kind": "superiority",
        "question": "?",
    }
    table["contrasts"] = [contrast]
    words = r"row 'cser@narrow-10' has no learning_rate, and the tuning"
    with pytest.raises(SpecError, match=words):
        plan_after(table, tmp_path, monkeypatch, by_law, untuned)


@pytest.mark.parametrize("corners", [CORNERS[:3], CORNERS[:1], [*CORNERS, "narrow-20"]])
def test_corners_that_are_no_grid_are_refused(
    corners: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = changed(gridded(), "tuning.corners", corners)
    words = r"row 'sgd' needs a learning rate from tuning.corners, of which it is in \d"
    with pytest.raises(SpecError, match=words):
        plan_after(table, tmp_path, monkeypatch, by_law)


def test_a_star_chooses_a_row_in_all_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, plan = plan_after(gridded(), tmp_path, monkeypatch, by_law)
    of_cser = plan.only(["cser@*"], []).runs
    found = {run.row for run in of_cser}
    expected = {f"cser@{cell['cell']}" for cell in CELLS}
    assert found == expected
    without_star = plan.only(["sgd"], []).runs
    found = {run.row for run in without_star}
    assert found == {"sgd"}
    of_sgd = trials.only(["sgd@*"], []).runs
    assert of_sgd
    for run in of_sgd:
        assert run.row.startswith("sgd@")
