"""Advice for one's own job: the table that `advise` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tabulate import tabulate

from cser_bench.report.advice.measured import efficiencies_of, measured_in
from cser_bench.report.advice.needs import MethodInJob, methods_in_job
from cser_bench.report.advice.runs import experiments_on, methods_run
from cser_bench.report.collection import Collection
from cser_bench.report.first_table import names_by_key
from cser_bench.report.render import environment
from cser_bench.report.speed.job import TrainingJob
from cser_bench.report.wording import NONE, count, milliseconds, traffic

NOT_MEASURED = "not measured"

NOTHING_TO_GAIN = 0.05
"""Share of DDP's step that it waits for messages, below which sending less gains nothing."""


def advice(
    job: TrainingJob, network: str, collection: Collection, shows_all: bool = False
) -> str:
    """Return what each method that was run on a network needs in a job, and what is known of it.

    Args:
        shows_all: every setting that was run; else those of README's table, where it has any.

    Raises:
        UsageError: there are no shipped records, or none of this network.
    """
    measured = measured_in(collection)
    experiments = experiments_on(network, collection, measured)
    methods = methods_run(experiments)
    # README's names of methods at the settings of its table, by their keys.
    readme_names = names_by_key(network)
    lines = methods_in_job(job, methods, efficiencies_of(measured), readme_names)
    shown = lines
    if readme_names and not shows_all:
        # DDP and its hook were not run as methods, and are shown all the same.
        of_readme = [
            line for line in lines if line.method is None or line.key in readme_names
        ]
        shown = [_renamed(line, readme_names) for line in of_readme]
    shown = sorted(shown, key=_worth, reverse=True)
    near = [line for line in shown if _is_near(line, job)]
    context = {
        "job": job,
        "waiting": _waiting_share(lines[0], job),
        "nothing_to_gain": NOTHING_TO_GAIN,
        "needed": needed_table(shown),
        "has_heavy": any(line.is_heavy for line in shown),
        "num_hidden": len(lines) - len(shown),
        "near": near_table(near, job),
    }
    template = environment(is_markdown=False).get_template("advice.md.j2")
    return template.render(context).strip("\n")


def _worth(line: MethodInJob) -> tuple[bool, float]:
    """Return what is larger of the line that stands further up: DDP and what has no number last."""
    found = line.efficiency
    if line.is_ddp or found is None or not found.is_number:
        return False, -line.seconds
    # A bound counts as the efficiency that it names.
    return True, float(found.line["efficiency"])


def _waiting_share(line: MethodInJob, job: TrainingJob) -> float:
    """Return the share of DDP's step, or its hook's where that is shorter, that is no computing.

    Args:
        line: any, as all have both steps.
    """
    shorter = min(line.hook_seconds, line.ddp_seconds)
    return 1 - job.compute_seconds / shorter


def _renamed(line: MethodInJob, names: Mapping[str, str]) -> MethodInJob:
    return replace(line, label=names.get(line.key, line.label))


def _is_near(line: MethodInJob, job: TrainingJob) -> bool:
    """Tell whether a line's efficiency was measured near the job's size and length."""
    found = line.efficiency
    return found is not None and found.is_number and found.is_near(job)


def needed_table(lines: Sequence[MethodInJob]) -> str:
    """Return the table of what methods need, with what was measured of them and where."""
    heads = ["method", "traffic", "ms", "needs", "over DDP", "has", "measured on"]
    rows = []
    for line in lines:
        share = traffic(line.traffic)
        # A note below the table says what the mark means.
        if line.is_heavy:
            share = f"{share} !"
        cells = [
            line.name,
            share,
            milliseconds(line.seconds),
            f"{line.over_hook:.2f}",
            f"{line.over_ddp:.2f}",
            measured_cell(line),
            _measured_on(line),
        ]
        rows.append(cells)
    return _terminal_table(heads, rows)


def _measured_on(line: MethodInJob) -> str:
    """Return the network and the length of a line's efficiency."""
    found = line.efficiency
    if found is None or not found.is_number:
        return NONE
    return f"{found.network.replace('_', ' ')}, {count(found.num_steps)} steps"


def near_table(lines: Sequence[MethodInJob], job: TrainingJob) -> str:
    """Return the table of net speed-ups in a job; empty where no size and length were near."""
    heads = ["method", "net speed-up", "plan"]
    rows = []
    for line in lines:
        assert line.efficiency is not None, "lines are those with a measured efficiency"
        # Over DDP with its fp16 hook, which sends half of what DDP in fp32 sends.
        speedup = line.efficiency.net_speedup(line.seconds, line.hook_seconds)
        rows.append([line.name, speedup, line.efficiency.planned_steps])
    if not rows:
        return ""
    return _terminal_table(heads, rows)


def measured_cell(line: MethodInJob) -> str:
    """Write a line's measured efficiency with its interval; of DDP it is 1 by definition."""
    if line.is_ddp:
        return NONE
    if line.efficiency is None:
        return NOT_MEASURED
    # Measured without a number, as where the interval was too wide.
    if not line.efficiency.is_number:
        return NONE
    return line.efficiency.text


def _terminal_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # Numbers are texts by now, which tabulate would read as numbers again.
    return tabulate(rows, heads, disable_numparse=True)
