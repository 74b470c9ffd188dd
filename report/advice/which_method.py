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
from cser_bench.report.frame import Frames
from cser_bench.report.render import write_report
from cser_bench.report.speed.job import RESNET50
from cser_bench.report.wording import NONE, code, count, rate, traffic

NAME = "which-method"

BANDWIDTHS = (1e8, 1e9, 1e10, 2.5e10, 1e11)
"""Rates of a machine's link in bits a second."""


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
        {"networks": networks, "columns": columns, "job": RESNET50},
        frames={},
        figures={},
        with_pdf=False,
    )


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
