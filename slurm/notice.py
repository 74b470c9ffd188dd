"""The cluster's notice to a worker that it must stop, as a flag that the training loop asks for between steps."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Literal

from slurm.profile import LOOK_SECONDS, Profile


class Notice:
    """Listens for USR2, which comes before the time limit or by hand, and TERM, which comes before a job is ended.

    submitit's own handler for USR2 takes every warning within ten minutes of the limit for a time-out, whatever the
    limit is; so this one replaces it, and what follows is decided in `slurm.policy`.
    """

    def __init__(self, profile: Profile) -> None:
        self._ends = float(os.environ.get("SLURM_JOB_END_TIME") or time.time() + 60 * profile.time_limit_minutes)
        self._warning_seconds = profile.warning_seconds
        self.kind: Literal["preempted", "timeout"] | None = None
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Slurm looks at the clock now and then, and warns early rather than late.
        near_the_end = time.time() > self._ends - self._warning_seconds - 2 * LOOK_SECONDS
        self.kind = self.kind or ("timeout" if near_the_end else "preempted")

    def stop_requested(self) -> bool:
        """Whether the worker must stop at the next occasion."""
        return self.kind is not None
