"""What ships with the project in results/, and which of two experiments of one name is taken.

`results/shipped.txt` is the list of what ships; an installation has it too, and of what it names
the packed experiments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cser_bench.harness.places import SHIPPED_TUNINGS
from cser_bench.harness.records.experiment import Experiment, read_experiment
from cser_bench.harness.records.packs import read_result

SHIPPED = SHIPPED_TUNINGS
"""The folder of what ships; in a checkout a user's own runs lie in it too."""

LIST = "shipped.txt"
"""Names what ships, by paths from that folder."""

PLAN = "experiment.json"
TIMINGS = "speedups"
"""How the name of a folder of step times ends."""


@dataclass(frozen=True)
class OwnExperiment:
    """An experiment of the user's own, and how many of its planned runs have a result."""

    folder: Path
    num_done: int
    num_planned: int
    is_evidence: bool
    """Whether answers and advice can rest on it."""

    @property
    def is_done(self) -> bool:
        return 0 < self.num_planned == self.num_done


@dataclass(frozen=True)
class Taken:
    """The folders of records that a command reads.

    folders: of experiments and step times; of two of one name the first counts.
    own: the user's experiments, done or not.
    """

    folders: tuple[Path, ...]
    own: tuple[OwnExperiment, ...] = ()


def shipped_paths() -> list[Path]:
    """Return the folders and files of the list, those that are here."""
    path = SHIPPED / LIST
    if not path.is_file():
        return []
    names = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return [SHIPPED / name for name in names if (SHIPPED / name).exists()]


def shipped_folders() -> list[Path]:
    """Return the folders of experiments, searches and step times that ship."""
    return [path for path in shipped_paths() if _has_records(path)]


def shipped_experiments() -> list[Path]:
    """Return the folders of experiments and searches that ship."""
    return [path for path in shipped_paths() if (path / PLAN).is_file()]


def ships(path: Path) -> bool:
    """Tell whether this folder or file is on the list."""
    return path.resolve() in {shipped.resolve() for shipped in shipped_paths()}


def take(results: Path | None) -> Taken:
    """Return the folders to read: the user's own before those that ship.

    An experiment of the user's own is taken when all its planned runs are done. Until then what
    ships under its name is.

    Args:
        results: folder of the user's own records, or None for what ships alone.

    Raises:
        RecordError: a record of the user's own is damaged; the message names the file.
    """
    shipped = shipped_folders()
    if results is None:
        return Taken(tuple(shipped))
    names = {path.name for path in shipped}
    folders = []
    own = []
    for folder in _own_folders(results):
        if not (folder / PLAN).is_file():
            folders.append(folder)
            continue
        plan = read_experiment(folder)
        # A folder that was renamed was put aside.
        if plan.name != folder.name:
            continue
        experiment = _own_experiment(folder, plan, is_evidence=folder.name in names)
        own.append(experiment)
        if experiment.is_done:
            folders.append(folder)
    return Taken((*folders, *shipped), tuple(own))


def _has_records(folder: Path) -> bool:
    return (folder / PLAN).is_file() or (
        folder.is_dir() and folder.name.endswith(TIMINGS)
    )


def _own_folders(results: Path) -> Iterator[Path]:
    """Yield the folders of records in a folder of results that do not ship."""
    shipped = {path.resolve() for path in shipped_paths()}
    # Some experiments that ship lie one folder down, and so may new runs of them.
    for place in (results, results / "reference"):
        for folder in sorted(place.glob("*")):
            if _has_records(folder) and folder.resolve() not in shipped:
                yield folder


def _own_experiment(folder: Path, plan: Experiment, is_evidence: bool) -> OwnExperiment:
    # A set, as rows may share a run.
    planned = {run_id for row in plan.rows for run_id in row.runs.values()}
    # Results alone are looked at: to check every record of every run would take long here.
    done = [run_id for run_id in planned if read_result(folder / run_id) is not None]
    return OwnExperiment(
        folder, len(done), len(planned), is_evidence or plan.evidence is not None
    )
