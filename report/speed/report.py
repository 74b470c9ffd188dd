"""The report of a study of step times: its tables, plain data with few words, and what its template
names."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cser_bench.harness.records.timings import Sweep
from cser_bench.report.frame import Frames
from cser_bench.report.render import write_report
from cser_bench.report.speed import comparisons
from cser_bench.report.speed.comparisons import DDP, PROPOSED
from cser_bench.report.speed.figures import draw_loss_and_step, draw_speedups
from cser_bench.report.speed.fitting import fits_frame
from cser_bench.report.speed.timed import (
    WIDE,
    baselines_frame,
    conditions_frame,
    joined_frame,
    scored_steps_frame,
)
from cser_bench.report.speed.workload_model import SpeedStudy, WorkloadModel
from cser_bench.report.wording import factor, milliseconds, rate

Parts = tuple[dict[str, Any], dict[str, pd.DataFrame], dict[str, Figure]]
"""What the template names, the tables by name of their CSV, and the figures."""

AT = 10e9
"""Bits per second at which single numbers are given."""
SOME_RATES = (1e8, 1e9, AT, 25e9, 100e9)
"""Bits per second at which the ratio that is needed is told."""
LARGE_RATIO = 64
"""From which on methods are asked whether they differ among themselves at all."""
HEADER_BYTES = 66
"""Of a frame on the link: Ethernet 14, IP 20, TCP 32."""


def build_speed_report(study: SpeedStudy, experiments: Sequence[Frames], output: Path) -> Path:
    """Write the report of a study, with the experiments' losses beside step times, into a folder;
    returns its path.

    The same records give the same bytes of Markdown and CSV. Raises OSError: the output cannot be
    written.
    """
    return write_report(output, "report", "speed.md.j2", *contents(study, experiments))


def contents(study: SpeedStudy, experiments: Sequence[Frames]) -> Parts:
    """What the template names, the tables by name of their CSV, and the figures."""
    modelled = [
        m for m in study.models.values() if m.is_modelled and {DDP, PROPOSED} <= m.methods.keys()
    ]
    first = comparisons.HEADLINES[0].workload
    model = next((m for m in modelled if m.workload.name == first), None) or next(
        iter(modelled), None
    )
    wide, row, text = (conditions_frame(own) for own in (study.wide, study.consecutive, study.text))
    in_a_row, sweeps = conditions_table(row) if len(row) else None, sweeps_frame(study.sweeps)
    context: dict[str, Any] = {
        "model": model,
        "workloads": list(study.models.values()),
        "at": AT,
        "records": study,
        "machine": _machine(study),
        "left_out": dict.fromkeys(f"{entry.what}: {entry.why}" for entry in study.study.left_out),
        "wide": (far := conditions_table(wide)).sort_values(far.columns[-1]) if len(wide) else None,
        "row": in_a_row,
        "text": conditions_table(text) if len(text) else None,
        "row_at": {} if in_a_row is None else in_a_row.set_index("label").to_dict("index"),
        "passes": row.loc[row["condition"] == row["condition"].iloc[0], "passes_seconds"].mean()
        if len(row)
        else None,
    }
    frames = {"step_times": study.cells, "sweeps": sweeps, "fits": fits_frame(study.fits)}
    frames |= {"wide_steps": wide[WIDE]} if len(wide) else {}
    frames |= {"consecutive_steps": row} if len(row) else {}
    frames |= {"text_steps": text} if len(text) else {}
    figures: dict[str, Figure] = {}
    parts = [_joined(study, experiments)] + (
        [_modelled(study, modelled, model, sweeps)] if model else []
    )
    for more_context, more_frames, more_figures in parts:
        context, frames, figures = (
            context | more_context,
            frames | more_frames,
            figures | more_figures,
        )
    return context, frames, figures


def _modelled(
    study: SpeedStudy, modelled: Sequence[WorkloadModel], model: WorkloadModel, sweeps: pd.DataFrame
) -> Parts:
    frames = {
        "modelled": pd.concat([comparisons.speedups_frame(m, comparisons.RATES) for m in modelled]),
        "headlines": comparisons.headlines_frame(study),
        "layouts": comparisons.layouts_frame(model, AT),
        "costs": comparisons.costs_frame(model),
        "agreement": agreement_frame(study.cells),
        "needed_ratios": pd.concat(
            [comparisons.needed_ratios_frame(m, SOME_RATES) for m in modelled]
        ),
    }
    headlines, clear = frames["headlines"], clear_cells(study.cells)
    own = clear[clear["workload"] == model.workload.name]
    at = comparisons.speedups_frame(model, [AT]).set_index("method").loc[PROPOSED]
    reach = headlines[
        (headlines["method"] == PROPOSED)
        & (headlines["rival"] == DDP)
        & headlines["source"].notna()
    ]
    context = {
        "own": at,
        "own_ratio": model.methods[PROPOSED].ratio(model.workload.num_parameters),
        "best_label": model.methods[str(at["best_baseline"])].label,
        "networks": networks_table(clear, frames["layouts"]),
        "reach": [
            (words, own.iloc[0], own.iloc[-1])
            for words, own in reach.groupby("headline", sort=False)
        ],
        "agreement": frames["agreement"],
        "beyond_formula": sweeps.query("payload_bytes >= 1e6")["beyond_formula"].abs(),
        "steps": steps_table(own),
        "num_steps": (int(own["num_steps"].min()), int(own["num_steps"].max())),
        "has_ranges": bool((own["interval"] == "range").any()),
        "headlines": headlines_table(headlines) if len(headlines) else headlines,
        "costs": costs_table(frames["costs"]),
    }
    return context, frames, {"speedups": draw_speedups(study, model)}


def _joined(study: SpeedStudy, experiments: Sequence[Frames]) -> Parts:
    """Loss beside step time: of all experiments in the frames, of the first on the page."""
    sessions = study.sessions
    frames, figures = {"scored_steps": scored_steps_frame(sessions)}, {}
    if not sessions or not experiments:
        return {"joined": None}, frames, {}
    joined = [joined_frame(each, sessions) for each in experiments]
    frames["loss_and_step"] = pd.concat(joined)
    experiment, timed = experiments[0].experiment, joined[0].dropna(subset=["seconds"])
    if timed["estimate"].notna().any():
        figures["loss_and_step"] = draw_loss_and_step(timed, experiment.margin)
    beside = baselines_frame(sessions)
    context = {
        "joined": joined_table(pd.concat([timed, beside[~beside["method"].isin(timed["method"])]])),
        "rates": sorted(timed["bits_per_second"].unique()),
        "intervals": set(timed["interval"]),
        "experiment": experiment,
        "has_loss": bool(figures),
        "as_scored": _as_scored(timed, beside),
    }
    return context, frames, figures


def _as_scored(timed: pd.DataFrame, beside: pd.DataFrame) -> list[dict[Any, Any]]:
    """At `AT` the proposed method as scored and the fastest that loses no more, over DDP and over
    the best baseline."""
    at = timed[timed["bits_per_second"] == AT].dropna(subset=["estimate"])
    bases: Any = beside[beside["bits_per_second"] == AT].set_index("method")
    own = at[at["label"] == "M-CSER"]
    if DDP not in bases.index or own.empty:
        return []
    better = at[
        (at["estimate"] >= own["estimate"].iloc[0]) & (at["label"] != "M-CSER")
    ].sort_values("seconds")
    shown = pd.concat([own.head(1), better.head(1)])
    best = bases.loc[bases["seconds"].idxmin()]
    over = {
        "over_ddp": bases.loc[DDP, "seconds"] / shown["seconds"],
        "over_best": best["seconds"] / shown["seconds"],
    }
    found: list[dict[Any, Any]] = shown.assign(**over, best_label=best["label"]).to_dict("records")
    return found


def _machine(study: SpeedStudy) -> dict[str, str]:
    attempts = study.attempts
    if not attempts:
        return {}
    first = attempts[0]
    packages = ", ".join(f"{name} {version}" for name, version in sorted(first.packages.items()))
    return {
        "host": (
            f"{first.host}: {first.cpu}, {first.num_cpus} CPUs, "
            f"{first.accelerator or 'no accelerator'}"
        ),
        "packages": f"Python {first.python}; {packages}",
        "commits": ", ".join(sorted({(attempt.git_commit or "none")[:12] for attempt in attempts})),
        "command": "; ".join(dict.fromkeys(attempt.command for attempt in attempts)),
        "from": min(attempt.started_at for attempt in attempts)[:10],
    }


def layout_of(frame: pd.DataFrame) -> pd.Series:
    """Machines and workers of each, as text."""
    return frame["machines"].astype(str) + " x " + frame["workers_per_machine"].astype(str)


def clear_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells that were not crowded; of a network that was timed at two latencies, those with the
    most methods.

    With `layout` and `network` as texts.
    """
    cells = cells.assign(
        layout=layout_of(cells), many=cells.groupby("timing")["method"].transform("size")
    )
    cells["network"] = cells["layout"] + ", " + cells["bits_per_second"].map(rate)
    ordered = cells.sort_values("many", ascending=False, kind="stable")
    first = ordered.groupby(["workload", "network"])["timing"].transform("first")
    return cells[(cells["timing"] == first) & ~cells["crowded"]].drop(columns="many")


