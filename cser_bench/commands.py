"""All commands, in the order of their list, and how words of the command line become a call."""

from __future__ import annotations

import importlib.metadata
import os
import sys

import click
from click.shell_completion import get_completion_class, shell_complete

from cser_bench.harness.cli.command import Command
from cser_bench.harness.cli.exits import program
from cser_bench.harness.cli.experiments import plan, preflight, run
from cser_bench.harness.cli.records import pack, unpack
from cser_bench.harness.cli.timing import netlab, time
from cser_bench.harness.errors import UsageError
from cser_bench.joint_commands import report, speedups, try_
from cser_bench.report.advice.command import advise
from cser_bench.report.commands import answers
from cser_bench.slurm.commands import status, submit

INSTALLED = "cser-harness"
"""The command that pip installs."""

COMPLETE = "_CSER_HARNESS_COMPLETE"
"""The variable by which a shell's script asks for completions."""


GROUPS: dict[str, tuple[Command, ...]] = {
    "Your job": (advise, netlab, time, speedups),
    "Your method": (try_,),
    "Experiments": (
        plan,
        preflight,
        run,
        submit,
        status,
        report,
        pack,
        unpack,
        answers,
    ),
}
"""All commands, as --help lists them."""


class Grouped(click.Group):
    """A group that lists its commands below the heads of `GROUPS`, where click's own sorts them."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(
        self, context: click.Context, formatter: click.HelpFormatter
    ) -> None:
        for head, listed in GROUPS.items():
            with formatter.section(head):
                formatter.write_dl(
                    [(str(each.name), str(each.short_help)) for each in listed]
                )


def _print_version(
    context: click.Context, param: click.Parameter, is_given: bool
) -> None:
    if is_given and not context.resilient_parsing:
        click.echo(_version())
        context.exit()


def _print_completion(
    context: click.Context, param: click.Parameter, shell: str | None
) -> None:
    """Print a script for the installed command: a shell completes the words of one command.

    `python -m harness` is not one.
    """
    kind = get_completion_class(shell) if shell else None
    if kind is not None and not context.resilient_parsing:
        click.echo(kind(context.command, {}, INSTALLED, COMPLETE).source())
        context.exit()


@click.group(
    cls=Grouped,
    no_args_is_help=False,
    help="What a step of your job costs, how your method ranks, and experiments from plan to report.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="print the version",
)
@click.option(
    "--print-completion",
    type=click.Choice(("bash", "zsh", "fish")),
    is_eager=True,
    expose_value=False,
    callback=_print_completion,
    help=f"print a script for a shell that completes the words of {INSTALLED}",
)
def commands() -> None:
    pass


for listed in GROUPS.values():
    for each in listed:
        commands.add_command(each)


def do(arguments: list[str] | None) -> int:
    """Read the words of one command and do it; return its exit code.

    The words are those of the command line where none are given.
    """
    if COMPLETE in os.environ:
        return shell_complete(commands, {}, INSTALLED, COMPLETE, os.environ[COMPLETE])
    words = sys.argv[1:] if arguments is None else arguments
    # Not `commands.main`, which makes Ctrl-C an error of its own and ends the process.
    try:
        with commands.make_context(program(), list(words)) as context:
            return int(commands.invoke(context))
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.UsageError as error:
        raise UsageError(_sentence(error)) from None


def _sentence(error: click.UsageError) -> str:
    """Return what is wrong in a sentence, without the usage, which has several lines."""
    said = error.message
    if isinstance(error, click.BadParameter):
        said = error.format_message()  # which names the option
    said = said[:1].lower() + said[1:].rstrip(".")
    path = program() if error.ctx is None else error.ctx.command_path
    return f"{said}; see `{path} --help`"


def _version() -> str:
    try:
        return f"cser-bench {importlib.metadata.version('cser-bench')}"
    except importlib.metadata.PackageNotFoundError:
        return "cser-bench, not installed"
