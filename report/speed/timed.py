"""Steps by the clock: each method's step in a timing as a line of a frame.

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
from cser_bench.harness.records.shipped import ships, take
from cser_bench.harness.records.timings import TimedMethod, TimedSteps, Timing
from cser_bench.report.frame import Frames, evidence_in, read_frames
from cser_bench.report.labels import with_short_labels
from cser_bench.report.statistics import against_baseline

ENOUGH = 10
"""Steps of each kind from which on a mean has a t interval; of fewer there are medians and their
range."""

CROWDED = 0.15
"""Share of the slowed passes beyond which a codec that hides behind them no longer fits, on the
host's cores."""

# Baselines of a larger ratio encode behind the backward pass; an fp16 hook's ratio is 2.
_ENCODES = 2.5

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
    "label",
    "baseline",
    "ratio",
    *_STEP,
    *_PARTS,
]
_SCORED = [
    "method",
    "label",
    "algorithm",
    "bits_per_second",
    *_STEP,
    "num_sessions",
    "codec_alone_seconds",
]

WIDE = [
    "method",
    "label",
    "latency_seconds",
    "jitter_seconds",
    "bits_per_second",
    *_STEP,
]
"""Columns of a table of wide-area links."""

_COLUMNS = [
    *_CELL,
    "algorithm",
    "latency_seconds",
    "jitter_seconds",
    "codec_alone_seconds",
]


def steps_frame(timings: Sequence[Timing]) -> pd.DataFrame:
    """Return one line a timing, method and rate of the links whose kinds of step were all timed.

    They are in the order of the records. `seconds` is the step over the method's period, from a
    cell of each kind of its steps, in the device's time. It has the codec in it where that was
    measured, and not where it was emulated. `low`, `high` and `interval` say how sure it is: "t" is
    95 % of the mean of ten steps or more of each kind; "range" is the lowest to the highest of
    fewer, whose `seconds` are medians. Parts of the step are medians, the codec's as on the clock.
    """
    lines = []
    for number, timing in enumerate(timings):
        for method in timing.methods:
            described = (
                {"timing": number} | _network(timing) | _description(timing, method)
            )
            for rate in _rates(timing):
                timed = _timed_at(timing, method, rate)
                # Each has the share of steps that are of its kind. Where one is missing, the mean
                # over the period is not known.
                share = sum(kind.share for kind in timed)
                if math.isclose(share, 1.0):
                    line = {"bits_per_second": rate}
                    lines.append(described | line | _step(timed))
    return pd.DataFrame(lines, columns=_COLUMNS)


def _rates(timing: Timing) -> list[float | None]:
    """Return the bits per second that were timed; None alone where no link was limited."""
    rates = {
        timed.bits_per_second for timed in timing.timed_steps if timed.bits_per_second
    }
    if not rates:
        return [None]
    return [*sorted(rates)]


def _timed_at(
    timing: Timing, method: TimedMethod, rate: float | None
) -> list[TimedSteps]:
    """Return what was timed of a method at a rate, once each kind of its steps."""
    found = []
    for timed in timing.timed_steps:
        if timed.method != method.name or not timed.seconds:
            continue
        # A step that sends nothing was timed once, without a rate.
        if timed.bits_per_second in (rate, None):
            found.append(timed)
    return found


def _network(timing: Timing) -> dict[str, Any]:
    """Return the columns of `steps_frame` on what was timed and on which links."""
    fabric = timing.fabric
    return {
        "workload": timing.workload.name,
        "basis": timing.basis,
        "machines": fabric.num_machines,
        "workers_per_machine": fabric.workers_per_machine,
        "latency_seconds": fabric.latency_seconds,
        "jitter_seconds": fabric.jitter_seconds,
        "dilation": fabric.dilation,
    }


def _description(timing: Timing, method: TimedMethod) -> dict[str, Any]:
    """Return the columns of `steps_frame` on a method; the ratio is that on the timed network."""
    return {
        "method": method.name,
        "label": method.label,
        "algorithm": method.algorithm,
        "baseline": method.baseline,
        "ratio": method.payload_reduction(timing.workload.num_parameters),
        "codec_alone_seconds": method.codec_alone_seconds,
    }


