"""The tables of the report of speed, from the study's cells and the frames of the model: plain data, few words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.records.timings import Sweep
from report.speed.comparisons import DDP, PROPOSED, speedups_frame
from report.speed.fitting import Fit, slowest_limit
from report.speed.workload_model import SpeedStudy, WorkloadModel
from report.wording import factor, milliseconds, rate

AT = 10e9
"""Bits per second at which single numbers are given."""
RATES = (1e9, 10e9, 25e9, 100e9)
LARGE_RATIO = 64
"""From which on methods are asked whether they differ among themselves at all."""
HEADER_BYTES = 66
"""Of a frame on the link: Ethernet 14, IP 20, TCP 32."""


def verdicts(headlines: pd.DataFrame) -> list[dict[str, Any]]:
    """For each headline the shortest and the longest published compute time, with the rates up to which it holds."""
    return (
        [
            {
                "headline": words,
                "least": own["compute_seconds"].iloc[0],
                "most": own["compute_seconds"].iloc[-1],
                "fast": own[f"{DDP}_holds_up_to"].iloc[0],
                "slow": own[f"{DDP}_holds_up_to"].iloc[-1],
            }
            for words, own in headlines.groupby("headline", sort=False)
        ]
        if len(headlines)
        else []
    )


def published_table(published: pd.DataFrame) -> pd.DataFrame:
    said = [
        f"{100 * p:.3g}" + (" (solved)" if solved else f" ({100 * m:.3g})")
        for p, m, solved in zip(published["published"], published["modelled"], published["solved"], strict=True)
    ]
    wide = published.assign(said=said).pivot(index="sync_interval", columns="bits_per_second", values="said")
    return wide.reset_index()


def exchanges(cells: pd.DataFrame) -> pd.DataFrame:
    """By network, an all-reduce's communication over that of an exchange of as many numbers, by the clock.

    A whole model: SGD's all-reduce beside D-PSGD; a 256th: CSEA's beside CHOCO-SGD, which sends 1/512 to each of two.
    """
    lines = []
    for _, own in cells.groupby("timing", sort=False):
        talk = own.set_index("method")["communication_seconds"]
        network = _network_name(own.iloc[0])
        for sent, base, ring, peer in (
            ("a model", "all_reduce", "dpsgd_ring", "dpsgd"),
            ("1/256", "csea", "choco_sgd", ""),
        ):
            if base in talk and ring in talk and min(talk[base], talk[ring]) > 0:
                lines.append(
                    (
                        own["workload"].iloc[0],
                        network,
                        sent,
                        talk[base] / talk[ring],
                        talk[base] / talk.get(peer, math.nan),
                    )
                )
    return pd.DataFrame(lines, columns=["workload", "network", "sent", "ring", "peer"])


def _network_name(cell: pd.Series) -> str:
    return f"{cell['machines']} x {cell['workers_per_machine']}, {rate(cell['bits_per_second'])}"


def _main_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """Of a network that was timed at two latencies, that with the most methods; with `network`, its name."""
    many = cells.groupby("timing")["method"].transform("size")
    names = [_network_name(cell) for _, cell in cells.iterrows()]
    cells = cells.assign(network=names, many=many)
    first = cells.sort_values("many", ascending=False, kind="stable").groupby("network")["timing"].first()
    return cells[cells["timing"] == cells["network"].map(first)]


def steps_table(cells: pd.DataFrame) -> pd.DataFrame:
    """A line a method, a column a network: milliseconds and speed-up over DDP in words; a star where it was crowded."""
    cells = _main_cells(cells)
    base = cells[cells["method"] == DDP].set_index("network")["seconds"]
    gains = cells["network"].map(base) / cells["seconds"]
    marks = cells["crowded"].map({True: " *", False: ""})
    said = [f"{milliseconds(s)} ({factor(g)}){m}" for s, g, m in zip(cells["seconds"], gains, marks, strict=True)]
    order = cells.sort_values(["workers_per_machine", "bits_per_second"])["network"].unique()
    table = cells.assign(said=said).pivot(index="method", columns="network", values="said")[list(order)]
    first = cells.drop_duplicates("method").set_index("method")[["label", "ratio"]]
    return first.join(table).reset_index(drop=True)


def large(cells: pd.DataFrame) -> pd.DataFrame:
    """By network: how many methods of a large ratio, least and most over DDP, and the fastest over the slowest."""
    lines = []
    for network, own in _main_cells(cells[~cells["crowded"]]).groupby("network", sort=False):
        base, large = own[own["method"] == DDP]["seconds"], own[own["ratio"] >= LARGE_RATIO]["seconds"]
        if len(base) and len(large) > 1:
            gains = float(base.iloc[0]) / large
            lines.append((network, len(large), gains.min(), gains.max(), gains.max() / gains.min()))
    return pd.DataFrame(lines, columns=["network", "num_methods", "least", "most", "apart"])


def at_rates(model: WorkloadModel) -> pd.DataFrame:
    """The proposed method by the model at single rates: over DDP and over the best baseline, which is named."""
    frame = speedups_frame(model, RATES)
    frame = frame[frame["method"] == PROPOSED]
    return frame.assign(best=[model.methods[name].label for name in frame["best_baseline"]])


def headlines_table(headlines: pd.DataFrame) -> pd.DataFrame:
    """A line a headline and published compute time: by rival the proposed method's factor at `AT`, and its reach."""
    if headlines.empty:
        return headlines
    kept = headlines["published"] & (headlines["method"] == PROPOSED) & (headlines["bits_per_second"] == AT)
    wide = headlines[kept].pivot(
        index=["headline", "target", "compute_seconds"], columns="rival", values=["factor", "holds_up_to"]
    )
    pairs_of_names: list[Any] = wide.columns.to_list()
    wide.columns = [f"{rival}_{what}" for what, rival in pairs_of_names]
    for rival in headlines["rival"].unique():
        pairs = zip(wide[f"{rival}_factor"], wide[f"{rival}_holds_up_to"], strict=True)
        wide[f"{rival}_said"] = [f"{factor(gain)} ({'never' if math.isnan(up) else rate(up)})" for gain, up in pairs]
    return wide.reset_index().sort_values(["headline", "compute_seconds"], ignore_index=True)