def steps_table(cells: pd.DataFrame) -> pd.DataFrame:
    """A line a method, a column a network: milliseconds, and in brackets the speed-up over DDP."""
    base = cells[cells["method"] == DDP].set_index("network")["seconds"]
    gains = cells["network"].map(base) / cells["seconds"]
    said = [
        f"{milliseconds(s)} ({factor(gain)})"
        for s, gain in zip(cells["seconds"], gains, strict=True)
    ]
    order = cells.sort_values(["workers_per_machine", "bits_per_second"])["network"].unique()
    table = cells.assign(said=said).pivot(index="method", columns="network", values="said")[
        list(order)
    ]
    return cells.drop_duplicates("method").set_index("method")[["label", "ratio"]].join(table)


def conditions_table(steps: pd.DataFrame) -> pd.DataFrame:
    """A line a method, in the order of the records, a column a condition: milliseconds of a
    step."""
    table = steps.pivot(index="label", columns="condition", values="seconds")
    return table.loc[steps["label"].unique(), steps["condition"].unique()].reset_index()


def networks_table(cells: pd.DataFrame, layouts: pd.DataFrame) -> pd.DataFrame:
    """A line a workload and network, timed ones first: DDP's step, M-CSER's gain over it, and the
    most gained.

    And of the methods of a large ratio how many there are, the least and the most over DDP, and
    most over least.
    """
    lines = []
    for frame in (cells, layouts.assign(basis="modelled", layout=layout_of(layouts))):
        for (work, place, bits), group in frame.groupby(["workload", "layout", "bits_per_second"]):
            own: Any = group.set_index("method")
            if not {DDP, PROPOSED} <= set(own.index):
                continue
            gains = own.loc[DDP, "seconds"] / own["seconds"]
            best, large = gains[~own["baseline"]].idxmax(), gains[own["ratio"] >= LARGE_RATIO]
            line = {
                "workload": work,
                "layout": place,
                "bits_per_second": bits,
                "basis": own["basis"].iloc[0],
            }
            line |= {
                "ddp": own.loc[DDP, "seconds"],
                "proposed": gains[PROPOSED],
                "best": gains[best],
            }
            line |= {
                "label": own.loc[best, "label"],
                "num_large": len(large),
                "apart": large.max() / large.min(),
            }
            lines.append(line | {"least": large.min(), "most": large.max()})
    return pd.DataFrame(lines)


