"""What a method will send, in advance: the closed form that follows from its stages."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

from cser_bench.algorithms.core.compressors import FLOAT_BITS, Gathered
from cser_bench.algorithms.core.replica import Replica
from cser_bench.algorithms.core.stages import Stage, equalises
from cser_bench.algorithms.core.traffic import Entry, Traffic


def traffic_of_stages(
    replica: Replica, stages: Sequence[Stage], num_steps: int
) -> Traffic:
    """Return what one worker sends in the first `num_steps` steps, of the parameters of one dtype."""
    traffic = Traffic()
    for stage in stages:
        traffic.add_entry(stage.purpose, replica.cost(stage, stage.steps(num_steps)))
        if stage.except_every is not None:
            # Subtracted, rather than left out, so that mean costs are rounded once for each.
            left_out = range(stage.except_every, num_steps + 1, stage.except_every)
            cost = replica.cost(stage, left_out)
            traffic.add(stage.purpose, *(-number for number in astuple(cost)))
    return traffic


def any_equalises(replica: Replica, stages: Sequence[Stage], num_steps: int) -> bool:
    """Return whether workers hold the same parameters of one dtype after a step, by its stages."""
    # With rounded messages each worker keeps what rounding took.
    if replica.communication_dtype is not None:
        return False
    # One stage that equalises is enough, wherever it stands in the step.
    for stage in stages:
        fitted = replace(stage, compressor=replica.fitted(stage.compressor))
        if equalises(fitted, num_steps, replica.flat.layout, replica.draw):
            return True
    return False


def gathers(replica: Replica, stages: Sequence[Stage]) -> bool:
    """Return whether compressed messages go to all workers by all-gathers."""
    for stage in stages:
        compressor = replica.fitted(stage.compressor)
        if stage.neighbours is None and isinstance(compressor, Gathered):
            return True
    return False


def talks_to_neighbours(stages: Sequence[Stage]) -> bool:
    """Return whether messages go to neighbours, of whom there are more or fewer by world size."""
    return any(stage.neighbours is not None for stage in stages)


def overall_ratio(sent: Entry, num_steps: int, numel: int) -> float:
    """Return SGD's bits, 32 d a step, over those that were sent; infinite where nothing was."""
    if not sent.bits:
        return math.inf
    return FLOAT_BITS * numel * num_steps / sent.bits


def long_run(
    settings: Mapping[str, Any], expected_traffic: Callable[[int], Traffic]
) -> tuple[Entry, int]:
    """Return what one worker sends in training in so many steps, once it repeats, and their number.

    Args:
        settings: the method's.
        expected_traffic: returns what one worker sends in the first so many steps.
    """
    # What is sent repeats after a common multiple of the method's intervals, whatever these are
    # called. The product of all whole numbers is one, a rank's among them.
    counts = [value for value in settings.values() if type(value) is int and value]
    period = math.prod(counts)
    # A hundred steps or more: where draws differ, what is sent is about their mean.
    num_steps = period * math.ceil(100 / period)
    once = astuple(expected_traffic(num_steps).training_total())
    twice = astuple(expected_traffic(2 * num_steps).training_total())
    # Without what is sent but once, at the start.
    sent = [after - before for before, after in zip(once, twice, strict=True)]
    return Entry(*sent), num_steps
