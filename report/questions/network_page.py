"""The page of all networks: what each family of methods loses on each, near one load of a link."""

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from cser_bench.report.frame import LOAD_TOLERANCE
from cser_bench.report.questions.evidence import Compared, Evidence, Speaker
from cser_bench.report.questions.one_load import link_load, rows_at_one_load, tuned_rows
from cser_bench.report.regime import tells
from cser_bench.report.statistics import LESS, MORE
from cser_bench.report.verdicts import loss, margin_of
from cser_bench.report.wording import amount

NAME = "networks"

COMPRESSORS = ("compressor", "gradient_compressor", "error_compressor")
"""Settings that name one, of all methods."""

COLUMNS: Mapping[Speaker, str] = {
    "floor": "a worker alone",
    "low_rank": "PowerSGD",
    "feedback": "error feedback, top-k",
    "local": "local steps",
    "blocks": "error reset, blocks",
    "topk": "error reset, top-k",
}
"""What the table's columns are of, by what a row speaks for."""

OF_FOUR_BITS: Mapping[str, str] = {
    "error feedback": "error feedback, 4 bits",
    "error reset": "error reset, 4 bits",
}
"""Columns of methods that send all numbers in 4 bits each, by their family. They are from another
experiment on the same network, of as many steps."""


def networks_of(evidence: Evidence, root: str) -> dict[str, Any]:
    """Return what the page's template needs: the columns, and a line a network, the largest first.

    Of a network's experiments that can tell a loss, that is the first which ran the most of these
    methods at one load.

    Args:
        root: the folder of results, from where the table stands.
    """
    chosen: dict[str, Compared] = {}
    for known in evidence.all_of("network", "task", "loads"):
        rows = _rows_of(known)
        if not {"floor", "local"} <= rows.keys() or not tells(known.frames):
            continue
        before = chosen.get(known.about.network)
        if before is None or len(_near(known, rows)) > len(_near(before, _rows_of(before))):
            chosen[known.about.network] = known
    experiments = sorted(chosen.values(), key=lambda known: -known.num_parameters)
    return {
        "columns": [*COLUMNS.values(), *OF_FOUR_BITS.values()],
        "networks": [_line_of(evidence, known, root) for known in experiments],
    }


def _rows_of(known: Compared) -> dict[Speaker, str]:
    """Return the rows with runs that speak for the columns, at the load of local steps if any."""
    at_one_load = rows_at_one_load(known)
    rows = {}
    for speaker in COLUMNS:
        row = at_one_load.get(speaker) or known.row(speaker)
        if row is not None and known.has(row):
            rows[speaker] = row
    reset = known.row("reset")
    # An experiment whose one form of error reset has top-k names it as that alone.
    if "topk" not in rows and _resets_by_topk(known, reset):
        rows["topk"] = str(reset)
    return rows


def _resets_by_topk(known: Compared, row: str | None) -> bool:
    """Tell whether a row was run, whose error goes by top-k."""
    if row is None or not known.has(row):
        return False
    settings = tuned_rows(known).loc[row]
    return bool(settings.get("error_compressor.kind") == "top_k")


def _near(known: Compared, rows: Mapping[Speaker, str]) -> list[Speaker]:
    """Return the speakers whose rows put on a link what local steps do."""
    load = link_load(known, rows["local"])
    near = []
    for speaker, row in rows.items():
        if abs(link_load(known, row) / load - 1) <= LOAD_TOLERANCE:
            near.append(speaker)
    return near


def _line_of(evidence: Evidence, known: Compared, root: str) -> dict[str, Any]:
    """Return a network's line: its numbers, and a cell for each column as it is printed."""
    rows = _rows_of(known)
    contrast = known.contrast(rows["local"], known.baseline)
    load = link_load(known, rows["local"])
    cells = [_cell(known, rows, speaker) for speaker in COLUMNS]
    for family in OF_FOUR_BITS:
        cells.append(_cell_of_four_bits(evidence, known, load, family, root))
    return {
        "network": known.network,
        "report": f"{root}/{known.folder_in_results}/report.md",
        "num_parameters": known.num_parameters,
        "workers": known.regime["workers"],
        "num_steps": known.regime["num_steps"],
        "link_models": load,
        "share": load / link_load(known, known.baseline),
        "all_link_models": link_load(known, known.baseline),
        "all_sent": known.mean_of(known.baseline),
        "unit": known.unit,
        "margin": margin_of(contrast),
        "cells": cells,
    }


def _cell(known: Compared, rows: Mapping[Speaker, str], speaker: Speaker) -> str:
    """Write what a speaker's row loses, with its load where that is another; empty without one."""
    row = rows.get(speaker)
    if row is None:
        return ""
    written = _loss_of(known, row)
    if speaker == "floor" or speaker in _near(known, rows):
        return written
    return Markup(f"{written} (at {amount(link_load(known, row))})")


def _loss_of(known: Compared, row: str) -> str:
    """Write a loss against everything sent; bold if shown to be more than the margin.

    One in italics is shown to be less.
    """
    contrast = known.contrast(row, known.baseline)
    written = loss(contrast["estimate"], contrast["unit"])
    if contrast["verdict"] == MORE:
        return Markup(f"**{written}**")
    if contrast["verdict"] == LESS:
        return Markup(f"*{written}*")
    return written


def _cell_of_four_bits(
    evidence: Evidence, known: Compared, load: float, family: str, root: str
) -> str:
    """Write what a family's method with messages of 4 bits loses at about this load.

    The other experiment has a baseline of its own, and where its passes have another precision that
    is named. Of several rows it is the one that loses least by mean. Empty where there is none.
    """
    num_steps = known.regime["num_steps"]
    least: tuple[float, str] | None = None
    for other in evidence.all_of("methods", "rivals", network=known.about.network):
        if not other.is_whole or other.regime["num_steps"] != num_steps:
            continue
        for row in other.rows_of_family(family):
            is_near = abs(link_load(other, row) / load - 1) <= LOAD_TOLERANCE
            if not is_near or not sends_four_bits(other, row):
                continue
            estimate = other.contrast(row, other.baseline)["estimate"]
            if least is None or estimate > least[0]:
                link = f"[{_loss_of(other, row)}]({root}/{other.folder_in_results}/report.md)"
                least = estimate, Markup(link + _other_precision(known, other))
    return "" if least is None else least[1]


def _other_precision(known: Compared, other: Compared) -> str:
    """Write the precision of an experiment's passes in brackets, where it is not another's."""
    precision = other.frames.experiment.config["precision"]
    if precision == known.frames.experiment.config["precision"]:
        return ""
    return f" ({precision})"


def sends_four_bits(known: Compared, row: str) -> bool:
    """Tell whether all that a method sends is in 4 bits a number."""
    settings: Any = tuned_rows(known).loc[row]
    kinds = {settings.get(f"{name}.kind") for name in COMPRESSORS}
    bits = {settings.get(f"{name}.bits") for name in COMPRESSORS}
    # A compressor that a method has not is None, or NaN where another row has it.
    named = {kind for kind in kinds if isinstance(kind, str)}
    widths = {width for width in bits if width is not None and not math.isnan(width)}
    return named == {"quantised_blocks"} and widths == {4}
