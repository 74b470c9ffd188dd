"""Specs: every mistake is one clear sentence, and what is valid survives a round trip."""

from __future__ import annotations

import datetime
import math
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cser_bench.algorithms import SGD, Compressor, SoloCollectives
from cser_bench.algorithms.registry import algorithms, compressors
from cser_bench.harness.places import EXPERIMENTS
from cser_bench.harness.plan.plan import make_plan, plan_experiment
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.rows import RestartOf, RowSpec
from cser_bench.harness.spec.spec_file import find_spec, load_spec
from cser_bench.harness.train.build import build_optimizer
from tests.harness.support import (
    BLOCK,
    TUNING,
    CommandLine,
    Table,
    changed,
    small_config,
    small_spec,
    write_spec,
)

ABSENT = object()
NAN = math.nan
CONTRAST = {
    "row": "cser",
    "reference": "sgd",
    "kind": "non-inferiority",
    "question": "Is anything lost?",
}


def row_of(algorithm: str, **settings: Any) -> Table:
    """A row of this method."""
    return {
        "row": "own",
        "label": "Own",
        "algorithm": algorithm,
        "learning_rate": 0.05,
        "settings": settings,
    }


def contrasts(*pairs: tuple[str, str, str]) -> Table:
    """Declared contrasts: row, reference and kind of each."""
    keys = ("row", "reference", "kind")
    declared = [
        dict(zip(keys, pair, strict=True)) | {"question": f"{pair}?"} for pair in pairs
    ]
    return {"statistics.declared": "before all runs", "contrasts": declared}


def grid(**changes: Any) -> Table:
    """A grid beside the rows."""
    table = {
        "grid": "local",
        "label": "Local",
        "algorithm": "local_sgd",
        "columns": ["H"],
        "cases": [[2], [4]],
    }
    table |= {"settings": {"sync_interval": "H"}, "learning_rates": [0.01, 0.1]}
    return {"grids": [table | changes]}


def restart(name: str, *without: str, times: int = 1, **more: Any) -> Table:
    return {"restarts": [{"row": name, "without": list(without)} | more] * times}


