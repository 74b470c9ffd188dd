"""Advice for one's own job, in words: what is safe, what is worth a trial, and what that costs."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.experiment import read_experiment
from cser_bench.harness.records.shipped import SHIPPED
from cser_bench.report.advice.choice import (
    MOST_SEEDS,
    TRIAL,
    WORTH,
    Choice,
    Trial,
    choose,
    trial_of,
    with_standing,
)
from cser_bench.report.advice.predictions import (
    DEFINED,
    ELSEWHERE,
    MEASURED,
    best_predictor,
    lines_as_run,
    lines_beyond,
)
from cser_bench.report.advice.runs import Line, alike_in, methods_run, was_run
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.questions.evidence import Evidence
from cser_bench.report.questions.networks import shares_lost, spread_between_kinds
from cser_bench.report.regime import assay_frame, losses_of
from cser_bench.report.render import environment
from cser_bench.report.speed.job import TrainingJob
from cser_bench.report.verdicts import interval_of, loss, size
from cser_bench.report.wording import NONE, amount, milliseconds

MOST_ROWS = 5
"""Of the short table."""

WIDTH = 80
"""Characters of a line of the text, where no terminal is narrower."""

_GAP = "  "
"""Between two columns of a table."""


@dataclass(frozen=True)
class Advice:
    """All lines, the fastest first, what was chosen of them, and the text.

    `lines` has the columns method, ratio, seconds, models_sent, held (in models, the most at a
    synchronisation), estimate, low and high (of the score less the baseline's), beyond (times
    beyond what was run), basis and standing.
    """

    lines: pd.DataFrame
    choice: Choice
    text: str


def advise(
    job: TrainingJob,
    maps: Sequence[Frames],
    shares: pd.DataFrame,
    alike: Sequence[Frames] = (),
    others: Sequence[Frames] = (),
    show_all: bool = False,
    networks: Iterable[str] = (),
) -> Advice:
    """Return advice from the runs of a kind of network and the traffic of their rows.

    Args:
        maps: one experiment of several lengths, or some of one length, which share their bounds.
        shares: what methods lose on other kinds of network; see
            `report.questions.networks.shares_lost`. A job that was run needs none.
        alike: other experiments that ran as these did.
        others: experiments whose methods have a step and memory here, and no loss.
        show_all: all methods, and how losses are predicted.
        networks: names of the networks that advice is on.

    Raises:
        UsageError: the runs are too few, of several networks, or cannot tell a loss; a margin or
            gap is above 100.
    """
    _refuse_mixed_maps(maps)
    _refuse_beyond_all(job, maps[0])
    lost = losses_of(maps)
    assays = assay_frame(maps[0])
    telling = assays[assays["reason"].isna()]
    if lost.empty or telling.empty:
        raise UsageError(
            f"{maps[0].folder} has no runs of several lengths or loads that can tell a loss, so it "
            "has no regime map; give another experiment with --map"
        )
    gap, margin = _bounds(job, maps[0], telling)
    all_alike = _each_once([*maps, *alike])
    is_run = was_run(job, all_alike)
    if is_run:
        lines = lines_as_run(job, maps[0], methods_run(all_alike, job.num_steps))
    else:
        spreads = spread_between_kinds(shares)
        lines = lines_beyond(job, maps, all_alike, others, lost, spreads, gap)
    unit = maps[0].metric.loss_unit
    lines = with_standing(lines, margin).assign(unit=unit, margin=margin)
    choice = choose(lines)
    shown = lines if show_all else _shown(lines, choice)

    context = _said_of_choice(choice, trial_of(choice, margin, job.num_steps), unit)
    context |= _said_of_evidence(maps, lost, shares, lines, networks)
    context |= _said_of_table(lines, shown)
    context |= {
        "job": job,
        "is_run": is_run,
        "show_all": show_all,
        "gap": size(gap, unit),
    }
    return Advice(lines, choice, _text(context, _table(job, shown, show_all)))


def _bounds(job: TrainingJob, frames: Frames, telling: pd.DataFrame) -> tuple[float, float]:
    """Return what a worker alone loses, and the margin: the job's own, or else the experiment's."""
    gap = job.gap
    if gap is None:
        gap = float(telling["gap"].iloc[0])
    margin = job.margin
    if margin is None:
        margin = frames.experiment.margin
    assert margin is not None, "an experiment that can tell a loss has a margin"
    return gap, margin


def _said_of_choice(choice: Choice, cost: Trial | None, unit: str) -> dict[str, Any]:
    """Return what the text says of the methods that were chosen, and of the trial's cost."""
    return {
        "base": choice.base,
        "safe": choice.safe,
        "trial": choice.trial,
        "cost": cost,
        "first_shows": f"{size(cost.first_shows, unit)} {unit}" if cost else None,
        "most_seeds": MOST_SEEDS,
        "worth": WORTH,
        "unit": unit,
    }


