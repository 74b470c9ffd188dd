"""Questions on speed and money, from timed steps where there are any, else from the model.

Each number is called what it is.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import brentq

from cser_bench.report.plotting import DASHES, FAMILIES, GREY, new_figure
from cser_bench.report.questions.evidence import Answer, Evidence
from cser_bench.report.questions.one_load import link_load
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
    """Decorate an answer from the model of one workload; None where that cannot be modelled."""

    @wraps(answer)
    def answered(evidence: Evidence) -> Answer | None:
        study = evidence.speed
        if study is None or WORKLOAD not in study.models:
            return None
        model = study.models[WORKLOAD]
        if not model.is_modelled or PROPOSED not in model.methods:
            return None
        return answer(study, model)

    return answered


def timed(study: SpeedStudy, machines: int) -> pd.DataFrame:
    """Return the cells of the workload on links of `AT`, by method.

    Of several sessions they are that with the most methods.
    """
    cells = study.cells
    cells = cells[cells["workload"] == WORKLOAD]
    cells = cells[cells["machines"] == machines]
    cells = cells[is_at_rate(cells)]
    sessions = cells["timing"].value_counts().index
    return cells[cells["timing"].isin(sessions[:1])].set_index("method")


def is_at_rate(cells: pd.DataFrame) -> pd.Series:
    """Return which cells were timed on links of `AT`, or so near that it makes no difference."""
    factors = cells["bits_per_second"] / AT
    return (factors - 1).abs() < 0.01


def gain(cells: pd.DataFrame, method: str, baseline: str) -> dict[str, Any]:
    """Return the timed step of the baseline over that of the method.

    The ends divide end by end, so they are the widest.
    """
    own = cells.loc[method]
    base = cells.loc[baseline]
    return {
        "factor": base["seconds"] / own["seconds"],
        "low": base["low"] / own["high"],
        "high": base["high"] / own["low"],
    }


def scored_cells(evidence: Evidence) -> pd.DataFrame:
    """Return the steps of the sessions of scored settings on links of `AT`, by method."""
    steps = scored_steps_frame(evidence.scored)
    return steps[is_at_rate(steps)].set_index("method")


def blocks_over_best(evidence: Evidence, cells: pd.DataFrame) -> dict[str, Any] | None:
    """Return what M-CSER by the paper's blocks gains over the best baseline, as it was scored.

    None where one of the two was not timed.

    Args:
        cells: scored steps at one rate of the links, by method.
    """
    quoted = evidence.first("reference")
    blocks = quoted.row("blocks") if quoted else None
    if blocks is None or not {blocks, RIVAL} <= set(cells.index):
        return None
    return gain(cells, blocks, RIVAL)


def which_baseline(evidence: Evidence) -> Answer | None:
    """Answer question 2: one method over every baseline, first with the settings that score."""
    answer = _over_every_baseline(evidence)
    if answer is None:
        return None
    cells = scored_cells(evidence)
    seconds = cells["seconds"]
    scored = scored_method(evidence)
    over = {}
    if scored is not None and scored in seconds:
        over = (seconds / seconds[scored]).to_dict()
    numbers = {**answer.numbers, "scored": over, "blocks": blocks_over_best(evidence, cells)}
    return replace(answer, numbers=numbers)


@of_model
def _over_every_baseline(study: SpeedStudy, _: WorkloadModel) -> Answer | None:
    """Compare one method with every baseline, whether its settings were scored or not."""
    cells = timed(study, 8)
    if not {PROPOSED, *BASELINES} <= set(cells.index):
        return None
    bases = cells[cells["baseline"]]
    lines = []
    for name, base in bases.iterrows():
        line = {
            "method": name,
            "label": base["label"],
            "ms": 1e3 * base["seconds"],
            **gain(cells, PROPOSED, str(name)),
        }
        lines.append(line)
    frame = pd.DataFrame(lines)
    is_shown = frame["method"].isin([*BASELINES, "ddp_no_overlap", "powersgd_1"])
    numbers = {"over": frame.set_index("method")["factor"], "own": cells.loc[PROPOSED]}
    return Answer(frame, numbers, rows=frame[is_shown])


def ratio_of(model: WorkloadModel) -> float:
    """Return the compression ratio of the proposed method, as it was timed."""
    return model.methods[PROPOSED].payload_ratio(model.workload.num_parameters)


@of_model
def which_layout(study: SpeedStudy, model: WorkloadModel) -> Answer:
    """Answer question 3: the same eight workers on eight machines, on two and on one."""
    lines = []
    layouts = comparisons.layouts_frame(model, AT)
    for (machines, workers), group in layouts.groupby(
        ["machines", "workers_per_machine"], sort=False
    ):
        modelled: Any = group.set_index("method")
        cells = timed(study, int(str(machines)))
        # A layout on which one of the two was not timed has NaN.
        step = cells["seconds"].reindex([DDP, PROPOSED])
        line = {
            "layout": f"{machines} x {workers}",
            "machines": machines,
            "timed": step[DDP] / step[PROPOSED],
            "timed_ms": 1e3 * step[DDP],
            "modelled": modelled["over_ddp"][PROPOSED],
            "ddp_ms": 1e3 * modelled["seconds"][DDP],
        }
        lines.append(line)
    frame = pd.DataFrame(lines)
    by_machines = frame.set_index("machines")
    numbers_of_all = {
        "best": by_machines["timed"].fillna(by_machines["modelled"]),
        "modelled": by_machines["modelled"],
        "error": study.cells["error"].abs().mean(),
        "ratio": ratio_of(model),
    }
    return Answer(frame, numbers_of_all)


@of_model
def which_bandwidth(study: SpeedStudy, model: WorkloadModel) -> Answer:
    """Answer question 4: the rate below which the method is clearly faster than DDP.

    Besides it has how fast the method is beside the best baseline.
    """
    grid = comparisons.speedups_frame(model, comparisons.log_grid(1e9, 100e9))
    gbits = grid["bits_per_second"] / 1e9
    over_best = grid.loc[grid["method"] == PROPOSED, "over_best"]
    below = comparisons.highest_rate(
        partial(comparisons.speedup, model, PROPOSED, DDP), comparisons.CLEARLY
    )
    over_ddp = grid.pivot(index="bits_per_second", columns="method", values="over_ddp")
    older = [name for name in OLDER if name in over_ddp]
    best_older = over_ddp[older].max(axis="columns")
    older_over_it = best_older / over_ddp[PROPOSED]
    numbers = {
        "ddp": below,
        "clearly": comparisons.CLEARLY,
        "most_over_best": over_best.max(),
        "least_over_best": over_best.min(),
        "older": [model.methods[name].label for name in older],
        "older_over_it": (older_over_it.min(), older_over_it.max()),
        "rates": (gbits.min(), gbits.max()),
        "ratio": ratio_of(model),
        "compute_seconds": model.workload.compute_seconds,
        "error": study.cells["error"].abs().mean(),
    }
    return Answer(grid, numbers, _bandwidth(grid))


def _bandwidth(grid: pd.DataFrame) -> Figure:
    """Draw how many times as fast methods are over the rate of a link, a panel a rival."""
    figure, panels = new_figure(1.45, 2)
    local_steps, error_feedback = OLDER
    shown = {
        PROPOSED: FAMILIES["error reset"],
        local_steps: FAMILIES["local steps"],
        error_feedback: FAMILIES["error feedback"],
    }
    sides = (("over_ddp", "DDP in fp32", (0, 12)), ("over_best", "the best baseline", (0.9, 1.15)))
    for axes, (column, title, limits) in zip(panels, sides, strict=True):
        for (method, colour), dash in zip(shown.items(), DASHES, strict=False):
            own = grid[grid["method"] == method]
            if len(own):
                axes.plot(
                    own["bits_per_second"] / 1e9,
                    own[column],
                    color=colour,
                    linestyle=dash,
                    label=own["label"].iloc[0],
                )
        axes.axhline(1, **GREY)
        axes.set_title(f"over {title}", fontsize=7.5)
        axes.set(xlabel="link, Gb/s", xlim=(0, 102), xticks=[1, 25, 50, 75, 100], ylim=limits)
    panels[0].set_ylabel("times as fast")
    panels[0].legend()
    return figure


def scored_method(evidence: Evidence) -> str | None:
    """Return the row of M-CSER that answers quote.

    Sessions of scored settings call a method by its row.
    """
    quoted = evidence.first("reference")
    return quoted.row("reset") if quoted else None


def over_older_methods(evidence: Evidence) -> Answer | None:
    """Answer question 5: M-CSER's timed step beside those of the older methods.

    Each has exactly the settings that score.
    """
    quoted = evidence.first("reference")
    scored = scored_method(evidence)
    frame = scored_steps_frame(evidence.scored)
    if quoted is None or scored not in set(frame["method"]):
        return None
    gbits = frame["bits_per_second"] / 1e9
    frame["gbits"] = gbits.round().astype(int)
    of_scored = frame[frame["method"] == scored]
    steps = of_scored.set_index("gbits")["seconds"]
    frame["mcser_over_it"] = frame["seconds"] / frame["gbits"].map(steps)
    wide = frame.pivot(index=["method", "label"], columns="gbits", values="mcser_over_it")
    wide = wide.reset_index()
    wide = wide.rename(columns={rate: f"at_{rate}" for rate in steps.index})
    older = [row for row in quoted.about.shown if not quoted.is_of_family(row, "error reset")]
    shown = wide[wide["method"].isin([*older, quoted.row("blocks"), RIVAL, DDP])]
    rows_of_quoted = set(quoted.frames.by_row.index)
    loads = [
        link_load(quoted, row) if row in rows_of_quoted else math.nan for row in shown["method"]
    ]
    shown = shown.assign(link_models=loads)
    of_older = wide.set_index("method").reindex(older)
    over = []
    for line in of_older.to_dict("records"):
        over.append((line["label"], line["at_10"]))
    numbers = {
        "own_load": link_load(quoted, scored),
        "faster": [label for label, times in over if times > comparisons.CLEARLY],
        "slower": [label for label, times in over if times < 1 / comparisons.CLEARLY],
        "clearly": comparisons.CLEARLY,
        "sessions": frame["num_sessions"].min(),
        "most_sessions": frame["num_sessions"].max(),
    }
    return Answer(frame, numbers, rows=shown.sort_values("at_10", ascending=False))


@of_model
def what_headlines_ask(study: SpeedStudy, model: WorkloadModel) -> Answer | None:
    """Answer question 6: up to which rate the published factors hold, by a step's compute time."""
    frame = comparisons.headlines_frame(study)
    if frame.empty:
        return None
    own = frame[frame["rival"] == DDP]
    own = own[own["bits_per_second"] == AT]
    # Of each published factor and compute time, the line of the fastest method.
    factors = own.groupby(["headline", "compute_seconds"])["factor"]
    own = own.loc[factors.idxmax()]
    own = own.assign(ms=1e3 * own["compute_seconds"], gbits=own["holds_up_to"] / 1e9)
    own = own.sort_values("compute_seconds")
    imagenet = own[own["headline"].str.contains("ImageNet")]
    cifar = own[own["headline"].str.contains("CIFAR")]
    shown_imagenet = imagenet[imagenet["ms"].isin([20, 30, 40, 50])]
    shown_cifar = cifar[cifar["ms"].isin([30, 50])]
    numbers = {
        "near": _nearest(imagenet, model.workload.compute_seconds),
        "slow": _nearest(imagenet, 0.050),
        "ten": _nearest(cifar, 0.050),
        "error": study.cells["error"].abs().mean(),
    }
    return Answer(frame, numbers, rows=pd.concat([shown_imagenet, shown_cifar]))


