"""Options on which runs are done, and on where and how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cser_bench.harness.cli.numbers import above_0, at_least_0, count, whole
from cser_bench.harness.cli.options import Function, data_option, with_options
from cser_bench.harness.cli.paths import known_folder

if TYPE_CHECKING:
    from cser_bench.harness.workers.launch import Options


def row_options(function: Function) -> Function:
    """Add the options that choose among an experiment's runs."""
    return with_options(
        function,
        click.option(
            "--rows",
            multiple=True,
            metavar="ROW...",
            help="take only the runs of these rows (default: all)",
        ),
        click.option(
            "--seeds",
            multiple=True,
            type=whole,
            metavar="SEED...",
            help="take only the runs of these seeds",
        ),
    )


def infrastructure_options(function: Function) -> Function:
    """Add the options on where and how runs are done, which `launch_options` reads."""
    return with_options(
        function,
        data_option,
        click.option(
            "--jobs",
            type=count,
            help="runs at once (default: the cores, or what there are GPUs for)",
        ),
        click.option(
            "--workers",
            type=click.Choice(("stacked", "processes", "auto")),
            default="auto",
            help="what a worker is: a row of stacked tensors, or a process; auto: a process where "
            "each can have a GPU, else a row",
        ),
        click.option(
            "--device",
            type=click.Choice(("cpu", "cuda")),
            default="cpu",
            help="cuda gives each process the GPU of its local rank, of those in "
            "CUDA_VISIBLE_DEVICES (default: cpu)",
        ),
        click.option(
            "--checkpoint-minutes",
            type=at_least_0,
            default=5.0,
            help="time between checkpoints (default: 5)",
        ),
        click.option(
            "--timeout-seconds",
            type=above_0,
            default=300.0,
            help="how long a collective waits (default: 300)",
        ),
    )


def launch_options(results: Path, infrastructure: dict[str, Any]) -> Options:
    """Return how runs are done, from the values of `infrastructure_options`.

    Raises UsageError: there is no such folder of data.
    """
    from cser_bench.harness.workers.launch import Options

    if infrastructure["data"] is not None:
        known_folder(infrastructure["data"])
    return Options(results=results, **infrastructure)
