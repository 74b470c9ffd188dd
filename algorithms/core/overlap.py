"""Overlap: messages that depend on a few tensors' gradients are reduced while the backward pass is still at work.

A sparsifier's choice is known before the backward pass. When the gradients of all tensors that a message touches are
done, the message is computed on the side, by the arithmetic that `step()` will use, and its sum is begun. `step()` goes
its usual way; where it asks for that sum it finds it begun, or finished.
"""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor

from algorithms.core.collectives import Collectives
from algorithms.core.compressors import SharedSupport
from algorithms.core.early_sums import EarlySums
from algorithms.core.flat import FlatBuffers
from algorithms.core.layout import Layout, Support, Windows
from algorithms.core.randomness import Draw
from algorithms.core.stages import Stage
from algorithms.core.traffic import Purpose


@dataclass(frozen=True)
class EarlyMessage:
    """A message of a step that can be computed before the whole gradient is known."""

    purpose: Purpose
    support: Windows
    payload_bits: int
    tensors: tuple[int, ...]
    """Whose gradients must be done, ascending, in the order in which the optimiser was given its parameters."""
    payload: Callable[[], Tensor]
    """What the step will send, of shape (support.payload_numel,); changes nothing."""


def early_messages(
    stages: Sequence[Stage], step: int, flat: FlatBuffers, draw: Callable[[int, Purpose], Draw], float_bits: int
) -> list[EarlyMessage]:
    """Those messages of a step that can be computed before the whole gradient is known, in the order of its stages."""
    # Of types shorter than 32 bits a slice's bits can differ from the whole's, however the slice is cut.
    if flat.parameters.element_size() < 4 or all(stage.early is None for stage in stages):
        return []
    layout, messages, before = flat.layout, [], list[Support | None]()
    for stage in stages:
        if stage.takes_place(step):
            compressor, now = stage.compressor, draw(step, stage.purpose)
            support = compressor.support(layout, now) if isinstance(compressor, SharedSupport) else None
            if stage.early is not None and _is_known_early(support, layout, before):
                bits, payload = compressor.payload_bits(layout, now, float_bits), partial(stage.early, support)
                messages.append(EarlyMessage(stage.purpose, support, bits, layout.touched(support), payload))
            before.append(support)
    return messages


def _is_known_early(support: Support | None, layout: Layout, before: Sequence[Support | None]) -> TypeGuard[Windows]:
    """Whether it is a part of the vector, in windows, which no earlier message of the step changes.

    `before`: the coordinates of these messages, to which other workers contribute; None where they may be any.
    """
    return (
        isinstance(support, Windows)
        and 0 < support.payload_numel < layout.numel
        and all(other is not None and support.is_apart(other) for other in before)
    )


class Reducer:
    """The optimiser's side, as in DDP: watches the gradients, begins each early message as soon as it can be computed.

    Messages are begun in one fixed order, so that all workers' collectives match; what is not ready by the time of
    `step()` is begun there. Gradients of several backward passes add up: the last pass counts, and what an earlier one
    sent is dropped and counted as control.

    Args:
        list_messages: the early messages of the step that comes next.
        early: where sums are begun.
        wire: type of the numbers that are sent, None for the parameters' own.
    """

    def __init__(
        self,
        flat: FlatBuffers,
        collectives: Collectives,
        early: EarlySums,
        list_messages: Callable[[], Sequence[EarlyMessage]],
        wire: torch.dtype | None,
    ) -> None:
        self._flat, self._collectives, self._early = flat, collectives, early
        self._list_messages, self._wire = list_messages, wire
        self._is_listed = False
        """Whether the messages of the step that comes next are in `_waiting`, or begun."""
        self._waiting: deque[EarlyMessage] = deque()
        self._finished: set[int] = set()
        self._paused = self._stopped = False
        for number, parameter in enumerate(flat.tensors):
            hook = _hook(weakref.ref(self), number)
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def gradient_done(self, number: int) -> None:
        """Tensor `number` has its gradient of this backward pass."""
        if self._stopped or not self._flat.holds(number):
            return
        if self._paused or number in self._finished:
            self.drop()
        if self._paused:
            return
        self._flat.collect_gradient(number)
        self._list()
        self._finished.add(number)
        while self._waiting and self._finished.issuperset(self._waiting[0].tensors):
            self._begin_next()

    def begin_rest(self) -> None:
        """All gradients are done, and the step begins: begin what is left."""
        if not self._stopped:
            self._list()
            while self._waiting:
                self._begin_next()
            self._is_listed = False

    def drop(self) -> None:
        """Forget this step's messages, also those under way."""
        for bits in self._early.drop():
            self._collectives.traffic.add(Purpose.CONTROL, bits)
        self._is_listed = False

    def stop(self, reason: str) -> None:
        """Send nothing early from now on."""
        if not self._stopped:
            self.drop()
            self._stopped = True
            warnings.warn(f"overlap: {reason}, so nothing is sent before step()", stacklevel=4)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Inside, backward passes begin nothing."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _list(self) -> None:
        if not self._is_listed:
            self.drop()
            # Gradients are done from the last tensor to the first, so this is about the order of readiness.
            messages = sorted(self._list_messages(), key=lambda message: -message.tensors[0])
            self._is_listed, self._waiting, self._finished = True, deque(messages), set()

    def _begin_next(self) -> None:
        message = self._waiting.popleft()
        payload = message.payload()
        self._early.begin(payload if self._wire is None else payload.to(self._wire), message.purpose)


def _hook(reducer: weakref.ref[Reducer], number: int) -> Callable[[Tensor], None]:
    def gradient_done(parameter: Tensor) -> None:
        watching = reducer()
        if watching is not None:
            watching.gradient_done(number)

    return gradient_done
