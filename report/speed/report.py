"""The report of a study of step times: what its template names, its tables and its figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cser_bench.harness.records.experiment import Experiment
from cser_bench.harness.records.timings import Timing
from cser_bench.report.frame import Frames
from cser_bench.report.regime import Regime, regime_of
from cser_bench.report.render import write_report
from cser_bench.report.speed import comparisons
from cser_bench.report.speed.comparisons import AT, DDP, PROPOSED
from cser_bench.report.speed.figures import draw_loss_and_step, draw_speedups
from cser_bench.report.speed.fitting import fits_frame
from cser_bench.report.speed.tables import (
    agreement_frame,
    conditions_table,
    head_table,
    headlines_table,
    joined_table,
    networks_table,
    shown_steps,
    steps_table,
    sweeps_frame,
)
from cser_bench.report.speed.timed import (
    WIDE,
    baselines_frame,
    conditions_frame,
    joined_frame,
    scored_steps_frame,
    steps_frame,
)
from cser_bench.report.speed.workload_model import SpeedStudy, WorkloadModel
from cser_bench.report.which_method import which_method_from
from cser_bench.report.wording import Columns, rate

Parts = tuple[dict[str, Any], dict[str, pd.DataFrame], dict[str, Figure]]
"""What the template names, the tables by name of their CSV, and the figures."""

INTERVALS = {
    "t": "a 95 % t interval of the mean step",
    "sessions": "the lowest and highest mean of several sessions",
    "range": "the lowest and highest of fewer than ten steps",
}
"""What stands in brackets beside a step, by the kind of interval that `steps_frame` names."""

LARGE_MESSAGE = 1e6
"""Bytes; a smaller message is nearly all headers and acknowledgements."""


@dataclass(frozen=True)
class Scored:
    """Steps of the methods as an experiment scores them.

    Attributes:
        regime: of the experiment that scored them.
        timed: as `joined_frame` has it, without the rows that were not timed.
        baselines: as `baselines_frame` has it.
        table: a line a method, a column a rate; `columns` are its heads and formats.
        intervals: what stands in brackets beside a step, each kind in words.
    """

    experiment: Experiment
    regime: Regime
    timed: pd.DataFrame
    baselines: pd.DataFrame
    table: pd.DataFrame
    columns: Columns
    intervals: list[str]


@dataclass(frozen=True)
class Timed:
    """Steps of one workload by the clock, and of the others in a line each.

    Attributes:
        steps: a line a method, a column a network; `columns` are its heads and formats.
        num_steps: the fewest and the most that a value is of.
        has_ranges: whether a value is a median with a range, not a mean with an interval.
        others: as `networks_table` has it, of the other workloads.
        holds: whether the finding in the title is so.
    """

    steps: pd.DataFrame
    columns: Columns
    num_steps: tuple[int, int]
    has_ranges: bool
    others: pd.DataFrame
    holds: bool


@dataclass(frozen=True)
class Modelled:
    """What the model of one workload says, and how far it is off.

    Attributes:
        proposed: the line of `speedups_frame` at `AT`; with `best_label`.
        ratio: of the proposed method.
        headlines: as `headlines_table` has it, empty where no headline's workload was timed.
        agreement: as `agreement_frame` has it.
        beyond_formula: of each large message what its link carried beyond the formula, a share.
    """

    proposed: pd.Series
    ratio: float
    headlines: pd.DataFrame
    agreement: pd.DataFrame
    beyond_formula: pd.Series


@dataclass(frozen=True)
class Condition:
    """Steps by condition: a latency of the links, or who is slow.

    Attributes:
        table: a line a method, a column a condition; `columns` are its heads and formats.
        intervals: what stands in brackets beside a step, each kind in words.
        passes_seconds: a worker's own time of a step under the first condition.
    """

    table: pd.DataFrame
    columns: Columns
    intervals: list[str]
    passes_seconds: float


def build_speed_report(
    study: SpeedStudy, experiments: Sequence[Frames], output: Path
) -> Path:
    """Write the report of a study into a folder, and return its path.

    Tables join the experiments' losses with step times. The same records give the same bytes of
    Markdown and CSV.

    Raises:
        OSError: the output cannot be written.
    """
    return write_report(output, "report", "speed.md.j2", *contents(study, experiments))


def contents(study: SpeedStudy, experiments: Sequence[Frames]) -> Parts:
    """Return what the template names, the tables by name of their CSV, and the figures."""
    frames = {
        "step_times": study.timed_steps,
        "sweeps": sweeps_frame(study.sweeps),
        "fits": fits_frame(study.fits),
        "scored_steps": scored_steps_frame(study.sessions),
    }
    figures: dict[str, Figure] = {}
    families = families_of(experiments)
    scored = None
    if study.sessions and experiments:
        joined = [
            joined_frame(experiment, study.sessions) for experiment in experiments
        ]
        # The CSV has all experiments, the page the first one alone.
        frames["loss_and_step"] = pd.concat(joined)
        scored = _scored(study, experiments[0], joined[0])
        if scored.timed["estimate"].notna().any():
            margin = scored.experiment.margin
            figures["loss_and_step"] = draw_loss_and_step(
                scored.timed, margin, families
            )
    all_modelled = _modelled_workloads(study)
    model = _first_model(all_modelled)
    timed = None
    modelled = None
    if model is not None:
        timed = _timed(study, model)
        modelled = _modelled(study, model, frames["sweeps"])
        speedups = [
            comparisons.speedups_frame(each, comparisons.RATES) for each in all_modelled
        ]
        frames["modelled"] = pd.concat(speedups)
        frames["headlines"] = comparisons.headlines_frame(study)
        frames["agreement"] = modelled.agreement
        figures["speedups"] = draw_speedups(study, model, families)
    frames |= _condition_frames(study)
    context = {
        "model": model,
        "timed": timed,
        "modelled": modelled,
        "scored": scored,
        "head": _head(scored, modelled),
        "which_method": which_method_from(study.folder),
        "figures": figures,
    }
    return context | _context_of_records(study), frames, figures


def _context_of_records(study: SpeedStudy) -> dict[str, Any]:
    """Return what the template shows of the records as they are, without model and accuracy."""
    left_out = [f"{entry.what}: {entry.why}" for entry in study.study.left_out]
    return {
        "wide": _condition(
            study.wide, "session of links with latency", is_fastest_first=True
        ),
        "row": _condition(study.consecutive, "session of steps in a row"),
        "text": _condition(study.text, "session on text"),
        "workloads": list(study.models.values()),
        "at": AT,
        "records": study,
        "machine": _machine(study),
        # Timings that left out the same thing for the same reason say so once.
        "left_out": dict.fromkeys(left_out),
    }


def _modelled_workloads(study: SpeedStudy) -> list[WorkloadModel]:
    """Return the workloads on which the proposed method can be compared with DDP."""
    models = []
    for model in study.models.values():
        is_compared = DDP in model.methods and PROPOSED in model.methods
        if is_compared and model.is_modelled:
            models.append(model)
    return models


def _first_model(modelled: Sequence[WorkloadModel]) -> WorkloadModel | None:
    """Return that of the first headline; else any, and None where there is none."""
    for model in modelled:
        if model.workload.name == comparisons.HEADLINES[0].workload:
            return model
    return next(iter(modelled), None)


def _condition_frames(study: SpeedStudy) -> dict[str, pd.DataFrame]:
    """Return steps on links of several latencies, and steps in a row, by name of their CSV."""
    frames = {}
    if study.wide:
        frames["wide_steps"] = conditions_frame(study.wide)[WIDE]
    if study.consecutive:
        frames["consecutive_steps"] = conditions_frame(study.consecutive)
    if study.text:
        frames["text_steps"] = conditions_frame(study.text)
    return frames


def _condition(
    timings: Sequence[Timing], session: str, is_fastest_first: bool = False
) -> Condition | None:
    """Return a line a method, a column a condition; None where nothing was timed.

    Args:
        session: what the head calls it.
        is_fastest_first: whether methods are sorted by their step under the last condition, which
            of latencies is the largest; else they are in the order of the records.
    """
    steps = conditions_frame(timings)
    if steps.empty:
        return None
    if is_fastest_first:
        steps = _fastest_first(steps)
    table = conditions_table(steps)
    columns: Columns = {"label": (f"method ({session})", "text")}
    for name in table.columns[1:]:
        columns[name] = (name, "text")
    is_first = steps["condition"] == steps["condition"].iloc[0]
    passes_seconds = float(steps.loc[is_first, "passes_seconds"].mean())
    intervals = _intervals(steps["interval"])
    return Condition(table, columns, intervals, passes_seconds)


def _fastest_first(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the same lines, methods by their step under the last condition."""
    last = steps[steps["condition"] == steps["condition"].iloc[-1]]
    places = last.set_index("label")["seconds"].rank(method="first")
    # A stable sort, so that the conditions of a method stay in their order.
    order = steps["label"].map(places).sort_values(kind="stable").index
    return steps.loc[order]


