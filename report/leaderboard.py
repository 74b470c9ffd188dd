"""The page of an open track: its records, all entries by class, and what they cost.

All numbers come from the entries' records, so that the same entries give the same bytes.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from scipy import special

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.atomic import write_text_atomically
from cser_bench.harness.records.packs import NAME as PACK
from cser_bench.harness.records.store import TRAINING
from cser_bench.harness.records.tracks import (
    Bound,
    CostLink,
    LoadClass,
    Track,
    TrackEntry,
    read_entries,
    read_track,
)
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.labels import with_short_labels
from cser_bench.report.leaderboard_figure import draw_leaderboard
from cser_bench.report.leaderboard_lines import BoardLine, Gap
from cser_bench.report.plotting import save
from cser_bench.report.render import markdown_of
from cser_bench.report.speed.job import TrainingJob, method_seconds, sendings_of
from cser_bench.report.statistics import COVERAGE, unpaired

PAGE = "README.md"
PICTURE = Path("figures", "gap_over_traffic.png")
"""The page and its picture, in a track's folder."""

OTHER_FAMILY = "other"

BENCH = Path("results", "bench", "bench.xml")
"""What `make bench` writes of methods' own arithmetic, from the folder above the tracks."""

OWN_ARITHMETIC = "over AdamW's step"
"""What a benchmark calls a method's own arithmetic there; its name ends in the entry's in
brackets."""


@dataclass(frozen=True)
class ClassLines:
    """The entries of a class, best first, and the record of what fits the class.

    Attributes:
        record: may be of a smaller class, whose entries fit this one too; None before any entry.
        worse: by entry: p of "it is no worse than the record", one-sided.
        to_beat: mean loss with which an entry that spreads as the record does would take it.
    """

    load: LoadClass
    lines: list[BoardLine]
    record: BoardLine | None
    worse: dict[str, float]
    to_beat: float | None


@dataclass(frozen=True)
class Leaderboard:
    """A track with the lines of its page.

    Attributes:
        entries: that no re-run contradicts.
        bounds: what entries are compared with, the baseline first.
        usual: author and day of most entries, which the page says once; None without entries.
    """

    name: str
    track: Track
    entries: list[BoardLine]
    contradicted: list[BoardLine]
    bounds: list[BoardLine]
    usual: tuple[str, str] | None

    @property
    def baseline(self) -> BoardLine:
        """What loss gaps and traffic are measured against."""
        return self.bounds[0]

    @property
    def num_reruns(self) -> int:
        """How often an entry was run again by somebody."""
        lines = [*self.entries, *self.contradicted]
        return sum(len(line.entry.reruns) for line in lines if line.entry is not None)


def build_leaderboard(tracks: Path, name: str) -> Path:
    """Write the page of a track and its picture, and return the page's path.

    Raises UsageError: there is no such track; RecordError: an entry's records are damaged.
    """
    path = tracks / name / PAGE
    board = read_leaderboard(tracks, name)
    if board.entries:
        save(draw_leaderboard(board.entries, board.bounds), path.parent / PICTURE)
    write_text_atomically(path, page_of(board, tracks), durable=False)
    return path


def leaderboard_text(tracks: Path, name: str) -> str:
    """Return the page of a track in Markdown."""
    return page_of(read_leaderboard(tracks, name), tracks)


def read_leaderboard(tracks: Path, name: str) -> Leaderboard:
    """Return the lines of a track's page from the records of its entries."""
    track = read_track(tracks, name)
    # Bounds name their records from the repository, in which the tracks lie.
    root = tracks.absolute().parent
    frames_of = cache(lambda folder: with_short_labels(read_frames(folder)))
    baseline = _bound_line(track, track.everything_sent, frames_of, root, None)
    bounds = [baseline]
    for bound in track.bounds:
        bounds.append(_bound_line(track, bound, frames_of, root, baseline))
    lines: list[BoardLine] = []
    contradicted: list[BoardLine] = []
    counted: Counter[tuple[str, str]] = Counter()
    for entry in read_entries(tracks, name):
        line = _entry_line(track, entry, frames_of, root, baseline)
        if entry.is_contradicted:
            contradicted.append(line)
        else:
            lines.append(line)
        counted[entry.about.author, entry.about.entered] += 1
    usual = None
    if counted:
        [(usual, _)] = counted.most_common(1)
    return Leaderboard(name, track, lines, contradicted, bounds, usual)


def page_of(board: Leaderboard, tracks: Path) -> str:
    """Return the page in Markdown; its links are relative to the track's folder."""
    folder = (tracks / board.name).absolute()
    context = {
        "board": board,
        "classes": [
            _class_lines(board.track, load, board.entries)
            for load in board.track.classes
        ],
        "own_link": lambda path: os.path.relpath(path, folder),
        "picture": PICTURE,
        "pack": PACK,
    }
    return markdown_of("leaderboard.md.j2", context)


def _class_lines(
    track: Track, load: LoadClass, lines: Sequence[BoardLine]
) -> ClassLines:
    # What fits a class has at most its traffic; its members fit no smaller class.
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


