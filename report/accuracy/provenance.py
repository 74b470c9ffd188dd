"""The section "How it was run": settings, selection rule, commands, code, machines, failures; times apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from harness.records.store import Attempt, RunRecord
from report.accuracy.records import Records
from report.accuracy.tuning import is_tuning
from report.kit.document import Block, Bullets, Cell, Code, Delimited, Paragraph, Section, Table, numbers, texts
from report.kit.wording import count_of, listed, short

TIMED = "Attempts and times"
_MOST_LINES = 40


def how_it_was_run(records: Records, tuning: Records | None) -> Section:
    """The section. Only its part "Attempts and times" may differ between an interrupted and an uninterrupted run."""
    both = [records] + ([tuning] if tuning else [])
    blocks: list[Block] = [_settings(records), _selection(records, tuning), Paragraph("Commands:")]
    commands = dict.fromkeys(command for each in both for command in each.experiment.commands)
    blocks.append(Code("\n".join(commands)) if commands else Paragraph("None is recorded."))
    blocks += [_code(both), _packages(both), *_failures(both), _timed(both)]
    return Section("How it was run", tuple(blocks))


def _pairs(title: str, entries: Iterable[tuple[str, str]], found: str = "") -> Table:
    cells = tuple((Cell(name), Cell(text)) for name, text in entries)
    return Table(title, found, texts("what", "which"), cells)


def _settings(records: Records) -> Table:
    experiment = records.experiment
    entries = {
        "experiment": experiment.name,
        "kind": experiment.kind,
        "task": experiment.task,
        "model": experiment.model,
        "seeds": listed([str(seed) for seed in experiment.seeds]),
    } | experiment.settings
    return _pairs("Settings", entries.items(), "What was the same in every row.")


def _selection(records: Records, tuning: Records | None) -> Paragraph:
    chosen = records.experiment.tuning
    if is_tuning(records):
        return Paragraph("Learning rates: every rate of the grid was tried for every row.")
    if chosen is None:
        return Paragraph("Learning rates: no tuning experiment is named; the rates are those of the specification.")
    text = (
        f"Learning rates: from the experiment {chosen.experiment}, rule: {chosen.rule}. "
        f"Rates tried: {listed([short(rate) for rate in chosen.grid])}; "
        f"tuning seeds: {listed([str(seed) for seed in chosen.seeds])}."
    )
    if tuning is None:
        return Paragraph(f"{text} Its records are not at hand, so nothing of it is shown.")
    return Paragraph(f"{text} Of its {tuning.planned} runs {tuning.ended} are done.")


def _runs(both: Sequence[Records]) -> list[RunRecord]:
    return [run for records in both for rows in records.rows for run in rows.runs.values() if run]


def _code(both: Sequence[Records]) -> Table:
    """Commit and machine of every run; a run counts once for each that it was tried on."""
    seen: Counter[tuple[str, ...]] = Counter()
    for run in _runs(both):
        seen.update({_place(attempt): 1 for attempt in run.run.attempts})
    heads = ("commit", "difference to it", "device", "launch", "backend", "CPU", "accelerator", "Python")
    columns = (*texts(*heads), *numbers("runs"))
    rows = tuple((*(Cell(text) for text in place), Cell(str(count))) for place, count in sorted(seen.items()))
    found = f"{count_of(len({place[:2] for place in seen}), 'state')} of the code on {count_of(len(seen), 'set-up')}."
    return Table("Code and machines", found if rows else "No run was started yet.", columns, rows)


def _place(attempt: Attempt) -> tuple[str, ...]:
    return (
        (attempt.git_commit or "none")[:12],
        f"sha256 {attempt.git_diff_sha256[:12]}" if attempt.git_diff_sha256 else "none",
        attempt.device,
        attempt.launch,
        attempt.backend,
        f"{attempt.cpu}, {attempt.num_cpus} CPUs",
        " ".join(filter(None, (attempt.accelerator, attempt.nccl and f"NCCL {attempt.nccl}"))) or "none",
        attempt.python,
    )


def _packages(both: Sequence[Records]) -> Paragraph:
    versions: dict[str, set[str]] = {}
    for run in _runs(both):
        for attempt in run.run.attempts:
            for name, version in attempt.packages.items():
                versions.setdefault(name, set()).add(version)
    text = ", ".join(f"{name} {' or '.join(sorted(found))}" for name, found in sorted(versions.items()))
    return Paragraph(f"Packages: {text}." if text else "Packages: no run was started yet.")


def _failures(both: Sequence[Records]) -> list[Block]:
    failed = [(records, run) for records in both for run in records.failed]
    unplanned = sum(records.unplanned for records in both)
    blocks: list[Block] = []
    if unplanned:
        blocks.append(Paragraph(f"{count_of(unplanned, 'run folder')} that no row names are left out of this report."))
    if not failed:
        return [*blocks, Paragraph("Failures: none among the runs that have no result.")]
    columns = texts("run", "row", "kind", "message")
    rows = tuple(
        (
            Cell(f"{records.experiment.name}/{run.run.run_id}", (run.run.run_id,)),
            Cell(run.run.row),
            Cell(run.failure.kind if run.failure else ""),
            Cell(run.failure.message[:160] if run.failure else ""),
        )
        for records, run in failed[:_MOST_LINES]
    )
    found = f"{count_of(len(failed), 'run')} ended without a result; the folder named holds failure.json."
    return [*blocks, Table("Failures", found, columns, rows)]


def _timed(both: Sequence[Records]) -> Delimited:
    runs = _runs(both)
    blocks: list[Paragraph | Bullets | Table] = [
        Paragraph(
            "Wall time and attempts, for whoever runs this again; they are no measurement of speed. Nothing outside "
            "this part depends on them. Every attempt is in csv/attempts.csv."
        )
    ]
    if not runs:
        return Delimited(TIMED, (*blocks, Paragraph("No run was started yet.")))
    blocks.append(_times(both))
    commands = list(dict.fromkeys(attempt.command for run in runs for attempt in run.run.attempts))
    left = f" ({len(commands) - 5} more in csv/attempts.csv)" if len(commands) > 5 else ""
    hosts = sorted({attempt.host for run in runs for attempt in run.run.attempts})
    blocks.append(Paragraph(f"Hosts: {listed(hosts[:10])}. Commands of the attempts{left}:"))
    blocks.append(Bullets(tuple(commands[:5])))
    return Delimited(TIMED, tuple(blocks))


def _times(both: Sequence[Records]) -> Table:
    heads = ("runs", "attempts", "resumed runs", "wall hours", "seconds per run")
    columns = (*texts("experiment", "row"), *numbers(*heads), *texts("from"))
    rows = []
    for records in both:
        by_row = [(row.row.row, [run for run in row.runs.values() if run]) for row in records.rows]
        started = [(name, runs) for name, runs in by_row if runs]
        if len(started) > _MOST_LINES:
            started = [(f"all {len(started)} rows", [run for _, runs in started for run in runs])]
        rows += [_time_row(records.experiment.name, name, runs) for name, runs in started]
    return Table("Attempts and wall time per row", "", columns, tuple(rows))


def _time_row(experiment: str, row: str, runs: Sequence[RunRecord]) -> tuple[Cell, ...]:
    walls = [run.result.wall_seconds for run in runs if run.result]
    attempts = [attempt for run in runs for attempt in run.run.attempts]
    resumed = sum(any(attempt.resumed_from_step for attempt in run.run.attempts) for run in runs)
    span = f"{min(walls):.1f} to {max(walls):.1f}" if walls else "–"
    return (
        Cell(experiment),
        Cell(row),
        Cell(str(len(runs))),
        Cell(str(len(attempts))),
        Cell(str(resumed)),
        Cell(f"{sum(walls) / 3600:.2f}"),
        Cell(span),
        Cell(min((attempt.started_at for attempt in attempts), default="–")),
    )
