"""Steps by the clock: each method's step in a timing as a line of a frame, and tables of these
lines.

Speed is joined to accuracy by settings: a row's step is that of the timed method whose settings are
the row's.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from cser_bench.harness.records.experiment import Row
from cser_bench.harness.records.timings import Cell, TimedMethod, Timing
from cser_bench.report.frame import JUDGED, Frames, read_frames
from cser_bench.report.statistics import against_baseline

ENOUGH = 10
"""Steps of each kind from which on a mean has a t interval; of fewer there are medians and their
range."""
CROWDED = 0.15
"""Share of the slowed passes beyond which a codec that hides behind them no longer fits, on the
host's cores."""
_ENCODES = 2.5
"""Baselines of a larger ratio encode behind the backward pass; an fp16 hook's ratio is 2."""

_PARTS = ["compute_seconds", "codec_seconds", "waiting_seconds", "transfer_seconds"]
_STEP = ["seconds", "low", "high", "interval", "num_steps"]
_CELL = [
    "timing",
    "workload",
    "basis",
    "machines",
    "workers_per_machine",
    "bits_per_second",
    "dilation",
    "method",
]
_CELL += ["label", "baseline", "ratio", *_STEP, *_PARTS]
_SCORED = [
    "method",
    "label",
    "algorithm",
    "bits_per_second",
    *_STEP,
    "num_sessions",
    "codec_alone_seconds",
]
WIDE = ["method", "label", "latency_seconds", "jitter_seconds", "bits_per_second", *_STEP]
"""Columns of a table of wide-area links."""


def steps_frame(timings: Sequence[Timing]) -> pd.DataFrame:
    """One line a timing, method and rate of the links whose kinds of step were all timed, in the
    order of the records.

    `seconds` is the step over the method's period, from a cell of each kind of its steps, in the
    device's time. It has the codec in it where that was measured, and not where it was emulated.
    `low`, `high` and `interval` say how sure it
    is: "t" is 95 % of the mean of ten steps or more of each kind; "range" is the lowest to the
    highest of fewer, whose `seconds` are medians. Parts of the step are medians, the codec's as on
    the clock.
    """
    lines = []
    for number, timing in enumerate(timings):
        fabric, told = (
            timing.fabric,
            {cell.bits_per_second for cell in timing.cells if cell.bits_per_second},
        )
        rates: list[float | None] = [*sorted(told)] or [None]
        place = {
            "timing": number,
            "workload": timing.workload.name,
            "basis": timing.basis,
            "machines": fabric.num_machines,
            "workers_per_machine": fabric.workers_per_machine,
            "latency_seconds": fabric.latency_seconds,
            "jitter_seconds": fabric.jitter_seconds,
            "dilation": fabric.dilation,
        }
        for method in timing.methods:
            named = method.model_dump(
                include={"label", "algorithm", "baseline", "codec_alone_seconds"}
            )
            named |= {"method": method.name, "ratio": method.ratio(timing.workload.num_parameters)}
            own = [cell for cell in timing.cells if cell.method == method.name and cell.seconds]
            for bits in rates:
                cells = [cell for cell in own if cell.bits_per_second in (bits, None)]
                if math.isclose(sum(cell.share for cell in cells), 1.0):
                    lines.append({**place, "bits_per_second": bits, **named, **_step(cells)})
    return pd.DataFrame(
        lines, columns=list(dict.fromkeys([*_CELL, *_SCORED[:-2], *WIDE, "codec_alone_seconds"]))
    )


def _step(cells: Sequence[Cell]) -> dict[str, Any]:
    """A step over its method's period: its mean or median, how sure that is, and its parts."""

    def mixed(name: str, of: Callable[[Sequence[float]], float] = median) -> float:
        return math.fsum(cell.share * of(getattr(cell, name)) for cell in cells)

    if min(len(cell.seconds) for cell in cells) >= ENOUGH:
        interval, (seconds, low, high) = "t", mean_step(cells)
    else:
        interval, (seconds, low, high) = (
            "range",
            tuple(mixed("seconds", of) for of in (median, min, max)),
        )
    step = {"seconds": seconds, "low": low, "high": high, "interval": interval}
    return (
        step
        | {"num_steps": sum(len(cell.seconds) for cell in cells)}
        | {name: mixed(name) for name in _PARTS}
    )


