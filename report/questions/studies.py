"""Questions on how the method works: its levels, its budget, resets, compressors, momentum, and the released code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from report.frame import JUDGED
from report.plotting import FAMILIES, end_labels, new_figure
from report.questions.evidence import TWO_LEVEL, Answer, Compared, Evidence, asked_of

BOTH, BOTH_CSER = "mcser-h16-r1_12-r2_192", "cser-h16-r1_12-r2_192"
LEVELS = {
    "mcser-c1_zero": (BOTH, "M-CSER, C1 = 0 (no resets)"),
    "cser_pl-h8-r1_12": (BOTH, "M-CSER, C2 = 0 (resets alone)"),
    "mcser-h1-r1_192-r2_192": (BOTH, "M-CSER, H = 1 (reset each step)"),
    "local_sgd-96": (BOTH, "local SGD (C2 = 0, R1 = 1)"),
    "cser-c1_zero": (BOTH_CSER, "CSER, C1 = 0 (no resets)"),
    "cser-c2_zero": (BOTH_CSER, "CSER, C2 = 0 (resets alone)"),
}
KINDS = {
    "block": "blocks", "random_k": "random-k", "top_k": "top-k", "qsgd": "QSGD", "sign": "sign",
    "quantised1": "sign in two stages", "quantised4": "4 bits in two stages",
}  # fmt: skip
RULES = {"drop": "dropped", "feedback": "error feedback", "reset": "error reset"}
RESET_PAIRS = {"mcser_block-96": "ef_block-96", "mcser-96": "ef_topk-96"}
FAMILY = ("cser", "mcser", "csea", "cser_pl")


@asked_of(TWO_LEVEL, BOTH, "mcser-c1_zero", "cser_pl-h8-r1_12")
def are_both_levels_needed(study: Compared) -> Answer:
    """Question 11: each level left out, at equal bits, beside both levels."""
    frame = study.contrasts_of((row, both) for row, (both, _) in LEVELS.items())
    frame["label"] = [LEVELS[row][1] for row in frame["row"]]
    by_row = frame.set_index("row")["estimate"]
    return Answer(frame, {"no_reset": by_row["mcser-c1_zero"], "no_update": by_row["cser_pl-h8-r1_12"]})


@asked_of(TWO_LEVEL, "sgd", BOTH, "mcser-c1_zero")
def how_to_share_a_budget(study: Compared) -> Answer:
    """Question 12: every split of one budget among H, R1 and R2, not the best."""
    rows = study.frames.rows
    mine = rows.loc[(rows["ratio"] == 96) & rows["row"].str.match(r"(mcser|cser_pl)-|local_sgd"), "row"]
    frame = study.contrasts_of((row, "sgd") for row in mine)
    settings = study.frames.by_row.loc[frame["row"]]
    frame["reset_interval"] = settings["reset_interval"].fillna(settings["sync_interval"]).to_numpy()
    frame["update_share"] = (96 / settings["gradient_compressor.ratio"]).fillna(0.0).to_numpy()
    by_update = frame[frame["update_share"] < 1]
    numbers = {
        "splits": len(frame),
        "best": frame["estimate"].max(),
        "worst": by_update["estimate"].min(),
        "alone": frame.loc[frame["row"] == "mcser-c1_zero", "estimate"].min(),
        "apart": frame["estimate"].max() - by_update["estimate"].min(),
        "width": float((by_update["high"] - by_update["low"]).median()),
    }
    return Answer(frame, numbers, _splits(by_update))


def _splits(frame: pd.DataFrame) -> Figure:
    figure, (axes,) = new_figure(1.4)
    names = {0.0: "nothing", 0.25: "a quarter", 0.5: "half", 0.75: "three quarters"}
    for (share, name), colour in zip(names.items(), ("#1A5FD0", "#C23B00", "#1C8C4B", "#8A3FA0"), strict=True):
        own = frame[frame["update_share"] == share].sort_values("reset_interval")
        x = own["reset_interval"] * (1 + 0.09 * (share * 4 - 1.5))
        axes.errorbar(x, 100 * own["estimate"], 50 * (own["high"] - own["low"]), fmt="o", color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
    axes.set_xlabel("steps between resets, H")
    axes.set_ylabel("points against SGD")
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.legend(title="of the budget, for C2", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def why_resets_help(evidence: Evidence) -> Answer | None:
    """Question 15: the declared contrasts by blocks and top-k; beside them the study that changed only the rule."""
    judged, study = evidence.experiment(JUDGED), evidence.experiment("study_rules")
    if judged is None or study is None or not judged.has(*RESET_PAIRS, *RESET_PAIRS.values()):
        return None
    blocks, topk = (judged.contrast(row, reference) for row, reference in RESET_PAIRS.items())
    frame = study.contrasts_of((f"{kind}-reset", f"{kind}-feedback") for kind in KINDS)
    frame["label"] = frame["row"].str.removesuffix("-reset").map(KINDS)
    numbers = {"blocks": blocks, "topk": topk, "regime": judged.regime, "study": study.regime}
    numbers |= {"most_apart": (frame["learning_rate"] / frame["other_rate"]).max()}
    return Answer(frame, numbers, rows=frame.head(6))


@asked_of(TWO_LEVEL, BOTH)
def is_the_error_ever_zero(study: Compared) -> Answer:
    """Question 16: how much of the error a reset takes, and how far workers are apart at the scores of a run."""
    rows: Any = study.frames.by_row
    family = [row for row in rows.index if rows.loc[row, "algorithm"] in FAMILY and rows.loc[row, "ratio"] == 96]
    scores = study.frames.scores[study.frames.scores["row"].isin(family) & (study.frames.scores["step"] > 0)]
    scores = scores.assign(interval=scores["row"].map(rows["reset_interval"]).fillna(1))
    scores["at_reset"] = (scores["step"] % scores["interval"] == 0) & scores["row"].map(
        rows["error_compressor.ratio"]
    ).notna()
    means = scores.groupby(["row", "step", "at_reset"])["worker_distance"].mean().reset_index()
    whole = means["row"].map(rows["error_compressor.ratio"]) == 1
    own = means[means["row"] == BOTH].sort_values("step")
    numbers = {
        "ratio": rows.loc[BOTH, "error_compressor.ratio"],
        "kept": 1 - 1 / rows.loc[BOTH, "error_compressor.ratio"],
        "whole_at_reset": int((whole & means["at_reset"]).sum()),
        "whole": int(whole.sum()),
        "largest": own["worker_distance"].max(),
        "last": own["worker_distance"].iloc[-1],
    }
    names = {
        "mcser-c1_zero": "no resets", "mcser-h1-r1_192-r2_192": "H = 1, R1 = 192", BOTH: "H = 16, R1 = 12",
        "mcser-h192-r1_1-r2_192": "H = 192, R1 = 1",
    }  # fmt: skip
    return Answer(means, numbers, _distances(means, names))


def _distances(means: pd.DataFrame, names: dict[str, str]) -> Figure:
    figure, (axes,) = new_figure(1.35)
    colours = ["#999999", "#C23B00", "#1A5FD0", "#1C8C4B"]
    for colour, (row, name) in zip(colours, names.items(), strict=True):
        own = means[means["row"] == row].sort_values("step")
        axes.plot(own["step"], own["worker_distance"], color=colour, label=name)
    axes.set_xlabel("step")
    axes.set_ylim(0, None)
    axes.set_ylabel("distance")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


@asked_of("study_rules", "sgd", "block-feedback", "block-reset")
def which_compressors_work(study: Compared) -> Answer:
    """Question 17: each compressor under each rule for what is not sent, as differences to SGD."""
    frame = study.contrasts_of((f"{kind}-{rule}", "sgd") for kind in KINDS for rule in RULES)
    named = frame["row"].str.split("-", expand=True)
    frame["compressor"], frame["rule"] = named[0].map(KINDS), named[1].map(RULES)
    wide = frame.pivot(index="compressor", columns="rule", values="estimate")
    resets = frame[frame["rule"] == RULES["reset"]].set_index("compressor")
    shown = wide.loc[frame["compressor"].unique()].join(resets[["models_sent", "link_models"]]).reset_index()
    shown = shown[shown["compressor"] != KINDS["random_k"]]  # much as blocks; the answer's first line has it
    ends = resets.reset_index().sort_values("estimate")
    feedback = wide.loc[KINDS["block"], RULES["feedback"]]
    return Answer(frame, {"best": ends.iloc[-1], "worst": ends.iloc[0], "block_feedback": feedback}, rows=shown)


@asked_of("study_momentum", "cser-m0", "mcser-m0.9", "sgd-m0", "sgd")
def does_momentum_help(study: Compared) -> Answer:
    """Question 21: M-CSER over momenta, and SGD without momentum beside SGD with it."""
    pairs = [(f"mcser-m{momentum}", "cser-m0") for momentum in ("0.5", "0.9", "0.95")]
    frame = study.contrasts_of([*pairs, ("sgd", "sgd-m0")])
    by_row = frame.set_index("row")
    return Answer(frame, {"gain": by_row.loc["mcser-m0.9"], "sgd": by_row.loc["sgd"]})


@asked_of("study_released", "written", "released")
def released_or_written(study: Compared) -> Answer:
    """Question 24: the released code's switches, one at a time and all together, beside the method as written."""
    rows = [row for row in study.frames.rows["row"] if "released" in row]
    frame = study.contrasts_of((row, "written") for row in rows)
    frame["label"] = frame["label"].str.removeprefix("M-CSER, ")
    return Answer(frame, {"all": frame.set_index("row").loc["released"]})


