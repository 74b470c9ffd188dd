"""Status: the state of a run from records, heartbeats and the queue; totals, hours, JSON; and the
submitters' lock."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cser_bench.harness.cli.show import status_text, worker_hours
from cser_bench.harness.records import store
from cser_bench.harness.records.experiment import read_experiment
from cser_bench.harness.records.run_lock import locked
from cser_bench.harness.records.state import RunFolder, judge
from cser_bench.harness.records.store import Failure, Heartbeat, Result
from cser_bench.slurm import campaign
from cser_bench.slurm.campaign import (
    Campaign,
    put_submission,
    read_campaign,
    statuses,
    submitted,
)
from tests.harness.support import CommandLine, small_spec, write_spec
from tests.report.holed import holed, unpacked
from tests.slurm.support import small_profile, submission, write_profile

NOW = 1_800_000_000.0


def beat(age: float, attempt: str = "a", **changes: Any) -> Heartbeat:
    given = {"attempt": attempt, "time": NOW - age, "step": 50, "num_steps": 100}
    return Heartbeat(
        **(given | {"images_per_second": 640.0, "seconds_left": 120.0} | changes)
    )


def failure(kind: str, attempt: str = "a") -> Failure:
    fields = {
        "version": store.VERSION,
        "run_id": "x",
        "attempt": attempt,
        "kind": kind,
        "message": "why",
    }
    return Failure(**fields, traceback="", step=None)  # type: ignore[arg-type]


def judged(**changes: Any) -> tuple[str, str]:
    """What is said of a run that was submitted as job 7_0, whose job the queue does not know any
    more."""
    given: dict[str, Any] = {
        "submission": submission(Path("/results/x"), "x"),
        "queue": "",
    }
    given |= changes
    queue = (
        None
        if given["queue"] is None
        else {"7_0": given["queue"]}
        if given["queue"]
        else {}
    )
    fields = {
        key: given.get(key) for key in ("result", "failure", "heartbeat", "owned")
    }
    seen = RunFolder(**fields, replaced=given.get("replaced", False))  # type: ignore[arg-type]
    submissions = [given["submission"]] if given["submission"] else []
    made = Campaign(version=store.VERSION, experiment="x", submissions=submissions)
    return judge(seen, submitted(made, "x", queue), NOW)


def result(folder: Path) -> Result:
    return store.read_record(next(unpacked(folder).glob("*/result.json")), Result)


GONE_ON = {
    "submission": None,
    "heartbeat": beat(1200, "b"),
    "failure": failure("oom"),
    "replaced": True,
}
NAMELESS = {"submission": submission(Path("/results/x"), "x", jobs=[])}
STATES: list[tuple[str, dict[str, Any], str, str]] = [
    ("waits", {"queue": "PENDING"}, "queued", ""),
    (
        "again",
        {"queue": "PENDING", "failure": failure("preempted"), "heartbeat": beat(900)},
        "queued",
        "preempted",
    ),
    ("is on", {"queue": "RUNNING", "heartbeat": beat(3)}, "running", ""),
    ("starts", {"queue": "CONFIGURING"}, "running", "starting"),
    (
        "scores for long",
        {"queue": "RUNNING", "heartbeat": beat(1200)},
        "running",
        "silent for 1200 s",
    ),
    (
        "another is on",
        {"queue": "RUNNING", "heartbeat": beat(3, "b"), "failure": failure("node")},
        "running",
        "",
    ),
    ("failed", {"failure": failure("bug"), "heartbeat": beat(3)}, "failed", "bug: why"),
    ("left the queue a moment ago", {"heartbeat": beat(3)}, "running", ""),
    ("left the queue without a word", {"heartbeat": beat(90)}, "stale", "no record"),
    ("never came to be", {}, "stale", "no record"),
    ("not submitted", {"submission": None}, "missing", ""),
    ("local and on", {"submission": None, "heartbeat": beat(3)}, "running", ""),
    (
        "local and killed",
        {"submission": None, "heartbeat": beat(1200)},
        "stale",
        "silent for 1200 s",
    ),
    (
        "clock of the node ahead",
        {"queue": "RUNNING", "heartbeat": beat(-300)},
        "running",
        "",
    ),
    (
        "stopped",
        {"failure": failure("preempted"), "heartbeat": beat(3)},
        "stopped",
        "why",
    ),
    # The run's lock tells where the run is on this machine.
    (
        "died of a full disk",
        {"submission": None, "heartbeat": beat(3), "owned": False},
        "stale",
        "without a word",
    ),
    ("loads its data", {"submission": None, "owned": True}, "running", "starting"),
    (
        "loads it again",
        {"submission": None, "owned": True, "failure": failure("oom")},
        "running",
        "starting",
    ),
    (
        "scores very long",
        {"submission": None, "owned": True, "heartbeat": beat(1200)},
        "running",
        "silent for",
    ),
    ("went on, and died", GONE_ON, "stale", "silent for 1200 s"),
    # Where squeue does not answer, records are all there is.
    ("unseen, new", {"queue": None}, "missing", "squeue does not answer"),
    ("unseen, on", {"queue": None, "heartbeat": beat(3)}, "running", ""),
    (
        "unseen, failed",
        {"queue": None, "failure": failure("oom")},
        "failed",
        "oom: why",
    ),
    *(
        (
            f"unseen, ended with {kind}",
            {"queue": None, "failure": failure(kind)},
            "queued",
            f"after {kind}, if it was",
        )
        for kind in ("preempted", "node", "communication", "timeout")
    ),
    # Without the name of its job.
    (
        "sbatch is at work",
        NAMELESS,
        "missing",
        "sbatch has not answered; if no `submit` is at work, `squeue --me`",
    ),
    (
        "sbatch is at work again",
        NAMELESS | {"failure": failure("oom")},
        "failed",
        "oom: why",
    ),
    ("on before sbatch answers", NAMELESS | {"heartbeat": beat(90)}, "running", ""),
    (
        "sbatch never answered",
        NAMELESS | {"heartbeat": beat(1200)},
        "stale",
        "silent for 1200 s",
    ),
    (
        "sbatch and squeue do not answer",
        NAMELESS | {"queue": None},
        "missing",
        "squeue does not answer",
    ),
]


@pytest.mark.parametrize(
    ("name", "changes", "state", "detail"), STATES, ids=[name for name, *_ in STATES]
)
def test_state_of_a_run(
    name: str, changes: dict[str, Any], state: str, detail: str
) -> None:
    found, said = judged(**changes)
    assert found == state
    assert detail in said
    assert "None" not in said


def test_result_goes_over_all_else(tmp_path: Path) -> None:
    whole = result(tmp_path)
    assert judged(
        result=whole, queue="RUNNING", failure=failure("node"), heartbeat=beat(3)
    ) == ("done", "")
    diverged = whole.model_copy(update={"status": "diverged", "diverged_at_step": 25})
    assert judged(result=diverged) == ("done", "diverged at step 25")


# A whole campaign


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Records of 21 runs: 18 ended, 1 of them diverged, 2 were never started, 1 failed; all
    submitted."""
    folder = holed(tmp_path / "results")
    runs = [
        run_id for row in read_experiment(folder).rows for run_id in row.runs.values()
    ]
    assert len(runs) == len(set(runs))
    put_submission(folder, 0, submission(folder, *runs))
    return folder