def cells_frame(timings: Sequence[Timing]) -> pd.DataFrame:
    """Lines of `steps_frame`. `communication_seconds` is neither passes nor codec; `crowded`: the
    codec of a baseline that encodes behind its slowed passes did not fit there."""
    steps = steps_frame(timings)
    is_emulated, codec, passes = (
        steps["basis"] == "emulated",
        steps["codec_seconds"],
        steps["compute_seconds"],
    )
    talk = steps["seconds"] - passes - codec.where(~is_emulated, 0.0)
    hides = is_emulated & steps["baseline"] & (steps["ratio"] > _ENCODES)
    crowded = hides & (codec > CROWDED * steps["dilation"] * passes)
    return steps[_CELL].assign(communication_seconds=talk, crowded=crowded)


def conditions_frame(timings: Sequence[Timing]) -> pd.DataFrame:
    """Lines of `steps_frame` by condition: a latency of the links, then who is slow.

    `passes_seconds` is a worker's own time of a step, the mean over workers.
    """

    def order(timing: Timing) -> tuple[float, ...]:
        slow, fabric = timing.stragglers, timing.fabric
        if slow is None:
            return 0, fabric.latency_seconds, fabric.jitter_seconds
        return 1, slow.who == "in turn", slow.factor

    def condition(timing: Timing) -> str:
        slow = timing.stragglers
        return timing.fabric.latency if slow is None else f"{slow.who} {slow.factor:g}x"

    ordered = sorted(timings, key=order)
    steps = steps_frame(ordered).rename(columns={"compute_seconds": "passes_seconds"})
    steps["condition"] = [condition(ordered[number]) for number in steps["timing"]]
    return steps[[*WIDE, "condition", "passes_seconds"]]


def scored_steps_frame(sessions: Sequence[Timing]) -> pd.DataFrame:
    """One line a scored method and rate of the links: its emulated step, without encoding and
    update.

    `seconds` is the mean over sessions of each one's step over the method's period. Of one session
    `low`, `high` and `interval` are as in `steps_frame`; of several they are the lowest and highest
    of their means, and it is "sessions".
    """
    lines = []
    for _, own in steps_frame(sessions).groupby(["method", "bits_per_second"], sort=False):
        line = own.bfill().iloc[0].to_dict()
        if len(own) > 1:
            line |= {
                "low": own["seconds"].min(),
                "high": own["seconds"].max(),
                "interval": "sessions",
            }
        line |= {
            "seconds": math.fsum(own["seconds"]) / len(own),
            "num_steps": own["num_steps"].sum(),
        }
        lines.append(line | {"num_sessions": len(own)})
    return pd.DataFrame(lines, columns=_SCORED)


