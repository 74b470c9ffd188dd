"""Measured efficiencies: those of all experiments that have some, and which is nearest to a job."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cser_bench.harness.records.experiment import Experiment, read_experiment
from cser_bench.report.collection import Collection
from cser_bench.report.efficiency import LEAST_LENGTHS
from cser_bench.report.efficiency_section import efficiency_cell, efficiency_of
from cser_bench.report.frame import Frames
from cser_bench.report.labels import NETWORKS
from cser_bench.report.setting import key_of
from cser_bench.report.speed.job import TrainingJob
from cser_bench.report.speed.needed import net_speedup
from cser_bench.report.statistics import rows_by_place
from cser_bench.report.wording import factor

NEAR = 4
"""A job is of a size and length that was run if neither differs by more than this factor."""


@dataclass(frozen=True)
class Efficiency:
    """The statistical efficiency of a row, and where it was measured.

    Attributes:
        key: of its method and setting; see `report.setting.key_of`.
        line: of `efficiency_frame`.
        traffic: what its link carried, as a share of the baseline's.
    """

    key: str
    experiment: str
    network: str
    traffic: float
    line: dict[str, Any]

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the network."""
        return int(self.line["num_parameters"])

    @property
    def num_steps(self) -> int:
        """Number of steps of the method's runs."""
        return int(self.line["num_steps"])

    @property
    def text(self) -> str:
        """The efficiency with its interval: "0.63 (0.55 to 0.71)"."""
        return efficiency_cell(self.line)

    @property
    def is_number(self) -> bool:
        """Whether it is known: an estimate or a bound."""
        return bool(self.line["kind"] != "none")

    def is_near(self, job: TrainingJob) -> bool:
        """Tell whether parameters and steps are both within a factor of `NEAR` of the job's."""
        return all(max(a / b, b / a) <= NEAR for a, b in self._compared(job))

    def distance(self, job: TrainingJob) -> float:
        """Return the larger of two logarithms: by what size and length differ from the job's."""
        return max(abs(math.log(a / b)) for a, b in self._compared(job))

    def _compared(self, job: TrainingJob) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return two pairs, here and in the job: of parameters, and of steps."""
        sizes = (self.num_parameters, job.num_parameters)
        lengths = (self.num_steps, job.num_steps)
        return sizes, lengths

    def net_speedup(self, seconds: float, rival_seconds: float) -> str:
        """Write the net speed-up over a rival: "1.27x (1.10x to 1.44x)", "at most 0.40x".

        Its interval is that of the efficiency; modelled step times have none.
        """
        speedup, low, high = (
            factor(net_speedup(self.line[name], seconds, rival_seconds))
            for name in ("efficiency", "low", "high")
        )
        if self.line["kind"] != "estimate":
            return f"{self.line['kind']} {speedup}"
        return f"{speedup} ({low} to {high})"

    @property
    def planned_steps(self) -> str:
        """The factor by which a job's steps grow, to come as far as DDP: "1.59x"."""
        # T steps of efficiency w are worth w T of DDP's, so T / w are worth T.
        steps = factor(1 / self.line["efficiency"])
        # A bound of the efficiency from below is one of the steps from above.
        turned = {"at least": "at most ", "at most": "at least "}
        return f"{turned.get(self.line['kind'], '')}{steps}"


def measured_in(collection: Collection) -> list[Frames]:
    """Return the experiments whose baseline has a curve; of two of one name the first."""
    experiments: dict[str, Frames] = {}
    for folder in collection.folders:
        if folder.name in experiments or not (folder / "experiment.json").exists():
            continue
        if _may_have_curve(read_experiment(folder)):
            experiments[folder.name] = collection.at(folder)
    return list(experiments.values())


def _may_have_curve(experiment: Experiment) -> bool:
    """Tell whether a plan names a curve, or has the baseline at enough lengths of one size."""
    if experiment.curve is not None:
        return True
    name = experiment.baseline
    lengths = {
        (row.num_parameters, row.num_steps)
        for row in experiment.rows
        if row.chosen_by == "held_out" and name in (row.row, row.repeats)
    }
    counts = Counter(size for size, _ in lengths)
    return max(counts.values(), default=0) >= LEAST_LENGTHS


def efficiencies_of(experiments: Sequence[Frames]) -> list[Efficiency]:
    """Return the efficiency of each row of experiments, by the first score that it has one by."""
    found = []
    for frames in experiments:
        table = efficiency_of(frames).drop_duplicates("row")
        rows = {row.row: row for row in frames.experiment.rows}
        baselines = rows_by_place(frames, frames.experiment.baseline)
        # Index: row.
        link_models = frames.by_row["link_models"]
        for line in table.to_dict("records"):
            # A run sends in proportion to its steps, so the baseline is that of the same length.
            baseline = baselines.get((line["num_parameters"], line["num_steps"]))
            efficiency = Efficiency(
                key=key_of(frames.experiment, rows[line["row"]]),
                experiment=frames.experiment.name,
                network=_network(frames.experiment),
                traffic=link_models[line["row"]] / link_models.get(baseline, math.nan),
                line={str(name): value for name, value in line.items()},
            )
            found.append(efficiency)
    return found


def _network(experiment: Experiment) -> str:
    """Return what an experiment calls its network, without its article; else the model's name."""
    if experiment.evidence is None:
        return NETWORKS.get(experiment.model, experiment.model)
    return experiment.evidence.network.removeprefix("a ").removeprefix("an ")


def nearest(
    efficiencies: Sequence[Efficiency],
    key: str,
    job: TrainingJob,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Efficiency | None:
    """Return the efficiency of a method and setting that was measured nearest to a job.

    None where there is none. One without a number stands only where no other does; of two as near
    the one of the most runs counts.

    Args:
        names: of keys that are one method under several algorithms' names, as M-CSER with a first
            stage alone is M-CSER-PL.
    """
    name = names.get(key, key)
    of_method = [each for each in efficiencies if names.get(each.key, each.key) == name]

    def rank(efficiency: Efficiency) -> tuple[bool, float, int]:
        """Return what is least of the one that counts; False sorts before True."""
        return (
            not efficiency.is_number,
            efficiency.distance(job),
            -int(efficiency.line["num_runs"]),
        )

    return min(of_method, key=rank, default=None)
