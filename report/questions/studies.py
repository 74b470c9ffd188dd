"""Questions on how the method works: its levels, its budget, resets, compressors, and where it was
run."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cser_bench.report.frame import JUDGED
from cser_bench.report.plotting import FAMILIES, GREY, end_labels, legend_beside, new_figure
from cser_bench.report.questions.evidence import (
    CONVOLUTIONS,
    DENSENET,
    GPT,
    NETWORKS,
    RESIDUAL,
    SHUFFLENET,
    TWO_LEVEL,
    Answer,
    Evidence,
)

BOTH = "mcser-h16-r1_12-r2_192"
KINDS = {
    "block": "blocks", "random_k": "random-k", "top_k": "top-k", "qsgd": "QSGD", "sign": "sign",
    "quantised1": "sign in two stages", "quantised4": "4 bits in two stages",
}  # fmt: skip
RULES = {"drop": "dropped", "feedback": "error feedback", "reset": "error reset"}
LOADS = {"study_resnet_loads": RESIDUAL, "study_gpt_text_loads": GPT}
"""Experiments at four times and at a quarter of a load of a link, and the one at that load."""
FAMILY = ("cser", "mcser", "csea", "cser_pl")


def how_to_share_a_budget(evidence: Evidence) -> Answer:
    """Question 12: every split of one budget among H, R1 and R2, not the best."""
    study = evidence[TWO_LEVEL]
    rows = study.frames.rows
    mine = rows.loc[
        (rows["ratio"] == 96) & rows["row"].str.match(r"(mcser|cser_pl)-|local_sgd"), "row"
    ]
    frame = study.contrasts_of((row, "sgd") for row in mine)
    settings = study.frames.by_row.loc[frame["row"]]
    frame["reset_interval"] = (
        settings["reset_interval"].fillna(settings["sync_interval"]).to_numpy()
    )
    frame["update_share"] = (96 / settings["gradient_compressor.ratio"]).fillna(0.0).to_numpy()
    splits = frame[frame["update_share"] < 1]
    best, worst = frame["estimate"].max(), splits["estimate"].min()
    numbers = {
        "splits": len(frame),
        "best": best,
        "worst": worst,
        "alone": frame.loc[frame["row"] == "mcser-c1_zero", "estimate"].min(),
        "apart": best - worst,
        "width": float((splits["high"] - splits["low"]).median()),
    }
    return Answer(frame, numbers, _splits(splits))


def _splits(frame: pd.DataFrame) -> Figure:
    figure, (axes,) = new_figure(1.4)
    names = {0.0: "nothing", 0.25: "a quarter", 0.5: "half", 0.75: "three quarters"}
    for (share, name), colour in zip(
        names.items(), ("#1A5FD0", "#C23B00", "#1C8C4B", "#8A3FA0"), strict=True
    ):
        own = frame[frame["update_share"] == share].sort_values("reset_interval")
        x = own["reset_interval"] * (1 + 0.09 * (share * 4 - 1.5))
        axes.errorbar(
            x,
            100 * own["estimate"],
            50 * (own["high"] - own["low"]),
            fmt="o",
            color=colour,
            label=name,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
    axes.set(xlabel="steps between resets, H", ylabel="points against SGD")
    axes.axhline(0, **GREY)
    legend_beside(axes, "of the budget, for C2")
    return figure


def why_resets_help(evidence: Evidence) -> Answer:
    """Question 15: the declared contrasts by blocks and top-k; beside them the study that changed
    only the rule."""
    judged, study = evidence[JUDGED], evidence["study_rules"]
    frame = study.contrasts_of((f"{kind}-reset", f"{kind}-feedback") for kind in KINDS)
    frame["label"] = frame["row"].str.removesuffix("-reset").map(KINDS)
    pairs = {RESIDUAL: [("mcser_topk", "ef_topk-96")], GPT: [("cser_topk-8", "ef_topk_updates-32")]}
    numbers = {
        "elsewhere": evidence.elsewhere(pairs),
        "blocks": judged.contrast("mcser_block-96", "ef_block-96"),
        "topk": judged.contrast("mcser-96", "ef_topk-96"),
        "study": study.regime,
        "alone": study.contrast("alone", study.baseline)["estimate"]
        if study.has("alone")
        else None,
        "most_apart": (frame["learning_rate"] / frame["other_rate"]).max(),
    }
    return Answer(frame, numbers, rows=frame.head(6))


def is_the_error_ever_zero(evidence: Evidence) -> Answer:
    """Question 16: how much of the error a reset takes, and how far workers are apart at the scores
    of a run."""
    frames = evidence[TWO_LEVEL].frames
    rows: Any = frames.by_row
    ratios = rows["error_compressor.ratio"]
    family = rows.index[rows["algorithm"].isin(FAMILY) & (rows["ratio"] == 96)]
    scores = frames.scores[frames.scores["row"].isin(family) & (frames.scores["step"] > 0)]
    is_due = scores["step"] % scores["row"].map(rows["reset_interval"]).fillna(1) == 0
    scores = scores.assign(at_reset=is_due & scores["row"].map(ratios).notna())
    means = scores.groupby(["row", "step", "at_reset"])["worker_distance"].mean().reset_index()
    whole = means["row"].map(ratios) == 1
    own = means[means["row"] == BOTH].sort_values("step")["worker_distance"]
    numbers = {
        "ratio": ratios[BOTH],
        "kept": 1 - 1 / ratios[BOTH],
        "whole_at_reset": int((whole & means["at_reset"]).sum()),
        "whole": int(whole.sum()),
        "largest": own.max(),
        "last": own.iloc[-1],
    }
    return Answer(means, numbers, _distances(means))


def _distances(means: pd.DataFrame) -> Figure:
    figure, (axes,) = new_figure(1.35)
    shown = {
        "mcser-c1_zero": ("no resets", "#999999"), "mcser-h1-r1_192-r2_192": ("H = 1, R1 = 192", "#C23B00"),
        BOTH: ("H = 16, R1 = 12", "#1A5FD0"), "mcser-h192-r1_1-r2_192": ("H = 192, R1 = 1", "#1C8C4B"),
    }  # fmt: skip
    for row, (name, colour) in shown.items():
        own = means[means["row"] == row].sort_values("step")
        axes.plot(own["step"], own["worker_distance"], color=colour, label=name)
    axes.set(xlabel="step", ylabel="distance", ylim=(0, None))
    legend_beside(axes)
    return figure


def which_compressors_work(evidence: Evidence) -> Answer:
    """Question 17: each compressor under each rule for what is not sent, as differences to SGD."""
    frame = evidence["study_rules"].contrasts_of(
        (f"{kind}-{rule}", "sgd") for kind in KINDS for rule in RULES
    )
    named = frame["row"].str.split("-", expand=True)
    frame["compressor"], frame["rule"] = named[0].map(KINDS), named[1].map(RULES)
    wide = frame.pivot(index="compressor", columns="rule", values="estimate")
    resets = frame[frame["rule"] == RULES["reset"]].set_index("compressor")
    shown = (
        wide.loc[frame["compressor"].unique()]
        .join(resets[["models_sent", "link_models"]])
        .reset_index()
    )
    shown = shown[
        shown["compressor"] != KINDS["random_k"]
    ]  # much as blocks; the answer's first line has it
    ends = resets.reset_index().sort_values("estimate")
    feedback = wide.loc[KINDS["block"], RULES["feedback"]]
    return Answer(
        frame,
        {"best": ends.iloc[-1], "worst": ends.iloc[0], "block_feedback": feedback},
        rows=shown,
    )


SET_UPS: dict[str, tuple[str, dict[str, str]]] = {
    "width": (
        "parameters of the network",
        {"6,370": "study_width_8", "25,450": TWO_LEVEL, "101,770": "study_width_128"},
    ),
    "skew": (
        "how labels are shared out",
        {
            "equal shares": TWO_LEVEL,
            **{f"Dirichlet {each}": f"study_skew_dirichlet_{each}" for each in ("10", "1", "0.1")},
            "two classes": "study_skew_class_shards",
        },
    ),
    "workers": (
        "workers, 128 images a step in all",
        {str(n): TWO_LEVEL if n == 8 else f"study_workers_{n}" for n in (2, 4, 8, 16, 32)},
    ),
    "samples": (
        "workers x images, 3,000 samples a worker",
        {f"{n} x 16": TWO_LEVEL if n == 8 else f"study_weak_scaling_{n}" for n in (2, 4, 8, 16)},
    ),
}  # fmt: skip
"""By what changes: what the axis says, and the experiments in order, by what each is called on
it."""

FOLLOWED = {
    BOTH: ("M-CSER, blocks", FAMILIES["error reset"][0]), "local_sgd-96": ("local SGD", FAMILIES["local steps"][0]),
    "ef_topk-96": ("EF-SGD top-k", FAMILIES["error feedback"][0]),
}  # fmt: skip
"""Rows that are followed over what changes; the last was not run with other numbers of workers."""


def _over(evidence: Evidence, *changed: str) -> Answer:
    """Differences to the same set-up's SGD over what changes, with a panel for each."""
    parts = []
    for what in changed:
        rows = list(FOLLOWED)[: 3 if what in ("width", "skew") else 2]
        pairs = [(row, "sgd") for row in rows]
        parts += [
            (experiment, pairs, {"what": what, "at": at})
            for at, experiment in SET_UPS[what][1].items()
        ]
    frame = evidence.contrasts(parts)
    frame["method"] = frame["row"].map({row: name for row, (name, _) in FOLLOWED.items()})
    ends = frame[frame["what"] == changed[0]].groupby("method")["estimate"].agg(["first", "last"])
    return Answer(frame, {"first": ends["first"], "last": ends["last"]}, _set_ups(frame, changed))


