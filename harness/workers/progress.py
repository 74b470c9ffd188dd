"""How a launch gets on: a bar and a line per run that are redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from harness.records.store import Heartbeat
from harness.workers.run_process import Unfinished

PLAIN_LINE_SECONDS = 10.0
COLUMNS = ["epoch", "loss", "accuracy", "samples/s", "MB sent per worker", "time left"]


@dataclass(frozen=True)
class Progress:
    """How far a launch is. `active`: the newest heartbeat of each run that is on, by its name for people."""

    done: int
    total: int
    active: dict[str, Heartbeat | None]
    seconds_left: float | None
    """What the whole launch still takes; None where nothing is known yet."""


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))


def _cells(beat: Heartbeat) -> list[str]:
    return [
        f"{beat.epoch:.2f}",
        "-" if beat.loss is None else f"{beat.loss:.4f}",
        "-" if beat.accuracy is None else f"{100 * beat.accuracy:.2f} %",
        f"{beat.images_per_second:,.0f}",
        f"{beat.megabytes_sent:.2f}",
        _time(beat.seconds_left),
    ]


class LaunchDisplay:
    """A line for each run that has ended, and below these, or every ten seconds or so, how far the others are."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._said = 0.0
        self._done = self._total = 0

    def update(self, progress: Progress) -> None:
        """Show how far the launch is."""
        self._done, self._total = progress.done, progress.total
        summary = f"{progress.done} of {progress.total} runs done, {_time(progress.seconds_left)} left"
        if self._live is not None:
            table = Table("run", *COLUMNS, box=None, padding=(0, 2, 0, 0))
            for name, beat in progress.active.items():
                table.add_row(name, *(_cells(beat) if beat is not None else ["starting"]))
            self._live.update(Group(summary, ProgressBar(progress.total, progress.done), table))
        elif time.monotonic() - self._said >= PLAIN_LINE_SECONDS and progress.active and progress.seconds_left:
            self._said = time.monotonic()
            self.say("; ".join([summary, *(_line(name, beat) for name, beat in progress.active.items())]))

    def ended(self, name: str, unfinished: Unfinished | None) -> None:
        """Say how a run ended."""
        self._done += unfinished is None
        verdict = "done" if unfinished is None else f"{'FAILED, ' * unfinished.is_failure}{unfinished}"
        self.say(f"[{self._done}/{self._total}] {name}: {verdict}")

    def say(self, sentence: str) -> None:
        """Say something that stays."""
        self._console.print(sentence, markup=False, soft_wrap=True)

    def __enter__(self) -> LaunchDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()


def _line(name: str, beat: Heartbeat | None) -> str:
    cells = zip(COLUMNS, _cells(beat), strict=True) if beat is not None else ()
    return f"{name}: {', '.join(f'{column} {cell}' for column, cell in cells) or 'starting'}"
