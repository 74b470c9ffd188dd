"""Queries on what methods score, send and hold, for the placeholders of answers."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pandas as pd

from cser_bench.harness.errors import UsageError
from cser_bench.report.advice.needs import methods_in_job
from cser_bench.report.advice.runs import methods_run
from cser_bench.report.collection import Collection, folder_in_results
from cser_bench.report.efficiency_section import efficiency_cell, efficiency_of
from cser_bench.report.frame import Frames
from cser_bench.report.sensitivity import NOT_CLAIMED, claimed_contrasts
from cser_bench.report.setting import key_of, setting_in_short
from cser_bench.report.speed.job import RESNET50
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
from cser_bench.report.wording import NOT_TESTED, code, gap_unit, listed, short, traffic

Form = Literal["sentence", "short", "cell"]

"""How a number stands: "0.22 points (95 % CI 0.06 to 0.37)", "0.22 points", "0.22 (0.06 to 0.37)"."""

DIGITS = {(True, True): 2, (True, False): 2, (False, True): 4, (False, False): 3}
"""Decimals of a gap, by whether it is in points, and whether it is a table's cell."""

GAPS = {"nats": "loss gap"}
"""What a gap is called in a table's head, by its unit; others are drops."""

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

    def mean(self, experiment: str, row: str) -> str:
        """Return the mean score of a row's runs, as "90.66 %" or "1.153 nats"."""
        frames = self._with(experiment, row)
        score = float(frames.done(row).mean())
        metric = frames.metric
        if not metric.is_share:
            return f"{-score:.3f} {metric.loss_unit}"
        unit = metric.label
        if metric.unit == "percent":
            unit = "%"
        return f"{100 * score:.2f} {unit}"

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

    def rate(self, experiment: str, row: str) -> str:
        """Return a row's learning rate."""
        return short(float(self._with(experiment, row).row(row)["learning_rate"]))

    def memory(self, experiment: str, row: str) -> str:
        """Return the most that a worker holds in a step, in sizes of the model, activations left out."""
        held = self._with(experiment, row).row(row)["peak_models"]
        if held is None or math.isnan(held):
            raise UsageError(
                f"the record of {experiment} does not say what {row} holds"
            )
        return f"{held:.1f}"

    def distance(
        self, experiment: str, row: str, when: Literal["largest", "last"]
    ) -> str:
        """Return how far workers are from their mean, on average over seeds, at a score of a run."""
        scores = self._with(experiment, row).scores
        # At step 0 all workers have the same parameters.
        of_row = scores[(scores["row"] == row) & (scores["step"] > 0)]
        # Index: step.
        means = of_row.groupby("step")["worker_distance"].mean().dropna()
        if means.empty:
            raise UsageError(
                f"the runs of {row} in {experiment} have no distance of workers"
            )
        distance = means.iloc[-1]
        if when == "largest":
            distance = means.max()
        return f"{distance:.3g}"

    def needed(self, experiment: str, row: str, gbits: float) -> str:
        """Return the efficiency at which a row ties with DDP's fp16 hook, on ResNet-50 and 8 GPUs."""
        frames = self._with(experiment, row)
        record = next(each for each in frames.experiment.rows if each.row == row)
        key = key_of(frames.experiment, record)
        methods = [method for method in methods_run([frames]) if method.key == key]
        if not methods:
            raise UsageError(
                f"{row} of {experiment} is no method whose step can be modelled"
            )
        job = replace(RESNET50, bits_per_second=1e9 * gbits)
        # With DDP and its hook, which stand for no method that was run.
        in_job = [line for line in methods_in_job(job, methods, ()) if line.method]
        return f"{in_job[0].over_hook:.2f}"

    def table(
        self, experiment: str, rows: Sequence[str] | Mapping[str, str], *columns: str
    ) -> str:
        """Return a table with a line a row.

        Args:
            rows: names of rows, or what the table calls them by name.
            columns: of `setting`, `traffic`, `mean`, `gap`, `efficiency`, `rate`, `memory`, `verdict`
                and `needed`, the last with the Gb/s of a link behind it, as in `needed 25`.
        """
        frames = self._with(experiment, *rows)
        unit = gap_unit(frames.metric)
        heads = {
            "gap": f"{GAPS.get(unit, 'drop')}, {unit} (95 % CI)",
            "efficiency": "efficiency (95 % CI)",
            "mean": frames.metric.score_label,
            "rate": "learning rate",
            "memory": "models held",
            "verdict": "test",
        }
        head = ["method"]
        dashes = ["---"]
        for column in columns:
            word, _, gbits = column.partition(" ")
            title = heads.get(word, word)
            if gbits:
                title = f"needed at {gbits} Gb/s"
            head.append(title)
            # Words are aligned to the left, numbers to the right.
            dashes.append("---" if column in ("setting", "verdict") else "---:")
        lines = [head, dashes]
        for row in rows:
            label = str(frames.row(row)["label"])
            if isinstance(rows, Mapping):
                label = rows[row]
            cells = [self._table_cell(frames, row, column) for column in columns]
            lines.append([label, *cells])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def _table_cell(self, frames: Frames, row: str, column: str) -> str:
        """Return a row's cell of a column of `table`."""
        name = frames.experiment.name
        word, _, gbits = column.partition(" ")
        if word == "setting":
            record = next(each for each in frames.experiment.rows if each.row == row)
            return setting_in_short(record)
        if word == "needed":
            return self.needed(name, row, float(gbits))
        if word in ("gap", "efficiency"):
            query = {"gap": self.gap, "efficiency": self.efficiency}[word]
            return query(name, row, "cell")
        queries = {
            "traffic": self.traffic,
            "mean": self.mean,
            "rate": self.rate,
            "memory": self.memory,
            "verdict": self.verdict,
        }
        if word not in queries:
            names = ", ".join(("setting", "gap", "efficiency", "needed 25", *queries))
            raise UsageError(f"a table has no column {column!r}; name one of {names}")
        return queries[word](name, row)

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