def _step(kinds: Sequence[TimedSteps]) -> dict[str, Any]:
    """Return a step over its method's period: mean or median, how sure that is, and its parts.

    Args:
        kinds: what was timed of each kind of step; their shares sum to 1.
    """

    def mixed(name: str, statistic: Callable[[Sequence[float]], float]) -> float:
        # A sum over kinds of share x statistic: local SGD's mean has 1 / H of a step that averages.
        return math.fsum(kind.share * statistic(getattr(kind, name)) for kind in kinds)

    # With two or three steps a t interval is many times as wide as their range.
    if min(len(kind.seconds) for kind in kinds) >= ENOUGH:
        interval = "t"
        seconds, low, high = mean_step(kinds)
    else:
        interval = "range"
        seconds = mixed("seconds", median)
        low = mixed("seconds", min)
        high = mixed("seconds", max)
    step: dict[str, Any] = {
        "seconds": seconds,
        "low": low,
        "high": high,
        "interval": interval,
        "num_steps": sum(len(kind.seconds) for kind in kinds),
    }
    for name in _PARTS:
        step[name] = mixed(name, median)
    return step


def timed_steps_frame(timings: Sequence[Timing]) -> pd.DataFrame:
    """Return lines of `steps_frame` with `communication_seconds` and `crowded`.

    `communication_seconds` is neither passes nor codec; `crowded`: the codec of a baseline that
    encodes behind its slowed passes did not fit there.
    """
    steps = steps_frame(timings)
    is_emulated = steps["basis"] == "emulated"
    passes = steps["compute_seconds"]
    codec = steps["codec_seconds"]
    # An emulated step has no codec in it.
    codec_in_step = codec.where(~is_emulated, 0.0)
    communication = steps["seconds"] - passes - codec_in_step
    hides = is_emulated & steps["baseline"] & (steps["ratio"] > _ENCODES)
    slowed_passes = CROWDED * steps["dilation"] * passes
    return steps[_CELL].assign(
        communication_seconds=communication, crowded=hides & (codec > slowed_passes)
    )


def conditions_frame(timings: Sequence[Timing]) -> pd.DataFrame:
    """Return lines of `steps_frame` by condition: a latency of the links, then who is slow.

    `passes_seconds` is a worker's own time of a step, the mean over workers.
    """
    ordered = sorted(timings, key=_order)
    steps = steps_frame(ordered).rename(columns={"compute_seconds": "passes_seconds"})
    steps["condition"] = [_condition(ordered[number]) for number in steps["timing"]]
    return steps[[*WIDE, "condition", "passes_seconds"]]


def _order(timing: Timing) -> tuple[float, ...]:
    """Return what conditions are sorted by: those without a straggler, then the others."""
    slow = timing.stragglers
    if slow is None:
        return 0, timing.fabric.latency_seconds, timing.fabric.jitter_seconds
    return 1, slow.who == "in turn", slow.factor


def _condition(timing: Timing) -> str:
    slow = timing.stragglers
    if slow is None:
        return timing.fabric.latency
    return f"{slow.who} {slow.factor:g}x"


def scored_steps_frame(sessions: Sequence[Timing]) -> pd.DataFrame:
    """Return one line a scored method and rate of the links.

    It is the emulated step, without encoding and update. `seconds` is the mean over sessions of
    each one's step over the method's period. For one session `low`, `high` and `interval` are as in
    `steps_frame`; for several they are the lowest and highest mean, and "sessions".
    """
    lines = []
    timed = steps_frame(sessions)
    # Each group has a line a session, in the order of the sessions.
    for _, steps in timed.groupby(["method", "bits_per_second"], sort=False):
        # What the first session left out, as the codec alone, is taken from the next that has it.
        line = steps.bfill().iloc[0].to_dict()
        num_sessions = len(steps)
        if num_sessions > 1:
            line["low"] = steps["seconds"].min()
            line["high"] = steps["seconds"].max()
            line["interval"] = "sessions"
        line["seconds"] = math.fsum(steps["seconds"]) / num_sessions
        line["num_steps"] = steps["num_steps"].sum()
        line["num_sessions"] = num_sessions
        lines.append(line)
    return pd.DataFrame(lines, columns=_SCORED)


