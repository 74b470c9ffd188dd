"""What the model says of a measurement that others published, DiLoCo over links of known rate."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pandas as pd

from report.speed.cost_model import Link, Links, Network, collective_seconds


def published_links() -> tuple[dict[str, Any], pd.DataFrame]:
    """The file, and one line a published point: its share of the time in which a node computes, and the modelled one.

    Modelled: H steps and one ring all-reduce of the fp32 parameters that overlaps nothing, on a link that is all used
    and has no latency. The one unknown, the compute of a step, is solved from the point that the file names (`solved`).
    """
    file = tomllib.loads((Path(__file__).parent / "diloco_links.toml").read_text())
    lines = [
        (link["bits_per_second"], interval, percent / 100)
        for link in file["links"]
        for interval, percent in zip(file["sync_intervals"], link["percent"], strict=True)
    ]
    frame = pd.DataFrame(lines, columns=["bits_per_second", "sync_interval", "published"])
    frame["sync_seconds"] = [
        collective_seconds(_network(file["num_workers"], bits), "all_reduce", 4 * file["num_parameters"])
        for bits in frame["bits_per_second"]
    ]
    known = file["solved_from"]
    frame["solved"] = (frame["bits_per_second"] == known["bits_per_second"]) & (
        frame["sync_interval"] == known["sync_interval"]
    )
    point = frame[frame["solved"]].iloc[0]
    compute = point["published"] / (1 - point["published"]) * point["sync_seconds"] / point["sync_interval"]
    between = frame["sync_interval"] * compute
    frame["modelled"] = between / (between + frame["sync_seconds"])
    return file, frame


def _network(num_workers: int, bits_per_second: float) -> Network:
    return Network(num_workers, 1, {"all_reduce": Links(Link(0.0, 8 / bits_per_second), Link(0.0, 0.0))})
