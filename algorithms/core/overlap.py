"""Overlap: messages that depend on a few tensors' gradients are reduced while the backward pass is still at work.

A sparsifier's choice is known before the backward pass. When the gradients of all tensors that a message touches are
done, the message is computed on the side, by the arithmetic that `step()` will use, and its sum is begun. `step()` goes
its usual way; where it asks for that sum it finds it begun, or finished.
"""

from __future__ import annotations

import warnings
import weakref
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from algorithms.core.compressors import Compressor, SharedSupport
from algorithms.core.layout import Layout, Support, Window, Windows
from algorithms.core.traffic import Purpose

if TYPE_CHECKING:
    from algorithms.core.optimizer import DistributedOptimizer

VECTOR_BYTES = 128
"""Slices begin and end at multiples of this, counted from where their parameter group begins."""


@dataclass(frozen=True)
class Foretold:
    """A message of a step that can be computed before the whole gradient is known."""

    purpose: Purpose
    support: Windows
    payload_bits: int
    tensors: tuple[int, ...]
    """Whose gradients must be done, ascending, in the order in which the optimiser was given its parameters."""
    payload: Callable[[], Tensor]
    """What the step will send, of shape (support.payload_numel,); changes nothing."""


def foretell(
    optimizer: DistributedOptimizer,
    compressor: Compressor,
    step: int,
    purpose: Purpose,
    payload: Callable[[Windows], Tensor],
    changed: Support | None = None,
) -> list[Foretold]:
    """A list of the one message that C sends, or of none where it cannot be foretold or there is nothing to gain.

    `changed`: coordinates that other workers' messages change first; a message with a share in them is not foretold.
    """
    layout, parameters = optimizer.flat.layout, optimizer.flat.parameters
    # Of types shorter than 32 bits a slice's bits can differ from the whole's, however the slice is cut.
    if not isinstance(compressor, SharedSupport) or parameters.element_size() < 4:
        return []
    draw = optimizer.draw(step, purpose)
    support = compressor.support(layout, draw)
    if not isinstance(support, Windows) or not 0 < support.payload_numel < layout.numel:
        return []
    if changed is not None and not _apart(support, changed):
        return []
    bits = compressor.payload_bits(layout, draw, optimizer.float_bits)
    return [Foretold(purpose, support, bits, _tensors(layout, support), lambda: payload(support))]


def stepped(optimizer: DistributedOptimizer, support: Windows, target: Tensor | None = None, sign: int = -1) -> Tensor:
    """`support.gather(target)` as it will be after `local_step_(target, sign)`, to the bit; nothing is changed."""
    parts = []
    for window in support.windows:
        start, stop = _span(window)
        near = _stepped_slice(optimizer, start, stop, target, sign)
        parts.append(Window(0, window.shape, window.strides).view(near).reshape(-1))
    return torch.cat([*parts, optimizer.flat.parameters.new_zeros(support.padding)])


def _stepped_slice(optimizer: DistributedOptimizer, start: int, stop: int, target: Tensor | None, sign: int) -> Tensor:
    # A kernel may round what its vectors do not cover in another way (a fused multiply-add is rounded once). So slices
    # are widened to where the whole group's vectors begin and end; what they hold beyond the support is not used.
    unit = VECTOR_BYTES // optimizer.flat.parameters.element_size()
    pieces = []
    for part, group in zip(optimizer.flat.parts, optimizer.param_groups, strict=True):
        low, high = max(start, part.start), min(stop, part.stop)
        if low < high:
            first = low - (low - part.start) % unit
            last = min(high + (part.start - high) % unit, part.stop)
            x, g, m, other = map(_copy, optimizer.slices(slice(first, last), target))
            assert x is not None and g is not None
            stepped = x if other is None else other
            before = stepped.clone() if optimizer.flat.idle else stepped
            optimizer.step_slice_(group, x, g, m, other, sign)
            for idle in optimizer.flat.idle_slices():
                here = slice(max(idle.start - first, 0), max(idle.stop - first, 0))
                stepped[here] = before[here]
            pieces.append(stepped[low - first : high - first])
    return torch.cat(pieces)


