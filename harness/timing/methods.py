"""The methods that are timed: those of sessions.toml, and exactly what experiments score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from cser_bench.algorithms import SoloCollectives
from cser_bench.algorithms.core.settings import is_interval
from cser_bench.algorithms.registry import baselines
from cser_bench.harness.plan.by_traffic import usual_settings
from cser_bench.harness.plan.outside import outside_methods
from cser_bench.harness.plan.plan import plan_experiment
from cser_bench.harness.records.experiment import Row
from cser_bench.harness.records.timings import TimedMethod
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import RUN_LENGTH, RunConfig
from cser_bench.harness.spec.spec_file import find_spec, load_spec
from cser_bench.harness.spec.values import LocalStep
from cser_bench.harness.timing.workloads import DATA, MOMENTUM, problem_of, short_run
from cser_bench.harness.train.build import build_optimizer
from cser_bench.harness.train.method import method_in

MAIN = "fashion_mnist_long"
"""The experiment whose rows at its main ratio are timed: another name here, and its rows are."""


def method(
    name: str,
    label: str,
    algorithm: str,
    settings: Mapping[str, Any] = MappingProxyType({}),
    overlap: bool = False,
    momentum: float = MOMENTUM,
    local_step: LocalStep = "sgd",
    num_steps: int = 0,
) -> TimedMethod:
    """Describe a method, of which nothing is known yet that a session finds.

    Args:
        settings: as in a spec.
        num_steps: of the run that it is of, where a setting is said as the run's end.
    """
    all_settings = dict(settings)
    return TimedMethod(
        name=name,
        label=label,
        algorithm=algorithm,
        settings=all_settings,
        momentum=momentum,
        local_step=local_step,
        rows=[],
        messages=[],
        baseline=algorithm in baselines() or algorithm == "sgd",
        overlap=overlap,
        period=period_of(all_settings, num_steps),
    )


def period_of(settings: Mapping[str, Any], num_steps: int) -> int:
    """Say after how many steps what a method sends repeats."""
    intervals = [value for key, value in settings.items() if is_interval(key)]
    if RUN_LENGTH in intervals:
        return num_steps
    # Fragments are sent in turn, one after each such part of the interval.
    return math.lcm(*intervals) // settings.get("num_fragments", 1)  # type: ignore[no-any-return]


METHODS = {fields["name"]: method(**fields) for fields in DATA["methods"]}
"""Methods by name, in the order of tables."""
CONSECUTIVE = {fields["name"]: method(**fields) for fields in DATA["in_a_row"]}
"""The methods of consecutive steps."""


OWN_SHARE = 1 / 256
"""Traffic of methods of one's own, between 8 workers, as of most others that are timed."""


PERIODS_CHECKED = 16
"""Periods of a user's method over which what it sends must repeat."""


def own_methods(words: Sequence[str]) -> dict[str, TimedMethod]:
    """Describe the methods in files, and in packages that name them by entry points.

    Raises:
        SpecError: a file has none, its settings must be given, or what it sends does not repeat.
    """
    described = {}
    for name, source in outside_methods(words).items():
        settings = usual_settings(method_in(source, name), OWN_SHARE, world_size=8)
        timed = method(name, name, name, settings.table).model_copy(
            update={"method_source": source}
        )
        _check_repeats(timed)
        described[name] = timed
    return described


def _check_repeats(timed: TimedMethod) -> None:
    """Raise SpecError unless each period ends with the one step that sends otherwise than others.

    Steps are timed by these two kinds.
    """
    config = short_run(
        # Any will do: the network is the one made below.
        problem_of("resnet50"),
        timed.algorithm,
        timed.settings,
        momentum=timed.momentum,
        method_source=timed.method_source,
    )
    optimizer = build_optimizer(
        config, nn.Linear(64, 64), SoloCollectives(), timed.period
    )
    last_step = timed.period * PERIODS_CHECKED
    bits = [
        optimizer.expected_traffic(step).training_bits for step in range(last_step + 1)
    ]
    sent = [after - before for before, after in pairwise(bits)]
    # In the first period methods may send more than ever after.
    periods = [
        sent[start : start + timed.period]
        for start in range(0, len(sent), timed.period)
    ]
    for period in periods[1:]:
        if period != periods[1] or len(set(period[:-1])) > 1:
            raise SpecError(
                f"{timed.name}: what it sends does not repeat every {timed.period} steps, so its "
                "steps are of more kinds than the two that are timed; time it at settings at which "
                "it does"
            )


