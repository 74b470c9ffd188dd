"""What carries over between kinds of network: question 9, and the spread between kinds that widens
advice."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cser_bench.report.frame import Frames
from cser_bench.report.plotting import FAMILIES, GREY, legend_beside, new_figure
from cser_bench.report.questions.agreement import agreement, combined
from cser_bench.report.questions.evidence import Answer, Compared, Evidence, Part, Speaker
from cser_bench.report.questions.losses import MOST_ROWS
from cser_bench.report.questions.one_load import (
    ORDERED,
    losses_at_one_load,
    orders_at_other_loads,
    resets_against_local,
    with_all_methods,
)
from cser_bench.report.regime import NOT_CLAIMED, tells
from cser_bench.report.statistics import LESS

SPEAKING: dict[Speaker, tuple[str, str]] = {
    "reset": ("error reset", FAMILIES["error reset"]),
    "local": ("local steps", FAMILIES["local steps"]),
    "feedback": ("error feedback, top-k", FAMILIES["error feedback"]),
    "low_rank": ("PowerSGD", "#8A3FA0"),
    "outer": ("DiLoCo", "#7B4B2A"),
}
"""Methods that are compared between kinds of network, by what a row speaks for: name and colour."""

OF_FAMILY: dict[str, Speaker] = {
    "error reset": "reset",
    "local steps": "local",
    "error feedback": "feedback",
}
"""Whose spread between kinds stands for that of a family's other methods."""


def kinds_of(evidence: Evidence) -> list[Compared]:
    """Return the experiments that speak for a kind of network, each with its optimiser."""
    return evidence.all_of("network", "task")


def method_of(frames: Frames, algorithm: str) -> str | None:
    """Return the name of the method whose spread between kinds stands for an algorithm's."""
    evidence = frames.experiment.evidence
    for speaker, row in evidence.rows.items() if evidence else ():
        if speaker in SPEAKING and frames.by_row.loc[row, "algorithm"] == algorithm:
            return SPEAKING[speaker][0]
    family = OF_FAMILY.get(frames.experiment.families.get(algorithm, ""))
    return SPEAKING[family][0] if family else None


def shares_lost(evidence: Evidence) -> pd.DataFrame:
    """Return what each method loses on each kind of network, as a share of what can be lost there.

    That is what lies between everything sent and a worker alone.

    Returns:
        The columns network, experiment, tells, method, label, models_sent, share, low and high (95
        %).
    """
    columns = [
        "network",
        "experiment",
        "tells",
        "method",
        "label",
        "models_sent",
    ]
    columns += ["share", "low", "high"]
    tables = [pd.DataFrame(columns=columns)]
    for known in kinds_of(evidence):
        if known.speaks_for("baseline", "floor"):
            tables.append(_shares_of(known)[columns])
    tables = [table for table in tables if len(table)] or tables
    return pd.concat(tables, ignore_index=True)


def _shares_of(known: Compared) -> pd.DataFrame:
    """What each method loses on one kind of network, a line a method."""
    names = {known.row(speaker): name for speaker, (name, _) in SPEAKING.items()}
    [bounds] = known.pairs(("floor", "baseline"))
    gap = known.contrast(*bounds)["estimate"]
    lines = known.contrasts_of(known.pairs(*((speaker, "baseline") for speaker in SPEAKING)))
    return lines.assign(
        network=known.kind,
        experiment=known.name,
        tells=tells(known.frames),
        method=lines["row"].map(names),
        share=lines["estimate"] / gap,
        low=lines["high"] / gap,
        high=lines["low"] / gap,
    )


def spread_between_kinds(shares: pd.DataFrame) -> dict[str, float]:
    """Return the standard deviation of a method's share lost between kinds of network, the seeds'
    noise included, by method.

    Methods that were run on one kind alone are not there.
    """
    spreads = shares.groupby("method")["share"].std().dropna()
    return {str(method): float(spread) for method, spread in spreads.items()}


def other_networks(evidence: Evidence) -> Answer | None:
    """Question 9: error reset against everything sent and against local steps, on each kind of
    network that was run."""
    kinds: list[Compared] = []
    missing: list[Compared] = []
    for known in kinds_of(evidence):
        if known.row("reset") and known.row("local"):
            ran = known.speaks_for(
                "baseline",
                "floor",
                "reset",
                "local",
            )
            (kinds if ran else missing).append(known)
    if len(kinds) < 2:
        return None
    losses = _with_form(evidence, [(known, known.pairs(("reset", "baseline"))) for known in kinds])
    locals_ = _with_form(evidence, [(known, [asked_of_local(known)]) for known in kinds])
    shown = locals_[locals_["verdict"] != NOT_CLAIMED].head(MOST_ROWS)
    shares = shares_lost(evidence)
    telling = shares[shares["tells"]]
    numbers = {
        "kinds": len(kinds),
        "blocks": locals_.loc[locals_["form"] == "block", "network"].tolist(),
        "shown": int((losses["verdict"] == LESS).sum()),
        "local": locals_.to_dict("records"),
        "experiments": [f"`{known.name}`" for known in kinds],
        "topk": _other_forms(evidence, kinds),
        "missing": [known.kind for known in missing],
        "left_out": [name for name in locals_["network"] if name not in set(shown["network"])],
        "spread": spread_between_kinds(telling),
        **_at_one_load(evidence),
        **_norms(evidence),
    }
    frame = pd.concat([losses, locals_]).sort_index(kind="stable").reset_index(drop=True)
    return Answer(
        frame,
        numbers,
        _by_kind(shares),
        rows=shown,
    )


