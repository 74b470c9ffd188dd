"""Builds what the records in a folder call for.

That is the report of an experiment, or that of a study of step times.
"""

from pathlib import Path

from cser_bench.report.accuracy_report import build_report
from cser_bench.report.explorer.page import write_experiment_page, write_study_page
from cser_bench.report.frame import read_frames
from cser_bench.report.speed.report import build_speed_report
from cser_bench.report.speed.timed import experiments_beside
from cser_bench.report.speed.workload_model import STUDY, read_study


def build(folder: Path, output: Path | None = None, tuning: Path | None = None) -> Path:
    """Write report.md, report.pdf, report.html, figures/ and csv/, and return report.md.

    It can be built at any moment, with runs missing or none done, and the same records give the
    same bytes.

    Args:
        folder: with experiment.json or study.json in it; the report goes there, or to `output`.
        tuning: folder of an experiment's tuning; None looks beside the experiment's folder and one
            above.

    Raises:
        UsageError: there are no such folders; RecordError: a record is damaged; OSError: a file
            cannot be written.
    """
    if (folder / STUDY).exists():
        study = read_study(folder)
        experiments = experiments_beside(folder, study.sessions)
        path = build_speed_report(study, experiments, output or folder)
        write_study_page(path.with_suffix(".html"), study, experiments)
        return path
    frames = read_frames(folder, tuning)
    path = build_report(frames, output)
    write_experiment_page(path.with_suffix(".html"), frames)
    return path
