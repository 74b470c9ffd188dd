"""Questions on how the method works: its levels, its budget, its resets and its compressors."""

from collections.abc import Hashable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cser_bench.report.plotting import GREY, legend_beside, losses_up, new_figure
from cser_bench.report.questions.evidence import Answer, Compared, Evidence, Part
from cser_bench.report.questions.losses import MOST_ROWS
from cser_bench.report.verdicts import loss, loss_interval

RULES = {"dropped": "dropped", "feedback": "error feedback", "reset": "error reset"}
"""What is done with what a compressor does not send, as tables name it."""

SHARES = {0.0: "nothing", 0.25: "a quarter", 0.5: "half", 0.75: "three quarters"}
"""Shares of a budget that compressed updates have, in words."""

COLOURS = ("#2A75DB", "#C23B00", "#004D2C", "#6A2C91")
MARKS = "os^D"


def compared_pairs(known: Compared) -> Answer:
    """Answer questions 11, 21 and 24: the pairs that an experiment's spec names.

    All are in the table, and some have a sentence before it.
    """
    pairs = []
    for pair in known.about.pairs:
        if known.has(pair.row, pair.reference):
            pairs.append(pair)
    frame = known.contrasts_of((pair.row, pair.reference) for pair in pairs)
    lines = frame.to_dict("records")
    names = []
    headlines = []
    for pair, line in zip(pairs, lines, strict=True):
        name = pair.called or line["label"]
        names.append(name)
        if pair.headline:
            line["label"] = name
            line["headline"] = pair.headline
            headlines.append(line)
    frame["label"] = names
    numbers = {"headlines": headlines, "note": known.about.note}
    return Answer(frame, numbers)


def how_to_share_a_budget(evidence: Evidence) -> Answer:
    """Answer question 12: every split of one budget among H, R1 and R2, not the best."""
    study = evidence["levels"]
    frame = _contrasts_of_splits(study)
    splits = frame[frame["update_share"] < 1]
    best = frame["estimate"].max()
    worst = splits["estimate"].min()
    without_resets = frame.pop("error_kind") == "zero"
    alone = frame.loc[without_resets, "estimate"]
    widths = splits["high"] - splits["low"]
    numbers = {
        "splits": len(splits),
        "best": study.lost(best),
        "worst": study.lost(worst),
        "alone": study.lost(alone.min()),
        "apart": best - worst,
        "width": float(widths.median()),
    }
    return Answer(frame, numbers, _splits(splits))


def _contrasts_of_splits(study: Compared) -> pd.DataFrame:
    """Return what each split of the budget loses against SGD, with how the budget is split."""
    experiment = study.frames.experiment
    rows: Any = study.frames.by_row
    ratio = experiment.main_ratio
    # Only rows with the momentum of the row that answers quote differ by the split alone.
    momentum = study.value(study.row("blocks"), "momentum")
    families = rows["algorithm"].map(experiment.families)
    is_split = families.isin(("error reset", "local steps"))
    is_split &= rows["ratio"] == ratio
    is_split &= rows["momentum"] == momentum
    frame = study.contrasts_of((row, study.baseline) for row in rows.index[is_split])
    settings = rows.loc[frame["row"]]
    # Local steps send the whole model as often as they average, and no updates.
    intervals = settings["reset_interval"].fillna(settings["sync_interval"])
    shares = ratio / settings["gradient_compressor.ratio"]
    frame["reset_interval"] = intervals.to_numpy()
    frame["update_share"] = shares.fillna(0.0).to_numpy()
    frame["error_kind"] = settings["error_compressor.kind"].to_numpy()
    return frame


