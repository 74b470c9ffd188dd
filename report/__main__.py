"""Command line: python -m report results/<experiment>."""

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from report.frame import UsageError, end_of

_DESCRIPTION = """\
Build the report of an experiment, or of a study of step times, from its records: report.md, report.pdf, figures/ and
csv/, and report.html, one page to explore that works offline. It can be built at any moment, with runs missing or none
done, and the same records give the same files to the byte. With --frames, the records alone as tables: rows, runs,
scores, tuning and attempts, in frames/."""
_EPILOG = """\
examples:
  python -m report results/fashion_mnist
  python -m report results/fashion_mnist --tuning results/fashion_mnist_tuning --output /tmp/report
  python -m report results/speedups --accuracy results/reference/fashion_mnist

exit status: 0 written; 1 a record is damaged or a file cannot be written; 2 the command cannot be used as given"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build a report; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m report",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder with experiment.json or study.json in it")
    parser.add_argument(
        "--tuning", type=Path, help="folder of its tuning experiment (default: the sibling that the experiment names)"
    )
    parser.add_argument(
        "--accuracy",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="of a study: folder of an accuracy experiment to join with the step times; may be given several times",
    )
    parser.add_argument("--frames", action="store_true", help="of an experiment: write its tables as CSV and no report")
    parser.add_argument("--output", type=Path, help="folder to write into (default: the experiment's)")
    options = parser.parse_args(arguments)
    gc.disable()  # of ten thousand records nothing is garbage
    # Here and not above, so that --help does not wait for the plotting library.
    from report.accuracy_report import build_report
    from report.explorer.page import write_experiment_page, write_study_page
    from report.frame import read_frames
    from report.render import write_tables
    from report.speed.report import build_speed_report
    from report.speed.timed import experiments_beside
    from report.speed.workload_model import STUDY, read_study

    def write() -> str:
        is_study = (options.folder / STUDY).exists()
        for name in ("tuning", "frames") if is_study else ("accuracy",):
            if getattr(options, name):
                what = "a study of step times" if is_study else "an experiment"
                raise UsageError(f"the folder holds {what}, to which --{name} does not belong; leave it out")
        if is_study:
            study = read_study(options.folder)
            experiments = experiments_beside(options.folder, study.sessions, options.accuracy)
            path = build_speed_report(study, experiments, options.output or options.folder)
            write_study_page(path.with_suffix(".html"), study, experiments)
        else:
            frames = read_frames(options.folder, options.tuning)
            if options.frames:
                return f"wrote {write_tables((options.output or options.folder) / 'frames', frames.tables)}"
            path = build_report(frames, options.output)
            write_experiment_page(path.with_suffix(".html"), frames)
        return f"wrote {path} and report.pdf, report.html, figures/ and csv/ beside it"

    return end_of(write)


if __name__ == "__main__":
    sys.exit(main())
