"""A made-up experiment with missing, failed and diverged runs, and the building of its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from report.build import build_report
from report.synthetic import METHODS, Design, make_experiment, make_tuning

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
    build_report(folder / "results" / design.name, output=folder / "report")
    return Built(folder / "results" / design.name, folder / "report")
