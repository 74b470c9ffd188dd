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
    RIVAL_WORDS,
    RIVALS,
    agreement_frame,
    costs_frame,
    headline_marks,
    headlines_frame,
    layouts_frame,
    log_grid,
    needed_ratios_frame,
    spans_frame,
    speedups_frame,
)
from report.speed.figures import draw_headlines, draw_loss_and_step, draw_speedups
from report.speed.published_links import published_links
from report.speed.scored import joined_frame, scored_experiments, scored_steps_frame
from report.speed.tables import (
    AT,
    RATES,
    at_rates,
    costs_table,
    encoding_frame,
    exchanges,
    fits_frame,
    headlines_table,
    large,
    latency,
    layouts_table,
    others_table,
    published_table,
    steps_table,
    sweeps_frame,
    verdicts,
    wire,
)
from report.speed.timed import STUDY
from report.speed.workload_model import SpeedStudy, read_study
from report.wording import milliseconds, rate


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
    context, frames, figures = contents(study, experiments)
    return write_report(output or folder, "report", "speed.md.j2", context, frames, figures)


def contents(
    study: SpeedStudy, experiments: Sequence[Frames]
) -> tuple[dict[str, Any], dict[str, pd.DataFrame], dict[str, Figure]]:
    """What the template names, the tables by name of their CSV, and the figures."""
    modelled = [
        model for model in study.models.values() if model.is_modelled and {DDP, PROPOSED} <= model.methods.keys()
    ]
    model = next((m for m in modelled if m.workload.name == HEADLINES[0].workload), None) or next(iter(modelled), None)
    context: dict[str, Any] = {"study": study, "model": model, "workloads": list(study.models.values()), "at": AT}
    context |= {"machine": _machine(study), "left_out": _left_out(study)}
    frames = {"step_times": study.cells, "sweeps": sweeps_frame(study.records.sweeps), "fits": fits_frame(study.fits)}
    figures: dict[str, Figure] = {}
    sessions = study.records.sessions
    joined = [joined_frame(each, sessions) for each in experiments]
    context |= {"sessions": sessions, "scored": scored_steps_frame(sessions), "joined": None}
    frames["scored_steps"] = context["scored"]
    if joined and sessions:
        frames["loss_and_step"] = pd.concat(joined)
        has_loss = len(joined[0].dropna(subset=["seconds", "estimate"])) > 0
        context |= _joined_context(joined[0]) | {
            "joined": joined[0],
            "experiment": experiments[0].experiment,
            "has_loss": has_loss,
        }
        if has_loss:
            figures["loss_and_step"] = draw_loss_and_step(joined[0], experiments[0].experiment.margin)
    if model is None:
        return context | {"modelled": False}, frames, figures
    cells = study.cells[study.cells["workload"] == model.workload.name]
    frames |= {
        "modelled": pd.concat([speedups_frame(m, log_grid(LOWEST, HIGHEST)) for m in modelled]),
        "faster_than": pd.concat([spans_frame(m) for m in modelled]),
        "headlines": headlines_frame(study),
        "layouts": layouts_frame(model, AT),
        "costs": costs_frame(model),
        "agreement": agreement_frame(study.cells),
        "needed_ratios": pd.concat([needed_ratios_frame(m, (1e8, *RATES)) for m in modelled]),
        "encoding": encoding_frame(study),
    }
    figures["speedups"] = draw_speedups(study, model)
    if len(frames["headlines"]):
        figures["headlines"] = draw_headlines(study, frames["headlines"])
    shown = [headline for headline in HEADLINES if headline.workload in study.models]
    headline_models = [study.models[headline.workload] for headline in shown]
    marks = {each.words: headline_marks(each, study.models[each.workload]) for each in shown}
    steps, layouts = steps_table(cells), layouts_table(cells, frames["layouts"])
    headlines = headlines_table(frames["headlines"])
    file, published = published_links()
    frames["published_links"] = published
    agreement = frames["agreement"][frames["agreement"]["layout"] == "all"].to_dict("records")
    needed_rates: list[Any] = sorted(frames["needed_ratios"]["bits_per_second"].unique())
    needed = frames["needed_ratios"].pivot(index="workload", columns="bits_per_second", values="ratio").reset_index()
    context |= {
        "modelled": True,
        "frames": frames,
        "steps": steps,
        "step_columns": {"label": ("method", "text"), "ratio": ("ratio", "short")}
        | {name: (name, "text") for name in steps.columns[2:]},
        "has_ranges": bool((cells["interval"] == "range").any()),
        "least_steps": int(cells["num_steps"].min()),
        "most_steps": int(cells["num_steps"].max()),
        "large": large(cells).to_dict("records"),
        "networks_at": f"8 x 1, {rate(AT)}",
        "best": at_rates(model).to_dict("records"),
        "headlines": headlines,
        "headline_columns": {"headline": ("published", "text"), "compute_seconds": ("compute, ms", "milliseconds")}
        | {f"{r}_said": (f"over {RIVAL_WORDS[r]}", "text") for r in RIVALS if f"{r}_said" in headlines},
        "verdicts": verdicts(headlines),
        "batches": " and ".join(f"{m.workload.batch_size} images for {m.workload.name}" for m in headline_models),
        "marks": marks,
        "layouts": layouts,
        "agreement": agreement,
        "others": others_table(study, model),
        "exchanges": exchanges(study.cells),
        "latency": latency(cells),
        "wire": wire(frames["sweeps"]),
        "needed": needed,
        "needed_columns": {"workload": ("workload", "text")} | {b: (rate(b), "amount") for b in needed_rates},
        "costs": costs_table(frames["costs"]),
        "cost_sources": list(dict.fromkeys(frames["costs"]["source"])) if len(frames["costs"]) else [],
        "published": published_table(published),
        "published_source": file["source"],
        "published_miss": (published["modelled"] / published["published"] - 1)[~published["solved"]].abs().median(),
        "published_columns": {"sync_interval": ("steps between", "count")}
        | {bits: (rate(bits), "text") for bits in sorted(published["bits_per_second"].unique())},
        "longest": frames["encoding"].sort_values("alone_seconds", na_position="first").iloc[-1].to_dict(),
    }
    return context, frames, figures