def layouts_table(cells: pd.DataFrame, layouts: pd.DataFrame) -> pd.DataFrame:
    """By layout at `AT` what DDP takes and the most that a method gains over it: by the clock first, then modelled."""
    near = _main_cells(cells[(cells["bits_per_second"] / AT - 1).abs() < 0.01])
    timed = near.assign(basis=near["basis"] + ", flat ring")
    lines = []
    for frame in (timed, layouts.assign(basis="modelled, fastest way")):
        for (machines, workers), own in frame.groupby(["machines", "workers_per_machine"], sort=False):
            own = own.set_index("method")
            if DDP not in own.index:
                continue
            seconds: dict[Any, float] = own["seconds"].to_dict()
            best = min(own[~own["baseline"]].index, key=seconds.__getitem__)
            base, layout, basis = seconds[DDP], f"{machines} x {workers}", own["basis"].iloc[0]
            gain = base / seconds.get(PROPOSED, math.nan)
            lines.append((layout, basis, base, gain, base / seconds[best], own["label"].to_dict()[best]))
    return pd.DataFrame(lines, columns=["layout", "basis", "ddp", "proposed", "best", "label"])


def costs_table(costs: pd.DataFrame) -> pd.DataFrame:
    """A line a kind of machine: dollars a thousand steps of DDP and of the proposed method, and the cheapest."""
    lines = []
    for (count, machine), own in costs.groupby(["machines", "machine"], sort=False) if len(costs) else ():
        price = own.set_index("method")["dollars_per_1000_steps"]
        first = own.iloc[0]
        name = f"{count} x {machine}"
        lines.append(
            (
                name,
                first["bits_per_second"],
                first["dollars_per_hour"],
                price[DDP],
                price.get(PROPOSED),
                first["source"],
            )
        )
    return pd.DataFrame(lines, columns=["machines", "bits_per_second", "dollars_per_hour", "ddp", "proposed", "source"])


