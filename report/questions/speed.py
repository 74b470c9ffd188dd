"""Questions on speed and money, from timed steps where there are any, else from the model, each called what it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import brentq

from harness.records.hardware import hardware
from report.plotting import new_figure
from report.questions.evidence import Answer, Evidence
from report.speed.comparisons import (
    CLEARLY,
    DDP,
    HIGHEST,
    LOWEST,
    PROPOSED,
    costs_frame,
    faster_spans,
    headlines_frame,
    layouts_frame,
    log_grid,
    needed_ratios_frame,
    speedup,
    speedups_frame,
)
from report.speed.scored import scored_steps_frame
from report.speed.tables import agreement_frame, costs_table
from report.speed.workload_model import SpeedStudy, WorkloadModel

WORKLOAD = "resnet50_v100"
AT = 10e9
"""Bits per second of a link at which single sentences are."""

BASELINES = ("all_reduce", DDP, "ddp_fp16", "powersgd_2")
OLDER = ("qsparse-96", "ef_topk-96", "local_sgd-96", "diloco-96", "ddp_powersgd_1", "ddp")
SCORED = "mcser-96"
"""M-CSER as the long experiment has it, in sessions of scored settings."""
LARGE = 256.0
"""The ratio of question 22."""


def _model(evidence: Evidence) -> tuple[SpeedStudy, WorkloadModel] | None:
    study = evidence.speed
    model = study.models.get(WORKLOAD) if study else None
    return (study, model) if study and model and model.is_modelled and PROPOSED in model.methods else None


def timed(study: SpeedStudy, machines: int) -> pd.DataFrame:
    """Cells of the workload on links of `AT`, by method; of several sessions that with the most methods."""
    cells = study.cells
    mine = cells[(cells["workload"] == WORKLOAD) & (cells["machines"] == machines)]
    mine = mine[(mine["bits_per_second"] / AT - 1).abs() < 0.01]
    if mine.empty:
        return mine.set_index("method")
    return mine[mine["timing"] == mine["timing"].value_counts().idxmax()].set_index("method")


def gain(cells: pd.DataFrame, method: str, baseline: str) -> dict[str, Any]:
    """Timed step of the baseline over that of the method; the ends divide end by end, so they are the widest."""
    own, base = cells.loc[method], cells.loc[baseline]
    ends = {"low": base["low"] / own["high"], "high": base["high"] / own["low"]}
    return {"factor": base["seconds"] / own["seconds"]} | ends


def which_baseline(evidence: Evidence) -> Answer | None:
    """Question 2: one method over every baseline."""
    found = _model(evidence)
    cells = timed(found[0], 8) if found else pd.DataFrame()
    if found is None or not {PROPOSED, *BASELINES} <= set(cells.index):
        return None
    baselines = [name for name in cells.index if cells.loc[name, "baseline"]]
    lines = [
        {"label": cells.loc[name, "label"], "ms": 1e3 * cells.loc[name, "seconds"]} | gain(cells, PROPOSED, name)
        for name in baselines
    ]
    frame = pd.DataFrame(lines, index=baselines).rename_axis("method").reset_index()
    over = frame.set_index("method")["factor"]
    numbers = {"ddp": over[DDP], "fp16": over["ddp_fp16"], "powersgd": over["powersgd_2"]}
    numbers |= {"steps": cells.loc[PROPOSED, "num_steps"], "ratio": cells.loc[PROPOSED, "ratio"]}
    return Answer(frame, numbers, None, frame[frame["method"].isin([*BASELINES, "ddp_no_overlap", "powersgd_1"])])


def which_layout(evidence: Evidence) -> Answer | None:
    """Question 3: the same eight workers on eight machines, on two and on one."""
    found = _model(evidence)
    if found is None:
        return None
    study, model = found
    modelled = layouts_frame(model, AT)
    lines = []
    for (machines, workers), group in modelled.groupby(["machines", "workers_per_machine"], sort=False):
        own: Any = group.set_index("method")
        cells: Any = timed(study, int(str(machines)))
        is_timed = {PROPOSED, DDP} <= set(cells.index)
        factor = gain(cells, PROPOSED, DDP)["factor"] if is_timed else math.nan
        line = {"layout": f"{machines} x {workers}", "machines": machines, "timed": factor}
        line |= {"timed_ms": 1e3 * cells.loc[DDP, "seconds"] if is_timed else math.nan}
        line |= {"modelled": own.loc[PROPOSED, "over_ddp"], "ddp_ms": 1e3 * own.loc[DDP, "seconds"]}
        lines.append(line)
    frame = pd.DataFrame(lines)
    by = frame.set_index("machines")
    best = by["timed"].fillna(by["modelled"])
    numbers = {"eight": best[8], "two": best[2], "one": best[1], "two_modelled": by["modelled"][2]}
    return Answer(frame, numbers, None, frame)


def which_bandwidth(evidence: Evidence) -> Answer | None:
    """Question 4: the rates below which it is clearly faster than DDP, and than the best baseline."""
    found = _model(evidence)
    if found is None:
        return None
    model = found[1]
    spans = {name: faster_spans(model, PROPOSED, name) for name in (DDP, "ddp_fp16", "powersgd_2")}
    grid = speedups_frame(model, log_grid(1e9, 100e9))
    own = grid[grid["method"] == PROPOSED]
    numbers = {name: max((high for _, high in each), default=math.nan) for name, each in spans.items()}
    numbers |= {"most_over_best": float(own["over_best"].max()), "least_over_best": float(own["over_best"].min())}
    numbers |= {"clearly": CLEARLY, "at": speedup(model, PROPOSED, DDP, AT)}
    return Answer(grid, numbers, _bandwidth(grid))


def _bandwidth(grid: pd.DataFrame) -> Figure:
    figure, panels = new_figure(1.45, 2)
    shown = {PROPOSED: "#1A5FD0", "local_sgd": "#1C8C4B", "ef_sgd": "#C23B00"}
    for axes, column, title in zip(
        panels, ("over_ddp", "over_best"), ("DDP in fp32", "the best baseline"), strict=True
    ):
        for method, colour in shown.items():
            own = grid[grid["method"] == method]
            if len(own):
                axes.plot(own["bits_per_second"] / 1e9, own[column], color=colour, label=own["label"].iloc[0])
        axes.axhline(1, color="#555555", linewidth=0.8)
        axes.set_title(f"over {title}", fontsize=7.5)
        axes.set_xlabel("link, Gb/s")
        axes.set_xlim(0, 102)
        axes.set_xticks([1, 25, 50, 75, 100])
    panels[0].set_ylim(0, 12)
    panels[1].set_ylim(0.9, 1.15)
    panels[0].set_ylabel("times as fast")
    panels[0].legend()
    return figure


def over_older_methods(evidence: Evidence) -> Answer | None:
    """Question 5: M-CSER's timed step beside those of the older methods, each with exactly the settings that score."""
    frame = scored_steps_frame(evidence.scored)
    if frame.empty or SCORED not in set(frame["method"]):
        return None
    frame["gbits"] = (frame["bits_per_second"] / 1e9).round().astype(int)
    own = frame[frame["method"] == SCORED].set_index("gbits")["seconds"]
    frame["mcser_over_it"] = frame["seconds"] / frame["gbits"].map(own)
    wide = frame.pivot(index=["method", "label"], columns="gbits", values="mcser_over_it").reset_index()
    wide = wide.rename(columns={gbits: f"at_{gbits}" for gbits in own.index})
    at = wide.set_index("method")["at_10"]
    numbers: dict[str, Any] = {"topk": at.get("ef_topk-96", np.nan), "local": at.get("local_sgd-96", np.nan)}
    numbers |= {"qsparse": at.get("qsparse-96", np.nan), "sessions": int(frame["num_sessions"].min())}
    numbers["most_sessions"] = int(frame["num_sessions"].max())
    shown = wide[wide["method"].isin(OLDER)].sort_values("at_10", ascending=False)
    return Answer(frame, numbers, None, shown)


