"""Advice for one's own job: the table that `advise` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from cser_bench.report.advice.lines import Line, needed_lines
from cser_bench.report.advice.measured import Efficiency, efficiencies_of, measured_in
from cser_bench.report.advice.runs import experiments_on, methods_run
from cser_bench.report.questions.evidence import Evidence
from cser_bench.report.render import environment
from cser_bench.report.speed.job import TrainingJob
from cser_bench.report.wording import NONE, count, milliseconds, traffic

WIDTH = 80
"""Characters of a line of the text, where no cell is wider."""

NOT_MEASURED = "not measured"
NOT_AT_SIZE = "not measured at your size"

_GAP = "  "
"""Before each column of a table."""

Row = tuple[str, list[str]]
"""What a row of a table is of, on lines of its own, and the cells below."""


def advice(job: TrainingJob, network: str, evidence: Evidence) -> str:
    """Return what each method that was run on a network needs in a job, and what is known of it.

    Raises:
        UsageError: there are no shipped records, or none of this network.
    """
    measured = measured_in(evidence.folders)
    experiments = experiments_on(network, evidence, measured)
    lines = needed_lines(job, methods_run(experiments), efficiencies_of(measured))
    context = {
        "needed": needed_table(lines, experiments[0].metric.loss_unit),
        "has_heavy": any(line.is_heavy for line in lines),
        "measured": measured_table(job, lines),
    }
    return environment(is_markdown=False).get_template("advice.md.j2").render(context).strip("\n")


def needed_table(lines: Sequence[Line], unit: str) -> str:
    """Return the table of what methods need, and of what they lost where they were run."""
    drop = "drop, points" if unit == "points" else "gap, nats"
    heads = ["traffic", "ms", "needs\nfp16", "needs\nfp32", "measured\nefficiency", drop]
    rows: list[Row] = []
    for line in lines:
        experiment = "" if line.method is None else f" ({line.method.experiment})"
        cells = [
            f"{traffic(line.traffic)} !" if line.is_heavy else traffic(line.traffic),
            milliseconds(line.seconds),
            f"{line.over_hook:.2f}",
            f"{line.over_ddp:.2f}",
            efficiency_cell(line),
            NONE if line.method is None else line.method.drop,
        ]
        rows.append((f"{line.name}{experiment}", cells))
    return _table(heads, rows)


def measured_table(job: TrainingJob, lines: Sequence[Line]) -> str:
    """Return the table of where efficiencies were measured, and what they say of the job.

    Empty where none was.
    """
    heads = ["network", "parameters", "steps", "traffic", "net speed-up", "plan"]
    rows: list[Row] = []
    for line in lines:
        efficiency = line.efficiency
        if efficiency is None:
            continue
        cells = [
            efficiency.network,
            count(efficiency.num_parameters),
            count(efficiency.num_steps),
            traffic(efficiency.traffic),
            *_said_of_job(efficiency, job, line),
        ]
        rows.append((f"{line.name} ({efficiency.experiment})", cells))
    return _table(heads, rows) if rows else ""


def _said_of_job(efficiency: Efficiency, job: TrainingJob, line: Line) -> tuple[str, str]:
    """Return the net speed-up in a job and the steps to plan, where its size was run."""
    if not efficiency.is_number:
        return efficiency.text, NONE
    if not efficiency.is_near(job):
        return NOT_AT_SIZE, NONE
    return efficiency.net_speedup(line.seconds, line.hook_seconds), efficiency.planned_steps


def efficiency_cell(line: Line) -> str:
    """Write a line's measured efficiency with its interval; of DDP it is 1 by definition."""
    if line.is_ddp:
        return NONE
    if line.efficiency is None:
        return NOT_MEASURED
    return line.efficiency.text if line.efficiency.is_number else NONE


def _table(heads: Sequence[str], rows: Sequence[Row]) -> str:
    """Return a table for a terminal: each row a line that says what it is of, and one of cells."""
    columns = [*zip(*(cells for _, cells in rows), strict=True)]
    head_lines = [head.split("\n") for head in heads]
    widths = []
    for head, column in zip(head_lines, columns, strict=True):
        widths.append(max(len(text) for text in (*head, *column)))
    depth = max(len(head) for head in head_lines)
    padded = [[""] * (depth - len(head)) + head for head in head_lines]
    lines = [_row_text([head[part] for head in padded], widths) for part in range(depth)]
    lines.append("".join(f"{_GAP}{'-' * width}" for width in widths))
    for title, cells in rows:
        lines += textwrap.wrap(title, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        lines.append(_row_text(cells, widths))
    return "\n".join(lines)


def _row_text(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    return "".join(f"{_GAP}{cell}" for cell in padded).rstrip()
