"""The command `advise`: a job's numbers, as words of the command line."""

from __future__ import annotations

import math
import re
from pathlib import Path

import click

from cser_bench.harness.cli.command import command
from cser_bench.harness.cli.numbers import above_0, count, number
from cser_bench.harness.cli.options import OWN_RECORDS, results_option
from cser_bench.harness.cli.show import say_what_is_taken

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


def _whole_amount(text: str) -> int:
    """Return the number of things that a word such as 25.6M stands for."""
    prefix = text[-1:]
    if prefix not in _PREFIXES:
        prefix = ""
    amount = number(math.ulp(0), "a number above 0, as 25.6M")(
        text.removesuffix(prefix)
    )
    # Rounded, as the product of a decimal fraction may miss a whole number by its last bits.
    value = round(_PREFIXES[prefix] * amount, 6)
    if value < 1 or value != int(value):
        message = f"must be a whole number of at least 1, not {text!r}"
        if not prefix:
            message += f"; {text}M is {text} millions"
        raise click.BadParameter(message)
    return int(value)


def _link_rate(text: str) -> float:
    """Read a rate in bits a second, as 10Gb/s or 10Gbps.

    A unit is asked for: a bare 10 was taken for ten bits a second, and gave a step of years.
    """
    parts = re.fullmatch(r"([0-9.e+-]+)([kMGT]?)(?:b/s|bps|bit/s)", text)
    if parts is None:
        raise click.BadParameter(
            f"must be a number of bits a second with its unit, as 10Gb/s or 100Mb/s, not {text!r}"
        )
    digits, prefix = parts.groups()
    rate: float = number(math.ulp(0), "a rate as 10Gb/s")(digits)
    return _PREFIXES[prefix] * rate


def _layout(text: str) -> tuple[int, int]:
    """Return the machines, and the workers on each of them."""
    parts = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if parts is None:
        raise click.BadParameter(
            f"must be workers, as 8, or machines x workers a machine, as 2x4, not {text!r}"
        )
    machines, workers_each = parts.groups(default="1")
    return count(machines), count(workers_each)


@command("advise", "say what a step of each method must be worth in a job of yours")
@click.option(
    "--parameters",
    type=_whole_amount,
    required=True,
    metavar="NUMBER",
    help="number of parameters, as 25.6M",
)
@click.option(
    "--steps",
    type=_whole_amount,
    required=True,
    metavar="NUMBER",
    help="steps of the whole job, as 450000",
)
@click.option(
    "--workers",
    "--layout",
    "layout",
    type=_layout,
    required=True,
    metavar="NUMBER",
    help="one worker a machine, as 8, or machines x workers a machine, as 2x4",
)
@click.option(
    "--compute-ms",
    type=above_0,
    required=True,
    metavar="NUMBER",
    help="time of both passes of one worker's batch, as 27",
)
@click.option(
    "--bandwidth",
    type=_link_rate,
    required=True,
    metavar="NUMBER",
    help="bandwidth of a machine's link, each way, as 10Gb/s",
)
@click.option(
    "--inside",
    type=_link_rate,
    metavar="NUMBER",
    help="bandwidth of a worker's link inside its machine (default: no limit)",
)
@click.option(
    "--latency-us",
    type=above_0,
    default=50.0,
    metavar="NUMBER",
    help="latency of a hop (default: 50)",
)
@results_option(OWN_RECORDS)
@click.option(
    "--all",
    "every_setting",
    is_flag=True,
    help="every setting that was run, not those of README's table alone",
)
@click.option(
    "--network",
    default="residual",
    help="network whose methods are shown: residual and perceptron with SGD, gpt with AdamW "
    "(default: residual)",
)
def advise(
    parameters: int,
    steps: int,
    layout: tuple[int, int],
    compute_ms: float,
    bandwidth: float,
    inside: float | None,
    latency_us: float,
    results: Path,
    every_setting: bool,
    network: str,
) -> int:
    """Print the efficiency that each method needs in a job, and what is known of it."""
    from cser_bench.report.advice.advise import advice
    from cser_bench.report.collection import collection_of
    from cser_bench.report.speed.job import TrainingJob

    num_machines, workers_per_machine = layout
    job = TrainingJob(
        num_parameters=parameters,
        num_steps=steps,
        num_machines=num_machines,
        workers_per_machine=workers_per_machine,
        compute_seconds=compute_ms / 1e3,
        bits_per_second=bandwidth,
        inside_bits_per_second=inside or 0.0,
        latency_seconds=latency_us / 1e6,
    )
    own = None
    # Without runs of one's own there is no such folder, and advice needs none.
    if results.is_dir():
        own = results
    text = advice(job, network, collection_of(own), every_setting)
    print(text)
    say_what_is_taken(own)
    return 0
