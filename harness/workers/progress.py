"""How a launch gets on: on a terminal a bar of all steps and one of each run; and a line for each run that ended."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TimeRemainingColumn
from rich.table import Column

from harness.records.store import Heartbeat
from harness.workers.run_process import Unfinished


class LaunchDisplay:
    """What a launch says. Used by `with`, its bars go after it; elsewhere than on a terminal there are none."""

    def __init__(self) -> None:
        console = Console(highlight=False)
        left = TimeRemainingColumn(table_column=Column(min_width=7))
        columns = ("{task.description}", BarColumn(20), left, "{task.fields[said]}")
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._all = self._bars.add_task("all runs", total=None, said="")
        self._runs: dict[str, TaskID] = {}

    def update(self, beats: Mapping[str, Heartbeat | None], num_steps: int, steps_left: int) -> None:
        """Show how far the launch is: the newest heartbeat of each run that is on, by its name, and all steps."""
        self._bars.update(self._all, total=num_steps, completed=num_steps - steps_left)
        for name in self._runs.keys() - beats.keys():
            self._bars.remove_task(self._runs.pop(name))
        for name, beat in beats.items():
            if name not in self._runs:
                self._runs[name] = self._bars.add_task(name, total=None, said="starting")
            if beat is not None:
                said = f"epoch {beat.epoch:.2f}"
                said += "" if beat.loss is None else f", loss {beat.loss:.4f}"
                said += "" if beat.accuracy is None else f", accuracy {100 * beat.accuracy:.2f} %"
                self._bars.update(self._runs[name], total=beat.num_steps, completed=beat.step, said=said)

    def ended(self, name: str, unfinished: Unfinished | None, place: str) -> None:
        """Say how a run ended; `place`: how many of how many are done."""
        verdict = "done" if unfinished is None else f"{'FAILED, ' * unfinished.is_failure}{unfinished}"
        self.say(f"[{place}] {name}: {verdict}")

    def say(self, sentence: str) -> None:
        """Say something that stays."""
        self._bars.console.print(sentence, markup=False, soft_wrap=True)

    def __enter__(self) -> LaunchDisplay:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()
