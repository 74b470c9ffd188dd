"""A method in words and in one number: its settings, its overall ratio, and the line that it prints as."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from algorithms.core.arguments import NUMBERS, LocalStepName
from algorithms.core.collectives import Collectives
from algorithms.core.compressors import FLOAT_BITS
from algorithms.core.traffic import Traffic


def in_words(settings: Mapping[str, Any], wire: torch.dtype | None, local_step: str) -> dict[str, str]:
    """The settings, the wire's type and a local step other than SGD's, as states and workers compare them."""
    stepping = {} if local_step == "sgd" else {"local_step": local_step}
    return {key: repr(value) for key, value in {**settings, "wire": wire, **stepping}.items()}


def overall_ratio(
    settings: Mapping[str, Any], num_parameters: int, expected_traffic: Callable[[int], Traffic]
) -> float:
    """How many times as much SGD sends in the long run (32 d bits a step are 1); infinite where nothing is sent."""
    intervals = math.prod(value for value in settings.values() if type(value) is int)
    num_steps = intervals * math.ceil(100 / intervals)  # whole intervals; where draws differ, about their mean
    sent = [expected_traffic(steps).training_bits for steps in (num_steps, 2 * num_steps)]
    bits = sent[1] - sent[0]  # without what is sent but once, at the start
    return FLOAT_BITS * num_parameters * num_steps / bits if bits else math.inf


def described(
    name: str,
    settings: Mapping[str, Any],
    local_step: LocalStepName,
    groups: Sequence[Mapping[str, Any]],
    num_parameters: int,
    ratio: float,
    collectives: Collectives,
) -> str:
    """The class, its settings, the numbers of each group, d, the overall ratio and the workers."""
    numbers = [{key: group[key] for key in NUMBERS[local_step]} for group in groups]
    settings = settings if local_step == "sgd" else {**settings, "local_step": local_step}
    own = ", ".join(f"{key}={value!r}" for key, value in {**settings, **numbers[0]}.items())
    others = "".join(f", group {number}: {each}" for number, each in enumerate(numbers[1:], 1))
    sent = "nothing is sent" if ratio == math.inf else f"overall ratio {ratio:,.4g}"
    worker = f"worker {collectives.rank} of {collectives.world_size}"
    return f"{name}({own}{others}; d = {num_parameters:,}, {sent}, {worker})"
