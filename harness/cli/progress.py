"""How far a command is: a bar on a terminal, else a line now and then, with the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

LINE_SECONDS = 30.0
"""Least time between two lines where there is no terminal."""


FIRST_SECONDS = 2.0
"""The pace of a shorter time tells nothing."""


@contextmanager
def shown(can_grow: bool = False) -> Iterator[Callable[[float, float, str], None]]:
    """Show how far a command is, as often as it calls `progress(done, total, what)`.

    What is printed meanwhile stands above the bar, which is gone at the end, also after Ctrl-C.

    Args:
        can_grow: whether the total may grow, so that the time left is a lower bound.
    """
    # The first call: what had been done by then, and when.
    first: tuple[float, float] | None = None

    def words(done: float, total: float, what: str) -> str:
        nonlocal first
        first = first or (done, time.monotonic())
        before, began = first
        left = seconds_left(done - before, total - done, time.monotonic() - began)
        return f"{what}{left_words(left, datetime.now(), can_grow)}"

    console = Console()
    can_draw = console.is_terminal and not console.is_dumb_terminal
    # Rich can be told by the environment to take a file for a terminal.
    is_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    with _bar(console) if can_draw and is_terminal else _lines() as show:
        yield lambda done, total, what: show(
            done / max(total, 1), words(done, total, what)
        )


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[float, str], None]]:
    """Draw a bar, moved by calls with the share that is done and what to say."""
    columns = (
        SpinnerColumn("line"),
        BarColumn(bar_width=12),
        TextColumn("{task.percentage:.0f} % {task.description}", markup=False),
    )
    with Progress(
        *columns, console=console, transient=True, refresh_per_second=4
    ) as bar:
        # A command that is killed could not give the cursor back.
        console.show_cursor(True)
        task = bar.add_task("", total=1.0)
        yield lambda share, text: bar.update(task, completed=share, description=text)


@contextmanager
def _lines() -> Iterator[Callable[[float, str], None]]:
    """Print at times what the bar would say."""
    printed = time.monotonic()

    def show(share: float, text: str) -> None:
        nonlocal printed
        if time.monotonic() - printed >= LINE_SECONDS:
            printed = time.monotonic()
            print(f"{100 * share:.0f} %: {text}", flush=True)

    yield show


def seconds_left(done: float, left: float, seconds: float) -> float | None:
    """Return how long the rest takes at the pace so far; None where that is not known yet.

    Args:
        done: since the command began, in the unit of `left`.
        seconds: since the command began.
    """
    if done <= 0 or seconds < FIRST_SECONDS:
        return None
    # At the pace of this command alone: what was done before may have been done elsewhere.
    return left * seconds / done


def left_words(seconds: float | None, now: datetime, can_grow: bool = False) -> str:
    """Say how long it takes, and when it ends, as the end of a sentence.

    Args:
        can_grow: whether it may take longer; the time at which it ends is then not said.
    """
    if seconds is None:
        return ""
    if can_grow:
        return f"; at least {_duration(seconds)} left"
    end = now + timedelta(seconds=seconds)
    clock = f"{end:%H:%M}" if end.date() == now.date() else f"{end:%d %b, %H:%M}"
    return f"; about {_duration(seconds)} left, until {clock}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
