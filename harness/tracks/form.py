"""The form of an entry: digests, rules and bits, looked at without training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cser_bench.algorithms.core.method_file import methods_in
from cser_bench.harness.plan.footprint import Footprint, footprint_of
from cser_bench.harness.records.experiment import Experiment, Row, read_experiment
from cser_bench.harness.records.packs import NAME as PACK
from cser_bench.harness.records.packs import read_runs
from cser_bench.harness.records.store import TRAINING, Result, RunRecord
from cser_bench.harness.records.tracks import (
    SOURCE,
    LoadClass,
    Track,
    TrackEntry,
    digest_of,
)
from cser_bench.harness.spec.run import RunConfig
from cser_bench.harness.tracks.errors import EntryError
from cser_bench.harness.tracks.refusals import check_source

OWN_FILES = (SOURCE, PACK, "experiment.json")
"""What an entry that names no records that ship has in its folder."""

TRIALS = "tuning"
"""The folder of an entry's trials, in its own."""

STATED = {"algorithm", "local_step", "learning_rate", "settings"}
"""What an entry says of its runs, beside its row."""


class Checked(NamedTuple):
    """What an entry's records are, once they have been checked.

    `num_trials`: None where the rate was given and not tuned.
    """

    configs: dict[int, RunConfig]
    results: dict[int, Result]
    load: LoadClass
    num_trials: int | None


def check_form(track: Track, entry: TrackEntry) -> Checked:
    """Check an entry's digests, its runs against the rules, and their bits.

    Raises EntryError: in a sentence, the first thing that is wrong; RecordError: a pack is damaged.
    """
    _check_digests(entry)
    experiment = read_experiment(entry.records)
    row = _row_of(entry, experiment)
    runs = _runs_of(track, entry, row)
    configs = {}
    results = {}
    for seed, run in runs.items():
        config = RunConfig.model_validate(run.run.config)
        assert run.result is not None
        _check_config(track, entry, config, seed)
        _check_bits(entry, row, footprint_of(config), run.result)
        configs[seed] = config
        results[seed] = run.result
    # The rows' settings are equal, so one config speaks for all seeds from here on.
    _check_source(entry, configs[track.seeds[0]])
    link_models = footprint_of(configs[track.seeds[0]]).link_models
    # The class follows from what is counted anew, and not from what the record says.
    load = track.class_of(link_models)
    if load is None:
        raise EntryError(
            f"{entry.name} puts {link_models:,.1f} models on a link, more than any class of the "
            "track allows"
        )
    num_trials = _num_trials(entry, experiment)
    if num_trials is not None and num_trials > track.most_trials:
        raise EntryError(
            f"{entry.name} was chosen among {num_trials} trials, where the track allows "
            f"{track.most_trials}"
        )
    return Checked(configs, results, load, num_trials)


def _check_digests(entry: TrackEntry) -> None:
    """Raise EntryError where a file of the entry's own is not that of its digest."""
    digests = entry.about.sha256
    if entry.about.records is None:
        missing = [name for name in OWN_FILES if name not in digests]
        if missing:
            raise EntryError(f"{entry.name} gives no digest of {', '.join(missing)}")
    for name, digest in digests.items():
        path = entry.folder / name
        if not path.is_file():
            raise EntryError(f"{entry.name} lacks its file {name}")
        if digest_of(path) != digest:
            raise EntryError(
                f"{path} is not the file that was entered: its digest differs"
            )


def _row_of(entry: TrackEntry, experiment: Experiment) -> Row:
    for row in experiment.rows:
        if row.row == entry.about.row:
            return row
    raise EntryError(
        f"{entry.records} has no row {entry.about.row!r}, which {entry.name} is of"
    )


def _runs_of(track: Track, entry: TrackEntry, row: Row) -> dict[int, RunRecord]:
    """Return the row's runs by seed, which are all that the track asks for and no more."""
    seeds = sorted(map(int, row.runs))
    if seeds != sorted(track.seeds):
        raise EntryError(
            f"{entry.name} has the seeds {seeds}, where the track has {sorted(track.seeds)}"
        )
    recorded = read_runs(entry.records)
    runs = {}
    for seed in track.seeds:
        run = recorded.get(row.runs[str(seed)])
        if run is None or run.result is None:
            raise EntryError(f"{entry.name} has no finished run of seed {seed}")
        if run.result.test_loss is None or not math.isfinite(run.result.test_loss):
            raise EntryError(
                f"{entry.name} diverged at seed {seed}, so it has no score"
            )
        runs[seed] = run
    return runs


