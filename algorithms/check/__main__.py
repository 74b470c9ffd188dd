"""The command `python -m cser_bench.algorithms.check FILE.py ...`, or `algorithms.check` here."""

import sys
from pathlib import Path

from cser_bench.algorithms.check.findings import keeps_promises
from cser_bench.algorithms.check.subject import subjects_in
from cser_bench.algorithms.core.method_file import MethodFileError

USAGE = "usage: python -m algorithms.check FILE.py ...\n\nHold the methods in files to what every method promises."


def main(arguments: list[str]) -> int:
    """Return 0 where all promises are kept, 1 where one is not, 2 for a file without a method."""
    if not arguments or arguments[0].startswith("-"):
        is_help = arguments[:1] in (["-h"], ["--help"])
        print(USAGE, file=sys.stdout if is_help else sys.stderr)
        return 0 if is_help else 2
    all_kept = True
    for file in arguments:
        try:
            for subject in subjects_in(Path(file)):
                all_kept &= keeps_promises(subject)
        except MethodFileError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0 if all_kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
