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
from report.advice.job import Cluster, TrainingJob, cluster, count, layout, quantity
from report.kit.ends import end_of
from report.kit.wording import NONE, amount, points, ratio_name, short
from report.speed.units import milliseconds

MAP = Path(__file__).parents[2] / "results/reference/fashion_mnist_long"
"""The experiment whose regime map predicts losses."""

_MORE = (
    "`python -m harness advise` also takes --spec NAME_OR_FILE, an experiment whose baseline says the parameters, "
    "steps, workers and compute, and --model FILE, a saved state_dict whose parameters are counted; what is given "
    "beside them counts more."
)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m harness advise", description="Advice for one's own job.", epilog=_MORE
    )
    parser.add_argument("--parameters", help="of the network, as 25.6M")
    parser.add_argument("--steps", help="of the whole job, as 450000")
    parser.add_argument("--workers", help="one a machine; or give --layout")
    parser.add_argument("--layout", help="machines x workers a machine, as 2x4")
    parser.add_argument("--compute-ms", help="forward and backward pass of one worker's batch")
    parser.add_argument("--bandwidth", help="of a machine's link, each way, as 10Gb/s")
    parser.add_argument("--cluster", help="a profile of python -m slurm, for layout and bandwidth: NAME or FILE.toml")
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
        workers = study.records.experiment.settings.get("workers", "")
        known = int(workers) if workers.isdigit() else None
        return as_text(advise(job, regime, rows, rows[0].row.num_parameters, known))

    return end_of(advice, UsageError)


def job_of(options: argparse.Namespace) -> TrainingJob:
    """The job that the options tell.

    Raises:
        UsageError: a number that is missing or cannot be read, or workers and layout that disagree.
    """
    profile = cluster(options.cluster) if options.cluster else None
    machines, each = _shape(options, profile)
    if machines * each < 2:
        raise UsageError("one worker sends nothing; give two workers or more")
    given = options.bandwidth
    bandwidth = quantity(given, "b/s") if given else profile.bits_per_second if profile else None
    for what, value, example in (
        ("--parameters", options.parameters, "25.6M"),
        ("--steps", options.steps, "450000"),
        ("--compute-ms", options.compute_ms, "27"),
        ("--bandwidth", bandwidth, "10Gb/s"),
    ):
        if value is None:
            raise UsageError(f"{what} is missing; give it, as {what} {example}")
    assert bandwidth is not None
    return TrainingJob(
        num_parameters=count(options.parameters, "parameters"),
        num_steps=count(options.steps, "steps"),
        num_machines=machines,
        workers_per_machine=each,
        compute_seconds=quantity(options.compute_ms) / 1e3,
        bits_per_second=bandwidth,
        inside_bits_per_second=quantity(options.inside, "b/s") if options.inside else 0.0,
        latency_seconds=quantity(options.latency_us) / 1e6,
        margin=quantity(options.margin) / 100,
        gap=quantity(options.gap) / 100 if options.gap else None,
        dollars_per_hour=quantity(options.dollars_per_hour) if options.dollars_per_hour else None,
    )


def _shape(options: argparse.Namespace, profile: Cluster | None) -> tuple[int, int]:
    """Machines and workers a machine: of the layout, or the profile, or as many machines as workers."""
    workers = count(options.workers, "workers") if options.workers else None
    if options.layout:
        machines, each = layout(options.layout)
    elif profile is not None:
        machines, each = profile.num_machines, profile.workers_per_machine
    elif workers is not None:
        return workers, 1
    else:
        raise UsageError("how many workers? give --workers 8, or --layout 2x4")
    if workers is not None and workers != machines * each:
        where = f"--layout {options.layout}" if options.layout else f"--cluster {options.cluster} ({machines}x{each})"
        raise UsageError(f"--workers {workers} and {where} disagree; leave one out")
    return machines, each


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
