"""The tables of the report of speed, from the study's cells and the frames of the model: plain data, few words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.records.timings import Sweep
from report.speed.comparisons import DDP, PROPOSED, RIVALS
from report.wording import factor, milliseconds, rate

AT = 10e9
"""Bits per second at which single numbers are given."""
LARGE_RATIO = 64
"""From which on methods are asked whether they differ among themselves at all."""
HEADER_BYTES = 66
"""Of a frame on the link: Ethernet 14, IP 20, TCP 32."""


def clear_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells that were not crowded; of a network that was timed at two latencies, those with the most methods.

    With `layout` and `network` as texts.
    """
    layout = cells["machines"].astype(str) + " x " + cells["workers_per_machine"].astype(str)
    network = layout + ", " + cells["bits_per_second"].map(rate)
    cells = cells.assign(layout=layout, network=network, many=cells.groupby("timing")["method"].transform("size"))
    ordered = cells.sort_values("many", ascending=False, kind="stable")
    first = ordered.groupby(["workload", "network"])["timing"].transform("first")
    return cells[(cells["timing"] == first) & ~cells["crowded"]].drop(columns="many")


def steps_table(cells: pd.DataFrame) -> pd.DataFrame:
    """A line a method, a column a network: milliseconds, and in brackets the speed-up over DDP."""
    base = cells[cells["method"] == DDP].set_index("network")["seconds"]
    gains = cells["network"].map(base) / cells["seconds"]
    said = [f"{milliseconds(s)} ({factor(gain)})" for s, gain in zip(cells["seconds"], gains, strict=True)]
    order = cells.sort_values(["workers_per_machine", "bits_per_second"])["network"].unique()
    table = cells.assign(said=said).pivot(index="method", columns="network", values="said")[list(order)]
    return cells.drop_duplicates("method").set_index("method")[["label", "ratio"]].join(table)


def wide_table(steps: pd.DataFrame) -> pd.DataFrame:
    """A line a method, the fastest at the highest latency first, a column a latency: milliseconds of a step."""
    heads = {each: f"{1e3 * each:g} ms" for each in steps["latency_seconds"].unique()}
    table = steps.pivot(index="label", columns="latency_seconds", values="seconds").sort_values(max(heads))
    return table.rename(columns=heads).reset_index()


def consecutive_table(steps: pd.DataFrame) -> pd.DataFrame:
    """A line a method, in the order of the records, a column a condition: milliseconds of a step."""
    table = steps.pivot(index="label", columns="condition", values="seconds")
    return table.loc[steps["label"].unique(), steps["condition"].unique()].reset_index()


def networks_table(cells: pd.DataFrame, layouts: pd.DataFrame) -> pd.DataFrame:
    """A line a workload and network, timed ones first: DDP's step, M-CSER's gain over it, and the most gained.

    And of the methods of a large ratio how many there are, the least and the most over DDP, and most over least.
    """
    layout = layouts["machines"].astype(str) + " x " + layouts["workers_per_machine"].astype(str)
    lines = []
    for frame in (cells, layouts.assign(basis="modelled", layout=layout)):
        for (work, place, bits), group in frame.groupby(["workload", "layout", "bits_per_second"]):
            own: Any = group.set_index("method")
            if not {DDP, PROPOSED} <= set(own.index):
                continue
            gains = own.loc[DDP, "seconds"] / own["seconds"]
            best, large = gains[~own["baseline"]].idxmax(), gains[own["ratio"] >= LARGE_RATIO]
            line = {"workload": work, "layout": place, "bits_per_second": bits, "basis": own["basis"].iloc[0]}
            line |= {"ddp": own.loc[DDP, "seconds"], "proposed": gains[PROPOSED], "best": gains[best]}
            line |= {"label": own.loc[best, "label"], "num_large": len(large), "apart": large.max() / large.min()}
            lines.append(line | {"least": large.min(), "most": large.max()})
    return pd.DataFrame(lines)


def headlines_table(headlines: pd.DataFrame) -> pd.DataFrame:
    """A line a headline and published compute time: by rival the proposed method's factor at `AT`, and its reach."""
    kept = headlines[headlines["source"].notna() & (headlines["method"] == PROPOSED)]
    kept = kept[kept["bits_per_second"] == AT]
    reach = ["never" if math.isnan(bits) else rate(bits) for bits in kept["holds_up_to"]]
    said = [f"{factor(gain)} ({each})" for gain, each in zip(kept["factor"], reach, strict=True)]
    wide = kept.assign(said=said).pivot(index=["headline", "compute_seconds", "source"], columns="rival", values="said")
    return wide.reindex(columns=list(RIVALS)).reset_index()


def costs_table(costs: pd.DataFrame) -> pd.DataFrame:
    """A line a kind of machines, the most machines first, a column a method: dollars per thousand steps."""
    keys = ["machines", "machine", "bits_per_second", "dollars_per_hour", "source"]
    wide = costs.pivot(index=keys, columns="method", values="dollars_per_1000_steps").reset_index()
    name = wide["machines"].astype(str) + " x " + wide["machine"]
    return wide.assign(name=name).sort_values("machines", ascending=False, ignore_index=True)


def joined_table(timed: pd.DataFrame) -> pd.DataFrame:
    """A line a row of an experiment that was timed, a column a rate, the most accurate first."""
    texts = [timed[name].map(milliseconds) for name in ("seconds", "seconds_low", "seconds_high")]
    said = texts[0] + " (" + texts[1] + " to " + texts[2] + ")"
    keys = ["row", "label", "ratio", "estimate"]
    wide = timed.assign(said=said).pivot(index=keys, columns="bits_per_second", values="said").reset_index()
    return wide.sort_values("estimate", ascending=False, ignore_index=True)


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


def sweeps_frame(sweeps: Sequence[Sweep]) -> pd.DataFrame:
    """One line a swept collective and size: median seconds, and the bytes counted on a link beside the formula's.

    `beyond_formula`: the share of the formula's bytes that a link carried beside them and the headers.
    """
    lines = []
    for sweep in sweeps:
        place = sweep.fabric.model_dump(include={"num_machines", "workers_per_machine", "bits_per_second", "dilation"})
        for point in sweep.points:
            seconds = pd.Series(point.seconds, dtype=float)
            numbers = point.model_dump(exclude={"seconds"}) | {"median_seconds": seconds.median()}
            lines.append(place | numbers | {"repetitions": len(seconds)})
    frame = pd.DataFrame(lines)
    if len(frame):
        carried = frame["wire_bytes"].astype(float) - HEADER_BYTES * frame["wire_frames"].astype(float)
        frame["beyond_formula"] = carried / frame["formula_bytes"] - 1
    return frame
