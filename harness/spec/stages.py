"""The stages of an experiment: parts of its runs, in an order in which each part says something."""

from __future__ import annotations

import fnmatch
from typing import Annotated

from pydantic import AfterValidator

from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.values import Name, Seeds, Strict, Text, once


class StageSpec(Strict):
    """A part of the experiment's runs. A stage has all runs of the stage before it, and more.

    `rows`: names of rows, in which `*` stands for anything; all rows where the list is empty.
    `seeds`: likewise all seeds.
    """

    stage: Name
    rows: Annotated[list[Text], AfterValidator(once)] = []
    seeds: Seeds = []

    def has(self, row: str, seed: int) -> bool:
        """Say whether the run of this row and seed is in the stage."""
        has_row = not self.rows or any(
            fnmatch.fnmatchcase(row, name) for name in self.rows
        )
        return has_row and (not self.seeds or seed in self.seeds)


def check_stages(stages: list[StageSpec], runs: list[tuple[str, int]]) -> None:
    """Check that each stage has runs, those of the stage before it, and more.

    Args:
        runs: row and seed of all runs of the experiment.

    Raises:
        SpecError: a stage does not.
    """
    before: list[tuple[str, int]] = []
    names = [stage.stage for stage in stages]
    for number, stage in enumerate(stages):
        where = f"the stage {stage.stage!r}"
        if stage.stage in names[:number]:
            raise SpecError(
                f"two stages are named {stage.stage!r}; give each a name of its own"
            )
        for name in stage.rows:
            if not any(fnmatch.fnmatchcase(row, name) for row, _ in runs):
                raise SpecError(f"{where} names {name!r}, which no row is called")
        if unknown := sorted(set(stage.seeds) - {seed for _, seed in runs}):
            raise SpecError(f"{where} names the seed {unknown[0]}, which no row has")
        own = [run for run in runs if stage.has(*run)]
        lacking = [run for run in before if run not in own]
        if lacking:
            row, seed = lacking[0]
            raise SpecError(
                f"{where} lacks row {row!r} at seed {seed}, which the stage before it has; add it"
            )
        if len(own) == len(before):
            raise SpecError(
                f"{where} adds no run to the stage before it; leave one of them out"
            )
        before = own
