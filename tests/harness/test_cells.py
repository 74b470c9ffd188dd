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
    spec = small_spec() | {"cells": CELLS}
    spec["training"] |= {"num_epochs": 2, "num_steps": 30}
    for number in (0, 1):
        del spec["rows"][number]["learning_rate"]
    spec["rows"][2]["cells"] = ["wide-10"]
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
        asked = {
            run.run_id: run for run in trials.runs if not run.row.startswith(untuned)
        }
        if asked.keys() <= scores.keys():
            return trials, make_plan(spec, folder)
        for run in asked.values():
            apart = math.log(
                run.config.learning_rate / best(run.row.partition("@")[0], run.config)
            )
            scores[run.run_id] = 1 - abs(apart) / 100


def by_law(row: str, config: RunConfig) -> float:
    """A best rate that is a power of the length on each network, and not the same one."""
    wide = config.model.options == WIDE
    steps = (config.num_steps or 0) / 10
    return (0.1 if row == "sgd" else 0.2) * (0.2 * steps**-0.5 if wide else steps**-1.0)


def test_a_cell_has_the_experiments_rows_with_its_own_model_length_and_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = gridded()
    _, plan = plan_after(table, tmp_path, monkeypatch, by_law)
    rows = {row.row: row for row in plan.experiment.rows}
    assert rows.keys() == {
        *("sgd", "cser", "ef_sgd", "ef_sgd@wide-10"),
        *(f"{row}@{cell['cell']}" for row in ("sgd", "cser") for cell in CELLS),
    }
    assert [
        rows[name].repeats for name in ("sgd", "sgd@wide-40", "ef_sgd@wide-10")
    ] == [None, "sgd", "ef_sgd"]
    sizes = {name: (row.num_parameters, row.num_steps) for name, row in rows.items()}
    assert (sizes["sgd"], sizes["sgd@narrow-20"]) == ((742, 30), (742, 20))
    assert (
        sizes["cser@wide-40"] == sizes["sgd@wide-40"] == (sizes["sgd@wide-10"][0], 40)
    )
    assert sizes["sgd@wide-10"][1] == 10
    configs = {run.row: run.config for run in plan.runs}
    assert configs["sgd@wide-10"].model.options == WIDE
    assert configs["sgd"].model.options == NARROW
    assert list(rows["sgd@wide-40"].runs) == ["1"]
    assert list(rows["sgd@wide-10"].runs) == ["1", "2"]
    assert plan.experiment.config["model"]["options"] == NARROW


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
    trials, plan = plan_after(
        gridded(cells=[*CELLS, middle]), tmp_path, monkeypatch, by_law
    )
    sizes = {row.row: row.num_parameters for row in plan.experiment.rows}
    narrow, inside, wide = (
        sizes[f"sgd@{cell}"] for cell in ("narrow-10", "middle-20", "wide-10")
    )
    share = math.log(inside / narrow) / math.log(wide / narrow)
    assert 0.2 < share < 0.8
    rates = {row.row: row.learning_rate for row in plan.experiment.rows}
    tried = {row.row.partition("_lr")[0] for row in trials.experiment.rows}
    assert tried == {f"{row}@{corner}" for row in ("sgd", "cser") for corner in CORNERS}
    first = [
        row.learning_rate
        for row in trials.experiment.rows
        if row.tunes == "sgd@wide-10"
    ][:2]
    assert first == [0.02, 0.2], "a cell's own rates to begin with"
    for row in ("sgd", "cser"):
        corner = {name: rates[f"{row}@{name}"] for name in CORNERS}
        between = math.sqrt(corner["narrow-10"] * corner["narrow-40"])
        assert rates[f"{row}@narrow-20"] == pytest.approx(between, rel=0.01)
        of_wide = math.sqrt(corner["wide-10"] * corner["wide-40"])
        assert rates[f"{row}@middle-20"] == pytest.approx(
            between ** (1 - share) * of_wide**share, rel=0.01
        )
        own = math.log(30 / 10) / math.log(40 / 10)
        between = corner["narrow-10"] ** (1 - own) * corner["narrow-40"] ** own
        assert rates[row] == pytest.approx(between, rel=0.01)
    assert rates["ef_sgd@wide-10"] == 0.05, "a rate that is given holds everywhere"
    assert plan.experiment.tuning is not None
    assert plan.experiment.tuning.choices.keys() == tried
    assert not any(choice.at_end for choice in plan.experiment.tuning.choices.values())