def _nearest(lines: pd.DataFrame, seconds: float) -> pd.Series:
    """Return the line whose compute time of a step is nearest to this one."""
    apart = lines["compute_seconds"] - seconds
    return lines.iloc[apart.abs().argmin()]


def does_it_save_money(evidence: Evidence) -> Answer | None:
    """Answer question 7: dollars per thousand modelled steps.

    Besides it has the change of the bill by the method where DDP is cheapest, and whether the
    method is faster than the best baseline as it was scored.
    """
    answer = _bills(evidence)
    if answer is None:
        return None
    cells = scored_cells(evidence)
    scored = scored_method(evidence)
    over_best = None
    if scored is not None and {scored, RIVAL} <= set(cells.index):
        over_best = gain(cells, scored, RIVAL)
    numbers = {
        **answer.numbers,
        "scored_over_best": over_best,
        "blocks_over_best": blocks_over_best(evidence, cells),
    }
    return replace(answer, numbers=numbers)


@of_model
def _bills(study: SpeedStudy, model: WorkloadModel) -> Answer | None:
    """Return dollars per thousand modelled steps on each cluster with a price."""
    frame = comparisons.costs_frame(model)
    if frame.empty:
        return None
    shown = costs_table(frame)
    shown["gbits"] = shown["bits_per_second"] / 1e9
    cheapest = shown.sort_values(DDP).iloc[0]
    most_machines = shown.sort_values("machines").iloc[-1]
    numbers = {
        "cheapest": cheapest["machine"],
        "machines": cheapest["machines"],
        "change": cheapest[PROPOSED] / cheapest[DDP] - 1,
        "most_machines": most_machines["machines"],
        "saved_on_most": 1 - most_machines[PROPOSED] / most_machines[DDP],
        "error": study.cells["error"].abs().mean(),
        "ratio": ratio_of(model),
        "gbits": AT / 1e9,
    }
    return Answer(frame, numbers, rows=shown)


