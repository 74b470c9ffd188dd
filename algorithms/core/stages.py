"""A method's step as data: what is sent, in stages.

The closed form and what can be sent early follow from them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

from torch import Tensor

from cser_bench.algorithms.core.compressors import (
    FLOAT_BITS,
    Compressor,
    Draw,
    Identity,
    SharedSupport,
)
from cser_bench.algorithms.core.flat import FlatBuffers
from cser_bench.algorithms.core.layout import Layout, Support, Windows
from cser_bench.algorithms.core.traffic import Purpose

EVERYTHING = Identity()


@dataclass(frozen=True)
class Stage:
    """One message of a step.

    C(v) of a vector v, averaged over all workers or mixed with neighbours'.

    Args:
        purpose: what v is: the step's gradient or update, the error, or the model. Stages of one
            step differ in it where they draw, since equal purposes draw equal coordinates.
        compressor: C; by default the whole vector is sent.
        every: steps from one time that the stage takes place to the next.
        first: the step at which it first does, counted from 1; by default step `every`.
        last: no step after this one has it; by default there is no last one.
        except_every: steps that are multiples of this do not have it; itself a multiple of `every`.
        layout: of v where that is not the whole flat vector.
        neighbours: to how many a worker sends its message; None where it is averaged.
        equalises: whether workers hold the same parameters after it, if sums are exact; None where
            that is so if everything is sent to all.
        early: computes what will be sent of these coordinates, of shape (support.payload_numel,),
            once their gradients are done, and changes nothing:
            `Replica.after_local_step`, say. Then it can be sent during the backward
            pass. None where the message needs more than that.
    """

    purpose: Purpose
    compressor: Compressor = EVERYTHING
    every: int = 1
    first: int | None = None
    last: int | None = None
    except_every: int | None = None
    layout: Layout | None = None
    neighbours: int | None = None
    equalises: bool | None = None
    early: Callable[[Windows], Tensor] | None = None

    def steps(self, num_steps: int) -> range:
        """Return the steps up to number `num_steps` at which it takes place.

        Those of `except_every` are among them.
        """
        # By default the first one ends the first interval: steps every, 2 every, ...
        first = self.every if self.first is None else self.first
        last = num_steps if self.last is None else min(num_steps, self.last)
        return range(first, last + 1, self.every)

    def takes_place(self, step: int) -> bool:
        if step not in self.steps(step):
            return False
        return self.except_every is None or step % self.except_every != 0


def equalises(
    stage: Stage, step: int, layout: Layout, draw: Callable[[int, Purpose], Draw]
) -> bool:
    """Return whether all workers hold the same parameters after this step's stage, if sums are exact.

    They do where the whole error or model is averaged. They also do where every update is, as then
    they never differed.
    """
    if stage.equalises is not None:
        return stage.equalises and stage.takes_place(step)
    if stage.purpose is Purpose.GRADIENT:
        # One step without it, and workers differ; later gradients do not bring them together.
        is_always = stage.every == 1 and stage.except_every is None
        return is_always and isinstance(stage.compressor, Identity)
    if stage.neighbours is not None or not stage.takes_place(step):
        return False
    # A fragment of the vector leaves the rest as it was.
    if stage.layout is not None and stage.layout.numel != layout.numel:
        return False
    return sends_all(stage, layout, draw(step, stage.purpose))


def sends_all(stage: Stage, layout: Layout, draw: Draw) -> bool:
    """Return whether this draw keeps every coordinate.

    Then the workers' values are equal after it.
    """
    # Others round or choose by a worker's own values, so that workers stay different.
    if not isinstance(stage.compressor, SharedSupport):
        return False
    # At least, since a message may be filled up with zeros.
    return stage.compressor.payload_bits(layout, draw) >= FLOAT_BITS * layout.numel


# What can be sent early.


@dataclass(frozen=True)
class EarlyMessage:
    """A message of a step that can be computed before the whole gradient is known."""

    purpose: Purpose
    payload_bits: int
    tensors: tuple[int, ...]
    """Numbers of the tensors whose gradients must be done, ascending."""
    payload: Callable[[], Tensor]
    """Returns what the step will send, and changes nothing."""


def early_messages(
    stages: Sequence[Stage],
    step: int,
    flat: FlatBuffers,
    draw: Callable[[int, Purpose], Draw],
    float_bits: int,
) -> list[EarlyMessage]:
    """Return, in order, the messages of a step that need not wait for the whole gradient."""
    # In types shorter than 32 bits, a slice computed alone can differ in its last bits from the
    # same slice of the whole vector.
    if flat.parameters.element_size() < 4 or all(
        stage.early is None for stage in stages
    ):
        return []
    layout = flat.layout
    messages = []
    # The coordinates of this step's earlier messages; None for one that may be anywhere.
    before: list[Support | None] = []
    for stage in stages:
        if not stage.takes_place(step):
            continue
        support = None
        # Other compressors choose by the vector's values, which are not known yet.
        if isinstance(stage.compressor, SharedSupport):
            occasion = draw(step, stage.purpose)
            support = stage.compressor.support(layout, occasion)
        if stage.early is not None and _is_known_early(support, layout, before):
            tensors = layout.touched(support)
            # Frozen ones have no gradient that could be waited for.
            if not set(tensors) & set(flat.frozen):
                bits = float_bits * support.payload_numel
                payload = partial(stage.early, support)
                messages.append(EarlyMessage(stage.purpose, bits, tensors, payload))
        # A message that is not sent early counts, too: it changes coordinates before a later stage.
        before.append(support)
    return messages


def _is_known_early(
    support: Support | None, layout: Layout, before: Sequence[Support | None]
) -> TypeGuard[Windows]:
    """Return whether a support is a part of the vector that no earlier message changes.

    It must be made of windows, and the messages are those of its step.

    `before`: the coordinates of these messages, to which other workers contribute; None where they
        may be any.
    """
    if not isinstance(support, Windows):
        return False
    # An empty message takes no collective, and one of everything waits for every gradient.
    if not 0 < support.payload_numel < layout.numel:
        return False
    return all(other is not None and support.is_apart(other) for other in before)
