"""Methods beside one another by the model: speed-ups, the rates at which they hold, the headlines, layouts and cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from harness.records.hardware import machines, training_rates
from harness.records.timings import Message
from report.speed.cost_model import Algorithm, Compute, Network, step_seconds
from report.speed.workload_model import SpeedStudy, WorkloadModel

LOWEST, HIGHEST = 1e6, 400e9
"""Bits per second: the range over which everything is modelled."""
CLEARLY = 1.05
"""A method is said to beat a baseline where it is more than so many times as fast."""
NEGLIGIBLE = 1.1
"""Communication is called negligible where a step takes no longer than this factor of its compute."""
_STEPS_PER_DECADE = 20

DDP = "ddp"
"""The baseline, by name, that all are compared with: overlapped buckets in fp32."""
RIVAL_WORDS = {DDP: "DDP", "ddp_fp16": "DDP with fp16", "powersgd_2": "DDP with PowerSGD of rank 2"}
RIVALS = tuple(RIVAL_WORDS)
"""Overlapped baselines, by name, of the thresholds, and how they are called."""
PROPOSED = "mcser"
"""The method, by name, of which single sentences are."""
PROPOSED_AT_RATIOS = ("mcser_32", PROPOSED, "mcser_1024")


@dataclass(frozen=True)
class Headline:
    """A speed-up that was published for training one network on one task; `precision` as in the table of devices."""

    words: str
    target: float
    workload: str
    precision: str


HEADLINES = (
    Headline("4.5x on ImageNet", 4.5, "resnet50_v100", "mixed"),
    Headline("nearly 10x on CIFAR-100", 10.0, "wide_resnet_40_8_v100", "fp32"),
)
COMPUTE_SECONDS = tuple(milliseconds / 1e3 for milliseconds in range(20, 61, 5))
"""Of a step's two passes, over which the headlines' factors are a function."""
HEADLINE_RATES = (1e9, 5e9, 10e9, 25e9)


def log_grid(low: float, high: float) -> list[float]:
    """Points evenly spaced on a logarithmic axis, both ends among them."""
    count = max(2, math.ceil(_STEPS_PER_DECADE * math.log10(high / low)))
    return [float(x) for x in np.geomspace(low, high, count + 1)]


def spans_above(margin: Callable[[float], float], low: float, high: float) -> list[tuple[float, float]]:
    """Where a continuous function is positive between two positive ends, as (from, to)."""
    grid = log_grid(low, high)
    values = [margin(x) for x in grid]
    edges = [low] if values[0] > 0 else []
    for before, after, was, now in zip(grid, grid[1:], values, values[1:], strict=False):
        if (was > 0) != (now > 0):
            edges.append(float(brentq(margin, before, after, xtol=1e-9 * before, rtol=1e-12)))
    if values[-1] > 0:
        edges.append(high)
    return list(zip(edges[::2], edges[1::2], strict=True))


def speedup(model: WorkloadModel, method: str, baseline: str, bits_per_second: float, slower: float = 1.0) -> float:
    """Modelled seconds of the baseline over those of the method, both by name, on a device so many times slower.

    Raises:
        ValueError: nothing was swept, so nothing can be modelled.
    """
    own, base = (model.seconds_at(model.methods[name], bits_per_second, slower) for name in (method, baseline))
    return base / own


def faster_spans(model: WorkloadModel, method: str, baseline: str, by: float = CLEARLY) -> list[tuple[float, float]]:
    """Bits per second, from and to, at which the method is more than `by` times as fast as the baseline."""
    return spans_above(lambda bits: speedup(model, method, baseline, bits) - by, LOWEST, HIGHEST)


def speedups_frame(model: WorkloadModel, rates: Sequence[float]) -> pd.DataFrame:
    """One line a method and rate: modelled seconds, the speed-up over DDP, and over the baseline that is best there."""
    lines = []
    for bits in rates:
        seconds = {name: model.seconds_at(method, bits) for name, method in model.methods.items()}
        best = min((name for name in seconds if model.methods[name].baseline), key=lambda name: seconds[name])
        for name, method in model.methods.items():
            over = {"over_ddp": seconds[DDP] / seconds[name], "over_best": seconds[best] / seconds[name]}
            line = {"workload": model.workload.name, "bits_per_second": bits, "method": name, "label": method.label}
            lines.append(line | {"baseline": method.baseline, "seconds": seconds[name], "best_baseline": best} | over)
    return pd.DataFrame(lines)


def spans_frame(model: WorkloadModel) -> pd.DataFrame:
    """One line a method, rival and span of rates at which the method is clearly faster."""
    lines = [
        (model.workload.name, name, method.label, rival, low, high)
        for name, method in model.methods.items()
        if not method.baseline
        for rival in RIVALS
        if rival in model.methods
        for low, high in faster_spans(model, name, rival)
    ]
    return pd.DataFrame(lines, columns=["workload", "method", "label", "baseline", "from", "to"])


def headline_marks(headline: Headline, model: WorkloadModel) -> pd.DataFrame:
    """Compute time of a step as published rates of the device give it, one line a rate: seconds, device, source.

    A rate is scaled to the workload's batch; for another network than ResNet-50 by arithmetic, as its workload was.
    """
    rates = [rate for rate in training_rates() if rate.precision == headline.precision]
    taken = next(rate for rate in rates if rate.gpus == 1)
    lines = [
        {
            "headline": headline.words,
            "compute_seconds": model.compute_seconds * taken.images_per_second / (rate.images_per_second / rate.gpus),
            "gpus": rate.gpus,
            "images_per_second": rate.images_per_second,
            "batch_size": model.workload.batch_size,
            "source": rate.source,
        }
        for rate in rates
    ]
    return pd.DataFrame(lines).sort_values("compute_seconds", ignore_index=True)


def headlines_frame(study: SpeedStudy) -> pd.DataFrame:
    """The factor over each rival as a function of compute time and rate, with the highest rate at which it holds.

    One line a headline, method, rival, compute time (a grid, and every published one) and rate of `HEADLINE_RATES`.
    `holds_up_to` is nan where the published factor is reached at no rate.
    """
    lines = []
    for headline in HEADLINES:
        model = study.models.get(headline.workload)
        if model is None or not model.is_modelled:
            continue
        marked = headline_marks(headline, model)["compute_seconds"].tolist()
        pairs = [(m, r) for m in PROPOSED_AT_RATIOS for r in RIVALS if m in model.methods and r in model.methods]
        for compute in sorted({*COMPUTE_SECONDS, *marked}):
            slower = compute / model.compute_seconds
            for method, rival in pairs:
                factor = partial(speedup, model, method, rival, slower=slower)
                common = {
                    "headline": headline.words,
                    "target": headline.target,
                    "workload": headline.workload,
                    "method": method,
                    "ratio": model.methods[method].ratio(model.workload.num_parameters),
                    "rival": rival,
                    "compute_seconds": compute,
                    "published": compute in marked,
                    "holds_up_to": _highest_rate(factor, headline.target),
                }
                lines += [common | {"bits_per_second": bits, "factor": factor(bits)} for bits in HEADLINE_RATES]
    return pd.DataFrame(lines)


def _highest_rate(factor: Callable[[float], float], target: float) -> float:
    """Bits per second up to which a factor is reached; nan where it never is."""
    return max((high for _, high in spans_above(lambda bits: factor(bits) - target, LOWEST, HIGHEST)), default=math.nan)


def needed_ratio(compute: Compute, messages: Sequence[Message], network: Network) -> float | None:
    """The least ratio, at least 1, by which every message must shrink for communication to be negligible.

    None where latency alone is too much.
    """
    allowed = NEGLIGIBLE * (compute.forward + compute.backward)

    def spare(ratio: float) -> float:
        shrunk = [m.model_copy(update={"payload_bytes": m.payload_bytes / ratio}) for m in messages]
        return allowed - step_seconds(compute, shrunk, network)

    spans = spans_above(spare, 1.0, 1e6)
    return spans[0][0] if spans else None


def needed_ratios_frame(model: WorkloadModel, rates: Sequence[float]) -> pd.DataFrame:
    """At each rate the least ratio at which DDP's buckets, so compressed, are negligible; nan where none suffices."""
    compute = Compute(model.workload.forward_seconds, model.workload.backward_seconds)
    lines = []
    for bits in rates:
        network = model.network(bits)
        ratio = needed_ratio(compute, model.methods[DDP].messages, network) if network else None
        lines.append((model.workload.name, bits, math.nan if ratio is None else ratio))
    return pd.DataFrame(lines, columns=["workload", "bits_per_second", "ratio"])


