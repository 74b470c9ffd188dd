"""Rows compared by another metric than accuracy, in either direction, and the tables that only text tasks have."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.records.metrics import METRICS, score_in, value_in
from harness.records.store import Result, read_record
from report.accuracy.build import build_report
from report.synthetic import make_experiment
from tests.report.made_up import DESIGN, Built

Change = Callable[[dict[str, Any]], dict[str, Any]]
SAID = [{"source": "abc", "expected": "x y", "said": "x z"}, {"source": "d", "expected": "v", "said": "v"}]


def told_otherwise(folder: Path, metric: str, value: Callable[[float], float]) -> Path:
    """The made-up experiment, whose accuracies are now those of another metric, and its exact matches all alike."""

    def changed(record: dict[str, Any]) -> dict[str, Any]:
        if record["test_accuracy"] is None:
            return record
        return record | {"metrics": {metric: value(record["test_accuracy"])}, "test_accuracy": 0.5}

    folder = folder / "results" / DESIGN.name
    make_experiment(folder, DESIGN)
    for path in folder.glob("*/result.json"):
        result = changed(json.loads(path.read_text()))
        text = {"translations": SAID, "signatures": {"bleu": "nrefs:1"}} if result["status"] == "done" else {}
        path.write_text(json.dumps(result | text))
    for path in folder.glob("*/events.jsonl"):
        path.write_text("".join(json.dumps(changed(json.loads(line))) + "\n" for line in path.open()))
    path = folder / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metric": metric}))
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("metric", "value"), [("bleu", lambda a: a), ("phone_error_rate", lambda a: 1 - a)])
def test_a_report_by_another_metric_judges_as_one_by_accuracy_would(
    metric: str, value: Callable[[float], float], small: Built, tmp_path: Path
) -> None:
    folder = told_otherwise(tmp_path, metric, value)
    build_report(folder, output=tmp_path / "report")
    expected, found = (table(each / "csv" / "accuracy.csv") for each in (small.output, tmp_path / "report"))
    assert len(expected) == len(found) > 3
    for one, other in zip(expected, found, strict=True):
        for key in one:
            if key in ("mean", "difference", "lower_bound", "upper_bound", "p_value") and one[key]:
                assert math.isclose(float(one[key]), float(other[key]), rel_tol=1e-6, abs_tol=1e-12), key
            elif key in ("row", "word", "finished", "diverged", "pairs"):
                assert one[key] == other[key]
    text = (tmp_path / "report" / "report.md").read_text()
    label = METRICS[metric].score_label
    assert f"Accuracy here and in all that follows is {label}" in text
    assert "All metrics" in text and f"{METRICS[metric].label}, {METRICS[metric].unit} {METRICS[metric].arrow}" in text
    assert "x z" in text and "BLEU by sacreBLEU, nrefs:1" in text


def test_a_report_of_images_says_nothing_of_either(small: Built) -> None:
    assert not any(words in small.markdown for words in ("All metrics", "What they said", "in all that follows is"))


def test_metrics_have_directions_and_a_diverged_run_has_none(tmp_path: Path) -> None:
    folder = told_otherwise(tmp_path, "phone_error_rate", lambda accuracy: 1 - accuracy)
    results = [read_record(path, Result) for path in sorted(folder.glob("*/result.json"))]
    assert {result.status for result in results} == {"done", "diverged"}
    for result in results:
        value, score = (find(result, METRICS["phone_error_rate"]) for find in (value_in, score_in))
        loss, perplexity = value_in(result, METRICS["loss"]), value_in(result, METRICS["perplexity"])
        if result.status == "diverged":
            assert value is score is loss is perplexity is None
        else:
            assert value is not None and score == 1 - value and loss is not None
            assert perplexity == pytest.approx(math.exp(loss))
    assert [metric.name for metric in METRICS.values() if metric.higher_is_better] == ["accuracy", "bleu", "chrf"]


def test_records_name_no_metrics_where_there_are_none(tmp_path: Path) -> None:
    folder = tmp_path / "results" / DESIGN.name
    make_experiment(folder, DESIGN)
    path = next(folder.glob("*/result.json"))
    dumped = read_record(path, Result).model_dump(mode="json")
    assert not dumped.keys() & {"metrics", "translations", "signatures", "data_sha256", "vocabulary_sha256"}
    assert dumped["class_counts"] is None, "fields that were always named still are"
