"""Questions on what is lost: by method, on other tasks, by the relatives, and against local SGD.
Contrasts judge."""

from typing import Any

import pandas as pd

from cser_bench.report.frame import JUDGED, LONG
from cser_bench.report.questions.evidence import (
    CONVOLUTIONS,
    DENSENET,
    GPT,
    NETWORKS,
    RESIDUAL,
    SHUFFLENET,
    Answer,
    Evidence,
)
from cser_bench.report.regime import NOT_CLAIMED, tells
from cser_bench.report.speed.timed import joined_frame
from cser_bench.report.statistics import BETTER, LESS, MORE, WORSE

SHOWN = ("mcser-96", "mcser_block-96", "local_sgd-96", "qsparse-96", "ef_topk-96", "diloco-96")
"""Rows of question 1's table."""

RECENT = {
    "gpt_text_methods": {
        "network": "a GPT",
        "unit": "hundredths of a nat",
        "absent": "EF top-k and PowerSGD were not run at this load.",
    },
    "resnet_methods": {
        "network": "a residual network",
        "unit": "points",
        "absent": (
            "EF-SGD top-k and PowerSGD are not among them: their losses at this load stand above."
        ),
    },
}
"""The experiments of methods that people run in 2026."""
TIES = "fashion_mnist_ties"
"""The rows of the judged experiment whose rate tied with another one, at that one."""
ERROR_RESET = ("cser", "mcser", "cser_pl")
"""Algorithms of the paper."""
BOUNDS = ("alone", "muon")
"""Their rows that send nothing, or everything."""

RELATIVES = ("dpsgd", "powersgd_rank_1", "deep_squeeze-96", "choco-96", "ef21-96")

TEXTS = {
    "cmudict": "letters to phones, SGD",
    "cmudict_adamw": "letters to phones, AdamW",
    "kjv_es": "English to Spanish, AdamW",
    GPT: "a GPT, AdamW",
}

TAIL = "local_sgd-96~everything_sent-at0.75"
OWN = [("mcser-96", "local_sgd-96"), ("mcser_block-96", "local_sgd-96"), ("final_average", "sgd")]
AGAINST_LOCAL = (
    (JUDGED, "perceptron", OWN),
    (CONVOLUTIONS, "convolutions", [("mcser-h16-r1_3-r2_48", "local_sgd-24")]),
    (DENSENET, "DenseNet", [("mcser-h16-r1_3-r2_48", "local_sgd-24")]),
    (SHUFFLENET, "ShuffleNet", [("mcser-h16-r1_3-r2_48", "local_sgd-24")]),
    (
        RESIDUAL,
        "residual network",
        [("mcser_block-24", "local_sgd-24"), ("mcser_topk", "local_sgd-24")],
    ),
    (GPT, "GPT", [("cser-8", "local-8")]),
    ("kjv_es", "translation", [("cser-8", "local-8")]),
    ("study_tail", "perceptron", [(TAIL, "local_sgd-96"), (TAIL, "local_sgd-4")]),
)
"""Question 25's experiments, their networks and pairs."""
OTHER_LOADS = (
    (
        "study_resnet_loads",
        "residual network, four times the load",
        [("mcser_block-6", "local_sgd-6")],
    ),
    (
        "study_resnet_loads",
        "residual network, a quarter of the load",
        [("mcser_block-96", "local_sgd-96")],
    ),
    ("study_gpt_text_loads", "GPT, four times the load", [("cser-2", "local-2")]),
    ("study_gpt_text_loads", "GPT, a quarter of the load", [("cser-32", "local-32")]),
    ("gpt_text_methods", "GPT, an eighth of the load", [("cser-64", "local-64")]),
)
"""The same where more or less is sent."""


def _judged(losses: pd.DataFrame) -> dict[str, int]:
    """Of how many methods a loss was asked, and of how many it is shown to be less or more than the
    margin."""
    shown, more = (int((losses["verdict"] == verdict).sum()) for verdict in (LESS, MORE))
    return {"judged": len(losses), "shown": shown, "more": more}


def what_is_lost(evidence: Evidence) -> Answer:
    """Question 1: differences to SGD at the main ratio, judged, and the accuracies behind them."""
    known = evidence[JUDGED]
    frame = known.losses
    others = ((network, evidence.experiment(name)) for name, network in NETWORKS.items())
    elsewhere = [{"network": network} | _judged(each.losses) for network, each in others if each]
    frame["score"] = [known.frames.done(row).mean() for row in frame["row"]]
    ties = _ties(evidence, [("mcser_block-96_0.01", "sgd"), ("local_sgd-96_0.01", "sgd")])
    bounds = {
        "ceiling": known.frames.done(known.baseline).mean(),
        "floor": known.frames.done("alone").mean(),
    }
    shown = frame[frame["row"].isin(SHOWN)].sort_values("estimate", ascending=False)
    return Answer(
        frame,
        _judged(frame) | bounds | {"elsewhere": elsewhere, "ties": ties.to_dict("records")},
        rows=shown,
    )