@of_model
def which_ratio_is_needed(study: SpeedStudy, model: WorkloadModel) -> Answer:
    """Answer question 22: the rate at which a ratio of 256 is just needed, solved for.

    Besides it has the ratio needed at five rates.
    """

    def beyond(log_bits: float) -> float:
        """Return how far the needed ratio is above 256, by its logarithm."""
        needed = comparisons.needed_ratios_frame(model, [math.exp(log_bits)])
        ratio = needed["ratio"].iloc[0]
        if math.isnan(ratio):
            # No ratio is enough: as one far above 256, so that the root is bracketed.
            ratio = 1e6
        return math.log(ratio) - math.log(LARGE)

    cells = study.cells[study.cells["workload"] == WORKLOAD]
    log_bits = brentq(
        beyond, math.log(comparisons.LOWEST), math.log(comparisons.HIGHEST), xtol=1e-6
    )
    frame = comparisons.needed_ratios_frame(model, SOME_RATES)
    frame["gbits"] = frame["bits_per_second"] / 1e9
    ratios = frame.set_index("gbits")["ratio"]
    numbers = {
        "bits": math.exp(log_bits),
        "at_10": ratios[10.0],
        "large": LARGE,
        "lowest_timed": cells["bits_per_second"].min(),
    }
    return Answer(frame, numbers)
