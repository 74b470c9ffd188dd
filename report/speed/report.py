"""The report of a study of step times: what its template names, the frames behind it, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from report.frame import Frames, UsageError, read_frames
from report.render import write_report
from report.speed.comparisons import (
    DDP,
    HEADLINES,
    HIGHEST,
    LOWEST,
    PROPOSED,
    costs_frame,
    headlines_frame,
    layouts_frame,
    log_grid,
    needed_ratios_frame,
    speedups_frame,
)
from report.speed.figures import draw_headlines, draw_loss_and_step, draw_speedups
from report.speed.fitting import fits_frame
from report.speed.scored import baselines_frame, joined_frame, scored_experiments, scored_steps_frame
from report.speed.tables import (
    AT,
    agreement_frame,
    clear_cells,
    consecutive_table,
    costs_table,
    headlines_table,
    joined_table,
    networks_table,
    steps_table,
    sweeps_frame,
    wide_table,
)
from report.speed.timed import STUDY, consecutive_frame, wide_frame
from report.speed.workload_model import SpeedStudy, WorkloadModel, read_study

Parts = tuple[dict[str, Any], dict[str, pd.DataFrame], dict[str, Figure]]
"""What the template names, the tables by name of their CSV, and the figures."""


def is_speed_study(folder: Path) -> bool:
    """Whether the folder holds timings instead of an experiment."""
    return (folder / STUDY).exists()


def build_speed_report(folder: Path, accuracy: Sequence[Path] = (), output: Path | None = None) -> Path:
    """Write the report of a study; the same records give the same bytes of Markdown and CSV. Returns its path.

    Args:
        folder: of the study.
        accuracy: folders of accuracy experiments whose losses stand beside the step times; none given: those that the
            timed sessions name, where they lie beside the study or under reference/.
        output: where to write; None is the study's folder.

    Raises:
        UsageError: there is no such folder, no study in it, or no experiment in one of `accuracy`.
        RecordError: a record is damaged, or records of different machines are mixed; the message names the file.
        OSError: the output cannot be written.
    """
    if len({path.resolve() for path in accuracy}) < len(accuracy):
        raise UsageError("--accuracy names the same experiment twice; give each once")
    study = read_study(folder)
    given = [read_frames(path) for path in accuracy]
    experiments = given or scored_experiments(folder, study.records.sessions)
    return write_report(output or folder, "report", "speed.md.j2", *contents(study, experiments))


def contents(study: SpeedStudy, experiments: Sequence[Frames]) -> Parts:
    """What the template names, the tables by name of their CSV, and the figures."""
    modelled = [m for m in study.models.values() if m.is_modelled and {DDP, PROPOSED} <= m.methods.keys()]
    model = next((m for m in modelled if m.workload.name == HEADLINES[0].workload), None) or next(iter(modelled), None)
    context: dict[str, Any] = {
        "model": model,
        "workloads": list(study.models.values()),
        "at": AT,
        "machine": _machine(study),
        "left_out": dict.fromkeys(f"{entry.what}: {entry.why}" for entry in study.records.study.left_out),
    }
    frames = {"step_times": study.cells, "sweeps": sweeps_frame(study.records.sweeps), "fits": fits_frame(study.fits)}
    wide = wide_frame(study.records.wide)
    context["wide"] = wide_table(wide) if len(wide) else None
    if len(wide):
        frames["wide_steps"] = wide
        context["wide_link"], context["wide_load"] = wide["bits_per_second"].iloc[0], study.records.wide[0].workload
    row = consecutive_frame(study.records.consecutive)
    context["row"] = consecutive_table(row) if len(row) else None
    if len(row):
        frames["consecutive_steps"], context["row_load"] = row, study.records.consecutive[0].workload
        context["row_link"] = row["bits_per_second"].iloc[0]
        context["passes"] = row.loc[row["condition"] == row["condition"].iloc[0], "passes_seconds"].mean()
    parts = [_joined(study, experiments)] + ([_modelled(study, modelled, model)] if model else [])
    figures: dict[str, Figure] = {}
    for more_context, more_frames, more_figures in parts:
        context, frames, figures = context | more_context, frames | more_frames, figures | more_figures
    return context, frames, figures


def _modelled(study: SpeedStudy, modelled: Sequence[WorkloadModel], model: WorkloadModel) -> Parts:
    frames = {
        "modelled": pd.concat([speedups_frame(m, log_grid(LOWEST, HIGHEST)) for m in modelled]),
        "headlines": headlines_frame(study),
        "layouts": layouts_frame(model, AT),
        "costs": costs_frame(model),
        "agreement": agreement_frame(study.cells),
        "needed_ratios": pd.concat([needed_ratios_frame(m, (1e8, 1e9, AT, 25e9, 100e9)) for m in modelled]),
    }
    figures = {"speedups": draw_speedups(study, model)}
    headlines = frames["headlines"]
    if len(headlines):
        figures["headlines"] = draw_headlines(study, headlines)
    clear = clear_cells(study.cells)
    own = clear[clear["workload"] == model.workload.name]
    at = speedups_frame(model, [AT]).set_index("method").loc[PROPOSED]
    reach = headlines[(headlines["method"] == PROPOSED) & (headlines["rival"] == DDP) & headlines["source"].notna()]
    context = {
        "own": at,
        "own_ratio": model.methods[PROPOSED].ratio(model.workload.num_parameters),
        "best_label": model.methods[str(at["best_baseline"])].label,
        "networks": networks_table(clear, frames["layouts"]),
        "reach": [(words, own.iloc[0], own.iloc[-1]) for words, own in reach.groupby("headline", sort=False)],
        "agreement": frames["agreement"],
        "beyond_formula": sweeps_frame(study.records.sweeps).query("payload_bytes >= 1e6")["beyond_formula"].abs(),
        "steps": steps_table(own),
        "num_steps": (int(own["num_steps"].min()), int(own["num_steps"].max())),
        "has_ranges": bool((own["interval"] == "range").any()),
        "headlines": headlines_table(headlines) if len(headlines) else headlines,
        "costs": costs_table(frames["costs"]),
    }
    return context, frames, figures


def _joined(study: SpeedStudy, experiments: Sequence[Frames]) -> Parts:
    """Loss beside step time: of all experiments in the frames, of the first on the page."""
    sessions = study.records.sessions
    frames, figures = {"scored_steps": scored_steps_frame(sessions)}, {}
    if not sessions or not experiments:
        return {"sessions": sessions, "joined": None}, frames, {}
    joined = [joined_frame(each, sessions) for each in experiments]
    frames["loss_and_step"] = pd.concat(joined)
    experiment, timed = experiments[0].experiment, joined[0].dropna(subset=["seconds"])
    if timed["estimate"].notna().any():
        figures["loss_and_step"] = draw_loss_and_step(timed, experiment.margin)
    beside = baselines_frame(sessions)
    unscored = beside[~beside["method"].isin(timed["method"])]
    context = {
        "sessions": sessions,
        "joined": joined_table(pd.concat([timed, unscored])),
        "rates": sorted(timed["bits_per_second"].unique()),
        "intervals": set(timed["interval"]),
        "experiment": experiment,
        "has_loss": bool(figures),
        "as_scored": _as_scored(timed, beside),
    }
    return context, frames, figures


def _as_scored(timed: pd.DataFrame, beside: pd.DataFrame) -> list[dict[Any, Any]]:
    """At `AT` the proposed method as it is scored and the fastest that loses no more: over DDP, over the best of the
    baselines timed beside them, and against SGD."""
    at = timed[timed["bits_per_second"] == AT].dropna(subset=["estimate"])
    bases: Any = beside[beside["bits_per_second"] == AT].set_index("method")
    own = at[at["label"] == "M-CSER"]
    if DDP not in bases.index or own.empty:
        return []
    better = at[(at["estimate"] >= own["estimate"].iloc[0]) & (at["label"] != "M-CSER")].sort_values("seconds")
    shown = pd.concat([own.head(1), better.head(1)])
    best = bases.loc[bases["seconds"].idxmin()]
    over = {"over_ddp": bases.loc[DDP, "seconds"] / shown["seconds"], "over_best": best["seconds"] / shown["seconds"]}
    found: list[dict[Any, Any]] = shown.assign(**over, best_label=best["label"]).to_dict("records")
    return found


def _machine(study: SpeedStudy) -> dict[str, str]:
    attempts = study.records.attempts
    if not attempts:
        return {}
    first = attempts[0]
    packages = ", ".join(f"{name} {version}" for name, version in sorted(first.packages.items()))
    return {
        "host": f"{first.host}: {first.cpu}, {first.num_cpus} CPUs, {first.accelerator or 'no accelerator'}",
        "packages": f"Python {first.python}; {packages}",
        "commits": ", ".join(sorted({(attempt.git_commit or "none")[:12] for attempt in attempts})),
        "command": "; ".join(dict.fromkeys(attempt.command for attempt in attempts)),
        "from": min(attempt.started_at for attempt in attempts)[:10],
    }