CELLS: Table = {"cells": [{"cell": "long", "num_steps": 20}]}
EXPONENT = {"rows": ["adam"], "of": "size", "question": "Does it shrink?"}
ADAMW: Table = {
    "training.local_step": "adamw",
    "rows.1.momentum": ABSENT,
    "rows.2.local_step": "sgd",
}
MISTAKES: dict[str, tuple[Table, list[str]]] = {
    # name: (values, or ABSENT, by path, what the sentence must contain)
    "unknown key": ({"tittle": "x"}, ["tittle", "unknown key"]),
    "unknown option of the model": (
        {"model.options.depth": 3},
        ["small_cnn", "depth", "widths"],
    ),
    "unknown setting": (
        {"rows.1.settings.interval": 3},
        ["cser", "'interval'", "reset_interval"],
    ),
    "missing setting": (
        {"rows.1.settings.reset_interval": ABSENT},
        ["cser", "'reset_interval'", "needs"],
    ),
    "missing kind of a compressor": (
        {"rows.2.settings.compressor.kind": ABSENT},
        ["compressor", "top_k"],
    ),
    "format": ({"format": 2}, ["format", "1"]),
    "number for a compressor": (
        {"rows.2.settings.compressor": 64},
        ["compressor", "64", "block"],
    ),
    "a seed twice": ({"statistics.seeds": [1, 2, 1]}, ["statistics.seeds", "twice"]),
    "tuned on itself": (
        {"tuning": TUNING | {"seeds": [101, 2]}},
        ["tuning.seeds", "statistics.seeds"],
    ),
    "a contrast of no row": (
        {"contrasts": [CONTRAST | {"reference": "adam"}]},
        ["contrast", "'adam'", "no row"],
    ),
    "contrasts without what was seen": (
        {"contrasts": [CONTRAST]},
        ["statistics.declared"],
    ),
    "ratio beyond the model": (
        {"rows.2.settings.compressor.ratio": 10**6},
        ["compressor", "1000000", "742"],
    ),
    "more workers than samples": (
        {"training.num_workers": 1000},
        ["1000 workers", "20 samples", "1600"],
    ),
    "model that cannot be": (
        {"model.options.widths": [4]},
        ["small_cnn", "at least 2 items"],
    ),
    "no rate and no tuning": (
        {"rows.0.learning_rate": ABSENT},
        ["learning_rate", "tuning"],
    ),
    "wrong type of a model's option": (
        {"model.options.widths": "4, 8"},
        ["small_cnn", "widths", "'4, 8'"],
    ),
    "warm-up longer than the run": (
        {"schedule.warmup_epochs": 99},
        ["warm-up of 99", "num_epochs = 1"],
    ),
    "a row's warm-up longer than the run": (
        {"rows.1.warmup_epochs": 2},
        ["row 'cser'", "warm-up of 2", "num_epochs"],
    ),
    "more scores than steps in all": (
        {"evaluation": {"num_scores": 41}},
        ["evaluation.num_scores", "41", "40 steps"],
    ),
    "unknown algorithm": (
        {"rows.1.algorithm": "adam"},
        ["row cser: ", "'adam'", *algorithms()],
    ),
    "compressor that the method cannot take": (
        {
            "rows.1": row_of(
                "mcser_released",
                error_compressor={"kind": "sign"},
                gradient_compressor=BLOCK,
                reset_interval=3,
            )
        },
        ["mcser_released", "error_compressor", "'sign'", "block", "random_k"],
    ),
    "unknown compressor": (
        {"rows.2.settings.compressor.kind": "magic"},
        ["magic", *compressors()],
    ),
    "metric of another task": (
        {"statistics.metric": "bleu"},
        ["blobs", "'bleu'", "accuracy"],
    ),
    "unknown topology": (
        {"rows.1": row_of("dpsgd", topology="torus", order="adapt_then_combine")},
        ["'torus'", "ring"],
    ),
    "adamw with momentum": (
        ADAMW | {"rows.1.momentum": 0.9},
        ["row cser: ", "adamw, which has no momentum"],
    ),
    "adamw alone with momentum for all": (
        {"training.local_step": "adamw", "rows.1.momentum": ABSENT},
        ["training.momentum does nothing", "muon or sgd; give 0.0"],
    ),
    "a class for an algorithm's name": (
        {"rows.1.algorithm": "MCSER"},
        [
            "rows.1.algorithm: 'MCSER' must have small letters",
            "as mcser has for the class MCSER",
        ],
    ),
    "sgd with betas": (
        ADAMW | {"rows.2.betas": [0.9, 0.99]},
        ["row ef_sgd: ", "sgd, which has no betas"],
    ),
    "sgd's method with adamw": (
        {"rows.1": row_of("ef21_sgdm", compressor=BLOCK) | {"local_step": "adamw"}},
        ["ef21_sgdm: local_step = 'adamw' cannot be"],
    ),
    "ddp with a wire": (
        {"rows.1": row_of("ddp"), "training.wire": "fp16"},
        ["row own: ", "its hook"],
    ),
    "hook in fp16": (
        {"rows.1": row_of("ddp_powersgd", rank=1), "training.precision": "fp16"},
        ["row own: ", "spoil the hook's state"],
    ),
    "restart of no row": (
        restart("ef", "error"),
        ["the row to restart 'ef' is no row"],
    ),
    "restart twice": (
        restart("ef_sgd", "error", times=2),
        ["two rows are named 'ef_sgd~error'"],
    ),
    "restart without no state": (
        restart("ef_sgd", "residual"),
        ["'residual'", "parameters, momentum, error"],
    ),
    "restart at an end": (
        restart("ef_sgd", "error", at=0.001),
        ["is at an end of the run"],
    ),
    "restart of no worker": (
        restart("ef_sgd", "error", worker=2),
        ["ranks go from 0 to 1"],
    ),
    "restart of what is common": (
        restart("own", "right_factors", worker=0)
        | {"rows.1": row_of("powersgd", rank=1) | {"ratio": 5}},
        ["all workers hold 'right_factors' in common, so none can lose it alone"],
    ),
    "interval beyond the run": (
        {"rows.1": row_of("local_sgd", sync_interval=41)},
        ["row own: ", "41", "40 steps"],
    ),
    "more steps than there are": (
        {"training.num_steps": 41},
        ["num_steps = 41", "40", "num_epochs = 1"],
    ),
    "lengths of runs of steps": (
        {"training.num_steps": 20, "lengths": {"num_epochs": [2], "seeds": [1]}},
        ["runs of num_steps", "[[cells]]"],
    ),
    "a row of no cell": (
        {"rows.1.cells": ["wide"]},
        ["row 'cser' names the cell 'wide'", "the cells are none"],
    ),
    "a corner of no cell": (
        CELLS | {"tuning": TUNING | {"corners": ["wide"]}},
        ["tuning.corners names the cell 'wide'", "long"],
    ),
    "a cell of a row's own": (
        {"rows.1.cell": {"cell": "long"}},
        ["row cser: ", "cannot make a cell"],
    ),
    "a cell twice": ({"cells": [{"cell": "long"}] * 2}, ["two rows are named"]),
    "a cell tuned on itself": (
        {"tuning": TUNING, "cells": [{"cell": "long", "seeds": [101]}]},
        ["tuning.seeds", "the seeds of cell long"],
    ),
    "sensitivity of cells": (
        CELLS | {"sensitivity": {"seeds": [1]}},
        ["[sensitivity]", "[[cells]]"],
    ),
    "an option of a cell's model": (
        {"cells": [{"cell": "long", "model_options": {"depth": 3}}]},
        ["row sgd@long: ", "small_cnn", "depth"],
    ),
    "an exponent of no row": (
        {"exponents": [EXPONENT]},
        ["the row of an exponent 'adam' is no row"],
    ),
    "exponents without what was seen": (
        {"exponents": [EXPONENT | {"rows": ["sgd"]}]},
        ["statistics.declared"],
    ),
    "less than a model": (
        {"rows.1": row_of("ef_sgd", compressor={"kind": "block", "ratio": 50})},
        ["row own: ", "sends 0.81 of a model", "raise num_epochs"],
    ),
    "margin in points": (
        {"statistics.margin": 0.5},
        ["statistics.margin = 0.5 is 50 points of accuracy", "0.005"],
    ),
    "margin far above one": (
        {"statistics.margin": 50.0},
        ["statistics.margin = 50 is 5000 points"],
    ),
    "a contrast's margin in points": (
        {"statistics.declared": "before", "contrasts": [CONTRAST | {"margin": 1.0}]},
        ["margin of 'cser' to 'sgd' = 1 is 100 points"],
    ),
    "a contrast with itself": (
        contrasts(("sgd", "sgd", "equivalence")),
        ["row 'sgd' against itself"],
    ),
    "a contrast twice": (
        contrasts(*[("cser", "sgd", "superiority")] * 2),
        ["two contrasts", "superiority of 'cser' to 'sgd'"],
    ),
    "a contrast twice in other words": (
        {
            "statistics.declared": "before",
            "contrasts": [CONTRAST, CONTRAST | {"question": "Once more?"}],
        },
        ["two contrasts", "non-inferiority of 'cser' to 'sgd'"],
    ),
    "a contrast both ways": (
        contrasts(
            ("cser", "sgd", "non-inferiority"), ("sgd", "cser", "non-inferiority")
        ),
        ["both ways", "equivalence in its place"],
    ),
    "one row under two names": (
        {"rows.1": row_of("ef_sgd", compressor=BLOCK)},
        ["rows 'own' and 'ef_sgd' are the same"],
    ),
    "one row under two names, a default written out": (
        {
            "rows.1": row_of("ef_sgd", compressor=BLOCK, drop_rest=False)
            | {"momentum": 0.9}
        },
        ["rows 'own' and 'ef_sgd' are the same"],
    ),
    "two rows with one label": (
        {"rows.1.label": "EF-SGD"},
        ["rows 'cser' and 'ef_sgd'", "'EF-SGD'", "cser and"],
    ),
    "two rows with one label and ratio": (
        {
            "rows.1": row_of("ef_sgd", compressor={"kind": "top_k", "ratio": 8})
            | {"label": "EF-SGD", "ratio": 4}
        },
        ["rows 'own' and 'ef_sgd'", "'EF-SGD'", "ratio 4"],
    ),
    "empty label": ({"rows.1.label": " "}, ["row cser: ", "label: is empty"]),
    "empty title": ({"title": ""}, ["title: is empty"]),
    "main ratio of no row": (
        {"statistics.main_ratio": 5.0},
        ["statistics.main_ratio", "1, 4, 4.8"],
    ),
    "milestones of a cosine": (
        {"schedule.milestones": [0.5]},
        ["schedule.milestones does nothing", "'cosine'"],
    ),
    "factor of a cosine": ({"schedule.factor": 0.1}, ["schedule.factor does nothing"]),
    "alpha where all is dealt out": (
        {"partition": {"alpha": 0.1}},
        ["partition.alpha does nothing", "'dirichlet'"],
    ),
    "shards of a stretch": (
        {"partition": {"kind": "contiguous", "shards_per_worker": 2}},
        ["partition.shards_per_worker does nothing", "'class_shards'"],
    ),
    "alpha of a row that has all dealt out": (
        {"rows.1.partition": {"kind": "class_shards", "alpha": 0.1}},
        ["row 'cser': partition.alpha does nothing"],
    ),
    "betas without AdamW": (
        {"training.betas": [0.9, 0.99]},
        ["training.betas does nothing", "adamw or muon"],
    ),
    "a local step that is none": (
        {"training.local_step": "adam"},
        ["local_step must be one of adamw, muon, sgd, not 'adam'"],
    ),
    "stairs without a warm-up": (
        {"schedule": {"kind": "constant", "staircase_warmup": True}},
        ["staircase_warmup does nothing"],
    ),
    "scores an epoch and in all": (
        {"evaluation.num_scores": 4},
        ["evaluation.per_epoch has no effect"],
    ),
    "seeds of a rule that is off": (
        {"tuning": TUNING | {"both_rules_seeds": [7]}},
        ["tuning.both_rules_seeds does nothing"],
    ),
    "a tuning of no row": (
        {"tuning": TUNING},
        ["[tuning] does nothing", "learning_rate"],
    ),
    "finalists of one seed": (
        {"rows.0.learning_rate": ABSENT, "tuning": TUNING | {"finalists": 1}},
        ["tuning.finalists does nothing with one seed"],
    ),
    "a baseline that sends nothing": (
        {"statistics.floor": "sgd"},
        ["statistics.floor is the baseline 'sgd'"],
    ),
    "a ratio that is far from what is sent": (
        {"rows.2.ratio": 5},
        ["row ef_sgd: ratio = 5, and by its settings it sends 3.989 times less"],
    ),
    "a ratio of a row that sends everything": (
        {"rows.0.ratio": 216},
        ["row sgd: ratio = 216, and by its settings it sends 1 times less"],
    ),
    "a milestone after the end": (
        {"schedule": {"kind": "milestones", "milestones": [0.5, 1]}},
        ["schedule.milestones", "never falls at 1", "ends after 1 epochs"],
    ),
    "the name of a tuning": (
        {"name": "small_tuning"},
        ["'small_tuning' ends in _tuning"],
    ),
    "a name that is no folder's": ({"name": 300 * "a"}, ["300 letters", "at most 100"]),
    "rates beside a rate": (
        {"rows.1.learning_rates": [0.1]},
        ["row cser: ", "learning_rates do nothing"],
    ),
    "nan for an interval": (
        {"rows.1": row_of("local_sgd", sync_interval=4, first_moment_interval=NAN)},
        ["row own: ", "settings", "nan"],
    ),
    "nan in a compressor": (
        {"rows.2.settings.compressor.num_blocks": NAN},
        ["row ef_sgd: ", "settings", "nan"],
    ),
    "number that no counter holds": (
        {
            "rows.2.settings.compressor": {
                "kind": "chunk_top_k",
                "ratio": 4,
                "chunk_size": 2**62,
            }
        },
        ["row ef_sgd: ", "settings", "4611686018427387904"],
    ),
    "inf in a grid": (grid(cases=[[math.inf]]), ["grid local: ", "cases"]),
    "nan in a grid": (grid(cases=[[NAN]]), ["grid local: ", "cases"]),
    "column that is no name": (
        grid(columns=["H m"], settings={"sync_interval": 2}),
        ["grid local: ", "columns"],
    ),
    "endless warm-up of a grid": (
        grid(cases=[[10**9]], warmup={"columns": ["H"], "epochs": 1e308}),
        ["warm-up of a grid"],
    ),
    "unknown key beside another mistake": (
        {"rows.0.learning_rate": -1.0, "rows.2.colour": "red"},
        ["row ef_sgd: unknown key 'rows.2.colour'"],
    ),
}