def _set_ups(frame: pd.DataFrame, changed: tuple[str, ...]) -> Figure:
    figure, panels = new_figure(1.45, len(changed))
    for axes in panels[1:]:
        axes.sharey(panels[0])
    for axes, what in zip(panels, changed, strict=True):
        said, names, ends = SET_UPS[what][0], list(SET_UPS[what][1]), []
        axes.set_xticks(range(len(names)), names)
        axes.set(xlim=(-0.3, len(names) * (1.3 if axes is panels[-1] else 1) - 0.7), xlabel=said)
        for number, (row, (name, colour)) in enumerate(FOLLOWED.items()):
            own = frame[(frame["row"] == row) & (frame["what"] == what)]
            if len(own):
                x = np.array([names.index(at) for at in own["at"]], dtype=float) + 0.07 * (
                    number - 1
                )
                middle, half = (
                    100 * own["estimate"].to_numpy(),
                    50 * (own["high"] - own["low"]).to_numpy(),
                )
                axes.errorbar(x, middle, half, fmt="o-", color=colour)
                ends.append((len(names) - 0.9, float(middle[-1]), name, colour))
        axes.axhline(0, **GREY)
        if axes is panels[-1]:
            end_labels(axes, ends)
    panels[0].set_ylabel("points against SGD")
    return figure


