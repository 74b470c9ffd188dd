"""Check: fp16 with a forced overflow, which all workers skip without a trace, and bf16."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from algorithms import SoloCollectives
from harness.gpu_check.problem import Scale, config_of, initial_model, trainee_of
from harness.gpu_check.record import Checks, Outcome
from harness.train.trainee import Trainee
from harness.workers.attempt import prepare_thread

NUM_STEPS, OVERFLOWS_AT = 6, 3
SAFE_SCALE, TOO_LARGE = 2.0**10, 2.0**120
"""Of the loss: the second keeps it finite in fp32, but no gradient in fp16."""
METHODS: dict[str, dict[str, Any]] = {"mcser": {"explicit_error": True}, "qsparse_local_sgd": {}}
"""Those whose state a skipped step must leave alone: momentum, error, anchor."""


def checks(device: torch.device, scale: Scale) -> Checks:
    """fp16 for each of the methods, then bf16."""
    for name in METHODS:
        yield f"fp16, overflow: {name}", partial(overflow_is_skipped, device, scale, name)
    yield "bf16", partial(bf16_trains, device, scale)


def overflow_is_skipped(device: torch.device, scale: Scale, algorithm: str) -> Outcome:
    """The gradients overflow once."""
    config = config_of(algorithm, scale, "fp16", **METHODS[algorithm])
    model = initial_model(config, device)

    prepare_thread(str(device))
    trainee = trainee_of(config, model, SoloCollectives())
    trainee.precision.scaler = torch.amp.GradScaler(device.type, init_scale=SAFE_SCALE)
    unchanged, seen = False, list[Tensor]()
    for number in range(NUM_STEPS):
        before = _state(trainee)
        if number == OVERFLOWS_AT:
            trainee.precision.scaler.update(TOO_LARGE)
        seen.append(trainee.step())
        if number == OVERFLOWS_AT:
            after = _state(trainee)
            unchanged = all(torch.equal(before[key], after[key]) for key in before)
            trainee.precision.scaler.update(SAFE_SCALE)
    steps, losses = trainee.optimizer.num_steps, torch.stack(seen).tolist()
    passed = unchanged and steps == NUM_STEPS - 1 and _finite(losses)
    expected = f"{NUM_STEPS - 1} of {NUM_STEPS} steps, finite losses, and no change at the overflow"
    return Outcome(passed, expected, {"steps": steps, "state unchanged": unchanged, "last loss": losses[-1]})


def bf16_trains(device: torch.device, scale: Scale) -> Outcome:
    """Every step counts, and parameters stay fp32."""
    expected = f"{NUM_STEPS} steps, finite losses, fp32 parameters"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return Outcome(True, expected, {}, "this GPU has no bf16; use fp16")
    config = config_of("mcser", scale, "bf16")
    model = initial_model(config, device)

    prepare_thread(str(device))
    trainee = trainee_of(config, model, SoloCollectives())
    losses = torch.stack([trainee.step() for _ in range(NUM_STEPS)]).tolist()
    is_fp32 = trainee.optimizer.flat.parameters.dtype == torch.float32
    passed = trainee.optimizer.num_steps == NUM_STEPS and is_fp32 and _finite(losses)
    return Outcome(passed, expected, {"steps": trainee.optimizer.num_steps, "last loss": losses[-1]})


def _state(trainee: Trainee) -> dict[str, Tensor]:
    """Parameters, momentum, error and anchor, as copies."""
    flat = trainee.optimizer.state_dict()["flat"]
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    return {key: value.clone() for key, value in (tensors | {"x": trainee.optimizer.flat.parameters}).items()}


def _finite(losses: list[float]) -> bool:
    return all(map(math.isfinite, losses))