def joined_frame(frames: Frames, sessions: Sequence[Timing]) -> pd.DataFrame:
    """Return one line a row of the experiment's own length and rate of the links.

    It has the difference of scores to the baseline, and the step. A row and a timed method are joined where algorithm,
    settings and momentum are equal, or where the row is SGD's and the method is DDP with rows of
    its own. `estimate` is the row's score minus the baseline's, a share, with its 95 % interval; a
    row that diverged has none. A row that was not timed has one line, without rate and seconds.
    `frontier`: no other line of the same rate is as fast or faster with no larger drop.
    """
    baseline = frames.experiment.baseline
    own_rows = _own_rows(frames)
    names = [row.row for row in own_rows]
    columns = ["row", "label", "algorithm", "ratio", "models_sent"]
    lines = frames.rows.loc[frames.rows["row"].isin(names), columns]
    lines = lines.assign(experiment=frames.experiment.name)
    lines = lines.merge(_losses(frames), how="left", on="row")
    lines = lines.merge(_methods_of(own_rows, sessions), how="left", on="row")
    lines = lines.merge(_scored_steps(sessions), how="left", on="method")
    # The baseline is called what was timed of it: DDP, where its row is SGD.
    timed_label = lines["timed_label"].where(lines["row"] == baseline)
    lines["label"] = timed_label.fillna(lines["label"])
    lines["frontier"] = _is_on_frontier(lines)
    return lines.drop(columns="timed_label")


def _own_rows(frames: Frames) -> list[Row]:
    """Return the rows of the experiment's length, with the rates that trials chose."""
    rows = []
    for row in frames.experiment.rows:
        if row.repeats is None and row.chosen_by == "held_out" and row.tunes is None:
            rows.append(row)
    return rows


def _losses(frames: Frames) -> pd.DataFrame:
    """Return the differences to the baseline, and its own, which is nothing."""
    losses = against_baseline(frames)[["row", "estimate", "low", "high"]]
    diverged = frames.runs.loc[frames.runs["status"] == "diverged", "row"]
    # The mean of the runs that went well would hide the one that did not.
    losses = losses[~losses["row"].isin(diverged)]
    nothing = pd.DataFrame(
        [(frames.experiment.baseline, 0.0, 0.0, 0.0)], columns=losses.columns
    )
    # An experiment that has just begun has none, in columns of objects.
    numbers = dict.fromkeys(("estimate", "low", "high"), float)
    return pd.concat([losses.astype(numbers), nothing])


def _methods_of(rows: Sequence[Row], sessions: Sequence[Timing]) -> pd.DataFrame:
    """Return which timed methods are which rows, by name, each pair once."""
    methods = [method for session in sessions for method in session.methods]
    pairs: dict[tuple[str, str], None] = {}
    for row in rows:
        for method in methods:
            if _is_of(method, row):
                pairs[row.row, method.name] = None
    return pd.DataFrame([*pairs], columns=["row", "method"])


def _is_of(method: TimedMethod, row: Row) -> bool:
    """Tell whether a timed method does what a row does."""
    # DDP sends what SGD's row computes: they are one method under two names.
    if method.algorithm == "ddp" and method.rows:
        return row.algorithm == "sgd" and row.local_step == method.local_step
    return method.key == (row.algorithm, row.settings, row.momentum, row.local_step)


def _scored_steps(sessions: Sequence[Timing]) -> pd.DataFrame:
    """Return `scored_steps_frame` under names that the columns of an experiment leave free."""
    steps = scored_steps_frame(sessions)
    steps = steps.drop(columns=["algorithm", "codec_alone_seconds"])
    names = {"label": "timed_label", "low": "seconds_low", "high": "seconds_high"}
    return steps.rename(columns=names)