def over_width(evidence: Evidence) -> Answer:
    """Question 8: networks from fewer parameters than samples to four times as many."""
    pairs = {
        **{
            name: [("mcser-h16-r1_3-r2_48", "sgd")] for name in (CONVOLUTIONS, DENSENET, SHUFFLENET)
        },
        RESIDUAL: [("mcser_block-24", "sgd")],
        GPT: [("cser-8", "adamw")],
    }
    answer, loads = _over(evidence, "width"), _over_loads(evidence)
    numbers = {
        **answer.numbers,
        "elsewhere": evidence.elsewhere(pairs),
        "loads": loads.to_dict("records"),
    }
    return replace(
        answer, frame=pd.concat([answer.frame, loads], ignore_index=True), numbers=numbers
    )


def _over_loads(evidence: Evidence) -> pd.DataFrame:
    """What methods lose at four times, at once and at a quarter of a load of a link, of methods run
    at all three."""
    tables = [pd.DataFrame(columns=["link_models"])]
    for name, at_once in LOADS.items():
        known, base = evidence.experiment(name), evidence.experiment(at_once)
        if known and base and known.is_whole:
            lost = pd.concat(
                [known.losses.assign(experiment=name), base.losses.assign(experiment=at_once)]
            )
            of_three = lost.groupby("label")["row"].transform("size") == 3
            tables.append(lost[of_three].assign(network=NETWORKS[at_once]))
    return pd.concat(tables).sort_values("link_models", ascending=False)


def over_skew(evidence: Evidence) -> Answer:
    """Question 18: from equal shares to two classes a worker."""
    answer = _over(evidence, "skew")
    pairs = [("local-8", "adamw"), ("cser-8", "local-8")]
    books = evidence.contrasts((name, pairs, {}) for name in ("study_gpt_text_books", GPT))
    return replace(answer, numbers={**answer.numbers, "books": books.to_dict("records")})


def over_workers(evidence: Evidence) -> Answer:
    """Question 19: more workers on the same data, and more workers with more data."""
    return _over(evidence, "workers", "samples")
