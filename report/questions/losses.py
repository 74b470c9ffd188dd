"""Questions on what is lost: by method, on other tasks, by the relatives, and against local SGD. Contrasts judge."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from report.plotting import FAMILIES, colour_of, family_of, new_figure
from report.questions.evidence import LONG, Answer, Compared, Evidence, with_intervals
from report.statistics import BETTER, LESS, MORE, NOT_TOLD

LINK_MODELS = 520.0
"""Models on a worker's link in a run of the long experiment, at most, of the rows that are set side by side."""

OTHER_RATE = "rates differ"
"""Said in place of a verdict on two methods whose rates differ: a difference might be the rate's."""

SHOWN = ("mcser-96", "cser-96", "local_sgd-96", "qsparse-96", "ef_topk-96", "diloco-96")
"""Rows of question 1's table."""

TEXTS = {
    "cmudict": "letters to phones, SGD",
    "cmudict_adamw": "letters to phones, AdamW",
    "kjv_es": "English to Spanish, AdamW",
}


def what_is_lost(evidence: Evidence) -> Answer | None:
    """Question 1: differences to SGD at the main ratio, judged where they were declared, and the accuracies behind."""
    long = evidence.experiment(LONG)
    if long is None or not long.has(long.baseline, "mcser-96"):
        return None
    declared = [each.row for each in long.frames.contrasts if each.kind == "non-inferiority"]
    names = [row for row in declared or SHOWN if long.has(row)]
    judged = pd.DataFrame([long.contrast(row, long.baseline) for row in names])
    judged["label"] = long.frames.by_row.loc[names, "label"].to_numpy()
    judged["score"] = [long.frames.done(row).mean() for row in names]
    numbers = {
        "shown": int((judged["verdict"] == LESS).sum()),
        "more": int((judged["verdict"] == MORE).sum()),
        "judged": len(declared),
        "mcser": long.contrast("mcser-96", long.baseline),
        "ceiling": float(long.frames.done(long.baseline).mean()),
        "floor": float(long.frames.done("alone").mean()),
        "regime": long.regime,
    }
    rows = judged[judged["row"].isin(SHOWN)].sort_values("estimate", ascending=False)
    return Answer(judged, numbers, None, with_intervals(rows))


def loss_at_one_link(long: Compared) -> tuple[pd.DataFrame, Figure]:
    """By method the row that loads a link most, but no more than `LINK_MODELS`: README's figure, and its numbers."""
    rows = long.frames.rows
    mine = rows[rows["base"].isna() & (rows["rule"] == "held_out") & (rows["link_models"] > 250)]
    mine = mine[mine["link_models"] <= LINK_MODELS].sort_values("link_models")
    mine = mine.groupby("label", sort=False).tail(1)
    found = pd.DataFrame([long.less(row, long.baseline) for row in mine["row"]])
    found["algorithm"] = [
        "sparta" if row.startswith("sparta") else name for row, name in zip(mine["row"], mine["algorithm"], strict=True)
    ]
    found = found.sort_values("estimate", ignore_index=True)
    return found, _dots(found, long.frames.experiment.margin or 0.0)


def _dots(found: pd.DataFrame, margin: float) -> Figure:
    """Differences to SGD with their intervals, sorted; those beyond two points are drawn at the edge, with a number."""
    figure, (axes,) = new_figure(0.5 + 0.21 * len(found))
    edge = -2.0
    axes.axvspan(-100 * margin, 0, color="#e8f1ea", zorder=0)
    axes.axvline(0, color="#555555", linewidth=0.8)
    for place, line in enumerate(found.to_dict("records")):
        colour, value = colour_of(line["algorithm"]), 100 * line["estimate"]
        if value < edge:
            axes.plot([edge], [place], "<", color=colour)
            axes.annotate(
                f"{value:.1f}".replace("-", "−"), (edge, place), (6, 0), textcoords="offset points", va="center"
            )
            continue
        axes.plot([100 * line["low"], 100 * line["high"]], [place, place], color=colour)
        axes.plot([value], [place], "o", color=colour)
    near = int((found["estimate"] > -margin).sum())
    said = f"With at most {LINK_MODELS:.0f} models on a link, {near} of {len(found)} methods lose under half a point"
    said += " in the mean"
    figure.suptitle(said, x=0.01, ha="left", fontsize=9, fontweight="bold")
    families = dict.fromkeys(family_of(name) for name in found["algorithm"][::-1])
    handles = [axes.plot([], [], "o", color=FAMILIES[name][0], label=name)[0] for name in families if name in FAMILIES]
    axes.legend(handles=handles, loc="lower right")
    axes.set_yticks(range(len(found)), [f"{x.label}, ratio {x.ratio:.0f}" for x in found.itertuples()])
    axes.set_xlim(edge - 0.05, 1.0)
    axes.set_xlabel(
        "points of accuracy against SGD that sends everything; shaded: less than the margin of half a point"
    )
    axes.grid(axis="y", visible=False)
    return figure


