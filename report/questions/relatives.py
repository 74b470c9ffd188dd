"""Question 23: what the method's relatives lose, and what methods of 2026 lose beside it."""

import math
from typing import Any

import pandas as pd

from cser_bench.harness.records.timings import Timing
from cser_bench.report.questions.evidence import (
    OF_DECLARED,
    Answer,
    Compared,
    Evidence,
    nearest_first,
)
from cser_bench.report.speed.timed import joined_frame
from cser_bench.report.verdicts import with_words

MOST_TIMED = 3
"""Methods whose steps a sentence tells."""


def the_relatives(evidence: Evidence) -> Answer:
    """Answer question 23: the relatives' differences to SGD.

    DiLoCo's is a declared contrast, and so are those on other networks.
    """
    search = evidence["search"]
    quoted = evidence["reference"]
    frame = search.contrasts_of((row, search.baseline) for row in search.about.shown)
    frame = frame.sort_values("estimate", ascending=False)
    # None of these differences was declared, so none is judged.
    frame = frame.drop(columns=[*OF_DECLARED])
    in_search = frame.assign(network=search.about.network, kind=None, verdict=None)
    [outer] = quoted.pairs(("outer", "baseline"))
    [outer_against_its_like] = quoted.pairs(("outer", "outer_baseline"))
    with_relatives = [known for known in evidence.other_networks if known.row("low_rank")]
    of_relatives = evidence.elsewhere(
        with_relatives, ("low_rank", "baseline"), ("outer", "baseline"), ("feedback", "baseline")
    )
    recent = []
    for known in nearest_first(evidence.all_of("methods")):
        if known.is_whole:
            recent.append(methods_of(known, evidence))
    numbers = {
        "best": frame.iloc[0],
        "worst": frame.iloc[-1],
        "judged": quoted.regime,
        "outer_step": quoted.contrast(*outer),
        "outer": quoted.contrast(*outer_against_its_like),
        "relatives": with_words(pd.concat([pd.DataFrame(of_relatives), in_search])),
        "search": search.regime,
        "trial_epochs": int(search.frames.tuning["num_epochs"].max()),
        "epochs": int(search.frames.rows["num_epochs"].max()),
        "recent": recent,
        "rivals": declared_by_network(evidence, "rivals"),
    }
    tables = [frame.assign(experiment=search.name)]
    tables += [part["rows"] for part in recent]
    return Answer(pd.concat(tables), numbers, rows=frame)


def declared_by_network(evidence: Evidence, role: Any) -> list[dict[str, Any]]:
    """Return the declared contrasts of the whole experiments in a role, by network."""
    parts = []
    for known in evidence.all_of(role):
        if known.is_whole:
            contrasts = known.contrasts_of(known.contrasts)
            part = {
                "network": known.about.network,
                "name": known.name,
                "lines": contrasts.to_dict("records"),
            }
            parts.append(part)
    return parts


def methods_of(known: Compared, evidence: Evidence) -> dict[str, Any]:
    """Return what each of an experiment's methods loses, and what was asked of error reset.

    `least` are those of the least mean losses: the first, and whose intervals meet its own;
    `cser` is error reset that is none of them, and `below` loses more than a worker alone. Where
    steps were timed on links of a latency, `ddp` has DDP's step by latency.
    """
    rows = _losses_of_rows(known)
    ddp = {}
    link = None
    for timing in timings_of(known, evidence):
        fabric = timing.fabric
        steps = joined_frame(known.frames, [timing])
        by_row = steps.groupby("row")["seconds"].min()
        rows[fabric.latency] = rows["row"].map(by_row)
        of_ddp = steps.loc[steps["label"] == "DDP", "seconds"]
        ddp[fabric.latency] = of_ddp.min()
        if link is None:
            link = fabric.bits_per_second
    # Rows that send everything or nothing are bounds, and no methods.
    is_method = rows["ratio"].between(1, math.inf, inclusive="neither")
    methods = rows[is_method]
    places = range(1, 1 + len(methods))
    methods = methods.assign(place=places)
    loads = methods["link_models"]
    is_reset = methods["row"].isin(known.rows_of_family("error reset"))
    is_least = methods["high"] >= methods["low"].iloc[0]
    is_floor = rows["row"] == known.row("floor")
    alone = rows.loc[is_floor, "estimate"].iloc[0]
    cser = methods[is_reset & ~is_least]
    below = methods[methods["estimate"] < alone]
    timed = methods[is_least | is_reset].dropna(subset=[*ddp])
    timed = timed.head(MOST_TIMED)
    least = methods[is_least].to_dict("records")
    for line in least:
        line["own_baseline"] = own_baseline(known, str(line["row"]), methods)
    resets = set(methods.loc[is_reset, "row"])
    asked = []
    for row, reference in known.contrasts:
        if row in resets:
            asked.append(known.contrast(row, reference))
    return {
        "rows": rows,
        "network": known.about.network,
        "unit": known.unit,
        "note": known.about.note,
        "baseline": known.value(known.baseline, "label"),
        "num_methods": len(methods),
        "loads": (loads.min(), loads.max()),
        "alone": known.lost(alone),
        "least": least,
        "cser": cser.to_dict("records"),
        "below": below.to_dict("records"),
        "asked": asked,
        "timed": timed.to_dict("records"),
        "ddp": ddp,
        "link": link,
        "regime": known.regime,
    }


def _losses_of_rows(known: Compared) -> pd.DataFrame:
    """Return what each row of the experiment's own length loses, the least loss first."""
    pairs = []
    for row in known.frames.experiment.rows:
        if row.base is None and row.row != known.baseline:
            pairs.append((row.row, known.baseline))
    rows = known.contrasts_of(pairs).sort_values("estimate", ascending=False)
    return rows.assign(experiment=known.name)


def timings_of(known: Compared, evidence: Evidence) -> list[Timing]:
    """Return the sessions that timed rows of this experiment on links of a latency."""
    if evidence.speed is None:
        return []
    timings = []
    for timing in evidence.speed.text:
        rows = [row for method in timing.methods for row in method.rows]
        if any(row.startswith(f"{known.name}/") for row in rows):
            timings.append(timing)
    return timings


def own_baseline(known: Compared, row: str, methods: pd.DataFrame) -> dict[str, Any] | None:
    """Return a row less what sends everything with the row's own local step.

    None where that is the baseline, or was not run.
    """
    by_row = known.frames.by_row
    step = known.value(row, "local_step")
    if step == known.value(known.baseline, "local_step"):
        return None
    has_step = by_row["local_step"] == step
    likes = by_row[has_step & (by_row["ratio"] == 1)]
    for like in likes["row"]:
        if known.has(like):
            contrast = known.contrast(row, like)
            steps = methods["row"].map(by_row["local_step"])
            num_alike = int((steps == step).sum())
            contrast["is_only"] = num_alike == 1
            return contrast
    return None
