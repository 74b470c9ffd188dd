"""A row's settings in a few words, as a table's cell: "TopK(192)", "R2 48, R1 3, H 16", "4 bits, H 3"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cser_bench.harness.records.experiment import Experiment, Row
from cser_bench.report.wording import NONE

CLASSES = {"top_k": "TopK", "random_k": "RandomK", "block": "BlockSparsifier"}
"""The classes of compressors that one types with their ratio, by their kind in a spec."""

STAGES = {"gradient_compressor": "R2", "error_compressor": "R1"}
"""The paper's names for the ratios of its two stages, by setting."""


def setting_in_short(row: Row) -> str:
    """Return the settings of a row that say what it sends and when; a dash where it has none.

    "outer 0.7 and 0.5" are the rate and the momentum of DiLoCo's outer step.
    """
    settings = row.settings
    parts = []
    if row.wire is not None and row.wire != "fp32":
        parts.append(row.wire)
    if "rank" in settings:
        parts.append(f"rank {settings['rank']}")
    if "compressor" in settings:
        parts.append(_compressor(settings["compressor"]))
    for name, symbol in STAGES.items():
        if name in settings:
            parts += _stage(settings[name], symbol)
    for name in ("sync_interval", "reset_interval"):
        # An interval of 1 is each step, which needs no word.
        if settings.get(name, 1) != 1:
            parts.append(f"H {settings[name]}")
    if "outer_lr" in settings:
        momentum = settings.get("outer_momentum", 0)
        parts.append(f"outer {settings['outer_lr']:g} and {momentum:g}")
    return ", ".join(parts) or NONE


def key_of(experiment: Experiment, row: Row) -> str:
    """Return what is equal for rows of one algorithm, setting and local step."""
    wire = row.wire or experiment.config.get("wire")
    # With sorted keys, as two specs may give the same settings in another order.
    return json.dumps(
        [row.algorithm, row.local_step, wire, row.settings], sort_keys=True
    )


def _compressor(table: Mapping[str, Any]) -> str:
    """Return a compressor as one types it, or its bits."""
    kind = table["kind"]
    if kind == "quantised_blocks":
        return f"{table.get('bits', 8)} bits"
    name = CLASSES.get(kind, str(kind).replace("_", " "))
    if "ratio" not in table:
        return name
    return f"{name}({table['ratio']:g})"


def _stage(table: Mapping[str, Any], symbol: str) -> list[str]:
    """Return what one of the two stages of the paper's method sends; nothing where it does not."""
    kind = table["kind"]
    if kind == "zero":
        return []
    if kind == "block":
        return [f"{symbol} {table['ratio']:g}"]
    return [f"{symbol} {_compressor(table)}"]
