"""The report of a study of step times: what its template names, its tables and its figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cser_bench.report.frame import Frames
from cser_bench.report.render import write_report
from cser_bench.report.speed import comparisons
from cser_bench.report.speed.comparisons import AT, DDP, PROPOSED, SOME_RATES
from cser_bench.report.speed.figures import draw_loss_and_step, draw_speedups
from cser_bench.report.speed.fitting import fits_frame
from cser_bench.report.speed.tables import (
    agreement_frame,
    clear_cells,
    conditions_table,
    costs_table,
    headlines_table,
    joined_table,
    networks_table,
    steps_table,
    sweeps_frame,
)
from cser_bench.report.speed.timed import (
    WIDE,
    baselines_frame,
    conditions_frame,
    joined_frame,
    scored_steps_frame,
)
from cser_bench.report.speed.workload_model import SpeedStudy, WorkloadModel

Parts = tuple[dict[str, Any], dict[str, pd.DataFrame], dict[str, Figure]]
"""What the template names, the tables by name of their CSV, and the figures."""


def build_speed_report(study: SpeedStudy, experiments: Sequence[Frames], output: Path) -> Path:
    """Write the report of a study into a folder, and return its path.

    Tables join the experiments' losses with step times. The same records give the same bytes of
    Markdown and CSV.

    Raises:
        OSError: the output cannot be written.
    """
    return write_report(output, "report", "speed.md.j2", *contents(study, experiments))


def contents(study: SpeedStudy, experiments: Sequence[Frames]) -> Parts:
    """Return what the template names, the tables by name of their CSV, and the figures."""
    left_out = [f"{entry.what}: {entry.why}" for entry in study.study.left_out]
    modelled = _modelled(study)
    model = _first_model(modelled)
    context: dict[str, Any] = {
        "model": model,
        "workloads": list(study.models.values()),
        "at": AT,
        "records": study,
        "machine": _machine(study),
        "left_out": dict.fromkeys(left_out),
    }
    frames = {
        "step_times": study.cells,
        "sweeps": sweeps_frame(study.sweeps),
        "fits": fits_frame(study.fits),
    }
    figures: dict[str, Figure] = {}
    parts = [_conditions_part(study), _joined_part(study, experiments)]
    if model is not None:
        parts.append(
            _modelled_part(study, modelled, model, frames["sweeps"], families_of(experiments))
        )
    for part_context, part_frames, part_figures in parts:
        context |= part_context
        frames |= part_frames
        figures |= part_figures
    return context, frames, figures


def _modelled(study: SpeedStudy) -> list[WorkloadModel]:
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


def _conditions_part(study: SpeedStudy) -> Parts:
    """Return steps on links of several latencies, and steps in a row."""
    wide = conditions_frame(study.wide)
    row = conditions_frame(study.consecutive)
    text = conditions_frame(study.text)
    context: dict[str, Any] = {
        "wide": None,
        "row": None,
        "text": None,
        "row_at": {},
        "passes": None,
    }
    frames = {}
    if len(wide):
        frames["wide_steps"] = wide[WIDE]
        table = conditions_table(wide)
        # `conditions_frame` goes from the least latency to the largest.
        furthest = table.columns[-1]
        context["wide"] = table.sort_values(furthest)
    if len(row):
        frames["consecutive_steps"] = row
        table = conditions_table(row)
        context["row"] = table
        context["row_at"] = table.set_index("label").to_dict("index")
        is_first = row["condition"] == row["condition"].iloc[0]
        context["passes"] = row.loc[is_first, "passes_seconds"].mean()
    if len(text):
        frames["text_steps"] = text
        context["text"] = conditions_table(text)
    return context, frames, {}


def _modelled_part(
    study: SpeedStudy,
    modelled: Sequence[WorkloadModel],
    model: WorkloadModel,
    sweeps: pd.DataFrame,
    families: Mapping[str, str],
) -> Parts:
    """Return what the model says: of all rates, of the headlines, of layouts and of cost."""
    speedups = [comparisons.speedups_frame(each, comparisons.RATES) for each in modelled]
    ratios = [comparisons.needed_ratios_frame(each, SOME_RATES) for each in modelled]
    headlines = comparisons.headlines_frame(study)
    layouts = comparisons.layouts_frame(model, AT)
    costs = comparisons.costs_frame(model)
    agreement = agreement_frame(study.cells)
    frames = {
        "modelled": pd.concat(speedups),
        "headlines": headlines,
        "layouts": layouts,
        "costs": costs,
        "agreement": agreement,
        "needed_ratios": pd.concat(ratios),
    }
    clear = clear_cells(study.cells)
    timed = clear[clear["workload"] == model.workload.name]
    at_one_rate = comparisons.speedups_frame(model, [AT]).set_index("method")
    proposed = at_one_rate.loc[PROPOSED]
    best_baseline = model.methods[str(proposed["best_baseline"])]
    # A small message is nearly all headers and acknowledgements.
    large_messages = sweeps[sweeps["payload_bytes"] >= 1e6]
    context = {
        "own": proposed,
        "own_ratio": model.methods[PROPOSED].payload_ratio(model.workload.num_parameters),
        "best_label": best_baseline.label,
        "networks": networks_table(clear, layouts),
        "reach": _reach(headlines),
        "agreement": agreement,
        "beyond_formula": large_messages["beyond_formula"].abs(),
        "steps": steps_table(timed),
        "num_steps": (int(timed["num_steps"].min()), int(timed["num_steps"].max())),
        "has_ranges": bool((timed["interval"] == "range").any()),
        "headlines": headlines_table(headlines) if len(headlines) else headlines,
        "costs": costs_table(costs),
    }
    return context, frames, {"speedups": draw_speedups(study, model, families)}


def _reach(headlines: pd.DataFrame) -> list[tuple[Any, pd.Series, pd.Series]]:
    """Return of each headline its words, and its lines of the fastest and the slowest device."""
    is_shown = (
        (headlines["method"] == PROPOSED)
        & (headlines["rival"] == DDP)
        & headlines["source"].notna()
    )
    reach = []
    for words, lines in headlines[is_shown].groupby("headline", sort=False):
        # `headlines_frame` goes from the least compute time to the most.
        reach.append((words, lines.iloc[0], lines.iloc[-1]))
    return reach


def families_of(experiments: Sequence[Frames]) -> dict[str, str]:
    """Return the family of each algorithm of the experiments."""
    families: dict[str, str] = {}
    for frames in experiments:
        families |= frames.experiment.families
    return families


def _joined_part(study: SpeedStudy, experiments: Sequence[Frames]) -> Parts:
    """Return losses joined with step times: all experiments as frames, the first one on the page."""
    sessions = study.sessions
    frames = {"scored_steps": scored_steps_frame(sessions)}
    if not sessions or not experiments:
        return {"joined": None}, frames, {}
    joined = [joined_frame(experiment, sessions) for experiment in experiments]
    frames["loss_and_step"] = pd.concat(joined)
    experiment = experiments[0].experiment
    timed = joined[0].dropna(subset=["seconds"])
    figures = {}
    if timed["estimate"].notna().any():
        figures["loss_and_step"] = draw_loss_and_step(
            timed, experiment.margin, families_of(experiments)
        )
    baselines = baselines_frame(sessions)
    not_scored = baselines[~baselines["method"].isin(timed["method"])]
    context = {
        "joined": joined_table(pd.concat([timed, not_scored])),
        "rates": sorted(timed["bits_per_second"].unique()),
        "intervals": set(timed["interval"]),
        "experiment": experiment,
        "has_loss": bool(figures),
        "as_scored": _as_scored(timed, baselines),
    }
    return context, frames, figures


def _as_scored(timed: pd.DataFrame, baselines: pd.DataFrame) -> list[dict[Any, Any]]:
    """Return the proposed method at `AT` as scored, and the fastest that loses no more.

    Each over DDP and over the best baseline.
    """
    lines = timed[timed["bits_per_second"] == AT].dropna(subset=["estimate"])
    baselines_at: Any = baselines[baselines["bits_per_second"] == AT].set_index("method")
    is_proposed = lines["label"] == "M-CSER"
    proposed = lines[is_proposed]
    if DDP not in baselines_at.index or proposed.empty:
        return []
    loses_no_more = lines["estimate"] >= proposed["estimate"].iloc[0]
    others = lines[loses_no_more & ~is_proposed].sort_values("seconds")
    shown = pd.concat([proposed.head(1), others.head(1)])
    best = baselines_at.loc[baselines_at["seconds"].idxmin()]
    shown = shown.assign(
        unit="points",
        over_ddp=baselines_at.loc[DDP, "seconds"] / shown["seconds"],
        over_best=best["seconds"] / shown["seconds"],
        best_label=best["label"],
    )
    records: list[dict[Any, Any]] = shown.to_dict("records")
    return records


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