def _as_scored(timed: pd.DataFrame) -> list[dict[Any, Any]]:
    """At `AT` the proposed method as it is scored and the fastest that loses no more: over DDP, and against SGD."""
    at = timed[timed["bits_per_second"] == AT].dropna(subset=["estimate"])
    base, own = at[at["method"] == DDP]["seconds"], at[at["label"] == "M-CSER"]
    if base.empty or own.empty:
        return []
    better = at[(at["estimate"] >= own["estimate"].iloc[0]) & (at["label"] != "M-CSER")].sort_values("seconds")
    shown = pd.concat([own.head(1), better.head(1)])
    gains = float(base.iloc[0]) / shown["seconds"]
    found: list[dict[Any, Any]] = shown.assign(gain=gains)[["label", "gain", "estimate"]].to_dict("records")
    return found


def _joined_context(joined: pd.DataFrame) -> dict[str, Any]:
    """The rows that were timed, a column a rate, those that were not, and what their intervals are."""
    timed = joined.dropna(subset=["seconds"])
    said = [
        f"{milliseconds(seconds)} ({milliseconds(low)} to {milliseconds(high)})"
        for seconds, low, high in zip(timed["seconds"], timed["seconds_low"], timed["seconds_high"], strict=True)
    ]
    keys = ["row", "label", "ratio", "estimate"]
    wide = timed.assign(said=said).pivot(index=keys, columns="bits_per_second", values="said").reset_index()
    wide = wide.sort_values("estimate", ascending=False, ignore_index=True)
    kinds = {
        "t": "Behind a time: the 95 % t interval of the mean step, of at least ten steps of each kind.",
        "sessions": "Behind a time: the lowest and highest mean of the sessions.",
        "range": "Behind a time: the lowest and highest of fewer than ten steps, a range.",
    }
    return {
        "as_scored": _as_scored(timed),
        "joined_rows": wide,
        "joined_columns": {
            "label": ("method", "text"),
            "ratio": ("ratio", "amount"),
            "estimate": ("points against SGD", "points"),
        }
        | {bits: (f"ms at {rate(bits)}", "text") for bits in sorted(timed["bits_per_second"].unique())},
        "untimed": sorted(set(joined["row"]) - set(timed["row"])),
        "interval_words": " ".join(kinds[kind] for kind in kinds if kind in set(timed["interval"])),
    }


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


def _left_out(study: SpeedStudy) -> list[str]:
    return list(dict.fromkeys(f"{entry.what}: {entry.why}" for entry in study.records.study.left_out))
