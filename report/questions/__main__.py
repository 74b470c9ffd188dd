"""Command line: python -m report.questions --results results."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from report.frame import end_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the answers; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m harness answers",
        description="Answer the questions of the paper's readers from the records there are; nothing is trained.",
        epilog="exit status: 0 written; 1 a record is damaged or a file cannot be written; 2 it cannot be used so",
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="your own records; the rest is taken from those that ship"
    )
    parser.add_argument("--output", type=Path, help="folder to write into (default: answers/ in the results)")
    parser.add_argument("--readme", type=Path, help="file that gets the three cards between its marks")
    options = parser.parse_args(arguments)
    from report.questions.build import build_answers

    def write() -> str:
        written = build_answers(options.results, options.output, options.readme)
        return f"wrote {written} and answers.pdf beside it"

    return end_of(write)


if __name__ == "__main__":
    sys.exit(main())
