"""A shipped experiment as folders of runs, of which some are missing, failed, diverged or
resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cser_bench.harness.records.packs import NAME, unpack_runs
from cser_bench.harness.records.store import VERSION
from cser_bench.report.accuracy_report import build_report
from cser_bench.report.frame import read_frames

RESULTS = Path(__file__).parents[2] / "results"
EXPERIMENT = "cmudict"
"""Seven rows of three runs each, and a tuning."""


@dataclass(frozen=True)
class Built:
    """An experiment's folder and the folder that its report was written into."""

    records: Path
    output: Path

    @property
    def markdown(self) -> str:
        """The report's Markdown."""
        return (self.output / "report.md").read_text()


def build(records: Path) -> Built:
    """The report of records, beside them."""
    output = records.parents[1] / "report"
    build_report(read_frames(records), output)
    return Built(records, output)


def unpacked(results: Path) -> Path:
    """The experiment with a folder for each run, its tuning beside it, under `results`; returns its
    folder."""
    records = results / EXPERIMENT
    records.mkdir(parents=True)
    (results / f"{EXPERIMENT}_tuning").symlink_to(RESULTS / f"{EXPERIMENT}_tuning")
    for name in ("experiment.json", NAME):
        shutil.copy(RESULTS / "reference" / EXPERIMENT / name, records)
    unpack_runs(records)
    (records / NAME).unlink()
    return records


def run_of(records: Path, row: str, seed: int) -> Path:
    """The folder of a planned run."""
    plan = json.loads((records / "experiment.json").read_text())
    rows = plan["rows"]
    return records / next(
        each["runs"][str(seed)] for each in rows if each["row"] == row
    )


def change(path: Path, **fields: Any) -> None:
    """Write a JSON record with other fields."""
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | fields))


def holed(results: Path) -> Path:
    """The experiment with two runs missing, one failed and one diverged."""
    records = unpacked(results)
    for seed in (2, 3):
        shutil.rmtree(run_of(records, "cser-8", seed))
    nothing = dict.fromkeys(
        (
            "train_loss",
            "test_loss",
            "test_correct",
            "test_count",
            "test_accuracy",
            "metrics",
        )
    )
    change(
        run_of(records, "ef_topk-8", 2) / "result.json",
        status="diverged",
        diverged_at_step=700,
        **nothing,
    )
    failed = run_of(records, "powersgd-8", 1)
    (failed / "result.json").unlink()
    lines = (failed / "events.jsonl").read_text().splitlines(keepends=True)
    first = lines[0]
    (failed / "events.jsonl").write_text(first)
    failure = {
        "version": VERSION,
        "run_id": failed.name,
        "attempt": "a",
        "kind": "oom",
        "step": 700,
    }
    (failed / "failure.json").write_text(
        json.dumps(failure | {"message": "no memory left", "traceback": "made up"})
    )
    return records


def resume(run: Path) -> None:
    """Make it so that the run was interrupted once and went on, which changes times and
    bookkeeping's traffic."""
    about = json.loads((run / "run.json").read_text())
    attempts = about["attempts"]
    first = attempts[0]
    change(
        run / "run.json",
        attempts=[first, first | {"attempt": "again", "resumed_from_step": 900}],
    )
    result = json.loads((run / "result.json").read_text())
    traffic = result["traffic"] | {
        "control": result["traffic"]["control"] | {"bits": 128}
    }
    change(
        run / "result.json",
        attempt="again",
        wall_seconds=result["wall_seconds"] + 5,
        traffic=traffic,
    )
    events = run / "events.jsonl"
    *before, last = events.read_text().splitlines(keepends=True)
    event = json.loads(last)
    later = event | {"wall_seconds": event["wall_seconds"] + 5}
    lines = [*before, last, json.dumps(later) + "\n"]
    events.write_text("".join(lines))
