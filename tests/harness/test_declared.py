"""When contrasts were declared: the recorded dates are those of commits, and plans keep them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from cser_bench.harness.measures.declared import (
    begun_in_words,
    run_files,
    runs_begun,
    starts_of,
)
from cser_bench.harness.plan.plan import plan_experiment
from cser_bench.harness.records.experiment import Contrast, Experiment, read_experiment
from cser_bench.harness.records.provenance import new_attempt
from cser_bench.harness.records.shipped import shipped_experiments
from cser_bench.harness.records.store import VERSION, RunFile, write_record
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.spec_file import EXPERIMENTS, find_spec
from cser_bench.harness.workers.prepare import write_experiment
from tests.harness.support import ROOT, CommandLine, Table, small_spec

RESULTS = ROOT / "results"
CONTRAST = {
    "row": "cser",
    "reference": "sgd",
    "kind": "superiority",
    "question": "Is CSER better?",
}
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
        old = row["row"]
        row["row"] = changes.get(old, old)
    return spec | {"contrasts": list(contrasts)}


def at(hour: int) -> str:
    """That hour of a made-up day, as records write it."""
    return f"2026-01-02T{hour:02}:00:00+00:00"


def begin(
    folder: Path, experiment: Experiment, row: str, hour: int, name: str | None = None
) -> None:
    """Records of a begun run for each seed of the row, which has the other name in them where one
    is given."""
    (run_ids,) = (each.runs for each in experiment.rows if each.row == row)
    attempt = new_attempt("stacked", "stacked", torch.device("cpu"))
    attempts = [
        attempt.model_copy(update={"started_at": at(start)})
        for start in (hour, hour + 5)
    ]
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
    """Return when each contrast was declared, and how many runs had begun by then."""
    experiment = read_experiment(folder)
    starts = starts_of(run_files(folder))
    runs = {row.row: row.runs.values() for row in experiment.rows}
    return [
        (
            each.declared_at,
            begun_in_words(
                runs_begun(each, runs[each.row], runs[each.reference], starts)
            ),
        )
        for each in experiment.contrasts or []
    ]


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_the_dates_that_ship_are_those_of_commits_with_the_contrast(
    folder: Path,
) -> None:
    """Not where the history is not at hand, as in a shallow clone. Some specs have left since."""
    name = read_experiment(folder).name
    try:
        path = find_spec(name)
    except SpecError:
        path = EXPERIMENTS / f"{name}.toml"
    for contrast in read_experiment(folder).contrasts or []:
        assert contrast.declared_in is not None
        words = ["git", "show", "-s", "--format=%ct", contrast.declared_in]
        shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if shown.returncode:
            pytest.skip("the history of the spec is not at hand")
        time = subprocess.run(
            [
                "date",
                "-u",
                "-d",
                f"@{shown.stdout.strip()}",
                "+%Y-%m-%dT%H:%M:%S+00:00",
            ],
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


def planned(spec: Path, *contrasts: Table, **names: str) -> Path:
    """Write the spec and its plan, as `harness run` does, and return the experiment's folder."""
    table = with_contrasts(*contrasts, **names)
    spec.write_text(tomli_w.dumps(table))
    results = spec.parents[1] / "results"
    return write_experiment(plan_experiment(str(spec), results), results)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The time at which plans are written: its last entry."""
    times = [at(8)]
    monkeypatch.setattr("cser_bench.harness.workers.prepare.now", lambda: times[-1])
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
    assert (folder / "experiment.json").read_bytes() == written
    assert capsys.readouterr().out == ""
    planned(spec, other, CONTRAST)
    assert declared(folder) == [
        (at(8), "before its runs"),
        (at(12), "after 4 of 4 runs"),
    ]
    assert capsys.readouterr().out == (
        "small: the superiority of cser to sgd is declared after 4 of 4 runs: it gets an interval "
        "and no verdict\n"
    )
    clock.append(at(14))
    planned(spec, CONTRAST | {"question": "Is it?"}, other)
    times = [time for time, _ in declared(folder)]
    assert times == [at(12), at(8)]
    assert capsys.readouterr().out == ""


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
        (time, _), *_ = declared(folder)
        assert time == clock[-1]


def test_a_contrast_of_a_record_without_dates_stays_without_one(
    spec: Path, clock: list[str]
) -> None:
    spec.write_text(tomli_w.dumps(with_contrasts(CONTRAST)))
    folder, _ = recorded(spec)
    planned(spec, CONTRAST, CONTRAST | {"row": "ef_sgd"})
    times = [time for time, _ in declared(folder)]
    assert times == [None, at(8)]


def test_old_questions_keep_the_p_that_their_record_has(spec: Path) -> None:
    """Questions of exponents are no longer evaluated, so a plan has no p of its own."""
    question = {"rows": ["sgd"], "of": "size", "question": "Does it shrink?"}
    table = with_contrasts() | {"exponents": [question]}
    results = spec.parents[1] / "results"

    def written() -> list[float | None]:
        spec.write_text(tomli_w.dumps(table))
        folder = write_experiment(plan_experiment(str(spec), results), results)
        return [each.p for each in read_experiment(folder).exponents or []]

    assert written() == [None]
    path = results / "small" / "experiment.json"
    record = read_experiment(path.parent)
    (asked,) = record.exponents or []
    known = record.model_copy(
        update={"exponents": [asked.model_copy(update={"p": 0.25})]}
    )
    write_record(path, known)
    assert written() == [0.25]
    # Another question has another p.
    question["of"] = "rounds"
    assert written() == [None]


def test_a_spec_cannot_say_itself_when_a_contrast_was_declared(
    spec: Path, cli: CommandLine
) -> None:
    assert set(Contrast.model_fields) >= {
        "declared_at",
        "declared_in",
        "is_verdict_kept",
    }
    for key, value in (("declared_at", at(1)), ("is_verdict_kept", True)):
        changed = CONTRAST | {key: value}
        spec.write_text(tomli_w.dumps(with_contrasts(changed)))
        assert key in cli.refused("plan", spec)