def test_a_million_in_a_grid_makes_a_name(tmp_path: Path) -> None:
    spec = changed(
        small_spec(),
        "grids",
        grid(columns=["R"], cases=[[10**6]], settings={"sync_interval": 2})["grids"],
    )
    read = load_spec(write_spec(tmp_path, spec))
    rows = [row.row for row in read.all_rows()]
    assert rows[-2:] == ["local-r1e06-lr0.01", "local-r1e06-lr0.1"]


def test_restarts_at_two_times_have_two_labels() -> None:
    row = RowSpec(row="ef", label="EF", algorithm="ef_sgd")
    labels = [
        row.restarted(RestartOf(row="ef", without=["error"], at=at)).label
        for at in (0.25, 0.5)
    ]
    assert labels == ["EF without error at 25 %", "EF without error"]


BASES: dict[str, tuple[Table, str]] = {
    # what the base has in place of what it should have, and what is said of it
    "a number for a table": ({"statistics": 5}, "statistics: "),
    "words for rows": ({"rows": ["sgd"]}, "rows.0: "),
    "a number for rows": ({"rows": 5}, "rows: "),
    "a list for a name": (
        {"rows": [{"row": ["sgd"], "label": "SGD", "algorithm": "sgd"}]},
        "rows.0.row: ",
    ),
}


