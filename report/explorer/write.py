"""Which pages are written: an experiment's, and a study's with what an experiment's rows lose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.records.store import write_text_atomically
from report.explorer.page import explorer_page
from report.explorer.steps import step_models, timings_table
from report.frame import read_frames
from report.speed.workload_model import read_study


def write_experiment_page(path: Path, folder: Path, tuning: Path | None = None) -> None:
    """Write an experiment's page.

    Raises:
        UsageError, RecordError: as `read_frames`.
        OSError: the file cannot be written.
    """
    write_text_atomically(path, explorer_page(read_frames(folder, tuning)), durable=False)


def write_study_page(path: Path, folder: Path, accuracy: Sequence[Path] = ()) -> None:
    """Write a study's page, with the rows of the first experiment given.

    Raises:
        UsageError, RecordError: as `read_frames` and `read_study`.
        OSError: the file cannot be written.
    """
    study = read_study(folder)
    frames = read_frames(accuracy[0]) if accuracy else None
    page = explorer_page(frames, step_models(study), timings_table(study), whole=False)
    write_text_atomically(path, page, durable=False)