def _record(track: Track, lines: Sequence[BoardLine]) -> BoardLine | None:
    """Return the record of these entries.

    The first record is the best entry of the first day. From then on a record falls only to an
    entry that is better by the track's p, and that was run again.
    """

    def order(line: BoardLine) -> tuple[str, float, str]:
        assert line.entry is not None
        return line.entry.about.entered, line.mean_loss, line.name

    # By day, and of one day the best first: entries meet the record that stood when they came.
    standing: BoardLine | None = None
    for line in sorted(lines, key=order):
        if standing is None:
            standing = line
            continue
        better = unpaired(line.scores, standing.scores)
        assert line.entry is not None
        if line.entry.is_confirmed and better.p_above(0.0) < track.p_below:
            standing = line
    return standing


def _to_beat(track: Track, record: BoardLine) -> float:
    """Return the mean loss that takes the record, of an entry with the same seeds and spread."""
    num_seeds = len(record.scores)
    # mean_loss - t s sqrt(1 / n + 1 / n), with the t of 2 (n - 1) degrees.
    # For two samples of one size and spread Satterthwaite's degrees of freedom are exactly these, so
    # the loss is the one at which `_record` lets the record fall.
    quantile = float(special.stdtrit(2 * (num_seeds - 1), 1 - track.p_below))
    deviation = float(record.scores.std(ddof=1))
    return record.mean_loss - quantile * deviation * math.sqrt(2 / num_seeds)


def _entry_line(
    track: Track, entry: TrackEntry, frames_of: Any, root: Path, baseline: BoardLine
) -> BoardLine:
    frames = frames_of(entry.records)
    arithmetic = _arithmetic(root / BENCH).get(entry.name)
    return _board_line(
        track, frames, entry.about.row, entry.name, entry, arithmetic, baseline
    )


def _bound_line(
    track: Track, bound: Bound, frames_of: Any, root: Path, baseline: BoardLine | None
) -> BoardLine:
    frames = frames_of(root / bound.records)
    arithmetic = _arithmetic(root / BENCH).get(bound.row)
    return _board_line(track, frames, bound.row, bound.row, None, arithmetic, baseline)


def _board_line(
    track: Track,
    frames: Frames,
    row_name: str,
    name: str,
    entry: TrackEntry | None,
    arithmetic: float | None,
    baseline: BoardLine | None,
) -> BoardLine:
    """Return the line of a row of an experiment; `baseline` is None for the baseline itself."""
    if row_name not in frames.by_row.index:
        raise UsageError(f"{frames.folder} has no row {row_name!r}, which {name} is of")
    row = frames.row(row_name)
    scores = _negative_losses(frames, row_name)
    link_models = float(row["link_models"])
    # The baseline, which comes first, is compared with itself.
    baseline_scores = scores
    baseline_models = link_models
    if baseline is not None:
        baseline_scores = baseline.scores
        baseline_models = baseline.link_models
    lead = unpaired(scores, baseline_scores)
    low, high = lead.interval(COVERAGE)
    return BoardLine(
        name=name,
        label=str(row["label"]),
        family=frames.experiment.families.get(str(row["algorithm"]), OTHER_FAMILY),
        entry=entry,
        scores=scores,
        # Scores are negative losses, so a lead of a score is a gap of the other sign.
        gap=Gap(0.0 - lead.estimate, 0.0 - high, 0.0 - low),
        learning_rate=float(row["learning_rate"]),
        num_trials=_num_trials(frames, row_name),
        traffic=link_models / baseline_models,
        link_models=link_models,
        link_bits=32 * int(row["num_parameters"]) * link_models,
        num_collectives=_num_collectives(frames, row_name),
        peak_models=float(row["peak_models"]),
        arithmetic=arithmetic,
        seconds=[_step_seconds(track, link, frames, row_name) for link in track.links],
    )


def _negative_losses(frames: Frames, row_name: str) -> np.ndarray:
    """Return the scores of a row's finished runs by rising seed, (runs,)."""
    # By loss whatever their experiment is scored by: the track is.
    is_done = (frames.runs["row"] == row_name) & (frames.runs["status"] == "done")
    losses = frames.runs[is_done].sort_values("seed")["test_loss"]
    return -losses.to_numpy(dtype=float)


def _num_trials(frames: Frames, row_name: str) -> int | None:
    """Return how many trials chose a row's rate; None where it was given."""
    if frames.experiment.tuning is None:
        return None
    choice = frames.experiment.tuning.choices.get(row_name)
    if choice is None:
        return None
    return choice.num_trials


def _num_collectives(frames: Frames, row_name: str) -> int:
    """Return in how many collectives a worker takes part in training, by any of the row's runs."""
    run = frames.runs[frames.runs["row"] == row_name].iloc[0]
    counts = [run.get(f"{purpose}.collectives") for purpose in TRAINING]
    # None of a purpose that no run of the experiment has.
    return int(sum(count for count in counts if count))


def _step_seconds(track: Track, link: CostLink, frames: Frames, row_name: str) -> float:
    """Return a row's step by the cost model, with the track's passes, a worker a machine."""
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
                # As pytest names a case: "test_name[entry]".
                _, _, parameter = str(case.get("name")).partition("[")
                entry = parameter.removesuffix("]")
                measured[entry] = float(str(item.get("value")))
    return measured
