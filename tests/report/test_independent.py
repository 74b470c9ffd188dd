"""The declared contrasts worked out again from the packs alone, by pandas, scipy and statsmodels
and no code of ours, and held against what reports are made of.

It is written from the rule. Runs are not paired, and each row has its own variance: a t test after
Welch. A row whose training loss or test loss at the end is not finite, or beyond 1,000 times that
of a constant guess, has diverged. Each contrast makes one-sided tests: that less is lost than the
margin, and that more is; that a row is better, and that it is worse; that two are equal within the
margin, and that one is better, or worse, by more. Holm's correction is over all tests of an
experiment. One row is better than another only where the difference of their means has the same
sign with one learning rate for both, at each one's own rate that both were run at for the
experiment's length: on test samples at rates beside the chosen ones, or in the tuning on held-out
samples.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from cser_bench.harness.records.shipped import shipped_experiments
from cser_bench.report.frame import read_frames
from cser_bench.report.statistics import contrasts_frame

RESULTS = Path(__file__).parents[2] / "results"
PLANS = {
    folder: json.loads((folder / "experiment.json").read_text())
    for folder in shipped_experiments()
}
PACKED = [folder for folder in PLANS if (folder / "runs.jsonl").exists()]
"""What ships; one's own runs beside it are not packed."""
DECLARED = {
    folder: PLANS[folder] for folder in PACKED if PLANS[folder].get("contrasts")
}


def scores_of(folder: Path, plan: dict[str, Any]) -> pd.DataFrame:
    """Row, score and whether it diverged, a line a run of the pack that the plan names."""
    _, *lines = (folder / "runs.jsonl").read_text().splitlines()
    results = {run["run_id"]: run["result"] for run in map(json.loads, lines)}
    metric = plan.get("metric") or "accuracy"
    found = []
    for row in plan["rows"]:
        for run_id in row["runs"].values():
            if run_id in results:
                result = results[run_id]
                counts = result.get("class_counts") or [[]]
                # Text without labels has windows of one class.
                classes = len(counts[0]) if len(counts[0]) > 1 else 50_000
                losses = [
                    result[key]
                    for key in ("train_loss", "test_loss")
                    if result[key] is not None
                ]
                lost = [
                    not math.isfinite(loss) or loss > 1000 * math.log(classes)
                    for loss in losses
                ]
                if metric == "loss":
                    value = (
                        None if result["test_loss"] is None else -result["test_loss"]
                    )
                else:
                    value = (
                        result["test_accuracy"]
                        if metric == "accuracy"
                        else (result["metrics"] or {}).get(metric)
                    )
                value = 1 - value if metric == "phone_error_rate" else value
                found.append(
                    (
                        row["row"],
                        run_id,
                        value,
                        result["status"] == "diverged" or any(lost),
                    )
                )
    return pd.DataFrame(found, columns=["row", "run_id", "score", "diverged"])


@cache
def known_of(folder: Path) -> tuple[dict[str, np.ndarray], set[str]]:
    """Scores by row, and rows that diverged."""
    runs = scores_of(folder, PLANS[folder])
    scores = {
        str(row): group["score"].to_numpy()
        for row, group in runs[~runs["diverged"]].groupby("row")
    }
    return scores, set(runs[runs["diverged"]]["row"])


def difference_of(folder: Path, row: str, reference: str) -> tuple[float, float, float]:
    """Difference of two rows' means, and the ends of its interval of 95 %."""
    scores, _ = known_of(folder)
    found = stats.ttest_ind(scores[row], scores[reference], equal_var=False)
    low, high = found.confidence_interval(0.95)
    return float(scores[row].mean() - scores[reference].mean()), float(low), float(high)


def one_sided(
    folder: Path, row: str, reference: str, bound: float, alternative: str
) -> float:
    """p of Welch's test that the difference is not "greater", or not "less", than the bound."""
    scores, _ = known_of(folder)
    return float(
        stats.ttest_ind(
            scores[row] - bound,
            scores[reference],
            equal_var=False,
            alternative=alternative,
        ).pvalue
    )