def others_table(study: SpeedStudy, model: WorkloadModel) -> pd.DataFrame:
    """Other workloads by the clock: DDP's step, the proposed method's gain over it, and the fastest method's."""
    lines = []
    for name, cells in study.cells[study.cells["workload"] != model.workload.name].groupby("workload", sort=False):
        for bits, own in _main_cells(cells[~cells["crowded"]]).groupby("bits_per_second"):
            own = own.set_index("method")
            if not {DDP, PROPOSED} <= set(own.index):
                continue
            seconds: dict[Any, float] = own["seconds"].to_dict()
            best = min(seconds, key=seconds.__getitem__)
            base, label, basis = seconds[DDP], own["label"].to_dict()[best], own["basis"].iloc[0]
            lines.append((name, basis, bits, base, base / seconds[PROPOSED], label, base / seconds[best]))
    return pd.DataFrame(lines, columns=["workload", "basis", "bits_per_second", "ddp", "proposed", "label", "best"])


def latency(cells: pd.DataFrame) -> dict[str, float]:
    """How DDP's step and the proposed method's change at `AT` where the clock is slowed half as much; else nothing."""
    own = cells[((cells["bits_per_second"] / AT - 1).abs() < 0.01) & (cells["workers_per_machine"] == 1)]
    wide = own.pivot(index="method", columns="dilation", values="seconds").dropna()
    if wide.shape[1] < 2 or not {DDP, PROPOSED} <= set(wide.index):
        return {}
    change = wide.iloc[:, 0] / wide.iloc[:, -1] - 1
    dilations: list[Any] = wide.columns.to_list()
    return {"ddp": change[DDP], "proposed": change[PROPOSED], "times": dilations[-1] / dilations[0]}


def sweeps_frame(sweeps: Sequence[Sweep]) -> pd.DataFrame:
    """One line a swept collective and size: median seconds, and the bytes counted on a link beside the formula's."""
    lines = []
    for sweep in sweeps:
        place = sweep.fabric.model_dump(include={"num_machines", "workers_per_machine", "bits_per_second", "dilation"})
        for point in sweep.points:
            numbers = point.model_dump(exclude={"seconds"})
            seconds = pd.Series(point.seconds, dtype=float)
            lines.append(place | numbers | {"median_seconds": seconds.median(), "repetitions": len(seconds)})
    return pd.DataFrame(lines)


def wire(sweeps: pd.DataFrame) -> dict[str, float]:
    """Of messages of a megabyte and more: how many, and the most that a link carried beyond formula and headers."""
    if sweeps.empty:
        return {}
    large = sweeps[(sweeps["payload_bytes"] >= 1e6) & sweeps["wire_frames"].notna()]
    rest = (large["wire_bytes"] - HEADER_BYTES * large["wire_frames"]) / large["formula_bytes"] - 1
    return {"num_messages": len(large), "most": rest.abs().max()} if len(large) else {}


def fits_frame(fits: Sequence[Fit]) -> pd.DataFrame:
    columns = ["machines", "workers_per_machine", "limit_bits_per_second", "collective", "alpha_seconds"]
    columns += ["beta_seconds_per_byte", "power", "efficiency", "worst_relative_error"]
    lines = []
    for fit in fits:
        place = (fit.fabric.num_machines, fit.fabric.workers_per_machine, slowest_limit(fit.fabric))
        link = fit.link
        lines.append((*place, fit.collective, link.alpha, link.beta, link.power, fit.efficiency, fit.worst))
    return pd.DataFrame(lines, columns=columns)


def encoding_frame(study: SpeedStudy) -> pd.DataFrame:
    """One line a workload and method: its codec alone on a core, in timed steps on shared cores, and modelled."""
    in_steps = study.cells.groupby(["workload", "method"])["codec_seconds"].median()
    lines = []
    for name, model in study.models.items():
        for key, method in model.methods.items():
            alone = [m.codec_alone_seconds for t in model.timings for m in t.methods if m.name == key]
            known = pd.Series([each for each in alone if each is not None], dtype=float).median()
            device = model.emulated_device.device if model.emulated_device else "this host"
            lines.append(
                (name, key, method.label, known, in_steps.get((name, key)), device, model.codec_seconds(method))
            )
    columns = [
        "workload",
        "method",
        "label",
        "alone_seconds",
        "in_steps_seconds",
        "modelled_device",
        "modelled_seconds",
    ]
    return pd.DataFrame(lines, columns=columns)
