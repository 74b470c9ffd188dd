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

EXPONENTS = pd.read_csv(RESULTS / "statistics" / "law" / "exponents.csv")
"""What was found of old questions, when they were evaluated."""


def results_of(folder: Path) -> dict[str, Any]:
    """Results of the pack by run id; its first line is no run."""
    pack = folder / "runs.jsonl"
    _, *lines = pack.read_text().splitlines()
    results = {}
    for line in lines:
        run = json.loads(line)
        run_id = run["run_id"]
        results[run_id] = run["result"]
    return results


def scores_of(folder: Path, plan: dict[str, Any]) -> pd.DataFrame:
    """Row, score and whether it diverged, a line a run of the pack that the plan names."""
    results = results_of(folder)
    metric = plan.get("metric") or "accuracy"
    found = []
    for row in plan["rows"]:
        for run_id in row["runs"].values():
            if run_id in results:
                result = results[run_id]
                score = score_of(result, metric)
                is_lost = has_diverged(result)
                line = (row["row"], run_id, score, is_lost)
                found.append(line)
    return pd.DataFrame(found, columns=["row", "run_id", "score", "diverged"])


def score_of(result: dict[str, Any], metric: str) -> float | None:
    """More is better."""
    match metric:
        case "loss":
            loss = result["test_loss"]
            if loss is None:
                return None
            score: float = -loss
            return score
        case "accuracy":
            accuracy: float | None = result["test_accuracy"]
            return accuracy
    metrics = result["metrics"] or {}
    value: float | None = metrics.get(metric)
    if metric == "phone_error_rate" and value is not None:
        return 1 - value
    return value


def has_diverged(result: dict[str, Any]) -> bool:
    """A loss of a thousand guesses is as if it were not finite."""
    counts = result.get("class_counts") or [[]]
    classes = len(counts[0])
    if classes <= 1:
        # Text without labels has windows of one class.
        classes = 50_000
    most = 1000 * math.log(classes)
    if result["status"] == "diverged":
        return True
    for key in ("train_loss", "test_loss"):
        loss = result[key]
        if loss is None:
            continue
        if not math.isfinite(loss) or loss > most:
            return True
    return False


@cache
def known_of(folder: Path) -> tuple[dict[str, np.ndarray], set[str]]:
    """Scores by row, and rows that diverged."""
    runs = scores_of(folder, PLANS[folder])
    done = runs[~runs["diverged"]]
    scores = {}
    for row, group in done.groupby("row"):
        scores[str(row)] = group["score"].to_numpy()
    diverged = runs.loc[runs["diverged"], "row"]
    return scores, set(diverged)


def difference_of(folder: Path, row: str, reference: str) -> tuple[float, float, float]:
    """Difference of two rows' means, and the ends of its interval of 95 %."""
    scores, _ = known_of(folder)
    own = scores[row]
    others = scores[reference]
    found = stats.ttest_ind(own, others, equal_var=False)
    low, high = found.confidence_interval(0.95)
    estimate = own.mean() - others.mean()
    return float(estimate), float(low), float(high)


def one_sided(
    folder: Path, row: str, reference: str, bound: float, alternative: str
) -> float:
    """p of Welch's test that the difference is not "greater", or not "less", than the bound."""
    scores, _ = known_of(folder)
    beyond = scores[row] - bound
    others = scores[reference]
    found = stats.ttest_ind(beyond, others, equal_var=False, alternative=alternative)
    return float(found.pvalue)


def claims_of(folder: Path, contrast: dict[str, Any]) -> dict[str, float]:
    """p by what is to be shown."""
    pair = (contrast["row"], contrast["reference"])
    margin = contrast["margin"]
    above = one_sided(folder, *pair, -margin, "greater")
    below = one_sided(folder, *pair, -margin, "less")
    if contrast["kind"] == "non-inferiority":
        return {
            "loses less than the margin": above,
            "loses more than the margin": below,
        }
    if contrast["kind"] == "superiority":
        return {
            "better": one_sided(folder, *pair, 0, "greater"),
            "worse": one_sided(folder, *pair, 0, "less"),
        }
    beyond = one_sided(folder, *pair, margin, "greater")
    under = one_sided(folder, *pair, margin, "less")
    return {
        "equal within the margin": max(above, under),
        "better by more than the margin": beyond,
        "worse by more than the margin": below,
    }