def _splits(frame: pd.DataFrame) -> Figure:
    """Draw each split's difference over the steps between resets, a colour a share."""
    figure, (axes,) = new_figure(1.4)
    for (share, name), colour, shape in zip(SHARES.items(), COLOURS, MARKS, strict=True):
        lines = frame[frame["update_share"] == share]
        lines = lines.sort_values("reset_interval")
        # Marks of one interval stand beside one another.
        shift = 0.09 * (share * 4 - 1.5)
        axes.errorbar(
            lines["reset_interval"] * (1 + shift),
            -100 * lines["estimate"],
            # An error bar takes half of the width; in points that is 50 times the width in shares.
            50 * (lines["high"] - lines["low"]),
            fmt=shape,
            color=colour,
            label=name,
        )
    ticks = [1, 4, 16, 64, 256]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(xlabel="steps between resets, H", ylabel="points lost")
    losses_up(axes)
    axes.axhline(0, **GREY)
    legend_beside(axes, "of the budget, for C2")
    return figure


def why_resets_help(evidence: Evidence) -> Answer:
    """Answer question 15: the declared contrasts by blocks and by top-k.

    Beside them stands the study that changed only the rule for what is not sent.
    """
    quoted = evidence["reference"]
    study = evidence["rules"]
    compressors = study.about.compressors
    frame = study.contrasts_of((row.reset, row.feedback) for row in compressors)
    names = {row.reset: row.compressor for row in compressors}
    frame["label"] = frame["row"].map(names)
    [blocks, topk] = quoted.pairs(("blocks", "feedback_blocks"), ("topk", "feedback"))
    bounds = study.pairs(("floor", "baseline"))
    alone = None
    if bounds:
        alone = study.contrast(*bounds[0])
    rate_factors = frame["learning_rate"] / frame["other_rate"]
    numbers = {
        "elsewhere": evidence.elsewhere(evidence.other_networks, ("topk", "feedback")),
        "at_one_load": _asked_at_one_load(evidence, quoted),
        "blocks": quoted.contrast(*blocks),
        "topk": quoted.contrast(*topk),
        "study": study.regime,
        "alone": alone,
        "most_apart": rate_factors.max(),
    }
    return Answer(frame, numbers, rows=frame.head(MOST_ROWS))


def _asked_at_one_load(evidence: Evidence, quoted: Compared) -> list[dict[Hashable, Any]]:
    """Return top-k by both rules at one load of a link, on the network that answers quote.

    That is where it was declared.
    """
    loads = evidence.all_of("loads", network=quoted.about.network)
    parts: list[Part] = [
        (known, known.pairs(("topk", "feedback")), {"experiment": known.name}) for known in loads
    ]
    lines = evidence.contrasts(parts).to_dict("records")
    return [line for line in lines if isinstance(line["verdict"], str)]


def is_the_error_ever_zero(evidence: Evidence) -> Answer:
    """Answer question 16: how much of the error a reset takes, and how far workers are apart.

    That is seen at the scores of a run.
    """
    study = evidence["levels"]
    rows: Any = study.frames.by_row
    ratios = rows["error_compressor.ratio"]
    blocks = study.row("blocks")
    resets = rows.loc[study.rows_of_family("error reset")]
    resets = resets[resets["ratio"] == study.frames.experiment.main_ratio]
    means = _distances_at_scores(study, resets.index)
    # A reset that sends the whole error leaves none.
    is_whole = means["row"].map(ratios) == 1
    is_whole_at_reset = is_whole & means["at_reset"]
    of_blocks = means[means["row"] == blocks].sort_values("step")
    distances = of_blocks["worker_distance"]
    numbers = {
        "ratio": ratios[blocks],
        "kept": 1 - 1 / ratios[blocks],
        "whole_at_reset": int(is_whole_at_reset.sum()),
        "whole": int(is_whole.sum()),
        "largest": distances.max(),
        "last": distances.iloc[-1],
    }
    names = _ends_of_the_range(resets, blocks)
    return Answer(means, numbers, _distances(means, names))


