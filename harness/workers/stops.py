"""Ctrl-C and SIGTERM: the first asks the runs to save their state and stop, the second ends them at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal ended the command, by way of the runs' checkpoints or not."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class StopFlag:
    """Whether a signal to stop has come. `second_ends`: whether another one raises Interrupted at once."""

    def __init__(self, second_ends: bool = False) -> None:
        self.number: int | None = None
        self._second_ends = second_ends

    def stop_requested(self) -> bool:
        return self.number is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        """To be a signal's handler."""
        if self._second_ends:
            self.raise_if_asked()
        self.number = self.number or number

    def raise_if_asked(self) -> None:
        """Raises Interrupted where a signal has come."""
        if self.number is not None:
            raise Interrupted(self.number)


@contextmanager
def noticed(second_ends: bool = True) -> Iterator[StopFlag]:
    """Inside, the first Ctrl-C or SIGTERM is only noted. Of the main thread alone.

    Args:
        second_ends: see `StopFlag`. Not under torchrun, where one Ctrl-C comes twice, from the terminal and from
            torchrun, which itself ends workers that take too long.
    """
    flag, before = StopFlag(second_ends), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as where a shell put the command into the background
                before[number] = signal.signal(number, flag.note)
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def left_to_the_launcher() -> StopFlag:
    """How a run's process takes signals: SIGTERM asks it to stop, whoever sends it; Ctrl-C is the launcher's affair."""
    flag = StopFlag()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, flag.note)
    return flag
