"""What the page needs to model a step at any rate and compute time: each message's seconds on a
grid of rates."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from cser_bench.harness.records.store import Attempt
from cser_bench.harness.records.timings import Message, TimedMethod, Timing
from cser_bench.report.frame import Frames
from cser_bench.report.speed.cost_model import Compute, Network, step_seconds
from cser_bench.report.speed.timed import joined_frame, scored_steps_frame
from cser_bench.report.speed.workload_model import SpeedStudy, WorkloadModel

RATES = tuple(float(f"{10 ** (7 + step / 12):.6g}") for step in range(56))
"""Bits per second, 10 Mb/s to 383 Gb/s; between them the page goes straight in logarithms."""


def timings_table(study: SpeedStudy, workloads: Collection[str] | None = None) -> pd.DataFrame:
    """Every timed cell of a study with what the model says of it, then those of scored methods; of
    some workloads alone if they are named."""
    table = study.cells.drop(columns="timing", errors="ignore")
    scored = scored_steps_frame(study.sessions)
    if len(scored):
        works = {
            method.name: work for work, methods in _sessions(study).items() for method in methods
        }
        scored["workload"], scored["basis"] = (
            [scored_name(works[name]) for name in scored["method"]],
            "emulated",
        )
        table = pd.concat([table, scored])
    if table.empty:
        return table
    table = table[table["workload"].isin(workloads)] if workloads is not None else table
    return table[["label", *table.columns.drop("label")]]


def step_models(study: SpeedStudy) -> list[dict[str, Any]]:
    """One for each workload that can be modelled, with every method and baseline that was timed on
    it."""
    found = []
    for model in study.models.values():
        if model.is_modelled:
            methods = [
                _method(each, model.codec_seconds(each), []) for each in model.methods.values()
            ]
            found.append(
                _model(
                    model,
                    model.workload.name,
                    "",
                    [each.attempt for each in model.timings],
                    methods,
                )
            )
    return found


def scored_models(study: SpeedStudy, frames: Frames) -> list[dict[str, Any]]:
    """The same of the methods that an experiment scores and of their baselines, without encoding
    and update."""
    joined = joined_frame(frames, study.sessions).dropna(subset="method")
    rows = {str(name): list(group["row"].unique()) for name, group in joined.groupby("method")}
    found = []
    for work, methods in _sessions(study).items():
        if (
            work in study.models
            and study.models[work].is_modelled
            and any(each.name in rows for each in methods)
        ):
            wanted = [each for each in methods if each.name in rows or each.baseline]
            told = [_method(each, 0.0, rows.get(each.name, [])) for each in wanted]
            attempts = [
                session.attempt for session in study.sessions if session.workload.name == work
            ]
            found.append(
                _model(
                    study.models[work],
                    scored_name(work),
                    "without encoding and update; ",
                    attempts,
                    told,
                )
            )
    return found


def scored_name(workload: str) -> str:
    """What the page calls a workload where scored methods are timed on it."""
    return f"{workload}, as scored"


def _sessions(study: SpeedStudy) -> dict[str, list[TimedMethod]]:
    """The methods of all sessions, each once, by workload."""
    found: dict[str, dict[str, TimedMethod]] = {}
    session: Timing
    for session in study.sessions:
        for method in session.methods:
            found.setdefault(session.workload.name, {}).setdefault(method.name, method)
    return {work: list(methods.values()) for work, methods in found.items()}


def _method(method: TimedMethod, codec_seconds: float, rows: Sequence[str]) -> dict[str, Any]:
    told = {
        name: getattr(method, name) for name in ("name", "label", "algorithm", "baseline", "period")
    }
    return told | {"codec_seconds": codec_seconds, "messages": method.messages, "rows": rows}


def _model(
    model: WorkloadModel,
    name: str,
    without: str,
    attempts: Sequence[Attempt],
    methods: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    work, networks = model.workload, [model.network(rate) for rate in RATES]
    return {
        "name": name,
        "badge": (
            f"{without}{model.main.fabric.num_workers} workers, {work.device}; passes: "
            f"{work.source}"
        ),
        "forward_seconds": work.forward_seconds,
        "backward_seconds": work.backward_seconds,
        "rates": RATES,
        "commands": list(dict.fromkeys(attempt.command for attempt in attempts)),
        "methods": [
            {**method, "messages": _messages(method["messages"], networks)} for method in methods
        ],
    }


def _messages(messages: Sequence[Message], networks: Sequence[Network]) -> list[dict[str, Any]]:
    """Messages that get ready together queue as one: their seconds add up."""
    groups: dict[tuple[int, tuple[float, ...]], list[Message]] = {}
    for message in messages:
        groups.setdefault((message.every, message.ready_draws or (message.ready,)), []).append(
            message
        )
    return [
        {
            "every": every,
            "ready": ready,
            "seconds": [
                float(f"{step_seconds(Compute(0.0, 0.0), group, network):.5g}")
                for network in networks
            ],
        }
        for (every, ready), group in groups.items()
    ]
