"""Work out what a step is worth on the dictionary, from three shipped experiments together.

python results/statistics/dictionary_efficiency.py, from the root, writes dictionary_efficiency.csv
and dictionary_means.csv, which has the predictions of table_gpt, beside this file. Runs of AdamW of
one size and length are pooled over gap_text, gap_text_longer and gap_text_load. Lengths of 240 and
480 steps only bound the curve: seeds leave the plateau of single letters there at different steps.
The experiments' lengths are an octave apart, further than a report allows, so this is for
predictions alone.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from cser_bench.report.efficiency import Curve, pooled_deviation, steps_in_draws
from cser_bench.report.frame import read_frames

HERE = Path(__file__).parent
EXPERIMENTS = ("gap_text", "gap_text_longer", "gap_text_load")
PREDICTED = {
    "local-8": "local",
    "local-32": "local-32",
    "cser-8": "cser_blocks",
    "qsparse_4-1": "ef_4bit",
}
"""Rows of the dictionary's experiments, and their names in table_gpt."""

SHORTEST = 961
"""Steps of the shortest runs that are valued."""


def main() -> None:
    runs = all_runs()
    curves = {
        int(str(size)): curve(of_size)
        for size, of_size in runs[runs["method"] == "adamw"].groupby("size")
    }
    lines = []
    valued = runs[(runs["num_steps"] >= SHORTEST) & runs["method"].isin(PREDICTED)]
    for place, group in valued.groupby(["method", "size", "num_steps"]):
        method, size, num_steps = str(place[0]), int(str(place[1])), int(str(place[2]))
        scores = -group["test_loss"].to_numpy()
        own = steps_in_draws(curves[size], [scores])[0][0]
        lines.append((method, size, num_steps, len(scores), own / num_steps))
    table = pd.DataFrame(
        lines,
        columns=["method", "num_parameters", "num_steps", "num_runs", "efficiency"],
    )
    table = table[np.isfinite(table["efficiency"]) & (table["efficiency"] > 0)]
    table.to_csv(HERE / "dictionary_efficiency.csv", index=False, float_format="%.4f")
    means = means_of(table)
    means.to_csv(HERE / "dictionary_means.csv", index=False, float_format="%.4f")
    print(means.to_string(index=False))


def means_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return each method's geometric mean over pairs of size and length, with 95 % CI by t.

    Columns: row (its name in table_gpt), efficiency, low, high, num_pairs; and by how much ln w
    rises with ln N, `slope`, with half its interval.
    """
    lines = []
    for method, group in table.groupby("method"):
        logs = np.log(group["efficiency"])
        num_pairs = len(logs)
        half = stats.t.ppf(0.975, num_pairs - 1) * logs.std() / math.sqrt(num_pairs)
        slope = stats.linregress(np.log(group["num_parameters"]), logs)
        lines.append(
            {
                "row": PREDICTED[str(method)],
                "efficiency": math.exp(logs.mean()),
                "low": math.exp(logs.mean() - half),
                "high": math.exp(logs.mean() + half),
                "num_pairs": num_pairs,
                "slope": slope.slope,
                "slope_half": stats.t.ppf(0.975, num_pairs - 2) * slope.stderr,
            }
        )
    return pd.DataFrame(lines)


def all_runs() -> pd.DataFrame:
    """Return the finished runs of all three experiments, each once."""
    tables = []
    for name in EXPERIMENTS:
        frames = read_frames(HERE.parent / "reference" / name)
        rows = frames.rows[["row", "num_parameters", "num_steps"]]
        runs = frames.runs[frames.runs["status"] == "done"].merge(rows, on="row")
        runs["method"] = runs["row"].str.partition("@")[0]
        tables.append(runs.rename(columns={"num_parameters": "size"}))
    return pd.concat(tables).drop_duplicates("run_id")


def curve(baseline: pd.DataFrame) -> Curve:
    """Return AdamW's curve at one size."""
    by_length = {
        int(str(steps)): -group["test_loss"].to_numpy()
        for steps, group in baseline.groupby("num_steps")
    }
    deviation, degrees = pooled_deviation(list(by_length.values()))
    return Curve(
        steps=np.array(sorted(by_length), dtype=float),
        means=np.array([by_length[steps].mean() for steps in sorted(by_length)]),
        counts=np.array([len(by_length[steps]) for steps in sorted(by_length)]),
        deviation=deviation,
        degrees=degrees,
        tuned=tuple(by_length),
    )


if __name__ == "__main__":
    main()