def headlines_table(headlines: pd.DataFrame) -> pd.DataFrame:
    """A line a headline and published compute time: by rival the proposed method's factor at `AT`,
    and its reach."""
    kept = headlines[headlines["source"].notna() & (headlines["method"] == PROPOSED)]
    kept = kept[kept["bits_per_second"] == AT]
    reach = ["never" if math.isnan(bits) else rate(bits) for bits in kept["holds_up_to"]]
    said = [f"{factor(gain)} ({each})" for gain, each in zip(kept["factor"], reach, strict=True)]
    wide = kept.assign(said=said).pivot(
        index=["headline", "compute_seconds", "source"], columns="rival", values="said"
    )
    return wide.reindex(columns=list(comparisons.RIVALS)).reset_index()


def costs_table(costs: pd.DataFrame) -> pd.DataFrame:
    """A line a kind of machines, the most machines first, a column a method: dollars per thousand
    steps."""
    keys = ["machines", "machine", "bits_per_second", "dollars_per_hour", "source"]
    wide = costs.pivot(index=keys, columns="method", values="dollars_per_1000_steps").reset_index()
    name = wide["machines"].astype(str) + " x " + wide["machine"]
    return wide.assign(name=name).sort_values("machines", ascending=False, ignore_index=True)


def joined_table(timed: pd.DataFrame) -> pd.DataFrame:
    """A line a row of an experiment that was timed, a column a rate, the most accurate first."""
    texts = [timed[name].map(milliseconds) for name in ("seconds", "seconds_low", "seconds_high")]
    said = texts[0] + " (" + texts[1] + " to " + texts[2] + ")"
    keys = ["row", "label", "ratio", "estimate"]
    wide = (
        timed.assign(said=said)
        .pivot(index=keys, columns="bits_per_second", values="said")
        .reset_index()
    )
    return wide.sort_values("estimate", ascending=False, ignore_index=True)


def agreement_frame(cells: pd.DataFrame) -> pd.DataFrame:
    """The model's absolute relative error: mean, median and 90th percentile, by layout and of all.

    `what` is "step", or "communication" of those steps in which it takes over a tenth of the
    compute.
    """
    large = cells["communication_seconds"] > 0.1 * cells["compute_seconds"]
    lines = []
    for what, errors in (
        ("step", cells["error"]),
        ("communication", cells["communication_error"][large]),
    ):
        errors = errors.dropna().abs()
        for name, group in [("all", errors), *errors.groupby(layout_of(cells))]:
            lines.append(
                (what, name, len(group), group.mean(), group.median(), group.quantile(0.9))
            )
    return pd.DataFrame(lines, columns=["what", "layout", "num_cells", "mean", "median", "p90"])


def sweeps_frame(sweeps: Sequence[Sweep]) -> pd.DataFrame:
    """One line a swept collective and size: median seconds, and the bytes counted on a link beside
    the formula's.

    `beyond_formula`: the share of the formula's bytes that a link carried beside them and the
        headers.
    """
    lines = []
    for sweep in sweeps:
        place = sweep.fabric.model_dump(
            include={"num_machines", "workers_per_machine", "bits_per_second", "dilation"}
        )
        for point in sweep.points:
            numbers = {"median_seconds": median(point.seconds), "repetitions": len(point.seconds)}
            lines.append(place | point.model_dump(exclude={"seconds"}) | numbers)
    frame = pd.DataFrame(lines)
    if len(frame):
        carried = frame["wire_bytes"].astype(float) - HEADER_BYTES * frame["wire_frames"].astype(
            float
        )
        frame["beyond_formula"] = carried / frame["formula_bytes"] - 1
    return frame
