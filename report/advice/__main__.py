"""Command line: python -m report.advice --parameters 25.6M --steps 450000 --workers 8 --compute-ms 27 ..."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from report.accuracy.findings import study_of
from report.accuracy.records import UsageError, read_records
from report.accuracy.regime import regime_of
from report.advice.advise import Advice, advise
from report.advice.job import TrainingJob, layout, quantity
from report.kit.ends import end_of
from report.kit.wording import NONE, amount, points, ratio_name, short
from report.speed.units import milliseconds

MAP = Path(__file__).parents[2] / "results/reference/fashion_mnist_long"
"""The experiment whose regime map predicts losses."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m harness advise", description="Advice for one's own job.")
    parser.add_argument("--parameters", required=True, help="of the network, as 25.6M")
    parser.add_argument("--steps", required=True, help="of the whole job, as 450000")
    parser.add_argument("--workers", help="one a machine; or give --layout")
    parser.add_argument("--layout", help="machines x workers a machine, as 2x4")
    parser.add_argument("--compute-ms", required=True, help="forward and backward pass of one worker's batch")
    parser.add_argument("--bandwidth", required=True, help="of a machine's link, each way, as 10Gb/s")
    parser.add_argument("--inside", help="of a worker's link inside its machine, as 1200Gb/s (default: no limit)")
    parser.add_argument("--latency-us", default="50", help="of a hop (default: 50)")
    parser.add_argument("--margin", default="0.5", help="loss that counts as none, in points (default: 0.5)")
    parser.add_argument("--gap", help="points between a worker alone and SGD in this job (default: the map's)")
    parser.add_argument("--dollars-per-hour", help="of all machines together")
    parser.add_argument("--map", type=Path, default=MAP, help="folder of the experiment whose regime map is used")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the recommendation; returns the exit status."""
    options = parser().parse_args(arguments)

    def advice() -> str:
        job = job_of(options)
        study = study_of(read_records(options.map))
        regime = regime_of(study)
        if regime is None:
            raise UsageError(f"{options.map} has runs of one length alone, so it has no regime map; give another --map")
        rows = [rows for rows in study.records.main_rows if rows.row.tunes is None]
        return as_text(advise(job, regime, rows, rows[0].row.num_parameters))

    return end_of(advice, UsageError)


def job_of(options: argparse.Namespace) -> TrainingJob:
    """The job that the options tell.

    Raises:
        UsageError: a number that cannot be read, or workers and layout that disagree.
    """
    if not options.workers and not options.layout:
        raise UsageError("how many workers? give --workers 8, or --layout 2x4")
    workers = round(quantity(options.workers)) if options.workers else None
    machines, each = layout(options.layout) if options.layout else (workers or 1, 1)
    if workers is not None and workers != machines * each:
        raise UsageError(f"--workers {workers} and --layout {options.layout} disagree; leave one out")
    if machines * each < 2:
        raise UsageError("one worker sends nothing; give two workers or more")
    return TrainingJob(
        num_parameters=round(quantity(options.parameters)),
        num_steps=round(quantity(options.steps)),
        num_machines=machines,
        workers_per_machine=each,
        compute_seconds=quantity(options.compute_ms) / 1e3,
        bits_per_second=quantity(options.bandwidth, "b/s"),
        inside_bits_per_second=quantity(options.inside, "b/s") if options.inside else 0.0,
        latency_seconds=quantity(options.latency_us) / 1e6,
        margin=quantity(options.margin) / 100,
        gap=quantity(options.gap) / 100 if options.gap else None,
        dollars_per_hour=quantity(options.dollars_per_hour) if options.dollars_per_hour else None,
    )


def as_text(advice: Advice) -> str:
    """The recommendation, the table, and what it rests on."""
    job = advice.job
    heads = ["method", "ratio", "ms a step", "hours", "models sent", "expected loss, points", "beyond what was run"]
    heads += ["dollars"] if job.dollars_per_hour else []
    lines = []
    for line in advice.lines:
        hours = line.step_seconds * job.num_steps / 3600
        loss = line.loss
        said = NONE if loss is None else f"{points(advice.gap * loss.share)} ({points(advice.gap * loss.low)} to "
        said += "" if loss is None else f"{points(advice.gap * loss.high)})"
        beyond = NONE if loss is None else "no" if loss.beyond == 1 else f"{short(loss.beyond, 2)} times"
        cells = [line.method, ratio_name(line.ratio or 1), milliseconds(line.step_seconds), f"{hours:.3g}"]
        cells += [amount(line.models), "0" if line.method.startswith("DDP") else said, beyond]
        lines.append(cells + ([f"{hours * job.dollars_per_hour:,.0f}"] if job.dollars_per_hour else []))
    table = tabulate(lines, heads, disable_numparse=True)
    gap = (
        f"Shares lost are turned into points by a gap of {100 * advice.gap:.2f} points between a worker alone and SGD."
    )
    return f"{advice.sentence}\n\n{table}\n\n{advice.where}\n{gap}"


if __name__ == "__main__":
    sys.exit(main())
