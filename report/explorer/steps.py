"""What the page needs to model a step at any rate and compute time.

That is each message's seconds on a grid of rates.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from cser_bench.harness.records.store import Attempt
from cser_bench.harness.records.timings import Message, TimedMethod
from cser_bench.report.frame import Frames
from cser_bench.report.speed.cost_model import Compute, Network, step_seconds
from cser_bench.report.speed.timed import joined_frame, scored_steps_frame
from cser_bench.report.speed.workload_model import SpeedStudy, WorkloadModel

RATES = tuple(float(f"{10 ** (7 + step / 12):.6g}") for step in range(56))
"""Bits per second, 10 Mb/s to 383 Gb/s; between them the page goes straight in logarithms."""


# With it a step is the time of its messages alone.
_NO_COMPUTE = Compute(forward=0.0, backward=0.0)


def timings_table(
    study: SpeedStudy, workloads: Collection[str] | None = None
) -> pd.DataFrame:
    """Return every timed cell of a study with what the model says of it, then scored methods.

    Args:
        study: of step times.
        workloads: the names of those that are kept; None keeps all.
    """
    # `timing` is a place in the study's list of records, which the page does not have.
    table = study.timed_steps.drop(columns="timing", errors="ignore")
    scored = scored_steps_frame(study.sessions)
    if len(scored):
        workload_of = {}
        for workload, methods in _methods_by_workload(study).items():
            for method in methods:
                workload_of[method.name] = scored_name(workload)
        scored["workload"] = scored["method"].map(workload_of)
        scored["basis"] = "emulated"
        table = pd.concat([table, scored])
    if table.empty:
        return table
    if workloads is not None:
        table = table[table["workload"].isin(workloads)]
    further = table.columns.drop("label")
    return table[["label", *further]]


def step_models(study: SpeedStudy) -> list[dict[str, Any]]:
    """Return one for each workload that can be modelled.

    With every method and baseline that was timed on it.
    """
    models = []
    for model in study.models.values():
        if not model.is_modelled:
            continue
        methods = []
        for method in model.methods.values():
            methods.append(_method(method, model.codec_seconds(method), rows=[]))
        attempts = [timing.attempt for timing in model.timings]
        models.append(_model(model, model.workload.name, "", attempts, methods))
    return models


def scored_models(study: SpeedStudy, frames: Frames) -> list[dict[str, Any]]:
    """Return the same of the methods that an experiment scores and of their baselines.

    Without encoding and update.
    """
    # A line a row and rate, of the rows that were timed; the names of rows by method.
    joined = joined_frame(frames, study.sessions).dropna(subset="method")
    rows_of = {}
    for name, lines in joined.groupby("method"):
        rows_of[str(name)] = list(lines["row"].unique())
    models = []
    for workload, timed in _methods_by_workload(study).items():
        if workload not in study.models or not study.models[workload].is_modelled:
            continue
        # Baselines alone have no speed-up to draw.
        if not any(method.name in rows_of and not method.baseline for method in timed):
            continue
        methods = []
        for method in timed:
            if method.name in rows_of or method.baseline:
                rows = rows_of.get(method.name, [])
                methods.append(_method(method, 0.0, rows))
        attempts = []
        for session in study.sessions:
            if session.workload.name == workload:
                attempts.append(session.attempt)
        models.append(
            _model(
                study.models[workload],
                scored_name(workload),
                "without encoding and update; ",
                attempts,
                methods,
            )
        )
    return models


def scored_name(workload: str) -> str:
    """Return what the page calls a workload where scored methods are timed on it."""
    return f"{workload}, as scored"


def _methods_by_workload(study: SpeedStudy) -> dict[str, list[TimedMethod]]:
    """Return the methods of all sessions, each once, by workload."""
    methods: dict[str, dict[str, TimedMethod]] = {}
    for session in study.sessions:
        of_workload = methods.setdefault(session.workload.name, {})
        for method in session.methods:
            of_workload.setdefault(method.name, method)
    return {workload: list(by_name.values()) for workload, by_name in methods.items()}


def _method(
    method: TimedMethod, codec_seconds: float, rows: Sequence[str]
) -> dict[str, Any]:
    return {
        "name": method.name,
        "label": method.label,
        "algorithm": method.algorithm,
        "baseline": method.baseline,
        "period": method.period,
        "codec_seconds": codec_seconds,
        "messages": method.messages,
        "rows": rows,
    }


def _model(
    model: WorkloadModel,
    name: str,
    without: str,
    attempts: Sequence[Attempt],
    methods: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the model of a workload, with the messages of its methods on the grid of rates.

    Args:
        model: of the workload.
        name: on the page.
        without: what a step leaves out, for the head of the sentence next to the name.
        attempts: at the timings, whose commands are shown.
        methods: see `_method`.
    """
    workload = model.workload
    # The page has the same model in JavaScript, without collectives: they are summed up here.
    networks = [model.network(rate) for rate in RATES]
    num_workers = model.main.fabric.num_workers
    on_grid = []
    for method in methods:
        on_grid.append({**method, "messages": _messages(method["messages"], networks)})
    return {
        "name": name,
        "badge": f"{without}{num_workers} workers, {workload.device}; passes: {workload.source}",
        "forward_seconds": workload.forward_seconds,
        "backward_seconds": workload.backward_seconds,
        "rates": RATES,
        "commands": list(dict.fromkeys(attempt.command for attempt in attempts)),
        "methods": on_grid,
    }


def _messages(
    messages: Sequence[Message], networks: Sequence[Network]
) -> list[dict[str, Any]]:
    """Return messages by when they are sent, with their seconds on each network.

    Those that get ready together queue as one: their seconds add up.
    """
    # By every how many steps they are sent, and when in the backward pass they are ready, in each draw.
    groups: dict[tuple[int, tuple[float, ...]], list[Message]] = {}
    for message in messages:
        ready = message.ready_draws or (message.ready,)
        groups.setdefault((message.every, ready), []).append(message)
    lines = []
    for (every, ready), group in groups.items():
        seconds = [step_seconds(_NO_COMPUTE, group, network) for network in networks]
        lines.append(
            {
                "every": every,
                "ready": ready,
                # Five digits are more than a chart shows, and keep the page small.
                "seconds": [float(f"{number:.5g}") for number in seconds],
            }
        )
    return lines