def what_headlines_ask(evidence: Evidence) -> Answer | None:
    """Question 6: up to which rate the published factors hold, by the compute time of a step."""
    found = _model(evidence)
    if found is None:
        return None
    frame = headlines_frame(found[0])
    if frame.empty:
        return None
    own = frame[(frame["rival"] == DDP) & (frame["bits_per_second"] == AT)]
    own = own.loc[own.groupby(["headline", "compute_seconds"])["factor"].idxmax()]
    own = own.assign(ms=1e3 * own["compute_seconds"], gbits=own["holds_up_to"] / 1e9)
    imagenet = own[own["headline"].str.contains("ImageNet")].sort_values("compute_seconds")
    ours = found[1].compute_seconds
    near = imagenet.iloc[(imagenet["compute_seconds"] - ours).abs().argmin()]
    slow = imagenet.iloc[(imagenet["compute_seconds"] - 0.050).abs().argmin()]
    cifar = own[own["headline"].str.contains("CIFAR")].sort_values("compute_seconds")
    shown = pd.concat([imagenet[imagenet["ms"].isin([20, 30, 40, 50])], cifar[cifar["ms"].isin([30, 50])]])
    ten = cifar.iloc[(cifar["compute_seconds"] - 0.050).abs().argmin()]
    return Answer(frame, {"near": near, "slow": slow, "ten": ten}, None, shown)


