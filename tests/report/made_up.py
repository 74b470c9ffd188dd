"""A made-up experiment with missing, failed and diverged runs, and the building of its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from report.accuracy_report import build_report
from report.frame import read_frames
from tests.report.synthetic import METHODS, TOP_K, Design, make_experiment, make_tuning

DESIGN = Design(
    name="small",
    methods=(METHODS[0], METHODS[2], METHODS[4], METHODS[6]),
    ratios=(64, 1024),
    evaluations=6,
    grid=(0.05, 0.1, 0.4),
    diverged=frozenset({("ef_sgd_1024", 2), ("ef_sgd_1024", 4)}),
    missing=frozenset({("csea_64", 5), ("csea_64", 4)}),
    failed=frozenset({("csea_1024", 3)}),
)

REGIME = Design(
    name="regime",
    methods=(METHODS[0], TOP_K, *METHODS[1:]),
    ratios=(12, 96, 384, 600),
    evaluations=4,
    regime=True,
    main_ratio=12,
    lengths=(300, 600, 2_400),
    by_loss=("csea_12", "mcser_96"),
    at_end=("qsparse_local_sgd_12", "ef_sgd_600"),
    grid=(0.025, 0.05, 0.1, 0.2),
    missing=frozenset({("cser_pl_12", 4), ("cser_pl_12", 5)}),
    diverged=frozenset({("ef_sgd_384", 2)}),
)
"""In the regime of the paper: floor, bounds, four ratios, four lengths, both rules."""


@dataclass(frozen=True)
class Built:
    """An experiment's folder and the folder that its report was written into."""

    records: Path
    output: Path

    @property
    def markdown(self) -> str:
        """The report's Markdown."""
        return (self.output / "report.md").read_text()


def build(folder: Path, design: Design, tuning: bool = True) -> Built:
    """Make the records under `folder` and the report of them beside."""
    make_experiment(folder / "results" / design.name, design)
    if tuning:
        make_tuning(folder / "results" / f"{design.name}_tuning", design)
    build_report(read_frames(folder / "results" / design.name), folder / "report")
    return Built(folder / "results" / design.name, folder / "report")