def where_tuned(plan: dict[str, Any], row: str) -> tuple[dict[str, Any], str]:
    """The plan that has tuned a row, and its name there: another's, where that has its runs, and
    searched with the same seeds on the same samples."""
    own = plan["tuning"]
    if own is None or row in own.get("choices", {}):
        return plan, row
    runs = {
        run
        for each in plan["rows"]
        if each["row"] == row
        for run in each["runs"].values()
    }
    for other in PLANS.values():
        theirs = other["tuning"] or {}
        is_alike = theirs.get("seeds") == own["seeds"]
        is_alike &= other["config"]["task"] == plan["config"]["task"]
        for each in other["rows"]:
            is_tuned = each["row"] in theirs.get("choices", {})
            if is_alike and is_tuned and runs & set(each["runs"].values()):
                return other, each["row"]
    return plan, row


def at_rates(
    folder: Path, plan: dict[str, Any], row: str
) -> dict[tuple[str, float], float]:
    """Mean score of a row at full length, by where and learning rate; where nothing was run,
    nothing."""
    found = {}

    def note(place: str, folder: Path, rate: float, runs: dict[str, str]) -> None:
        """Keep the mean score of these runs."""
        alone = {"row": row, "runs": runs}
        only = {**plan, "rows": [alone]}
        scores = scores_of(folder, only)
        done = scores.loc[~scores["diverged"], "score"]
        found[place, rate] = done.mean()

    beside = []
    for each in plan["rows"]:
        if each.get("rule") == "sensitivity" and each["base"] == row:
            beside.append(each)
    seeds = set()
    for each in beside:
        note("test", folder, each["learning_rate"], each["runs"])
        seeds |= each["runs"].keys()
    for own in plan["rows"]:
        if own["row"] == row and beside:
            # At the chosen rate, the runs of the same seeds.
            runs = {seed: own["runs"][seed] for seed in seeds}
            note("test", folder, own["learning_rate"], runs)
    tuned, name = where_tuned(plan, row)
    tuning = RESULTS / f"{(tuned['tuning'] or {}).get('experiment')}"
    if (tuning / "experiment.json").exists():
        longest = max(each["num_epochs"] for each in plan["rows"])
        choices = tuned["tuning"].get("choices", {})
        choice = choices.get(name, {})
        chosen = choice.get("candidate")
        text = (tuning / "experiment.json").read_text()
        trials = json.loads(text)
        for each in trials["rows"]:
            is_of_row = each.get("tunes") == name
            is_whole = each["num_epochs"] == longest
            candidate = each.get("candidate") or 0
            if is_of_row and is_whole and candidate == chosen:
                note("held out", tuning, each["learning_rate"], each["runs"])
    return found


def is_so_at_one_rate(
    folder: Path, plan: dict[str, Any], contrast: dict[str, Any], estimate: float
) -> bool | None:
    """Whether the difference keeps the estimate's sign wherever both ran at one's chosen rate; None
    if nowhere."""
    rows = {each["row"]: each for each in plan["rows"]}
    pair = [contrast["row"], contrast["reference"]]
    chosen = {rows[name]["learning_rate"] for name in pair}
    if len(chosen) == 1:
        return estimate != 0
    mine = at_rates(folder, plan, contrast["row"])
    theirs = at_rates(folder, plan, contrast["reference"])
    keeps_sign = []
    for place, rate in mine.keys() & theirs.keys():
        apart = mine[place, rate] - theirs[place, rate]
        if rate in chosen and not math.isnan(apart):
            keeps_sign.append(apart * estimate > 0)
    if not keeps_sign:
        return None
    return all(keeps_sign)