@pytest.mark.parametrize("name", BASES)
def test_a_file_that_is_like_no_experiment_is_refused(
    name: str, tmp_path: Path, cli: CommandLine
) -> None:
    change, part = BASES[name]
    base = tmp_path / "base.toml"
    base.write_text(tomli_w.dumps(small_spec() | change))
    path = write_spec(
        tmp_path,
        {"format": 1, "like": "base", "name": "own", "title": "Own", "rows": ["sgd"]},
    )
    said = cli.refused("plan", path)
    assert said.startswith(f"{path}: {base}: ")
    assert part in said


def test_what_a_base_says_and_its_likeness_has_no_use_for_is_no_mistake(
    tmp_path: Path,
) -> None:
    base = small_spec() | {
        "schedule": {"kind": "milestones", "milestones": [0.5], "factor": 0.1}
    }
    base["partition"] = {"kind": "dirichlet", "alpha": 0.1}
    base = changed(base, "training.local_step", "adamw")
    base = changed(base, "training.betas", [0.9, 0.99])
    base = changed(changed(base, "rows.1.momentum"), "training.momentum", 0.0)
    (tmp_path / "base.toml").write_text(tomli_w.dumps(base))
    own: Table = {
        "format": 1,
        "like": "base",
        "name": "own",
        "title": "Own",
        "schedule": {"kind": "cosine"},
    }
    own |= {
        "partition": {"kind": "contiguous"},
        "training": {"local_step": "sgd"},
        "evaluation": {"num_scores": 4},
    }
    spec = load_spec(write_spec(tmp_path, own))
    assert (spec.schedule.milestones, spec.schedule.factor, spec.partition.alpha) == (
        [],
        0.2,
        1.0,
    )
    assert spec.evaluation.num_scores == 4
    assert spec.evaluation.per_epoch == 1
    path = write_spec(tmp_path, own)
    by_sgd = plan_experiment(str(path), tmp_path).runs[0].config
    assert by_sgd.local_step == "sgd"
    assert by_sgd.betas == [0.9, 0.999]
    base = base | {"evaluation": {"num_scores": 4}}
    (tmp_path / "base.toml").write_text(tomli_w.dumps(base))
    twice = own | {"evaluation": {"per_epoch": 2}}
    again = load_spec(write_spec(tmp_path, twice))
    assert again.evaluation.num_scores is None
    assert again.evaluation.per_epoch == 2
    base = changed(changed(base, "training.betas"), "training.local_step", "sgd")
    base = changed(base, "training.momentum", 0.9)
    (tmp_path / "base.toml").write_text(tomli_w.dumps(base))
    own |= {"training": {"local_step": "adamw"}}
    path = write_spec(tmp_path, own)
    by_adamw = plan_experiment(str(path), tmp_path).runs[0].config
    assert by_adamw.local_step == "adamw"
    assert by_adamw.momentum == 0.0


