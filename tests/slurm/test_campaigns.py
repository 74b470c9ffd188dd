"""Campaigns on a real Slurm: arrays, requeues, dead nodes, failures, time limits, snapshots;
results as if local."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from cser_bench.harness.plan.plan import Plan, make_plan
from cser_bench.harness.records.store import (
    Heartbeat,
    RecordError,
    read_optional,
    read_run,
)
from cser_bench.harness.spec.run import PlannedRun
from cser_bench.harness.spec.spec_file import load_spec
from cser_bench.harness.workers.attempt import attempt_stacked
from cser_bench.report.accuracy_report import build_report
from cser_bench.report.frame import read_frames
from cser_bench.slurm.campaign import queued_jobs, read_campaign, statuses
from cser_bench.slurm.requeue import read_attempts
from tests.harness.support import (
    Table,
    changed,
    comparable,
    job_for,
    small_spec,
    write_spec,
)
from tests.slurm.local_cluster import LocalCluster
from tests.slurm.support import (
    one_run,
    slow_checkout,
    slurm_command,
    small_profile,
    submitted,
    wait_until,
    write_profile,
)

pytestmark = [
    pytest.mark.usefixtures("slurm_conf"),
    pytest.mark.timeout(600),
    pytest.mark.whole,
]


@dataclass(frozen=True)
class Trial:
    """An experiment in a folder of its own, with the profile to submit it by."""

    folder: Path
    spec: Path
    profile: Path
    plan: Plan

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def records(self) -> Path:
        return self.results / "small"

    @property
    def words(self) -> list[str | Path]:
        """Arguments of `submit`."""
        return [self.spec, "--cluster", self.profile, "--results", self.results]

    @property
    def only_run(self) -> Path:
        (run,) = self.plan.runs
        return self.records / run.run_id

    def submit(self, *words: str, checkout: Path) -> str:
        """Submit without a look from a node; the id of the only job."""
        submitted(*self.words, "--no-preflight", *words, checkout=checkout)
        (job,) = read_campaign(self.records).submissions[-1].jobs
        return job

    def step(self) -> int:
        """How far the only run is."""
        try:
            beat = read_optional(self.only_run / "heartbeat.json", Heartbeat)
        except RecordError:
            return 0
        return beat.step if beat else 0


def trial(folder: Path, spec: Table, profile: Table) -> Trial:
    folder.mkdir(exist_ok=True)
    path = write_spec(folder, spec)
    return Trial(
        folder, path, write_profile(folder, profile), make_plan(load_spec(path), folder)
    )


def as_if_local(run: PlannedRun, folder: Path) -> object:
    """What the run gives with stacked workers."""
    job = job_for(run.config, folder, checkpoint_minutes=60.0)
    assert attempt_stacked(job)
    return comparable(job.folder)


def pending(job: str) -> bool:
    return (queued_jobs() or {}).get(job) == "PENDING"


def left_the_queue(made: Trial) -> bool:
    return not {"queued", "running"} & {
        run.state for run in statuses(made.records, made.plan.runs)
    }


SLOW_SECONDS = 0.1
"""Seconds that each step takes in the slow checkout."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slow_checkout(tmp_path_factory.mktemp("slow"), SLOW_SECONDS)