def other_tasks(evidence: Evidence) -> Answer | None:
    """Question 10: text, by the declared contrasts of its experiments; without them its differences are not judged."""
    found = {name: each for name in TEXTS if (each := evidence.experiment(name))}
    if not found:
        return None
    lines = []
    for name, each in found.items():
        rows = [row for row in each.frames.rows["row"] if row.endswith("-8") and each.has(row)]
        local = next((row for row in rows if row.startswith("local")), None)
        pairs = [(row, each.baseline) for row in rows]
        pairs += [(row, local) for row in rows if local and row in ("mcser-8", "cser-8") and row != local]
        pairs = [(x.row, x.reference) for x in each.frames.contrasts] or pairs
        for row, reference in pairs:
            own, other = each.frames.by_row.loc[row], each.frames.by_row.loc[reference]
            line = each.contrast(row, reference) | {"task": TEXTS[name], "label": own["label"], "other": other["label"]}
            lines.append(line | {"rate": own["learning_rate"], "other_rate": other["learning_rate"]})
    frame = pd.DataFrame(lines)
    apart = (frame["kind"] == "superiority") & (frame["rate"] != frame["other_rate"])
    frame.loc[apart & (frame["verdict"] != NOT_TOLD), "verdict"] = OTHER_RATE
    losses, against = frame[frame["kind"] == "non-inferiority"], frame[frame["kind"] == "superiority"]
    numbers = {
        "judged": len(losses),
        "shown": int((losses["verdict"] == LESS).sum()),
        "better": int((against["verdict"] == BETTER).sum()),
        "against": len(against),
        "names": list(found),
    }
    shown = frame[frame["row"].str.contains("cser")].sort_values("row", ascending=False, kind="stable")
    shown = shown.sort_values("task", kind="stable", key=lambda tasks: tasks.map(list(TEXTS.values()).index))
    return Answer(frame, numbers, None, with_intervals(shown.head(6)))


def the_relatives(evidence: Evidence) -> Answer | None:
    """Question 23: the relatives' differences to SGD; DiLoCo's is a contrast, and so is that of its outer momentum."""
    long = evidence.experiment(LONG)
    names = ("dpsgd", "powersgd_rank_1", "diloco-96", "deep_squeeze-96", "choco-96", "ef21-96")
    if long is None or not long.has("diloco-96"):
        return None
    frame = pd.DataFrame([long.less(name, long.baseline) for name in names if long.has(name)])
    diloco = long.contrast("diloco-96", long.baseline)
    outer = long.contrast("diloco-96", "sgd_outer") if long.has("sgd_outer") else None
    frame = frame.sort_values("estimate", ascending=False)
    numbers = {"diloco": diloco, "outer": outer, "regime": long.regime}
    return Answer(frame, numbers, None, with_intervals(frame))


def would_local_sgd_do(evidence: Evidence) -> Answer | None:
    """Question 25: the contrasts of M-CSER with local SGD, and one average at the end."""
    long = evidence.experiment(LONG)
    if long is None or not long.has("local_sgd-96", "mcser-96", "final_average"):
        return None
    pairs = [(row, "local_sgd-96") for row in ("mcser-96", "mcser_block-96")] + [("final_average", "sgd")]
    lines = []
    for row, reference in pairs:
        names = {"label": long.frames.by_row.loc[row, "label"], "other": long.frames.by_row.loc[reference, "label"]}
        lines.append(long.contrast(row, reference) | names)
    frame = pd.DataFrame(lines)
    return Answer(frame, {"regime": long.regime, "lines": frame.to_dict("records")}, None, with_intervals(frame))
