"""Check: channels last in flat buffers gives the losses that the usual format gives, and what it saves in fp16."""

from __future__ import annotations

from functools import partial

import torch

from algorithms import SoloCollectives
from harness.gpu_check.problem import Scale, config_of, initial_model, trainee_of
from harness.gpu_check.record import Checks, Outcome
from harness.spec import Precision
from harness.train.stopwatch import interleave, seconds_on
from harness.train.trainee import Trainee

NUM_STEPS, REPETITIONS = 3, 10
TOLERANCE = 1e-3
"""Relative, of losses in fp32 after few steps: the two formats add in different orders."""


def checks(device: torch.device, scale: Scale) -> Checks:
    yield "channels last", partial(same_losses, device, scale)


def same_losses(device: torch.device, scale: Scale) -> Outcome:
    """The last loss in both formats, whether parameters keep the format, and the ratio of step times."""
    usual, last = (_trainee(device, scale, "fp32", each) for each in (torch.contiguous_format, torch.channels_last))
    pairs = [(usual.step().item(), last.step().item()) for _ in range(NUM_STEPS)]
    difference = max(abs(a - b) / abs(a) for a, b in pairs)
    kernels = [parameter for parameter in last.model.parameters() if parameter.dim() == 4]
    kept = all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    fast = {
        "usual": _trainee(device, scale, "fp16", torch.contiguous_format).step,
        "channels last": _trainee(device, scale, "fp16", torch.channels_last).step,
    }
    seconds = interleave(fast, REPETITIONS, seconds_on(device))
    measured = {
        "relative difference of losses": difference,
        "format kept": kept,
        "fp16 step, usual / channels last": sum(seconds["usual"]) / sum(seconds["channels last"]),
    }
    passed = kept and difference <= TOLERANCE
    return Outcome(passed, f"the format kept, and a difference of at most {TOLERANCE:g}", measured)


def _trainee(device: torch.device, scale: Scale, precision: Precision, memory_format: torch.memory_format) -> Trainee:
    config = config_of("mcser", scale, precision)
    model = initial_model(config, device).to(memory_format=memory_format)  # type: ignore[call-overload]
    return trainee_of(config, model, SoloCollectives())