def other_tasks(evidence: Evidence) -> Answer | None:
    """Question 10: text, by the declared contrasts of its experiments."""
    found = {name: each.frames for name in TEXTS if (each := evidence.experiment(name))}
    if not found:
        return None
    frame = evidence.contrasts(
        (
            name,
            [(each.row, each.reference) for each in frames.contrasts],
            {"task": TEXTS[name], "margin": frames.experiment.margin},
        )
        for name, frames in found.items()
    )
    claimed = frame[frame["verdict"] != NOT_CLAIMED]
    losses, against = (
        claimed[claimed["kind"] == kind] for kind in ("non-inferiority", "superiority")
    )
    own = claimed["row"].isin(("cser-8", "mcser-8"))
    against = against[against["row"].isin(("cser-8", "mcser-8", "cser_topk-8"))]
    # Not told apart, and yet the interval lies wholly beyond the margin.
    beyond = losses[(losses["high"] < -losses["margin"]) & ~losses["verdict"].isin((LESS, MORE))]
    numbers = _judged(losses) | {
        "apart": int(against["verdict"].isin((BETTER, WORSE)).sum()),
        "names": list(found),
        "tasks": [TEXTS[name] for name, frames in found.items() if tells(frames)],
        "silent": [TEXTS[name] for name, frames in found.items() if not tells(frames)],
        "beyond": (beyond["label"] + " (" + beyond["task"] + ")").tolist(),
    }
    numbers["topk"] = frame[
        (frame["row"] == "cser_topk-8") & (frame["kind"] == "superiority")
    ].to_dict("records")
    forms = [
        frame[frame["row"].str.match(name)].set_index("task")["estimate"]
        for name in ("ef_topk_updates-", "ef_topk-")
    ]
    numbers["forms"] = list(pd.concat(forms, axis=1, join="inner").itertuples(name=None))
    return Answer(frame, numbers, rows=claimed[own].head(6))


def the_relatives(evidence: Evidence) -> Answer:
    """Question 23: the relatives' differences to SGD; DiLoCo's is a contrast, and so are those on
    other networks."""
    long, judged = evidence[LONG], evidence[JUDGED]
    frame = long.contrasts_of((name, long.baseline) for name in RELATIVES)
    frame = frame.sort_values("estimate", ascending=False).drop(
        columns=["kind", "p_holm", "verdict", "declared"]
    )
    outer = judged.contrast("diloco-96", "sgd_outer")
    numbers = {
        "best": frame.iloc[0],
        "worst": frame.iloc[-1],
        "judged": judged.regime,
        "outer": outer,
    }
    pairs = {
        RESIDUAL: [("powersgd", "sgd"), ("diloco-24", "sgd"), ("ef_topk-96", "sgd")],
        GPT: [("powersgd-8", "adamw"), ("diloco-8", "adamw"), ("ef_topk_updates-32", "adamw")],
    }
    recent = [told for name in RECENT if (told := _recent(evidence, name))]
    numbers |= {
        "recent": recent,
        "diloco": judged.contrast("diloco-96", judged.baseline),
        "elsewhere": evidence.elsewhere(pairs),
    }
    parts = [frame.assign(experiment=LONG), *(told["rows"] for told in recent)]
    return Answer(pd.concat(parts), numbers, rows=frame)


