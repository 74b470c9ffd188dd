"""Every number on accuracy in the shipped answers, worked out again from raw results: counting, means, t by scipy."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.records.packs import Pack, read_pack

RESULTS = Path(__file__).parents[2] / "results"
LONG, TWO_LEVEL = "fashion_mnist_long", "study_two_level"
MARGIN, ALMOST = 0.005, 1e-12
Seeds = dict[int, float]
Found = tuple[float, ...]
"""A value alone; or with the ends of its interval and a count of runs or pairs."""

SET_UPS = {
    "6,370 parameters": "study_width_8", "25,450 parameters": TWO_LEVEL, "101,770 parameters": "study_width_128",
    "equal shares": TWO_LEVEL, "two classes a worker": "study_skew_class_shards",
    "Dirichlet 10": "study_skew_dirichlet_10", "Dirichlet 1": "study_skew_dirichlet_1",
    "Dirichlet 0.1": "study_skew_dirichlet_0.1",
    "2 workers": "study_workers_2", "4 workers": "study_workers_4", "8 workers": TWO_LEVEL,
    "16 workers": "study_workers_16", "32 workers": "study_workers_32",
    "2 workers of 16 images": "study_weak_scaling_2", "4 workers of 16 images": "study_weak_scaling_4",
    "8 workers of 16 images": TWO_LEVEL, "16 workers of 16 images": "study_weak_scaling_16",
    "perceptron": TWO_LEVEL, "CNN": "study_network_cnn", "DenseNet-like": "study_network_densenet",
    "ShuffleNet-like": "study_network_shufflenet",
}  # fmt: skip
KINDS = {"blocks": "block", "random-k": "random_k", "top-k": "top_k", "QSGD": "qsgd", "sign": "sign"}
RULES = {"no memory": "drop", "error feedback": "feedback", "error reset": "reset", "reset": "reset"}
FAMILY = ("cser", "mcser", "csea", "cser_pl")


@cache
def folder_of(name: str) -> Path:
    return next(path for path in (RESULTS / name, RESULTS / "reference" / name) if path.exists())


@cache
def experiment_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder_of(name) / "experiment.json").read_text())
    return found


@cache
def rows_of(name: str) -> dict[str, dict[str, Any]]:
    return {row["row"]: row for row in experiment_of(name)["rows"]}


@cache
def main_rows(name: str) -> dict[str, dict[str, Any]]:
    return {key: row for key, row in rows_of(name).items() if row["base"] is None}


@cache
def pack_of(name: str) -> Pack:
    pack = read_pack(folder_of(name))
    assert pack
    return pack


@cache
def result_of(name: str, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pack_of(name).files(run_id, ("result.json",))["result.json"])
    return found


@cache
def events_of(name: str, run_id: str) -> list[dict[str, Any]]:
    lines = pack_of(name).files(run_id, ("events.jsonl",))["events.jsonl"].splitlines()
    return [json.loads(line) for line in lines]


def finished(name: str, row: str) -> dict[int, str]:
    """Run ids by seed of the runs that have a score."""
    runs = {int(seed): run_id for seed, run_id in rows_of(name)[row]["runs"].items()}
    there = {seed: run_id for seed, run_id in runs.items() if run_id in pack_of(name).lines}
    return {seed: run_id for seed, run_id in there.items() if result_of(name, run_id)["status"] == "done"}


@cache
def scores(name: str, row: str) -> Seeds:
    results = {seed: result_of(name, run_id) for seed, run_id in finished(name, row).items()}
    metric = experiment_of(name).get("metric")
    if metric in (None, "accuracy"):
        return {seed: result["test_correct"] / result["test_count"] for seed, result in results.items()}
    return {seed: result["metrics"][metric] for seed, result in results.items()}


def less(left: Seeds, right: Seeds) -> Seeds:
    return {seed: left[seed] - right[seed] for seed in left.keys() & right.keys()}


def interval(values: Seeds) -> Found:
    """Mean, its t interval of 95 %, and how many there are."""
    numbers = np.array(list(values.values()))
    if len(numbers) < 2:
        return (float(numbers.mean()), float(len(numbers)))
    half = stats.t.ppf(0.975, len(numbers) - 1) * numbers.std(ddof=1) / math.sqrt(len(numbers))
    return (float(numbers.mean()), float(numbers.mean() - half), float(numbers.mean() + half), float(len(numbers)))


def apart(name: str, left: str, right: str) -> Found:
    return interval(less(scores(name, left), scores(name, right)))


def holm(p_values: list[float]) -> int:
    """How many are told apart from nothing, by the running maximum of the corrected p."""
    ordered = sorted(p_values)
    corrected = np.maximum.accumulate([(len(ordered) - place) * p for place, p in enumerate(ordered)])
    return int((corrected <= 0.05).sum())


@cache
def verdicts(name: str) -> dict[str, tuple[bool, bool, float]]:
    """By row: is the loss shown to be under the margin, or over it, and the one-sided p of the first."""
    found = {}
    for row in main_rows(name).keys() - {"sgd", "alone"}:
        values = np.array(list(less(scores(name, row), scores(name, "sgd")).values())) + MARGIN
        under = stats.ttest_1samp(values, 0, alternative="greater").pvalue
        over = stats.ttest_1samp(values, 0, alternative="less").pvalue
        found[row] = (under < 0.05, over < 0.05, float(under))
    return found


@cache
def groups(name: str) -> dict[float, list[str]]:
    """Rows that are compared, by their ratio, where more than one has it."""
    rows = [row for row in main_rows(name).values() if row["row"] not in ("sgd", "alone", "final_average")]
    found = {
        ratio: [row["row"] for row in rows if abs(row["ratio"] / ratio - 1) < 0.04] for ratio in (12, 96, 384, 1536)
    }
    return {ratio: names for ratio, names in found.items() if len(names) > 1}


def losses(key: str) -> Found:
    judged = [row for row in groups(LONG)[96] if main_rows(LONG)[row]["algorithm"] != "sgd_accumulate"]
    match key:
        case "sgd":
            return interval(scores(LONG, "sgd"))
        case "shown to lose less":
            return (sum(verdicts(LONG)[row][0] for row in judged),)
        case "shown to lose more":
            return (sum(verdicts(LONG)[row][1] for row in judged),)
        case "hold after Holm":
            first = holm([p for _, _, p in verdicts(LONG).values()])
            stand = sorted(verdicts(LONG), key=lambda row: verdicts(LONG)[row][2])[:first]
            return (len(set(stand) & set(judged)),)
    return apart(LONG, key, "sgd")


def set_ups(key: str) -> Found:
    if key.startswith("within the margin at "):
        sent = {f"{main_rows(LONG)[names[0]]['models_sent']:,.0f}": names for names in groups(LONG).values()}
        return (sum(verdicts(LONG)[row][0] for row in sent[key.removeprefix("within the margin at ").split()[0]]),)
    what, words = key.split(", ", 1)
    if what in ("SGD", "alone"):
        return interval(scores(SET_UPS[words], what.lower()))
    if " − " in what:
        return apart(SET_UPS[words], *what.split(" − "))
    if " − " in words:
        last, first = (SET_UPS[each] for each in words.split(" − "))
        return interval(less(*(less(scores(name, what), scores(name, "sgd")) for name in (last, first))))
    return apart(SET_UPS[words], what, "sgd")


def tasks(key: str) -> Found:
    name, what = key.split(": ")
    return apart(name, *what.split(" − ")) if " − " in what else interval(scores(name, what))


def splits(key: str) -> Found:
    labels = {row: plan["label"] for row, plan in rows_of(TWO_LEVEL).items() if plan["ratio"] == 96}
    family = [row for row, label in labels.items() if label.startswith(("M-CSER", "local SGD"))]
    if key == "splits":
        return (len(family),)
    if key == "shown to be behind":
        means = {row: np.mean(list(scores(TWO_LEVEL, row).values())) for row in family}
        best = max(means, key=lambda row: means[row])
        gaps = [list(less(scores(TWO_LEVEL, best), scores(TWO_LEVEL, row)).values()) for row in family if row != best]
        return (holm([float(stats.ttest_1samp(gap, 0).pvalue) for gap in gaps]),)
    return apart(TWO_LEVEL, key, "sgd")


@cache
def trials() -> dict[str, list[tuple[float, float, str]]]:
    """By the row that is tuned: held-out accuracy at the first seed (minus infinity: a run diverged), loss, trial."""
    name = f"{LONG}_tuning"
    found: dict[str, list[tuple[float, float, str]]] = {}
    for row, plan in rows_of(name).items():
        results = {int(seed): result_of(name, run_id) for seed, run_id in plan["runs"].items()}
        lost = any(result["status"] != "done" for result in results.values())
        first = results[min(results)]
        score = -math.inf if lost else first["test_correct"] / first["test_count"]
        found.setdefault(plan["tunes"], []).append((score, math.inf if lost else first["train_loss"], row))
    return found


def rules_of_choice(key: str) -> Found:
    costs = {}
    for row, tried in trials().items():
        by_loss = min(tried, key=lambda trial: (trial[1], rows_of(f"{LONG}_tuning")[trial[2]]["learning_rate"]))
        costs[row] = max(score for score, _, _ in tried) - by_loss[0]
    if key == "rows that choose otherwise":
        return (sum(cost > 0 for cost in costs.values()),)
    if key == "rank correlation":
        compared = main_rows(LONG).keys() - {"sgd", "alone"}
        pairs = [(fmean(_least_losses(row)), fmean(scores(LONG, row).values())) for row in compared]
        return (float(stats.spearmanr(*zip(*pairs, strict=True)).statistic),)
    if key.endswith(", mean"):
        return interval(dict(enumerate(costs.values())))
    return (costs[key.removeprefix("accuracy lost by the other rule, ")],)


def _least_losses(row: str) -> list[float]:
    runs = finished(LONG, row).values()
    seen = [
        [event["train_loss"] for event in events_of(LONG, run)] + [result_of(LONG, run)["train_loss"]] for run in runs
    ]
    return [min(losses) for losses in seen]


def best_of(row: str) -> list[float]:
    """How far the best of k trials is behind the best of all, in the (lower) median of all choices of k."""
    held_out = [score for score, _, _ in trials()[row]]
    found = []
    for k in range(1, len(held_out) + 1):
        bests = sorted(max(chosen) for chosen in itertools.combinations(held_out, k))
        found.append(max(held_out) - bests[(len(bests) - 1) // 2])
    return found


def tuning_costs(key: str) -> Found:
    curves = {row: best_of(row) for row in trials()}
    needed = {row: next(k for k, far in enumerate(curve, 1) if far <= 0.002 + ALMOST) for row, curve in curves.items()}
    if key == "trials":
        return (sum(map(len, trials().values())),)
    if key == "hours":
        runs = {run for plan in rows_of(f"{LONG}_tuning").values() for run in plan["runs"].values()}
        return (sum(result_of(f"{LONG}_tuning", run)["wall_seconds"] for run in runs) / 3600,)
    if key == "trials needed, median":
        return (float(np.median(list(needed.values()))), len(needed))
    if key.startswith("trials needed, "):
        return (needed[key.removeprefix("trials needed, ")],)
    k, row = int(key.split()[2].rstrip(",")), key.split(", ", 1)[1]
    of_median = [curve[k - 1] for curve in curves.values() if math.isfinite(curve[k - 1])]
    return (100 * (float(np.median(of_median)) if row == "median" else curves[row][k - 1]),)


def compressors(key: str) -> Found:
    rule, kind = key.split(", ")
    if rule == "reset − feedback":
        return apart("study_rules", f"{KINDS[kind]}-reset", f"{KINDS[kind]}-feedback")
    return apart("study_rules", f"{KINDS[kind]}-{RULES[rule]}", "sgd")


def errors(key: str) -> Found:
    found = {}
    for row, plan in rows_of(TWO_LEVEL).items():
        if plan["algorithm"] in FAMILY and plan["ratio"] == 96:
            runs = [events_of(TWO_LEVEL, run) for run in finished(TWO_LEVEL, row).values()]
            distances = [event["worker_distance"] for events in runs for event in events if event["step"]]
            last = float(np.mean([events[-1]["worker_distance"] for events in runs]))
            found[row] = (float(np.mean(distances)), last / max(distances), min(distances))
    match key:
        case "rows":
            return (len(found),)
        case "rows with a zero error":
            return (sum(least == 0 for _, _, least in found.values()),)
        case "last over largest, median":
            return (float(np.median([share for _, share, _ in found.values()])),)
    return (found[key.removeprefix("mean distance, ")][0],)


def learning_rates(key: str) -> Found:
    chosen = {row: rows_of(LONG)[row]["learning_rate"] for row in trials()}
    match key:
        case "trials":
            return (sum(map(len, trials().values())),)
        case "diverged":
            return (sum(score == -math.inf for tried in trials().values() for score, _, _ in tried),)
        case "rows best at a lower rate than SGD's":
            return (sum(rate < chosen["sgd"] for rate in chosen.values()),)
    return (chosen[key.removeprefix("rate, ")],)


def momentum(key: str) -> Found:
    name = key.removesuffix(" − CSER")
    if name.startswith("at ratio "):
        ratio = name.removeprefix("at ratio ")
        return apart(LONG, f"mcser-{ratio}", f"cser-{ratio}")
    row = next(row for row, plan in rows_of("study_momentum").items() if plan["label"] == name)
    return apart("study_momentum", row, "cser-m0")


def without_levels(key: str) -> Found:
    if key not in ("better", "worse", "pairs"):
        return apart(LONG, *key.split(" − ")) if " − " in key else apart(LONG, key, "sgd")
    every, ours = [], []
    for names in groups(LONG).values():
        for left, right in itertools.combinations(names, 2):
            gaps = list(less(scores(LONG, left), scores(LONG, right)).values())
            kinds = {main_rows(LONG)[row]["algorithm"]: sign for row, sign in ((left, 1), (right, -1))}
            every.append(float(stats.ttest_1samp(gaps, 0).pvalue))
            if "local_sgd" in kinds and kinds.keys() & {"cser", "mcser"}:
                ours.append((every[-1], np.mean(gaps) * -kinds["local_sgd"]))
    told = sorted(every)[: holm(every)]
    kept = [ahead for p, ahead in ours if told and p <= told[-1]]
    return ({"pairs": len(ours), "better": sum(a > 0 for a in kept), "worse": sum(a < 0 for a in kept)}[key],)


QUESTIONS: dict[int, Callable[[str], Found]] = {
    1: losses,
    8: set_ups,
    9: set_ups,
    10: tasks,
    11: lambda key: apart(TWO_LEVEL, *key.split(" − ")),
    12: splits,
    13: rules_of_choice,
    14: tuning_costs,
    15: compressors,
    16: errors,
    17: compressors,
    18: set_ups,
    19: set_ups,
    20: learning_rates,
    21: momentum,
    23: lambda key: apart(LONG, key, "sgd"),
    24: lambda key: apart("study_released", *key.split(" − ")),
    25: without_levels,
}
"""By question, what one of its numbers is, by the number's key. Those on time are in test_answers_steps.py."""


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_number_is_that_of_the_runs(question: int) -> None:
    with (RESULTS / "answers/csv/numbers.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if int(line["question"]) == question]
    is_open = re.search(
        rf"^\| +{question} \|.*\| open +\|$", (RESULTS / "answers/answers.md").read_text(), re.MULTILINE
    )
    assert bool(lines) != bool(is_open), "a question has numbers or is open"
    for line in lines:
        given = tuple(float(line[name]) for name in ("value", "low", "high", "count") if line[name])
        assert given == pytest.approx(QUESTIONS[question](line["key"]), rel=1e-9, abs=ALMOST), line["key"]
