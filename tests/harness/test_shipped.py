"""Which of two experiments of one name is taken, the list of what ships, and that tests keep to
it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cser_bench.harness.cli.show import taken_lines
from cser_bench.harness.records.packs import read_pack
from cser_bench.harness.records.shipped import (
    LIST,
    SHIPPED,
    shipped_experiments,
    shipped_folders,
    ships,
    take,
)
from tests.harness.support import ROOT
from tests.only_shipped import ReadsOwnResultsError
from tests.own_runs import begin, rename

EXPERIMENT = "cmudict"
REFERENCE = SHIPPED / "reference" / EXPERIMENT
NUM_RUNS = len(read_pack(REFERENCE))


def taken_of(results: Path, name: str = EXPERIMENT) -> Path:
    """The folder that is taken of a name."""
    folders = take(results).folders
    return next(folder for folder in folders if folder.name == name)


@pytest.mark.parametrize("num_done", [0, 1, NUM_RUNS - 1])
def test_what_ships_is_taken_until_all_planned_runs_of_ones_own_are_done(
    num_done: int, tmp_path: Path
) -> None:
    own = begin(tmp_path, EXPERIMENT, num_done)
    assert taken_of(tmp_path) == REFERENCE
    said = f"cmudict: left out {own}, as {num_done} of {NUM_RUNS} planned runs are done"
    assert taken_lines(take(tmp_path)) == [said]


def test_ones_own_is_taken_when_all_its_runs_are_done(tmp_path: Path) -> None:
    own = begin(tmp_path, EXPERIMENT, NUM_RUNS)
    assert taken_of(tmp_path) == own
    assert taken_lines(take(tmp_path)) == [
        f"cmudict: took {own}, all runs of which are done"
    ]
    [line] = taken_lines(take(tmp_path), only_shipped=True)
    assert "left out" in line
    assert "--output FOLDER" in line


def test_an_experiment_that_does_not_ship_is_taken_by_the_same_rule(
    tmp_path: Path,
) -> None:
    for name, num_done in (("mine", 5), ("also_mine", NUM_RUNS)):
        rename(begin(tmp_path, EXPERIMENT, num_done, name), name)
    folders = take(tmp_path).folders
    assert tmp_path / "also_mine" in folders
    assert tmp_path / "mine" not in folders
    assert folders[1:] == take(None).folders


def test_a_folder_that_was_put_aside_under_another_name_is_not_taken(
    tmp_path: Path,
) -> None:
    begin(tmp_path, EXPERIMENT, NUM_RUNS, "cmudict_before")
    assert take(tmp_path) == take(None)


def test_searches_and_trials_of_the_users_own_are_nothing_to_tell_of(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "cmudict_mine_tuning"
    shutil.copytree(SHIPPED / "cmudict_tuning", folder)
    rename(folder, folder.name)
    assert taken_lines(take(tmp_path)) == []


def test_what_ships_counts_once_where_a_link_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / EXPERIMENT).symlink_to(REFERENCE)
    assert take(tmp_path) == take(None)


def test_the_list_is_what_git_keeps_in_results() -> None:
    """But for experiments that are not done."""
    words = ["git", "ls-files", "results"]
    kept = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    names = set()
    for file in kept.splitlines():
        _, name, *rest = file.split("/")
        names.add(f"{name}/{rest[0]}" if name == "reference" else name)
    names.discard("unfinished")
    listed = [
        line for line in (SHIPPED / LIST).read_text().splitlines() if line[0] != "#"
    ]
    assert listed == sorted(names)


def test_what_is_on_the_list_ships_and_nothing_else(tmp_path: Path) -> None:
    assert ships(SHIPPED / "answers")
    assert ships(ROOT / "results" / "study_tail")
    assert not ships(SHIPPED / "mine")
    assert not ships(tmp_path)
    assert set(shipped_folders()) - set(shipped_experiments()) == {
        SHIPPED / "speedups",
        SHIPPED / "scored_speedups",
    }


@pytest.mark.parametrize("place", ["", "reference"])
def test_no_test_may_list_results(place: str) -> None:
    for listed in (
        os.listdir,
        os.scandir,
        lambda path: list(Path(path).rglob("experiment.json")),
    ):
        with pytest.raises(ReadsOwnResultsError, match="was listed"):
            listed(SHIPPED / place)


@pytest.mark.parametrize("place", ["", "reference"])
def test_no_test_may_read_what_does_not_ship(place: str) -> None:
    with pytest.raises(ReadsOwnResultsError, match="does not ship"):
        (SHIPPED / place / "mine" / "experiment.json").read_text()
    (SHIPPED / "study_tail" / "experiment.json").read_text()