def _said_of_evidence(
    maps: Sequence[Frames],
    lost: pd.DataFrame,
    shares: pd.DataFrame,
    lines: pd.DataFrame,
    networks: Iterable[str],
) -> dict[str, Any]:
    """Return what the text says of the runs that losses are foretold from."""
    evidence = maps[0].experiment.evidence
    others_advised = sorted(set(networks) - {evidence.advice if evidence else None})
    return {
        "kind": evidence.network if evidence and evidence.advice else None,
        "others": [f"--network {name}" for name in others_advised],
        "names": _names(lines, maps),
        "size": maps[0].rows["num_parameters"].iloc[0],
        "lengths": lost["num_steps"].drop_duplicates(),
        "num_loads": lost.groupby("label")["models_sent"].nunique().min(),
        "num_workers": maps[0].experiment.config["num_workers"],
        "predictor": best_predictor(lost),
        "num_kinds": shares["network"].nunique(),
        "sent_all": maps[0].row(str(maps[0].experiment.baseline))["label"],
    }


def _said_of_table(lines: pd.DataFrame, shown: pd.DataFrame) -> dict[str, Any]:
    """Return what the text says below the table, of all lines and of those that it shows."""
    return {
        "measured": MEASURED,
        "elsewhere": ELSEWHERE,
        "num_left": len(lines) - len(shown),
        "has_elsewhere": bool((shown["basis"] == ELSEWHERE).any()),
        "standings": list(shown["standing"]),
    }


def _text(context: Mapping[str, Any], table: str) -> str:
    # Sentences are whole in the template, and folded here.
    rendered = environment(is_markdown=False).get_template("advice.md.j2").render(context)
    parts = [_folded(part) for part in rendered.strip().split("\n\n")]
    # The table goes in only now: folding would break its rows.
    parts.insert(parts.index("TABLE"), table)
    parts.remove("TABLE")
    return "\n\n".join(parts)


def _each_once(frames: Sequence[Frames]) -> list[Frames]:
    return list({each.experiment.name: each for each in frames}.values())


def _names(lines: pd.DataFrame, maps: Sequence[Frames]) -> list[str]:
    """Return the experiments whose runs the losses rest on."""
    names = [frames.experiment.name for frames in maps]
    has_loss = lines["estimate"].notna() & (lines["basis"] != DEFINED)
    return list(dict.fromkeys([*names, *lines.loc[has_loss, "experiment"]]))


