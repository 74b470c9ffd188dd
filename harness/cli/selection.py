"""Which runs a command is about: an experiment, or a part of it, as its options say."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cser_bench.harness.cli.exits import loading, program

if TYPE_CHECKING:
    from cser_bench.harness.plan.plan import Plan


@dataclass(frozen=True)
class Selection:
    """Runs of an experiment, by what a user typed.

    Attributes:
        experiment: name of one that ships, or of a file.
        results: folder of records.
        tuning: whether the runs of its tuning are meant.
        methods: files and entry points with methods that rows name.
        stage: a stage of it; None for all of it.
        rows: the only rows; all where there are none.
        seeds: the only seeds; all where there are none.
    """

    experiment: str
    results: Path
    tuning: bool = False
    methods: tuple[str, ...] = ()
    stage: str | None = None
    rows: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def plan(self) -> Plan:
        """Return the runs, as the records are by now."""
        with loading():
            from cser_bench.harness.plan.plan import plan_experiment

            planned = plan_experiment(
                self.experiment, self.results, self.tuning, list(self.methods)
            )
        if self.stage is not None:
            planned = planned.at_stage(self.stage)
        if self.rows or self.seeds:
            return planned.only(list(self.rows), list(self.seeds))
        return planned

    def words(self) -> str:
        """Return the words by which another command finds the same experiment."""
        words = [self.experiment]
        if self.methods:
            words += ["--methods", *self.methods]
        if self.stage is not None:
            words += ["--stage", self.stage]
        return shlex.join(words)

    def report_command(self) -> str:
        """Return the command that writes the report of what was run."""
        words = f"{program()} report {self.words()}"
        if self.results != Path("results"):
            words += f" --results {shlex.quote(str(self.results))}"
        return f"{words} --tuning" if self.tuning else words


def selecting(function: Callable[..., int]) -> Callable[..., int]:
    """Call the function with a `Selection`, in the place of the options that it is made of.

    It stands below the decorators of these options. All other options go to the function by name.
    """
    names = [field.name for field in fields(Selection)]

    @wraps(function)
    def selected(**values: Any) -> int:
        chosen = {name: values.pop(name) for name in names if name in values}
        return function(Selection(**chosen), **values)

    return selected
