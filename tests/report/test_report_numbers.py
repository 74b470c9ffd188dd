"""Every number of the accuracy table, worked out again from the raw JSON without the report's or the store's code."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from report.accuracy.build import build_report
from report.synthetic import make_experiment
from tests.report.made_up import DESIGN, Built


def _raw(folder: Path) -> tuple[dict[str, Any], dict[str, dict[int, dict[str, Any]]]]:
    experiment = json.loads((folder / "experiment.json").read_text())
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for row in experiment["rows"]:
        paths = {int(seed): folder / run_id / "result.json" for seed, run_id in row["runs"].items()}
        results[row["row"]] = {seed: json.loads(p.read_text()) for seed, p in paths.items() if p.exists()}
    return experiment, results


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _expected(
    row: dict[str, Any], experiment: dict[str, Any], results: dict[str, dict[int, dict[str, Any]]]
) -> list[str]:
    def scores(name: str) -> dict[int, float]:
        return {s: r["test_correct"] / r["test_count"] for s, r in results[name].items() if r["status"] == "done"}

    mine, base = scores(row["row"]), scores(experiment["baseline"])
    diverged = [seed for seed, r in results[row["row"]].items() if r["status"] == "diverged"]
    values, n = np.array(list(mine.values())), len(row["runs"])
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    bound = {experiment["baseline"]: " (ceiling)", "final_average": " (bound)"}.get(row["row"], "")
    at_end = row["learning_rate"] in (min(experiment["tuning"]["grid"]), max(experiment["tuning"]["grid"]))
    name = f"{row['label']}{bound}{'†' * at_end}"
    cells = [name, f"{row['ratio']:g}", f"{row['learning_rate']:g}"]
    cells.append(str(n) if len(mine) == n else f"{len(mine)} of {n}")
    cells += [f"{100 * values.mean():.2f}", f"{100 * values.std(ddof=1):.2f}", f"{100 * low:.2f} to {100 * high:.2f}"]
    for seed in experiment["seeds"]:
        text = f"{100 * mine[seed]:.2f}" if seed in mine else "–"
        cells.append("diverged" if seed in diverged else text)
    if row["row"] == experiment["baseline"]:
        return [*cells, "–", "–", "baseline"]
    pairs = [mine[s] - base[s] for s in mine if s in base]
    half = stats.t.ppf(experiment["confidence"], len(pairs) - 1) * np.std(pairs, ddof=1) / math.sqrt(len(pairs))
    lower, upper = np.mean(pairs) - half, np.mean(pairs) + half
    margin = experiment["margin"]
    # Without a floor nobody knows what could have been lost, so no row is called non-inferior.
    word = "cannot tell" if lower > -margin else "inferior" if upper < -margin else "inconclusive"
    if diverged:
        word = f"diverged {len(diverged)} of {n}"
    elif len(pairs) < n:
        word += f" ({len(pairs)} of {n})"
    return [*cells, _minus(f"{100 * np.mean(pairs):+.2f}"), _minus(f"{100 * lower:+.2f}"), word]


def _table(markdown: str, title: str) -> list[list[str]]:
    lines = markdown.split(title, 1)[1].split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("*") for cell in line.strip("|").split("|")])
    return rows


def test_every_cell_of_the_accuracy_table(small: Built) -> None:
    experiment, results = _raw(small.records)
    table = _table(small.markdown, ": Accuracy.")
    assert table == [_expected(row, experiment, results) for row in experiment["rows"]]


def test_the_table_shows_missing_failed_and_diverged_runs(small: Built) -> None:
    words = {(row[0], row[1]): (row[3], row[-1]) for row in _table(small.markdown, ": Accuracy.")}
    assert words["EF-SGD†", "1024"] == ("3 of 5", "diverged 2 of 5")
    assert words["CSEA", "64"][0] == "3 of 5" and words["CSEA", "64"][1].endswith("(3 of 5)")
    assert words["CSEA†", "1024"][0] == "4 of 5"
    assert "47 of 50 runs are done" in small.markdown and "1 run failed" in small.markdown


def test_a_loss_that_explodes_and_stays_finite_is_a_score_as_any_other(tmp_path: Path) -> None:
    """Diverged is what has no finite loss; of others the report says what was measured, chance it may be."""
    folder = tmp_path / "results" / DESIGN.name
    make_experiment(folder, DESIGN)
    experiment, results = _raw(folder)
    row = next(each for each in experiment["rows"] if each["row"] == "csea_1024")
    for seed in results[row["row"]]:
        run = folder / row["runs"][str(seed)]
        lines = (run / "events.jsonl").read_text().splitlines()
        exploded = [json.loads(line) | {"train_loss": 1e30, "test_loss": 3e36, "test_accuracy": 0.1} for line in lines]
        (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in exploded))
        result = json.loads((run / "result.json").read_text())
        correct = 1_000 + seed % 2
        result |= {"train_loss": 1e30, "test_loss": 3e36, "test_correct": correct, "test_count": 10_000}
        (run / "result.json").write_text(json.dumps(result | {"test_accuracy": correct / 10_000}))
    build_report(folder, output=tmp_path / "report")
    table = _table((tmp_path / "report" / "report.md").read_text(), ": Accuracy.")
    (cells,) = [cells for cells in table if cells[:2] == [row["label"] + "†", "1024"]]
    assert cells == _expected(row, *_raw(folder))
    assert cells[4] == "10.01" and cells[-1] == "inferior (4 of 5)"


def test_counted_bits_are_the_records(small: Built) -> None:
    experiment, results = _raw(small.records)
    for row, cells in zip(experiment["rows"], _table(small.markdown, ": Bits."), strict=True):
        sent = {
            sum(r["traffic"][p]["bits"] for p in ("gradient", "error", "model") if p in r["traffic"])
            for r in results[row["row"]].values()
            if r["status"] == "done"
        }
        assert cells[4:7] == [f"{sent.pop():,}", f"{row['expected_bits']:,}", "yes"]


def test_csv_holds_full_precision_and_run_ids(small: Built) -> None:
    experiment, results = _raw(small.records)
    with open(small.output / "csv" / "accuracy.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for plan, line in zip(experiment["rows"], rows, strict=True):
        done = [r["test_accuracy"] for r in results[plan["row"]].values() if r["status"] == "done"]
        assert float(line["mean"]) == pytest.approx(sum(done) / len(done), rel=1e-15)
        with_result = [plan["runs"][str(seed)] for seed in experiment["seeds"] if seed in results[plan["row"]]]
        assert line["run_ids"].split() == with_result
    with open(small.output / "csv" / "per_seed.csv", newline="") as file:
        seeds = list(csv.DictReader(file))
    assert len(seeds) == sum(len(row["runs"]) for row in experiment["rows"])
    assert {line["status"] for line in seeds} == {"done", "diverged", "failed", "not started"}
    names = {"accuracy", "per_seed", "bits", "curves", "tuning", "attempts", "assay", "equal_bits", "pairs", "rules"}
    assert {path.stem for path in (small.output / "csv").iterdir()} == names
