"""Builds what the records in a folder call for.

That is the report of an experiment, or that of a study of step times.
"""

from collections.abc import Callable
from pathlib import Path

from cser_bench.report.accuracy_report import build_report
from cser_bench.report.frame import read_frames
from cser_bench.report.page import write_page
from cser_bench.report.ranking import terminal_text
from cser_bench.report.speed.report import build_speed_report
from cser_bench.report.speed.timed import experiments_beside
from cser_bench.report.speed.workload_model import STUDY, read_study


def build(
    folder: Path,
    output: Path | None = None,
    tuning: Path | None = None,
    progress: Callable[[float, float, str], None] = lambda done, total, what: None,
) -> Path:
    """Write report.md, report.pdf, report.html, figures/ and csv/, and return report.md.

    It can be built at any moment, with runs missing or none done, and the same records give the
    same bytes.

    Args:
        folder: with experiment.json or study.json in it; the report goes there, or to `output`.
        tuning: folder of an experiment's tuning; None looks beside the experiment's folder and one
            above.
        progress: takes the parts that are done, how many there are, and the one that is next.

    Raises:
        UsageError: there are no such folders; RecordError: a record is damaged; OSError: a file
            cannot be written.
    """
    progress(0, 3, "reading the records")
    # A study of step times has study.json, an experiment has experiment.json.
    if (folder / STUDY).exists():
        study = read_study(folder)
        experiments = experiments_beside(folder, study.sessions)
        progress(1, 3, "writing report.md, report.pdf and figures")
        path = build_speed_report(study, experiments, output or folder)
        progress(2, 3, "writing report.html")
        write_page(path)
        return path
    frames = read_frames(folder, tuning)
    progress(1, 3, "writing report.md, report.pdf and figures")
    path = build_report(frames, output)
    progress(2, 3, "writing report.html")
    write_page(path)
    return path


def summary(folder: Path) -> str | None:
    """Return the report's first table for a terminal; None where it has none that fits one."""
    if (folder / STUDY).exists():
        return None
    return terminal_text(read_frames(folder))
