"""The efficiency that a method needs to tie with a rival, and what encoding takes of it.

A step that takes a third of the rival's has to be worth a third of the rival's. This takes step
times alone; docs/efficiency.md says what a step is worth, and docs/speedups.md has the formulas.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from cser_bench.harness.records.store import read_optional
from cser_bench.harness.records.timings import EncodingTimes, Timing
from cser_bench.report.speed.encoding import TIMES, Encoding, encoding_of
from cser_bench.report.speed.timed import scored_steps_frame, steps_frame
from cser_bench.report.statistics import COVERAGE

FP16 = "ddp_fp16"
FP32 = "ddp"
"""The algorithms of the rivals: DDP with its fp16 hook, and in fp32."""

COLUMNS = [
    "method",
    "label",
    "bits_per_second",
    "seconds",
    "needed_fp16",
    "needed_fp16_low",
    "needed_fp16_high",
    "needed_ddp",
    "encoding_seconds",
    "encoding_basis",
    "needed_fp16_encoded",
]


def needed_efficiency(
    seconds: float,
    rival_seconds: float,
    encoding: float = 0.0,
    rival_encoding: float = 0.0,
) -> float:
    """Return the efficiency at which a method's steps are worth the time that they take."""
    # n = (t + e) / (t' + e'): t a step without encoding, e what encoding adds, primes the rival's.
    return (seconds + encoding) / (rival_seconds + rival_encoding)


def net_speedup(efficiency: float, seconds: float, rival_seconds: float) -> float:
    """Return how many times sooner than a rival of efficiency 1 the method is at its score."""
    # w / n, with n = t / t' the efficiency that it needs.
    return efficiency * rival_seconds / seconds


def spread_between(groups: Sequence[Sequence[float]]) -> float:
    """Return the standard deviation of ln seconds between sessions, pooled over groups.

    A group is a method's steps on one link, a session each. NaN where no group has two.
    """
    # Of logarithms, since sessions differ by a factor: what slows a short step slows a long one.
    squares = 0.0
    degrees = 0
    for group in groups:
        logs = np.log(group)
        squares += float(((logs - logs.mean()) ** 2).sum())
        degrees += len(group) - 1
    if degrees == 0:
        return math.nan
    return math.sqrt(squares / degrees)


def spread_of_ratio(spread: float, num_sessions: int, rival_sessions: int) -> float:
    """Return the standard deviation of ln of the ratio of two mean step times."""
    # Var(ln a - ln b) = s^2 / m + s^2 / n of means of m and n sessions, taken to be independent.
    return spread * math.sqrt(1 / num_sessions + 1 / rival_sessions)


def ratio_interval(ratio: float, spread: float) -> tuple[float, float]:
    """Return the interval of 95 % of a log-normal ratio of step times."""
    # The normal quantile, not t's: the spread is pooled over all methods and links.
    half = NormalDist().inv_cdf((1 + COVERAGE) / 2) * spread
    return ratio * math.exp(-half), ratio * math.exp(half)


def session_spread(sessions: Sequence[Timing]) -> float:
    """Return `spread_between` sessions, pooled over all methods and rates."""
    steps = steps_frame(sessions)
    groups = steps.groupby(["method", "bits_per_second"])["seconds"]
    return spread_between([values.to_list() for _, values in groups])


def needed_frame(sessions: Sequence[Timing], times: Path = TIMES) -> pd.DataFrame:
    """Return one line a scored method and rate of the links, the rivals among them.

    Columns: `COLUMNS`. `seconds` is the emulated step of `scored_steps_frame`, without encoding.
    `needed_fp16` and `needed_ddp` are its share of the step of DDP with the fp16 hook and in fp32,
    with an interval of 95 % from the spread between sessions. `needed_fp16_encoded` has both
    methods' encoding in it. What is not known, as of a rival that was not timed, is NaN, and a
    basis None.

    Args:
        times: the record of encoding on a GPU, which may not be there.
    """
    steps = scored_steps_frame(sessions)
    encodings = _encodings(sessions, times)
    seconds = {name: encoding.seconds for name, encoding in encodings.items()}
    bases = {name: encoding.basis for name, encoding in encodings.items()}
    steps["encoding_seconds"] = [
        seconds.get(name, math.nan) for name in steps["method"]
    ]
    steps["encoding_basis"] = [bases.get(name) for name in steps["method"]]
    spread = session_spread(sessions)
    lines = []
    for rate, of_rate in steps.groupby("bits_per_second", sort=False):
        # A method is compared with rivals on its own link.
        fp16 = _rival(of_rate, FP16)
        fp32 = _rival(of_rate, FP32)
        for _, step in of_rate.iterrows():
            line = {"bits_per_second": rate} | _needs(step, fp16, fp32, spread)
            lines.append(step.to_dict() | line)
    return pd.DataFrame(lines, columns=COLUMNS)


def _needs(
    step: pd.Series, fp16: pd.Series, fp32: pd.Series, spread: float
) -> dict[str, float]:
    """Return what one step must be worth to tie with each rival's, with the interval of the first."""
    needed = needed_efficiency(step["seconds"], fp16["seconds"])
    low = needed
    high = needed
    # A rival ties with itself, whatever its step is.
    if step["method"] != fp16["method"]:
        num_sessions = (step["num_sessions"], fp16["num_sessions"])
        low, high = ratio_interval(needed, spread_of_ratio(spread, *num_sessions))
    return {
        "needed_fp16": needed,
        "needed_fp16_low": low,
        "needed_fp16_high": high,
        "needed_ddp": needed_efficiency(step["seconds"], fp32["seconds"]),
        "needed_fp16_encoded": needed_efficiency(
            step["seconds"],
            fp16["seconds"],
            step["encoding_seconds"],
            fp16["encoding_seconds"],
        ),
    }


def _encodings(sessions: Sequence[Timing], times: Path) -> dict[str, Encoding]:
    """Return the encoding of each method of which one is known, by its name."""
    measured = read_optional(times, EncodingTimes)
    encodings: dict[str, Encoding] = {}
    for session in sessions:
        workers = session.fabric.num_workers
        for method in session.methods:
            encoding = encoding_of(method, session.workload, workers, measured)
            if encoding is not None:
                encodings[method.name] = encoding
    return encodings


def _rival(steps: pd.DataFrame, algorithm: str) -> pd.Series:
    """Return the line of a rival at one rate; of NaN where it was not timed there."""
    lines = steps[steps["algorithm"] == algorithm]
    if lines.empty:
        return pd.Series(math.nan, index=steps.columns)
    return lines.iloc[0]
