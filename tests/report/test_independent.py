"""The declared contrasts worked out again from the packs alone, by pandas, scipy and statsmodels and no code of ours.

It is written from the rule. Runs are not paired. A row whose training loss or test loss at the end is not finite, or
beyond 1,000 times that of a constant guess, has diverged. The rows that contrasts name, without the baseline, share
their residual variance where a Brown-Forsythe test at 5 % does not object; else each has its own. The baseline always
has its own. Degrees of freedom are Satterthwaite's. Holm's correction is over an experiment's declared contrasts; that
of "loses more than the margin" over its non-inferiority contrasts. One row is better than another only where the
difference of their means has the same sign with one learning rate for both, at each one's own rate that both were run
at for the experiment's length: on test samples at rates beside the chosen ones, or in the tuning on held-out samples.
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

RESULTS = Path(__file__).parents[2] / "results"
PLANS = {path.parent: json.loads(path.read_text()) for path in sorted(RESULTS.rglob("experiment.json"))}
PACKED = [folder for folder in PLANS if (folder / "runs.jsonl").exists() and (folder / "csv").exists()]
"""What ships; one's own runs beside it are not packed."""
DECLARED = {folder: PLANS[folder] for folder in PACKED if PLANS[folder].get("contrasts")}


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
                classes = len(result["class_counts"][0]) if result.get("class_counts") else 50_000
                losses = [result[key] for key in ("train_loss", "test_loss") if result[key] is not None]
                lost = [not math.isfinite(loss) or loss > 1000 * math.log(classes) for loss in losses]
                if metric == "loss":
                    value = None if result["test_loss"] is None else -result["test_loss"]
                else:
                    value = result["test_accuracy"] if metric == "accuracy" else (result["metrics"] or {}).get(metric)
                value = 1 - value if metric == "phone_error_rate" else value
                found.append((row["row"], run_id, value, result["status"] == "diverged" or any(lost)))
    return pd.DataFrame(found, columns=["row", "run_id", "score", "diverged"])


@cache
def known_of(folder: Path) -> tuple[dict[str, Any], set[str], set[str], float, int]:
    """Scores by row; rows that diverged; rows that share a variance, with it and its degrees of freedom."""
    plan = PLANS[folder]
    runs = scores_of(folder, plan)
    scores = {row: group["score"].to_numpy() for row, group in runs[~runs["diverged"]].groupby("row")}
    named = {each[key] for each in plan.get("contrasts") or [] for key in ("row", "reference")} - {plan["baseline"]}
    groups = [scores[row] for row in sorted(named) if len(scores.get(row, ())) > 1]
    if len(groups) < 2 or stats.levene(*groups, center="median").pvalue < 0.05:
        return scores, set(runs[runs["diverged"]]["row"]), set(), math.nan, 0
    residuals = np.concatenate([each - each.mean() for each in groups])
    freedom = len(residuals) - len(groups)
    return scores, set(runs[runs["diverged"]]["row"]), named, (residuals**2).sum() / freedom, freedom


def difference_of(folder: Path, row: str, reference: str) -> tuple[float, float, float]:
    """Difference of two rows' means, its standard error and degrees of freedom."""
    scores, _, pooled, variance, freedom = known_of(folder)

    def part(name: str) -> tuple[float, int]:
        if name in pooled:
            return variance / len(scores[name]), freedom
        return float(stats.sem(scores[name]) ** 2), len(scores[name]) - 1

    (mine, own), (theirs, other) = part(row), part(reference)
    error = math.sqrt(mine + theirs)
    degrees = own if {row, reference} <= pooled else error**4 / (mine**2 / own + theirs**2 / other)
    return float(scores[row].mean() - scores[reference].mean()), error, degrees


def at_rates(folder: Path, plan: dict[str, Any], row: str) -> dict[tuple[str, float], float]:
    """Mean score of a row at full length, by where and learning rate; where nothing was run, nothing."""
    found = {}
    beside = [each for each in plan["rows"] if each.get("rule") == "sensitivity" and each["base"] == row]
    for each in [*beside, *(own for own in plan["rows"] if own["row"] == row and beside)]:
        runs = each["runs"] if each in beside else {seed: each["runs"][seed] for one in beside for seed in one["runs"]}
        scores = scores_of(folder, {**plan, "rows": [{"row": row, "runs": runs}]})
        found["test", each["learning_rate"]] = scores.loc[~scores["diverged"], "score"].mean()
    tuning = RESULTS / f"{(plan['tuning'] or {}).get('experiment')}"
    if (tuning / "experiment.json").exists():
        longest = max(each["num_epochs"] for each in plan["rows"])
        own = plan["tuning"].get("choices", {}).get(row, {}).get("candidate")
        for each in json.loads((tuning / "experiment.json").read_text())["rows"]:
            if (each.get("tunes"), each["num_epochs"], each.get("candidate") or 0) == (row, longest, own):
                scores = scores_of(tuning, {**plan, "rows": [each]})
                found["held out", each["learning_rate"]] = scores.loc[~scores["diverged"], "score"].mean()
    return found


