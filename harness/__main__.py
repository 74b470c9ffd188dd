"""The command line: plan, run, status, collect, report, pack and others, each an experiment's or a measurement's."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.cli import commands, exits


class Command(argparse.ArgumentParser):
    """A slip such as --job must not be taken for an option that begins so."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)


def command_line() -> int:
    """What `python -m harness` and the installed command do."""
    exits.leave_out_current_folder()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 2 for a user's mistake, 1 for a failure, 130 when interrupted."""

    def command() -> int:
        options = _parser().parse_args(arguments)
        return int(options.command(options))

    kept = "what was recorded is kept"
    return exits.end_of(command, f"{kept}; mend this and call again", f"{kept}; the same command goes on from here")


def _parser() -> argparse.ArgumentParser:
    import shtab

    parser = Command(prog=exits.program("harness"), description=__doc__)
    parser.add_argument("--version", action="version", version=_version())
    shtab.add_argument_to(parser, "--print-completion")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Command)
    for name, command, what in (
        ("plan", commands.plan, "print the runs of an experiment with bits, memory and time; touches no data"),
        ("preflight", commands.preflight, "look at data, disk and GPUs before a long experiment"),
        ("run", commands.run, "do the runs that are missing"),
        ("status", commands.status, "say how far each row is"),
        ("collect", commands.collect, "write an experiment's rows, runs, scores and trials as CSV"),
        ("report", commands.report, "make report.md and report.pdf from the records"),
    ):
        sub = subparsers.add_parser(name, help=what, description=what)
        sub.set_defaults(command=command)
        sub.add_argument("experiment", help="name of a shipped experiment, or a TOML file")
        sub.add_argument("--tuning", action="store_true", help="the experiment's tuning instead of itself")
        sub.add_argument("--results", type=Path, default=Path("results"), help="folder of records (default: results)")
        if name in ("run", "preflight"):
            _add_run_options(sub)
    _add_packing(subparsers)
    for name, command, what in (
        ("advise", commands.advise, "say what each method would take and lose in a job of yours"),
        ("answers", commands.answers, "answer the readers' questions from records"),
    ):
        # The options are the report's, and go there as they are: no character begins an option here.
        sub = subparsers.add_parser(name, help=what, add_help=False, prefix_chars="\0")
        sub.set_defaults(command=command)
        sub.add_argument("words", nargs="*", metavar="OPTION", help=f"see `{name} --help`")
    speedups = subparsers.add_parser(
        "speedups", help="time methods and baselines on an emulated network, and report it"
    )
    speedups.add_argument("--output", type=Path, default=Path("results/speedups"))
    speedups.add_argument(
        "--accuracy", type=Path, action="append", default=[], metavar="FOLDER", help="of accuracy runs"
    )
    speedups.add_argument("--minutes", type=_above_0, default=90.0, help="last begin of a study's timing (default: 90)")
    speedups.add_argument("--scored", type=Path, metavar="FILE", help="time only what accuracy runs score, into FILE")
    speedups.add_argument("--methods", nargs="*", default=[], help="of --scored, by name (default: all)")
    speedups.set_defaults(command=commands.speedups)
    _add_netlab(subparsers.add_parser("netlab", help="time collectives on an emulated network of this machine's own"))
    _add_time(
        subparsers.add_parser("time", help="time training steps of methods and baselines, under torchrun or srun")
    )
    return parser


def _add_packing(subparsers: argparse._SubParsersAction[Command]) -> None:
    for name, command, what in (
        ("pack", commands.pack, "put the finished runs of an experiment into one file, runs.jsonl in its folder"),
        ("unpack", commands.unpack, "make folders of the runs in an experiment's runs.jsonl"),
    ):
        sub = subparsers.add_parser(name, help=what, description=what)
        sub.set_defaults(command=command)
        sub.add_argument("folder", type=Path, help="folder of the experiment, as results/fashion_mnist")
        if name == "pack":
            what = "afterwards remove the folders that the file gives back to the byte, logs and checkpoints with them"
            sub.add_argument("--remove-folders", action="store_true", help=what)


def _add_time(sub: argparse.ArgumentParser) -> None:
    sub.set_defaults(command=commands.time)
    sub.add_argument("--workload", default="resnet50", help="what is trained, or emulated (default: resnet50)")
    sub.add_argument("--methods", nargs="*", default=[], help="names of methods and baselines (default: all)")
    sub.add_argument("--visits", type=_positive, default=4, help="turns of each method (default: 4)")
    sub.add_argument("--steps", type=_positive, default=5, help="timed steps of a kind in each turn (default: 5)")
    sub.add_argument("--output", type=Path, default=Path("results/speedups_here"), help="folder of the study")


def _add_run_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", type=Path, help="folder with the data set; by default the places where it may lie")
    sub.add_argument("--jobs", type=_positive, help="runs at once (default: the cores, or what there are GPUs for)")
    sub.add_argument(
        "--workers",
        choices=("stacked", "processes", "auto"),
        default="auto",
        help="what a worker is: a row of stacked tensors, or a process; auto: a process where each can have a "
        "GPU, else a row",
    )
    sub.add_argument(
        "--device",
        type=_device,
        default="cpu",
        help="cpu; cuda, which gives each process the GPU of its local rank; or cuda:N for one GPU (default: cpu)",
    )
    sub.add_argument(
        "--checkpoint-minutes", type=_not_negative, default=5.0, help="time between checkpoints (default: 5)"
    )
    sub.add_argument(
        "--timeout-seconds", type=_above_0, default=300.0, help="how long a collective waits (default: 300)"
    )


def _add_netlab(sub: argparse.ArgumentParser) -> None:
    sub.set_defaults(command=commands.netlab)
    sub.add_argument("--workers", type=_positive, default=8, help="gloo processes (default: 8)")
    sub.add_argument("--machines", type=_positive, help="machines they are on, as many on each (default: one each)")
    sub.add_argument(
        "--rates",
        type=_rates,
        default="10,50,100",
        metavar="LIST",
        help="Mb/s of a machine's link (default: 10,50,100)",
    )
    sub.add_argument("--output", type=Path, default=Path("results/netlab"))


def _version() -> str:
    import importlib.metadata

    try:
        return f"cser-bench {importlib.metadata.version('cser-bench')}"
    except importlib.metadata.PackageNotFoundError:
        return "cser-bench, not installed"


def _device(text: str) -> str:
    if text not in ("cpu", "cuda") and not (text.startswith("cuda:") and text[5:].isdigit()):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, not {text!r}")
    return text


LARGEST = 1e9
"""Of numbers on the command line: what is larger is a slip, or overflows."""


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= LARGEST:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _above_0(text: str) -> float:
    return _number(text, math.ulp(0), "a number above 0")


def _not_negative(text: str) -> float:
    return _number(text, 0.0, "a number of at least 0")


def _rates(text: str) -> list[float]:
    """In bits a second, of a list in Mb/s."""
    return [1e6 * _number(rate, math.ulp(0), "numbers of Mb/s above 0 with commas between") for rate in text.split(",")]


def _number(text: str, least: float, wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= LARGEST:
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(command_line())