def claims_of(folder: Path, contrast: dict[str, Any]) -> dict[str, float]:
    """p by what is to be shown."""
    pair = (contrast["row"], contrast["reference"])
    margin = contrast["margin"]
    above, below = (
        one_sided(folder, *pair, -margin, side) for side in ("greater", "less")
    )
    if contrast["kind"] == "non-inferiority":
        return {
            "loses less than the margin": above,
            "loses more than the margin": below,
        }
    if contrast["kind"] == "superiority":
        return {
            word: one_sided(folder, *pair, 0, side)
            for word, side in (("better", "greater"), ("worse", "less"))
        }
    return {
        "equal within the margin": max(above, one_sided(folder, *pair, margin, "less")),
        "better by more than the margin": one_sided(folder, *pair, margin, "greater"),
        "worse by more than the margin": below,
    }


def at_rates(
    folder: Path, plan: dict[str, Any], row: str
) -> dict[tuple[str, float], float]:
    """Mean score of a row at full length, by where and learning rate; where nothing was run,
    nothing."""
    found = {}
    beside = [
        each
        for each in plan["rows"]
        if each.get("rule") == "sensitivity" and each["base"] == row
    ]
    for each in [
        *beside,
        *(own for own in plan["rows"] if own["row"] == row and beside),
    ]:
        runs = (
            each["runs"]
            if each in beside
            else {seed: each["runs"][seed] for one in beside for seed in one["runs"]}
        )
        scores = scores_of(folder, {**plan, "rows": [{"row": row, "runs": runs}]})
        found["test", each["learning_rate"]] = scores.loc[
            ~scores["diverged"], "score"
        ].mean()
    tuning = RESULTS / f"{(plan['tuning'] or {}).get('experiment')}"
    if (tuning / "experiment.json").exists():
        longest = max(each["num_epochs"] for each in plan["rows"])
        own = plan["tuning"].get("choices", {}).get(row, {}).get("candidate")
        for each in json.loads((tuning / "experiment.json").read_text())["rows"]:
            if (each.get("tunes"), each["num_epochs"], each.get("candidate") or 0) == (
                row,
                longest,
                own,
            ):
                scores = scores_of(tuning, {**plan, "rows": [each]})
                found["held out", each["learning_rate"]] = scores.loc[
                    ~scores["diverged"], "score"
                ].mean()
    return found


def is_so_at_one_rate(
    folder: Path, plan: dict[str, Any], contrast: dict[str, Any], estimate: float
) -> bool | None:
    """Whether the difference keeps the estimate's sign wherever both ran at one's chosen rate; None
    if nowhere."""
    rows = {each["row"]: each for each in plan["rows"]}
    pair = [contrast["row"], contrast["reference"]]
    chosen = {rows[name]["learning_rate"] for name in pair}
    mine, theirs = (at_rates(folder, plan, name) for name in pair)
    apart = [
        mine[key] - theirs[key]
        for key in mine.keys() & theirs.keys()
        if key[1] in chosen
    ]
    apart = (
        [each for each in apart if not math.isnan(each)]
        if len(chosen) > 1
        else [estimate]
    )
    return all(each * estimate > 0 for each in apart) if apart else None


