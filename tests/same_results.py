"""Proves that a change keeps every result: run ids, records, the reports' numbers, README's tables.

    python -m tests.same_results save before.json      # on the commit before
    python -m tests.same_results compare before.json   # on the commit after

`compare` prints what changed, what is gone and what is new, and returns 1 where something changed:
what is gone was deleted, and a person reads whether it should be. It takes about five minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from cser_bench.harness.places import EXPERIMENTS
from cser_bench.harness.plan.plan import make_plan
from cser_bench.harness.records.packs import read_runs
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.spec_file import load_spec
from cser_bench.report.accuracy_report import build_report
from cser_bench.report.frame import read_frames
from cser_bench.report.speed.report import build_speed_report
from cser_bench.report.speed.timed import experiments_beside
from cser_bench.report.speed.workload_model import STUDY, read_study

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"

Fact = tuple[str, str]
"""What is held, as "kind: where", and its value or the digest of it."""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plans() -> Iterator[Fact]:
    """Yield the run ids of each spec and of its tuning; none where rates are not known yet."""
    for path in sorted(EXPERIMENTS.glob("*.toml")):
        spec = load_spec(path)
        for tuning in (True, False):
            kind = "trials of" if tuning else "plan of"
            try:
                plan = make_plan(spec, RESULTS, tuning)
            except SpecError:
                continue
            ids = [run.run_id for run in plan.runs]
            yield f"{kind} {path.stem}", f"{len(ids)} runs {digest(' '.join(ids))}"


def packs() -> Iterator[Fact]:
    """Yield what the runs of each pack came to."""
    for path in sorted(RESULTS.rglob("runs.jsonl*")):
        folder = path.parent
        lines = []
        for run_id, record in sorted(read_runs(folder).items()):
            result = record.result
            score = None if result is None else (result.test_loss, result.test_correct)
            lines.append(f"{run_id} {score}")
        name = folder.relative_to(RESULTS)
        yield f"pack of {name}", f"{len(lines)} runs {digest(' '.join(lines))}"


def reports() -> Iterator[Fact]:
    """Yield each column of each CSV file of each report, built anew."""
    for path in sorted(RESULTS.rglob("report.md")):
        folder = path.parent
        name = folder.relative_to(RESULTS)
        print(f"report of {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as temporary:
            output = Path(temporary)
            build_csv(folder, output)
            for file in sorted(output.glob("csv/*.csv")):
                for column, values in pd.read_csv(file, dtype=str).items():
                    where = f"column {column} of {name}/csv/{file.name}"
                    yield where, digest("\n".join(values.fillna("")))


def build_csv(folder: Path, output: Path) -> None:
    """Build the report of a folder, of which its CSV files count here."""
    if (folder / STUDY).exists():
        study = read_study(folder)
        build_speed_report(study, experiments_beside(folder, study.sessions), output)
    else:
        build_report(read_frames(folder), output, with_pdf=False)


def tables() -> Iterator[Fact]:
    """Yield the lines of README's tables, by number."""
    rows = [
        line
        for line in (ROOT / "README.md").read_text().splitlines()
        if line[:1] == "|"
    ]
    for number, row in enumerate(rows, 1):
        yield f"line {number} of README's tables", row


def facts() -> dict[str, str]:
    found: dict[str, str] = {}
    for kind in (plans, packs, tables, reports):
        found.update(kind())
    return found


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Say what changed, line by line."""
    shared = before.keys() & after.keys()
    return [
        f"changed: {what}: {before[what]} -> {after[what]}"
        for what in sorted(shared)
        if before[what] != after[what]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=("save", "compare"))
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    now = facts()
    if given.action == "save":
        given.file.write_text(json.dumps(now, indent=1))
        print(f"{len(now)} facts in {given.file}")
        return 0
    before = json.loads(given.file.read_text())
    changed = differences(before, now)
    gone = sorted(before.keys() - now.keys())
    new = sorted(now.keys() - before.keys())
    print("\n".join([*changed, *(f"gone: {each}" for each in gone)]))
    print("\n".join(f"new: {each}" for each in new))
    num_same = len(before.keys() & now.keys()) - len(changed)
    print(f"{num_same} same, {len(changed)} changed, {len(gone)} gone, {len(new)} new")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
