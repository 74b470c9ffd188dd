"""The rows of an experiment, alone or by a grid, and where else they are run."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from cser_bench.harness.spec.run import HALF, MethodSettings, PartitionSpec, RestartSpec
from cser_bench.harness.spec.values import (
    Betas,
    CommunicationDtype,
    Count,
    Finite,
    LocalStep,
    Name,
    NonNegative,
    Positive,
    Rates,
    Ratio,
    Seeds,
    ShareBelowOne,
    Strict,
    Text,
    once,
)


class RestartOf(RestartSpec):
    """A restart of a row: the row once more, with the settings and the rate that it has."""

    row: Name


class CellSpec(Strict):
    """Another size of the model or another length of the runs, at which rows are run once more.

    `model_options`: in place of the experiment's, key by key. `learning_rates`: those that the
    tuning begins with here. `seeds`: instead of the experiment's. `held_back`: declared before
    the runs as no part of the fit of a power law of gaps; recorded and no longer evaluated, see
    `docs/statistics.md`. `tuned`: rows are tuned in this cell itself, and have no rate from the
    corners, as where these are far away.
    """

    cell: Name
    model_options: dict[str, Any] = {}
    num_steps: Count | None = None
    learning_rates: Rates = []
    seeds: Seeds = []
    held_back: bool = False
    tuned: bool = False


class RowSpec(Strict):
    """A method at one compression; absent fields come from [training] and from the tuning.

    `candidates`: instead of `settings` several tables of them, among which the tuning chooses
        together with the rate.
    `learning_rates`: those that the tuning begins with for this row, instead of its grid.
    `restart`: what its workers lose in the middle of a run.
    `partition`: instead of the experiment's, as for no communication with all samples.
    `cells`: those of the experiment's cells that have this row; all, where it is absent. `corners`:
    those of them in which it is tuned, instead of the tuning's.
    `num_workers`, `num_steps`: instead of the experiment's, in the row's trials too. `run_lengths`:
    lengths in steps at which the row is run in place of `num_steps`, with the settings and the rate
    that its trials at `num_steps` chose.
    """

    row: Name
    label: Text
    algorithm: Name
    ratio_group: Ratio | None = Field(default=None, alias="ratio")
    """Ratio by which tables group the row with others; by default how many times less it sends than
    without compression. The compression ratios R of its compressors stand in `settings`."""
    settings: MethodSettings = MethodSettings()
    learning_rate: Positive | None = None
    momentum: ShareBelowOne | None = None
    local_step: LocalStep | None = None
    betas: Betas | None = None
    eps: Positive | None = None
    warmup_epochs: NonNegative | None = None
    wire: CommunicationDtype | None = None
    """Dtype of the numbers in messages, instead of the experiment's."""
    candidates: list[MethodSettings] = []
    learning_rates: Rates = []
    restart: RestartSpec | None = None
    partition: PartitionSpec | None = None
    cells: Annotated[list[Name], AfterValidator(once)] | None = None
    corners: Annotated[list[Name], AfterValidator(once)] = []
    num_workers: Count | None = None
    num_steps: Count | None = None
    run_lengths: Annotated[list[Count], AfterValidator(once)] = []
    cell: CellSpec | None = None
    """Where the row is run, if not as the experiment says. `at` puts it there; no file may."""

    @property
    def repeated_row(self) -> str | None:
        """The row that this one repeats in a cell."""
        if self.cell is None:
            return None
        return self.row.removesuffix(f"@{self.cell.cell}")

    def at(self, cell: CellSpec) -> RowSpec:
        """Return the row once more, in this cell."""
        rates = self.learning_rates or cell.learning_rates
        # A copy is not validated, and so may have the cell that no file may give.
        return self.model_copy(
            update={
                "row": f"{self.row}@{cell.cell}",
                "cell": cell,
                "learning_rates": rates,
            }
        )

    def at_length(self, num_steps: int) -> RowSpec:
        """Return the row with runs of so many steps, under another name."""
        return self.model_copy(
            update={"row": f"{self.row}@{num_steps}", "num_steps": num_steps}
        )

    def restarted(self, restart: RestartOf) -> RowSpec:
        """Return the row once more, under another name, with this restart."""
        lost = " and ".join(restart.without).replace("_", " ")
        label = f"{self.label} without {lost}"
        if restart.everything_sent:
            label = f"{self.label}, tail of {100 * (1 - restart.at):g} %"
        if restart.worker is not None:
            label += f" of worker {restart.worker}"
        if not restart.everything_sent and restart.at != HALF:
            label += f" at {100 * restart.at:g} %"
        return self.model_copy(
            update={
                "row": f"{self.row}~{restart.name}",
                "label": label,
                "restart": RestartSpec(**restart.model_dump(exclude={"row"})),
                # A tail changes how much is sent.
                "ratio_group": None if restart.everything_sent else self.ratio_group,
            }
        )

    @property
    def settings_to_try(self) -> list[MethodSettings]:
        """The settings that the tuning chooses among, the row's own if it has no candidates."""
        return self.candidates or [self.settings]

    @model_validator(mode="after")
    def _consistent(self) -> RowSpec:
        if self.candidates and (self.settings or self.learning_rate is not None):
            raise ValueError(
                f"row {self.row!r} has candidates, so it can have neither settings nor a "
                "learning_rate"
            )
        if self.cell is not None:
            raise ValueError(
                f"row {self.row!r} cannot make a cell; give [[cells]], and name them in `cells`"
            )
        if self.run_lengths and self.num_steps is None:
            raise ValueError(
                f"row {self.row!r} has run_lengths and no num_steps; give the length of its trials"
            )
        if self.learning_rates and self.learning_rate is not None:
            raise ValueError(
                f"row {self.row!r} has a learning_rate, so learning_rates do nothing; leave one of "
                "them"
            )
        return self


