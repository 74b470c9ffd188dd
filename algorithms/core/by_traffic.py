"""Settings by traffic: the nearest ones at which links carry a share of what they carry for DDP."""

import inspect
import math
import re
from typing import Any

from cser_bench.algorithms.core.compressors import FLOAT_BITS, Compressor
from cser_bench.algorithms.core.layout import Layout
from cser_bench.algorithms.core.traffic import Entry, carried
from cser_bench.algorithms.core.warn import warn_script

FP16_SHARE = 0.5
"""Traffic of DDP with PyTorch's fp16 hook, which rounds messages and leaves nothing else out."""
NEAR = math.sqrt(2)
"""Factor within which the nearest integer always lies of any number from 1 / sqrt(2) up."""
LONG = Layout.flat(slice(0, 2**24))
"""A vector so long that rounding a message up changes nothing."""


def share_of(entry: Entry, world_size: int, numel: int, num_steps: float = 1) -> float:
    """Return what a link carries for these messages, as a share of DDP's in fp32."""
    # What a ring's link carries of an all-reduce of 32 d bits a step.
    ddp_bits = carried(world_size, FLOAT_BITS * numel * num_steps)
    return entry.link_bits(world_size) / ddp_bits


def share_at_every_step(compressor: Compressor, world_size: int) -> float:
    """Return the share of DDP's traffic that one message of each worker takes at every step."""
    return share_of(compressor.cost(LONG, None, range(1)), world_size, LONG.numel)


def top_k_ratio(share: float, world_size: int) -> float:
    """Return the ratio at which top-k, sent at every step, carries this share: n over it.

    It is an integer where it is one but for rounding.
    """
    ratio = world_size / share
    if math.isclose(ratio, round(ratio), rel_tol=1e-9):
        return round(ratio)
    return ratio


def nearest_count(name: str, at_one: float, share: float) -> int:
    """Return the integer from 1 up by which `at_one` must be divided to come nearest to the share.

    Nearest by factor: 0.7 and 1.4 are as near to 1 as each other.

    Args:
        at_one: the share of traffic at 1, for instance of an exchange at every step.

    Raises:
        ValueError: even 1 is farther off than rounding makes the nearest.
    """
    exact = at_one / share
    if exact * NEAR * (1 + 1e-9) < 1:
        raise ValueError(
            f"{name}: its messages are at most {at_one:.3g} of DDP's traffic, so it cannot have "
            f"{share:.3g}; ask for {at_one:.3g} or less, or give its settings themselves"
        )
    low = max(1, math.floor(exact))
    # The middle by factor is the geometric mean: exact <= sqrt(low (low + 1)).
    if exact * exact <= low * (low + 1):
        return low
    return low + 1


def nearest_interval(
    name: str, compressor: Compressor, share: float, world_size: int
) -> int:
    """Return the interval at which messages of this compressor come nearest to the share."""
    return nearest_count(name, share_at_every_step(compressor, world_size), share)


def nearest_factors(product: int) -> tuple[int, int]:
    """Return the two integers of this product that are nearest to each other, the smaller first."""
    # From the root down, the first divisor is the nearest one.
    smaller = math.isqrt(product)
    while product % smaller:
        smaller -= 1
    return smaller, product // smaller


def advice_for(method: type[Any]) -> str:
    """Say which settings to write where they are not chosen by traffic."""
    begin = re.search(r"Begin with `([^`]+)`", inspect.getdoc(method) or "")
    return f"write {begin[1]}" if begin else "give its settings themselves"


def warn_of_dear_messages(name: str, share: float, world_size: int) -> None:
    """Warn where compressed messages cost more than DDP's in fp16 do."""
    if share > FP16_SHARE * (1 + 1e-9):
        warn_script(
            f"{name}: at {world_size} workers its messages are {share:.3g} of DDP's traffic in "
            f"fp32, more than the {FP16_SHARE} of DDP with PyTorch's fp16 hook; send less, or take "
            "that hook"
        )
