"""What words each command takes."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from cser_bench.harness.cli import commands, exits
from cser_bench.harness.cli.paths import folder
from cser_bench.harness.errors import UsageError

DESCRIPTION = (
    "The command line: plan, run, status, report, pack and others, each an experiment's "
    "or a measurement's."
)

INSTALLED = "cser-harness"
"""The command that pip installs."""

PRINT_COMPLETION = "--print-completion"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in a sentence, without the usage, which has eight lines."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def do(arguments: list[str] | None) -> int:
    """Read the words of one command and do it; return its exit code.

    The words are those of the command line where none are given.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if any(word.startswith(PRINT_COMPLETION) for word in words):
        from cser_bench.harness.spec.spec_file import known_experiments

        # A shell completes the words of one command, and `python -m harness` is not one.
        parser = _parser(INSTALLED, known_experiments())
    else:
        parser = _parser(exits.program())
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    options = parser.parse_args(words)
    return int(options.command(options))


def _number(least: float, wanted: str, kind: type[float] = float) -> Callable[[str], Any]:
    """Return a function that reads a word as a number, from `least` to a thousand million.

    A larger number is a slip, or overflows. `wanted` says in the error message what the word must
    be.
    """

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= 1e9:
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")
        return value

    return read


_count = _number(1, "a whole number of at least 1", int)
_whole = _number(0, "a whole number of at least 0", int)
# From the least number above 0, as `_number` takes its bound too.
_above_0 = _number(math.ulp(0), "a number above 0")
_at_least_0 = _number(0, "a number of at least 0")


OWN_RECORDS = (
    "your own records, each read when all its runs are done; the rest is taken from those that ship "
    "(default: results)"
)
"""Help on `--results` of commands that read what ships as well."""

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


def _whole_amount(text: str) -> int:
    """Return the number of things that a word such as 25.6M stands for."""
    prefix = text[-1:] if text[-1:] in _PREFIXES else ""
    number = _number(math.ulp(0), "a number above 0, as 25.6M")(text.removesuffix(prefix))
    # Rounded, as the product of a decimal fraction may miss a whole number by its last bits.
    value = round(_PREFIXES[prefix] * number, 6)
    if value < 1 or value != int(value):
        wanted = f"must be a whole number of at least 1, not {text!r}"
        hint = f"; {text}M is {text} millions" if not prefix else ""
        raise argparse.ArgumentTypeError(wanted + hint)
    return int(value)


def _link_rate(text: str) -> float:
    """Read a rate in bits a second, as 10Gb/s or 10Gbps.

    A unit is asked for: a bare 10 was taken for ten bits a second, and gave a step of years.
    """
    parts = re.fullmatch(r"([0-9.e+-]+)([kMGT]?)(?:b/s|bps|bit/s)", text)
    if parts is None:
        raise argparse.ArgumentTypeError(
            f"must be a number of bits a second with its unit, as 10Gb/s or 100Mb/s, not {text!r}"
        )
    number, prefix = parts.groups()
    rate: float = _number(math.ulp(0), "a rate as 10Gb/s")(number)
    return _PREFIXES[prefix] * rate


def _layout(text: str) -> tuple[int, int]:
    """Return the machines, and the workers on each of them."""
    parts = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if parts is None:
        raise argparse.ArgumentTypeError(
            f"must be workers, as 8, or machines x workers a machine, as 2x4, not {text!r}"
        )
    machines, workers_each = parts.groups(default="1")
    return _count(machines), _count(workers_each)


def _rates(text: str) -> list[float]:
    """Return rates in bits a second, from a list in Mb/s."""
    return [1e6 * _above_0(rate) for rate in text.split(",")]


Add = Callable[..., argparse.ArgumentParser]
"""Adds a command: its function and what it does, in words; returns the parser of its options."""


