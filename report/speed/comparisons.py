"""Methods compared by the cost model: speed-ups, where they hold, published factors, layouts, cost."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from cser_bench.harness.measures.hardware import hardware
from cser_bench.report.speed.workload_model import SpeedStudy, WorkloadModel, seconds_at

LOWEST = 1e6
HIGHEST = 400e9
"""Bits per second: the range over which everything is modelled."""


DDP = "ddp"
"""The baseline that all are compared with, by name: overlapped, in fp32."""

PROPOSED = "mcser"
"""The method of which single sentences are, by name."""

RIVALS = (DDP, "ddp_fp16", "powersgd_2")
"""Overlapped baselines, by name, of the thresholds."""


class Headline(NamedTuple):
    """A speed-up that was published for training one network on one task.

    `precision` is as in the table of devices.
    """

    words: str
    target: float
    workload: str
    precision: str


HEADLINES = (
    Headline("4.5x on ImageNet", 4.5, "resnet50_v100", "mixed"),
    Headline("nearly 10x on CIFAR-100", 10.0, "wide_resnet_40_8_v100", "fp32"),
)

AT = 10e9
"""Bits per second at which single numbers are given."""


def log_grid(low: float, high: float) -> list[float]:
    """Return points evenly spaced on a logarithmic axis, both ends among them.

    Twenty a decade.
    """
    count = max(2, math.ceil(20 * math.log10(high / low)))
    return [float(x) for x in np.geomspace(low, high, count + 1)]


RATES = log_grid(LOWEST, HIGHEST)
"""Bits per second, of tables over all rates."""


def spans_above(
    margin: Callable[[float], float], low: float, high: float
) -> list[tuple[float, float]]:
    """Return where a continuous function is positive between two positive ends, as (from, to).

    A span that lies between two points of `log_grid` is not seen.
    """
    grid = log_grid(low, high)
    values = [margin(x) for x in grid]
    # Where the function changes its sign, and the ends of the range where it is positive there.
    edges = []
    if values[0] > 0:
        edges.append(low)
    for (before, value_before), (after, value_after) in pairwise(
        zip(grid, values, strict=True)
    ):
        if (value_before > 0) != (value_after > 0):
            edge = brentq(margin, before, after, xtol=1e-9 * before, rtol=1e-12)
            edges.append(float(edge))
    if values[-1] > 0:
        edges.append(high)
    # Edges alternate: where a span begins, where it ends.
    return list(zip(edges[::2], edges[1::2], strict=True))


def speedup(
    model: WorkloadModel,
    method: str,
    baseline: str,
    bits_per_second: float,
    slower: float = 1.0,
) -> float:
    """Return modelled seconds of the baseline over those of the method, both by name.

    On a device so many times slower.
    """
    baseline_seconds = seconds_at(model, baseline, bits_per_second, slower)
    return baseline_seconds / seconds_at(model, method, bits_per_second, slower)


def speedups_frame(model: WorkloadModel, rates: Sequence[float]) -> pd.DataFrame:
    """Return one line a method and rate.

    Modelled seconds, the speed-up over DDP, and over the baseline that is best there.
    """
    baselines = [name for name, method in model.methods.items() if method.baseline]
    lines = []
    # Which baseline is best depends on the rate, so `over_best` compares with several.
    for rate in rates:
        seconds = {name: seconds_at(model, name, rate) for name in model.methods}
        best = min(baselines, key=seconds.__getitem__)
        for name, method in model.methods.items():
            lines.append(
                {
                    "workload": model.workload.name,
                    "bits_per_second": rate,
                    "method": name,
                    "label": method.label,
                    "baseline": method.baseline,
                    "seconds": seconds[name],
                    "best_baseline": best,
                    "over_ddp": seconds[DDP] / seconds[name],
                    "over_best": seconds[best] / seconds[name],
                }
            )
    return pd.DataFrame(lines)


def headline_marks(headline: Headline, model: WorkloadModel) -> dict[float, str]:
    """Return compute seconds of a step as published rates of the device give them, with sources.

    The shortest is first. A rate is scaled to the workload's batch; for another network than
    ResNet-50 by arithmetic, as its workload was.
    """
    published = [
        rate for rate in hardware().training if rate.precision == headline.precision
    ]
    # The workload's passes were taken from the rate of one GPU, so the two give its batch.
    own_rate = next(rate.images_per_second for rate in published if rate.gpus == 1)
    # Images of a batch: seconds of its passes x images a second.
    num_images = model.workload.compute_seconds * own_rate
    sources = {}
    for rate in published:
        seconds = num_images / (rate.images_per_second / rate.gpus)
        sources[seconds] = rate.source
    return dict(sorted(sources.items()))


def headlines_frame(study: SpeedStudy) -> pd.DataFrame:
    """Return the proposed method's factor at `AT` over each rival, at each published compute time.

    One line a headline, compute time and rival, the shortest compute time first. `holds_up_to` is
    the highest rate at which the published factor is reached, nan where it never is.
    """
    lines: list[dict[str, Any]] = []
    for headline in HEADLINES:
        model = study.models.get(headline.workload)
        if model is None or not model.is_modelled or PROPOSED not in model.methods:
            continue
        rivals = [name for name in RIVALS if name in model.methods]
        for compute_seconds, source in headline_marks(headline, model).items():
            for rival in rivals:
                # A slower device has more time in which to hide what it sends.
                slower = compute_seconds / model.workload.compute_seconds
                factor = partial(speedup, model, PROPOSED, rival, slower=slower)
                lines.append(
                    {
                        "headline": headline.words,
                        "target": headline.target,
                        "workload": headline.workload,
                        "rival": rival,
                        "compute_seconds": compute_seconds,
                        "source": source,
                        "factor": factor(AT),
                        "holds_up_to": highest_rate(factor, headline.target),
                    }
                )
    return pd.DataFrame(lines)


def highest_rate(factor: Callable[[float], float], target: float) -> float:
    """Return the bits per second up to which a speed-up, a function of them, is above a target.

    NaN where it never is.
    """
    # It need not fall all the way, so there may be several spans: the last one's end counts.
    spans = spans_above(lambda rate: factor(rate) - target, LOWEST, HIGHEST)
    return max((high for _, high in spans), default=math.nan)