def joined_frame(frames: Frames, sessions: Sequence[Timing]) -> pd.DataFrame:
    """One line a row of the experiment's own length and rate of the links: what it loses, and its
    step.

    A row and a timed method are joined where algorithm, settings and momentum are equal, or where
    the row is SGD's and the method is DDP with rows of its own. `estimate` is the row's score minus
    the baseline's, a share, with its 95 % interval; a row that diverged has none. A row that was
    not timed has one line, without rate and seconds. `frontier`: no other line of the same rate is
    as fast or faster and loses no more.
    """
    name, baseline = frames.experiment.name, frames.experiment.baseline
    own = [
        row
        for row in frames.experiment.rows
        if row.base is None and row.rule == "held_out" and row.tunes is None
    ]
    methods = [method for session in sessions for method in session.methods]
    pairs = dict.fromkeys(
        (row.row, method.name) for row in own for method in methods if _is_of(method, row)
    )
    steps = scored_steps_frame(sessions).drop(columns=["algorithm", "codec_alone_seconds"])
    steps = steps.rename(
        columns={"label": "timed_label", "low": "seconds_low", "high": "seconds_high"}
    )
    losses = against_baseline(frames)[["row", "estimate", "low", "high"]]
    losses = losses[
        ~losses["row"].isin(frames.runs.loc[frames.runs["status"] == "diverged", "row"])
    ]
    nothing = pd.DataFrame([(baseline, 0.0, 0.0, 0.0)], columns=losses.columns)

    rows = frames.rows[frames.rows["row"].isin([row.row for row in own])]
    frame = rows[["row", "label", "algorithm", "ratio", "models_sent"]].assign(experiment=name)
    frame = frame.merge(pd.concat([losses, nothing]), how="left", on="row")
    frame = frame.merge(pd.DataFrame([*pairs], columns=["row", "method"]), how="left", on="row")
    frame = frame.merge(steps, how="left", on="method")
    frame["label"] = frame["timed_label"].where(frame["row"] == baseline).fillna(frame["label"])
    ordered = frame.dropna(subset=["seconds", "estimate"]).sort_values(
        ["seconds", "estimate"], ascending=[True, False]
    )
    best = ordered.groupby("bits_per_second")["estimate"].cummax()
    beaten = best.groupby(ordered["bits_per_second"]).shift(fill_value=-math.inf)
    frame["frontier"] = frame.index.isin(ordered.index[ordered["estimate"] > beaten])
    return frame.drop(columns="timed_label")


def baselines_frame(sessions: Sequence[Timing]) -> pd.DataFrame:
    """Steps of the sessions' baselines with the columns of `joined_frame`, scored or not; the ratio
    is of the timed network."""
    ratios = {
        m.name: m.ratio(each.workload.num_parameters)
        for each in sessions
        for m in each.methods
        if m.baseline
    }
    steps = scored_steps_frame(sessions).rename(
        columns={"low": "seconds_low", "high": "seconds_high"}
    )
    steps = steps[steps["method"].isin(ratios.keys())]
    return steps.assign(row=steps["method"], ratio=steps["method"].map(ratios), estimate=math.nan)


def _is_of(method: TimedMethod, row: Row) -> bool:
    if method.algorithm == "ddp" and method.rows:
        return (row.algorithm, row.local_step) == ("sgd", method.local_step)
    return method.key == (row.algorithm, row.settings, row.momentum, row.local_step)


def experiments_beside(folder: Path, sessions: Sequence[Timing]) -> list[Frames]:
    """The experiments whose losses stand beside the step times of a study's folder: the judged one
    and those whose rows the sessions name, where they lie beside the study or under reference/.
    """
    named = (
        row.split("/")[0] for each in sessions for method in each.methods for row in method.rows
    )
    names = dict.fromkeys((JUDGED, *named))
    places = [
        place / name for name in names for place in (folder.parent, folder.parent / "reference")
    ]
    return [read_frames(place) for place in places if (place / "experiment.json").exists()]


def mean_step(cells: Sequence[Cell], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return mean seconds of a method's step on one link, and a confidence interval of that mean.

    The kinds' means are mixed by their exact shares, and so are the variances of these means;
    Student's t has the degrees of freedom of Satterthwaite. Steps count as independent, so the
    interval is of this session alone. The cells are of one method and link, with those that send
    nothing; at least two steps each.
    """
    # It takes most of a second to import, and most readers of records ask for no interval.
    from scipy import stats

    assert math.isclose(sum(cell.share for cell in cells), 1.0), (
        "shares of a method's cells on one link sum to 1"
    )
    mean = 0.0
    variance = 0.0
    spread = 0.0
    for cell in cells:
        variance_of_cell = cell.share**2 * float(stats.sem(cell.seconds)) ** 2
        mean += cell.share * math.fsum(cell.seconds) / len(cell.seconds)
        variance += variance_of_cell
        spread += variance_of_cell**2 / (len(cell.seconds) - 1)
    if not variance:
        return mean, mean, mean
    half = float(stats.t.ppf((1 + confidence) / 2, variance**2 / spread)) * math.sqrt(variance)
    return mean, mean - half, mean + half
