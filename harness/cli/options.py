"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cser_bench.harness.cli.paths import folder

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]


def results_option(what: str = "folder of records (default: results)") -> Decorator:
    """Return `--results`, with this help."""
    return click.option("--results", type=folder, default="results", help=what)


OWN_RECORDS = (
    "your own records, each read when all its runs are done; the rest is taken from those that ship "
    "(default: results)"
)
"""Help on `--results` of commands that read what ships as well."""

data_option = click.option(
    "--data",
    type=Path,
    help="folder with the data set; by default the places where it may lie",
)


EXPERIMENT = "EXPERIMENT is the name of a shipped experiment, or a TOML file"
"""Help on the argument of `experiment_options`."""


def experiment_options(is_optional: bool = False) -> Decorator:
    """Return what names an experiment, its tuning, its records, and methods that its rows name.

    Args:
        is_optional: whether the name may be left out.
    """

    def add(function: Function) -> Function:
        return with_options(
            function,
            click.argument(
                "experiment",
                required=not is_optional,
                shell_complete=_experiments_that_begin,
            ),
            click.option(
                "--tuning",
                is_flag=True,
                help="take the experiment's tuning, not its runs",
            ),
            results_option(),
            click.option(
                "--methods",
                multiple=True,
                metavar="FILE.py...",
                help="files, or names of entry points, with methods of your own that rows name",
            ),
        )

    return add


def stage_option(default: str = "") -> Decorator:
    """Return `--stage`; `default` says in words which stage is taken without it."""
    what = f"take only the runs of this stage of the experiment{default}"
    return click.option("--stage", metavar="NAME", help=what)


def timing_output_option(name: str) -> Decorator:
    """Return `--output` of a measurement: results/`name`, as results/speedups has what ships."""
    return click.option(
        "--output",
        type=folder,
        default=f"results/{name}",
        help=f"folder to write into (default: results/{name}, which git ignores)",
    )


timing_methods_option = click.option(
    "--methods",
    multiple=True,
    metavar="NAME...",
    help="methods to time, by name; `time` also takes .py files (default: all)",
)


def with_options(function: Function, *decorators: Decorator) -> Function:
    """Return the function with options, which help lists in this order."""
    return reduce(
        lambda made, decorator: decorator(made), reversed(decorators), function
    )


def _experiments_that_begin(
    context: click.Context, param: click.Parameter, begun: str
) -> list[CompletionItem]:
    from cser_bench.harness.spec.spec_file import known_experiments

    return [
        CompletionItem(name) for name in known_experiments() if name.startswith(begun)
    ]