def _intervals(kinds: pd.Series) -> list[str]:
    """Return the kinds of interval in words, each once."""
    return [words for kind, words in INTERVALS.items() if (kinds == kind).any()]


def _timed(study: SpeedStudy, model: WorkloadModel) -> Timed:
    """Return what the clock says of a workload's steps."""
    shown = shown_steps(study.timed_steps)
    clear = shown[~shown["crowded"]]
    of_workload = clear[clear["workload"] == model.workload.name]
    # Columns: label, ratio, and a network each.
    steps = steps_table(shown[shown["workload"] == model.workload.name])
    columns: Columns = {
        "label": ("method (session of all methods)", "text"),
        "ratio": ("ratio", "short"),
    }
    for name in steps.columns[2:]:
        columns[name] = (name, "text")
    networks = networks_table(clear)
    # The title says of this network that methods of a large ratio are over four times as fast.
    is_titles = (
        (networks["workload"] == model.workload.name)
        & (networks["layout"] == "8 x 1")
        & (networks["bits_per_second"] == AT)
    )
    titles = networks[is_titles]
    timed_hold = not titles.empty and bool((titles["least"] > 4).all())
    return Timed(
        steps=steps,
        columns=columns,
        num_steps=(
            int(of_workload["num_steps"].min()),
            int(of_workload["num_steps"].max()),
        ),
        has_ranges=bool((of_workload["interval"] == "range").any()),
        others=networks[networks["workload"] != model.workload.name],
        holds=timed_hold and _scored_hold(study),
    )


