"""Which pages are written: an experiment's, with step times of its rows, and a study's, with what its methods lose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.records.store import write_text_atomically
from report.explorer.page import explorer_page
from report.explorer.steps import scored_models, step_models, timings_table
from report.frame import Frames, read_frames
from report.speed.scored import scored_experiments
from report.speed.timed import STUDY
from report.speed.workload_model import SpeedStudy, read_study


def write_experiment_page(path: Path, folder: Path, tuning: Path | None = None) -> None:
    """Write an experiment's page; a study beside it, as results/speedups, gives the step times of the rows it timed.

    Raises:
        UsageError, RecordError: as `read_frames` and `read_study`.
        OSError: the file cannot be written.
    """
    frames = read_frames(folder, tuning)
    places = [place / "speedups" for place in (folder.parent, folder.parent.parent)]
    study = next((read_study(place) for place in places if (place / STUDY).exists()), None)
    is_tuning = any(row.tunes for row in frames.experiment.rows)
    models = scored_models(study, frames) if study and study.records.sessions and not is_tuning else []
    timings = timings_table(study, {model["name"] for model in models}) if study and models else None
    page = explorer_page(frames, models, timings, without=("scores", "pairs") if is_tuning else ())
    write_text_atomically(path, page, durable=False)


def write_study_page(path: Path, folder: Path, accuracy: Sequence[Path] = ()) -> None:
    """Write a study's page, with the rows of one experiment: the first given, or the first that the sessions name.

    Raises:
        UsageError, RecordError: as `read_frames` and `read_study`.
        OSError: the file cannot be written.
    """
    study = read_study(folder)
    frames = _scored_by(study, folder, accuracy)
    scored = scored_models(study, frames) if frames and study.records.sessions else []
    title, without = "Step times and speed-ups", ("scores", "tuning", "pairs")
    page = explorer_page(frames, scored + step_models(study), timings_table(study), title, without)
    write_text_atomically(path, page, durable=False)


def _scored_by(study: SpeedStudy, folder: Path, accuracy: Sequence[Path]) -> Frames | None:
    found = [read_frames(path) for path in accuracy[:1]] or scored_experiments(folder, study.records.sessions)
    return found[0] if found else None
