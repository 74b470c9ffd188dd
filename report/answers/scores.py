"""Queries on what methods score and send, for the placeholders of answers."""

from __future__ import annotations

import math
import posixpath
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from cser_bench.harness.errors import UsageError
from cser_bench.report.collection import Collection, folder_in_results
from cser_bench.report.efficiency_section import efficiency_cell, efficiency_of
from cser_bench.report.frame import Frames
from cser_bench.report.sensitivity import NOT_CLAIMED, claimed_contrasts
from cser_bench.report.statistics import (
    BETTER,
    BETTER_BY_MARGIN,
    EQUAL,
    LESS,
    MORE,
    NO_DIFFERENCE,
    UNDECIDED,
    WORSE,
    WORSE_BY_MARGIN,
    difference,
    rows_by_place,
)
from cser_bench.report.wording import NOT_TESTED, code, gap_unit, listed, traffic

Form = Literal["sentence", "short", "cell"]

"""How a number stands: "0.22 points (95 % CI 0.06 to 0.37)", "0.22 points", "0.22 (0.06 to 0.37)"."""

DIGITS = {(True, True): 2, (True, False): 2, (False, True): 4, (False, False): 3}
"""Decimals of a gap, by whether it is in points, and whether it is a table's cell."""


WORDS_OF_VERDICTS = {
    LESS: "within the margin",
    MORE: "beyond the margin",
    BETTER: "better",
    WORSE: "worse",
    EQUAL: "equal within the margin",
    BETTER_BY_MARGIN: "better by more than the margin",
    WORSE_BY_MARGIN: "worse by more than the margin",
    UNDECIDED: "inconclusive",
    NO_DIFFERENCE: "inconclusive",
    NOT_CLAIMED: "not sensitive enough",
}
"""What a declared test has shown, as answers say it."""


