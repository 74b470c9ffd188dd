"""The page of an open track: its records, then all entries by class of load.

All numbers come from the entries' records, so that the same entries give the same bytes.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from scipy import special

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.packs import NAME as PACK
from cser_bench.harness.records.store import TRAINING, write_text_atomically
from cser_bench.harness.records.tracks import (
    Bound,
    CostLink,
    Entry,
    LoadClass,
    Track,
    read_entries,
    read_track,
)
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.render import markdown_of
from cser_bench.report.speed.job import TrainingJob, method_seconds, sendings_of
from cser_bench.report.statistics import COVERAGE, Difference, unpaired

PAGE = "README.md"

BENCH = Path("results", "bench", "bench.xml")
"""What `make bench` writes of methods' own arithmetic, from the folder above the tracks."""

OWN_ARITHMETIC = "over AdamW's step"
"""What a benchmark calls a method's own arithmetic there; its name ends in the entry's in
brackets."""


@dataclass(frozen=True)
class Line:
    """A row of the page's tables: an entry or a bound.

    Attributes:
        scores: negative losses in nats, a seed each.
        lost: everything sent minus this, in nats.
        payload_bits, link_bits: of one worker, or of its link, in a run.
        arithmetic: the method's own, in steps of AdamW; None where not measured.
        seconds: of a step by the cost model, a link each.
        num_trials: None where the rate was given.
    """

    name: str
    label: str
    entry: Entry | None
    scores: np.ndarray
    lost: Difference
    local_step: str
    learning_rate: float
    num_trials: int | None
    models_sent: float
    link_models: float
    payload_bits: float
    link_bits: float
    num_collectives: int
    peak_models: float
    arithmetic: float | None
    seconds: list[float]

    @property
    def mean_loss(self) -> float:
        """In nats."""
        return -math.fsum(self.scores) / len(self.scores)

    @property
    def interval(self) -> tuple[float, float]:
        """The two-sided interval of what it loses, in nats."""
        low, high = self.lost.interval(COVERAGE)
        return -high, -low


@dataclass(frozen=True)
class ClassLines:
    """The entries of a class of load, best first, and the record of what fits the class.

    Attributes:
        record: may be of a smaller class, whose entries fit this one too; None before any entry.
        worse: by entry: p of "it is no worse than the record", one-sided.
        to_beat: mean loss with which an entry that spreads as the record does would take it.
    """

    load: LoadClass
    lines: list[Line]
    record: Line | None
    worse: dict[str, float]
    to_beat: float | None


def build_leaderboard(tracks: Path, name: str) -> Path:
    """Write the page of a track, and return its path.

    Raises UsageError: there is no such track; RecordError: an entry's records are damaged.
    """
    path = tracks / name / PAGE
    write_text_atomically(path, leaderboard_text(tracks, name), durable=False)
    return path


def leaderboard_text(tracks: Path, name: str) -> str:
    """Return the page of a track in Markdown."""
    track = read_track(tracks, name)
    entries = read_entries(tracks, name)
    root = tracks.absolute().parent
    frames_of = cache(read_frames)
    baseline = _line(track, track.everything_sent, frames_of, root, None)
    bounds = [baseline]
    for bound in track.bounds:
        bounds.append(_line(track, bound, frames_of, root, baseline))
    lines: list[Line] = []
    contradicted: list[Line] = []
    for entry in entries:
        line = _entry_line(track, entry, frames_of, root, baseline)
        (contradicted if entry.is_contradicted else lines).append(line)
    classes = [_class_lines(track, load, lines) for load in track.classes]
    context = {
        "name": name,
        "track": track,
        "classes": classes,
        "bounds": bounds,
        "baseline": baseline,
        "contradicted": contradicted,
        "num_entries": len(entries),
        "num_reruns": sum(len(entry.reruns) for entry in entries),
        "own_link": lambda path: os.path.relpath(path, (tracks / name).absolute()),
        "pack": PACK,
    }
    return markdown_of("leaderboard.md.j2", context)


def _class_lines(track: Track, load: LoadClass, lines: Sequence[Line]) -> ClassLines:
    fitting = [line for line in lines if line.link_models <= load.most_link_models]
    members = [line for line in fitting if track.class_of(line.link_models) == load]
    members.sort(key=lambda line: (line.mean_loss, line.name))
    record = _record(track, fitting)
    if record is None:
        return ClassLines(load, members, None, {}, None)
    worse = {}
    for line in members:
        # The record is better where its score minus the entry's is above 0.
        worse[line.name] = unpaired(record.scores, line.scores).p_above(0.0)
    return ClassLines(load, members, record, worse, _to_beat(track, record))


