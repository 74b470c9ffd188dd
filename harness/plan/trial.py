"""The spec and the plan of `try`: a method of the user's among the rows of a shipped experiment.

The method is tuned over the same rates with as many trials as the rows, and runs at three of their
seeds. The rows' runs are those that ship.
"""

from __future__ import annotations

import math
import shlex
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

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


class Shipped(NamedTuple):
    """A shipped experiment that a method can be tried in, and where its records are.

    Attributes:
        experiment: its name or the path of its spec.
        runs: folder of its runs.
        earlier_trials: folder of the trials that chose the rates which its spec gives; None if it
            tuned every row itself.
        afterwards: caveat printed after the verdict.
    """

    experiment: str
    runs: Path
    earlier_trials: Path | None = None
    afterwards: str = ""


NETWORKS = {
    "perceptron": Shipped(
        "study_perceptron_load",
        SHIPPED_TUNINGS / "study_perceptron_load",
        SHIPPED_TUNINGS / "fashion_mnist_contrasts_tuning",
        "A perceptron is the cheapest network that can tell, and larger ones may say otherwise: "
        "the next to take is --network residual.",
    ),
    "residual": Shipped(
        "resnet_regime", SHIPPED_TUNINGS / "reference" / "resnet_regime"
    ),
    "gpt": Shipped("gpt_text", SHIPPED_TUNINGS / "reference" / "gpt_text"),
}
"""The experiments that a method can be tried in, cheapest first: a run takes under a minute, some
minutes, and for the GPT, whose passes are in bf16, over an hour on a CPU without bf16 instructions.
All rows of an experiment, apart from its reference rows, have the same traffic."""

NUM_SEEDS = 3

BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""Linux's names of CPU instructions for bf16; one of them is enough."""


@dataclass(frozen=True)
class MethodTrial:
    """A method, and the experiment whose rows it is compared with.

    Attributes:
        shipped_spec: the spec of these rows.
        shipped: where their records lie.
        spec: the same spec with the method's row as its only one.
        command: the command that makes the trial, for its records.
        word: the method's file or entry point, as it was given.
        network: a name in `NETWORKS`.
    """

    name: str
    source: MethodSource
    shipped_spec: Spec
    shipped: Shipped
    spec: Spec
    command: str
    word: str
    network: str

    def next_words(self, results: Path) -> str:
        """Return the command, without the program, that is next once the method has a verdict."""
        networks = list(NETWORKS)
        after = networks[networks.index(self.network) + 1 :]
        where = [] if results == Path("results") else ["--results", str(results)]
        if after:
            return shlex.join(["try", self.word, "--network", after[0], *where])
        words = ["enter", self.word, "--row", self.name]
        if where:
            words += ["--records", str(results / self.spec.name)]
        about = ["--author", "YOUR NAME", "--description", "WHAT IT DOES"]
        return shlex.join([*words, *about])

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
    network: str,
    name: str | None = None,
    settings: str | None = None,
    learning_rate: float | None = None,
) -> MethodTrial:
    """Return the trial of a method in a file, or in what an entry point of this name names.

    Args:
        name: of the method, where the file has several.
        settings: in TOML, as "sync_interval = 24, growth = 0.5", instead of what the method reaches
            the others' ratio with; those that are not named stay.
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
    shipped = NETWORKS[network]
    shipped_spec = load_spec(find_spec(shipped.experiment))
    row = RowSpec(
        row=name,
        label=name,
        algorithm=name,
        settings=_settings(source, name, shipped_spec, settings),
        learning_rate=learning_rate,
    )
    words = ["python", "-m", "harness", "try", word, "--network", network]
    if settings is not None:
        words += ["--settings", settings]
    if learning_rate is not None:
        words += ["--learning-rate", f"{learning_rate:g}"]
    spec = _spec_of(row, shipped_spec, source, network)
    return MethodTrial(
        name, source, shipped_spec, shipped, spec, shlex.join(words), word, network
    )


def _spec_of(
    row: RowSpec, shipped_spec: Spec, source: MethodSource, network: str
) -> Spec:
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
        "name": f"try_{row.row}_{network}",
        "title": f"{row.label}, tried beside: {shipped_spec.title}",
        "statistics": statistics,
        "rows": [row],
        "outside": {row.algorithm: source},
        "evidence": None,
        "lengths": None,
        "sensitivity": None,
    }
    for key in ("contrasts", "exponents", "grids", "cells", "restarts"):
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
    runs = list(read_pack(trial.shipped.runs).values())
    if not runs:
        raise SpecError(
            f"{trial.shipped.runs} holds no runs to hold the method against; install the project again, "
            "or take another --network"
        )
    # The rows' own: a method's passes are theirs, and updates cost little beside them.
    minutes = median(run["result"]["wall_seconds"] for run in runs) / 60
    cpu = runs[0]["run"]["attempts"][-1]["cpu"]
    more = ""
    if trial.is_tuned:
        more = (
            f", and {minutes:.1f} more for each rate that it goes on to beyond the last"
        )
    # A batch needs the results of the one before it: rates, then finalists, then the runs that
    # count.
    batches = [*_tuning_batches(trial), NUM_SEEDS]
    # A batch begins when the one before is over, with `jobs` runs at once.
    rounds = sum(math.ceil(batch / jobs) for batch in batches)
    return (
        f"this takes about {rounds * minutes + 1:.0f} minutes{more}: half a minute for the "
        f"contract, {sum(batches[:-1])} runs that tune the rate and {NUM_SEEDS} that count, of "
        f"{minutes:.1f} minutes each as on the machine whose runs ship ({cpu}), {jobs} at once"
    )


def _tuning_batches(trial: MethodTrial) -> list[int]:
    """Return how many runs the search begins with, and how many its best rates take after them."""
    tuning = trial.spec.tuning
    if tuning is None:
        return []
    if tuning.finalists is None:
        return [len(tuning.grid) * len(tuning.seeds)]
    return [len(tuning.grid), tuning.finalists * (len(tuning.seeds) - 1)]


def slowness_words(trial: MethodTrial, device: str) -> str | None:
    """Return a warning if passes are in bf16 on a CPU without instructions for it; else None."""
    if trial.spec.training.precision != "bf16" or device != "cpu":
        return None
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return None
    if any(flag in flags for flag in BF16_FLAGS):
        return None
    return (
        "warning: the passes are in bf16, for which this CPU has no instructions: it may take 20 "
        "times as long; the other networks need none"
    )


def usual_jobs(jobs: int | None) -> int:
    """Return how many runs go at once."""
    return jobs or len(usable_cores())