def worked_out(folder: Path, plan: dict[str, Any]) -> pd.DataFrame:
    """Estimate, interval, least p, that p adjusted, and word of every contrast."""
    scores, lost = known_of(folder)
    numbers = []
    tests = []
    for number, contrast in enumerate(plan["contrasts"]):
        pair = (contrast["row"], contrast["reference"])
        has_diverged_row = bool(set(pair) & lost)
        counts = [len(scores.get(name, ())) for name in pair]
        fewest = min(counts)
        if has_diverged_row or fewest < 2:
            reason = "not enough runs"
            if has_diverged_row:
                reason = "diverged"
            numbers.append({"word": reason})
            num_tests = 2
            if contrast["kind"] == "equivalence":
                num_tests = 3
            tests += [(number, "", 1.0)] * num_tests
            continue
        estimate, low, high = difference_of(folder, *pair)
        numbers.append({"estimate": estimate, "low": low, "high": high})
        for claim, p in claims_of(folder, contrast).items():
            tests.append((number, claim, p))
    family = pd.DataFrame(tests, columns=["number", "shows", "p"])
    # Questions of exponents are tests of the same family, which are no longer made.
    others = EXPONENTS.loc[EXPONENTS["experiment"] == plan["name"], "p"].tolist()
    assert len(others) == len(plan.get("exponents") or [])
    all_p = [*family["p"], *others]
    _, adjusted, _, _ = multipletests(all_p, method="holm")
    family["p_holm"] = adjusted[: len(family)]
    places = family.groupby("number")["p"].idxmin()
    least = family.loc[places].set_index("number")
    frame = pd.DataFrame(numbers, columns=["estimate", "low", "high", "word"])
    frame = frame.join(least)
    level = 1 - plan["confidence"]
    words = []
    for line, contrast in zip(frame.itertuples(), plan["contrasts"], strict=True):
        if isinstance(line.word, str):
            words.append(line.word)
        elif line.p_holm > level:
            if contrast["kind"] == "superiority":
                words.append("no difference seen")
            else:
                words.append("undecided")
        else:
            shown = word(folder, plan, contrast, line.shows, line.estimate)
            words.append(shown)
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
    if is_so is None:
        return "not run at equal rate"
    if not is_so:
        return "not shown at equal rate"
    return shows


@pytest.mark.whole
@pytest.mark.parametrize("folder", DECLARED, ids=lambda folder: folder.name)
def test_the_reports_contrasts(folder: Path) -> None:
    reported = contrasts_frame(read_frames(folder))
    found = worked_out(folder, DECLARED[folder])
    verdicts = reported["verdict"].tolist()
    assert verdicts == found["word"].tolist()
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
    results = results_of(folder)
    reported = read_frames(folder).by_row
    for row in PLANS[folder]["rows"]:
        sent = []
        carried = []
        for run_id in row["runs"].values():
            result = results[run_id]
            bits = gathered = to_neighbours = 0
            for purpose in ("gradient", "error", "model"):
                entry = result["traffic"].get(purpose, {})
                bits += entry.get("bits", 0)
                gathered += entry.get("gathered_bits", 0)
                to_neighbours += entry.get("neighbour_bits", 0)
            model_bits = 32 * row["num_parameters"]
            # The workers' average is taken once more when the run is over.
            at_the_end = row.get("final_exchange", False)
            in_ring = bits - gathered - to_neighbours
            in_ring += at_the_end * model_bits
            n = result["world_size"]
            per_ring = 2 * (n - 1) / n
            link = per_ring * in_ring
            link += (n - 1) * gathered
            link += to_neighbours
            sent.append(bits / model_bits + at_the_end)
            carried.append(link / model_bits)
        name = row["row"]
        line = reported.loc[name]
        mean_sent = pytest.approx(np.mean(sent), rel=1e-9)
        mean_carried = pytest.approx(np.mean(carried), rel=1e-9)
        assert line["models_sent"] == mean_sent, name
        assert line["link_models"] == mean_carried, name