def does_it_save_money(evidence: Evidence) -> Answer | None:
    """Question 7: dollars per thousand modelled steps, machine by machine."""
    found = _model(evidence)
    frame = costs_frame(found[1]) if found else pd.DataFrame()
    if frame.empty:
        return None
    shown = costs_table(frame)
    shown["gbits"] = shown["bits_per_second"] / 1e9
    errors = agreement_frame(found[0].cells) if found else pd.DataFrame()
    whole = errors[(errors["what"] == "step") & (errors["layout"] == "all")]["mean"]
    return Answer(frame, money(frame) | {"error": float(whole.iloc[0])}, None, shown)


def money(frame: pd.DataFrame) -> dict[str, Any]:
    """The change of the bill by the method where DDP is cheapest; `cheapest` names the machine."""
    base = frame[frame["method"] == DDP].sort_values("dollars_per_1000_steps").iloc[0]
    own = frame[(frame["method"] == PROPOSED) & (frame["machine"] == base["machine"])].iloc[0]
    change = own["dollars_per_1000_steps"] / base["dollars_per_1000_steps"] - 1
    gpus = next(machine.gpus for machine in hardware().machines if machine.name == base["machine"])
    where = {"cheapest": base["machine"], "machines": base["machines"], "gpus": gpus}
    return where | {"ddp": base["dollars_per_1000_steps"], "change": float(change)}


def which_ratio_is_needed(evidence: Evidence) -> Answer | None:
    """Question 22: the rate at which a ratio of 256 is just needed, solved for, and the ratio needed at five rates."""
    found = _model(evidence)
    if found is None:
        return None
    model = found[1]

    def beyond(log_bits: float) -> float:
        ratio = needed_ratios_frame(model, [math.exp(log_bits)])["ratio"].iloc[0]
        return math.log(1e6 if math.isnan(ratio) else ratio) - math.log(LARGE)

    bits = math.exp(brentq(beyond, math.log(LOWEST), math.log(HIGHEST), xtol=1e-6))
    frame = needed_ratios_frame(model, [100e6, 1e9, AT, 25e9, 100e9])
    frame["gbits"] = frame["bits_per_second"] / 1e9
    at = frame.set_index("gbits")["ratio"].get(10.0, np.nan)
    return Answer(frame, {"bits": bits, "at_10": at, "large": LARGE}, None, frame)
