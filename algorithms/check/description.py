"""Checks that a method says what it is, and talks through its collectives alone."""

from typing import Any

import torch

from cser_bench.algorithms.check.outcomes import NUM_STEPS, BrokenError, naming
from cser_bench.algorithms.check.problem import (
    COMPRESSORS,
    INTERVAL,
    Method,
    Rows,
    compressor_settings,
    make_model,
    make_optimizer,
    settings_for,
    taken_compressors,
)
from cser_bench.algorithms.check.subject import Subject, lines_past_collectives
from cser_bench.algorithms.core.collectives import StackedCollectives
from cser_bench.algorithms.core.compressors import Identity
from cser_bench.algorithms.core.optimizer import DistributedOptimizer

FAMILIES = (
    "all sent",
    "bounds",
    "error reset",
    "error feedback",
    "local steps",
    "neighbours",
    "other",
)
"""What a method's `family` may be: reports have a colour for each."""


def describes_itself(subject: Subject) -> None:
    """Hold a method to a family that reports know, and to values for its settings.

    With these all that it declares must take place while it is checked.
    """
    method = subject.method
    if method.family not in FAMILIES:
        raise BrokenError(
            f"its family is {method.family!r}, for which reports have no colour; take one of "
            f"{', '.join(FAMILIES)}"
        )
    unknown = {
        *(method.no_compression or {}),
        *method.tried_with,
    } - method.declared.keys()
    if unknown:
        raise BrokenError(
            f"no_compression or tried_with has {', '.join(sorted(unknown))}, which is no setting "
            "of its own"
        )
    try:
        # Made here first, so that a value which lacks is told once and not by every check.
        settings = settings_for(method)
        make_optimizer(method, make_model().parameters(), settings)
    except (TypeError, ValueError) as error:
        raise BrokenError(str(error)) from None
    _check_takes_place(method)


def _check_takes_place(method: Method) -> None:
    """Raise BrokenError where checks would not reach a stage or a compressor of the method."""
    taken = taken_compressors(method)
    if not taken:
        raise BrokenError(
            f"none of {', '.join(COMPRESSORS)} is what all its compressors may be, so nothing "
            "would be checked; state values for them in tried_with"
        )
    for name, compressor in taken.items():
        settings = settings_for(method, [compressor], INTERVAL)
        rows = Rows(method, settings, StackedCollectives(2), seed=3)
        with naming(name):
            _check_stages(rows.optimizer, settings)
            rows.train(range(1, NUM_STEPS + 1))
            # A compressor must matter: with the identity in its place something must come out
            # otherwise.
            for key in compressor_settings(method):
                without = Rows(
                    method, settings | {key: Identity()}, StackedCollectives(2), seed=3
                )
                without.train(range(1, NUM_STEPS + 1))
                if _did_the_same(rows, without):
                    raise BrokenError(
                        f"{key} changes nothing in {NUM_STEPS} steps, neither what is sent nor a "
                        "parameter, so it is not checked; state settings in tried_with with which "
                        f"it does (tried were {settings})"
                    )


def _check_stages(optimizer: DistributedOptimizer, settings: dict[str, Any]) -> None:
    for number, stage in enumerate(optimizer.stages(optimizer.replicas[0]), 1):
        if not any(stage.takes_place(step) for step in range(1, NUM_STEPS + 1)):
            raise BrokenError(
                f"stage {number} ({stage.purpose.value}, every {stage.every} steps) takes place in "
                f"none of {NUM_STEPS} steps, so it is not checked; state settings in tried_with "
                f"with which it does (tried were {settings})"
            )


def _did_the_same(one: Rows, other: Rows) -> bool:
    # Counts first, as they differ in nearly every case and are compared at once.
    if one.optimizer.traffic.training() != other.optimizer.traffic.training():
        return False
    return all(torch.equal(one.rows[key], other.rows[key]) for key in one.rows)


def talks_through_collectives(subject: Subject) -> None:
    """Hold a source to names other than those of `torch.distributed`."""
    lines = lines_past_collectives(subject.source)
    if lines:
        numbers = ", ".join(map(str, lines))
        raise BrokenError(
            f"line {numbers} of {subject.file} names torch.distributed, whose messages nobody "
            "counts; send by replica.exchange, mix, average or replica.collectives"
        )