class GrowingWarmup(Strict):
    """A warm-up in proportion to these columns and the rate.

    It is `epochs` times their product, rounded, and never less than `least`, in epochs.
    """

    columns: Annotated[list[str], Field(min_length=1)]
    epochs: Positive
    least: NonNegative = 0.0

    def num_epochs(self, numbers: dict[str, float], rate: float) -> float:
        """Return the length of the warm-up in epochs, of the case with these numbers."""
        exact = (
            self.epochs * math.prod(numbers[column] for column in self.columns) * rate
        )
        if not math.isfinite(exact):
            raise ValueError(
                "a warm-up of a grid is longer than any number; lower warmup.epochs or "
                "learning_rates"
            )
        return float(max(self.least, round(exact)))


class GridSpec(Strict):
    """Many rows of one method: every case at every learning rate.

    `columns` names the numbers of a case; where a setting's value is such a name, the case's number
    is put in.
    """

    grid: Name
    label: Text
    algorithm: Name
    columns: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]]
    cases: Annotated[list[list[Finite]], Field(min_length=1)]
    settings: MethodSettings
    learning_rates: Annotated[Rates, Field(min_length=1)]
    warmup: GrowingWarmup | None = None

    @model_validator(mode="after")
    def _consistent(self) -> GridSpec:
        wrong = [case for case in self.cases if len(case) != len(self.columns)]
        if wrong:
            raise ValueError(
                f"the case {wrong[0]} must have a number for each of the columns {self.columns}"
            )
        if self.warmup is not None:
            unknown = [
                column for column in self.warmup.columns if column not in self.columns
            ]
            if unknown:
                raise ValueError(
                    f"warmup.columns names {unknown[0]!r}, which is no column"
                )
        return self

    def rows(self) -> list[RowSpec]:
        """Return the rows that the grid stands for, named by their numbers."""
        return [
            self._row(case, rate) for case in self.cases for rate in self.learning_rates
        ]

    def _row(self, case: list[float], rate: float) -> RowSpec:
        numbers: dict[str, float] = {}
        for column, number in zip(self.columns, case, strict=True):
            # A whole number is one in settings, too.
            numbers[column] = int(number) if number == int(number) else number
        parts = [
            self.grid,
            *(f"{column}{number:g}" for column, number in numbers.items()),
        ]
        if len(self.learning_rates) > 1:
            parts.append(f"lr{rate:g}")
        warmup_epochs = None
        if self.warmup is not None:
            warmup_epochs = self.warmup.num_epochs(numbers, rate)
        # Built as a file's row is, so that a grid's rows pass the same checks.
        return RowSpec(
            row="-".join(parts).lower().replace("+", ""),  # of a million, 1e+06
            label=self.label,
            algorithm=self.algorithm,
            settings=self.settings.filled_in(numbers),
            learning_rate=rate,
            warmup_epochs=warmup_epochs,
        )