def _folded(part: str) -> str:
    """Fold each line of a text; what follows its first words is indented."""
    folded = []
    for line in part.splitlines():
        folded.append(
            textwrap.fill(
                line,
                WIDTH,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return "\n".join(folded)


def _shown(lines: pd.DataFrame, choice: Choice) -> pd.DataFrame:
    """Return the lines of the short table: what was chosen, DDP, and what comes next.

    Next come other methods that are worth a trial, then those that are expected to lose least. None
    is slower than DDP, and none is there twice.
    """
    chosen = [choice.safe, choice.base]
    if choice.trial is not None:
        chosen.append(choice.trial)
    # A line is its method at a ratio.
    keys = list(dict.fromkeys((line["method"], line["ratio"]) for line in chosen))
    methods = {method for method, _ in keys}
    faster = lines[lines["seconds"] < choice.base["seconds"]]
    is_trial = faster["standing"] == TRIAL
    next_best = [
        faster[is_trial].sort_values("seconds"),
        faster[~is_trial].sort_values("estimate", ascending=False),
    ]
    for line in pd.concat(next_best).to_dict("records"):
        if len(keys) < MOST_ROWS and line["method"] not in methods:
            keys.append((line["method"], line["ratio"]))
            methods.add(line["method"])
    is_shown = [key in keys for key in zip(lines["method"], lines["ratio"], strict=True)]
    return lines[is_shown].drop_duplicates(["method", "ratio"])


def _table(job: TrainingJob, lines: pd.DataFrame, show_all: bool) -> str:
    """Return lines as a table of the terminal, no wider than `WIDTH`."""
    unit = lines["unit"].iloc[0]
    heads = ["method", "ratio", "ms", f"loss, {unit}", ""]
    held = lines["held"] * 4 * job.num_parameters
    bytes_of_unit = 1e9 if held.max() >= 1e9 else 1e6
    if show_all:
        heads.insert(3, "GB" if bytes_of_unit == 1e9 else "MB")
    rows = [heads]
    for line, held_bytes in zip(lines.to_dict("records"), held, strict=True):
        row = [
            str(line["method"]),
            amount(line["ratio"]),
            milliseconds(line["seconds"]),
            _loss_cell(line),
            f"{line['standing']}{'*' if line['basis'] == ELSEWHERE else ''}",
        ]
        if show_all:
            row.insert(3, f"{held_bytes / bytes_of_unit:.2g}")
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    others = sum(widths[1:]) + len(_GAP) * (len(heads) - 1)
    widths[0] = min(widths[0], WIDTH - others)
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(_row_text(row, widths) for row in rows)


def _row_text(row: Sequence[str], widths: Sequence[int]) -> str:
    """Return a row of a table; a name that is too long goes on in a line below."""
    first, *rest = textwrap.wrap(row[0], widths[0])
    cells = [first.ljust(widths[0])]
    # Numbers are aligned right, and the last column is a word.
    for cell, width in zip(row[1:-1], widths[1:-1], strict=True):
        cells.append(cell.rjust(width))
    cells.append(row[-1])
    lines = [_GAP.join(cells).rstrip()]
    lines += [f"  {part}" for part in rest]
    return "\n".join(lines)


def _loss_cell(line: Line) -> str:
    """Write a loss with its interval: "1.27 (0.25 to 2.29)", "gain 0.02 (gain 0.3 to loss 0.2)"."""
    if line["basis"] == DEFINED:
        return "0"
    if np.isnan(line["estimate"]):
        return NONE
    return f"{loss(line['estimate'], line['unit'])} ({interval_of(line)})"


def _refuse_mixed_maps(maps: Sequence[Frames]) -> None:
    networks = set()
    for frames in maps:
        experiment = frames.experiment
        size = frames.rows["num_parameters"].iloc[0]
        networks.add((experiment.task, experiment.baseline, size))
    if len(networks) > 1:
        raise UsageError(
            "the folders of --map differ in task, network or baseline; give folders of one network"
        )


def _refuse_beyond_all(job: TrainingJob, frames: Frames) -> None:
    """Refuse a margin or gap that is more than all of an accuracy."""
    if not frames.metric.is_share:
        return
    for option, value in (("--margin", job.margin), ("--gap", job.gap)):
        if value is not None and value > 1:
            raise UsageError(
                f"{option} is {100 * value:g} points, and all of {frames.metric.label} is 100; "
                "give less"
            )


def folders_for(network: str | None, job: TrainingJob, evidence: Evidence) -> list[Path]:
    """Return the folders of the experiments whose runs predict losses on a network.

    They are one of several lengths, or more of several loads.

    Args:
        network: as their specs name it for advice; None is the one of a job that was run, else the
            largest on images.

    Raises:
        UsageError: there are no shipped records, or none of this network.
    """
    _check_shipped()
    advised = _advised(evidence)
    wanted = network
    if wanted is None:
        wanted = _network_for(job, advised)
    if wanted not in advised:
        raise UsageError(
            f"there are no runs of a network {network!r}; give --network {', '.join(advised)}"
        )
    return advised[wanted]


def _advised(evidence: Evidence) -> dict[str, list[Path]]:
    """Return the folders of the experiments of each network that advice is on."""
    advised: dict[str, list[Path]] = {}
    for name, about in evidence.about.items():
        if about.advice:
            folder = next(folder for folder in evidence.folders if folder.name == name)
            advised.setdefault(about.advice, []).append(folder)
    return advised


def _network_for(job: TrainingJob, advised: Mapping[str, Sequence[Path]]) -> str:
    """Return the network of a job that was run, else the largest on images."""
    sizes = {}
    for network, folders in advised.items():
        experiment = read_experiment(folders[0])
        num_parameters = experiment.rows[0].num_parameters
        is_size = job.num_parameters == num_parameters
        if is_size and job.num_steps in {row.num_steps for row in experiment.rows}:
            return network
        if experiment.evidence and experiment.evidence.data == "images":
            sizes[network] = num_parameters
    return max(sizes, key=lambda network: sizes[network])


def _check_shipped() -> None:
    if not SHIPPED.is_dir():
        raise UsageError(
            f"advice stands on the records in {SHIPPED}, which are not there; install the "
            "project again"
        )


def advice_from(
    folders: Sequence[Path], job: TrainingJob, evidence: Evidence, show_all: bool = False
) -> str:
    """Return advice from the runs in experiments' folders, in words.

    Raises:
        UsageError: as `advise`, or there are no shipped records.
    """
    _check_shipped()
    maps = [read_frames(folder) for folder in folders]
    alike = alike_in(evidence, maps[0])
    if was_run(job, [*maps, *alike]):
        # Losses were measured, so nothing is foretold from other networks.
        shares = shares_lost(Evidence(()))
        return advise(job, maps, shares, alike, show_all=show_all).text
    shares = shares_lost(evidence)
    others = []
    for known in evidence.all_of("methods"):
        # Methods of another optimiser's family would be compared with another baseline.
        if known.baseline == maps[0].experiment.baseline:
            others.append(known.frames)
    tell = shares[shares["tells"]]
    networks = _advised(evidence)
    return advise(job, maps, tell, alike, [*maps, *others], show_all, networks).text
