"""Questions on what is lost: by method, on other tasks, by the relatives, and against local SGD. Contrasts judge."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from report.accuracy_figures import loss_at_one_load, loss_figure
from report.accuracy_tables import accuracy_frame
from report.frame import JUDGED, LONG
from report.questions.evidence import Answer, Compared, Evidence, asked_of
from report.regime import NOT_CLAIMED, tells
from report.statistics import BETTER, LESS, MORE, WORSE

SHOWN = ("mcser-96", "mcser_block-96", "local_sgd-96", "qsparse-96", "ef_topk-96", "diloco-96")
"""Rows of question 1's table."""

RELATIVES = ("dpsgd", "powersgd_rank_1", "deep_squeeze-96", "choco-96", "ef21-96")

TEXTS = {
    "cmudict": "letters to phones, SGD",
    "cmudict_adamw": "letters to phones, AdamW",
    "kjv_es": "English to Spanish, AdamW",
}


@asked_of(JUDGED, "sgd", "alone", "mcser-96")
def what_is_lost(long: Compared) -> Answer:
    """Question 1: differences to SGD at the main ratio, judged where they were declared, and the accuracies behind."""
    declared = [each.row for each in long.frames.contrasts if each.kind == "non-inferiority"]
    judged = long.contrasts_of((row, long.baseline) for row in declared or SHOWN)
    judged["score"] = [long.frames.done(row).mean() for row in judged["row"]]
    numbers = {
        "shown": int((judged["verdict"] == LESS).sum()),
        "more": int((judged["verdict"] == MORE).sum()),
        "judged": len(declared),
        "mcser": long.contrast("mcser-96", long.baseline),
        "ceiling": float(long.frames.done(long.baseline).mean()),
        "floor": float(long.frames.done("alone").mean()),
    }
    shown = judged[judged["row"].isin(SHOWN)].sort_values("estimate", ascending=False)
    return Answer(judged, numbers, rows=shown)


def loss_at_one_link(long: Compared) -> tuple[pd.DataFrame, Figure]:
    """README's figure, which is that of the experiment's report, and its numbers."""
    shown, title, _ = loss_at_one_load(long.frames, accuracy_frame(long.frames))
    return shown, loss_figure(shown, long.frames.experiment.margin, title)


def other_tasks(evidence: Evidence) -> Answer | None:
    """Question 10: text, by the declared contrasts of its experiments; without them its differences are not judged."""
    found = {name: each for name in TEXTS if (each := evidence.experiment(name))}
    if not found:
        return None
    tables, judged = [], []
    for name, each in found.items():
        rows = [row for row in each.frames.rows["row"] if row.endswith("-8")]
        local = [row for row in rows if row.startswith("local")]
        pairs = [(row, each.baseline) for row in rows]
        pairs += [(row, other) for row in rows if row in ("mcser-8", "cser-8") for other in local]
        pairs = [(x.row, x.reference) for x in each.frames.contrasts] or pairs
        judged += [TEXTS[name]] if tells(each.frames) and each.frames.contrasts else []
        tables.append(each.contrasts_of(pairs).assign(task=TEXTS[name], margin=each.frames.experiment.margin))
    frame = pd.concat(tables, ignore_index=True)
    claimed = frame[frame["verdict"] != NOT_CLAIMED]
    losses, against = claimed[claimed["kind"] == "non-inferiority"], claimed[claimed["kind"] == "superiority"]
    numbers = {
        "judged": len(losses),
        "shown": int((losses["verdict"] == LESS).sum()),
        "more": int((losses["verdict"] == MORE).sum()),
        "apart": int(against["verdict"].isin((BETTER, WORSE)).sum()),
        "names": list(found),
        "tasks": judged,
        "silent": [said for name, said in TEXTS.items() if name in found and not tells(found[name].frames)],
        "beyond": _beyond(losses),
    }
    own = frame["row"].eq("mcser-8") | (frame["row"].eq("cser-8") & ~frame["task"].eq(TEXTS["cmudict"]))
    return Answer(frame, numbers, rows=frame[own].head(6))


def _beyond(losses: pd.DataFrame) -> list[str]:
    """Methods that are not told apart, and yet have an interval wholly beyond the margin."""
    own = losses[(losses["high"] < -losses["margin"]) & ~losses["verdict"].isin((LESS, MORE))]
    return [f"{line.label} ({line.task})" for line in own.itertuples()]


def the_relatives(evidence: Evidence) -> Answer | None:
    """Question 23: the relatives' differences to SGD; DiLoCo's is a contrast, and so is that of its outer momentum."""
    long, judged = evidence.experiment(LONG), evidence.experiment(JUDGED)
    if not (long and judged and long.has(*RELATIVES, "sgd") and judged.has("diloco-96", "sgd")):
        return None
    frame = long.contrasts_of((name, long.baseline) for name in RELATIVES)
    frame = frame.sort_values("estimate", ascending=False).drop(columns=["kind", "p_holm", "verdict"])
    outer = judged.contrast("diloco-96", "sgd_outer") if judged.has("sgd_outer") else None
    numbers = {"best": frame.iloc[0], "worst": frame.iloc[-1], "judged": judged.regime, "outer": outer}
    return Answer(frame, numbers | {"diloco": judged.contrast("diloco-96", judged.baseline), "regime": long.regime})


def would_local_sgd_do(evidence: Evidence) -> Answer | None:
    """Question 25: M-CSER less local SGD on two kinds of network, one average at the end, and a synchronous tail."""
    long, tails = evidence.experiment(JUDGED), evidence.experiment("study_tail")
    if not (long and long.has("local_sgd-96", "mcser-96", "mcser_block-96", "final_average", "sgd")):
        return None
    pairs = [(row, "local_sgd-96") for row in ("mcser-96", "mcser_block-96")] + [("final_average", "sgd")]
    tables = [long.contrasts_of(pairs).assign(network="perceptron", experiment=JUDGED)]
    if cnn := evidence.experiment("study_network_cnn"):
        own = cnn.contrasts_of([("mcser-h16-r1_3-r2_48", "local_sgd-24")])
        tables.append(own.assign(network="convolutions", experiment="study_network_cnn"))
    if tails:
        tail = "local_sgd-96~everything_sent-at0.75"
        against = tails.contrasts_of([(tail, "local_sgd-96"), (tail, "local_sgd-4")])
        against = against.assign(network="perceptron", experiment="study_tail")
        against["other"] = "local SGD, H = " + against["reference"].str.rpartition("-")[2]
        tables.append(against)
    frame = pd.concat(tables, ignore_index=True)
    numbers = {"regime": long.regime, "lines": tables[0].to_dict("records"), "tail": None}
    if tails and len(tables[-1]) == 2:
        numbers["tail"] = tables[-1].to_dict("records")
    return Answer(frame, numbers)
