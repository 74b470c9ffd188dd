"""When contrasts were declared: by made-up git histories of their specs, and by plans that are
written again."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from cser_bench.harness.measures.declared import in_words, run_files, seen_runs, starts_of
from cser_bench.harness.plan.history import Asked, versions_of
from cser_bench.harness.plan.plan import plan_experiment
from cser_bench.harness.records.experiment import Contrast, Experiment, read_experiment
from cser_bench.harness.records.provenance import new_attempt
from cser_bench.harness.records.shipped import shipped_experiments
from cser_bench.harness.records.store import VERSION, RunFile, write_record
from cser_bench.harness.spec.spec_file import find_spec
from cser_bench.harness.workers.launch import write_experiment
from tests.harness.support import ROOT, CommandLine, Table, changed, small_spec

RESULTS = ROOT / "results"
CONTRAST = {"row": "cser", "reference": "sgd", "kind": "superiority", "question": "Is CSER better?"}
SHIPPED = [
    folder
    for folder in shipped_experiments()
    if '"declared_in"' in (folder / "experiment.json").read_text()
]


def with_contrasts(*contrasts: Table, **changes: Any) -> Table:
    """A spec of three rows at two seeds; a row has the other name where one is given."""
    spec = small_spec()
    spec["statistics"] |= {"declared": "some day"}
    for row in spec["rows"]:
        row["row"] = changes.get(row["row"], row["row"])
    return spec | {"contrasts": list(contrasts)}


def at(hour: int) -> str:
    """That hour of a made-up day, as records write it."""
    return f"2026-01-02T{hour:02}:00:00+00:00"


def commit(path: Path, spec: Table, hour: int, *others: Path) -> None:
    """Commit the spec, in a repository of its own, at that hour by a clock that is two hours
    ahead."""
    path.write_text(tomli_w.dumps(spec))
    time = f"2026-01-02T{hour + 2:02}:00:00+02:00"
    person = {
        f"GIT_{who}_{what}": "nobody"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a version"]):
        environment = {**os.environ, **person, "GIT_AUTHOR_DATE": time, "GIT_COMMITTER_DATE": time}
        subprocess.run(["git", *words], cwd=path.parent, env=environment, check=True)


def begin(
    folder: Path, experiment: Experiment, row: str, hour: int, name: str | None = None
) -> None:
    """Records of a begun run for each seed of the row, which has the other name in them where one
    is given."""
    (run_ids,) = (each.runs for each in experiment.rows if each.row == row)
    attempt = new_attempt("stacked", "stacked", torch.device("cpu"))
    attempts = [attempt.model_copy(update={"started_at": at(start)}) for start in (hour, hour + 5)]
    for seed, run_id in run_ids.items():
        made = RunFile(
            version=VERSION,
            run_id=run_id,
            experiment=experiment.name,
            row=name or row,
            seed=int(seed),
            config={},
            attempts=attempts,
        )
        write_record(folder / run_id / "run.json", made)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "repository").mkdir()
    return tmp_path / "repository" / "spec.toml"


def recorded(spec: Path) -> tuple[Path, Experiment]:
    """The folder and the record of the spec's experiment, as plans without dates wrote it."""
    results = spec.parents[1] / "results"
    experiment = plan_experiment(str(spec), results).experiment
    write_record(results / "small" / "experiment.json", experiment)
    return results / "small", experiment


def declared(folder: Path) -> list[tuple[str | None, str]]:
    """Of each contrast when it was declared, and how many runs had begun by then."""
    experiment, starts = read_experiment(folder), starts_of(run_files(folder))
    runs = {row.row: row.runs.values() for row in experiment.rows}
    return [
        (each.declared_at, in_words(seen_runs(each, runs[each.row], runs[each.reference], starts)))
        for each in experiment.contrasts or []
    ]


# By git history


def test_a_contrast_counts_from_the_commit_that_brought_it(spec: Path, cli: CommandLine) -> None:
    """Of two seeds and rows SGD's had begun at the second commit, and CSER's at the third alone."""
    other = CONTRAST | {"row": "ef_sgd"}
    commit(spec, with_contrasts(), 8)
    commit(spec, with_contrasts(other), 10)
    commit(spec, with_contrasts(other, CONTRAST), 12)
    folder, experiment = recorded(spec)
    begin(folder, experiment, "sgd", 9)
    begin(folder, experiment, "cser", 11)
    begin(folder, experiment, "ef_sgd", 13)
    printed = cli.out("declared", folder)
    assert declared(folder) == [
        (at(10), "after 2 of 4 runs, one row's"),
        (at(12), "after 4 of 4 runs"),
    ]
    assert "0 before their runs, 1 after runs of one row, 1 after runs of both" in printed
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=spec.parent, capture_output=True, text=True
    ).stdout.strip()
    first, last = read_experiment(folder).contrasts or []
    assert last.declared_in == head and first.declared_in not in (None, head)


