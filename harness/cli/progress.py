"""The live display: an overall bar and a line per run on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from harness.records.store import Heartbeat
from harness.workers.launch import Progress
from harness.workers.run_process import Unfinished

PLAIN_LINE_SECONDS = 10.0


def in_words(seconds: float | None) -> str:
    """A time for people."""
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
        in_words(beat.seconds_left),
    ]


COLUMNS = ["epoch", "loss", "accuracy", "samples/s", "MB sent per worker", "time left"]


def _verdict(unfinished: Unfinished | None) -> str:
    if unfinished is None:
        return "done"
    return f"FAILED, {unfinished}" if unfinished.is_failure else str(unfinished)


class PlainDisplay:
    """A line for each run that ended, and a line on all every ten seconds or so."""

    def __init__(self) -> None:
        self._said = 0.0
        self._done = self._total = 0

    def update(self, progress: Progress) -> None:
        self._done, self._total = progress.done, progress.total
        if time.monotonic() - self._said < PLAIN_LINE_SECONDS or not progress.active or progress.seconds_left is None:
            return
        self._said = time.monotonic()
        parts = [f"{progress.done} of {progress.total} runs done, {in_words(progress.seconds_left)} left"]
        for name, beat in progress.active.items():
            cells = _cells(beat) if beat is not None else []
            named = ", ".join(f"{column} {cell}" for column, cell in zip(COLUMNS, cells, strict=False))
            parts.append(f"{name}: {named or 'starting'}")
        print("; ".join(parts), flush=True)

    def ended(self, name: str, unfinished: Unfinished | None) -> None:
        self._done += unfinished is None
        print(f"[{self._done}/{self._total}] {name}: {_verdict(unfinished)}", flush=True)

    def say(self, sentence: str) -> None:
        print(sentence, flush=True)

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class LiveDisplay:
    """Redrawn in place a few times a second."""

    def __init__(self, console: Console) -> None:
        self._bar = Bars(
            TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[left]}")
        )
        self._task = self._bar.add_task("runs", total=None, left="")
        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def update(self, progress: Progress) -> None:
        left = f"{in_words(progress.seconds_left)} left" if progress.seconds_left is not None else ""
        self._bar.update(self._task, completed=progress.done, total=progress.total, left=left)
        table = Table("run", *COLUMNS, box=None, padding=(0, 2, 0, 0))
        for name, beat in progress.active.items():
            table.add_row(name, *(_cells(beat) if beat is not None else ["starting"]))
        self._live.update(Group(self._bar, table))

    def ended(self, name: str, unfinished: Unfinished | None) -> None:
        if unfinished is not None:
            self._live.console.print(f"{name}: {_verdict(unfinished)}", style="red", markup=False, highlight=False)

    def say(self, sentence: str) -> None:
        self._live.console.print(sentence, markup=False, highlight=False)

    def __enter__(self) -> LiveDisplay:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(None, None, None)


def make_display() -> LiveDisplay | PlainDisplay:
    """A live display where standard output is a terminal."""
    return LiveDisplay(Console()) if sys.stdout.isatty() else PlainDisplay()
