"""Say which rows cross DDP's score, and at which length the others are run next.

python results/statistics/next_lengths.py FOLDER, from the root, reads the records of an experiment
whose spec declares the rule, such as results/unfinished/score_cnn_t4. A row crosses where its mean
test loss is at most DDP's at one length, and above it at another. Where both lie on one side, the
next length is 1.4 times further, in whole rounds of communication, up to four times the target.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from tabulate import tabulate

from cser_bench.harness.records.experiment import Row, read_experiment
from cser_bench.harness.records.packs import read_result

FACTOR = 1.4
LONGEST = 4
"""Times the target length."""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(
            "usage: next_lengths.py FOLDER, which has the records of an experiment"
        )
    folder = Path(sys.argv[1])
    experiment = read_experiment(folder)
    losses: dict[str, dict[int, float]] = {}
    rounds: dict[str, int] = {}
    counts: dict[str, list[str]] = {}
    for row in experiment.rows:
        found = losses_of(folder, row)
        method = row.row.partition("@")[0]
        if found:
            losses.setdefault(method, {})[row.num_steps] = fmean(found)
        rounds[method] = round_steps_of(row.settings)
        counts.setdefault(method, []).append(f"{len(found)}/{len(row.runs)}")
    baseline = experiment.baseline
    if baseline not in losses:
        sys.exit(
            f"{folder} has no run of {baseline}, whose test loss is the target; run it first"
        )
    (target_length, target), *_ = losses[baseline].items()
    print(f"{baseline}: test loss {target:.4f} at {target_length:,} steps")
    lines = []
    for method, at in losses.items():
        if method == baseline:
            continue
        shown = ", ".join(
            f"{length}: {loss:.4f}" for length, loss in sorted(at.items())
        )
        lines.append(
            (
                method,
                " ".join(counts[method]),
                shown,
                verdict(at, target, target_length, rounds[method]),
            )
        )
    print(tabulate(lines, headers=["row", "runs", "test loss by steps", "next"]))


def losses_of(folder: Path, row: Row) -> list[float]:
    """Return the test losses of a row's finished runs; a diverged one's is infinite."""
    results = [read_result(folder / run) for run in row.runs.values()]
    return [
        math.inf if result.test_loss is None else result.test_loss
        for result in results
        if result is not None
    ]


def round_steps_of(settings: Mapping[str, Any]) -> int:
    """Return the steps after which all of a row's communication begins anew."""
    interval = settings.get("sync_interval") or settings.get("reset_interval") or 1
    whole = int(interval)
    for key, value in settings.items():
        if isinstance(value, dict) and value["kind"] == "block":
            # A block goes at every step, or at every reset, and each has its turn once in R.
            every = 1 if key == "gradient_compressor" else interval
            whole = math.lcm(whole, int(every * value["ratio"]))
    return whole


def verdict(
    losses: Mapping[int, float], target: float, target_length: int, round_steps: int
) -> str:
    """Return the next length of a row with these mean test losses, or how it stands."""
    reached = [length for length, loss in losses.items() if loss <= target]
    behind = [length for length, loss in losses.items() if loss > target]
    if reached and behind:
        return "crosses"
    if reached:
        shorter = min(reached) / FACTOR
        return f"{max(1, round(shorter / round_steps)) * round_steps:,}"
    longest = LONGEST * target_length // round_steps * round_steps
    if max(behind) >= longest:
        return f"not within {LONGEST} times"
    longer = max(behind) * FACTOR
    return f"{min(round(longer / round_steps) * round_steps, longest):,}"


if __name__ == "__main__":
    main()