def test_a_run_counts_from_its_first_attempt_on(spec: Path, cli: CommandLine) -> None:
    """It is on at the time of the commit, and goes on later."""
    commit(spec, with_contrasts(CONTRAST), 10)
    folder, experiment = recorded(spec)
    begin(folder, experiment, "sgd", 9)
    begin(folder, experiment, "cser", 10)
    cli.out("declared", folder)
    assert declared(folder) == [(at(10), "after 2 of 4 runs, one row's")]


def test_a_row_that_was_renamed_is_known_by_its_runs(spec: Path, cli: CommandLine) -> None:
    commit(spec, with_contrasts(CONTRAST | {"row": "old"}, cser="old"), 8)
    commit(spec, with_contrasts(CONTRAST), 12)
    folder, experiment = recorded(spec)
    begin(folder, experiment, "cser", 9, name="old")
    cli.out("declared", folder)
    assert declared(folder) == [(at(8), "before its runs")]


def test_a_name_that_was_another_rows_is_not_taken_for_a_renamed_one(
    spec: Path, cli: CommandLine
) -> None:
    """CSER's runs were made as `ef_sgd` in some other experiment, which is another row here."""
    of_another, own = CONTRAST | {"row": "ef_sgd"}, CONTRAST | {"reference": "ef_sgd"}
    commit(spec, with_contrasts(of_another, own), 8)
    commit(spec, with_contrasts(of_another, own, CONTRAST), 12)
    folder, experiment = recorded(spec)
    begin(folder, experiment, "cser", 9, name="ef_sgd")
    cli.out("declared", folder)
    assert declared(folder)[2] == (at(12), "after 2 of 4 runs, one row's")


def test_a_contrast_that_was_withdrawn_counts_from_when_it_came_back(
    spec: Path, cli: CommandLine
) -> None:
    commit(spec, with_contrasts(CONTRAST), 8)
    commit(spec, with_contrasts(), 9)
    commit(spec, with_contrasts(CONTRAST), 12)
    commit(spec, with_contrasts(CONTRAST | {"question": "Is it?"}), 14)
    folder, _ = recorded(spec)
    cli.out("declared", folder)
    assert declared(folder)[0][0] == at(12)


def test_another_margin_is_another_contrast_also_where_the_margin_is_taken_over(
    spec: Path, cli: CommandLine
) -> None:
    base = spec.with_name("base.toml")
    margin = small_spec()["statistics"]["margin"]
    commit(base, changed(with_contrasts(), "statistics.margin", margin / 2), 8)
    like: Table = {
        "format": 1,
        "like": "base",
        "name": "small",
        "statistics": {"declared": "some day"},
    }
    commit(spec, like | {"contrasts": [CONTRAST]}, 9)
    commit(base, changed(with_contrasts(), "statistics.margin", margin), 10)
    commit(spec, like | {"contrasts": [CONTRAST], "title": "another"}, 11)
    assert [version.contrasts for version in versions_of(spec)] == [
        [Asked("cser", "sgd", "superiority", margin)],
        [Asked("cser", "sgd", "superiority", margin / 2)],
    ]
    folder, _ = recorded(spec)
    cli.out("declared", folder)
    assert declared(folder)[0][0] == at(11)


def test_a_spec_that_was_moved_is_followed_and_a_copy_begins_with_itself(
    spec: Path, cli: CommandLine
) -> None:
    commit(spec, with_contrasts(CONTRAST), 8)
    moved = spec.rename(spec.with_name("moved.toml"))
    commit(moved, with_contrasts(CONTRAST) | {"title": "moved"}, 9)
    copied = spec.with_name("copied.toml")
    commit(copied, with_contrasts(CONTRAST) | {"title": "copied"}, 10)
    assert [version.at for version in versions_of(moved)] == [at(9), at(8)]
    assert [version.at for version in versions_of(copied)] == [at(10)]


def test_only_dates_are_written_and_a_verdict_is_kept_where_that_is_asked(
    spec: Path, cli: CommandLine
) -> None:
    early, late = CONTRAST | {"row": "ef_sgd"}, CONTRAST
    commit(spec, with_contrasts(early), 8)
    commit(spec, with_contrasts(early, late), 12)
    folder, experiment = recorded(spec)
    begin(folder, experiment, "sgd", 9)
    begin(folder, experiment, "cser", 9)
    before = json.loads((folder / "experiment.json").read_text())
    cli.out("declared", "--keep-verdicts", folder)
    after = json.loads((folder / "experiment.json").read_text())
    dates = [
        {key: each.pop(key, None) for key in ("declared_at", "is_verdict_kept")}
        for each in after["contrasts"]
    ]
    assert dates == [
        {"declared_at": at(8), "is_verdict_kept": None},
        {"declared_at": at(12), "is_verdict_kept": True},
    ]
    for contrast in after["contrasts"]:
        del contrast["declared_in"]
    assert after == before and list(after) == list(before)
    # What has a date keeps it, and with it that its verdict is kept.
    written = (folder / "experiment.json").read_bytes()
    cli.out("declared", folder)
    assert (folder / "experiment.json").read_bytes() == written


