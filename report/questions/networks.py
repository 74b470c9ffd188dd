"""What carries over between kinds of network: question 9, and the spread between kinds that widens
advice."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cser_bench.report.frame import JUDGED, LONG
from cser_bench.report.plotting import FAMILIES, GREY, legend_beside, new_figure
from cser_bench.report.questions.agreement import agreement, combined
from cser_bench.report.questions.evidence import (
    CONVOLUTIONS,
    DENSENET,
    GPT,
    RESIDUAL,
    SHUFFLENET,
    Answer,
    Compared,
    Evidence,
)
from cser_bench.report.regime import NOT_CLAIMED, tells
from cser_bench.report.statistics import LESS, difference

RESET, LOCAL, TOP_K, POWERSGD, OUTER = (
    "error reset",
    "local steps",
    "error feedback, top-k",
    "PowerSGD",
    "DiLoCo",
)
METHODS = {
    **dict.fromkeys(("csea", "cser", "cser_pl", "mcser"), RESET), **dict.fromkeys(("local_sgd", "qsr"), LOCAL),
    **dict.fromkeys(("ef_sgd", "qsparse_local_sgd"), TOP_K), "powersgd": POWERSGD, "diloco": OUTER,
}  # fmt: skip
"""By algorithm: the method that speaks for it between kinds of network."""
STATISTICS, GROUP_NORM = (
    ("study_batch_norm_recalibrate", "study_batch_norm_local"),
    "study_group_norm",
)
"""The convolutions with other batch-norm statistics for the score, and without batch norm."""
LOAD_TOLERANCE = 0.1
"""Rows have one load of a link if what it carries differs by so much at most."""
IMAGES = {
    LONG: "Perceptron",
    CONVOLUTIONS: "Convolutions",
    DENSENET: "DenseNet",
    SHUFFLENET: "ShuffleNet",
}
IMAGES |= {RESIDUAL: "Residual"}
"""Networks on images that ran these three methods at one load each, by experiment."""
ORDERED = (TOP_K, LOCAL, RESET)
OTHER_LOADS = {
    LONG: "the perceptron",
    "study_resnet_loads": "the residual network",
    "study_gpt_text_loads": "the GPT",
}
"""Experiments that ran the three methods at other loads of a link, too."""


@dataclass(frozen=True)
class Kind:
    """An experiment of a kind of network and its row of each method. Models sent and loads of a
    link differ by row.

    Where error reset was tuned in two forms, the better one in tuning speaks for it.
    """

    network: str
    experiment: str
    rows: Mapping[str, str]

    def asked(self, known: Compared) -> list[tuple[str, str]]:
        """Error reset against everything sent, and against local steps: there in the form that was
        declared."""
        mine, local = self.rows[RESET], self.rows[LOCAL]
        algorithms = known.frames.by_row["algorithm"]
        forms = [
            row
            for row, other in known.contrasts
            if other == local and METHODS.get(algorithms[row]) == RESET
        ]
        return [(mine, known.baseline), (forms[0] if forms and mine not in forms else mine, local)]


_MLP = {RESET: "mcser-96", LOCAL: "local_sgd-96", TOP_K: "ef_topk-96", OUTER: "diloco-96"}
_SMALL = {RESET: "mcser-h16-r1_3-r2_48", LOCAL: "local_sgd-24", TOP_K: "ef_topk-96"}
_TEXT = {RESET: "cser-8", LOCAL: "local-8", TOP_K: "ef_topk-8", POWERSGD: "powersgd-8"}
_RESIDUAL = {
    RESET: "mcser_topk",
    LOCAL: "local_sgd-24",
    TOP_K: "ef_topk-96",
    OUTER: "diloco-24",
    POWERSGD: "powersgd",
}
KINDS = (
    Kind("Perceptron", JUDGED, _MLP),
    Kind("Convolutions", CONVOLUTIONS, _SMALL),
    Kind("DenseNet", DENSENET, _SMALL),
    Kind("ShuffleNet", SHUFFLENET, _SMALL),
    Kind("Residual", RESIDUAL, _RESIDUAL),
    Kind("GPT, AdamW", GPT, _TEXT | {TOP_K: "ef_topk_updates-32", OUTER: "diloco-8"}),
    Kind("Transformer, SGD", "cmudict", _TEXT | {RESET: "mcser-8", LOCAL: "local_sgd-8"}),
    Kind("Transformer, AdamW", "cmudict_adamw", _TEXT),
    Kind("Translation, AdamW", "kjv_es", _TEXT),
)


def shares_lost(evidence: Evidence) -> pd.DataFrame:
    """What each method loses on each kind of network, as a share of what can be lost there.

    That is what lies between everything sent and a worker alone.

    Returns:
        The columns network, experiment, tells, method, label, models_sent, share, low and high (95
        %).
    """
    tables = []
    for kind in KINDS:
        known = evidence.experiment(kind.experiment)
        floor = known.frames.experiment.floor if known else None
        if known and floor and known.has(known.baseline, floor):
            gap = known.contrast(floor, known.baseline)["estimate"]
            own = known.contrasts_of((row, known.baseline) for row in kind.rows.values())
            own["method"] = own["row"].map({row: method for method, row in kind.rows.items()})
            own["share"], own["low"], own["high"] = (
                own["estimate"] / gap,
                own["high"] / gap,
                own["low"] / gap,
            )
            tables.append(
                own.assign(
                    network=kind.network, experiment=kind.experiment, tells=tells(known.frames)
                )
            )
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
    return (
        pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
    )


def spread_between_kinds(shares: pd.DataFrame) -> dict[str, float]:
    """Standard deviation of a method's share lost between kinds of network, the seeds' noise
    included, by method.

    Methods that were run on one kind alone are not there.
    """
    spreads = shares.groupby("method")["share"].std().dropna()
    return {str(method): float(spread) for method, spread in spreads.items()}


def plain_local_rows(known: Compared) -> dict[float, str]:
    """The rows of local steps that have nothing else set, by ratio."""
    own = known.frames.rows[
        known.frames.rows["base"].isna() & (known.frames.rows["rule"] == "held_out")
    ]
    ratios = own.set_index("row")["ratio"]
    plain = [
        row for row in known.frames.experiment.rows if row.settings.keys() == {"sync_interval"}
    ]
    return {
        float(ratios[row.row]): row.row
        for row in plain
        if row.algorithm == "local_sgd" and row.row in ratios.index
    }


def rows_at_one_load(known: Compared, ratio: float | None = None) -> dict[str, str]:
    """The row of each method that puts on a link what local steps at this ratio do; the main ratio,
    if none is given.

    Error reset is the form with the paper's blocks. Where a method was run in two forms, as error
    feedback on gradients and on updates, the one with the better mean score speaks for it.
    """
    rows: Any = known.frames.rows
    own = rows[rows["base"].isna() & (rows["rule"] == "held_out")].set_index("row")
    local = plain_local_rows(known).get(ratio or known.frames.experiment.main_ratio or 0.0)
    if local is None:
        return {}
    load = own.loc[local, "link_models"]
    near = own[(own["link_models"] / load - 1).abs() <= LOAD_TOLERANCE]
    chosen = {LOCAL: local}
    for method, algorithms, compressor, kind in (
        (TOP_K, ("ef_sgd",), "compressor.kind", "top_k"),
        (RESET, ("cser", "mcser"), "error_compressor.kind", "block"),
    ):
        is_form = near["algorithm"].isin(algorithms) & (near.get(compressor) == kind)
        scores = {
            str(row): known.frames.done(row).mean() for row in near.index[is_form] if known.has(row)
        }
        if scores:
            chosen[method] = max(scores, key=lambda row: scores[row])
    return chosen


def losses_at_one_load(evidence: Evidence, names: Mapping[str, str]) -> pd.DataFrame:
    """What each method loses against everything sent, at one load of a link, by network; those that
    ran all three.

    Columns: network, experiment, parameters, link_models (of local steps), and a column of losses
    for each method. A positive number is a loss.
    """
    lines = []
    for name, network in names.items():
        known = evidence.experiment(name)
        rows = rows_at_one_load(known) if known else {}
        if known and rows.keys() >= set(ORDERED):
            found = {method: known.contrast(rows[method], known.baseline) for method in ORDERED}
            losses = {method: -float(contrast["estimate"]) for method, contrast in found.items()}
            load = float(found[LOCAL]["link_models"])
            size = known.regime["num_parameters"]
            lines.append(
                {"network": network, "experiment": name, "parameters": size, "link_models": load}
                | losses
            )
    return pd.DataFrame(
        lines, columns=["network", "experiment", "parameters", "link_models", *ORDERED]
    )


def orders_at_other_loads(evidence: Evidence) -> list[dict[str, Any]]:
    """The order of the three methods' mean losses at other loads of a link that were run, the
    heaviest load first."""
    lines = []
    for name, network in OTHER_LOADS.items():
        known = evidence.experiment(name)
        main_ratio = known.frames.experiment.main_ratio if name == LONG and known else None
        for ratio in sorted(plain_local_rows(known)) if known else ():
            rows = rows_at_one_load(known, ratio) if known and ratio != main_ratio else {}
            if known and rows.keys() >= set(ORDERED):
                found = {method: known.contrast(rows[method], known.baseline) for method in ORDERED}
                order = sorted(ORDERED, key=lambda method: -found[method]["estimate"])
                lines.append(
                    {"network": network, "load": float(found[LOCAL]["link_models"]), "order": order}
                )
    return lines


def resets_against_local(evidence: Evidence, names: Mapping[str, str]) -> pd.DataFrame:
    """What error reset by blocks loses more than local steps at the same load of a link, by
    network.

    Columns: network, experiment, estimate, low, high (95 %), standard_error; a positive estimate is
        a loss.
    """
    lines = []
    for name, network in names.items():
        known = evidence.experiment(name)
        rows = rows_at_one_load(known) if known else {}
        found = (
            difference(known.frames, rows[RESET], rows[LOCAL])
            if known and {RESET, LOCAL} <= rows.keys()
            else None
        )
        if found is not None:
            low, high = found.interval()
            line = {"network": network, "experiment": name, "standard_error": found.standard_error}
            lines.append(line | {"estimate": -found.estimate, "low": -high, "high": -low})
    return pd.DataFrame(
        lines, columns=["network", "experiment", "estimate", "low", "high", "standard_error"]
    )


def other_networks(evidence: Evidence) -> Answer | None:
    """Question 9: error reset against everything sent and against local steps, on each kind of
    network that was run."""
    shares = shares_lost(evidence)
    run = shares.groupby("network")["method"].agg(set)
    kinds = [kind for kind in KINDS if {RESET, LOCAL} <= run.get(kind.network, set())]
    if len(kinds) < 2:
        return None
    parts = []
    for kind in kinds:
        known = evidence[kind.experiment]
        named = {
            "network": kind.network,
            "margin": known.frames.experiment.margin,
            "experiment": kind.experiment,
        }
        for pair in kind.asked(known):
            form = str(known.frames.by_row.loc[pair[0], "error_compressor.kind"])
            parts.append((kind.experiment, [pair], named | {"form": form}))
    frame = evidence.contrasts(parts)
    losses, locals_ = frame.iloc[::2], frame.iloc[1::2]
    shown = locals_[locals_["verdict"] != NOT_CLAIMED].head(6)
    telling = shares[shares["tells"]]
    losses_by_network = losses_at_one_load(evidence, IMAGES)
    apart = resets_against_local(evidence, IMAGES)
    with_text = resets_against_local(evidence, {**IMAGES, GPT: "GPT"})
    numbers = {
        "kinds": len(kinds),
        "blocks": locals_.loc[locals_["form"] == "block", "network"].tolist(),
        "shown": int((losses["verdict"] == LESS).sum()),
        "local": locals_[["network", "verdict"]].to_dict("records"),
        "experiments": [f"`{name}`" for name in losses["experiment"]],
        "topk": evidence.contrasts([(RESIDUAL, [("mcser_topk", "local_sgd-24")], {})]).to_dict(
            "records"
        ),
        "missing": [kind.network for kind in KINDS if kind not in kinds],
        "left_out": [name for name in locals_["network"] if name not in set(shown["network"])],
        "order": agreement(losses_by_network[list(ORDERED)]),
        "sizes": (losses_by_network["parameters"].min(), losses_by_network["parameters"].max()),
        "loads": (losses_by_network["link_models"].min(), losses_by_network["link_models"].max()),
        "at_one_load": losses_by_network.to_dict("records"),
        "text": losses_at_one_load(evidence, {GPT: "GPT"}).to_dict("records"),
        "apart": combined(apart["estimate"], apart["standard_error"]) if len(apart) > 1 else None,
        "elsewhere": orders_at_other_loads(evidence),
        "largest": float(apart["estimate"].max()) if len(apart) else math.nan,
        "next": float(apart["estimate"].nlargest(2).iloc[-1]) if len(apart) > 1 else math.nan,
        "num_behind": int((with_text["estimate"] > 0).sum()),
        "num_compared": len(with_text),
        "spread": spread_between_kinds(telling),
        "telling": telling["network"].nunique(),
        **_norms(evidence),
    }
    return Answer(frame, numbers, _by_kind(shares), rows=shown)


def _norms(evidence: Evidence) -> dict[str, Any]:
    """What the convolutions lose with another normalisation: the most that statistics move it, and
    with group norm."""
    pairs = [(KINDS[1].rows[method], "sgd") for method in (RESET, LOCAL)]
    parts = ((name, pairs, {"experiment": name}) for name in (CONVOLUTIONS, *STATISTICS))
    lost = evidence.contrasts(parts).pivot(index="experiment", columns="row", values="estimate")
    moved = lost.reindex(STATISTICS) - lost.reindex([CONVOLUTIONS]).squeeze()
    grouped = evidence.contrasts(
        [(GROUP_NORM, [*pairs, (KINDS[1].rows[TOP_K], "sgd")], {})]
    ).to_dict("records")
    all_sent = [
        known.frames.done("sgd").mean()
        for name in (GROUP_NORM, CONVOLUTIONS)
        if (known := evidence.experiment(name))
    ]
    return {"moved": float(moved.abs().max().max()), "grouped": grouped, "all_sent": all_sent}


COLOURS = {
    RESET: FAMILIES["error reset"][0], LOCAL: FAMILIES["local steps"][0], TOP_K: FAMILIES["error feedback"][0],
    POWERSGD: "#8A3FA0", OUTER: "#7B4B2A",
}  # fmt: skip


def _by_kind(shares: pd.DataFrame) -> Figure:
    """A line for each kind of network, a mark for each method at the share that it loses."""
    names = dict(zip(shares["network"], shares["tells"], strict=True))
    figure, (axes,) = new_figure(0.75 + 0.3 * len(names))
    for number, (method, colour) in enumerate(COLOURS.items()):
        own = shares[shares["method"] == method]
        if len(own):
            height = np.array([list(names).index(name) for name in own["network"]]) + 0.14 * (
                number - 2
            )
            ends = [own["share"] - own["low"], own["high"] - own["share"]]
            axes.errorbar(
                own["share"], height, xerr=ends, fmt="o", color=colour, label=method, elinewidth=0.8
            )
    axes.set_yticks(
        range(len(names)), [name if tells else f"({name})" for name, tells in names.items()]
    )
    axes.invert_yaxis()
    axes.axvline(0, **GREY)
    axes.axvline(1, color="#777777", linewidth=0.8, linestyle="--")
    axes.set_xlabel("share lost of what can be lost: 0 is everything sent, 1 a worker alone")
    legend_beside(axes)
    return figure
