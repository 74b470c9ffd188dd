"""What answers, advice and reports say beside experiments of the user's own: as without
them until they are done, and of answers at any time."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest

from cser_bench.__main__ import main
from cser_bench.harness.records import shipped
from cser_bench.harness.records.shipped import SHIPPED
from cser_bench.report.collection import Collection, collection_for, collection_of
from cser_bench.report.frame import read_frames, sharing_baseline
from cser_bench.report.speed.timed import experiments_beside
from cser_bench.report.speed.workload_model import read_study
from tests.harness.support import CommandLine
from tests.own_runs import begin, keep_rows, rename

pytestmark = pytest.mark.whole

EXPERIMENT = "resnet_regime"
NUM_RUNS = 65
FEW = ("sgd", "alone", "local_sgd-24", "mcser_block-24")
ADVICE = (
    "--parameters 25.6M --steps 450000 --workers 8 --compute-ms 27 --bandwidth 10Gb/s"
)


def done(results: Path) -> Path:
    """The user's own run of the experiment with fewer rows, all of whose runs are done."""
    own = begin(results, EXPERIMENT, NUM_RUNS)
    keep_rows(own, *FEW)
    return own


def rows_of(collection: Collection) -> int:
    frames = collection.find(EXPERIMENT)
    assert frames is not None
    return len(frames.rows)


def said_of(cli: CommandLine, results: Path) -> str:
    return cli.out("advise", *ADVICE.split(), "--results", results)


@cache
def said_of_what_ships() -> str:
    """What the command prints where there is nothing of one's own."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(["advise", *ADVICE.split(), "--results", "nothing"]) == 0
    return out.getvalue()


@pytest.mark.parametrize("num_done", [0, 24])
def test_advice_is_as_with_what_ships_until_all_runs_are_done(
    num_done: int, tmp_path: Path, cli: CommandLine
) -> None:
    begin(tmp_path, EXPERIMENT, num_done)
    said, _, last = said_of(cli, tmp_path).rstrip("\n").rpartition("\n")
    assert last.startswith(f"{EXPERIMENT}: left out ")
    assert f"{num_done} of {NUM_RUNS} " in last
    assert f"{said}\n" == said_of_what_ships()


def test_advice_takes_ones_own_when_it_is_done_and_says_so(
    tmp_path: Path, cli: CommandLine
) -> None:
    own = done(tmp_path)
    said, _, last = said_of(cli, tmp_path).rstrip("\n").rpartition("\n")
    assert last == f"{EXPERIMENT}: took {own}, all runs of which are done"
    assert f"{said}\n" != said_of_what_ships()


def test_pages_that_ship_are_of_what_ships_alone(tmp_path: Path) -> None:
    done(tmp_path)
    assert (
        collection_for(SHIPPED / "answers", tmp_path).folders
        == collection_of(None).folders
    )
    assert rows_of(collection_for(tmp_path / "answers", tmp_path)) == len(FEW)


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder as of a checkout in which someone runs experiments: what ships, by links,
    and beside it some of the user's own, done and not."""
    results = tmp_path / "results"
    (results / "reference").mkdir(parents=True)
    for path in shipped.shipped_paths():
        (results / path.relative_to(SHIPPED)).symlink_to(path)
    monkeypatch.setattr(shipped, "SHIPPED", results)
    begin(results, EXPERIMENT, 24)
    begin(results, "gap_images", 72)
    rename(begin(results, "cmudict", 15, "cmudict_again"), "cmudict_again")
    return results


def test_what_ships_is_told_from_ones_own_in_one_folder(mixed: Path) -> None:
    ours = {folder.resolve() for folder in collection_of(None).folders}
    assert ours
    assert all(folder.is_relative_to(SHIPPED) for folder in ours)
    assert rows_of(collection_of(mixed)) == rows_of(collection_of(None))
    own = [
        folder
        for folder in collection_of(mixed).folders
        if folder.resolve() not in ours
    ]
    assert mixed / "gap_images" in own
    assert mixed / EXPERIMENT not in own


def test_reports_that_ship_name_no_experiments_of_ones_own(mixed: Path) -> None:
    shared = sharing_baseline(read_frames(mixed / "reference" / "cmudict"))
    assert "cmudict_again" not in shared
    assert "cmudict" in sharing_baseline(read_frames(mixed / "cmudict_again"))
    study = read_study(mixed / "speedups")
    beside = [
        each.folder for each in experiments_beside(mixed / "speedups", study.sessions)
    ]
    assert len(beside) > 1
    assert all(folder.is_relative_to(mixed / "reference") for folder in beside)