def _copy(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.clone()


def _span(window: Window) -> tuple[int, int]:
    """The first coordinate of a window, and one more than the last."""
    reach = sum((size - 1) * stride for size, stride in zip(window.shape, window.strides, strict=True))
    return window.offset, window.offset + reach + 1


def _apart(one: Windows, other: Support) -> bool:
    """Whether the two are seen to have no coordinate in common."""
    if not isinstance(other, Windows):
        return False
    spans = sorted(_span(window) for window in one.windows + other.windows)
    return all(before[1] <= after[0] for before, after in pairwise(spans))


def _tensors(layout: Layout, support: Windows) -> tuple[int, ...]:
    starts = [tensor.offset for tensor in layout.tensors]
    touched: set[int] = set()
    for start, stop in map(_span, support.windows):
        touched.update(range(bisect_right(starts, start) - 1, bisect_left(starts, stop)))
    return tuple(sorted(touched))


@dataclass(frozen=True)
class _Begun:
    message: Tensor
    total: Tensor
    wait: Callable[[], object]


class EarlySums:
    """The collectives' side: sums over workers that are begun before anyone asks for them.

    Args:
        sum_: replaces a tensor by its sum over workers. It needs a process group of its own, since the main thread
            may use the other while a sum is under way.
    """

    def __init__(self, sum_: Callable[[Tensor], None]) -> None:
        self._sum_ = sum_
        self._helper = ThreadPoolExecutor(1, "early_sums")
        self._stream: torch.cuda.Stream | None = None
        self._begun: dict[Purpose, _Begun] = {}

    def begin(self, message: Tensor, purpose: Purpose) -> None:
        """Start to sum `message`, which must not be changed. All workers must begin the same sums in the same order.

        Raises:
            RuntimeError: a sum for this purpose is under way.
        """
        if purpose in self._begun:
            raise RuntimeError(
                "two optimisers send early through one ProcessGroupCollectives(overlap=True); give each its own"
            )
        total = message.clone()
        self._begun[purpose] = _Begun(message, total, self._start(total))

    def _start(self, total: Tensor) -> Callable[[], object]:
        if not total.is_cuda:
            return self._helper.submit(self._sum_, total).result
        # On a GPU no thread is needed: the host goes on while the sum waits for its turn in a stream of its own.
        stream = self._stream = self._stream or torch.cuda.Stream(total.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(total.device))
        with torch.cuda.stream(stream):
            self._sum_(total)
            done = stream.record_event()
        return lambda: torch.cuda.current_stream(total.device).wait_event(done)

    def finish_(self, tensor: Tensor, purpose: Purpose) -> bool:
        """Replace `tensor` by its sum if that was begun; returns whether it was.

        Raises:
            RuntimeError: what was begun is the sum of something else.
            CollectiveError: as for any collective.
        """
        begun = self._begun.pop(purpose, None)
        if begun is None:
            return False
        same = tensor.shape == begun.message.shape and torch.allclose(tensor, begun.message, 0, 0, equal_nan=True)
        begun.wait()
        if not same:
            raise RuntimeError(
                f"overlap: the {purpose.value} message of this step differs from what was sent during the backward "
                "pass, because gradients, parameters or the learning rate were changed between backward() and step() "
                "(clipped, say); make the collectives with overlap=False"
            )
        tensor.copy_(begun.total)
        return True

    def drop(self) -> list[int]:
        """Forget what was begun, once it is done; returns the messages' bits."""
        dropped, self._begun = list(self._begun.values()), {}
        for begun in dropped:
            begun.wait()
        return [8 * begun.total.element_size() * begun.total.numel() for begun in dropped]


class Foreteller:
    """The optimiser's side: watches the gradients and begins each foretold message as soon as it can be computed.

    Messages are begun in one fixed order, so that all workers' collectives match; what is not ready by the time of
    `step()` is begun there. Gradients of several backward passes add up: the last pass counts, and what an earlier one
    sent is dropped and counted as control.
    """

    def __init__(self, optimizer: DistributedOptimizer, early: EarlySums) -> None:
        self._optimizer, self._early = optimizer, early
        self._step = 0
        """For which step messages are listed; 0 for none."""
        self._waiting: deque[Foretold] = deque()
        self._finished: set[int] = set()
        self._paused = self._stopped = False
        for number, parameter in enumerate(optimizer.flat.tensors):
            hook = _hook(weakref.ref(self), number)
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def gradient_done(self, number: int) -> None:
        """Tensor `number` has its gradient of this backward pass."""
        flat = self._optimizer.flat
        if self._stopped or not flat.holds(number):
            return
        if self._paused or number in self._finished:
            self.drop()
        if self._paused:
            return
        flat.collect_gradient(number)
        self._list_messages()
        self._finished.add(number)
        while self._waiting and self._finished.issuperset(self._waiting[0].tensors):
            self._begin_next()

    def begin_rest(self) -> None:
        """All gradients are done: begin what is left."""
        if not self._stopped:
            self._list_messages()
            while self._waiting:
                self._begin_next()

    def drop(self) -> None:
        """Forget this step's messages, also those under way."""
        collectives = self._optimizer.collectives
        for bits in self._early.drop():
            collectives.traffic.add(Purpose.CONTROL, bits)
        self._step = 0

    def stop(self, reason: str) -> None:
        """Foretell nothing from now on."""
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

    def _list_messages(self) -> None:
        step = self._optimizer.num_steps + 1
        if self._step != step:
            self.drop()
            # Gradients are done from the last tensor to the first, so this is about the order of readiness.
            messages = sorted(self._optimizer.foretold(step), key=lambda message: -message.tensors[0])
            self._step, self._waiting, self._finished = step, deque(messages), set()

    def _begin_next(self) -> None:
        message, wire = self._waiting.popleft(), self._optimizer.wire
        payload = message.payload()
        self._early.begin(payload if wire is None else payload.to(wire), message.purpose)


def _hook(foreteller: weakref.ref[Foreteller], number: int) -> Callable[[Tensor], None]:
    def gradient_done(parameter: Tensor) -> None:
        watching = foreteller()
        if watching is not None:
            watching.gradient_done(number)

    return gradient_done
