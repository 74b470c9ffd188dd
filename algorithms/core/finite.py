"""Checks for infinities and NaN: in messages, without waiting for a GPU, and in gradients."""

from collections import deque

import torch
from torch import Tensor

from cser_bench.algorithms.core.collectives import Collectives
from cser_bench.algorithms.core.warn import warn_script

NEVER = 2**62
"""Stands for a message's number where all were finite."""


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
        """Reset the watch. All workers must call it equally often."""
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
        """Set the step of the messages that follow."""
        self._step = step

    def look_at(self, message: Tensor) -> None:
        """Note which workers' rows of a message are not finite."""
        # After the first one, all that follows is spoilt.
        if self._is_over or type(message) is not Tensor or message.is_meta:
            return
        self._number += 1
        seen = rows_not_finite(message)
        if seen.is_cuda:
            # Without asking the GPU: the least number so far, for each local worker.
            number = torch.where(seen, self._number, NEVER)
            if self._first is not None:
                number = torch.minimum(self._first, number)
            self._first = number
        elif seen.any():
            self._find(self._number, self._step, seen)

    def end_step(self) -> None:
        """Warn if something sent in this step, or in an earlier one, is not finite."""
        if self._first is not None:
            # To pinned memory, in the stream's order: the host goes on.
            on_host = torch.empty(
                self._first.shape, dtype=self._first.dtype, pin_memory=True
            )
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
            warn_script(self._words)
            self._words = ""

    def _find(self, number: int, step: int, seen: Tensor) -> None:
        """Find the first worker, given that the message of this number is not finite."""
        self._is_over = True
        workers = named_workers(seen, self._collectives)
        noticed = f"{number} {step} {workers}"
        key = f"{self._key}, {self._num_times}"
        first = self._collectives.first_to_say(key, noticed)
        # Another worker may have noticed at an earlier message.
        earlier = noticed
        first_number, *_ = first.split()
        if int(first_number) < number:
            earlier = first
        _, sent_at, workers = earlier.split(" ", 2)
        self._words = (
            f"{self._method}: what {workers} sent at step {sent_at} is not finite, and so will be, "
            "for good, the models of all workers that take it, and of all that these send to, and "
            "no error ends the training; go back to a state from before, and lower the learning "
            "rate, or give skip_nonfinite=True, with which all workers leave out a step in which a "
            "gradient of one of them is not finite"
        )


def rows_not_finite(rows: Tensor) -> Tensor:
    """Return whether each row has a number that is not finite: bool (rows,), on the rows' device."""
    if not rows.numel():
        return torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    # On a CPU a sum is the fastest check: if it is finite, all numbers are.
    if rows.device.type == "cpu" and rows.element_size() > 2:
        sums = rows.sum(1)
        if sums.isfinite().all():
            return torch.zeros(len(rows), dtype=torch.bool)
    # A sum of finite numbers may be infinite; the largest of them is finite.
    # Where one is NaN, torch gives NaN as the largest.
    largest: Tensor = torch.linalg.vector_norm(rows, torch.inf, dim=1)
    return ~largest.isfinite()


def named_workers(flags: Tensor, collectives: Collectives) -> str:
    """Return the workers whose flag is set, in words; "" for none.

    Args:
        flags: of the local workers, or of all, a row each.
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
