"""The tables of the report of speed: plain data with few words, from the clock and from the model."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import pandas as pd

from cser_bench.harness.records.timings import Sweep
from cser_bench.report.speed.comparisons import AT, DDP, PROPOSED, RIVALS
from cser_bench.report.wording import factor, gap, gap_cell, milliseconds, rate

LARGE_RATIO = 64
"""From which on methods are asked whether they differ among themselves at all."""

SCORED_LABEL = "M-CSER top-k"
"""The proposed method as it is scored, by label: as the paper has it."""

NOT_TIMED = "not timed"
CROWDED = "crowded"
NO_SCORE = "no score"
"""What stands in a cell without a number; captions say what is crowded."""

HEADER_BYTES = 66
"""Bytes of headers of a frame on the link: Ethernet 14, IP 20, TCP 32."""

# Share of the passes: below it, communication is a small difference whose relative error says nothing.
_LARGE_SHARE = 0.1


def layout_of(frame: pd.DataFrame) -> pd.Series:
    """Return machines and workers of each, as text."""
    return (
        frame["machines"].astype(str) + " x " + frame["workers_per_machine"].astype(str)
    )


def shown_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Return steps with `layout` and `network` as texts, those of one timing a workload and network.

    If a network was timed at two latencies, the timing with more methods is taken.
    """
    layout = layout_of(steps)
    steps = steps.assign(
        layout=layout, network=layout + ", " + steps["bits_per_second"].map(rate)
    )
    # A stable sort, so that of timings with as many methods the first on record counts.
    # By line of `steps`, three times: a timing's number of methods, that order, and the number of
    # the timing that its workload and network take. The comparison below joins by index.
    num_methods = steps.groupby("timing")["method"].transform("size")
    order = num_methods.sort_values(ascending=False, kind="stable").index
    ordered = steps.loc[order]
    largest = ordered.groupby(["workload", "network"])["timing"].transform("first")
    return steps[steps["timing"] == largest]


def steps_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Return a line a method, a column a network: milliseconds, in brackets the gain over DDP.

    A cell whose step was crowded has a word instead.
    """
    # Index: network.
    ddp_seconds = steps[steps["method"] == DDP].set_index("network")["seconds"]
    gains = steps["network"].map(ddp_seconds) / steps["seconds"]
    texts = steps["seconds"].map(milliseconds) + " (" + gains.map(factor) + ")"
    texts = texts.where(~steps["crowded"], CROWDED)
    table = steps.assign(text=texts).pivot(
        index="method", columns="network", values="text"
    )
    # A pivot sorts its columns as texts, by which 10 Gb/s would come before 2.5 Gb/s.
    ordered = steps.sort_values(["workers_per_machine", "bits_per_second"])
    networks = list(ordered["network"].unique())
    methods = steps.drop_duplicates("method").set_index("method")
    return methods[["label", "ratio"]].join(table[networks])


def _with_interval(seconds: pd.Series, low: pd.Series, high: pd.Series) -> pd.Series:
    """Return milliseconds with the ends of their interval: "35.8 (35.2 to 36.3)"."""
    ends = low.map(milliseconds) + " to " + high.map(milliseconds)
    return seconds.map(milliseconds) + " (" + ends + ")"


def conditions_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Return a line a method, a column a condition: milliseconds of a step with their interval.

    Methods and conditions are in the order in which they first come.
    """
    texts = _with_interval(steps["seconds"], steps["low"], steps["high"])
    table = steps.assign(text=texts).pivot(
        index="label", columns="condition", values="text"
    )
    table = table.fillna(NOT_TIMED)
    labels = steps["label"].unique()
    conditions = steps["condition"].unique()
    return table.loc[labels, conditions].reset_index()


