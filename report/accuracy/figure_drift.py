"""Figure: error norm and distance between workers over steps, at one learning rate where the records allow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.records.store import Event
from report.accuracy.figure_curves import Quantity, RatioPanel, at_ratios, draw_columns, shown_groups
from report.accuracy.findings import Study
from report.accuracy.records import Records, RowRuns
from report.kit.wording import listed, short

_ROUNDING = 1e-5
"""Workers that are nearer to their average than this differ by the rounding of the average alone."""


def _distance(event: Event) -> float | None:
    return event.worker_distance if event.worker_distance > _ROUNDING else None


_NORM = Quantity("error norm", lambda event: event.error_norm, log=True)
_DISTANCE = Quantity("distance of a worker\nfrom the average", _distance, log=True)


@dataclass(frozen=True)
class Drift:
    """What is drawn. `learning_rate` None: each row at its own; `missing`: rows without a run at the common one."""

    columns: tuple[RatioPanel, ...]
    learning_rate: float | None
    from_tuning: bool
    missing: tuple[str, ...]


def drift_of(study: Study, tuning: Records | None) -> Drift:
    """The rows themselves where they share a learning rate, else the tuning runs at the rate that most rows tried."""
    groups = shown_groups(study)
    rows = [(group.ratio, f.method, f.records) for group in groups for f in group.findings if _keeps_any(f.records)]
    own = Drift(_columns(rows), None, False, ())
    rates = {found.row.learning_rate for _, _, found in rows}
    if len(rates) == 1:
        return Drift(own.columns, rates.pop(), False, ())
    tried = _tried(study, tuning) if tuning else {}
    counts = {rate: sum((found.row.row, rate) in tried for _, _, found in rows) for _, rate in tried}
    if not counts or max(counts.values()) < 2:
        return own
    rate = max(counts, key=lambda rate: (counts[rate], sum(found.row.learning_rate == rate for *_, found in rows)))
    shown = [(ratio, name, tried[found.row.row, rate]) for ratio, name, found in rows if (found.row.row, rate) in tried]
    missing = tuple(f"{name} {ratio:g}" for ratio, name, found in rows if (found.row.row, rate) not in tried)
    return Drift(_columns(shown), rate, True, missing)


def _keeps_any(rows: RowRuns) -> bool:
    events = [event for run in rows.runs.values() for event in (run.events if run else ())]
    return any(event.error_norm is not None or _distance(event) is not None for event in events)


def _tried(study: Study, tuning: Records) -> dict[tuple[str, float], RowRuns]:
    """Tuning rows with finished runs, by the row that they tune and their rate, with the settings that were chosen."""
    tuned = study.records.experiment.tuning
    choices = tuned.choices if tuned else {}
    found = {}
    for rows in tuning.rows:
        row = rows.row
        chosen = choices[row.tunes].candidate if row.tunes in choices else 0
        if row.tunes and rows.finished and not rows.diverged and (row.candidate or 0) == chosen:
            found[row.tunes, row.learning_rate] = rows
    return found


def _columns(rows: list[tuple[float, str, RowRuns]]) -> tuple[RatioPanel, ...]:
    ratios = dict.fromkeys(ratio for ratio, _, _ in rows)
    return tuple(RatioPanel(ratio, tuple((n, r) for other, n, r in rows if other == ratio)) for ratio in ratios)


def draw_drift(drift: Drift, path: Path) -> bool:
    """Draw it; False where no run has an error or workers that differ."""
    return draw_columns(drift.columns, (_NORM, _DISTANCE), path)


def found_drift(drift: Drift) -> str:
    """At which learning rate, and whose error is the largest at the end."""
    largest = [(column.ratio, max(last)[1]) for column in drift.columns if (last := column.last(_NORM))]
    if not largest:
        return "No method of this experiment has recorded an error norm yet."
    rate = drift.learning_rate
    at = "At the rows' own learning rates" if rate is None else f"At one learning rate, {short(rate)},"
    return f"{at} the last error norm is the largest of {at_ratios(largest)}."


def drift_notes(study: Study, drift: Drift) -> tuple[str, ...]:
    """Which runs these are, which are not drawn, and whether an error was ever zero."""
    notes = [_source(drift), identical_workers(study)]
    known = [
        [event.error_norm for run in f.records.runs.values() for event in (run.events if run else ())]
        for f in study.compared
    ]
    kept = [norms for norms in known if any(norm is not None for norm in norms)]
    if kept:
        zero = sum(0 in norms for norms in kept)
        notes.append(f"Of {len(kept)} rows that keep an error, {zero or 'none'} had it at exactly zero when scored.")
    return tuple(note for note in notes if note)


def _source(drift: Drift) -> str:
    if drift.learning_rate is None:
        return "The rows' learning rates differ, and with them the size of a step: compare shapes, not heights."
    if not drift.from_tuning:
        return ""
    missing = f" Not tried at this rate: {listed(drift.missing)}." if drift.missing else ""
    return f"These are runs of the tuning experiment, with the settings that were chosen.{missing}"


def identical_workers(study: Study) -> str:
    """Names the methods whose workers differ by rounding at most, which are not drawn; empty where there are none."""
    names = []
    for method in study.methods:
        events = [
            event
            for finding in study.compared
            if finding.method == method
            for run in finding.records.runs.values()
            for event in (run.events if run else ())
        ]
        if events and all(_distance(event) is None for event in events):
            names.append(method)
    return f"Not drawn below, as their workers differ by rounding at most: {listed(names)}." if names else ""
