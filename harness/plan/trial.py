"""The spec and the plan of `try`: a method of the user's among rows of README's small CNN.

The method is tuned over the same nine rates as the rows, and runs at two of their seeds. The rows'
runs are those that ship.
"""

from __future__ import annotations

import math
import shlex
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ValidationError

from cser_bench.harness.cores import usable_cores
from cser_bench.harness.places import SHIPPED_TUNINGS
from cser_bench.harness.plan.by_traffic import usual_settings
from cser_bench.harness.plan.outside import outside_methods
from cser_bench.harness.plan.plan import Plan, make_plan
from cser_bench.harness.records.packs import read_pack
from cser_bench.harness.spec.errors import SpecError, explain
from cser_bench.harness.spec.rows import RowSpec
from cser_bench.harness.spec.run import MethodSettings, MethodSource
from cser_bench.harness.spec.spec import Spec
from cser_bench.harness.spec.spec_file import find_spec, load_spec
from cser_bench.harness.train.method import method_in

NETWORK = "table_cnn"
"""The experiment whose network, data, steps and tuning a trial has: README's small CNN."""


TABLE = SHIPPED_TUNINGS / "reference" / NETWORK
"""Its records, whose runs say how long one takes."""

RATES = (0.01, 0.017, 0.03, 0.055, 0.1, 0.17, 0.3, 0.55, 1.0)
"""The rates that all rows were tuned over, at the length of a trial's runs."""

NUM_SEEDS = 2


@dataclass(frozen=True)
class MethodTrial:
    """A method, and the spec of its trial.

    Attributes:
        shipped_spec: the spec of the rows that it is ranked among.
        spec: the same with the method's row as its only one.
        command: the command that makes the trial, for its records.
    """

    name: str
    source: MethodSource
    shipped_spec: Spec
    spec: Spec
    command: str

    def plan(self, results: Path, tuning: bool) -> Plan:
        """Return the plan of the method's runs, or of its tuning.

        Raises SpecError: a setting cannot be used, or no rate is known yet.
        """
        plan = make_plan(self.spec, results, tuning)
        experiment = plan.experiment.model_copy(update={"commands": [self.command]})
        return replace(plan, experiment=experiment)

    @property
    def is_tuned(self) -> bool:
        """Whether the method's learning rate is tuned, and not given."""
        return self.spec.rows[0].learning_rate is None


def make_trial(
    word: str,
    name: str | None = None,
    settings: str | None = None,
    learning_rate: float | None = None,
) -> MethodTrial:
    """Return the trial of a method in a file, or in what an entry point of this name names.

    Args:
        name: of the method, where the file has several.
        settings: in TOML, as "sync_interval = 24, growth = 0.5", instead of what the method reaches
            the ratio with; those that are not named stay.
        learning_rate: by default the best of a search.

    Raises SpecError: there is no such method, or its settings must be given.
    """
    outside = outside_methods([word])
    if name is None and len(outside) > 1:
        raise SpecError(
            f"{word} has the methods {', '.join(outside)}; choose one by --method"
        )
    name = name or next(iter(outside))
    if name not in outside:
        raise SpecError(f"{word} has no method {name!r}; it has {', '.join(outside)}")
    # The text as it is now: the trial's runs keep it, whatever becomes of the file.
    source = outside[name]
    shipped_spec = load_spec(find_spec(NETWORK))
    row = RowSpec(
        row=name,
        label=name,
        algorithm=name,
        settings=_settings(source, name, shipped_spec, settings),
        learning_rate=learning_rate,
        learning_rates=list(RATES) if learning_rate is None else [],
    )
    words = ["python", "-m", "harness", "try", word]
    if settings is not None:
        words += ["--settings", settings]
    if learning_rate is not None:
        words += ["--learning-rate", f"{learning_rate:g}"]
    spec = _spec_of(row, shipped_spec, source)
    return MethodTrial(name, source, shipped_spec, spec, shlex.join(words))


def _spec_of(row: RowSpec, shipped_spec: Spec, source: MethodSource) -> Spec:
    """Return the shipped spec with this row in the place of all others."""
    # A spec needs a baseline among its rows; the comparison is with the rows that ship.
    statistics = shipped_spec.statistics.model_copy(
        update={
            "baseline": row.row,
            "floor": None,
            "main_ratio_group": None,
            "declared": None,
            "seeds": shipped_spec.statistics.seeds[:NUM_SEEDS],
            "baseline_seeds": [],
        }
    )
    update: dict[str, Any] = {
        "name": f"try_{row.row}",
        "title": f"{row.label}, tried beside: {shipped_spec.title}",
        "statistics": statistics,
        "rows": [row],
        "outside": {row.algorithm: source},
        "evidence": None,
    }
    for key in ("contrasts", "exponents", "predictions", "cells"):
        update[key] = []
    if row.learning_rate is not None:
        # A rate that is given leaves nothing to tune.
        update["tuning"] = None
    return shipped_spec.model_copy(update=update)


def _settings(
    source: MethodSource, name: str, shipped_spec: Spec, given: str | None
) -> MethodSettings:
    """Return the method's settings at the others' traffic, changed by the settings given."""
    try:
        table = tomllib.loads(f"settings = {{ {given or ''} }}")["settings"]
        changes = MethodSettings.model_validate(table)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(
            f"--settings is no TOML ({error}); an example is 'sync_interval = 24, growth = 0.5'"
        ) from None
    except ValidationError as error:
        raise SpecError(f"--settings: {explain(error)}") from None
    # Where the rows have no common ratio the method sends what DDP does.
    share = 1 / (shipped_spec.statistics.main_ratio_group or 1)
    try:
        usual = usual_settings(
            method_in(source, name), share, shipped_spec.training.num_workers
        )
    except SpecError:
        # The method does not say how it reaches a share, so all that it requires must be given.
        if not changes:
            raise
        usual = MethodSettings()
    return usual.changed_by(changes)


def duration_words(trial: MethodTrial, jobs: int) -> str:
    """Say how long the trial takes, by the runs that ship.

    Raises SpecError: they are not here.
    """
    runs = list(read_pack(TABLE).values())
    if not runs:
        raise SpecError(
            f"{TABLE} holds no runs to hold the method against; install the project again"
        )
    # The rows' own: a method's passes are theirs, and updates cost little beside them.
    minutes = median(run["result"]["wall_seconds"] for run in runs) / 60
    cpu = runs[0]["run"]["attempts"][-1]["cpu"]
    num_trials = len(RATES) if trial.is_tuned else 0
    # The runs that count begin when the trials are over, and `jobs` runs go at once.
    rounds = math.ceil(num_trials / jobs) + math.ceil(NUM_SEEDS / jobs)
    return (
        f"this takes about {rounds * minutes + 1:.0f} minutes: {num_trials} runs that tune the "
        f"rate and {NUM_SEEDS} that count, {jobs} at once, {minutes:.1f} minutes each on {cpu}; "
        "longer where the best rate is at an end"
    )


def usual_jobs(jobs: int | None) -> int:
    """Return how many runs go at once."""
    return jobs or len(usable_cores())