@pytest.fixture(scope="module")
def overtime(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """A run that takes longer than its time limit of two minutes, submitted before the others,
    which it disturbs little.

    Its 40 steps are slow, so that workers ask each other at every one whether to stop, and alone
    take longer than the limit. On a busy machine most of a minute passes before a process listens
    for signals: one that came earlier would end it, so that a limit of a minute is too short. The
    job is held while its code is edited.
    """
    folder = tmp_path_factory.mktemp("overtime")
    slow = slow_checkout(folder / "checkout", 3.0)
    limits = {
        "time_limit_minutes": 2,
        "warning_seconds": 10,
        "checkpoint_minutes": 60.0,
        "max_retries": 20,
    }
    made = trial(folder, one_run("cser"), small_profile({"hold": True}, **limits))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        job = made.submit(checkout=slow)
        for path in (
            slow / "cser_bench/harness/tasks/blobs.py",
            slow / "cser_bench/slurm/job.py",
        ):
            path.write_text(
                "raise ZeroDivisionError('this was edited after the submission')\n"
            )
        cluster.call("scontrol", "release", job)
    return made


# An array of four runs, of which one fails at first


@pytest.fixture(scope="module")
def array(
    cluster: LocalCluster, overtime: Trial, tmp_path_factory: pytest.TempPathFactory
) -> Trial:
    """Four runs of two workers on two nodes, two at once, of which the last cannot save; submitted,
    and twice.

    As where sbatch exports nothing, and by two arrays, since the cluster takes none of more than
    three tasks.
    """
    spec = small_spec()
    made = trial(
        tmp_path_factory.mktemp("array"),
        spec | {"rows": spec["rows"][:2]},
        small_profile(),
    )
    for run in made.plan.runs:
        if run.seed == 2 and run.row != "sgd":
            (made.records / run.run_id).mkdir(parents=True)
            (made.records / run.run_id / "checkpoint").write_text(
                "a file where the folder should be"
            )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        patch.setenv("SBATCH_EXPORT", "NONE")
        said = submitted(*made.words)
        assert "preflight: all well" in said
        assert re.search(r"submitted 4 runs as job \d+, \d+\n", said)
        assert "nothing to submit: " in submitted(*made.words)
        wait_until(lambda: left_the_queue(made), "the array has ended", 400.0)
    return made


def test_siblings_of_a_run_that_raises_go_on_and_status_and_report_say_so(
    array: Trial, tmp_path: Path
) -> None:
    runs = statuses(array.records, array.plan.runs)
    assert sorted(run.state for run in runs) == ["done", "done", "done", "failed"]
    for run in runs:
        if run.state == "failed":
            assert run.detail.startswith("bug: ")
            assert "Not a directory" in run.detail
            assert run.log
            assert "NotADirectoryError" in Path(run.log).read_text()
            assert len(read_attempts(run.folder)) == 1  # and was not tried again
    first, second = read_campaign(array.records).submissions
    assert (len(first.jobs), len(second.jobs)) == (3, 1)
    # A record says where a run was
    for name, job in zip(first.runs, first.jobs, strict=True):
        attempt = read_run(array.records / name).run.attempts[0]
        assert attempt.launch == "slurm"
        assert attempt.backend == "gloo"
        assert attempt.slurm is not None
        assert (attempt.slurm["job"], attempt.slurm["SLURM_NTASKS"]) == (job, "2")
        assert len(set(attempt.slurm["nodes"].split(","))) == 2
        assert attempt.command.startswith("python -m harness submit ")
    build_report(read_frames(array.records), tmp_path)
    assert "3 of 4 runs are done" in (tmp_path / "report.md").read_text()


def test_resubmitting_does_what_is_left_and_all_is_as_if_it_were_local(
    array: Trial, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in array.records.glob("*/result.json")}
    for path in array.records.glob("*/checkpoint"):
        if path.is_file():
            path.unlink()
    done = slurm_command(
        "submit",
        array.spec,
        "--results",
        array.results,
        "--yes",
        "--no-preflight",
        "--wait",
    )
    assert done.returncode == 0, done.stderr
    assert "submitted 1 run as job" in done.stdout
    assert {path: path.read_bytes() for path in before} == before
    for run in array.plan.runs:
        folder = array.records / run.run_id
        assert comparable(folder) == as_if_local(run, tmp_path)
        assert not (folder / "failure.json").exists()


def test_run_whose_node_dies_goes_on_and_a_cancelled_one_stays_so_until_it_is_resubmitted(
    cluster: LocalCluster, checkout: Path, tmp_path: Path
) -> None:
    made = trial(tmp_path, one_run("ef_sgd", num_epochs=5), small_profile())
    job = made.submit(checkout=checkout)
    wait_until(lambda: made.step() > 40, "there is a checkpoint")
    slurm = read_run(made.only_run).run.attempts[0].slurm
    assert slurm is not None
    node = slurm["nodes"].split(",")[1]
    cluster.kill_node(node, noticed=True)
    try:
        wait_until(lambda: pending(job), "the job is requeued")
        assert not (made.only_run / "result.json").exists()
    finally:
        cluster.start_node(node)
    before = made.step()
    cluster.start_now(job)
    wait_until(lambda: made.step() > before, "it trains again")
    cluster.call("scancel", job)
    wait_until(lambda: left_the_queue(made), "the job has ended")
    first, second = read_attempts(made.only_run)
    assert first.attempt != second.attempt
    assert second.resumed_from_step > 0
    (run,) = statuses(made.records, made.plan.runs)
    assert run.state == "stopped"
    done = slurm_command(
        "submit",
        made.spec,
        "--results",
        made.results,
        "--yes",
        "--no-preflight",
        "--wait",
    )
    assert done.returncode == 0
    assert comparable(made.only_run) == as_if_local(
        made.plan.runs[0], tmp_path / "local"
    )


# Refused, or looked at and found wanting


def test_refusal_of_sbatch_names_the_field_and_leaves_no_submission(
    tmp_path: Path,
) -> None:
    made = trial(tmp_path, one_run("sgd"), small_profile({"partition": "nosuch"}))
    done = slurm_command("submit", *made.words, "--yes", "--no-preflight")
    assert done.returncode == 1
    assert "invalid partition" in done.stderr
    assert f"change the profile {made.profile}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not read_campaign(made.records).submissions


def test_data_that_compute_nodes_do_not_see_is_said_before_the_array_is_submitted(
    tmp_path: Path,
) -> None:
    made = trial(
        tmp_path, changed(one_run("sgd"), "task.name", "fashion_mnist"), small_profile()
    )
    done = slurm_command("submit", *made.words, "--data", tmp_path / "nowhere", "--yes")
    assert done.returncode == 1
    assert "preflight fails on the compute nodes: FAIL data: " in done.stderr
    assert "nowhere" in done.stderr
    assert not (made.records / "campaign.json").exists()


# Last, since it takes its time


def test_run_over_its_time_limit_goes_on_in_another_turn_with_the_code_that_was_submitted(
    overtime: Trial, tmp_path: Path
) -> None:
    wait_until((overtime.only_run / "result.json").exists, "the run is done", 500.0)
    steps = [
        attempt.resumed_from_step
        for attempt in read_run(overtime.only_run).run.attempts
    ]
    assert len(steps) >= 2
    assert steps == sorted(steps)
    assert steps[-1] > 0
    assert comparable(overtime.only_run) == as_if_local(overtime.plan.runs[0], tmp_path)
