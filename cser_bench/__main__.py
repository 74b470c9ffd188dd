"""The command line, which joins the commands of all folders.

Nothing is imported here before Ctrl-C is heard, as what commands need takes its time to load.
"""

from __future__ import annotations

import sys


def command_line() -> int:
    """Do what `python -m harness` and the installed command do."""
    try:
        from cser_bench.harness.cli.exits import leave_out_current_folder

        leave_out_current_folder()
        return main()
    except KeyboardInterrupt as stop:
        from cser_bench.harness.cli.exits import interrupted

        return interrupted(stop)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    It is 2 for a user's mistake, 1 for a failure, 130 when interrupted.
    """
    from cser_bench.harness.cli import exits

    return exits.end_of(lambda: _do(arguments))


def _do(arguments: list[str] | None) -> int:
    from cser_bench.harness.cli.exits import loading

    with loading():
        from cser_bench.commands import do
    return do(arguments)


if __name__ == "__main__":
    sys.exit(command_line())