def worked_out(folder: Path, plan: dict[str, Any]) -> pd.DataFrame:
    """Estimate, interval, least p, that p adjusted, and word of every contrast."""
    scores, lost = known_of(folder)
    numbers = []
    tests = []
    for number, contrast in enumerate(plan["contrasts"]):
        pair = (contrast["row"], contrast["reference"])
        if set(pair) & lost or min(len(scores.get(name, ())) for name in pair) < 2:
            numbers.append(
                {"word": "diverged" if set(pair) & lost else "not enough runs"}
            )
            tests += [(number, "", 1.0)] * (
                3 if contrast["kind"] == "equivalence" else 2
            )
            continue
        numbers.append(
            dict(
                zip(
                    ("estimate", "low", "high"),
                    difference_of(folder, *pair),
                    strict=True,
                )
            )
        )
        tests += [(number, word, p) for word, p in claims_of(folder, contrast).items()]
    family = pd.DataFrame(tests, columns=["number", "shows", "p"])
    # Questions of exponents are tests of the same family, and are no longer made.
    others = [1.0] * len(plan.get("exponents") or [])
    family["p_holm"] = multipletests([*family["p"], *others], method="holm")[1][
        : len(family)
    ]
    least = family.loc[family.groupby("number")["p"].idxmin()].set_index("number")
    frame = pd.DataFrame(numbers, columns=["estimate", "low", "high", "word"]).join(
        least
    )
    level = 1 - plan["confidence"]
    words = []
    for line, contrast in zip(frame.itertuples(), plan["contrasts"], strict=True):
        if isinstance(line.word, str):
            words.append(line.word)
        elif line.p_holm > level:
            is_difference = contrast["kind"] == "superiority"
            words.append("no difference seen" if is_difference else "undecided")
        else:
            words.append(word(folder, plan, contrast, line.shows, line.estimate))
    frame["word"] = words
    return frame


def word(
    folder: Path,
    plan: dict[str, Any],
    contrast: dict[str, Any],
    shows: str,
    estimate: float,
) -> str:
    """What a contrast has shown whose adjusted p is small enough."""
    if not shows.startswith(("better", "worse")):
        return shows
    is_so = is_so_at_one_rate(folder, plan, contrast, estimate)
    return (
        "not run at equal rate"
        if is_so is None
        else shows
        if is_so
        else "not shown at equal rate"
    )


@pytest.mark.whole
@pytest.mark.parametrize("folder", DECLARED, ids=lambda folder: folder.name)
def test_the_reports_contrasts(folder: Path) -> None:
    reported = contrasts_frame(read_frames(folder))
    found = worked_out(folder, DECLARED[folder])
    assert reported["verdict"].tolist() == found["word"].tolist()
    for column in ("estimate", "low", "high", "p", "p_holm"):
        np.testing.assert_allclose(
            reported[column],
            found[column].astype(float),
            rtol=0,
            atol=1e-9,
            err_msg=column,
        )


@pytest.mark.parametrize("name", ["resnet_regime", "gpt_text"])
def test_what_rows_sent_is_what_their_runs_counted(name: str) -> None:
    """On average, also for a compressor that draws whole tensors and so sends what it happens to."""
    folder = RESULTS / "reference" / name
    _, *lines = (folder / "runs.jsonl").read_text().splitlines()
    results = {run["run_id"]: run["result"] for run in map(json.loads, lines)}
    reported = read_frames(folder).by_row
    for row in PLANS[folder]["rows"]:
        sent = []
        carried = []
        for result in (results[run_id] for run_id in row["runs"].values()):
            training = [
                result["traffic"].get(key, {}) for key in ("gradient", "error", "model")
            ]
            bits, gathered, to_neighbours = (
                sum(entry.get(key, 0) for entry in training)
                for key in ("bits", "gathered_bits", "neighbour_bits")
            )
            model_bits = 32 * row["num_parameters"]
            # The workers' average is taken once more when the run is over.
            at_the_end = row.get("final_exchange", False)
            in_ring = bits - gathered - to_neighbours + at_the_end * model_bits
            n = result["world_size"]
            link = 2 * (n - 1) / n * in_ring + (n - 1) * gathered + to_neighbours
            sent.append(bits / model_bits + at_the_end)
            carried.append(link / model_bits)
        line = reported.loc[row["row"]]
        assert line["models_sent"] == pytest.approx(np.mean(sent), rel=1e-9), row["row"]
        assert line["link_models"] == pytest.approx(np.mean(carried), rel=1e-9), row[
            "row"
        ]
