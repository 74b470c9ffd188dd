"""Small layers, a workload and contexts of turns that tests of timing share."""

from __future__ import annotations

from typing import Any

import torch

from harness.records.timings import Workload
from harness.timing.ddp_buckets import Groups
from harness.timing.steps import TurnContext
from harness.timing.workloads import Layer, Layers

LAYERS = Layers(
    in_order=(Layer("first", (0,), 0.2), Layer("norm", (1, 2), 0.0), Layer("last", (3,), 0.8)),
    shapes=((300, 20), (300,), (300,), (40, 300)),
)
NUMEL = 6000 + 300 + 300 + 12000


def workload(**changed: Any) -> Workload:
    values: dict[str, Any] = {
        "name": "fashion_mnist",
        "model": "small_cnn",
        "batch_size": 16,
        "num_parameters": NUMEL,
        "device": "made up",
        "forward_seconds": 1e-4,
        "backward_seconds": 2e-4,
        "source": "made up",
    }
    return Workload(**(values | changed))


def context(groups: Groups, **changed: Any) -> TurnContext:
    """Of workers that wait, with messages that are seen."""
    values: dict[str, Any] = {
        "workload": workload(),
        "layers": LAYERS,
        "trains": False,
        "num_workers": 8,
        "device": torch.device("cpu"),
        "groups": groups,
        "visible": True,
    }
    return TurnContext(**(values | changed))