def test_what_stands_in_no_commit_gets_no_date(spec: Path, cli: CommandLine) -> None:
    commit(spec, with_contrasts(), 8)
    spec.write_text(tomli_w.dumps(with_contrasts(CONTRAST)))
    folder, _ = recorded(spec)
    assert "cser against sgd, superiority: not known, declared in no commit" in cli.out(
        "declared", folder
    )
    assert declared(folder) == [(None, "not known")]


def test_a_spec_without_a_history_is_refused_in_one_sentence(spec: Path, cli: CommandLine) -> None:
    spec.write_text(tomli_w.dumps(with_contrasts(CONTRAST)))
    folder, _ = recorded(spec)
    assert "stands in no commit" in cli.refused("declared", folder)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_the_dates_that_ship_are_those_of_commits_with_the_contrast(folder: Path) -> None:
    """Not where the history is not at hand, as in a shallow clone."""
    path = find_spec(read_experiment(folder).name)
    for contrast in read_experiment(folder).contrasts or []:
        assert contrast.declared_in is not None
        words = ["git", "show", "-s", "--format=%ct", contrast.declared_in]
        shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if shown.returncode:
            pytest.skip("the history of the spec is not at hand")
        time = subprocess.run(
            ["date", "-u", "-d", f"@{shown.stdout.strip()}", "+%Y-%m-%dT%H:%M:%S+00:00"],
            capture_output=True,
            text=True,
        )
        assert contrast.declared_at == time.stdout.strip()
        place = path.resolve().relative_to(ROOT)
        text = subprocess.run(
            ["git", "show", f"{contrast.declared_in}:{place}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert (
            f'row = "{contrast.row}"\nreference = "{contrast.reference}"\nkind = "{contrast.kind}"'
            in text
        )


# By plans


def planned(spec: Path, *contrasts: Table, **names: str) -> Path:
    """Write the spec and its plan, as `harness run` does, and return the experiment's folder."""
    spec.write_text(tomli_w.dumps(with_contrasts(*contrasts, **names)))
    results = spec.parents[1] / "results"
    return write_experiment(plan_experiment(str(spec), results), results)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The time at which plans are written: its last entry."""
    times = [at(8)]
    monkeypatch.setattr("cser_bench.harness.workers.launch.now", lambda: times[-1])
    return times


def test_a_plan_declares_what_its_record_did_not_have_and_the_first_record_stands(
    spec: Path, clock: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = CONTRAST | {"row": "ef_sgd"}
    folder = planned(spec, other)
    begin(folder, read_experiment(folder), "sgd", 9)
    begin(folder, read_experiment(folder), "cser", 9)
    written = (folder / "experiment.json").read_bytes()
    clock.append(at(12))
    planned(spec, other)
    assert (folder / "experiment.json").read_bytes() == written and capsys.readouterr().out == ""
    planned(spec, other, CONTRAST)
    assert declared(folder) == [(at(8), "before its runs"), (at(12), "after 4 of 4 runs")]
    assert capsys.readouterr().out == (
        "small: the superiority of cser to sgd is declared after 4 of 4 runs: it gets an interval "
        "and no verdict\n"
    )
    clock.append(at(14))
    planned(spec, CONTRAST | {"question": "Is it?"}, other)
    assert [time for time, _ in declared(folder)] == [
        at(12),
        at(8),
    ] and capsys.readouterr().out == ""


def test_a_renamed_row_keeps_its_date_and_another_margin_or_kind_does_not(
    spec: Path, clock: list[str]
) -> None:
    planned(spec, CONTRAST | {"row": "old"}, cser="old")
    clock.append(at(12))
    folder = planned(spec, CONTRAST)
    assert declared(folder)[0][0] == at(8)
    for change in ({"margin": 0.0123}, {"margin": 0.0123, "kind": "equivalence"}):
        clock.append(at(len(clock) + 12))
        planned(spec, CONTRAST | change)
        assert declared(folder)[0][0] == clock[-1]


def test_a_contrast_of_a_record_without_dates_stays_without_one(
    spec: Path, clock: list[str]
) -> None:
    spec.write_text(tomli_w.dumps(with_contrasts(CONTRAST)))
    folder, _ = recorded(spec)
    planned(spec, CONTRAST, CONTRAST | {"row": "ef_sgd"})
    assert [time for time, _ in declared(folder)] == [None, at(8)]


def test_a_spec_cannot_say_itself_when_a_contrast_was_declared(
    spec: Path, cli: CommandLine
) -> None:
    assert set(Contrast.model_fields) >= {"declared_at", "declared_in", "is_verdict_kept"}
    for key, value in (("declared_at", at(1)), ("is_verdict_kept", True)):
        spec.write_text(tomli_w.dumps(with_contrasts(CONTRAST | {key: value})))
        assert key in cli.refused("plan", spec)
