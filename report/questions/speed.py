"""Questions on speed and money, from timed steps where there are any, else from the model, each
called what it is."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import brentq

from cser_bench.harness.measures.hardware import hardware
from cser_bench.report.plotting import FAMILIES, GREY, new_figure
from cser_bench.report.questions.evidence import Answer, Evidence
from cser_bench.report.speed import comparisons
from cser_bench.report.speed.comparisons import AT, DDP, PROPOSED, SOME_RATES
from cser_bench.report.speed.tables import costs_table
from cser_bench.report.speed.timed import scored_steps_frame
from cser_bench.report.speed.workload_model import SpeedStudy, WorkloadModel

WORKLOAD = "resnet50_v100"
BASELINES = ("all_reduce", DDP, "ddp_fp16", "powersgd_2")
OLDER = ("local_sgd", "ef_sgd")
"""Timed methods that the proposed one is drawn beside: local steps, and error feedback."""
RIVAL = "ddp_powersgd_1"
"""The best baseline of the sessions of scored settings: DDP with PyTorch's PowerSGD hook of rank
1."""
LARGE = 256.0
"""The ratio of question 22."""


def of_model(
    answer: Callable[[SpeedStudy, WorkloadModel], Answer | None],
) -> Callable[[Evidence], Answer | None]:
    """Decorator of an answer from the model of one workload: there is none where that cannot be
    modelled."""

    @wraps(answer)
    def answered(evidence: Evidence) -> Answer | None:
        study = evidence.speed
        model = study.models.get(WORKLOAD) if study else None
        can = study and model and model.is_modelled and PROPOSED in model.methods
        return answer(study, model) if study and model and can else None

    return answered


def timed(study: SpeedStudy, machines: int) -> pd.DataFrame:
    """Cells of the workload on links of `AT`, by method; of several sessions that with the most
    methods."""
    cells = study.cells
    mine = cells[(cells["workload"] == WORKLOAD) & (cells["machines"] == machines)]
    mine = mine[(mine["bits_per_second"] / AT - 1).abs() < 0.01]
    return mine[mine["timing"].isin(mine["timing"].value_counts().index[:1])].set_index("method")


def gain(cells: pd.DataFrame, method: str, baseline: str) -> dict[str, Any]:
    """Timed step of the baseline over that of the method; the ends divide end by end, so they are
    the widest."""
    own = cells.loc[method]
    base = cells.loc[baseline]
    ends = {
        "low": base["low"] / own["high"],
        "high": base["high"] / own["low"],
    }
    return {"factor": base["seconds"] / own["seconds"]} | ends


def scored_cells(evidence: Evidence) -> pd.DataFrame:
    """Return the steps of the sessions of scored settings on links of `AT`, by method."""
    steps = scored_steps_frame(evidence.scored)
    is_at_rate = (steps["bits_per_second"] / AT - 1).abs() < 0.01
    return steps[is_at_rate].set_index("method")


def which_baseline(evidence: Evidence) -> Answer | None:
    """Question 2: one method over every baseline, first with the settings that score."""
    answer = _over_every_baseline(evidence)
    if answer is None:
        return None
    seconds = scored_cells(evidence)["seconds"]
    scored = scored_method(evidence)
    over = {}
    if scored is not None and scored in seconds:
        over = (seconds / seconds[scored]).to_dict()
    return replace(
        answer,
        numbers={
            **answer.numbers,
            "scored": over,
        },
    )


@of_model
def _over_every_baseline(study: SpeedStudy, _: WorkloadModel) -> Answer | None:
    """One method over every baseline, whether its settings were scored or not."""
    cells = timed(study, 8)
    if not {PROPOSED, *BASELINES} <= set(cells.index):
        return None
    bases = cells[cells["baseline"]]
    lines = [
        {
            "method": name,
            "label": line["label"],
            "ms": 1e3 * line["seconds"],
        }
        | gain(cells, PROPOSED, str(name))
        for name, line in bases.iterrows()
    ]
    frame = pd.DataFrame(lines)
    numbers = {
        "over": frame.set_index("method")["factor"],
        "own": cells.loc[PROPOSED],
    }
    return Answer(
        frame,
        numbers,
        rows=frame[frame["method"].isin([*BASELINES, "ddp_no_overlap", "powersgd_1"])],
    )


def ratio_of(model: WorkloadModel) -> float:
    """Return the compression ratio of the proposed method, as it was timed."""
    return model.methods[PROPOSED].payload_ratio(model.workload.num_parameters)


@of_model
def which_layout(study: SpeedStudy, model: WorkloadModel) -> Answer:
    """Question 3: the same eight workers on eight machines, on two and on one."""
    lines = []
    layouts = comparisons.layouts_frame(model, AT).groupby(
        ["machines", "workers_per_machine"], sort=False
    )
    for (machines, workers), group in layouts:
        own: Any = group.set_index("method")
        step = timed(study, int(str(machines)))["seconds"].reindex([DDP, PROPOSED])
        numbers = (
            step[DDP] / step[PROPOSED],
            1e3 * step[DDP],
            own["over_ddp"][PROPOSED],
            1e3 * own["seconds"][DDP],
        )
        lines.append((f"{machines} x {workers}", machines, *numbers))
    frame = pd.DataFrame(
        lines,
        columns=[
            "layout",
            "machines",
            "timed",
            "timed_ms",
            "modelled",
            "ddp_ms",
        ],
    )
    by_machines = frame.set_index("machines")
    numbers_of_all = {
        "best": by_machines["timed"].fillna(by_machines["modelled"]),
        "modelled": by_machines["modelled"],
        "error": study.cells["error"].abs().mean(),
        "ratio": ratio_of(model),
    }
    return Answer(frame, numbers_of_all)


@of_model
def which_bandwidth(_: SpeedStudy, model: WorkloadModel) -> Answer:
    """Question 4: the rate below which it is clearly faster than DDP, and how fast it is beside the
    best baseline."""
    grid = comparisons.speedups_frame(model, comparisons.log_grid(1e9, 100e9))
    over_best = grid.loc[grid["method"] == PROPOSED, "over_best"]
    below = comparisons.highest_rate(
        partial(
            comparisons.speedup,
            model,
            PROPOSED,
            DDP,
        ),
        comparisons.CLEARLY,
    )
    over_ddp = grid.pivot(index="bits_per_second", columns="method", values="over_ddp")
    older = [name for name in OLDER if name in over_ddp]
    older_over_it = over_ddp[older].max(axis="columns") / over_ddp[PROPOSED]
    numbers = {
        "ddp": below,
        "clearly": comparisons.CLEARLY,
        "most_over_best": over_best.max(),
        "least_over_best": over_best.min(),
        "older": [model.methods[name].label for name in older],
        "older_over_it": (older_over_it.min(), older_over_it.max()),
        "rates": (grid["bits_per_second"].min() / 1e9, grid["bits_per_second"].max() / 1e9),
        "ratio": ratio_of(model),
        "compute_seconds": model.workload.compute_seconds,
    }
    return Answer(grid, numbers, _bandwidth(grid))


def _bandwidth(grid: pd.DataFrame) -> Figure:
    figure, panels = new_figure(1.45, 2)
    shown = {
        PROPOSED: FAMILIES["error reset"],
        **dict(zip(OLDER, (FAMILIES["local steps"], FAMILIES["error feedback"]), strict=True)),
    }
    sides = (("over_ddp", "DDP in fp32", (0, 12)), ("over_best", "the best baseline", (0.9, 1.15)))
    for axes, (column, title, limits) in zip(panels, sides, strict=True):
        for method, colour in shown.items():
            own = grid[grid["method"] == method]
            if len(own):
                axes.plot(
                    own["bits_per_second"] / 1e9,
                    own[column],
                    color=colour,
                    label=own["label"].iloc[0],
                )
        axes.axhline(1, **GREY)
        axes.set_title(f"over {title}", fontsize=7.5)
        axes.set(
            xlabel="link, Gb/s",
            xlim=(0, 102),
            xticks=[
                1,
                25,
                50,
                75,
                100,
            ],
            ylim=limits,
        )
    panels[0].set_ylabel("times as fast")
    panels[0].legend()
    return figure


def scored_method(evidence: Evidence) -> str | None:
    """Return M-CSER as the answers quote it, by the name that sessions of scored settings give it:
    that of its row."""
    quoted = evidence.first("reference")
    return quoted.row("reset") if quoted else None


def over_older_methods(evidence: Evidence) -> Answer | None:
    """Question 5: M-CSER's timed step beside those of the older methods, each with exactly the
    settings that score."""
    quoted = evidence.first("reference")
    scored = scored_method(evidence)
    frame = scored_steps_frame(evidence.scored)
    if quoted is None or scored not in set(frame["method"]):
        return None
    frame["gbits"] = (frame["bits_per_second"] / 1e9).round().astype(int)
    steps = frame[frame["method"] == scored].set_index("gbits")["seconds"]
    frame["mcser_over_it"] = frame["seconds"] / frame["gbits"].map(steps)
    wide = frame.pivot(
        index=["method", "label"], columns="gbits", values="mcser_over_it"
    ).reset_index()
    wide = wide.rename(columns={gbits: f"at_{gbits}" for gbits in steps.index})
    older = [row for row in quoted.about.shown if not quoted.is_of_family(row, "error reset")]
    shown = wide[wide["method"].isin([*older, RIVAL, DDP])]
    by_name = wide.set_index("method")
    numbers = {
        "over": [(line["label"], line["at_10"]) for _, line in by_name.reindex(older).iterrows()],
        "sessions": frame["num_sessions"].min(),
        "most_sessions": frame["num_sessions"].max(),
    }
    return Answer(frame, numbers, rows=shown.sort_values("at_10", ascending=False))


@of_model
def what_headlines_ask(study: SpeedStudy, model: WorkloadModel) -> Answer | None:
    """Question 6: up to which rate the published factors hold, by the compute time of a step."""
    frame = comparisons.headlines_frame(study)
    if frame.empty:
        return None
    own = frame[(frame["rival"] == DDP) & (frame["bits_per_second"] == AT)]
    own = own.loc[own.groupby(["headline", "compute_seconds"])["factor"].idxmax()]
    own = own.assign(ms=1e3 * own["compute_seconds"], gbits=own["holds_up_to"] / 1e9).sort_values(
        "compute_seconds"
    )
    imagenet, cifar = (own[own["headline"].str.contains(task)] for task in ("ImageNet", "CIFAR"))

    def nearest(lines: pd.DataFrame, seconds: float) -> pd.Series:
        return lines.iloc[(lines["compute_seconds"] - seconds).abs().argmin()]

    shown = pd.concat(
        [imagenet[imagenet["ms"].isin([20, 30, 40, 50])], cifar[cifar["ms"].isin([30, 50])]]
    )
    near, slow = nearest(imagenet, model.workload.compute_seconds), nearest(imagenet, 0.050)
    return Answer(
        frame,
        {
            "near": near,
            "slow": slow,
            "ten": nearest(cifar, 0.050),
        },
        rows=shown,
    )


def does_it_save_money(evidence: Evidence) -> Answer | None:
    """Question 7: dollars per thousand modelled steps; the change of the bill by the method where
    DDP is cheapest, and whether the method is faster than the best baseline as it was scored."""
    answer = _bills(evidence)
    if answer is None:
        return None
    cells = scored_cells(evidence)
    scored = scored_method(evidence)
    over_best = None
    if scored is not None and {scored, RIVAL} <= set(cells.index):
        over_best = gain(cells, scored, RIVAL)
    return replace(
        answer,
        numbers={
            **answer.numbers,
            "scored_over_best": over_best,
        },
    )


@of_model
def _bills(study: SpeedStudy, model: WorkloadModel) -> Answer | None:
    """Dollars per thousand modelled steps on each cluster with a price."""
    frame = comparisons.costs_frame(model)
    if frame.empty:
        return None
    shown = costs_table(frame)
    shown["gbits"] = shown["bits_per_second"] / 1e9
    cheapest = shown.sort_values(DDP).iloc[0]
    most_machines = shown.sort_values("machines").iloc[-1]
    [gpus] = [
        machine.gpus for machine in hardware().machines if machine.name == cheapest["machine"]
    ]
    numbers = {
        "cheapest": cheapest["machine"],
        "machines": cheapest["machines"],
        "gpus": gpus,
        "change": cheapest[PROPOSED] / cheapest[DDP] - 1,
        "most_machines": most_machines["machines"],
        "saved_on_most": 1 - most_machines[PROPOSED] / most_machines[DDP],
        "error": study.cells["error"].abs().mean(),
        "ratio": ratio_of(model),
        "gbits": AT / 1e9,
    }
    return Answer(frame, numbers, rows=shown)


@of_model
def which_ratio_is_needed(_: SpeedStudy, model: WorkloadModel) -> Answer:
    """Question 22: the rate at which a ratio of 256 is just needed, solved for, and the ratio
    needed at five rates."""

    def beyond(log_bits: float) -> float:
        ratio = comparisons.needed_ratios_frame(model, [math.exp(log_bits)])["ratio"].iloc[0]
        return math.log(1e6 if math.isnan(ratio) else ratio) - math.log(LARGE)

    bits = math.exp(
        brentq(
            beyond,
            math.log(comparisons.LOWEST),
            math.log(comparisons.HIGHEST),
            xtol=1e-6,
        )
    )
    frame = comparisons.needed_ratios_frame(model, SOME_RATES)
    frame["gbits"] = frame["bits_per_second"] / 1e9
    return Answer(
        frame,
        {
            "bits": bits,
            "at_10": frame.set_index("gbits")["ratio"][10.0],
            "large": LARGE,
        },
    )
