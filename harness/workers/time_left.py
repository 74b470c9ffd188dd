"""How long a launch still takes: expected from dry steps, then corrected by what the runs' own steps take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import torch

from harness.plan.rows import PlannedRun
from harness.plan.step_time import DRY_FLOPS, forward_flops, step_times
from harness.records.store import Heartbeat
from harness.train.build import num_steps_of
from harness.workers.devices import Workers

REFRESH_SECONDS = 5.0
"""Between two estimates; from one to the next the time left only runs down."""
SURPRISE = 1.1
"""An estimate of the whole that is so many times the least of those before is explained."""


def expected_step_seconds(runs: Sequence[PlannedRun], device: str, workers: Workers, cores: int) -> dict[str, float]:
    """Seconds of a step of each row, all workers together, by dry steps; nothing where these cannot be taken quickly.

    Args:
        cores: those that a run has to itself.
    """
    if device != "cpu" or torch.cuda.is_available():
        return {}
    at_once = 1 if workers == "stacked" else cores
    try:
        if forward_flops(runs[0].config) > DRY_FLOPS:
            return {}
        return {run.row: step_times(run.config)[0].seconds * run.config.num_workers / at_once for run in runs}
    except (RuntimeError, ValueError):  # a model that cannot take a step: the runs fail, and say why
        return {}


class TimeLeft:
    """Of a launch with `num_places` runs at once.

    Attributes:
        expected: seconds of a step by row, before anything is known of it; None until they have been looked for.
        seconds: what is left; None where nothing is known.
    """

    def __init__(self, num_places: int) -> None:
        self.expected: dict[str, float] | None = None
        self._num_places = max(1, num_places)
        self._started = time.monotonic()
        self._ended: dict[str, tuple[float, int]] = {}
        """By row: seconds and steps of the runs that ended."""
        self._ends: float | None = None
        self._looked = 0.0
        self._least: float | None = None
        """The least estimate of the whole since one was explained."""
        self._rates: dict[str, float] = {}
        """Seconds of a step by row that it was made with."""

    @property
    def seconds(self) -> float | None:
        return None if self._ends is None else max(0.0, self._ends - time.monotonic())

    def ended(self, run: PlannedRun, seconds: float) -> None:
        """A run ended with a result after so long."""
        before, steps = self._ended.get(run.row, (0.0, 0))
        self._ended[run.row] = before + seconds, steps + num_steps_of(run.config)[1]

    def update(
        self, pending: Sequence[PlannedRun], active: Sequence[tuple[PlannedRun, Heartbeat | None]]
    ) -> str | None:
        """Look again, where it is time to; where the whole takes notably longer than was said: why, in a sentence."""
        now = time.monotonic()
        if self.expected is None or (self._ends is not None and now - self._looked < REFRESH_SECONDS):
            return None
        steps = [(run, num_steps_of(run.config)[1]) for run in pending]
        steps += [(run, num_steps_of(run.config)[1] - (beat.step if beat else 0)) for run, beat in active]
        rates = self._step_seconds([run.row for run, _ in steps], active)
        if rates is None:
            return None
        each = [rates[run.row] * left for run, left in steps]
        left = max([sum(each) / self._num_places, *each])
        self._looked, self._ends = now, now + left
        return self._reason(now - self._started + left, rates, steps)

    def _step_seconds(
        self, rows: list[str], active: Sequence[tuple[PlannedRun, Heartbeat | None]]
    ) -> dict[str, float] | None:
        """By row: as seen, else as expected times what the rows that were seen take more; None where none was seen."""
        assert self.expected is not None
        seen = dict(self._ended)
        for run, beat in active:
            if beat is not None and beat.images_per_second:
                before, steps = seen.get(run.row, (0.0, 0))
                images = run.config.batch_size * run.config.num_workers
                seen[run.row] = before + beat.step * images / beat.images_per_second, steps + beat.step
        known = {row: seconds / steps for row, (seconds, steps) in seen.items() if steps}
        if not known and not self.expected:
            return None
        unexpected = sum(known.values()) / len(known) if known else 0.0
        expected = {row: self.expected.get(row, unexpected) for row in {*rows, *known}}
        more = sum(known.values()) / sum(expected[row] for row in known) if known else 1.0
        return {row: known.get(row, expected[row] * more) for row in expected}

    def _reason(self, whole: float, rates: dict[str, float], steps: list[tuple[PlannedRun, int]]) -> str | None:
        least, before = self._least, self._rates
        if least is not None and whole <= SURPRISE * least:
            if whole < least:
                self._least, self._rates = whole, rates
            return None
        self._least, self._rates = whole, rates
        if least is None:
            return None
        more: Counter[str] = Counter()
        for run, left in steps:
            more[run.row] += round(1e6 * (rates[run.row] - before.get(run.row, rates[run.row])) * left)
        text = f"about {in_words(whole)} in all, not {in_words(least)}"
        row, most = max(more.items(), key=lambda item: item[1], default=("", 0))
        if most <= 0:
            return f"{text}: the runs take their time beside their steps, to start, to score or to save"
        return f"{text}: a step of {row} takes {_short(rates[row])} where {_short(before[row])} was expected"


def _short(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def in_words(seconds: float | None) -> str:
    """A time for people."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