def is_so_at_one_rate(folder: Path, plan: dict[str, Any], contrast: dict[str, Any], estimate: float) -> bool | None:
    """Whether the difference keeps the estimate's sign wherever both ran at one's chosen rate; None if nowhere."""
    rows = {each["row"]: each for each in plan["rows"]}
    pair = [contrast["row"], contrast["reference"]]
    chosen = {rows[name]["learning_rate"] for name in pair}
    mine, theirs = (at_rates(folder, plan, name) for name in pair)
    apart = [mine[key] - theirs[key] for key in mine.keys() & theirs.keys() if key[1] in chosen]
    apart = [each for each in apart if not math.isnan(each)] if len(chosen) > 1 else [estimate]
    return all(each * estimate > 0 for each in apart) if apart else None


def worked_out(folder: Path, plan: dict[str, Any]) -> pd.DataFrame:
    """Estimate, interval, p, adjusted p and word of every contrast."""
    scores, lost, *_ = known_of(folder)
    contrasts = plan["contrasts"]
    lines = []
    for contrast in contrasts:
        row, reference, margin = contrast["row"], contrast["reference"], contrast["margin"]
        if min(len(scores.get(row, ())), len(scores.get(reference, ()))) < 2 or {row, reference} & lost:
            lines.append(
                {
                    "p": 1.0,
                    "p_more": float("nan") if contrast["kind"] == "superiority" else 1.0,
                    "word": "diverged" if {row, reference} & lost else "not enough runs",
                }
            )
            continue
        estimate, error, degrees = difference_of(folder, row, reference)
        low, high = stats.t.interval(0.95, degrees, loc=estimate, scale=error)
        below, above = (
            stats.t.sf((estimate + margin) / error, degrees),
            stats.t.cdf((estimate - margin) / error, degrees),
        )
        p = {"non-inferiority": below, "equivalence": max(below, above)}.get(contrast["kind"])
        p = 2 * stats.t.sf(abs(estimate) / error, degrees) if p is None else p
        apart = min(1.0, 2 * stats.t.sf((abs(estimate) - margin) / error, degrees))
        more = {"non-inferiority": 1 - below, "equivalence": apart}.get(contrast["kind"], math.nan)
        line = {"estimate": estimate, "low": low, "high": high, "p": p, "p_more": more}
        lines.append(line | {"is_so": is_so_at_one_rate(folder, plan, contrast, estimate)})
    frame = pd.DataFrame(lines, columns=["estimate", "low", "high", "p", "p_more", "word", "is_so"])
    frame["kind"] = [contrast["kind"] for contrast in contrasts]
    frame["p_holm"] = multipletests(frame["p"], method="holm")[1]
    for kind in ("non-inferiority", "equivalence"):
        asked = frame["kind"] == kind
        adjusted = multipletests(frame.loc[asked, "p_more"], method="holm")[1] if asked.any() else []
        frame.loc[asked, "p_more_holm"] = adjusted
    level = 1 - plan["confidence"]
    frame["word"] = [line.word if isinstance(line.word, str) else word(line, level) for line in frame.itertuples()]
    return frame


def word(line: Any, level: float) -> str:
    """What a contrast has shown."""
    shown = line.p_holm <= level
    if line.kind == "non-inferiority":
        more = "loses more than the margin" if line.p_more_holm <= level else "not told apart"
        return "loses less than the margin" if shown else more
    if line.kind == "equivalence" and shown:
        return "equal within the margin"
    if not shown and not line.p_more_holm <= level:
        return "not told apart"
    if pd.isna(line.is_so):
        return "not run at equal rate"
    how = ("better" if line.estimate > 0 else "worse") + " by more than the margin" * (line.kind == "equivalence")
    return how if line.is_so else "not shown at equal rate"


@pytest.mark.parametrize("folder", DECLARED, ids=lambda folder: folder.name)
def test_the_reports_contrasts(folder: Path) -> None:
    reported, found = pd.read_csv(folder / "csv" / "contrasts.csv"), worked_out(folder, DECLARED[folder])
    assert reported["verdict"].tolist() == found["word"].tolist()
    for column in ("estimate", "low", "high", "p", "p_holm", "p_more_holm"):
        np.testing.assert_allclose(reported[column], found[column].astype(float), rtol=0, atol=1e-9, err_msg=column)
