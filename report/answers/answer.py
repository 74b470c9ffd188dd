"""An answer as data: the question, what is said of it and by which numbers, the exhibit, where it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from report.accuracy.findings import Finding, Study
from report.accuracy.records import Records, RowRuns
from report.kit.document import Cell, Column, Table
from report.kit.statistics import pair, summarise
from report.kit.wording import amount, bounds, count_of, points, whole


@dataclass(frozen=True)
class Number:
    """A number of an answer, by a key of its own. `low` and `high` bound it at 95 %; `count`: of runs, or of pairs."""

    key: str
    value: float
    low: float | None = None
    high: float | None = None
    count: int | None = None

    @property
    def told(self) -> str:
        """ "better", "worse" or "not told apart", by the interval."""
        if self.low is None or self.high is None:
            return "too few runs to tell"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "not told apart"

    def points(self) -> str:
        """A difference of shares: "−0.47 points (95 %: −0.67 to −0.27)"."""
        if self.low is None:
            return f"{points(self.value)} points (one seed)"
        return f"{points(self.value)} points (95 %: {bounds(self.low, self.high)})"


@dataclass(frozen=True)
class Question:
    """What a reader asked. `changes`: what would change the answer; `command`: what fills it where runs are missing."""

    number: int
    asked: str
    changes: str
    command: str


@dataclass(frozen=True)
class Picture:
    """A figure that shows an answer: its title, what is seen in it, and what draws it (False: there is nothing)."""

    title: str
    found: str
    draw: Callable[[Path], bool]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What is said: one or two sentences made from the numbers; `open` says what is missing, empty where nothing is.

    `brief`: the answer in short, for the first page and the README; empty where neither asks for it. `command`: what
    fills it, where that is not the question's own.
    """

    said: tuple[str, ...]
    regime: str
    exhibit: Table | Picture | None = None
    numbers: tuple[Number, ...] = ()
    open: str = ""
    brief: str = ""
    command: str = ""

    @property
    def state(self) -> str:
        """ "answered", "in part" or "open"."""
        return "open" if not self.said else "in part" if self.open else "answered"


def nothing(what: str) -> Answer:
    """The answer where no run speaks to the question."""
    return Answer((), "none yet", open=what)


def apart(key: str, left: RowRuns | Finding | None, right: RowRuns | Finding | None) -> Number | None:
    """Mean of left minus right, paired by seed, with its t interval; None where no seed has both."""
    if left is None or right is None:
        return None
    found = pair(_runs(left).accuracy, _runs(right).accuracy)
    return None if found is None else Number(key, found.difference, found.low, found.high, len(found.seeds))


def mean(key: str, rows: RowRuns | Finding | None) -> Number | None:
    """Mean accuracy of a row with its t interval; None where no run is finished."""
    summary = summarise(list(_runs(rows).accuracy.values())) if rows else None
    return None if summary is None else Number(key, summary.mean, summary.low, summary.high, summary.n)


def _runs(rows: RowRuns | Finding) -> RowRuns:
    return rows.records if isinstance(rows, Finding) else rows


def known(*numbers: Number | None) -> tuple[Number, ...]:
    """Those that are there."""
    return tuple(number for number in numbers if number is not None)


def number_cells(number: Number | None, *runs: Finding | None) -> tuple[Cell, Cell]:
    """A difference in points and its interval, for a table."""
    ids = tuple(run_id for f in runs if f for run_id in f.records.run_ids)
    if number is None:
        return Cell("no runs yet"), Cell("–")
    return Cell(points(number.value), ids), Cell(bounds(number.low, number.high), ids)


def regime_of(study: Study, models: float | None = None) -> str:
    """Where the numbers were seen, in a sentence."""
    row = (study.baseline or study.findings[0]).records.row
    settings = study.records.experiment.settings
    parts = [study.records.experiment.task, f"{whole(row.num_steps)} steps"]
    parts += [f"{settings['workers']} workers"] if "workers" in settings else []
    parts += [f"{amount(models)} models sent"] if models else []
    parts += [settings["data"]] if "data" in settings else []
    parts.append(f"a network of {whole(row.num_parameters)} parameters")
    seeds = {len(f.records.accuracy) for f in study.findings}
    low, high = min(seeds), max(seeds)
    parts.append(count_of(high, "seed") if low == high else f"{low} to {count_of(high, 'seed')}")
    return f"{', '.join(parts)} ({study.records.experiment.name})."


def search_regime(records: Records) -> str:
    """Where a search for settings was made, in a sentence."""
    steps = max((rows.row.num_steps for rows in records.rows), default=0)
    task = records.experiment.settings.get("task", records.experiment.task)
    runs = count_of(records.ended, "run")
    return f"{task}, {whole(steps)} steps, {runs} ({records.experiment.name})."


def share(value: float) -> str:
    """A share in whole percent: "3 %", "under 1 %"."""
    return "under 1 %" if 0 < value < 0.005 else f"{100 * value:.0f} %"


def table(title: str, found: str, heads: tuple[str, ...], rows: Sequence[tuple[Cell, ...]], *notes: str) -> Table:
    """A small table whose first column is text."""
    columns = tuple(Column(head, "left" if place == 0 else "right") for place, head in enumerate(heads))
    return Table(title, found, columns, tuple(rows), notes=tuple(note for note in notes if note))