@pytest.mark.parametrize("steps", [5, 25, 80])
def test_rates_go_on_beyond_the_corners_as_between_them(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two corners that differ in length alone, 10 and 40 steps, whose best rates are 0.1 and
    0.01."""
    table = gridded(
        cells=[*CELLS, {"cell": "other", "num_steps": steps}],
        rows=small_spec()["rows"][:1],
    )
    del table["rows"][0]["learning_rate"]
    table["rows"][0] |= {"corners": ["narrow-10", "narrow-40"]}
    _, plan = plan_after(
        table,
        tmp_path,
        monkeypatch,
        lambda row, config: 0.1 if config.num_steps == 10 else 0.01,
    )
    rates = {row.row: row.learning_rate for row in plan.experiment.rows}
    power = math.log(steps / 10) / math.log(40 / 10)
    assert rates["sgd@other"] == pytest.approx(0.1 * 10**-power, rel=0.01)


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
    table = gridded(
        cells=[*CELLS, {"cell": "other", "num_steps": steps}],
        rows=small_spec()["rows"][:1],
    )
    del table["rows"][0]["learning_rate"]
    table["rows"][0] |= {
        "corners": ["narrow-10", "narrow-20", "narrow-40"],
        "learning_rates": [0.02, 0.04],
    }
    best = {10: 0.08, 20: 0.02, 40: 0.04}
    _, plan = plan_after(
        table, tmp_path, monkeypatch, lambda row, config: best[config.num_steps or 0]
    )
    rates = {row.row: row.learning_rate for row in plan.experiment.rows}
    assert rates["sgd@other"] == pytest.approx(expected, rel=0.03)


def test_a_cell_that_is_tuned_has_its_own_rates_and_leaves_all_others_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A best rate that is a power of the length between the corners, and another one beyond."""

    def best(row: str, config: RunConfig) -> float:
        return 0.7 if config.num_steps == 60 else by_law(row, config)

    _, without = plan_after(gridded(), tmp_path, monkeypatch, best)
    far = {"cell": "far", "num_steps": 60, "learning_rates": [0.35, 0.7], "tuned": True}
    trials, plan = plan_after(gridded(cells=[*CELLS, far]), tmp_path, monkeypatch, best)
    before = {row.row: row.learning_rate for row in without.experiment.rows}
    rates = {row.row: row.learning_rate for row in plan.experiment.rows}
    assert {row: rates[row] for row in before} == before
    assert rates["sgd@far"] == rates["cser@far"] == 0.7
    tried = {row.tunes for row in trials.experiment.rows}
    assert {"sgd@far", "cser@far"} <= tried
    assert "sgd" not in tried


def test_a_row_has_the_settings_of_the_nearest_corner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = gridded()
    settings = table["rows"][1].pop("settings")
    table["rows"][1] |= {
        "candidates": [settings | {"reset_interval": interval} for interval in (2, 5)]
    }
    table["tuning"] |= {"num_trials": None, "corners": ["narrow-10", "narrow-40"]}
    del table["tuning"]["num_trials"]
    table["cells"] = [
        CELLS[0],
        {"cell": "narrow-15", "num_steps": 15},
        CELLS[1],
        CELLS[4],
    ]
    table["rows"] = table["rows"][:2]

    def best(row: str, config: RunConfig) -> float:
        fits = config.settings.table.get("reset_interval") in (
            None,
            2 if config.num_steps == 10 else 5,
        )
        return 0.1 if fits else 0.0001

    _, plan = plan_after(table, tmp_path, monkeypatch, best)
    intervals = {
        row.row: row.settings.get("reset_interval") for row in plan.experiment.rows
    }
    assert [intervals[f"cser@narrow-{steps}"] for steps in (10, 15, 40)] == [2, 2, 5]


def test_rows_that_are_not_tuned_yet_are_left_out_unless_a_contrast_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = gridded()
    table["statistics"]["floor"] = "cser"
    _, plan = plan_after(table, tmp_path, monkeypatch, by_law, untuned=("cser",))
    assert {row.row.partition("@")[0] for row in plan.experiment.rows} == {
        "sgd",
        "ef_sgd",
    }
    assert plan.experiment.floor is None
    assert len(plan.left_out) == 1
    assert plan.left_out[0].startswith("cser is left out: row 'cser@narrow-10'")
    table["statistics"]["declared"] = "before all"
    contrast = {
        "row": "cser",
        "reference": "sgd",
        "kind": "superiority",
        "question": "?",
    }
    with pytest.raises(
        SpecError, match=r"row 'cser@narrow-10' has no learning_rate, and the tuning"
    ):
        plan_after(
            table | {"contrasts": [contrast]},
            tmp_path,
            monkeypatch,
            by_law,
            untuned=("cser",),
        )


@pytest.mark.parametrize("corners", [CORNERS[:3], CORNERS[:1], [*CORNERS, "narrow-20"]])
def test_corners_that_are_no_grid_are_refused(
    corners: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = changed(gridded(), "tuning.corners", corners)
    with pytest.raises(
        SpecError,
        match=r"row 'sgd' needs a learning rate from tuning.corners, of which it is in \d",
    ):
        plan_after(table, tmp_path, monkeypatch, by_law)


def test_a_star_chooses_a_row_in_all_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, plan = plan_after(gridded(), tmp_path, monkeypatch, by_law)
    assert {run.row for run in plan.only(["cser@*"], []).runs} == {
        f"cser@{cell['cell']}" for cell in CELLS
    }
    assert {run.row for run in plan.only(["sgd"], []).runs} == {"sgd"}
    of_sgd = trials.only(["sgd@*"], []).runs
    assert of_sgd
    assert all(run.row.startswith("sgd@") for run in of_sgd)