def _recent(evidence: Evidence, name: str) -> dict[str, Any] | None:
    """The methods of 2026: what each loses, what was asked of error reset, and on the GPT steps on
    links of a latency.

    `least` are those of the least mean losses: the first, and whose intervals meet its own; `cser`
    is error reset that is none of them, and `below` loses more than a worker alone. `ddp` has DDP's
    step by latency.
    """
    known = evidence.experiment(name)
    if known is None or not known.is_whole:
        return None
    by_row, experiment = known.frames.by_row, known.frames.experiment
    own = [row.row for row in experiment.rows if row.base is None and row.row != known.baseline]
    rows = known.contrasts_of((row, known.baseline) for row in own).sort_values(
        "estimate", ascending=False
    )
    rows = rows.assign(experiment=name)
    ddp, timings = {}, evidence.speed.text if evidence.speed and name == "gpt_text_methods" else ()
    for timing in timings:
        latency, steps = timing.fabric.latency, joined_frame(known.frames, [timing])
        rows[latency] = rows["row"].map(steps.groupby("row")["seconds"].min())
        ddp[latency] = steps.loc[steps["label"] == "DDP", "seconds"].min()
    equal = rows[~rows["row"].isin(BOUNDS)]
    equal = equal.assign(place=range(1, 1 + len(equal)))
    is_reset, least = (
        equal["row"].map(by_row["algorithm"]).isin(ERROR_RESET),
        equal["high"] >= equal["low"].iloc[0],
    )
    alone = rows.loc[rows["row"] == "alone", "estimate"].iloc[0]
    parts = {"least": least, "cser": is_reset & ~least, "below": equal["estimate"] < alone}
    told = {key: equal[chosen].to_dict("records") for key, chosen in parts.items()}
    told["timed"] = equal[least | is_reset].dropna(subset=[*ddp]).head(3).to_dict("records")
    asked = [
        known.contrast(*pair)
        for pair in known.contrasts
        if pair[0] in equal.loc[is_reset, "row"].tolist()
    ]
    muon = known.contrast("muloco-64", "muon") if known.has("muloco-64", "muon") else None
    link, loads = timings[0].fabric.bits_per_second if timings else None, equal["link_models"]
    told |= {
        "loads": (loads.min(), loads.max()),
        "num_equal": len(equal),
        "alone": alone,
        "asked": asked,
        "muon": muon,
    }
    told |= {"rows": rows, "ddp": ddp, "link": link, "regime": known.regime}
    return told | {"baseline": by_row.loc[known.baseline, "label"]} | RECENT[name]


def would_local_sgd_do(evidence: Evidence) -> Answer:
    """Question 25: error reset less local steps by kind of network, one average at the end, and a
    synchronous tail."""
    whole = [
        each for each in OTHER_LOADS if (known := evidence.experiment(each[0])) and known.is_whole
    ]
    asked = [*AGAINST_LOCAL, *whole]
    parts = (
        (name, pairs, {"network": network, "experiment": name}) for name, network, pairs in asked
    )
    frame = evidence.contrasts(parts)
    other_load = frame["network"].isin([network for _, network, _ in OTHER_LOADS])
    tail = frame["row"] == TAIL
    frame.loc[tail, "other"] = "local SGD, H = " + frame["reference"].str.rpartition("-")[2]
    lines = frame[frame["experiment"] == JUDGED].to_dict("records")
    compared = ~tail & ~other_load & (frame["row"] != "final_average")
    shown = frame[compared & frame["verdict"].notna()].head(6)
    others = frame[compared & (frame["experiment"] != JUDGED) & ~frame.index.isin(shown.index)]
    ties = _ties(
        evidence, [("mcser-96", "local_sgd-96_0.01"), ("mcser_block-96_0.01", "local_sgd-96_0.01")]
    )
    after, links = (
        _tails(evidence, "study_gpt_text_tail"),
        evidence[JUDGED].frames.by_row["link_models"],
    )
    found = pd.concat([each for each in (frame, ties, after) if len(each)], ignore_index=True)
    numbers = {
        "lines": lines,
        "heavier": links["mcser-96"] / links["local_sgd-96"],
        "same": [evidence[LONG].contrast(*pair) for pair in OWN[:2]]
        if evidence.experiment(LONG)
        else [],
        "ties": ties.to_dict("records"),
        "others": others.to_dict("records"),
        "loads": frame[other_load].to_dict("records"),
        "tail": frame[tail].to_dict("records") if tail.sum() == 2 else None,
        "names": [f"`{name}`" for name in found["experiment"].unique() if name != JUDGED],
        "after": after[after["reference"] != after["baseline"]].to_dict("records"),
    }
    return Answer(found, numbers, rows=shown)


def _ties(evidence: Evidence, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """Contrasts on the perceptron at the other one of two rates that tied; none until all their
    runs are done."""
    known = evidence.experiment(TIES)
    asked = pairs if known and known.is_whole else []
    return evidence.contrasts(
        [(TIES, asked, {"network": "perceptron, other rates", "experiment": TIES})]
    )


def _tails(evidence: Evidence, name: str) -> pd.DataFrame:
    """What synchronous tails of a whole experiment change, and in `left` what each is at against
    the baseline then."""
    known = evidence.experiment(name)
    if known is None or not known.is_whole:
        return pd.DataFrame(columns=["reference", "baseline"])
    frame = known.contrasts_of(known.contrasts).assign(experiment=name, baseline=known.baseline)
    left = frame[frame["reference"] == known.baseline].set_index("row")
    return frame.assign(
        left=frame["row"].map(left["estimate"]), shown=frame["row"].map(left["verdict"])
    )
