"""What the tests of timing share: small layers, a request, and a process group of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from harness.records.timings import Fabric, Workload
from harness.speed.groups import Groups
from harness.speed.layers import Layer, Layers
from harness.speed.request import TimingRequest
from harness.speed.turn import TurnContext

torch.set_num_threads(1)

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


def fabric(num_workers: int = 2, dilation: float = 1.0, workers_per_machine: int | None = None) -> Fabric:
    inside = workers_per_machine or num_workers
    return Fabric(
        kind="host",
        backend="gloo",
        num_machines=num_workers // inside,
        workers_per_machine=inside,
        bits_per_second=None,
        inside_bits_per_second=None,
        dilation=dilation,
    )


def request_of(methods: list[str], output: Path, **changed: Any) -> TimingRequest:
    values: dict[str, Any] = {
        "fabric": fabric(),
        "basis": "emulated",
        "workload": workload(),
        "trainee": "waiting",
        "methods": methods,
        "num_visits": 1,
        "times_codec": False,
        "output": output,
        "layers": LAYERS,
    }
    return TimingRequest(**(values | changed))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Groups]:
    """A process group whose only worker is this process."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield Groups(None, [None] * 10)
    dist.destroy_process_group()


def setting_of(request: TimingRequest, groups: Groups) -> TurnContext:
    return TurnContext(request, torch.device("cpu"), groups, visible=True)
