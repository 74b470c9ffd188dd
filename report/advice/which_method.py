"""Which method, when: what a step of each method must be worth, over bandwidths.

It has the lines that `advise` prints, of one job that many know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from cser_bench.report.advice.advise import measured_cell
from cser_bench.report.advice.measured import Efficiency, efficiencies_of, measured_in
from cser_bench.report.advice.needs import MethodInJob, methods_in_job
from cser_bench.report.advice.runs import (
    advised,
    experiments_on,
    methods_run,
    own_length,
)
from cser_bench.report.collection import collection_for, folder_in_results
from cser_bench.report.first_table import POWERSGD, names_by_key, timed_sessions
from cser_bench.report.frame import Frames
from cser_bench.report.render import write_report
from cser_bench.report.speed.job import RESNET50
from cser_bench.report.speed.two_stages import two_stage_factor
from cser_bench.report.wording import NONE, code, count, milliseconds, rate, traffic

NAME = "which-method"

BANDWIDTHS = (1e8, 1e9, 1e10, 2.5e10, 1e11)
"""Rates of a machine's link in bits a second."""

NETWORK = "residual"
"""Network, as `advise` calls it, whose methods are shown on several layouts."""

LAYOUTS = ((8, 1), (2, 4), (2, 8), (4, 8))
"""Machines, and GPUs of each."""


def build_which_method(results: Path, output: Path) -> Path:
    """Write which-method.md into a folder beside the answers, and return the page.

    The same records give the same bytes.

    Raises:
        RecordError: a record is damaged. UsageError: `results` is no folder. OSError: the output
            cannot be written.
    """
    collection = collection_for(output, results)
    measured = measured_in(collection)
    efficiencies = efficiencies_of(measured)
    networks = []
    for name in advised(collection):
        experiments = experiments_on(name, collection, measured)
        # The network of the search is none that people train.
        if not any(frames.has_role("search") for frames in experiments):
            networks.append(_section(experiments[0], pivot(experiments, efficiencies)))
    layouts = layouts_frame(experiments_on(NETWORK, collection, measured))
    columns = {
        "method": ("method", "text"),
        "setting": ("setting", "text"),
        "traffic": ("traffic", "traffic"),
        **{rate(bandwidth): (rate(bandwidth), "digits") for bandwidth in BANDWIDTHS},
        "efficiency": ("measured efficiency", "text"),
        "drop": ("drop", "text"),
        "experiment": ("experiment", "text"),
    }
    return write_report(
        output,
        NAME,
        "which-method.md.j2",
        {
            "networks": networks,
            "columns": columns,
            "job": RESNET50,
            "layouts": layouts,
            "layout_columns": {
                name: (name, "text" if name == "method" else "digits")
                for name in layouts.columns
            },
            "low_rank": _rank_1_reduction(),
            "two_stages": two_stage_factor(),
        },
        frames={},
        figures={},
        with_pdf=False,
    )


def layouts_frame(experiments: Sequence[Frames]) -> pd.DataFrame:
    """Return a line a method of README's table, with its modelled step in ms on each of `LAYOUTS`."""
    names = names_by_key(NETWORK)
    methods = methods_run(experiments)
    # By a method's name: by layout, its step.
    steps: dict[str, dict[str, str]] = {}
    for machines, workers in LAYOUTS:
        job = replace(RESNET50, num_machines=machines, workers_per_machine=workers)
        for line in methods_in_job(job, methods, ()):
            if line.method is None or line.key in names:
                name = names.get(line.key, line.label)
                of_method = steps.setdefault(name, {})
                of_method[f"{machines} x {workers}"] = milliseconds(line.seconds)
    return pd.DataFrame([{"method": name} | cells for name, cells in steps.items()])


def _rank_1_reduction() -> float:
    """Return how many times less than DDP PowerSGD of rank 1 sends of the emulated ResNet-50."""
    [session] = timed_sessions()
    [method] = [each for each in session.methods if each.algorithm == POWERSGD]
    return method.payload_reduction(session.workload.num_parameters)


def _section(frames: Frames, table: pd.DataFrame) -> dict[str, Any]:
    """Return what the page says of a network."""
    experiment = frames.experiment
    assert experiment.evidence is not None, (
        "an experiment is advised on by what it is evidence for"
    )
    return {
        "network": experiment.evidence.network,
        "unit": frames.metric.loss_unit,
        "num_parameters": experiment.rows[0].num_parameters,
        "num_steps": own_length(experiment),
        "num_workers": experiment.config["num_workers"],
        "table": table,
    }


def pivot(
    experiments: Sequence[Frames], efficiencies: Sequence[Efficiency]
) -> pd.DataFrame:
    """Return a line a method and setting, with what it needs at each bandwidth.

    Columns: method, setting, traffic, each bandwidth as `rate` writes it (the efficiency needed to
    tie with DDP's fp16 hook), efficiency, drop, experiment. The one that needs least at 10 Gb/s
    comes first.
    """
    methods = methods_run(experiments)
    # By a line's key: by bandwidth, the efficiency that it needs there.
    needed: dict[str, dict[str, str]] = {}
    for bandwidth in BANDWIDTHS:
        job = replace(RESNET50, bits_per_second=bandwidth)
        for line in methods_in_job(job, methods, ()):
            needed.setdefault(line.key, {})[rate(bandwidth)] = f"{line.over_hook:.2f}"
    lines = methods_in_job(RESNET50, methods, efficiencies)
    return pd.DataFrame([_pivoted(line) | needed[line.key] for line in lines])


def _pivoted(line: MethodInJob) -> dict[str, Any]:
    """Return a line's cells but for the bandwidths'."""
    drop = experiment = NONE
    if line.method is not None:
        drop = line.method.drop
        link = f"../{folder_in_results(line.method.frames)}/report.md"
        experiment = Markup(f"[{code(line.method.experiment)}]({link})")
    return {
        "method": line.label,
        "setting": line.setting,
        "traffic": line.traffic,
        "efficiency": _measured(line),
        "drop": drop,
        "experiment": experiment,
    }


def _measured(line: MethodInJob) -> str:
    """Write a line's measured efficiency with where it was measured, which may be elsewhere."""
    cell = measured_cell(line)
    found = line.efficiency
    if found is None or not found.is_number:
        return cell
    network = found.network.replace("_", " ")
    return (
        f"{cell}; {network}, {count(found.num_steps)} steps, {traffic(found.traffic)}"
    )