def _check_config(
    track: Track, entry: TrackEntry, config: RunConfig, seed: int
) -> None:
    where = f"{entry.name}, seed {seed}"
    # The track's rules first: an entry that breaks one is none, whatever it says of itself.
    complaint = track.complaint(config)
    if complaint is not None:
        raise EntryError(f"{where}: {complaint}")
    if config.seed != seed:
        raise EntryError(f"{where}: the run is of seed {config.seed}")
    stated = entry.about.model_dump(include=STATED)
    for key, value in config.model_dump(include=STATED).items():
        if value != stated[key]:
            raise EntryError(
                f"{where}: {key} is {value!r}, and its entry says {stated[key]!r}"
            )


def _check_bits(
    entry: TrackEntry, row: Row, footprint: Footprint, result: Result
) -> None:
    """Raise EntryError where counts that were recorded are not those of the settings."""
    sent = [
        result.traffic[purpose] for purpose in TRAINING if purpose in result.traffic
    ]
    counted: Mapping[str, tuple[float, float]] = {
        "steps": (result.num_steps, footprint.num_steps),
        "numbers in the model": (result.num_parameters, footprint.num_parameters),
        "payload bits": (sum(item.bits for item in sent), footprint.bits),
        "gathered bits": (
            sum(item.gathered_bits for item in sent),
            footprint.gathered_bits,
        ),
        "bits to neighbours": (
            sum(item.neighbour_bits for item in sent),
            footprint.neighbour_bits,
        ),
        "collectives": (
            sum(item.collectives for item in sent),
            footprint.num_collectives,
        ),
        "models sent": (row.models_sent or 0, footprint.models_sent),
        "models on a link": (row.link_models or 0, footprint.link_models),
        "models held": (row.peak_models or 0, footprint.peak_models),
    }
    for what, (recorded, anew) in counted.items():
        # What is held is measured in part; all else is exact but for its last digits.
        tolerance = 0.01 if what == "models held" else 1e-9
        if not math.isclose(recorded, anew, rel_tol=tolerance):
            raise EntryError(
                f"{entry.name}: {what} are recorded as {recorded:,}, and counted anew they are "
                f"{anew:,}"
            )


def _check_source(entry: TrackEntry, config: RunConfig) -> None:
    """Raise EntryError where the runs are not of the entry's source, or that is refused."""
    recorded = config.method_source
    if entry.about.records is not None:
        # A method of this package, whose file goes on to be worked on: tests hold its losses.
        if recorded is not None or not entry.source.is_file():
            raise EntryError(
                f"{entry.name} names the source {entry.about.source}, which is not it"
            )
        return
    source = entry.source.read_text()
    if recorded is not None and recorded.sha256 != digest_of(entry.source):
        raise EntryError(f"{entry.name}: the runs are of another source than {SOURCE}")
    check_source(source, str(entry.source))
    # Runs of a method that ships have no source of their own.
    if recorded is None and config.algorithm not in methods_in(source, SOURCE):
        raise EntryError(
            f"{entry.name}: {SOURCE} has no method {config.algorithm!r}, which the runs are of"
        )


def _num_trials(entry: TrackEntry, experiment: Experiment) -> int | None:
    """Return how many trials the entry's row was chosen among.

    They are counted in the records of its trials, where these are at hand.
    """
    if experiment.tuning is None or entry.about.row not in experiment.tuning.choices:
        return None
    stated = experiment.tuning.choices[entry.about.row].num_trials
    folder = _trials_folder(entry, experiment.tuning.experiment)
    if not (folder / "experiment.json").is_file():
        raise EntryError(
            f"{entry.name} was tuned, and {folder} has no records of its trials"
        )
    trials = [
        row for row in read_experiment(folder).rows if row.tunes == entry.about.row
    ]
    recorded = read_runs(folder)
    counted = 0
    for trial in trials:
        # A trial counts from its first run on, whatever came of it.
        counted += any(run_id in recorded for run_id in trial.runs.values())
    if counted != stated:
        raise EntryError(
            f"{entry.name} says that it had {stated} trials, and {folder} has {counted}"
        )
    return stated


def _trials_folder(entry: TrackEntry, name: str) -> Path:
    """Return the folder of an entry's trials: in its own, or in that of results that ship."""
    if entry.about.records is None:
        return entry.folder / TRIALS
    return entry.root / "results" / name
