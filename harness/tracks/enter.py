"""Makes an entry of a method's file and of the runs that were done with it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cser_bench.algorithms.check import Subject, keeps_promises
from cser_bench.algorithms.check.subject import source_of
from cser_bench.harness.errors import UsageError
from cser_bench.harness.plan.outside import outside_methods
from cser_bench.harness.records.experiment import Experiment, Row, read_experiment
from cser_bench.harness.records.packs import NAME as PACK
from cser_bench.harness.records.packs import Files, read_pack, render_pack
from cser_bench.harness.records.provenance import now
from cser_bench.harness.records.store import RecordError, read_run_files, write_record
from cser_bench.harness.records.tracks import (
    ENTRY,
    SOURCE,
    EntryFile,
    digest_of,
    entry_text,
    read_entry,
    read_track,
)
from cser_bench.harness.spec.run import RunConfig
from cser_bench.harness.tracks.errors import EntryError
from cser_bench.harness.tracks.form import OWN_FILES, TRIALS, check_form
from cser_bench.harness.tracks.refusals import check_source


class EntryRequest(NamedTuple):
    """What someone wants to enter.

    Attributes:
        method: the method's file.
        records: folder of the experiment whose runs are entered, of `row`.
        tracks, track: the folder of tracks that gets the entry, and the track's name.
        rules: the folder of tracks that has the rules.
        name: of the entry.
    """

    method: Path
    records: Path
    row: str
    tracks: Path
    track: str
    rules: Path
    name: str
    author: str
    description: str


def name_in(method: Path) -> str:
    """Return the name of the only method in a file, which `try` calls its row by.

    Raises UsageError: the file has several.
    """
    names = list(outside_methods([str(method)]))
    if len(names) > 1:
        raise UsageError(
            f"{method} has the methods {', '.join(names)}; choose one by --row"
        )
    return names[0]


def enter(request: EntryRequest) -> Path:
    """Make the entry, check its form and its method's promises, and return its folder.

    The promises are printed as they are checked. Nothing is left of an entry that is refused.

    Raises UsageError: there is such an entry, or no such row; EntryError: it breaks a rule or a
    promise.
    """
    track = read_track(request.rules, request.track)
    entries = request.tracks / request.track / "entries"
    folder = entries / request.name
    if folder.exists():
        raise UsageError(
            f"there is an entry {folder}; give another --name, or delete that one"
        )
    experiment = read_experiment(request.records)
    row = _row_of(experiment, request)
    # Read once: what is checked and promised is the text that is entered.
    source = source_of(request.method)
    check_source(source, str(request.method))
    entries.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that one rename brings it there whole.
    with tempfile.TemporaryDirectory(prefix=".", dir=entries) as place:
        made = Path(place) / request.name
        made.mkdir()
        runs = _pack(experiment, [row], request.records, made)
        if experiment.tuning is not None and request.row in experiment.tuning.choices:
            _pack_trials(experiment.tuning.experiment, request, made)
        shutil.copyfile(request.method, made / SOURCE)
        (made / ENTRY).write_text(entry_text(_about(request, row, runs, made)))
        entry = read_entry(made)
        try:
            check_form(track, entry)
        except (EntryError, RecordError) as error:
            # The entry's folder is gone when this is read, and what it was made of is not.
            raise type(error)(
                _of_request(str(error), made, experiment, request)
            ) from None
        # After the form, which takes a moment where this takes half a minute.
        if not keeps_promises(
            Subject(source, request.method.name, entry.about.algorithm)
        ):
            raise EntryError(
                f"{request.method} breaks a promise that its numbers would rest on; fix what is "
                "marked FAIL, run it anew and enter it then"
            )
        made.rename(folder)
    return folder


def _of_request(
    words: str, made: Path, experiment: Experiment, request: EntryRequest
) -> str:
    """Return the words with the folders that the entry was made of in the place of its own."""
    if experiment.tuning is not None:
        trials = request.records.parent / experiment.tuning.experiment
        words = words.replace(str(made / TRIALS), str(trials))
    words = words.replace(str(made / SOURCE), str(request.method))
    return words.replace(str(made), str(request.records))


def _row_of(experiment: Experiment, request: EntryRequest) -> Row:
    for row in experiment.rows:
        if row.row == request.row:
            return row
    names = ", ".join(row.row for row in experiment.rows)
    raise UsageError(
        f"{request.records} has no row {request.row!r}; its rows are {names}"
    )


def _pack(
    experiment: Experiment, rows: list[Row], records: Path, folder: Path
) -> dict[str, Files]:
    """Write an experiment of these rows alone, and their runs, as packed records; return these."""
    names = {row.row for row in rows} | {row.tunes for row in rows}
    tuning = experiment.tuning
    if tuning is not None:
        chosen = {row: choice for row, choice in tuning.choices.items() if row in names}
        selected = {row: rate for row, rate in tuning.selected.items() if row in names}
        tuning = tuning.model_copy(
            update={
                "choices": chosen,
                "selected": selected,
                # An entry has one row, and the other rule would choose another.
                "choices_by_training_loss": {},
            }
        )
    algorithms = {row.algorithm for row in rows}
    update = {
        "rows": rows,
        "tuning": tuning,
        # What they are compared with is the track's affair.
        "baseline": None,
        "floor": None,
        "contrasts": None,
        "exponents": None,
        "evidence": None,
        "families": {
            key: experiment.families[key]
            for key in experiment.families.keys() & algorithms
        },
        "outside": {
            key: experiment.outside[key]
            for key in experiment.outside.keys() & algorithms
        },
    }
    write_record(folder / "experiment.json", experiment.model_copy(update=update))
    runs = _runs_of(rows, records)
    (folder / PACK).write_text(render_pack(experiment.name, runs))
    return runs


def _pack_trials(name: str, request: EntryRequest, folder: Path) -> None:
    """Write the records of the row's trials, whose folder is next to that of its runs."""
    records = request.records.parent / name
    if not (records / "experiment.json").is_file():
        raise UsageError(
            f"{request.row} was tuned by {name}, and there is no folder {records}"
        )
    experiment = read_experiment(records)
    trials = [row for row in experiment.rows if row.tunes == request.row]
    trials_folder = folder / TRIALS
    trials_folder.mkdir()
    _pack(experiment, trials, records, trials_folder)


def _runs_of(rows: Iterable[Row], records: Path) -> dict[str, Files]:
    """Return the files of the rows' finished runs, by id."""
    packed = read_pack(records)
    runs = {}
    for row in rows:
        for run_id in row.runs.values():
            # A folder stands over a pack, as in `read_runs`.
            files = read_run_files(records / run_id) or packed.get(run_id, {})
            if "result" in files:
                runs[run_id] = dict(files)
    return runs


def _about(
    request: EntryRequest, row: Row, runs: dict[str, Files], folder: Path
) -> EntryFile:
    """Return what entry.toml says: of the method what its first run says."""
    if not runs:
        raise UsageError(
            f"{request.records} has no finished run of {request.row}; run it first"
        )
    first = next(iter(runs.values()))
    config = RunConfig.model_validate(first["run"]["config"])
    names = list(OWN_FILES)
    if (folder / TRIALS).is_dir():
        names += [f"{TRIALS}/{name}" for name in (PACK, "experiment.json")]
    return EntryFile(
        format=1,
        author=request.author,
        entered=now()[:10],
        description=request.description,
        row=row.row,
        source=SOURCE,
        algorithm=config.algorithm,
        local_step=config.local_step,
        learning_rate=config.learning_rate,
        settings=config.settings,
        sha256={name: digest_of(folder / name) for name in names},
    )
