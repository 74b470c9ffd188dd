"""Questions on how the method works: its levels, its budget, its resets and its compressors."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cser_bench.report.plotting import GREY, legend_beside, new_figure
from cser_bench.report.questions.evidence import Answer, Compared, Evidence
from cser_bench.report.questions.losses import MOST_ROWS

RULES = {
    "dropped": "dropped",
    "feedback": "error feedback",
    "reset": "error reset",
}
"""What is done with what a compressor does not send, as tables name it."""

SHARES = {
    0.0: "nothing",
    0.25: "a quarter",
    0.5: "half",
    0.75: "three quarters",
}
"""Shares of a budget that compressed updates have, in words."""

COLOURS = ("#1A5FD0", "#C23B00", "#1C8C4B", "#8A3FA0")


def compared_pairs(known: Compared) -> Answer:
    """Questions 11, 21 and 24: the pairs that an experiment's spec names, in a table, and those of
    the first line."""
    pairs = [pair for pair in known.about.pairs if known.has(pair.row, pair.reference)]
    frame = known.contrasts_of((pair.row, pair.reference) for pair in pairs)
    names = [pair.called or label for pair, label in zip(pairs, frame["label"], strict=True)]
    frame["label"] = names
    lines = [
        line | {"headline": pair.headline}
        for pair, line in zip(pairs, frame.to_dict("records"), strict=True)
        if pair.headline
    ]
    return Answer(
        frame,
        {
            "headlines": lines,
            "note": known.about.note,
        },
    )


def how_to_share_a_budget(evidence: Evidence) -> Answer:
    """Question 12: every split of one budget among H, R1 and R2, not the best."""
    study = evidence["levels"]
    rows: Any = study.frames.by_row
    ratio = study.frames.experiment.main_ratio
    momentum = study.value(study.row("blocks"), "momentum")
    families = rows["algorithm"].map(study.frames.experiment.families)
    is_split = families.isin(("error reset", "local steps"))
    is_split &= (rows["ratio"] == ratio) & (rows["momentum"] == momentum)
    frame = study.contrasts_of((row, study.baseline) for row in rows.index[is_split])
    settings = rows.loc[frame["row"]]
    intervals = settings["reset_interval"].fillna(settings["sync_interval"])
    frame["reset_interval"] = intervals.to_numpy()
    frame["update_share"] = (ratio / settings["gradient_compressor.ratio"]).fillna(0.0).to_numpy()
    splits = frame[frame["update_share"] < 1]
    best = frame["estimate"].max()
    worst = splits["estimate"].min()
    without_resets = (settings["error_compressor.kind"] == "zero").to_numpy()
    numbers = {
        "splits": len(splits),
        "best": best,
        "worst": worst,
        "alone": frame.loc[without_resets, "estimate"].min(),
        "apart": best - worst,
        "width": float((splits["high"] - splits["low"]).median()),
    }
    return Answer(frame, numbers, _splits(splits))


def _splits(frame: pd.DataFrame) -> Figure:
    figure, (axes,) = new_figure(1.4)
    for (share, name), colour in zip(SHARES.items(), COLOURS, strict=True):
        lines = frame[frame["update_share"] == share].sort_values("reset_interval")
        axes.errorbar(
            lines["reset_interval"] * (1 + 0.09 * (share * 4 - 1.5)),  # beside one another
            100 * lines["estimate"],
            50 * (lines["high"] - lines["low"]),
            fmt="o",
            color=colour,
            label=name,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(
        [
            1,
            4,
            16,
            64,
            256,
        ],
        [
            "1",
            "4",
            "16",
            "64",
            "256",
        ],
    )
    axes.set(xlabel="steps between resets, H", ylabel="points against SGD")
    axes.axhline(0, **GREY)
    legend_beside(axes, "of the budget, for C2")
    return figure


def why_resets_help(evidence: Evidence) -> Answer:
    """Question 15: the declared contrasts by blocks and top-k; beside them the study that changed
    only the rule."""
    quoted = evidence["reference"]
    study = evidence["rules"]
    compressors = study.about.compressors
    frame = study.contrasts_of((each.reset, each.feedback) for each in compressors)
    frame["label"] = frame["row"].map({each.reset: each.compressor for each in compressors})
    [blocks, topk] = quoted.pairs(("blocks", "feedback_blocks"), ("topk", "feedback"))
    bounds = study.pairs(("floor", "baseline"))
    numbers = {
        "elsewhere": evidence.elsewhere(evidence.other_networks, ("topk", "feedback")),
        "blocks": quoted.contrast(*blocks),
        "topk": quoted.contrast(*topk),
        "study": study.regime,
        "alone": study.contrast(*bounds[0])["estimate"] if bounds else None,
        "most_apart": (frame["learning_rate"] / frame["other_rate"]).max(),
    }
    return Answer(frame, numbers, rows=frame.head(MOST_ROWS))


def is_the_error_ever_zero(evidence: Evidence) -> Answer:
    """Question 16: how much of the error a reset takes, and how far workers are apart at the scores
    of a run."""
    study = evidence["levels"]
    rows: Any = study.frames.by_row
    ratios = rows["error_compressor.ratio"]
    blocks = study.row("blocks")
    resets = rows.loc[study.rows_of_family("error reset")]
    resets = resets[resets["ratio"] == study.frames.experiment.main_ratio]
    scores = study.frames.scores
    scores = scores[scores["row"].isin(resets.index) & (scores["step"] > 0)]
    is_due = scores["step"] % scores["row"].map(rows["reset_interval"]).fillna(1) == 0
    scores = scores.assign(at_reset=is_due & scores["row"].map(ratios).notna())
    means = scores.groupby(["row", "step", "at_reset"])["worker_distance"].mean().reset_index()
    is_whole = means["row"].map(ratios) == 1
    distances = means[means["row"] == blocks].sort_values("step")["worker_distance"]
    numbers = {
        "ratio": ratios[blocks],
        "kept": 1 - 1 / ratios[blocks],
        "whole_at_reset": int((is_whole & means["at_reset"]).sum()),
        "whole": int(is_whole.sum()),
        "largest": distances.max(),
        "last": distances.iloc[-1],
    }
    return Answer(means, numbers, _distances(means, _ends_of_the_range(resets, blocks)))


def _ends_of_the_range(resets: Any, blocks: str | None) -> dict[str, str]:
    """By row what a figure calls it: one without resets, and of those with the compressor of the
    updates that `blocks` has the one with the most resets, `blocks` itself, and the fewest."""
    names = {}
    is_alike = resets["momentum"] == resets.loc[blocks, "momentum"]
    for row in resets.index[is_alike & (resets["error_compressor.kind"] == "zero")]:
        names[str(row)] = "no resets"
    ratio = resets.loc[blocks, "gradient_compressor.ratio"]
    alike = resets[is_alike & (resets["gradient_compressor.ratio"] == ratio)]
    alike = alike[alike["error_compressor.kind"] != "zero"]
    intervals = alike["reset_interval"]
    for row in dict.fromkeys((intervals.idxmin(), blocks, intervals.idxmax())):
        interval, r1 = alike.loc[row, ["reset_interval", "error_compressor.ratio"]]
        names[str(row)] = f"H = {interval:g}, R1 = {r1:g}"
    return names


def _distances(means: pd.DataFrame, names: dict[str, str]) -> Figure:
    figure, (axes,) = new_figure(1.35)
    for (row, name), colour in zip(
        names.items(), ("#999999", "#C23B00", "#1A5FD0", "#1C8C4B"), strict=False
    ):
        lines = means[means["row"] == row].sort_values("step")
        axes.plot(
            lines["step"],
            lines["worker_distance"],
            color=colour,
            label=name,
        )
    axes.set(xlabel="step", ylabel="distance", ylim=(0, None))
    legend_beside(axes)
    return figure


def which_compressors_work(evidence: Evidence) -> Answer:
    """Question 17: each compressor under each rule for what is not sent, as differences to SGD."""
    study = evidence["rules"]
    tables = []
    for each in study.about.compressors:
        for key, rule in RULES.items():
            lines = study.contrasts_of([(getattr(each, key), study.baseline)])
            tables.append(lines.assign(compressor=each.compressor, rule=rule))
    frame = pd.concat([table for table in tables if len(table)], ignore_index=True)
    wide = frame.pivot(index="compressor", columns="rule", values="estimate")
    resets = frame[frame["rule"] == RULES["reset"]].set_index("compressor")
    shown = wide.loc[frame["compressor"].unique()].join(resets[["models_sent", "link_models"]])
    by_loss = resets.reset_index().sort_values("estimate")
    first = study.about.compressors[0].compressor
    numbers = {
        "best": by_loss.iloc[-1],
        "worst": by_loss.iloc[0],
        "feedback": {
            "compressor": first,
            "estimate": wide.loc[first, RULES["feedback"]],
        },
        "baseline": study.value(study.baseline, "label"),
    }
    return Answer(frame, numbers, rows=shown.reset_index().head(MOST_ROWS))