def assert_is_refused(
    spec: Table, folder: Path, parts: list[str], cli: CommandLine
) -> None:
    """The plan ends with 2 and one sentence that holds all of these parts."""
    said = cli.refused(
        "plan", write_spec(folder, spec), "--results", folder / "results"
    )
    assert said.startswith(f"{folder / 'spec.toml'}: ") and not [
        part for part in parts if part not in said
    ], said


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_clear_sentence(
    name: str, tmp_path: Path, cli: CommandLine
) -> None:
    changes, parts = MISTAKES[name]
    spec = small_spec()
    for path, value in changes.items():
        spec = changed(spec, path, *([] if value is ABSENT else [value]))
    assert_is_refused(spec, tmp_path, parts, cli)


def test_setting_that_may_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of one's own whose setting is declared `int | None`, and one that takes a compressor
    or none."""

    class Own(SGD):
        name: ClassVar[str] = "own"
        rank: int | None = None
        compressor: Compressor | None = None

    monkeypatch.setattr("cser_bench.harness.train.method.methods", lambda: {"own": Own})
    for table, held in (
        ({}, (None, None)),
        ({"rank": 3}, (3, None)),
        ({"compressor": BLOCK}, (None, 4)),
    ):
        made: Any = build_optimizer(
            small_config("own", table), nn.Linear(2, 2), SoloCollectives(), 10
        )
        ratio = getattr(made.compressor, "ratio", None)
        assert (made.rank, ratio) == held
    with pytest.raises(
        SpecError, match=r"own: rank: Input should be a valid integer.* \(given: 'x'\)"
    ):
        build_optimizer(
            small_config("own", {"rank": "x"}), nn.Linear(2, 2), SoloCollectives(), 10
        )


def test_files_that_are_no_spec_and_a_spec_without_a_tuning(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = tmp_path / "bad.toml"
    for content, part in (
        (b"rows = [", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        (b"", "required"),
    ):
        path.write_bytes(content)
        said = cli.refused("plan", path)
        assert str(path) in said
        assert part in said
    path = write_spec(tmp_path, small_spec())
    assert "[tuning]" in cli.refused("plan", path, "--tuning")


def test_paths_are_found_before_names_and_an_unknown_name_is_said_with_those_like_it(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = write_spec(tmp_path, small_spec())
    assert find_spec(str(path)) == path
    assert find_spec("fashion_mnist") == EXPERIMENTS / "fashion_mnist.toml"
    said = cli.refused("plan", "cmudic")
    assert "no experiment 'cmudic'" in said
    assert said.endswith("as cmudict, cmudict_adamw")


def paths(value: Any, prefix: str = "") -> list[str]:
    """The paths of all values in a spec, inner ones too."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    found = []
    for key, inner in items:
        found += [f"{prefix}{key}", *paths(inner, f"{prefix}{key}.")]
    return found


