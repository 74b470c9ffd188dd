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
    """Answer question 1: differences to everything sent, judged, and the accuracies behind them."""
    known = evidence["reference"]
    frame = known.losses
    frame["score"] = [known.frames.done(row).mean() for row in frame["row"]]
    elsewhere = []
    for other in evidence.other_networks:
        named = {"network": other.about.network}
        elsewhere.append(named | count_verdicts(other.losses))
    ceiling = known.frames.done(known.baseline)
    floor = known.frames.done(known.row("floor") or "")
    ties = tied(evidence, ("blocks", "baseline"), ("local", "baseline"))
    numbers = {
        **count_verdicts(frame),
        "ceiling": ceiling.mean(),
        "floor": floor.mean(),
        "elsewhere": elsewhere,
        "ties": ties.to_dict("records"),
    }
    shown = frame[frame["row"].isin(known.about.shown)]
    shown = shown.sort_values("estimate", ascending=False)
    return Answer(frame, numbers, rows=shown)


def count_verdicts(losses: pd.DataFrame) -> dict[str, int]:
    """Count the methods of which a loss was asked, and what was shown of them.

    `shown` lose less than the margin, and `more` lose more.
    """
    verdicts = losses["verdict"].value_counts()
    return {
        "judged": len(losses),
        "shown": int(verdicts.get(LESS, 0)),
        "more": int(verdicts.get(MORE, 0)),
    }


def tied(evidence: Evidence, *pairs: tuple[Speaker, Speaker]) -> pd.DataFrame:
    """Return contrasts at the other one of two rates that tied.

    There are none until all their runs are done.
    """
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
    """Answer question 10: text, by the declared contrasts of its experiments."""
    experiments = evidence.all_of("task")
    if not experiments:
        return None
    declared = [_declared(known) for known in experiments]
    lines = pd.concat(declared, ignore_index=True)
    is_reset = lines.pop("is_reset")
    is_topk = lines.pop("is_topk")
    is_claimed = lines["verdict"] != NOT_CLAIMED
    is_superiority = lines["kind"] == "superiority"
    losses = lines[is_claimed & (lines["kind"] == "non-inferiority")]
    against = lines[is_claimed & is_superiority & is_reset]
    is_apart = against["verdict"].isin((BETTER, WORSE))
    # Not told apart, and yet the interval lies wholly beyond the margin.
    is_beyond = losses["high"] < -losses["margin"]
    is_open = ~losses["verdict"].isin((LESS, MORE))
    beyond = losses[is_beyond & is_open].to_dict("records")
    topk = lines[is_topk & is_superiority]
    num_workers = set()
    silent = []
    in_nats = []
    for known in experiments:
        num_workers.add(known.regime["workers"])
        if not tells(known.frames):
            silent.append(known.about.task)
        if known.unit != "points":
            in_nats.append(known.about.task)
    numbers = {
        **count_verdicts(losses),
        "apart": int(is_apart.sum()),
        "names": [known.name for known in experiments],
        "silent": silent,
        "beyond": [f"{line['label']} ({line['task']})" for line in beyond],
        "topk": topk.to_dict("records"),
        "forms": _forms_of_feedback(experiments),
        "workers": sorted(num_workers),
        "in_nats": in_nats,
    }
    shown = lines[is_claimed & is_reset & ~is_topk]
    return Answer(lines, numbers, rows=shown.head(MOST_ROWS))


def _declared(known: Compared) -> pd.DataFrame:
    """Return the declared contrasts of a task, with what each is of.

    `is_reset` is true of error reset, and `is_topk` of its form with top-k.
    """
    lines = known.contrasts_of(known.contrasts)
    resets = known.rows_of_family("error reset")
    return lines.assign(
        task=known.about.task,
        is_reset=lines["row"].isin(resets),
        is_topk=lines["row"] == known.row("topk"),
    )


def _forms_of_feedback(experiments: Sequence[Compared]) -> list[tuple[Any, float, float]]:
    """Return what error feedback on updates and on gradients differs from everything sent by.

    A task is there if both were run.
    """
    forms = []
    for known in experiments:
        rows = known.frames.by_row
        if "error_feedback_on" not in rows:
            continue
        estimates = {}
        for row in known.rows_of_family("error feedback"):
            if known.has(row):
                form = rows.loc[row, "error_feedback_on"]
                contrast = known.contrast(row, known.baseline)
                estimates[form] = contrast["estimate"]
        if {"updates", "gradients"} <= estimates.keys():
            task = known.about.task
            forms.append((task, estimates["updates"], estimates["gradients"]))
    return forms
