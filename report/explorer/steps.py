"""What the page needs to model a step at any rate and compute time: each message's seconds on a grid of rates."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from harness.records.timings import Message
from report.speed.cost_model import Compute, Network, step_seconds
from report.speed.workload_model import SpeedStudy, WorkloadModel

RATES = tuple(float(f"{10 ** (7 + step / 12):.6g}") for step in range(56))
"""Bits per second, 10 Mb/s to 383 Gb/s; between them the page goes straight in logarithms."""


def timings_table(study: SpeedStudy, workloads: Collection[str] | None = None) -> pd.DataFrame:
    """Every timed cell of a study with what the model says of it; of some workloads alone if they are named."""
    cells = study.cells.drop(columns="timing")
    table = cells[cells["workload"].isin(workloads)] if workloads is not None else cells
    return table[["label", *table.columns.drop("label")]]


def step_models(study: SpeedStudy) -> list[dict[str, Any]]:
    """One for each workload that can be modelled, with every method and baseline that was timed on it."""
    return [
        _model(
            model,
            model.workload.name,
            "",
            [
                {
                    "name": method.name,
                    "label": method.label,
                    "algorithm": method.algorithm or method.name,
                    "baseline": method.baseline,
                    "period": method.period,
                    "codec_seconds": model.codec_seconds(method),
                    "messages": method.messages,
                    "rows": [],
                }
                for method in model.methods.values()
            ],
        )
        for model in study.models.values()
        if model.is_modelled
    ]


def _model(model: WorkloadModel, name: str, without: str, methods: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    work, networks = model.workload, [network for rate in RATES if (network := model.network(rate))]
    return {
        "name": name,
        "badge": f"{without}{model.main.fabric.num_workers} workers, {work.device}; passes: {work.source}",
        "forward_seconds": work.forward_seconds,
        "backward_seconds": work.backward_seconds,
        "rates": RATES,
        "commands": list(dict.fromkeys(timing.attempt.command for timing in model.timings)),
        "methods": [{**method, "messages": _messages(method["messages"], networks)} for method in methods],
    }


def _messages(messages: Sequence[Message], networks: Sequence[Network]) -> list[dict[str, Any]]:
    """Messages that get ready together queue as one: their seconds add up."""
    groups: dict[tuple[int, tuple[float, ...]], list[Message]] = {}
    for message in messages:
        groups.setdefault((message.every, message.ready_draws or (message.ready,)), []).append(message)
    return [
        {
            "every": every,
            "ready": ready,
            "seconds": [float(f"{step_seconds(Compute(0.0, 0.0), group, network):.5g}") for network in networks],
        }
        for (every, ready), group in groups.items()
    ]