JUNK = st.one_of(
    st.sampled_from(
        [
            0,
            -1,
            1,
            2**31,
            10**30,
            -(10**30),
            0.0,
            -0.5,
            1.0,
            1e308,
            float("inf"),
            float("nan"),
        ]
    ),
    st.integers(-3, 3000),
    st.floats(),
    st.booleans(),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=5),
    st.sampled_from(
        [
            "end",
            "block",
            "top_k",
            "sign",
            "sgd",
            "cser",
            "blobs",
            "errors",
            "task",
            "../x",
        ]
    ),
    st.just(datetime.date(2020, 10, 1)),
    st.lists(st.integers(-2, 5), max_size=3),
    st.dictionaries(
        st.sampled_from(["kind", "ratio", "num_blocks", "x"]),
        st.sampled_from([0, 4, "block"]),
        max_size=3,
    ),
)
PATHS = paths(small_spec())


@pytest.mark.whole
@settings(deadline=None, derandomize=True, max_examples=250)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(PATHS), st.one_of(st.just(ABSENT), JUNK), st.booleans()
        ),
        max_size=2,
    )
)
def test_random_corruptions_are_refused_or_planned(
    corruptions: list[tuple[str, Any, bool]],
) -> None:
    spec = small_spec()
    for path, value, beside in corruptions:
        where = f"{path}x" if beside and not path[-1].isdigit() else path
        try:
            spec = changed(spec, where, *([] if value is ABSENT else [value]))
        except (KeyError, IndexError, TypeError, ValueError):
            continue  # The first corruption took away the place of the second.
    with tempfile.TemporaryDirectory() as folder:
        path = write_spec(Path(folder), spec)
        try:
            plan = make_plan(load_spec(path), Path(folder))
        except SpecError as error:
            assert str(error)
            assert "\n" not in str(error)
        else:
            ids = {run.run_id for run in plan.runs}
            assert len(ids) == len(plan.runs)
            assert all(
                row.expected_bits > 0
                for row in plan.experiment.rows
                if row.algorithm == "sgd"
            )
