"""Stages: parts of an experiment that are planned, run, submitted and reported alone, and gone on
from."""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cser_bench.harness.plan.forecast import effort_of, next_stage_sentence
from cser_bench.harness.plan.plan import Plan, make_plan, plan_experiment
from cser_bench.harness.records.store import read_run
from cser_bench.harness.spec.run import ModelSpec
from cser_bench.harness.spec.spec_file import find_spec, load_spec
from cser_bench.harness.workers.attempt import attempt_stacked
from cser_bench.harness.workers.prepare import missing_runs, prepare
from cser_bench.report.build import build
from cser_bench.slurm.campaign import put_submission
from tests.harness.support import (
    ROOT,
    CommandLine,
    Table,
    changed,
    digest_anew,
    job_for,
    small_spec,
    write_spec,
)
from tests.slurm.support import small_profile, submission, write_profile
from tests.tasks.miniatures import MiniatureCIFAR100, write

pytestmark = pytest.mark.whole

STAGES: list[Table] = [
    {"stage": "first", "rows": ["sgd", "cs*"], "seeds": [1]},
    {"stage": "second", "rows": ["sgd", "cs*"]},
    {"stage": "all"},
]


def staged_spec() -> Table:
    """The small experiment of three rows and two seeds, in three stages."""
    return small_spec() | {"stages": STAGES}


def runs_of(plan: Plan) -> set[tuple[str, int]]:
    """The row and seed of each run of a plan."""
    return {(run.row, run.seed) for run in plan.runs}


def test_a_stage_plans_exactly_its_runs_and_knows_what_the_next_one_adds(
    tmp_path: Path,
) -> None:
    path = write_spec(tmp_path, staged_spec())
    whole = plan_experiment(str(path), tmp_path)
    first = whole.at_stage("first")
    second = whole.at_stage("second")
    last = whole.at_stage("all")
    assert runs_of(first) == {("sgd", 1), ("cser", 1)}
    both_seeds = {("sgd", 1), ("cser", 1), ("sgd", 2), ("cser", 2)}
    assert runs_of(second) == both_seeds
    assert last.runs == whole.runs
    assert last.next_stage is None
    assert first.experiment == whole.experiment
    assert first.next_stage
    added = runs_of(second) - runs_of(first)
    assert runs_of(first.next_stage) == added


def test_run_ids_do_not_know_of_stages(tmp_path: Path) -> None:
    spec = staged_spec()
    with_stages, without = (
        plan_experiment(str(write_spec(tmp_path, each)), tmp_path)
        for each in (spec, changed(spec, "stages"))
    )
    ids = [run.run_id for run in with_stages.runs]
    assert [run.run_id for run in without.runs] == ids


@pytest.mark.parametrize("experiment", ["cifar100", "imagenet"])
def test_the_first_stage_of_the_papers_experiments_compares_methods_within_a_day(
    experiment: str, tmp_path: Path
) -> None:
    """A day by the fastest published step, on eight V100s with links inside one machine."""
    whole = plan_experiment(experiment, tmp_path)
    first = whole.at_stage("first")
    algorithms = {run.config.algorithm for run in first.runs}
    assert algorithms >= {"sgd", "ef_sgd", "mcser"}
    rows = {run.row for run in first.runs}
    assert whole.experiment.baseline in rows
    assert {run.seed for run in first.runs} == {1}
    hours, _ = effort_of(first, 0.0).hours(0.0)
    assert hours <= 24
    added = next_stage_sentence(first)
    words = r"the next stage, second, adds \d+ runs: \d+ to \d+ hours on 8 GPUs, about [\d,]+ to [\d,]+ dollars"
    assert added
    assert re.fullmatch(words, added), added
    assert whole.at_stage("all").runs == whole.runs


def test_an_experiment_that_is_like_one_with_stages_has_none(tmp_path: Path) -> None:
    text = 'like = "imagenet"\nname = "other"\ntitle = "Other"\n'
    (tmp_path / "other.toml").write_text(text)
    spec = load_spec(tmp_path / "other.toml")
    assert spec.stages == []
    assert load_spec(find_spec("imagenet")).stages


