"""Three tables worked out again from the raw JSON by pandas and scipy: accuracy, equal bits with link, all pairs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.report.made_up import Built

NUM_WORKERS = 8


def _plan(folder: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((folder / "experiment.json").read_text())
    return plan


def _scores(folder: Path) -> pd.DataFrame:
    """A line per run that ended: row, seed, accuracy by counting (NaN where diverged), and the bits it sent."""
    lines = []
    for row in _plan(folder)["rows"]:
        for seed, run_id in row["runs"].items():
            path = folder / run_id / "result.json"
            if path.exists():
                result = json.loads(path.read_text())
                done = result["status"] == "done"
                accuracy = result["test_correct"] / result["test_count"] if done else np.nan
                sent = {k: v["bits"] for k, v in result["traffic"].items() if k in ("gradient", "error", "model")}
                lines.append((row["row"], int(seed), accuracy, sum(sent.values()), result["num_parameters"]))
    return pd.DataFrame(lines, columns=["row", "seed", "accuracy", "bits", "parameters"])


def _main_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in _plan(folder)["rows"] if row["base"] is None]


def _csv(built: Built, name: str) -> pd.DataFrame:
    return pd.read_csv(built.output / "csv" / f"{name}.csv").set_index("row" if name != "pairs" else "left_row")


def _series(scores: pd.DataFrame, row: str) -> pd.Series[float]:
    return scores[scores.row == row].set_index("seed").accuracy.dropna()


def test_accuracy(regime: Built) -> None:
    scores, table, plan = _scores(regime.records), _csv(regime, "accuracy"), _plan(regime.records)
    assert set(table.index) == {row["row"] for row in _main_rows(regime.records)}
    ceiling, floor = _series(scores, "sgd"), _series(scores, "alone")
    spread = max(ceiling.std(), floor.std())
    assert ceiling.mean() - floor.mean() > max(3 * plan["margin"], 10 * spread)
    for name, line in table.iterrows():
        mine = _series(scores, str(name))
        diverged = scores[(scores.row == name)].accuracy.isna().any()
        assert line["mean"] == pytest.approx(mine.mean()) and line.standard_deviation == pytest.approx(mine.std())
        if name in ("sgd", "alone"):
            assert line.word == {"sgd": "ceiling", "alone": "floor"}[str(name)]
            continue
        difference = (mine - ceiling).dropna()
        assert line.difference == pytest.approx(difference.mean())
        better = stats.ttest_1samp(difference, -plan["margin"], alternative="greater").pvalue < 0.05
        worse = stats.ttest_1samp(difference, -plan["margin"], alternative="less").pvalue < 0.05
        word = "non-inferior" if better else "inferior" if worse else "inconclusive"
        assert line.word == ("diverged" if diverged else word)
        share = ((mine - floor) / (ceiling - floor)).dropna()
        low, high = stats.t.interval(0.95, len(share) - 1, share.mean(), stats.sem(share))
        assert (line.share_of_gap, line.share_low, line.share_high) == pytest.approx((share.mean(), low, high))
    assert {"non-inferior", "inferior", "inconclusive", "diverged"} <= set(table.word)


def test_equal_bits_and_link(regime: Built) -> None:
    scores, table = _scores(regime.records), _csv(regime, "equal_bits")
    for row in _main_rows(regime.records):
        line = table.loc[row["row"]]
        sent = scores[scores.row == row["row"]].iloc[0]
        payload = sent.bits / (32 * sent.parameters)
        own_end = row["algorithm"] not in ("sgd", "ef_sgd", "sgd_accumulate", "alone") and row["row"] != "final_average"
        ring = 2 * (NUM_WORKERS - 1) / NUM_WORKERS
        each = NUM_WORKERS - 1 if "top_k" in row["words"] else ring
        assert line.models_sent == pytest.approx(payload + own_end, rel=1e-6)
        assert line.link_models == pytest.approx(each * payload + ring * own_end, rel=1e-6)
        if payload:
            assert line.true_ratio == pytest.approx(row["num_steps"] / (payload + own_end), rel=1e-6)
        else:
            assert np.isnan(line.true_ratio)
    means = scores.groupby("row").accuracy.mean()
    placed = table[table.place.notna()]
    for _, group in placed.groupby("group_ratio"):
        assert list(group.place) == list(range(1, len(group) + 1))
        assert list(group.index) == sorted(group.index, key=lambda name: -means[name])
    assert set(table[table.place.isna()].index) == {"sgd", "final_average", "alone"}


def test_all_pairs(regime: Built) -> None:
    scores, table = _scores(regime.records), _csv(regime, "pairs").reset_index()
    apart = [r for r in _main_rows(regime.records) if r["row"] not in ("sgd", "final_average", "alone")]
    groups = itertools.groupby(sorted(apart, key=lambda row: row["ratio"]), key=lambda row: row["ratio"])
    expected = [pair for _, rows in groups for pair in itertools.combinations([row["row"] for row in rows], 2)]
    assert list(zip(table.left_row, table.right_row, strict=True)) == expected
    p_values = []
    for left, right in expected:
        a, b = _series(scores, left), _series(scores, right)
        both = a.index.intersection(b.index)
        lost = scores[scores.row.isin([left, right])].accuracy.isna().any()
        test = stats.ttest_rel(a[both], b[both])
        line = table[(table.left_row == left) & (table.right_row == right)].iloc[0]
        assert line.difference == pytest.approx((a[both] - b[both]).mean())
        assert line.p_value == pytest.approx(test.pvalue)
        assert (line.interval_low, line.interval_high) == pytest.approx(tuple(test.confidence_interval(0.95)))
        assert (line.diverged == "yes") == lost
        p_values.append(1.0 if lost else float(test.pvalue))
    # Holm by its adjusted p-values: the running maximum of (m - rank) p over the sorted p.
    order = np.argsort(p_values)
    scaled = np.maximum.accumulate([(len(order) - k) * p_values[i] for k, i in enumerate(order)])
    differs = np.empty(len(order), dtype=bool)
    differs[order] = scaled <= 0.05
    assert list(table.differs_after_holm == "yes") == list(differs)
    assert 0 < differs.sum() < len(differs)