def networks_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Return a line a workload and network on which DDP and the proposed method were timed.

    Columns: workload, layout, bits_per_second, basis; ddp (its step in seconds); proposed and best
    (gains over DDP, of the proposed method and of the method `label`, which gains most); of the
    methods of a large ratio num_large (how many), least and most (gains), apart (most over least).
    """
    lines = []
    for _, group in steps.groupby(["workload", "layout", "bits_per_second"]):
        methods = set(group["method"])
        if DDP in methods and PROPOSED in methods:
            lines.append(_network_line(group))
    return pd.DataFrame(lines)


def _network_line(group: pd.DataFrame) -> dict[str, Any]:
    """Return the line of one workload and network, from those of its methods."""
    methods: Any = group.set_index("method")
    first = methods.iloc[0]
    ddp_seconds = methods.loc[DDP, "seconds"]
    # Index: method, of these and of all below.
    gains = ddp_seconds / methods["seconds"]
    best = gains[~methods["baseline"]].idxmax()
    large = gains[methods["ratio"] >= LARGE_RATIO]
    return {
        "workload": first["workload"],
        "layout": first["layout"],
        "bits_per_second": first["bits_per_second"],
        "basis": first["basis"],
        "ddp": ddp_seconds,
        "proposed": gains[PROPOSED],
        "best": gains[best],
        "label": methods.loc[best, "label"],
        "num_large": len(large),
        "apart": large.max() / large.min(),
        "least": large.min(),
        "most": large.max(),
    }


def head_table(
    scored: pd.DataFrame,
    baselines: pd.DataFrame,
    modelled: pd.Series | None,
    ratio: float,
) -> pd.DataFrame:
    """Return the proposed method's step at `AT` over DDP's and the best baseline's, a line a way to know it.

    First as it was scored, then the fastest method whose drop is no larger, then what is modelled.

    Args:
        scored: as `joined_frame` has it, of the rows that were timed; empty where none was.
        baselines: as `baselines_frame` has it.
        modelled: the proposed method's line of `speedups_frame` at `AT`.
        ratio: the proposed method's, as modelled.
    """
    lines = []
    for step in _as_scored(scored, baselines):
        lines.append(
            {
                "method": step["label"],
                "ratio": step["ratio"],
                "basis": "emulated, without encoding",
                "over_ddp": step["over_ddp"],
                "over_best": step["over_best"],
                "best": step["best"],
                "drop": _drop(step),
            }
        )
    if modelled is not None:
        lines.append(
            {
                "method": "M-CSER blocks",
                "ratio": ratio,
                "basis": "modelled, with encoding",
                "over_ddp": modelled["over_ddp"],
                "over_best": modelled["over_best"],
                "best": modelled["best_label"],
                "drop": "not scored",
            }
        )
    return pd.DataFrame(lines)


def _as_scored(scored: pd.DataFrame, baselines: pd.DataFrame) -> list[dict[Any, Any]]:
    """Return the steps at `AT` of the proposed method, and of the fastest whose drop is no larger."""
    steps = scored[scored["bits_per_second"] == AT].dropna(subset=["estimate"])
    rivals: Any = baselines[baselines["bits_per_second"] == AT].set_index("method")
    is_proposed = steps["label"] == SCORED_LABEL
    proposed = steps[is_proposed]
    if DDP not in rivals.index or proposed.empty:
        return []
    # An estimate is a score minus the baseline's: as large a one is no larger drop.
    is_as_accurate = steps["estimate"] >= proposed["estimate"].iloc[0]
    others = steps[is_as_accurate & ~is_proposed].sort_values("seconds")
    shown = pd.concat([proposed.head(1), others.head(1)])
    best = rivals.loc[rivals["seconds"].idxmin()]
    shown = shown.assign(
        over_ddp=rivals.loc[DDP, "seconds"] / shown["seconds"],
        over_best=best["seconds"] / shown["seconds"],
        best=best["label"],
    )
    records: list[dict[Any, Any]] = shown.to_dict("records")
    return records


def _drop(line: Mapping[Any, Any]) -> str:
    """Write an accuracy drop in points with its interval; the baseline's own, which is zero, has none."""
    if math.isnan(line["estimate"]):
        return NO_SCORE
    if line["low"] == line["high"]:
        return gap(line["estimate"], "points")
    return gap_cell(line["estimate"], line["low"], line["high"], "points")


def headlines_table(headlines: pd.DataFrame) -> pd.DataFrame:
    """Return a line a headline and published compute time, a column a rival.

    A cell is the proposed method's factor at `AT`, and in brackets up to which rate it holds.
    """
    texts = []
    for gain, bits in zip(headlines["factor"], headlines["holds_up_to"], strict=True):
        reach = "never"
        if not math.isnan(bits):
            reach = rate(bits)
        texts.append(f"{factor(gain)} ({reach})")
    table = headlines.assign(text=texts).pivot(
        index=["headline", "compute_seconds", "source"], columns="rival", values="text"
    )
    # A pivot sorts its columns by name, and has none for a rival that was not modelled.
    return table.reindex(columns=list(RIVALS)).reset_index()


def joined_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Return a line a row of an experiment that was timed, a column a rate.

    The most accurate is first.
    """
    texts = _with_interval(
        lines["seconds"], lines["seconds_low"], lines["seconds_high"]
    )
    # All that a row has at every rate, as what is no index or column a pivot drops.
    table = lines.assign(text=texts).pivot(
        index=["row", "label", "ratio", "estimate", "low", "high"],
        columns="bits_per_second",
        values="text",
    )
    table = table.reset_index()
    table = table.sort_values("estimate", ascending=False, ignore_index=True)
    return table.assign(loss=[_drop(line) for line in table.to_dict("records")])


def agreement_frame(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the model's absolute relative error: mean, median and 90th percentile.

    By layout and of all. `what` is "step", or "communication" of those steps in which it takes over
    a tenth of the compute.
    """
    is_large = steps["communication_seconds"] > _LARGE_SHARE * steps["compute_seconds"]
    errors_of = {
        "step": steps["error"],
        "communication": steps["communication_error"][is_large],
    }
    lines = []
    for what, signed in errors_of.items():
        # Without steps on networks whose like was not swept, which have no prediction.
        errors = signed.dropna().abs()
        groups = [("all", errors), *errors.groupby(layout_of(steps))]
        for layout, group in groups:
            lines.append(
                {
                    "what": what,
                    "layout": layout,
                    "num_cells": len(group),
                    "mean": group.mean(),
                    "median": group.median(),
                    "p90": group.quantile(0.9),
                }
            )
    return pd.DataFrame(lines)


def sweeps_frame(sweeps: Sequence[Sweep]) -> pd.DataFrame:
    """Return a line for each swept collective and size.

    Columns are the median seconds, the bytes counted on a link, the formula's bytes, and
    `beyond_formula`: what the link carried beyond these and the headers, as a share of the formula's.
    """
    lines = []
    for sweep in sweeps:
        fabric = sweep.fabric
        place = {
            "num_machines": fabric.num_machines,
            "workers_per_machine": fabric.workers_per_machine,
            "bits_per_second": fabric.bits_per_second,
            "dilation": fabric.dilation,
        }
        for point in sweep.points:
            numbers = {
                "median_seconds": median(point.seconds),
                "repetitions": len(point.seconds),
            }
            lines.append(place | point.model_dump(exclude={"seconds"}) | numbers)
    frame = pd.DataFrame(lines)
    if len(frame):
        # As floats: where no link was counted the columns hold None.
        headers = HEADER_BYTES * frame["wire_frames"].astype(float)
        carried = frame["wire_bytes"].astype(float) - headers
        frame["beyond_formula"] = carried / frame["formula_bytes"] - 1
    return frame
