"""The live display: an overall bar and a line per run on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from harness.launch import active_heartbeats
from harness.store import Heartbeat

PLAIN_LINE_SECONDS = 10.0


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _cells(beat: Heartbeat) -> list[str]:
    return [
        f"{beat.epoch:.2f}",
        "-" if beat.loss is None else f"{beat.loss:.4f}",
        "-" if beat.accuracy is None else f"{100 * beat.accuracy:.2f} %",
        f"{beat.images_per_second:,.0f}",
        f"{beat.megabytes_sent:.2f}",
        _left(beat.seconds_left),
    ]


COLUMNS = ["epoch", "loss", "accuracy", "images/s", "MB sent per worker", "time left"]


class Estimate:
    """Time left of the whole launch, from the runs that ended in it."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._first_done = 0

    def seconds_left(self, done: int, total: int) -> float | None:
        if self._started is None:
            self._started, self._first_done = time.monotonic(), done
        ended = done - self._first_done
        return (time.monotonic() - self._started) / ended * (total - done) if ended > 0 else None


class PlainDisplay:
    """A line for each run that ended, and a line on all every ten seconds or so."""

    def __init__(self) -> None:
        self._estimate = Estimate()
        self._said = 0.0
        self._done = self._total = 0

    def update(self, done: int, total: int, active: dict[str, Path]) -> None:
        self._done, self._total = done, total
        left = self._estimate.seconds_left(done, total)
        if time.monotonic() - self._said < PLAIN_LINE_SECONDS or not active:
            return
        self._said = time.monotonic()
        parts = [f"{done} of {total} runs done, {_left(left)} left"]
        for name, beat in active_heartbeats(active):
            cells = ", ".join(f"{column} {cell}" for column, cell in zip(COLUMNS, _cells(beat), strict=True))
            parts.append(f"{name}: {cells}")
        print("; ".join(parts), flush=True)

    def ended(self, name: str, failure: str | None) -> None:
        verdict = "done" if failure is None else f"FAILED, {failure}"
        self._done += failure is None
        print(f"[{self._done}/{self._total}] {name}: {verdict}", flush=True)

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class LiveDisplay:
    """Redrawn in place a few times a second."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[left]}")
        )
        self._task = self._bar.add_task("runs", total=None, left="")
        self._estimate = Estimate()
        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def update(self, done: int, total: int, active: dict[str, Path]) -> None:
        left = self._estimate.seconds_left(done, total)
        self._bar.update(self._task, completed=done, total=total, left=f"{_left(left)} left" if left else "")
        table = Table("run", *COLUMNS, box=None, padding=(0, 2, 0, 0))
        for name, beat in active_heartbeats(active):
            table.add_row(name, *_cells(beat))
        self._live.update(Group(self._bar, table))

    def ended(self, name: str, failure: str | None) -> None:
        if failure is not None:
            self._live.console.print(f"[red]{name} FAILED[/red], {failure}")

    def __enter__(self) -> LiveDisplay:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(None, None, None)


def make_display() -> LiveDisplay | PlainDisplay:
    """A live display where standard output is a terminal."""
    return LiveDisplay(Console()) if sys.stdout.isatty() else PlainDisplay()
