"""Questions on what is lost: by method, and on other tasks. Contrasts judge."""

from typing import Any

import pandas as pd

from cser_bench.harness.measures.declared import BEFORE_RUNS
from cser_bench.report.questions.evidence import Answer, Compared, Evidence, Speaker, nearest_first
from cser_bench.report.regime import NOT_CLAIMED, tells
from cser_bench.report.statistics import BETTER, LESS, MORE, WORSE
from cser_bench.report.verdicts import margin_of
from cser_bench.report.wording import code

MOST_ROWS = 8
"""Rows of a table of an answer, at most."""


def what_is_lost(evidence: Evidence) -> Answer:
    """Answer question 1: how many methods were shown to lose less or more, by network."""
    networks = [*evidence.other_networks, evidence["reference"]]
    frames = []
    lines = []
    for known in networks:
        losses = known.losses
        losses["score"] = [known.frames.done(row).mean() for row in losses["row"]]
        frames.append(losses.assign(network=known.about.network, experiment=known.name))
        lines.append(_counted_on(known, losses))
    rows = pd.DataFrame(lines)
    numbers = {
        "judged": int(rows["judged"].sum()),
        "less": int(rows["shown"].sum()),
        "more": int(rows["more"].sum()),
        "with_more": rows.loc[rows["more"] > 0, "network"].tolist(),
        "alone_with_all": _alone_with_all_data(evidence),
    }
    return Answer(pd.concat(frames, ignore_index=True), numbers, rows=rows)


def _alone_with_all_data(evidence: Evidence) -> list[dict[str, Any]]:
    """Return what a worker alone that draws from all data loses, of each network where that was run.

    Such a worker sends nothing, and has its share of each epoch, which is another one each time
    (`percent_seen` of the data in all). Where it loses less than the margin (`is_within`), a method
    that is shown to lose less has not shown that sending helps.
    """
    lines = []
    for known in evidence.all_of("bounds"):
        others = [row.row for row in known.frames.experiment.rows if row.algorithm == "alone"]
        for row in others:
            if row == known.row("floor") or row == known.frames.experiment.floor:
                continue
            if not known.has(row):
                continue
            line = known.contrast(row, known.baseline)
            num_workers = known.frames.experiment.config["num_workers"]
            num_epochs = known.value(row, "num_epochs")
            line["percent_seen"] = 100 * (1 - (1 - 1 / num_workers) ** num_epochs)
            line["is_within"] = -line["low"] < line["margin"]
            lines.append(line | {"network": known.about.network})
    return lines


def _counted_on(known: Compared, losses: pd.DataFrame) -> dict[str, Any]:
    """Return what was shown on a network, and the scores between which methods lie there."""
    return {
        "network": known.about.network,
        "num_parameters": known.num_parameters,
        "experiment": known.name,
        "margin": margin_of({"margin": known.frames.experiment.margin, "unit": known.unit}),
        "ceiling": known.mean_of(known.baseline),
        "floor": known.mean_of(known.row("floor") or ""),
        **count_verdicts(losses),
        "before": int((losses["declared"] == BEFORE_RUNS).sum()),
    }


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
            columns = {"network": f"{known.network}, other rates", "experiment": known.name}
            parts.append((known, known.pairs(*pairs), columns))
    return evidence.contrasts(parts)


def other_tasks(evidence: Evidence) -> Answer | None:
    """Answer question 10: text, by the declared contrasts of its experiments."""
    experiments = nearest_first(evidence.all_of("task"))
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
    topk = lines[is_topk & is_superiority]
    num_workers = set()
    silent = []
    for known in experiments:
        num_workers.add(known.regime["workers"])
        if not tells(known.frames):
            silent.append(known.about.task)
    numbers = {
        **count_verdicts(losses),
        "against": len(against),
        "better": int((against["verdict"] == BETTER).sum()),
        "worse": int((against["verdict"] == WORSE).sum()),
        "names": [code(known.name) for known in experiments],
        "silent": silent,
        "by_experiment": [
            {"task": task, **count_verdicts(own)}
            for task, own in losses.groupby("task", sort=False)
        ],
        "worse_on": sorted(set(against.loc[against["verdict"] == WORSE, "task"])),
        "topk": topk.to_dict("records"),
        "workers": sorted(num_workers),
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