@dataclass(frozen=True)
class Scores:
    """Queries by the names of an experiment and its rows; each returns a text or raises UsageError."""

    collection: Collection
    root: str = ".."
    """The folder of the results, from the page that links to a report."""
    _tables: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict)

    def gap(self, experiment: str, row: str, form: Form = "sentence") -> str:
        """Return a row's accuracy drop or loss gap to the baseline of its size and length."""
        frames = self._with(experiment, row)
        line = frames.row(row)
        place = (int(line["num_parameters"]), int(line["num_steps"]))
        reference = rows_by_place(frames, frames.experiment.baseline).get(place)
        if reference is None:
            raise UsageError(
                f"{experiment} has no baseline of the size and length of {row}"
            )
        return self.contrast(experiment, row, reference, form)

    def contrast(
        self, experiment: str, row: str, reference: str, form: Form = "sentence"
    ) -> str:
        """Return how much worse a row scored than another; negative is better."""
        frames = self._with(experiment, row, reference)
        found = difference(frames, row, reference)
        if row == reference or found is None or math.isnan(found.estimate):
            raise UsageError(
                f"{row} and {reference} of {experiment} have no difference"
            )
        unit = gap_unit(frames.metric)
        digits = DIGITS[frames.metric.is_share, form == "cell"]
        # A drop is minus a difference, so the low end of the one is the high end of the other.
        drop, high, low = (
            _worse(end, frames.metric.is_share, digits)
            for end in (found.estimate, *found.interval())
        )
        has_interval = not math.isnan(found.standard_error)
        if form == "cell":
            return f"{drop} ({low} to {high})" if has_interval else drop
        if form == "short" or not has_interval:
            return f"{drop} {unit}"
        return f"{drop} {unit} (95 % CI {low} to {high})"

    def verdict(self, experiment: str, row: str, reference: str | None = None) -> str:
        """Return what the declared test of a row shows, against the baseline or another row."""
        frames = self._with(experiment, row)
        other = reference or frames.experiment.baseline
        tests = self._claimed(frames)
        found = tests[(tests["row"] == row) & (tests["reference"] == other)]
        if found.empty:
            return NOT_TESTED
        word = str(found["verdict"].iloc[0])
        return WORDS_OF_VERDICTS.get(word, word)

    def count(self, *experiments: str, verdict: str | None = None) -> str:
        """Count the rows of experiments that were tested against the margin.

        Args:
            verdict: those alone of which `verdict` returns this.
        """
        number = 0
        for experiment in experiments:
            tests = self._claimed(self._frames(experiment))
            words = tests.loc[tests["kind"] == "non-inferiority", "verdict"]
            words = words.map(lambda word: WORDS_OF_VERDICTS.get(word, word))
            if verdict is not None:
                words = words[words == verdict]
            number += len(words)
        return str(number)

    def efficiency(self, experiment: str, row: str, form: Form = "sentence") -> str:
        """Return what a step of a row is worth, in steps of the baseline."""
        frames = self._with(experiment, row)
        table = self._table(experiment, "efficiency", frames)
        lines = table[table["row"] == row].to_dict("records")
        if not lines or lines[0]["kind"] == "none":
            raise UsageError(f"the efficiency of {row} in {experiment} is not measured")
        cell = efficiency_cell(lines[0])
        if form == "cell":
            return cell
        if form == "short":
            return cell.partition(" (")[0]
        return cell.replace("(", "(95 % CI ")

    def traffic(self, experiment: str, row: str) -> str:
        """Return what a row's link carries as a share of the baseline's, as "1/24"."""
        frames = self._with(experiment, row)
        baseline = frames.row(str(frames.experiment.baseline))
        line = frames.row(row)
        # A step, as the baseline may have been run at other lengths than the row.
        per_step = line["link_models"] / line["num_steps"]
        return traffic(per_step * baseline["num_steps"] / baseline["link_models"])

    def report(self, *experiments: str) -> str:
        """Return links to the reports of experiments."""
        links = []
        for name in experiments:
            place = posixpath.normpath(
                f"{self.root}/{folder_in_results(self._frames(name))}"
            )
            links.append(f"[{code(name)}]({place}/report.md)")
        return listed(links)

    def _frames(self, experiment: str) -> Frames:
        """Return an experiment that has finished runs, or raise UsageError."""
        frames = self.collection.find(experiment)
        if frames is None:
            raise UsageError(
                f"no experiment {experiment} with finished runs ships; name another"
            )
        return frames

    def _with(self, experiment: str, *rows: str) -> Frames:
        """Return an experiment in which all these rows have finished runs."""
        frames = self._frames(experiment)
        for row in rows:
            if row not in frames.by_row.index or frames.done(row).empty:
                names = ", ".join(str(name) for name in frames.by_row.index[:30])
                raise UsageError(
                    f"{experiment} has no runs of a row {row}; name one of {names}"
                )
        return frames

    def _claimed(self, frames: Frames) -> pd.DataFrame:
        """Return `claimed_contrasts`, worked out once."""
        return self._table(frames.experiment.name, "tests", frames)

    def _table(self, experiment: str, kind: str, frames: Frames) -> pd.DataFrame:
        """Return an experiment's tests or efficiencies, worked out once."""
        key = (experiment, kind)
        if key not in self._tables:
            if kind == "tests":
                self._tables[key] = claimed_contrasts(frames)
            else:
                # A line by each score: the first that a row has one by counts, the test loss.
                by_row = efficiency_of(frames)
                self._tables[key] = by_row.drop_duplicates("row")
        return self._tables[key]


def _worse(difference: float, is_share: bool, digits: int) -> str:
    """Write by how much a score is worse, of a share in hundredths."""
    worse = -difference
    if is_share:
        worse *= 100
    # Rounded first, as sums in two orders differ in the last bits and are to be printed alike.
    worse = round(round(worse, 9), digits)
    # What rounds to nothing has no sign.
    return f"{worse + 0.0:.{digits}f}"
