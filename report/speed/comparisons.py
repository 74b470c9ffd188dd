"""Methods beside one another by the model: speed-ups, the rates at which they hold, the headlines,
layouts and cost."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from cser_bench.harness.measures.hardware import hardware
from cser_bench.harness.records.timings import Message
from cser_bench.report.speed.cost_model import Algorithm, Compute, Network, step_seconds
from cser_bench.report.speed.workload_model import SpeedStudy, WorkloadModel, seconds_at

LOWEST, HIGHEST = 1e6, 400e9
"""Bits per second: the range over which everything is modelled."""
CLEARLY, NEGLIGIBLE = 1.05, 1.1
"""A method beats a baseline where it is more than so many times as fast; communication is
negligible where a step takes no longer than so many times its compute."""

DDP, PROPOSED = "ddp", "mcser"
"""By name the baseline that all are compared with, overlapped in fp32, and the method of which
single sentences are."""
RIVALS = (DDP, "ddp_fp16", "powersgd_2")
"""Overlapped baselines, by name, of the thresholds."""
PROPOSED_AT_RATIOS = ("mcser_32", PROPOSED, "mcser_1024")


class Headline(NamedTuple):
    """A speed-up that was published for training one network on one task; `precision` as in the
    table of devices."""

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
    """Twenty points a decade evenly spaced on a logarithmic axis, both ends among them."""
    count = max(2, math.ceil(20 * math.log10(high / low)))
    return [float(x) for x in np.geomspace(low, high, count + 1)]


RATES = log_grid(LOWEST, HIGHEST)
"""Bits per second, of tables over all rates."""


def spans_above(
    margin: Callable[[float], float], low: float, high: float
) -> list[tuple[float, float]]:
    """Where a continuous function is positive between two positive ends, as (from, to)."""
    grid = log_grid(low, high)
    values = [margin(x) for x in grid]
    edges = [low] if values[0] > 0 else []
    for before, after, was, now in zip(grid, grid[1:], values, values[1:], strict=False):
        if (was > 0) != (now > 0):
            edges.append(float(brentq(margin, before, after, xtol=1e-9 * before, rtol=1e-12)))
    edges += [high] if values[-1] > 0 else []
    return list(zip(edges[::2], edges[1::2], strict=True))


def speedup(
    model: WorkloadModel, method: str, baseline: str, bits_per_second: float, slower: float = 1.0
) -> float:
    """Modelled seconds of the baseline over those of the method, both by name, on a device so many
    times slower."""
    return seconds_at(model, baseline, bits_per_second, slower) / seconds_at(
        model, method, bits_per_second, slower
    )


def speedups_frame(model: WorkloadModel, rates: Sequence[float]) -> pd.DataFrame:
    """One line a method and rate: modelled seconds, the speed-up over DDP, and over the baseline
    that is best there."""
    lines = []
    for bits in rates:
        seconds = {name: seconds_at(model, name, bits) for name in model.methods}
        best = min(
            (name for name in seconds if model.methods[name].baseline),
            key=lambda name: seconds[name],
        )
        for name, method in model.methods.items():
            over = {
                "over_ddp": seconds[DDP] / seconds[name],
                "over_best": seconds[best] / seconds[name],
            }
            line = {
                "workload": model.workload.name,
                "bits_per_second": bits,
                "method": name,
                "label": method.label,
            }
            lines.append(
                line
                | {"baseline": method.baseline, "seconds": seconds[name], "best_baseline": best}
                | over
            )
    return pd.DataFrame(lines)


def headline_marks(headline: Headline, model: WorkloadModel) -> dict[float, str]:
    """Compute seconds of a step as published rates of the device give them, shortest first, with
    each one's source.

    A rate is scaled to the workload's batch; for another network than ResNet-50 by arithmetic, as
    its workload was.
    """
    rates = [rate for rate in hardware().training if rate.precision == headline.precision]
    images = model.workload.compute_seconds * next(
        rate.images_per_second for rate in rates if rate.gpus == 1
    )
    return dict(
        sorted((images / (rate.images_per_second / rate.gpus), rate.source) for rate in rates)
    )


def headlines_frame(study: SpeedStudy) -> pd.DataFrame:
    """The factor over each rival as a function of compute time and rate, with the highest rate at
    which it holds.

    One line a headline, method, rival, compute time (a grid, and every published one, whose
    `source` is named) and rate of `HEADLINE_RATES`. `holds_up_to` is nan where the published factor
    is reached at no rate.
    """
    lines = []
    for headline in HEADLINES:
        model = study.models.get(headline.workload)
        if model is None or not model.is_modelled:
            continue
        marks = headline_marks(headline, model)
        pairs = [
            (m, r) for m in PROPOSED_AT_RATIOS for r in RIVALS if {m, r} <= model.methods.keys()
        ]
        for compute, (method, rival) in product(sorted({*COMPUTE_SECONDS, *marks}), pairs):
            factor = partial(
                speedup, model, method, rival, slower=compute / model.workload.compute_seconds
            )
            common = {
                "headline": headline.words,
                "target": headline.target,
                "workload": headline.workload,
                "method": method,
                "ratio": model.methods[method].ratio(model.workload.num_parameters),
                "rival": rival,
                "compute_seconds": compute,
                "source": marks.get(compute),
                "holds_up_to": highest_rate(factor, headline.target),
            }
            lines += [
                common | {"bits_per_second": bits, "factor": factor(bits)}
                for bits in HEADLINE_RATES
            ]
    return pd.DataFrame(lines)


def highest_rate(factor: Callable[[float], float], target: float) -> float:
    """Bits per second up to which a speed-up, a function of them, is above a target; nan where it
    never is."""
    return max(
        (high for _, high in spans_above(lambda bits: factor(bits) - target, LOWEST, HIGHEST)),
        default=math.nan,
    )


def needed_ratio(compute: Compute, messages: Sequence[Message], network: Network) -> float:
    """The least ratio, at least 1, at which messages are so short that communication is negligible;
    nan: none is."""
    allowed = NEGLIGIBLE * (compute.forward + compute.backward)

    def spare(ratio: float) -> float:
        shrunk = [m.model_copy(update={"payload_bytes": m.payload_bytes / ratio}) for m in messages]
        return allowed - step_seconds(compute, shrunk, network)

    return next((first for first, _ in spans_above(spare, 1.0, 1e6)), math.nan)


def needed_ratios_frame(model: WorkloadModel, rates: Sequence[float]) -> pd.DataFrame:
    """At each rate the least ratio at which DDP's buckets, so compressed, are negligible; nan where
    none suffices."""
    compute = Compute(model.workload.forward_seconds, model.workload.backward_seconds)
    ratios = [
        needed_ratio(compute, model.methods[DDP].messages, model.network(bits)) for bits in rates
    ]
    return pd.DataFrame(
        {"workload": model.workload.name, "bits_per_second": rates, "ratio": ratios}
    )


def _on(
    model: WorkloadModel,
    bits_per_second: float,
    layout: tuple[int, int],
    inside: float,
    *ways: Algorithm,
) -> list[dict[str, Any]]:
    """A line a method: modelled seconds of a step by the fastest of the ways; `inside` of 0 is no
    limit."""
    networks = [model.network(bits_per_second, layout, inside or None, way) for way in ways]
    place = {
        "workload": model.workload.name,
        "machines": layout[0],
        "workers_per_machine": layout[1],
    }
    place |= {"bits_per_second": bits_per_second}
    lines = []
    for name, method in model.methods.items():
        told = {"method": name, "label": method.label, "baseline": method.baseline}
        told |= {"ratio": method.ratio(model.workload.num_parameters)}
        lines.append(
            place | told | {"seconds": min(model.seconds(method, network) for network in networks)}
        )
    return lines


def layouts_frame(model: WorkloadModel, bits_per_second: float) -> pd.DataFrame:
    """Modelled steps on machines of one worker, on two machines and on one, each by the fastest
    algorithm of it.

    Inside a machine the link is the fastest of the price table for the device, else unlimited.
    """
    num_workers, device = model.main.fabric.num_workers, model.workload.device
    inside = max(
        (m.inside_bits_per_second for m in hardware().machines if m.device in device), default=0.0
    )
    found = []
    for count in dict.fromkeys(count for count in (num_workers, 2, 1) if num_workers % count == 0):
        layout = (count, num_workers // count)
        lines = _on(
            model,
            bits_per_second,
            layout,
            inside,
            "ring",
            "tree" if 1 in layout else "hierarchical",
        )
        base = next(line["seconds"] for line in lines if line["method"] == DDP)
        found += [line | {"over_ddp": base / line["seconds"]} for line in lines]
    return pd.DataFrame(found)


def costs_frame(model: WorkloadModel) -> pd.DataFrame:
    """Dollars per thousand modelled steps on machines of the price table that hold all workers, if
    it has any."""
    lines, workers = [], model.main.fabric.num_workers
    for machine in hardware().machines:
        if machine.device in model.workload.device and workers % machine.gpus == 0:
            layout = (workers // machine.gpus, machine.gpus)
            way: Algorithm = "hierarchical" if min(layout) > 1 else "ring"
            hourly = layout[0] * machine.dollars_per_hour
            for line in _on(
                model, machine.bits_per_second, layout, machine.inside_bits_per_second, way
            ):
                paid = {
                    "dollars_per_hour": hourly,
                    "dollars_per_1000_steps": line["seconds"] / 3.6 * hourly,
                }
                lines.append(line | paid | {"machine": machine.name, "source": machine.source})
    columns = [
        "workload",
        "machines",
        "machine",
        "bits_per_second",
        "dollars_per_hour",
        "method",
        "label",
    ]
    return pd.DataFrame(lines, columns=[*columns, "seconds", "dollars_per_1000_steps", "source"])
