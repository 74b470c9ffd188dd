"""Ctrl-C and SIGTERM: the first asks the runs to save their state and stop, the second ends them at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ECHO_SECONDS = 1.0
"""Under torchrun one Ctrl-C comes twice: from the terminal, and from torchrun, which passes it on."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the command, by way of the runs' checkpoints or not."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class StopFlag:
    """Whether a signal to stop has come. `echoes`: whether the same one may come twice at the same time."""

    def __init__(self, echoes: bool) -> None:
        self.number: int | None = None
        self._quiet_until = 0.0
        self._echoes = echoes

    def stop_requested(self) -> bool:
        return self.number is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self._quiet_until = number, now + ECHO_SECONDS * self._echoes
        elif now >= self._quiet_until:
            raise Interrupted(number)

    def raise_if_asked(self) -> None:
        """Raises Interrupted where a signal has come."""
        if self.number is not None:
            raise Interrupted(self.number)


@contextmanager
def noticed(echoes: bool = False) -> Iterator[StopFlag]:
    """Inside, the first Ctrl-C or SIGTERM is only noted; the next raises Interrupted. Of the main thread alone."""
    notice, before = StopFlag(echoes), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as where a shell put the command into the background
                before[number] = signal.signal(number, notice._note)
    try:
        yield notice
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def left_to_the_launcher() -> StopFlag:
    """For a run's process: SIGTERM, from its launcher or another, asks it to stop; Ctrl-C is the launcher's affair."""
    notice = StopFlag(echoes=False)

    def note(number: int, frame: FrameType | None) -> None:
        notice.number = number

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, note)
    return notice