def _parser(program: str, experiments: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Return the parser of a program's words.

    Args:
        program: what is typed to start it.
        experiments: all that an experiment can be called, for completion; None for any word.
    """
    parser = Parser(prog=program, description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=_version())
    what = f"print a script for a shell that completes the words of {INSTALLED}"
    if experiments is None:
        # Without shtab, which an installation of the optimisers alone has not.
        parser.add_argument(PRINT_COMPLETION, metavar="SHELL", help=what)
    else:
        import shtab

        shtab.add_argument_to(parser, PRINT_COMPLETION, help=what)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        command: Callable[[argparse.Namespace], int], what: str, **options: Any
    ) -> argparse.ArgumentParser:
        name = command.__name__.rstrip("_")  # as of `try`, which is a word of Python's
        sub = subparsers.add_parser(
            name, help=what, description=what, allow_abbrev=False, **options
        )
        sub.set_defaults(command=command)
        return sub

    # `do` reads it as --help, so it needs no function; it stands here to be listed.
    help_ = subparsers.add_parser("help", help="print this list, or what a COMMAND takes")
    help_.add_argument("command", nargs="?", metavar="COMMAND")
    _add_experiment_commands(add, experiments)
    _add_try_options(
        add(commands.try_, "rank a method of your own among those that ship, at their load")
    )
    _add_record_commands(add)
    _add_page_commands(add)
    _add_track_options(
        add(commands.enter, "enter a method and its runs in the open track"),
        add(
            commands.verify, "verify entries of the open track: form, bits, and steps by processes"
        ),
        add(commands.leaderboard, "write the page of the open track from its entries"),
    )
    _add_advice_options(
        add(commands.advise, "say what a step of each method must be worth in a job of yours")
    )
    _add_timing_options(
        add(commands.speedups, "time methods and baselines on an emulated network, and report it"),
        add(commands.netlab, "time collectives on an emulated network of this machine's own"),
        add(commands.time, "time training steps of methods and baselines, under torchrun"),
    )
    return parser


def _add_experiment_commands(add: Add, experiments: Sequence[str] | None) -> None:
    """Add the commands that take the name of an experiment."""
    plan = add(
        commands.plan,
        "print the runs of an experiment with bits, memory and time, or without a name the "
        "experiments that ship; touches no data",
    )
    preflight = add(commands.preflight, "look at data, disk and GPUs before a long experiment")
    run = add(commands.run, "do the runs that are missing")
    submit = add(commands.submit, "submit what is missing to a Slurm cluster, and return at once")
    status = add(commands.status, "say how far each row is, here and on a cluster")
    report = add(commands.report, "make report.md, report.pdf and report.html from the records")
    for sub in (plan, preflight, run, submit, status, report):
        records = ", or a folder of records" if sub is report else ""
        sub.add_argument(
            "experiment",
            # Without one the names that there are are printed.
            nargs="?" if sub is plan else None,
            help=f"name of a shipped experiment, or a TOML file{records}",
            choices=experiments,
        )
        sub.add_argument(
            "--tuning", action="store_true", help="take the experiment's tuning, not its runs"
        )
        _add_results_folder(sub)
        sub.add_argument(
            "--methods",
            nargs="+",
            metavar="FILE.py",
            default=[],
            help="files, or names of entry points, with methods of your own that rows name",
        )
        # For commands that have no such options: all are planned by one function, which reads them.
        sub.set_defaults(rows=[], seeds=[], stage=None)
    for sub in (plan, preflight, run, submit, status):
        before = " (default with no --cluster: as submitted before)" if sub is submit else ""
        what = f"take only the runs of this stage of the experiment{before}"
        sub.add_argument("--stage", metavar="NAME", help=what)
    for sub in (preflight, run):
        _add_run_options(sub)
    _add_submit_options(submit)
    status.add_argument("--json", action="store_true", help="print JSON")
    report.add_argument(
        "--output", type=folder, help="folder to write into (default: that of the records)"
    )


def _add_results_folder(
    sub: argparse.ArgumentParser, what: str = "folder of records (default: results)"
) -> None:
    sub.add_argument("--results", type=folder, default=Path("results"), help=what)


def _add_record_commands(add: Add) -> None:
    """Add the commands that change the form of records, and nothing that they say."""
    pack = add(
        commands.pack,
        "put the finished runs of an experiment into one file, runs.jsonl in its folder",
    )
    pack.add_argument(
        "--remove-folders",
        action="store_true",
        help="afterwards remove the folders that the file gives back to the byte, logs and "
        "checkpoints with them",
    )
    unpack = add(commands.unpack, "make folders of the runs in an experiment's runs.jsonl")
    for sub in (pack, unpack):
        sub.add_argument(
            "folder", type=Path, help="folder of the experiment, as results/fashion_mnist"
        )


def _add_page_commands(add: Add) -> None:
    """Add the commands that make pages of all experiments together."""
    answers = add(
        commands.answers, "write the answers to readers' questions and which-method.md from records"
    )
    _add_results_folder(answers, OWN_RECORDS)
    answers.add_argument(
        "--output",
        type=folder,
        help="folder to write into (default: answers/ in the results); answers are of the records "
        "that ship, and which-method.md takes yours too, unless its folder ships",
    )
    answers.add_argument(
        "--readme", type=Path, help="README to write the first page's tables and figure into, too"
    )
    site = add(commands.site, "make a site of all reports, explorers, answers, methods and docs")
    _add_results_folder(site, OWN_RECORDS)
    site.add_argument(
        "--output", type=folder, default=Path("site"), help="folder to write into (default: site)"
    )
    site.add_argument(
        "--only", nargs="+", default=[], metavar="EXPERIMENT", help="take only these experiments"
    )
    site.add_argument("--jobs", type=_count, help="reports at once (default: the cores)")


def _add_try_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("file", metavar="FILE.py", help="file of the method, or an entry point's name")
    sub.add_argument(
        "--network",
        choices=("perceptron", "residual", "gpt"),
        default="perceptron",
        help="model to train (default: perceptron, the cheapest; residual is the next to take; gpt is "
        "for GPUs, and CPUs with bf16)",
    )
    sub.add_argument("--method", metavar="NAME", help="method to take, if the file has several")
    sub.add_argument(
        "--settings",
        metavar="TOML",
        help="settings of the method to change, as 'sync_interval = 24'; those not named stay at "
        "what reaches the others' ratio",
    )
    sub.add_argument(
        "--learning-rate",
        type=_above_0,
        metavar="NUMBER",
        help="learning rate, not tuned (default: the best of as many trials as the others had)",
    )
    _add_results_folder(sub)
    _add_infrastructure_options(sub)


def _add_run_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--rows", nargs="+", metavar="ROW", help="take only the runs of these rows (default: all)"
    )
    sub.add_argument(
        "--seeds", nargs="+", type=_whole, metavar="SEED", help="take only the runs of these seeds"
    )
    _add_infrastructure_options(sub)


def _add_infrastructure_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--data", type=Path, help="folder with the data set; by default the places where it may lie"
    )
    sub.add_argument(
        "--jobs", type=_count, help="runs at once (default: the cores, or what there are GPUs for)"
    )
    what = (
        "a row of stacked tensors, or a process; auto: a process where each can have a GPU, "
        "else a row"
    )
    choices = ("stacked", "processes", "auto")
    sub.add_argument("--workers", choices=choices, default="auto", help=f"what a worker is: {what}")
    what = (
        "cuda gives each process the GPU of its local rank, of those in CUDA_VISIBLE_DEVICES "
        "(default: cpu)"
    )
    sub.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=what)
    what = "time between checkpoints (default: 5)"
    sub.add_argument("--checkpoint-minutes", type=_at_least_0, default=5.0, help=what)
    what = "how long a collective waits (default: 300)"
    sub.add_argument("--timeout-seconds", type=_above_0, default=300.0, help=what)


def _add_submit_options(submit: argparse.ArgumentParser) -> None:
    what = (
        "a profile of slurm/clusters, NAME or NAME:VARIANT, or a file (default: as submitted "
        "before, with its data)"
    )
    submit.add_argument("--cluster", help=what)
    submit.add_argument(
        "--data", type=Path, help="folder with the data set, as the compute nodes see it"
    )
    submit.add_argument(
        "--dry-run",
        action="store_true",
        help="print counts, cost and what sbatch would get, no more",
    )
    submit.add_argument("--yes", action="store_true", help="do not ask before submitting")
    submit.add_argument(
        "--no-preflight", action="store_true", help="do not check from compute nodes first"
    )
    submit.add_argument(
        "--wait", action="store_true", help="stay until nothing is queued or running any more"
    )


def _add_track_options(
    enter: argparse.ArgumentParser,
    verify: argparse.ArgumentParser,
    leaderboard: argparse.ArgumentParser,
) -> None:
    for sub in (enter, verify, leaderboard):
        sub.add_argument("--track", default="1", help="its name (default: 1)")
        sub.add_argument(
            "--tracks",
            type=folder,
            default=Path("tracks"),
            help="folder of tracks with their entries (default: tracks)",
        )
    enter.add_argument("method", type=Path, metavar="METHOD.py", help="file of the method")
    enter.add_argument(
        "--records",
        type=Path,
        metavar="FOLDER",
        help="folder of the runs (default: where `try --network gpt` leaves the row's)",
    )
    enter.add_argument("--row", help="the method's row in the records (default: the method's name)")
    enter.add_argument("--name", type=_entry_name, help="name of the entry (default: the row's)")
    enter.add_argument("--author", required=True, help="author shown on the leaderboard")
    enter.add_argument("--description", required=True, help="what the method does, in a sentence")
    verify.add_argument(
        "entries", nargs="*", metavar="NAME", help="entries to verify, or folders (default: all)"
    )
    verify.add_argument(
        "--form-only", action="store_true", help="check digests, rules and bits only"
    )
    verify.add_argument(
        "--rerun", type=_whole, metavar="SEED", help="also do the run of this seed again"
    )
    verify.add_argument(
        "--data", type=Path, help="folder with the data set; by default the places where it may lie"
    )


def _entry_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", text):
        raise argparse.ArgumentTypeError(
            f"must be of small letters, digits, and _ . - between them, not {text!r}"
        )
    return text


def _add_advice_options(advise: argparse.ArgumentParser) -> None:
    add = partial(advise.add_argument, metavar="NUMBER")
    what = "number of parameters, as 25.6M"
    add("--parameters", type=_whole_amount, required=True, help=what)
    add("--steps", type=_whole_amount, required=True, help="steps of the whole job, as 450000")
    what = "one worker a machine, as 8, or machines x workers a machine, as 2x4"
    add("--workers", "--layout", dest="layout", type=_layout, required=True, help=what)
    add(
        "--compute-ms",
        type=_above_0,
        required=True,
        help="time of both passes of one worker's batch, as 27",
    )
    add(
        "--bandwidth",
        type=_link_rate,
        required=True,
        help="bandwidth of a machine's link, each way, as 10Gb/s",
    )
    add(
        "--inside",
        type=_link_rate,
        default=0.0,
        help="bandwidth of a worker's link inside its machine (default: no limit)",
    )
    add("--latency-us", type=_above_0, default=50.0, help="latency of a hop (default: 50)")
    _add_results_folder(advise, OWN_RECORDS)
    what = "every setting that was run, not those of README's table alone"
    advise.add_argument("--all", action="store_true", help=what)
    advise.add_argument(
        "--network",
        default="residual",
        help="network whose methods are shown: residual and perceptron with SGD, gpt with AdamW "
        "(default: residual)",
    )


def _add_timing_options(
    speedups: argparse.ArgumentParser,
    netlab: argparse.ArgumentParser,
    time: argparse.ArgumentParser,
) -> None:
    # results/speedups has what ships.
    places = ((speedups, "own/speedups"), (netlab, "netlab"), (time, "speedups_here"))
    for sub, name in places:
        sub.add_argument(
            "--output",
            type=folder,
            default=Path("results", name),
            help=f"folder to write into (default: results/{name}, which git ignores)",
        )
    speedups.add_argument(
        "--minutes",
        type=_above_0,
        default=90.0,
        help="start no new timing after this many minutes (default: 90)",
    )
    what = (
        "what accuracy runs score; links of several latencies; or steps in a row, with slow "
        "workers and without"
    )
    speedups.add_argument(
        "--only",
        choices=("scored", "table", "wide", "consecutive", "text"),
        help=f"time only this: {what}; no report",
    )
    what = "methods to time, by name; `time` also takes .py files (default: all)"
    for sub in (speedups, time):
        sub.add_argument("--methods", nargs="*", default=[], help=what)
    netlab.add_argument("--workers", type=_count, default=8, help="gloo processes (default: 8)")
    netlab.add_argument(
        "--machines", type=_count, help="machines they are on, as many on each (default: one each)"
    )
    what = "Mb/s of a machine's link (default: 10,50,100)"
    netlab.add_argument(
        "--rates",
        type=_rates,
        # argparse reads a default that is a word as it reads what is typed.
        default="10,50,100",
        metavar="LIST",
        help=what,
    )
    time.add_argument(
        "--workload", default="resnet50", help="model to train or emulate (default: resnet50)"
    )
    time.add_argument("--visits", type=_count, default=4, help="turns of each method (default: 4)")
    time.add_argument(
        "--steps", type=_count, default=5, help="timed steps of a kind in each turn (default: 5)"
    )


def _version() -> str:
    import importlib.metadata

    try:
        return f"cser-bench {importlib.metadata.version('cser-bench')}"
    except importlib.metadata.PackageNotFoundError:
        return "cser-bench, not installed"