def named(
    methods: Mapping[str, TimedMethod], names: Sequence[str]
) -> list[TimedMethod]:
    """Pick the methods of these names, all if none is given.

    Raises:
        SpecError: one is unknown.
    """
    if unknown := [name for name in names if name not in methods]:
        raise SpecError(
            f"unknown method {unknown[0]!r}; the methods are {', '.join(methods)}"
        )
    return [methods[name] for name in names or methods]


def scored_methods(
    results: Path, experiment: str = MAIN, overlap: bool = False
) -> dict[str, TimedMethod]:
    """List the baselines, then each configuration that an experiment scores.

    Settings are as their tuning chose them; `_scored_rows` says which rows are taken. DDP computes
    what SGD does, so SGD's rows are DDP's too.

    Args:
        results: a folder that may have the experiment's own tuning.
        overlap: whether what can be sent during the backward pass is; no result changes.
    """
    scored: list[TimedMethod] = []
    of_fp16: list[str] = []
    for row, config in _scored_rows(experiment, results):
        name = f"{experiment}/{row.row}"
        if config.algorithm == "sgd" and config.communication_dtype == "fp16":
            # SGD with messages in fp16 is what the hook computes, so it is timed as the hook.
            of_fp16.append(name)
            continue
        new = method(
            row.row,
            row.label,
            config.algorithm,
            config.settings.table,
            overlap=overlap,
            momentum=config.momentum,
            local_step=config.local_step,
            num_steps=row.num_steps,
        )
        # Rows of several experiments may be one method, whose steps are timed once.
        same = next((other for other in scored if other.key == new.key), None)
        if same is None:
            scored.append(new)
        (same or new).rows.append(name)
    of_sgd = next(timed for timed in scored if timed.algorithm == "sgd")
    rivals = [
        METHODS["ddp"].model_copy(
            update={"rows": of_sgd.rows, "local_step": of_sgd.local_step}
        ),
        METHODS["ddp_fp16"].model_copy(update={"rows": of_fp16}),
        METHODS["powersgd_1"].model_copy(update={"name": "ddp_powersgd_1"}),
    ]
    return {timed.name: timed for timed in [*rivals, *scored]}


def _scored_rows(experiment: str, results: Path) -> Iterator[tuple[Row, RunConfig]]:
    """Yield the rows of an experiment that are timed, each with the config of its first run.

    Where a label of `MAIN` has a row in the main ratio group, its rows in other groups are left
    out. Rows at another length or rate than their own are never timed.
    """
    plan = plan_experiment(experiment, results)
    rows = {row.row: row for row in plan.experiment.rows if row.repeats is None}
    main = None
    if experiment == MAIN:
        main = load_spec(find_spec(experiment)).statistics.main_ratio_group
    in_main = {row.label for row in rows.values() if row.ratio_group == main}
    # From the end, so that the row's first run is the one that stays.
    # Seeds differ in nothing that a step's time depends on.
    configs = {run.row: run.config for run in reversed(plan.runs) if run.row in rows}
    for name, row in rows.items():
        if main is None or row.label not in in_main or row.ratio_group == main:
            yield row, configs[name]


def table_methods(results: Path, experiment: str) -> dict[str, TimedMethod]:
    """List the rows of a table of methods as a user would run them, each once.

    What DDP or a hook of PyTorch computes is timed as DDP or the hook, which send during the
    backward pass; our own form of it is left out, and so is no communication.
    tests/algorithms/test_hooks.py shows that the two forms are equal to rounding.

    Args:
        results: as in `scored_methods`.
    """
    # As early as each can send, which changes no result: every method in its fastest form.
    timed = scored_methods(results, experiment, overlap=True)
    # DDP computes the same, and sends as it goes.
    del timed["sgd"]
    # Its step is the passes alone, on any link.
    del timed["alone"]
    own = timed.pop("powersgd")
    hook = timed["ddp_powersgd_1"]
    if own.settings != hook.settings:
        raise SpecError(
            f"{experiment}: its row powersgd has {own.settings}, and the hook that is timed "
            f"{hook.settings}; give both the same rank"
        )
    timed["ddp_powersgd_1"] = hook.model_copy(update={"rows": own.rows})
    return timed