def asked_of_local(known: Compared) -> tuple[str, str]:
    """Return error reset and local steps: error reset in the form that was declared."""
    [(reset, local)] = known.pairs(("reset", "local"))
    declared = [
        row
        for row, reference in known.contrasts
        if reference == local and known.is_of_family(row, "error reset")
    ]
    if not declared or reset in declared:
        return reset, local
    return declared[0], local


def _with_form(
    evidence: Evidence, asked: Sequence[tuple[Compared, list[tuple[str, str]]]]
) -> pd.DataFrame:
    """One contrast of each kind of network, with the compressor of its error."""
    parts: list[Part] = []
    for known, pairs in asked:
        form = str(known.value(pairs[0][0], "error_compressor.kind"))
        columns = {
            "network": known.kind,
            "experiment": known.name,
            "form": form,
        }
        parts.append((known, pairs, columns))
    return evidence.contrasts(parts)


def _other_forms(evidence: Evidence, kinds: Sequence[Compared]) -> list[dict[Any, Any]]:
    """The form that did better in tuning against local steps, where another one was declared."""
    parts: list[Part] = []
    for known in kinds:
        pairs = known.pairs(("reset", "local"))
        if pairs != [asked_of_local(known)]:
            parts.append((known, pairs, {"network": known.the_network}))
    return evidence.contrasts(parts).to_dict("records")


def _at_one_load(evidence: Evidence) -> dict[str, Any]:
    """The order of three methods at one load of a link, on images, on text and at other loads."""
    images = with_all_methods(evidence, "images")
    text = with_all_methods(evidence, "text")
    losses = losses_at_one_load(images)
    apart = resets_against_local(images)
    of_all = resets_against_local([*images, *text])
    numbers: dict[str, Any] = {
        "order": agreement(losses[list(ORDERED.values())]),
        "sizes": (losses["parameters"].min(), losses["parameters"].max()),
        "loads": (losses["link_models"].min(), losses["link_models"].max()),
        "datasets": sorted({known.about.dataset for known in images}),
        "text": [_order_on(known) for known in text],
        "elsewhere": list(orders_at_other_loads(evidence, [*images, *text])),
        "num_behind": int((of_all["estimate"] > 0).sum()),
        "num_compared": len(of_all),
        "text_networks": [known.the_network for known in text],
        "apart": None,
    }
    if len(apart) > 1:
        numbers |= {
            "apart": combined(apart["estimate"], apart["standard_error"]),
            "largest": float(apart["estimate"].max()),
            "next": float(apart["estimate"].nlargest(2).iloc[-1]),
        }
    return numbers


def _order_on(known: Compared) -> dict[str, Any]:
    """The order of the three methods' losses on one network, and the load."""
    [line] = losses_at_one_load([known]).to_dict("records")
    order = sorted(ORDERED.values(), key=lambda name: float(line[name]))
    return {
        "network": known.the_network,
        "link_models": line["link_models"],
        "order": order,
    }


def _norms(evidence: Evidence) -> dict[str, Any]:
    """What a network loses with another normalisation: the most that statistics move it, and with
    group norm."""
    numbers: dict[str, Any] = {
        "moved": math.nan,
        "grouped": None,
    }
    pairs: list[tuple[Speaker, Speaker]] = [("reset", "baseline"), ("local", "baseline")]
    for known in evidence.all_of("batch_norm", "group_norm"):
        usual = evidence.first("network", network=known.about.network)
        if usual is None:
            continue
        if known.frames.has_role("batch_norm"):
            here = known.contrasts_of(known.pairs(*pairs))["estimate"]
            there = usual.contrasts_of(usual.pairs(*pairs))["estimate"]
            # The larger of what was seen before and now; before, of the first, it is not known.
            numbers["moved"] = float(np.fmax(numbers["moved"], (here - there).abs().max()))
            numbers["moved_network"] = usual.network
        else:
            baselines = [experiment.frames.done(known.baseline) for experiment in (known, usual)]
            numbers["grouped"] = {
                "baseline": known.value(known.baseline, "label"),
                "all_sent": float(baselines[0].mean() - baselines[1].mean()),
                "lines": known.contrasts_of(known.pairs(*pairs, ("feedback", "baseline"))).to_dict(
                    "records"
                ),
            }
    return numbers


def _by_kind(shares: pd.DataFrame) -> Figure:
    """A line for each kind of network, a mark for each method at the share that it loses."""
    is_telling = dict(zip(shares["network"], shares["tells"], strict=True))
    networks = list(is_telling)
    figure, (axes,) = new_figure(0.75 + 0.3 * len(networks))
    for number, (method, colour) in enumerate(SPEAKING.values()):
        lines = shares[shares["method"] == method]
        if lines.empty:
            continue
        places = np.array([networks.index(name) for name in lines["network"]])
        ends = [lines["share"] - lines["low"], lines["high"] - lines["share"]]
        axes.errorbar(
            lines["share"],
            places + 0.14 * (number - 2),  # marks of one network beside one another
            xerr=ends,
            fmt="o",
            color=colour,
            label=method,
            elinewidth=0.8,
        )
    names = [name if is_telling[name] else f"({name})" for name in networks]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, **GREY)
    axes.axvline(
        1,
        color="#777777",
        linewidth=0.8,
        linestyle="--",
    )
    axes.set_xlabel("share lost of what can be lost: 0 is everything sent, 1 a worker alone")
    legend_beside(axes)
    return figure
