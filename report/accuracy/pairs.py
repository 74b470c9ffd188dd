"""Every pair of methods at each ratio, paired by seed, with Holm's correction over all of them together."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from report.accuracy.findings import Finding, RatioGroup, Study
from report.kit.statistics import Paired, holm, pair


@dataclass(frozen=True)
class Pair:
    """Two rows of one ratio. `difference` is left minus right; `differs` is the word after Holm's correction."""

    group: RatioGroup
    left: Finding
    right: Finding
    paired: Paired | None
    diverged: bool
    differs: bool

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Ids of the runs of both."""
        return self.left.records.run_ids + self.right.records.run_ids


def pairs_of(study: Study) -> tuple[Pair, ...]:
    """All pairs of the main length. A pair that cannot be tested stays in the family, with p = 1."""
    found = []
    for group in study.groups:
        for left, right in itertools.combinations(group.findings, 2) if group.one_row_a_method else ():
            paired = pair(left.records.accuracy, right.records.accuracy)
            found.append((group, left, right, paired, bool(left.records.diverged or right.records.diverged)))
    p_values = [
        1.0 if lost or paired is None or paired.p_value is None else paired.p_value for *_, paired, lost in found
    ]
    kept = holm(p_values, 1 - study.records.experiment.confidence)
    return tuple(Pair(*entry, differs) for entry, differs in zip(found, kept, strict=True))
