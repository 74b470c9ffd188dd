"""What carries over between kinds of network: question 9."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cser_bench.report.plotting import FAMILIES, GREY, legend_beside, losses_across, new_figure
from cser_bench.report.questions.agreement import agreement, combined
from cser_bench.report.questions.evidence import (
    Answer,
    Compared,
    Evidence,
    Part,
    Speaker,
    nearest_first,
)
from cser_bench.report.questions.one_load import (
    ORDERED,
    losses_at_one_load,
    orders_at_other_loads,
    resets_against_local,
    with_all_methods,
)
from cser_bench.report.regime import tells
from cser_bench.report.statistics import LESS, MORE
from cser_bench.report.verdicts import loss, loss_interval
from cser_bench.report.wording import code

SPEAKING: dict[Speaker, tuple[str, str]] = {
    "reset": ("error reset", FAMILIES["error reset"]),
    "local": ("local steps", FAMILIES["local steps"]),
    "feedback": ("error feedback, top-k", FAMILIES["error feedback"]),
    "low_rank": ("PowerSGD", FAMILIES["neighbours"]),
    "outer": ("DiLoCo", "#B07A00"),
}
"""Methods that are compared between kinds of network, by what a row speaks for: name and colour."""

MARKS = "o^sDv"
"""Their marks, in the same order."""


def kinds_of(evidence: Evidence) -> list[Compared]:
    """Return the experiments that speak for a kind of network, each with its optimiser."""
    return nearest_first(evidence.all_of("network", "task"))


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
        "share",
        "low",
        "high",
    ]
    tables = []
    for known in kinds_of(evidence):
        if known.speaks_for("baseline", "floor"):
            shares = _shares_of(known)
            if len(shares):
                tables.append(shares[columns])
    if not tables:
        return pd.DataFrame(columns=columns)
    return pd.concat(tables, ignore_index=True)


def _shares_of(known: Compared) -> pd.DataFrame:
    """Return what each method loses on one kind of network, a line a method."""
    [bounds] = known.pairs(("floor", "baseline"))
    gap = known.contrast(*bounds)["estimate"]
    names = {}
    pairs = []
    for speaker, (name, _) in SPEAKING.items():
        names[known.row(speaker)] = name
        pairs += known.pairs((speaker, "baseline"))
    # A row that speaks for two methods has one line.
    lines = known.contrasts_of(dict.fromkeys(pairs))
    # The gap is negative, so that the ends of an interval change places.
    return lines.assign(
        network=known.kind,
        experiment=known.name,
        tells=tells(known.frames),
        method=lines["row"].map(names),
        share=lines["estimate"] / gap,
        low=lines["high"] / gap,
        high=lines["low"] / gap,
    )


def other_networks(evidence: Evidence) -> Answer | None:
    """Answer question 9: error reset against everything sent, and against local steps.

    That is on each kind of network that was run.
    """
    kinds = []
    for known in kinds_of(evidence):
        if known.speaks_for("baseline", "floor", "reset", "local"):
            kinds.append(known)
    if len(kinds) < 2:
        return None
    asked_of_losses: list[Part] = []
    asked_of_locals: list[Part] = []
    for known in kinds:
        named = {"network": known.kind, "experiment": known.name}
        asked_of_losses.append((known, known.pairs(("reset", "baseline")), named))
        asked_of_locals.append((known, [asked_of_local(known)], named))
    losses = evidence.contrasts(asked_of_losses)
    locals_ = evidence.contrasts(asked_of_locals)
    shares = shares_lost(evidence)
    numbers = {
        "kinds": len(kinds),
        **_counted_of_reset(kinds, losses),
        "reversed": _where_reset_is_ahead(evidence),
        "experiments": [code(known.name) for known in kinds],
        **_at_one_load(evidence),
    }
    # The two contrasts of a kind stand one under the other.
    frame = pd.concat([losses, locals_]).sort_index(kind="stable")
    return Answer(frame.reset_index(drop=True), numbers, _by_kind(shares))


def _counted_of_reset(kinds: Sequence[Compared], losses: pd.DataFrame) -> dict[str, Any]:
    """Count the experiments in which error reset is shown to lose less, more, and neither.

    `silent` cannot tell a loss. `kept_on` are the networks of those verdicts that are of a question
    asked after runs of both rows, and were published before such had none. `num_ours`
    of those that can tell have error reset with another rule of steps than SGD, which the paper has
    not.
    """
    verdicts = losses["verdict"].value_counts()
    kept = set()
    for known in kinds:
        for contrast in known.frames.contrasts:
            if contrast.is_verdict_kept:
                kept.add((known.name, contrast.row, contrast.reference))
    judged = losses[losses["verdict"].isin((LESS, MORE))]
    asked = zip(judged["experiment"], judged["row"], judged["reference"], strict=True)
    kept_verdicts = kept.intersection(asked)
    network_of = {known.name: known.about.network for known in kinds}
    silent = sum(not tells(known.frames) for known in kinds)
    shown = int(verdicts.get(LESS, 0))
    more = int(verdicts.get(MORE, 0))
    return {
        "shown": shown,
        "more": more,
        "silent": silent,
        "kept_on": [network_of[name] for name, *_ in sorted(kept_verdicts)],
        "num_ours": sum(_is_ours(known) for known in kinds if tells(known.frames)),
        "undecided": len(losses) - shown - more - silent,
    }


def _is_ours(known: Compared) -> bool:
    return bool(known.value(known.row("reset"), "local_step") != "sgd")


def _where_reset_is_ahead(evidence: Evidence) -> list[str]:
    """List the studies of width, and of workers, where error reset by blocks loses less by mean.

    That is less than local steps at one load of a link.
    """
    ahead = []
    for known in evidence.all_of("width", "workers"):
        for row, local in known.pairs(("blocks", "local")):
            if known.contrast(row, local)["estimate"] > 0:
                workers = known.regime["workers"]
                ahead.append(
                    f"{known.about.network} of {known.num_parameters:,} parameters with {workers} workers"
                )
    return ahead


def asked_of_local(known: Compared) -> tuple[str, str]:
    """Return the rows of error reset, in the form that was declared, and of local steps."""
    [(reset, local)] = known.pairs(("reset", "local"))
    declared = []
    for row, reference in known.contrasts:
        if reference == local and known.is_of_family(row, "error reset"):
            declared.append(row)
    if not declared or reset in declared:
        return reset, local
    return declared[0], local


def _at_one_load(evidence: Evidence) -> dict[str, Any]:
    """Return the order of three methods at one load, on images, on text and at other loads."""
    images = with_all_methods(evidence, "images")
    text = with_all_methods(evidence, "text")
    experiments = [*images, *text]
    losses = losses_at_one_load(images)
    of_all = resets_against_local(experiments)
    is_behind = of_all["estimate"] > 0
    numbers: dict[str, Any] = {
        "order": agreement(losses[[*ORDERED.values()]]),
        "datasets": sorted({known.regime["dataset"] for known in images}),
        "text": [_order_on(known) for known in text],
        "other_orders": _other_orders(evidence, experiments),
        "num_behind": int(is_behind.sum()),
        "num_compared": len(of_all),
        "apart": None,
    }
    # One network has no spread between networks.
    apart = resets_against_local(images)
    if len(apart) > 1:
        mean = combined(apart["estimate"], apart["standard_error"])
        unit = images[0].unit
        numbers["apart"] = mean
        # These are losses already, and their words are of differences of scores.
        numbers["mean_apart"] = f"{loss(-mean.estimate, unit)} {unit}"
        numbers["range_of_mean"] = loss_interval(-mean.high, -mean.low, unit)
    return numbers


def _other_orders(evidence: Evidence, experiments: Sequence[Compared]) -> list[dict[str, Any]]:
    """Return the loads at which a network has another order than at the load shown.

    Keys: those of `orders_at_other_loads`.
    """
    shown = {known.the_network: _order_on(known)["order"] for known in experiments}
    others = []
    for each in orders_at_other_loads(evidence, experiments):
        if each["network"] in shown and each["order"] != shown[each["network"]]:
            others.append(each)
    return others


def _order_on(known: Compared) -> dict[str, Any]:
    """Return the order of the three methods' losses on one network, and the load."""
    [line] = losses_at_one_load([known]).to_dict("records")
    order = sorted(ORDERED.values(), key=lambda name: float(line[name]))
    return {"network": known.the_network, "link_models": line["link_models"], "order": order}


def _by_kind(shares: pd.DataFrame) -> Figure:
    """Draw a line for each kind of network, a mark for each method at the share that it loses."""
    is_telling = dict(zip(shares["network"], shares["tells"], strict=True))
    networks = list(is_telling)
    figure, (axes,) = new_figure(0.75 + 0.3 * len(networks))
    for number, (method, colour) in enumerate(SPEAKING.values()):
        lines = shares[shares["method"] == method]
        if lines.empty:
            continue
        places = np.array([networks.index(name) for name in lines["network"]])
        below = lines["share"] - lines["low"]
        above = lines["high"] - lines["share"]
        # Marks of one network stand beside one another.
        axes.errorbar(
            lines["share"],
            places + 0.14 * (number - 2),
            xerr=[below, above],
            fmt=MARKS[number],
            color=colour,
            label=method,
            elinewidth=0.8,
        )
    # Networks on which a loss cannot be told stand in brackets.
    names = [name if is_telling[name] else f"({name})" for name in networks]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, **GREY)
    axes.axvline(1, color="#777777", linewidth=0.8, linestyle="--")
    losses_across(axes)
    axes.set_xlabel("share lost of what can be lost: 0 is everything sent, 1 a worker alone")
    legend_beside(axes)
    return figure