def _record(track: Track, lines: Sequence[Line]) -> Line | None:
    """Return the record of these entries.

    The first record is the best entry of the first day. From then on a record falls only to an
    entry that is better by the track's p, and that was run again.
    """

    def order(line: Line) -> tuple[str, float, str]:
        assert line.entry is not None
        return line.entry.about.entered, line.mean_loss, line.name

    standing: Line | None = None
    for line in sorted(lines, key=order):
        if standing is None:
            standing = line
            continue
        better = unpaired(line.scores, standing.scores)
        assert line.entry is not None
        if line.entry.is_confirmed and better.p_above(0.0) < track.p_below:
            standing = line
    return standing


def _to_beat(track: Track, record: Line) -> float:
    """Return the mean loss that takes the record, of an entry with the same seeds and spread."""
    num_seeds = len(record.scores)
    # For two samples of one size and spread Satterthwaite's degrees of freedom are exactly these, so
    # the loss is the one at which `_record` lets the record fall.
    quantile = float(special.stdtrit(2 * (num_seeds - 1), 1 - track.p_below))
    deviation = float(record.scores.std(ddof=1))
    return record.mean_loss - quantile * deviation * math.sqrt(2 / num_seeds)


def _entry_line(track: Track, entry: Entry, frames_of: Any, root: Path, baseline: Line) -> Line:
    frames = frames_of(entry.records)
    arithmetic = _arithmetic(root / BENCH).get(entry.name)
    return _line_of(track, frames, entry.about.row, entry.name, entry, arithmetic, baseline)


def _line(track: Track, bound: Bound, frames_of: Any, root: Path, baseline: Line | None) -> Line:
    frames = frames_of(root / bound.records)
    arithmetic = _arithmetic(root / BENCH).get(bound.row)
    return _line_of(track, frames, bound.row, bound.row, None, arithmetic, baseline)


def _line_of(
    track: Track,
    frames: Frames,
    row_name: str,
    name: str,
    entry: Entry | None,
    arithmetic: float | None,
    baseline: Line | None,
) -> Line:
    if row_name not in frames.by_row.index:
        raise UsageError(f"{frames.folder} has no row {row_name!r}, which {name} is of")
    row = frames.row(row_name)
    # By loss whatever their experiment is scored by: the track is.
    is_done = (frames.runs["row"] == row_name) & (frames.runs["status"] == "done")
    scores = -frames.runs[is_done].sort_values("seed")["test_loss"].to_numpy(dtype=float)
    model_bits = 32 * int(row["num_parameters"])
    choice = None
    if frames.experiment.tuning is not None:
        choice = frames.experiment.tuning.choices.get(row_name)
    return Line(
        name=name,
        label=str(row["label"]),
        entry=entry,
        scores=scores,
        lost=unpaired(scores, scores if baseline is None else baseline.scores),
        local_step=str(row["local_step"]),
        learning_rate=float(row["learning_rate"]),
        num_trials=None if choice is None else choice.num_trials,
        models_sent=float(row["models_sent"]),
        link_models=float(row["link_models"]),
        payload_bits=float(row["models_sent"]) * model_bits,
        link_bits=float(row["link_models"]) * model_bits,
        num_collectives=_num_collectives(frames, row_name),
        peak_models=float(row["peak_models"]),
        arithmetic=arithmetic,
        seconds=[_step_seconds(track, link, frames, row_name) for link in track.links],
    )


def _num_collectives(frames: Frames, row_name: str) -> int:
    """Return in how many collectives a worker takes part in training, by any of the row's runs."""
    run = frames.runs[frames.runs["row"] == row_name].iloc[0]
    counts = [run.get(f"{purpose}.collectives") for purpose in TRAINING]
    return int(sum(count for count in counts if count))


def _step_seconds(track: Track, link: CostLink, frames: Frames, row_name: str) -> float:
    row = frames.rows[frames.rows["row"] == row_name].iloc[0]
    job = TrainingJob(
        num_parameters=int(row["num_parameters"]),
        num_steps=int(row["num_steps"]),
        num_machines=track.fixed.num_workers,
        workers_per_machine=1,
        compute_seconds=track.compute_seconds,
        bits_per_second=link.bits_per_second,
        latency_seconds=link.latency_seconds,
    )
    return method_seconds(job, sendings_of(frames, row))


@cache
def _arithmetic(path: Path) -> dict[str, float]:
    """Return what benchmarks measured of methods' own arithmetic, by entry; nothing without any."""
    measured: dict[str, float] = {}
    if not path.is_file():
        return measured
    for case in ElementTree.parse(path).iter("testcase"):
        for item in case.iter("property"):
            if item.get("name") == OWN_ARITHMETIC:
                name = str(case.get("name"))
                measured[name.partition("[")[2].removesuffix("]")] = float(str(item.get("value")))
    return measured