WIDTH, SKEW = "width", "skew"
SET_UPS: dict[str, dict[str, str]] = {
    WIDTH: {"6,370": "study_width_8", "25,450": TWO_LEVEL, "101,770": "study_width_128"},
    SKEW: {
        "equal shares": TWO_LEVEL, "Dirichlet 10": "study_skew_dirichlet_10", "Dirichlet 1": "study_skew_dirichlet_1",
        "Dirichlet 0.1": "study_skew_dirichlet_0.1", "two classes": "study_skew_class_shards",
    },
    "workers": {
        "2": "study_workers_2", "4": "study_workers_4", "8": TWO_LEVEL, "16": "study_workers_16",
        "32": "study_workers_32",
    },
    "samples": {
        "2 x 16": "study_weak_scaling_2", "4 x 16": "study_weak_scaling_4", "8 x 16": TWO_LEVEL,
        "16 x 16": "study_weak_scaling_16",
    },
}  # fmt: skip
"""By what changes: the experiments, in order, and what each is called on an axis."""

FOLLOWED = {BOTH: "M-CSER, blocks", "local_sgd-96": "local SGD", "ef_topk-96": "EF-SGD top-k"}
ALWAYS = (BOTH, "local_sgd-96")
COLOURS = dict(
    zip(FOLLOWED, (FAMILIES[name][0] for name in ("error reset", "local steps", "error feedback")), strict=True)
)


