"""Compute how scores of rows at the same seed correlate, in each shipped experiment with contrasts.

python results/statistics/correlations.py, from the root, writes correlations.csv beside this file.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from cser_bench.harness.records.shipped import shipped_experiments
from cser_bench.report.frame import read_frames
from cser_bench.report.statistics import seed_correlation


def main() -> None:
    """Write correlations.csv."""
    lines = []
    for folder in sorted(shipped_experiments(), key=lambda folder: folder.name):
        frames = read_frames(folder)
        correlation = seed_correlation(frames) if frames.contrasts else None
        if correlation is not None:
            lines.append({"experiment": frames.experiment.name} | asdict(correlation))
    path = Path(__file__).with_suffix(".csv")
    pd.DataFrame(lines).round(4).to_csv(path, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
