"""Benchmarks: ratios of speed and memory on this machine, each with its aim, where it has one.

`make bench` runs them on an otherwise idle machine and ends in one table; `make test` leaves them out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor

from algorithms import DistributedOptimizer, SoloCollectives, algorithms
from harness.workers.attempt import num_cores, prepare_thread
from tests.measured import subjects

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

Record = Callable[[str, object], None]
INTERVALS = 5
"""Repetitions, each a whole reset interval of steps, so that resets weigh what they do in training."""
BUSY = 0.3
"""Load per core from which figures are not to be trusted."""
PASSES = {"sgd": 5, "ef_sgd": 7, "cser_pl": 5, "csea": 5, "mcser": 5, "cser": 3}
"""Vectors of d numbers that a step must at least read and write, momentum and gradient among them: its traffic limit is
their time at the rate that PyTorch's fused step reaches with its own five (x, m and g read; x and m written)."""
WITHIN = 1.07
"""Of the traffic limit, which a method's step should not exceed by more."""


@pytest.fixture(scope="module", autouse=True)
def idle() -> None:
    """Figures of a busy machine are no figures."""
    load = os.getloadavg()[0]
    if load > BUSY * num_cores():
        print(f"the load was {load:.1f} before this began: measure again when the machine is idle")


@pytest.fixture(scope="module")
def step_ratios() -> dict[str, list[float]]:
    """Of each method, the time of a reset interval over that of PyTorch's fused step, by repetition."""
    prepare_thread()
    steppers = {
        f"torch {momentum}": subjects.torch_stepper(momentum, subjects.random_parameters()) for momentum in (0.9, 0.0)
    }
    steppers |= {name: subjects.own_stepper(name, subjects.random_parameters()) for name in PASSES}
    timings = subjects.interval_seconds(steppers, INTERVALS, torch.device("cpu"))
    plain = {name: f"torch {subjects.config_of(name).momentum}" for name in PASSES}
    return {
        name: [own / fused for own, fused in zip(timings[name], timings[plain[name]], strict=True)] for name in PASSES
    }


@pytest.mark.parametrize("name", PASSES)
def test_a_step_takes_no_more_than_its_traffic(
    step_ratios: dict[str, list[float]], name: str, record_property: Record
) -> None:
    """Over PyTorch's fused step, at 25.6 M parameters on one thread: vectors read and written, and 7 % more."""
    ratio, limit = median(step_ratios[name]), PASSES[name] / (3 if name in subjects.WITHOUT_MOMENTUM else 5)
    record_property("over torch fused", ratio)
    record_property("traffic limit", limit)
    record_property("all", sorted(step_ratios[name]))
    assert ratio <= WITHIN * limit


@pytest.mark.parametrize("name", ["torch", *algorithms()])
def test_memory_in_units_of_the_parameters(name: str, record_property: Record) -> None:
    """Resident memory of a fresh process in three steps with a reset, at its peak, and state counted from tensors."""
    command = [sys.executable, "-m", "tests.measured.test_bench", name]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sizes: dict[str, float] = json.loads(done.stdout)
    for key, value in sizes.items():
        record_property(key, value)
    assert name != "mcser" or sizes["state"] <= 1.0, "the momentum and nothing else"


def sizes_of(name: str) -> dict[str, float]:
    """Sizes in units of the parameters' own, of this process, which should have done nothing before."""
    prepare_thread()
    before, parameters = _status_bytes("VmRSS"), subjects.random_parameters()
    unit = sum(parameter.numel() * parameter.element_size() for parameter in parameters)

    def peak() -> float:
        """Growth at its highest since the last look."""
        highest = _status_bytes("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
        return (highest - before) / unit

    if name == "torch":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, 1e-3, 0.9, nesterov=True, fused=True)
    else:
        optimizer = own = subjects.build(name, parameters, SoloCollectives())
        subjects.skip_to_reset(own)
    sizes = {"construction": peak()}
    for _ in range(3):
        subjects.touch_gradients(parameters)
        optimizer.step()
    sizes["steps"] = peak()
    state = optimizer.state_dict()
    flat = dict(state["param_groups"][0].get("flat", {}))
    flat.pop("parameters", None)  # the model's own
    values = [*flat.values(), *(value for each in state["state"].values() for value in each.values())]
    sizes["state"] = sum(value.numel() * 4 for value in values if isinstance(value, Tensor)) / unit
    if isinstance(optimizer, DistributedOptimizer):
        with optimizer.consensus():
            sizes["consensus"] = peak()
    return sizes


def _status_bytes(key: str) -> int:
    """A size that Linux reports of this process: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    print(json.dumps(sizes_of(sys.argv[1])))
