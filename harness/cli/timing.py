"""Commands that measure times on this machine: collectives, and training steps under torchrun."""

from __future__ import annotations

from pathlib import Path

import click

from cser_bench.harness.cli.command import command
from cser_bench.harness.cli.exits import FAILURE, complain
from cser_bench.harness.cli.numbers import above_0, count
from cser_bench.harness.cli.options import timing_methods_option, timing_output_option


def _rates(text: str) -> list[float]:
    """Return rates in bits a second, from a list in Mb/s."""
    return [1e6 * above_0(rate) for rate in text.split(",")]


@command("netlab", "time collectives on an emulated network of this machine's own")
@timing_output_option("netlab")
@click.option("--workers", type=count, default=8, help="gloo processes (default: 8)")
@click.option(
    "--machines",
    type=count,
    help="machines they are on, as many on each (default: one each)",
)
@click.option(
    "--rates",
    type=_rates,
    default="10,50,100",
    metavar="LIST",
    help="Mb/s of a machine's link (default: 10,50,100)",
)
def netlab(output: Path, workers: int, machines: int | None, rates: list[float]) -> int:
    """Sweep networks of the rates asked for.

    Returns 1 where a worker failed.
    """
    from cser_bench.harness.timing.sweep import netlab as sweep

    sweep(workers, machines, rates, output)
    return 0


@command("time", "time training steps of methods and baselines, under torchrun")
@timing_output_option("speedups_here")
@timing_methods_option
@click.option(
    "--workload",
    default="resnet50",
    help="model to train or emulate (default: resnet50)",
)
@click.option(
    "--visits", type=count, default=4, help="turns of each method (default: 4)"
)
@click.option(
    "--steps",
    type=count,
    default=5,
    help="timed steps of a kind in each turn (default: 5)",
)
def time(
    output: Path, methods: tuple[str, ...], workload: str, visits: int, steps: int
) -> int:
    """Be one of the workers that time steps.

    Returns 1 where a collective failed.
    """
    from cser_bench.harness.timing.study import time_here

    try:
        time_here(workload, list(methods), visits, steps, output)
    except RuntimeError as error:
        return complain(error, FAILURE)
    return 0