def _distances_at_scores(study: Compared, names: pd.Index) -> pd.DataFrame:
    """Return how far workers are apart by row and step, and whether a reset came just before."""
    rows: Any = study.frames.by_row
    scores = study.frames.scores
    is_scored = scores["row"].isin(names)
    # Before the first step all workers are alike.
    scores = scores[is_scored & (scores["step"] > 0)]
    # CSEA has no interval among its settings: it resets at every step.
    intervals = scores["row"].map(rows["reset_interval"]).fillna(1)
    is_due = scores["step"] % intervals == 0
    has_resets = scores["row"].map(rows["error_compressor.ratio"]).notna()
    scores = scores.assign(at_reset=is_due & has_resets)
    groups = scores.groupby(["row", "step", "at_reset"])
    return groups["worker_distance"].mean().reset_index()


def _ends_of_the_range(resets: Any, blocks: str | None) -> dict[str, str]:
    """Name the rows that the figure of distances shows.

    They are one without resets, and of those that compress updates as `blocks` does the one with
    the most resets, `blocks` itself, and the one with the fewest.
    """
    names = {}
    alike = resets[resets["momentum"] == resets.loc[blocks, "momentum"]]
    has_no_resets = alike["error_compressor.kind"] == "zero"
    for row in alike.index[has_no_resets]:
        names[str(row)] = "no resets"
    ratio = resets.loc[blocks, "gradient_compressor.ratio"]
    alike = alike[~has_no_resets]
    alike = alike[alike["gradient_compressor.ratio"] == ratio]
    intervals = alike["reset_interval"]
    fewest = intervals.idxmax()
    most = intervals.idxmin()
    # One of the ends may be the row of blocks itself: each is named once.
    for row in dict.fromkeys((most, blocks, fewest)):
        interval, r1 = alike.loc[row, ["reset_interval", "error_compressor.ratio"]]
        names[str(row)] = f"H = {interval:g}, R1 = {r1:g}"
    return names


def _distances(means: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Draw how far workers are apart over the steps, a line a row."""
    figure, (axes,) = new_figure(1.35)
    colours = ("#999999", "#C23B00", "#2A75DB", "#004D2C")
    dashes = (":", "-.", "-", "--")
    for (row, name), colour, dash in zip(names.items(), colours, dashes, strict=False):
        lines = means[means["row"] == row]
        lines = lines.sort_values("step")
        axes.plot(lines["step"], lines["worker_distance"], color=colour, linestyle=dash, label=name)
    axes.set(xlabel="step", ylabel="distance", ylim=(0, None))
    legend_beside(axes)
    return figure


def which_compressors_work(evidence: Evidence) -> Answer:
    """Answer question 17: each compressor under each rule for what is not sent.

    Its numbers are differences to SGD.
    """
    study = evidence["rules"]
    tables = []
    for rows in study.about.compressors:
        for key, rule in RULES.items():
            row = getattr(rows, key)
            lines = study.contrasts_of([(row, study.baseline)])
            if len(lines):
                tables.append(lines.assign(compressor=rows.compressor, rule=rule))
    frame = pd.concat(tables, ignore_index=True)
    wide = frame.pivot(index="compressor", columns="rule", values="estimate")
    # A pivot sorts its lines; the table keeps the order of the experiment's spec.
    wide = wide.loc[frame["compressor"].unique()]
    resets = frame[frame["rule"] == RULES["reset"]]
    resets = resets.set_index("compressor")
    losses = wide.map(lambda estimate: loss(estimate, study.unit))
    intervals = {
        compressor: loss_interval(low, high, study.unit)
        for compressor, low, high in zip(resets.index, resets["low"], resets["high"], strict=True)
    }
    shown = losses.join(resets[["models_sent", "link_models"]])
    shown["reset_interval"] = shown.index.map(intervals)
    is_open = (resets["low"] < 0) & (resets["high"] > 0)
    by_loss = resets.reset_index().sort_values("estimate")
    first = study.about.compressors[0].compressor
    feedback = {"compressor": first, **study.lost(float(wide[RULES["feedback"]][first]))}
    numbers = {
        "open": resets.index[is_open].tolist(),
        "best": by_loss.iloc[-1],
        "worst": by_loss.iloc[0],
        "feedback": feedback,
        "baseline": study.value(study.baseline, "label"),
    }
    shown = shown.reset_index()
    return Answer(frame, numbers, rows=shown.head(MOST_ROWS))