def _scored_hold(study: SpeedStudy) -> bool:
    """Return whether scored methods at ratio 64 or more bear the title out too."""
    steps = steps_frame(study.sessions)
    steps = steps[steps["bits_per_second"] == AT]
    is_ddp = steps["method"] == DDP
    slowest = steps.loc[(steps["ratio"] >= 64) & ~steps["baseline"], "seconds"].max()
    return not is_ddp.any() or bool(4 * slowest < steps.loc[is_ddp, "seconds"].min())


def _modelled(
    study: SpeedStudy, model: WorkloadModel, sweeps: pd.DataFrame
) -> Modelled:
    """Return what the model says of a workload's steps; `sweeps` is `sweeps_frame`."""
    at_one_rate = comparisons.speedups_frame(model, [AT]).set_index("method")
    proposed: Any = at_one_rate.loc[PROPOSED].copy()
    proposed["best_label"] = model.methods[str(proposed["best_baseline"])].label
    headlines = comparisons.headlines_frame(study)
    if len(headlines):
        headlines = headlines_table(headlines)
    large_messages = sweeps[sweeps["payload_bytes"] >= LARGE_MESSAGE]
    return Modelled(
        proposed=proposed,
        ratio=model.methods[PROPOSED].payload_reduction(model.workload.num_parameters),
        headlines=headlines,
        agreement=agreement_frame(study.timed_steps),
        beyond_formula=large_messages["beyond_formula"].abs(),
    )


def families_of(experiments: Sequence[Frames]) -> dict[str, str]:
    """Return the family of each algorithm of the experiments."""
    families: dict[str, str] = {}
    for frames in experiments:
        families |= frames.experiment.families
    return families


def _scored(study: SpeedStudy, frames: Frames, joined: pd.DataFrame) -> Scored:
    """Return the steps of the experiment that the page shows."""
    timed = joined.dropna(subset=["seconds"])
    baselines = baselines_frame(study.sessions)
    # DDP is scored, as its row is SGD; its fp16 hook may not be.
    not_scored = baselines[~baselines["method"].isin(timed["method"])]
    columns: Columns = {
        "label": ("method (sessions of scored settings)", "text"),
        "ratio": ("ratio", "amount"),
        "loss": ("accuracy drop, points (95 % CI)", "text"),
    }
    for bits in sorted(timed["bits_per_second"].unique()):
        columns[bits] = (f"ms at {rate(bits)}", "text")
    return Scored(
        experiment=frames.experiment,
        regime=regime_of(frames),
        timed=timed,
        baselines=baselines,
        table=joined_table(pd.concat([timed, not_scored])),
        columns=columns,
        intervals=_intervals(timed["interval"]),
    )


def _head(scored: Scored | None, modelled: Modelled | None) -> pd.DataFrame | None:
    """Return the report's first table; None where nothing can be compared."""
    if modelled is None:
        return None
    # Without scored methods the table has what is modelled alone.
    timed = baselines = pd.DataFrame(
        columns=["bits_per_second", "estimate", "label", "seconds", "method"]
    )
    if scored is not None:
        timed = scored.timed
        baselines = scored.baselines
    return head_table(timed, baselines, modelled.proposed, modelled.ratio)


def _machine(study: SpeedStudy) -> dict[str, str]:
    """Return on what and how all was timed, as texts."""
    attempts = study.attempts
    if not attempts:
        return {}
    first = attempts[0]
    accelerator = first.accelerator or "no accelerator"
    packages = [f"{name} {version}" for name, version in sorted(first.packages.items())]
    commits = {(attempt.git_commit or "none")[:12] for attempt in attempts}
    commands = dict.fromkeys(attempt.command for attempt in attempts)
    begin = min(attempt.started_at for attempt in attempts)
    return {
        "host": f"{first.host}: {first.cpu}, {first.num_cpus} CPUs, {accelerator}",
        "packages": f"Python {first.python}; {', '.join(packages)}",
        "commits": ", ".join(sorted(commits)),
        "command": "; ".join(commands),
        "from": begin[:10],
    }
