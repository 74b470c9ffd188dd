"""What there is to answer from: experiments and step times, one's own where they were run, else those that ship."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from harness.records.identity import check_id
from harness.records.store import RecordError
from report.accuracy.findings import Finding, Study, study_of
from report.accuracy.records import Records, UsageError, read_records
from report.accuracy.tuning import Tuned, tuned_alone, tuned_rows
from report.kit.wording import count_of, whole
from report.speed.records import STUDY, read_speed_records
from report.speed.study import SpeedStudy
from report.speed.study import study_of as speed_study_of

SHIPPED = Path(__file__).parents[2] / "results"
"""Records that come with the project."""

LONG = "fashion_mnist_long"
SPLITS = "study_two_level"
SPEEDUPS = "speedups"


@dataclass(frozen=True)
class Evidence:
    """Reads an experiment when it is first asked for. `places`: folders of results, one's own before those shipped."""

    places: tuple[Path, ...]
    read: dict[str, Study | None] = field(default_factory=dict)
    searches: dict[str, Records | None] = field(default_factory=dict)
    speeds: list[SpeedStudy | None] = field(default_factory=list)

    def study(self, name: str) -> Study | None:
        """An experiment's findings; None where none of its runs has a result anywhere.

        Raises:
            RecordError: a record is damaged or of another version.
        """
        if name not in self.read:
            folders = [place / part / name for place in self.places for part in ("", "reference")]
            found = (study_of(_read(folder)) for folder in folders if (folder / "experiment.json").exists())
            self.read[name] = next((study for study in found if study.records.ended), None)
        return self.read[name]

    def named(self, start: str) -> list[str]:
        """Names of the experiments at hand that begin so, searches left out."""
        folders = [
            path for place in self.places for path in place.glob(f"{start}*") if (path / "experiment.json").exists()
        ]
        return sorted({path.name for path in folders if not path.name.endswith("_tuning")})

    def tuned(self, name: str) -> tuple[Tuned, ...]:
        """Everything that was tried for an experiment's rows; empty where its search is not at hand."""
        study = self.study(name)
        records = self.search(name)
        if records is None:
            return ()
        return tuned_rows(study.records, records) if study else tuned_alone(records)

    def search(self, name: str) -> Records | None:
        """The records of an experiment's search for settings; None where none of its runs has a result anywhere.

        Raises:
            RecordError: a record is damaged or of another version.
        """
        if name not in self.searches:
            folders = [place / f"{name}_tuning" for place in self.places]
            found = (_read(folder) for folder in folders if (folder / "experiment.json").exists())
            self.searches[name] = next((records for records in found if records.ended), None)
        return self.searches[name]

    @property
    def speed(self) -> SpeedStudy | None:
        """The study of step times; None where there is none."""
        if not self.speeds:
            folders = [place / SPEEDUPS for place in self.places if (place / SPEEDUPS / STUDY).exists()]
            studies = (speed_study_of(read_speed_records(folder)) for folder in folders)
            self.speeds.append(next((study for study in studies if study.benches), None))
        return self.speeds[0]


def _read(folder: Path) -> Records:
    """An experiment's records, held to be its own and unchanged.

    Raises:
        RecordError: they are another experiment's, or a run's settings are not those that its id stands for.
    """
    records = read_records(folder)
    if records.experiment.name != folder.name:
        raise RecordError(
            f"{folder} holds the records of {records.experiment.name}; move them to a folder of that name, since they "
            "were made with other settings"
        )
    for run in (run for rows in records.rows for run in rows.runs.values() if run):
        if (run.folder / "run.json").exists():  # A pack has been held to its ids where it was read.
            check_id(run.run, run.folder / "run.json")
    return records


def evidence_of(results: Path) -> Evidence:
    """From `results` first, then from what ships.

    Raises:
        UsageError: there is no such folder.
    """
    if not results.is_dir():
        raise UsageError(f"there is no folder {results}; give the folder that your experiments were run into")
    return Evidence(tuple(dict.fromkeys((results.resolve(), SHIPPED.resolve()))))


def finding(study: Study | None, row: str) -> Finding | None:
    """The finding of a row by its name."""
    return next((f for f in study.findings if f.records.row.row == row), None) if study else None


def missing_runs(study: Study) -> int:
    """How many of the planned runs have no result yet."""
    return study.records.planned - study.records.ended


def progress(study: Study) -> str:
    """ " (from 12 of 15 runs of study_rules)" where some are missing, else nothing."""
    records = study.records
    of = f"{count_of(records.planned, 'run')} of {records.experiment.name}"
    return f" (from {records.ended} of {of})" if missing_runs(study) else ""


def some_missing(study: Study) -> str:
    """What an answer from partial records says besides."""
    return f"Runs of {study.records.experiment.name} are missing." if missing_runs(study) else ""


def other_settings(study: Study, base: Study, but: tuple[str, ...] = ()) -> str:
    """Why the two may not be set beside each other, in a sentence; empty where only `but` of their settings differ."""
    own, theirs = study.records.experiment.settings, base.records.experiment.settings
    names = (study.records.experiment.name, base.records.experiment.name)
    for key in dict.fromkeys((*theirs, *own)):
        if key not in but and own.get(key) != theirs.get(key):
            return (
                f"{names[0]} is left out: its {key} is {own.get(key, 'not said')!r} where that of {names[1]} is "
                f"{theirs.get(key, 'not said')!r}; run it again with the present settings."
            )
    lengths = [{f.records.row.num_steps for f in each.findings} for each in (study, base)]
    if lengths[0] != lengths[1]:
        steps = [whole(max(each, default=0)) for each in lengths]
        return f"{names[0]} is left out: its runs have {steps[0]} steps where those of {names[1]} have {steps[1]}."
    return ""
