"""Whether numbers are finite.

What a worker sends, said at its step without waiting for a GPU, and its gradients.
"""

import warnings
from collections import deque

import torch
from torch import Tensor

from cser_bench.algorithms.core.collectives import Collectives

NEVER = 2**62
"""In the place of a message's number where there was none."""


class FiniteWatch:
    """Warns once which worker first sent something that is not finite, and at which step.

    This sends nothing.

    The sender notices before it sends. The workers that it spoils notice that their own next
    message is not finite; by then they can ask who was first. A GPU is not waited for: it is asked
    at the end of a step, or of a later step if it has no answer yet. So on GPUs, and with early
    messages, two workers may both name themselves; the earlier step is right. With one worker
    nothing is watched.

    Args:
        method: its name.
    """

    def __init__(self, method: str, collectives: Collectives) -> None:
        self._method = method
        self._collectives = collectives
        self._key = collectives.new_key()
        self._step = 0
        self._num_times = 0
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was seen. All workers must call it equally often."""
        self._num_times += 1
        """How often the watch was begun."""
        self._is_over = self._collectives.world_size == 1
        self._number = 0
        """Number of the last message, equal on all workers."""
        self._words = ""
        """Warning for the end of the step."""
        self._first: Tensor | None = None
        """For each local worker, the number of this step's first message that is not finite; on a
        GPU."""
        self._open: deque[tuple[int, Tensor, torch.cuda.Event]] = deque()
        """Steps, these numbers, and the event after which they can be read from the GPU."""

    def begin_step(self, step: int) -> None:
        """Note at which step messages are sent from now on."""
        self._step = step

    def look_at(self, message: Tensor) -> None:
        """Note of which workers' rows some number is not finite."""
        if self._is_over or type(message) is not Tensor or message.is_meta:
            return
        self._number += 1
        seen = rows_not_finite(message)
        if seen.is_cuda:
            number = torch.where(seen, self._number, NEVER)
            if self._first is not None:
                number = torch.minimum(self._first, number)
            self._first = number
        elif seen.any():
            self._find(self._number, self._step, seen)

    def end_step(self) -> None:
        """Warn where what was sent in this step, or in one before it, is not finite."""
        if self._first is not None:
            on_host = torch.empty(self._first.shape, dtype=self._first.dtype, pin_memory=True)
            on_host.copy_(self._first, non_blocking=True)
            stream = torch.cuda.current_stream(self._first.device)
            is_copied = stream.record_event()
            self._open.append((self._step, on_host, is_copied))
            self._first = None
        while self._open and not self._is_over and self._open[0][-1].query():  # type: ignore[no-untyped-call]
            step, on_host, _ = self._open.popleft()
            number = int(on_host.min())
            if number < NEVER:
                self._find(number, step, on_host == number)
        if self._words:
            warnings.warn(self._words, stacklevel=5)
            self._words = ""

    def _find(self, number: int, step: int, seen: Tensor) -> None:
        """Find out who was first, now that the message of this number is not finite."""
        self._is_over = True
        workers = named_workers(seen, self._collectives)
        noticed = f"{number} {step} {workers}"
        key = f"{self._key}, {self._num_times}"
        first = self._collectives.first_to_say(key, noticed)
        earlier = noticed
        first_number, *_ = first.split()
        if int(first_number) < number:
            earlier = first
        _, sent_at, workers = earlier.split(" ", 2)
        self._words = (
            f"{self._method}: what {workers} sent at step {sent_at} is not finite, and so will be, "
            "for good, parameters and errors of all who take it; go back to a state from before, "
            "and lower the learning rate, or give skip_nonfinite=True, which leaves out steps "
            "whose gradients are not finite"
        )


def rows_not_finite(rows: Tensor) -> Tensor:
    """Return of which rows some number is not finite: bools of shape (rows,), on their device."""
    if not rows.numel():
        return torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    # A sum is the fastest look on a CPU, and is finite only where all numbers are.
    if rows.device.type == "cpu" and rows.element_size() > 2:
        sums = rows.sum(1)
        if sums.isfinite().all():
            return torch.zeros(len(rows), dtype=torch.bool)
    # A sum of finite numbers may be infinite; the largest of them is finite.
    # Where one is NaN, torch gives NaN as the largest.
    largest: Tensor = torch.linalg.vector_norm(rows, torch.inf, dim=1)
    return ~largest.isfinite()


def named_workers(flags: Tensor, collectives: Collectives) -> str:
    """Return whose flag is set, in words, or nothing.

    Flags are of the workers at this end, or of all.
    """
    first = 0
    if len(flags) == len(collectives.own_ranks):
        first = collectives.own_ranks.start
    numbers = flags.nonzero()[:, 0].tolist()
    ranks = [str(first + number) for number in numbers]
    if not ranks:
        return ""
    if len(ranks) == 1:
        return f"worker {ranks[0]}"
    return f"workers {', '.join(ranks)}"