REFUSED: list[tuple[list[Table], str]] = [
    ([{"stage": "first", "rows": ["mcsr"]}], "names 'mcsr', which no row is called"),
    ([{"stage": "first", "seeds": [7]}], "names the seed 7, which no row has"),
    ([STAGES[0], {"stage": "next", "rows": ["sgd"]}], "lacks row 'cser' at seed 1"),
    ([STAGES[2], {"stage": "next"}], "the stage 'next' adds no run"),
    ([STAGES[0], STAGES[0]], "two stages are named 'first'"),
]


@pytest.mark.parametrize(("stages", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_stages_that_lead_nowhere_are_refused(
    stages: list[Table], said: str, tmp_path: Path, cli: CommandLine
) -> None:
    path = write_spec(tmp_path, staged_spec() | {"stages": stages})
    assert said in cli.refused("plan", path, "--results", tmp_path)


def test_an_unknown_stage_is_refused_in_a_sentence(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = write_spec(tmp_path, staged_spec())
    for name in ("plan", "run", "status", "preflight"):
        said = cli.refused(name, path, "--stage", "third", "--results", tmp_path)
        assert said == "small has no stage 'third'; its stages are first, second, all"
    rows = ["--stage", "first", "--rows", "ef_sgd"]
    said = cli.refused("run", path, *rows, "--results", tmp_path)
    assert "the stage first of small has no run of these rows" in said
    path = write_spec(tmp_path, changed(staged_spec(), "stages"))
    said = cli.refused("plan", path, "--stage", "first", "--results", tmp_path)
    assert said == "small has no stages; leave --stage out"


def test_commands_run_a_stage_and_go_on_from_it_without_repeating(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = write_spec(tmp_path, staged_spec())
    results = tmp_path / "results"
    words = [path, "--results", results]
    planned = cli.out("plan", *words, "--stage", "first")
    assert "2 runs; " in planned
    assert "ef_sgd" not in planned
    assert "the next stage, second, adds 2 runs: " in planned
    said = cli.out("run", *words, "--stage", "first", "--jobs", "1")
    assert "all 2 runs of stage first of small are done" in said
    assert "the next stage, second, adds 2 runs: " in said
    page = build(results / "small").read_text()
    assert "2 of 6 runs are done" in page
    assert "| 1 of 2 |" in page
    assert "0 of 2" not in page
    assert "Not run yet: 1 row" in page
    assert "(EF-SGD 1)" in page
    lines = said.splitlines()
    (sentence,) = (line for line in lines if line.startswith("the next stage, "))
    assert f"none diverged.\n\nT{sentence[1:]}.\n\n" in page
    files = list(results.glob("small/*/result.json"))
    times = [file.stat().st_mtime_ns for file in files]
    said = cli.out("run", *words, "--stage", "second", "--jobs", "1")
    runs = [line for line in said.splitlines() if line.startswith("[")]
    ended = [line.partition("] ")[2] for line in runs]
    assert sorted(ended) == ["cser seed 2: done", "sgd seed 2: done"]
    assert [file.stat().st_mtime_ns for file in files] == times
    page = build(results / "small").read_text()
    assert "The next stage, all, adds 2 runs: " in page
    assert "4 done; " in cli.out("status", *words, "--stage", "second")
    assert "4 done, 2 missing; " in cli.out("status", *words)
    cli.out("run", *words, "--jobs", "1")
    page = build(results / "small").read_text()
    assert "next stage" not in page


@pytest.fixture
def idle_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A queue with no job in it."""
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    yield


@pytest.mark.usefixtures("idle_slurm")
def test_what_is_left_of_a_stage_is_submitted_as_that_stage(
    tmp_path: Path, cli: CommandLine
) -> None:
    spec = write_spec(tmp_path, staged_spec())
    profile = write_profile(tmp_path, small_profile())
    words = ["submit", spec, "--results", tmp_path / "results", "--dry-run"]
    first = cli.out(*words, "--cluster", profile, "--stage", "first")
    assert f"to submit on {profile}: 2 runs" in first
    assert "adds 2 runs" in first
    folder = tmp_path / "results" / "small"
    folder.mkdir(parents=True)
    gone = submission(folder, "gone", cluster=str(profile), stage="first")
    put_submission(folder, 0, gone)
    assert f"to submit on {profile}: 2 runs" in cli.out(*words)
    second = cli.out(*words, "--stage", "second")
    assert f"to submit on {profile}: 4 runs" in second


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ([], ['preflight cifar100 --stage "first"', 'run cifar100 --stage "first"']),
        (["STAGE=second"], ['run cifar100 --stage "second"']),
        (["CLUSTER=mine"], ['submit cifar100 --stage "first" --cluster "mine"']),
        (["SEEDS=1"], ["run cifar100  --device"]),
    ],
    ids=["alone", "a stage", "a cluster", "seeds"],
)
def test_make_runs_the_first_stage_unless_another_part_is_named(
    given: list[str], parts: list[str]
) -> None:
    words = ["make", "--no-print-directory", "-n", "reproduce-cifar100", *given]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    said = done.stdout
    for part in parts:
        assert part in said


def test_cifar100_in_miniature_has_a_table_and_speed_ups_after_its_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs are those of stacked workers whose records say that each had a GPU."""
    release = MiniatureCIFAR100(25, 15, num_classes=5)
    write(tmp_path / "data" / "cifar-100-python", release.pickled)
    monkeypatch.setattr("cser_bench.harness.tasks.cifar100.TASK", release.task)
    monkeypatch.setattr(
        "cser_bench.harness.plan.rows.why_too_short", lambda row, foreseen: None
    )
    spec = load_spec(find_spec("cifar100"))
    training = {"num_workers": 2, "batch_size": 2, "num_epochs": 2}
    schedule = {"milestones": [1], "warmup_epochs": 0.5}
    options = {"depth": 10, "width": 1}
    model = ModelSpec(name=spec.model.name, options=options)
    small = {
        "model": model,
        "training": spec.training.model_copy(update=training),
        "schedule": spec.schedule.model_copy(update=schedule),
    }
    whole = make_plan(spec.model_copy(update=small), tmp_path)
    first = whole.at_stage("first")
    missing = prepare(first, tmp_path)
    assert len(first.runs) == 7
    assert len(missing) == 7
    folder = tmp_path / "cifar100"
    for run in first.runs:
        data = tmp_path / "data"
        job = job_for(run.config, folder, data=data, experiment="cifar100")
        on_a_gpu = {"backend": "nccl", "accelerator": "A GPU"}
        attempt = job.attempt.model_copy(update=on_a_gpu)
        assert attempt_stacked(replace(job, run=run, attempt=attempt))
    assert missing_runs(first, folder) == []
    second = whole.at_stage("second")
    num_added = len(second.runs) - len(first.runs)
    assert len(missing_runs(second, folder)) == num_added
    page = build(folder).read_text()
    assert "7 of 1,640 runs are done" in page
    assert "0 of 5" not in page
    assert page.count(" of 5 |") == 6
    assert "**1 of 5**" in page
    assert "Not run yet: 321 rows" in page
    assert "](figures/hours.png)" in page
    assert (folder / "figures/hours.png").exists()
    with (folder / "csv" / "hours.csv").open(newline="") as file:
        lines = {line["row"]: line for line in csv.DictReader(file)}
    rows = {run.row for run in first.runs}
    assert lines.keys() == rows
    trained = {}
    for run in first.runs:
        result = read_run(folder / run.run_id).result
        assert result is not None
        seconds = result.clock_seconds
        own = seconds["data"] + seconds["compute"] + seconds["communicate"]
        trained[run.row] = own
    for row, line in lines.items():
        speed_up = trained["sgd-lr0.1"] / trained[row]
        hours = trained[row] / 3600
        assert float(line["hours"]) == pytest.approx(hours)
        assert float(line["speed_up"]) == pytest.approx(speed_up)
    # One run of the seven on a cluster, whose network is another.
    file = folder / first.runs[-1].run_id / "run.json"
    text = file.read_text()
    file.write_text(text.replace('"stacked"', '"slurm"'))
    digest_anew(file.parent)
    page = build(folder).read_text()
    assert "so their hours are not compared" in page
    assert "## Hours" not in page
