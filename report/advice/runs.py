"""Methods at the settings that experiments ran: what each sends, and how much worse it scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.experiment import Experiment, Role, Row
from cser_bench.harness.records.shipped import SHIPPED
from cser_bench.report.collection import Collection
from cser_bench.report.efficiency_section import drop_cell
from cser_bench.report.frame import Frames
from cser_bench.report.setting import key_of, setting_in_short
from cser_bench.report.speed.job import Sending, sendings_of
from cser_bench.report.statistics import against_baseline

ROLES: tuple[Role, ...] = (
    "network",
    "task",
    "reference",
    "search",
    "loads",
    "methods",
    "rivals",
)
"""Usages of experiments whose rows are methods as one would use them, not the subject of a study."""


@dataclass(frozen=True)
class Method:
    """A method at a setting, with the run of it that counts.

    Attributes:
        key: equal for rows of one algorithm, setting and local step.
        setting: what it sends and when, in short.
        sendings: what one worker sent in the runs.
        drop: how much worse than the baseline it scored, with its interval; positive is worse.
        is_fp16_hook: whether it is DDP with its fp16 hook.
        frames: the experiment of these runs.
    """

    key: str
    label: str
    setting: str
    sendings: tuple[Sending, ...]
    drop: str
    num_runs: int
    is_fp16_hook: bool
    frames: Frames

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return self.frames.experiment.name


def advised(collection: Collection) -> dict[str, list[Frames]]:
    """Return the experiments that say that advice on a network reads them, by its name.

    Raises:
        UsageError: there are no shipped records.
    """
    if not SHIPPED.is_dir():
        raise UsageError(
            f"advice stands on the records in {SHIPPED}, which are not there; install the "
            "project again"
        )
    networks: dict[str, list[Frames]] = {}
    for name, about in collection.about.items():
        # First, as `find` reads all of an experiment's runs.
        if not about.advice:
            continue
        frames = collection.find(name)
        if frames is not None:
            networks.setdefault(about.advice, []).append(frames)
    return networks


def experiments_on(
    network: str, collection: Collection, measured: Sequence[Frames] = ()
) -> list[Frames]:
    """Return the experiments whose rows advice on a network shows, each once.

    They are those that say so, and others that ran alike.

    Args:
        measured: experiments that have efficiencies, whatever they are evidence for.

    Raises:
        UsageError: there are no shipped records, or none of this network.
    """
    # The first of a network is the one that others must have run like.
    networks = advised(collection)
    if network not in networks:
        raise UsageError(
            f"there are no runs of a network {network!r}; give --network {', '.join(networks)}"
        )
    shown = networks[network]
    first = shown[0]
    about = first.experiment.evidence
    assert about is not None, "an experiment is advised on by what it is evidence for"
    others = collection.all_of(*ROLES, network=about.network)
    alike = [frames for frames in (*others, *measured) if ran_alike(first, frames)]
    by_name = {frames.experiment.name: frames for frames in (*shown, *alike)}
    return list(by_name.values())


def ran_alike(frames: Frames, other: Frames) -> bool:
    """Tell whether two experiments have one network, data, baseline, length and workers."""
    return _set_up(frames) == _set_up(other)


def _set_up(frames: Frames) -> tuple[Any, ...]:
    """Return what must be equal for rows of two experiments to be compared."""
    experiment = frames.experiment
    return (
        experiment.task,
        experiment.model,
        experiment.baseline,
        experiment.rows[0].num_parameters,
        own_length(experiment),
        experiment.config["num_workers"],
        # A table, as text: how samples are divided among workers.
        str(experiment.config["partition"]),
    )


def own_length(experiment: Experiment) -> int:
    """Return the steps of an experiment's own rows, not of those that repeat them at others."""
    return max(row.num_steps for row in experiment.rows if row.repeats is None)


def methods_run(experiments: Sequence[Frames]) -> list[Method]:
    """Return the methods that experiments ran at their own size and length, each setting once.

    Where several ran a setting, the one with an efficiency counts, then the one of most runs.
    """
    best: dict[str, Method] = {}
    for frames in experiments:
        for method in _methods_of(frames):
            before = best.get(method.key)
            if before is None or _weight(method) > _weight(before):
                best[method.key] = method
    return list(best.values())


def _weight(method: Method) -> tuple[bool, int]:
    """Return what is larger of the run that counts; an experiment with a curve has efficiencies."""
    return method.frames.experiment.curve is not None, method.num_runs


def _methods_of(frames: Frames) -> list[Method]:
    """Return the methods that an experiment ran at its own size and length, and compared with DDP."""
    experiment = frames.experiment
    # By row's name.
    against = against_baseline(frames).set_index("row").to_dict("index")
    lines = {str(line["row"]): line for _, line in frames.rows.iterrows()}
    methods = []
    for row in experiment.rows:
        if not _is_method(experiment, row) or row.row not in against:
            continue
        sendings = sendings_of(frames, lines[row.row])
        if not sendings:
            continue
        difference = against[row.row]
        drop = {
            "difference": difference["estimate"],
            "difference_low": difference["low"],
            "difference_high": difference["high"],
        }
        methods.append(
            Method(
                key=key_of(experiment, row),
                label=row.label,
                setting=setting_in_short(row),
                sendings=tuple(sendings),
                drop=drop_cell(drop, frames),
                num_runs=len(frames.done(row.row)),
                is_fp16_hook=row.algorithm == "sgd" and row.wire == "fp16",
                frames=frames,
            )
        )
    return methods


def _is_method(experiment: Experiment, row: Row) -> bool:
    """Tell whether a row is a method that sends something, at the experiment's size and length."""
    is_own = row.num_parameters == experiment.rows[0].num_parameters
    is_own &= row.repeats is None and row.num_steps == own_length(experiment)
    # Ratio 1 is what methods are compared with.
    is_method = row.tunes is None and row.chosen_by == "held_out"
    is_method &= row.ratio_group > 1
    return is_own and is_method and bool(row.models_sent)
