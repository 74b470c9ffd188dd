"""Sums over workers that are begun before anyone asks for them: in a thread of their own, or on a GPU in a stream."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.core.traffic import Purpose


@dataclass(frozen=True)
class _Begun:
    message: Tensor
    total: Tensor
    wait: Callable[[], object]


class EarlySums:
    """The collectives' side of overlap: at most one sum under way for each purpose.

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
