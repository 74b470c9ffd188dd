"""The command line, which joins the commands of all folders.

Nothing is imported here before Ctrl-C is heard, as what commands need takes its time to load.
"""

from __future__ import annotations

from typing import NoReturn


def command_line() -> NoReturn:
    """Do what `python -m harness` and the installed command do, and end the process."""
    try:
        from cser_bench.harness.cli.exits import leave_out_current_folder

        leave_out_current_folder()
        code = main()
    except KeyboardInterrupt as stop:
        from cser_bench.harness.cli.exits import interrupted

        code = interrupted(stop)
    from cser_bench.harness.workers.processes import end_process

    end_process(code)


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
    command_line()
