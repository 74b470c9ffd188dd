"""Questions on what is lost: by method, and on other tasks. Contrasts judge."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from cser_bench.report.questions.evidence import Answer, Compared, Evidence, Speaker
from cser_bench.report.regime import NOT_CLAIMED, tells
from cser_bench.report.statistics import BETTER, LESS, MORE, WORSE

MOST_ROWS = 6
"""Rows of a table of an answer, at most."""


def what_is_lost(evidence: Evidence) -> Answer:
    """Question 1: differences to everything sent, judged, and the accuracies behind them."""
    known = evidence["reference"]
    frame = known.losses
    frame["score"] = [known.frames.done(row).mean() for row in frame["row"]]
    shown = frame[frame["row"].isin(known.about.shown)]
    elsewhere = [
        {"network": other.about.network} | count_verdicts(other.losses)
        for other in evidence.other_networks
    ]
    numbers = count_verdicts(frame) | {
        "ceiling": known.frames.done(known.baseline).mean(),
        "floor": known.frames.done(known.row("floor") or "").mean(),
        "elsewhere": elsewhere,
        "ties": tied(evidence, ("blocks", "baseline"), ("local", "baseline")).to_dict("records"),
    }
    return Answer(frame, numbers, rows=shown.sort_values("estimate", ascending=False))


def count_verdicts(losses: pd.DataFrame) -> dict[str, int]:
    """Count the methods of which a loss was asked, and those shown to lose less or more than the
    margin."""
    return {
        "judged": len(losses),
        "shown": int((losses["verdict"] == LESS).sum()),
        "more": int((losses["verdict"] == MORE).sum()),
    }


def tied(evidence: Evidence, *pairs: tuple[Speaker, Speaker]) -> pd.DataFrame:
    """Return contrasts at the other one of two rates that tied; none until all their runs are
    done."""
    parts = []
    for known in evidence.all_of("ties"):
        if known.is_whole:
            columns = {
                "network": f"{known.network}, other rates",
                "experiment": known.name,
            }
            parts.append((known, known.pairs(*pairs), columns))
    return evidence.contrasts(parts)


def other_tasks(evidence: Evidence) -> Answer | None:
    """Question 10: text, by the declared contrasts of its experiments."""
    experiments = evidence.all_of("task")
    if not experiments:
        return None
    lines = pd.concat([_declared(known) for known in experiments], ignore_index=True)
    is_reset, is_topk = lines.pop("is_reset"), lines.pop("is_topk")
    is_claimed = lines["verdict"] != NOT_CLAIMED
    losses = lines[is_claimed & (lines["kind"] == "non-inferiority")]
    against = lines[is_claimed & (lines["kind"] == "superiority") & is_reset]
    # Not told apart, and yet the interval lies wholly beyond the margin.
    beyond = losses[(losses["high"] < -losses["margin"]) & ~losses["verdict"].isin((LESS, MORE))]
    numbers = count_verdicts(losses) | {
        "apart": int(against["verdict"].isin((BETTER, WORSE)).sum()),
        "names": [known.name for known in experiments],
        "silent": [known.about.task for known in experiments if not tells(known.frames)],
        "beyond": (beyond["label"] + " (" + beyond["task"] + ")").tolist(),
        "topk": lines[is_topk & (lines["kind"] == "superiority")].to_dict("records"),
        "forms": _forms_of_feedback(experiments),
        "workers": sorted({known.regime["workers"] for known in experiments}),
        "in_nats": [known.about.task for known in experiments if known.unit != "points"],
    }
    return Answer(lines, numbers, rows=lines[is_claimed & is_reset & ~is_topk].head(MOST_ROWS))


def _declared(known: Compared) -> pd.DataFrame:
    """The declared contrasts of a task, and whether each is of error reset, and of its form with
    top-k."""
    lines = known.contrasts_of(known.contrasts)
    return lines.assign(
        task=known.about.task,
        is_reset=lines["row"].isin(known.rows_of_family("error reset")),
        is_topk=lines["row"] == known.row("topk"),
    )


def _forms_of_feedback(experiments: Sequence[Compared]) -> list[tuple[Any, float, float]]:
    """What error feedback on updates and on gradients differs from everything sent by, by task;
    those that ran both."""
    forms = []
    for known in experiments:
        rows = known.frames.by_row
        if "error_feedback_on" not in rows:
            continue
        estimates = {
            rows.loc[row, "error_feedback_on"]: known.contrast(row, known.baseline)["estimate"]
            for row in known.rows_of_family("error feedback")
            if known.has(row)
        }
        if {"updates", "gradients"} <= estimates.keys():
            forms.append((known.about.task, estimates["updates"], estimates["gradients"]))
    return forms