def missing_run(folder: Path) -> tuple[str, str]:
    """A run that was never started, and its job."""
    (last,) = read_campaign(folder).submissions
    pairs = zip(last.runs, last.jobs, strict=True)
    return next(
        (run, job) for run, job in pairs if not (folder / run / "run.json").exists()
    )


def test_totals_hours_and_how_far_a_run_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_id, job), queue = missing_run(folder), dict[str, str]()
    monkeypatch.setattr(campaign, "queued_jobs", lambda: queue)
    planned: Any = [
        SimpleNamespace(run_id=run_id, row=row.row, seed=int(seed))
        for row in read_experiment(folder).rows
        for seed, run_id in row.runs.items()
    ]
    queue[job] = "PENDING"
    runs = statuses(folder, planned)
    results = [store.read_record(path, Result) for path in folder.glob("*/result.json")]
    states = Counter(run.state for run in runs)
    assert (states["done"], states["queued"], states["failed"]) == (len(results), 1, 1)
    assert len(runs) == len(planned)
    # 4 workers a run; what is left costs the mean of what ended.
    spent = sum(each.wall_seconds for each in results)
    left = len(runs) - len(results)
    assert worker_hours(runs, 4) == pytest.approx(
        (4 * spent / 3600, 4 * left * spent / len(results) / 3600)
    )
    store.write_record(folder / run_id / "heartbeat.json", beat(0, time=time.time()))
    queue[job] = "RUNNING"
    (line,) = [
        line
        for line in status_text(statuses(folder, planned), 4).splitlines()
        if line.startswith("running: ")
    ]
    assert line.endswith(f"{job}; step 50 of 100; 640 samples/s, 120 s left")


def test_status_for_machines_and_for_people_name_kind_and_log_of_a_failure(
    folder: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    runs = json.loads(
        cli.out("status", "cmudict", "--json", "--results", folder.parent)
    )
    (failed,) = [run for run in runs if run["state"] == "failed"]
    text = cli.out("status", "cmudict", "--results", folder.parent)
    (line,) = [line for line in text.splitlines() if line.startswith("failed: ")]
    kind = store.read_record(next(folder.glob("*/failure.json")), Failure).kind
    assert kind == failed["failure"]
    assert f" {kind}: " in line
    assert failed["log"] in line
    assert failed["log"].startswith(f"{folder}/jobs/7_")
    assert "squeue does not answer" in text


def test_what_is_no_campaign_cannot_be_submitted_as_before(
    tmp_path: Path, cli: CommandLine
) -> None:
    assert f"{tmp_path}/imagenet holds no campaign" in cli.refused(
        "submit", "imagenet", "--results", tmp_path
    )


# The record and the lock


@pytest.mark.timeout(300)
def test_a_second_submitter_waits_and_then_says_who_is_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    for program in ("sbatch", "srun"):
        (tmp_path / program).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("cser_bench.slurm.submit.LOCK_SECONDS", 0.2)
    spec = write_spec(tmp_path, small_spec())
    profile = write_profile(tmp_path, small_profile())
    words = [
        "submit",
        spec,
        "--cluster",
        profile,
        "--results",
        tmp_path / "results",
        "--yes",
    ]
    with locked(tmp_path / "results" / "small" / "submit.lock"):
        assert cli.refused(*words, code=1).startswith(
            "another command is submitting this experiment"
        )
