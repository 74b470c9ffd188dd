"""Check: workers as threads on one device end where they end one at a time, stacked, and on the CPU."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from algorithms import Collectives, run_workers
from harness.gpu_check.problem import SMALL, Scale, config_of, initial_model, trainee_of
from harness.gpu_check.record import Checks, Outcome
from harness.train.trainee import StackedTrainee
from harness.workers.attempt import prepare_thread

NUM_WORKERS, NUM_STEPS = 4, 5
TOLERANCE = 1e-8
"""Of parameters in float64, relative to the way that training took them: only the order of additions may differ."""


def checks(device: torch.device, scale: Scale) -> Checks:
    for name in ("mcser", "ef_sgd"):
        yield f"workers as threads: {name}", partial(same_parameters, device, name)


def same_parameters(device: torch.device, algorithm: str) -> Outcome:
    """The largest relative distance between workers of these ways."""
    together = _trained(device, algorithm, NUM_WORKERS)
    ways = {
        "one at a time": _trained(device, algorithm, 1),
        "stacked": _stacked(device, algorithm),
        "on the CPU": _trained(torch.device("cpu"), algorithm, 1),
    }
    measured = {
        name: max(_distance(a, b) for a, b in zip(together, workers, strict=True)) for name, workers in ways.items()
    }
    passed = all(distance <= TOLERANCE for distance in measured.values())
    return Outcome(passed, f"relative distances of at most {TOLERANCE:g}", measured)


def _trained(device: torch.device, algorithm: str, max_active: int) -> list[tuple[Tensor, Tensor]]:
    """Each worker's parameters before and after, on the CPU."""
    config = config_of(algorithm, Scale(model=SMALL, batch_size=8))
    model = initial_model(config, device).double()

    def work(collectives: Collectives) -> tuple[Tensor, Tensor]:
        prepare_thread(str(device))
        trainee = trainee_of(config, model, collectives)
        parameters = trainee.optimizer.flat.parameters
        before = parameters.cpu().clone()
        for _ in range(NUM_STEPS):
            trainee.optimizer.zero_grad()
            # Not trainee.step(), whose loss is fp32.
            inputs, labels = trainee.batches[0]
            nn.functional.cross_entropy(trainee.model(inputs), labels).backward()  # type: ignore[no-untyped-call]
            trainee.optimizer.step()
        return before, parameters.cpu()

    return run_workers(work, NUM_WORKERS, max_active=max_active)


def _stacked(device: torch.device, algorithm: str) -> list[tuple[Tensor, Tensor]]:
    """The same of workers that are rows of the same tensors."""
    config = config_of(algorithm, Scale(model=SMALL, batch_size=8)).model_copy(update={"num_workers": NUM_WORKERS})
    trainee = StackedTrainee(config, initial_model(config, device).double())
    parameters = trainee.optimizer.flat.parameters
    before = parameters.cpu().clone()
    for _ in range(NUM_STEPS):
        trainee.step()
    return list(zip(before, parameters.cpu(), strict=True))


def _distance(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    return float((one[1] - other[1]).norm() / (other[1] - other[0]).norm())