def _is_on_frontier(lines: pd.DataFrame) -> pd.Series:
    """Return a boolean a line: no line of its rate is as fast and scores as well."""
    both = lines.dropna(subset=["seconds", "estimate"])
    # The best of equally fast lines comes first, so that the others stay off the frontier.
    ordered = both.sort_values(["seconds", "estimate"], ascending=[True, False])
    # By line: the best score among it and those that are as fast or faster.
    best = ordered.groupby("bits_per_second")["estimate"].cummax()
    # The best among those that are faster.
    before = best.groupby(ordered["bits_per_second"]).shift(fill_value=-math.inf)
    on_frontier = ordered.index[ordered["estimate"] > before]
    return pd.Series(lines.index.isin(on_frontier), lines.index)


def baselines_frame(sessions: Sequence[Timing]) -> pd.DataFrame:
    """Return steps of the sessions' baselines with the columns of `joined_frame`, scored or not.

    The ratio is that on the timed network.
    """
    ratios = {}
    for session in sessions:
        for method in session.methods:
            if method.baseline:
                ratios[method.name] = method.payload_reduction(
                    session.workload.num_parameters
                )
    steps = scored_steps_frame(sessions)
    steps = steps.rename(columns={"low": "seconds_low", "high": "seconds_high"})
    steps = steps[steps["method"].isin(ratios.keys())]
    return steps.assign(
        row=steps["method"], ratio=steps["method"].map(ratios), estimate=math.nan
    )


def experiments_beside(folder: Path, sessions: Sequence[Timing]) -> list[Frames]:
    """Return the experiments whose losses are shown with the step times of a study's folder.

    They are the one that answers quote and those whose rows the sessions name. For a study that
    ships, only experiments that ship are taken; otherwise the user's own, if they are done.

    Raises:
        RecordError: a record is damaged or of another version; the message names the file.
    """
    results = None
    if not ships(folder):
        results = folder.parent
    folders = take(results).folders
    names: dict[str, None] = {}
    for name, about in evidence_in(folders).items():
        # First, as the page shows the losses of the first experiment alone.
        if "reference" in about.roles:
            names[name] = None
    for session in sessions:
        for method in session.methods:
            for row in method.rows:
                experiment, _, _ = row.partition("/")
                names[experiment] = None
    # From the end, so that of two experiments of one name the first stays.
    by_name = {path.name: path for path in reversed(folders)}
    return [
        with_short_labels(read_frames(by_name[name]))
        for name in names
        if name in by_name
    ]


def mean_step(
    kinds: Sequence[TimedSteps], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return mean seconds of a method's step on one link, and a confidence interval of that mean.

    The kinds' means are mixed by their exact shares, and so are the variances of these means;
    Student's t has the degrees of freedom of Satterthwaite. Steps count as independent, so the
    interval is of this session alone. The kinds are of one method and link, with those that send
    nothing; at least two steps each.
    """
    # It takes most of a second to import, and most readers of records ask for no interval.
    from scipy import stats

    share = sum(kind.share for kind in kinds)
    assert math.isclose(share, 1.0), "shares of a method's kinds on one link sum to 1"
    # mean = sum p m, variance v = sum p^2 s^2 / n, degrees = v^2 / sum ((p^2 s^2 / n)^2 / (n - 1)),
    # over kinds of share p, with n steps of mean m and deviation s each.
    mean = 0.0
    variance = 0.0
    spread = 0.0
    for kind in kinds:
        error = float(stats.sem(kind.seconds))
        part = kind.share**2 * error**2
        mean += kind.share * math.fsum(kind.seconds) / len(kind.seconds)
        variance += part
        spread += part**2 / (len(kind.seconds) - 1)
    # Steps that all took the same time leave Satterthwaite's degrees at 0 / 0.
    if not variance:
        return mean, mean, mean
    degrees = variance**2 / spread
    quantile = float(stats.t.ppf((1 + confidence) / 2, degrees))
    half = quantile * math.sqrt(variance)
    return mean, mean - half, mean + half