def layouts_frame(model: WorkloadModel, bits_per_second: float) -> pd.DataFrame:
    """Modelled steps on machines of one worker, on two machines and on one, each by the fastest algorithm of it.

    Inside a machine the link is the fastest of the price table for the device, else the records', else unlimited.
    """
    num_workers = model.main.fabric.num_workers
    shapes = dict.fromkeys((m, num_workers // m) for m in (num_workers, 2, 1) if num_workers % m == 0)
    inside = max((m.inside_bits_per_second for m in machines() if m.device in model.workload.device), default=0.0)
    inside = inside or max((t.fabric.inside_bits_per_second or 0.0) * t.fabric.dilation for t in model.timings)
    lines = []
    for shape in shapes:
        ways: list[Algorithm] = ["ring", "tree"] if 1 in shape else ["ring", "hierarchical"]
        networks = [network for way in ways if (network := model.network(bits_per_second, shape, inside or None, way))]
        if not networks:
            continue
        seconds = {n: min(model.seconds(m, network) for network in networks) for n, m in model.methods.items()}
        lines += [
            {
                "workload": model.workload.name,
                "machines": shape[0],
                "workers_per_machine": shape[1],
                "bits_per_second": bits_per_second,
                "method": name,
                "label": model.methods[name].label,
                "baseline": model.methods[name].baseline,
                "seconds": own,
                "over_ddp": seconds[DDP] / own,
            }
            for name, own in seconds.items()
        ]
    return pd.DataFrame(lines)


def costs_frame(model: WorkloadModel) -> pd.DataFrame:
    """Dollars per thousand modelled steps on machines of the price table that hold all workers, if it has any."""
    lines, workers = [], model.main.fabric.num_workers
    for machine in machines():
        if machine.device not in model.workload.device or workers % machine.gpus:
            continue
        count = workers // machine.gpus
        way: Algorithm = "hierarchical" if count > 1 and machine.gpus > 1 else "ring"
        inside = machine.inside_bits_per_second or None
        network = model.network(machine.bits_per_second, (count, machine.gpus), inside, way)
        for name, method in model.methods.items() if network else ():
            assert network
            seconds, hourly = model.seconds(method, network), count * machine.dollars_per_hour
            lines.append(
                {
                    "workload": model.workload.name,
                    "machines": count,
                    "machine": machine.name,
                    "bits_per_second": machine.bits_per_second,
                    "dollars_per_hour": hourly,
                    "method": name,
                    "label": method.label,
                    "seconds": seconds,
                    "dollars_per_1000_steps": 1000 * seconds / 3600 * hourly,
                    "source": machine.source,
                }
            )
    return pd.DataFrame(lines)


def agreement_frame(cells: pd.DataFrame) -> pd.DataFrame:
    """The model's absolute relative error: mean, median and 90th percentile, by layout and of all.

    `what` is "step", or "communication" of those steps in which it takes over a tenth of the compute.
    """
    layout = cells["machines"].astype(str) + " x " + cells["workers_per_machine"].astype(str)
    large = cells["communication_seconds"] > 0.1 * cells["compute_seconds"]
    lines = []
    for what, errors in (("step", cells["error"]), ("communication", cells["communication_error"][large])):
        errors = errors.dropna().abs()
        for name, group in [("all", errors), *errors.groupby(layout)]:
            numbers = {"mean": group.mean(), "median": group.median(), "p90": group.quantile(0.9)}
            lines.append({"what": what, "layout": name, "num_cells": len(group)} | numbers)
    return pd.DataFrame(lines)
