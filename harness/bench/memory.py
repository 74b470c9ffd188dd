"""Benchmark: a worker's memory in units of the parameters' size, counted from tensors and measured by the system."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from algorithms import DistributedOptimizer, SoloCollectives
from algorithms import algorithms as known_algorithms
from harness.bench import methods
from harness.bench.measurement import Aim, Measurement, not_measured
from harness.workers.attempt import prepare_thread

TORCH = "torch_sgd"
"""PyTorch's own fused SGD with momentum, for comparison."""
NUM_STEPS = 3


def measure(results: Path) -> list[Measurement]:
    """For each algorithm at ratio 256: parameters, gradients and state, as measured and as counted."""
    figures = []
    for name in (TORCH, *known_algorithms()):
        if name != TORCH and name not in methods.SETTINGS:
            reason = f"harness/bench/methods.py has no settings for {name} at ratio 256"
            figures.append(not_measured(f"memory: {name}", "", reason))
        else:
            figures += _figures(name, _in_fresh_process(name))
    return figures


def _figures(name: str, sizes: dict[str, float]) -> list[Measurement]:
    compared = (
        f"resident memory of a fresh process in {NUM_STEPS} steps with a reset, at its peak, d = 25.6 M numbers; "
        f"counted from tensors: {sizes['counted']:g} d; peak of construction: {sizes['construction']:.2f} d"
        + (f", of an average to evaluate: {sizes['consensus']:.2f} d" if "consensus" in sizes else "")
    )
    raw = {key: [value] for key, value in sizes.items()}
    figures = [Measurement(f"memory: {name}", compared, sizes["steps"], "d", raw=raw)]
    if name == "mcser":
        state = "the momentum and nothing else, counted from tensors"
        figures.append(Measurement("memory: mcser, state alone", state, sizes["state"], "d", Aim("at most", 1.0)))
    return figures


def _in_fresh_process(name: str) -> dict[str, float]:
    command = [sys.executable, "-m", "harness.bench.memory", name]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that measures {name} failed: {done.stderr.strip().splitlines()[-1:]}")
    sizes: dict[str, float] = json.loads(done.stdout)
    return sizes


def sizes_of(name: str) -> dict[str, float]:
    """Sizes in units of the parameters' own, of this process, which should have done nothing before."""
    prepare_thread()
    before = _status_bytes("VmRSS")
    parameters = methods.resnet50_parameters()
    unit = 4 * methods.numel_of(parameters)

    def peak() -> float:
        """Growth at its highest since the last look."""
        highest = _status_bytes("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
        return (highest - before) / unit

    optimizer = _build(name, parameters)
    sizes = {"construction": peak()}
    for _ in range(NUM_STEPS):
        methods.fill_gradients(parameters)
        optimizer.step()
    sizes["steps"] = peak()
    sizes["state"] = sum(tensor.numel() for tensor in _state(optimizer)) * 4 / unit
    sizes["counted"] = 2 + sizes["state"]
    if isinstance(optimizer, DistributedOptimizer):
        with optimizer.consensus():
            sizes["consensus"] = peak()
    return sizes


def _build(name: str, parameters: nn.ParameterList) -> torch.optim.Optimizer:
    if name == TORCH:
        return torch.optim.SGD(parameters.parameters(), lr=1e-3, momentum=0.9, nesterov=True, fused=True)
    optimizer = methods.build(name, parameters, SoloCollectives())
    methods.skip_to_reset(optimizer)
    return optimizer


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    state = optimizer.state_dict()
    flat: dict[str, Any] = state.get("flat", {})
    values = [*flat.values(), *(value for each in state["state"].values() for value in each.values())]
    return [value for value in values if isinstance(value, Tensor)]


def _status_bytes(key: str) -> int:
    """A size that Linux reports of this process: VmRSS now, VmHWM at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    print(json.dumps(sizes_of(sys.argv[1])))