def over_set_ups(evidence: Evidence, *changed: str) -> Answer | None:
    """Differences to the same set-up's SGD over what changes, with a panel for each; None where one end is missing."""
    tables, base = [], evidence.experiment(TWO_LEVEL)
    for what in changed:
        found = {name: evidence.experiment(each) for name, each in SET_UPS[what].items()}
        ends = [found[name] for name in (next(iter(found)), next(reversed(found)))]
        if any(each is None or not each.has("sgd", BOTH) for each in ends):
            return None
        followed = FOLLOWED if what in (WIDTH, SKEW) else ALWAYS
        for name, each in found.items():
            if each:
                own = each.contrasts_of((row, "sgd") for row in followed)
                tables.append(own.assign(what=what, at=name, method=own["row"].map(FOLLOWED)))
    frame = pd.concat(tables, ignore_index=True)
    by_row = {row: group for row, group in frame[frame["what"] == changed[0]].groupby("row")}
    numbers = {
        "first": by_row[BOTH].iloc[0],
        "last": by_row[BOTH].iloc[-1],
        "local_last": by_row["local_sgd-96"].iloc[-1],
        "topk_last": by_row["ef_topk-96"].iloc[-1] if "ef_topk-96" in by_row else None,
        "regime": base.regime if base else {},
    }
    return Answer(frame, numbers, _set_ups(frame, changed))


AXES = {
    WIDTH: "parameters of the network", SKEW: "how labels are shared out",
    "workers": "workers, 128 images a step in all",
    "samples": "workers x images, 3,000 samples a worker",
}  # fmt: skip


def _set_ups(frame: pd.DataFrame, changed: tuple[str, ...]) -> Figure:
    figure, panels = new_figure(1.45, len(changed))
    for axes in panels[1:]:
        axes.sharey(panels[0])
    for axes, what in zip(panels, changed, strict=True):
        names, ends = list(SET_UPS[what]), []
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.3, len(names) * (1.3 if axes is panels[-1] else 1) - 0.7)
        for number, (row, name) in enumerate(FOLLOWED.items()):
            own = frame[(frame["row"] == row) & (frame["what"] == what)]
            if len(own):
                x = np.array([names.index(at) for at in own["at"]], dtype=float) + 0.07 * (number - 1)
                middle, half = 100 * own["estimate"].to_numpy(), 50 * (own["high"] - own["low"]).to_numpy()
                axes.errorbar(x, middle, half, fmt="o-", color=COLOURS[row])
                ends.append((len(names) - 0.9, float(middle[-1]), name, COLOURS[row]))
        axes.set_xlabel(AXES[what])
        axes.axhline(0, color="#555555", linewidth=0.8)
        if axes is panels[-1]:
            end_labels(axes, ends)
    panels[0].set_ylabel("points against SGD")
    return figure


def over_width(evidence: Evidence) -> Answer | None:
    """Question 8: networks from fewer parameters than samples to four times as many."""
    return over_set_ups(evidence, WIDTH)


def over_skew(evidence: Evidence) -> Answer | None:
    """Question 18: from equal shares to two classes a worker."""
    return over_set_ups(evidence, SKEW)


def over_workers(evidence: Evidence) -> Answer | None:
    """Question 19: more workers on the same data, and more workers with more data."""
    return over_set_ups(evidence, "workers", "samples")
