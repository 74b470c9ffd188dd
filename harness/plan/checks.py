"""Checks of a plan's rows: what must be equal in all of them, and what must differ."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

from cser_bench.algorithms.core.local_step import local_steps, which_read
from cser_bench.harness.measures.metrics import METRICS, metric_of
from cser_bench.harness.plan.footprint import model_without_memory
from cser_bench.harness.plan.rows import PlannedRow, config_of
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.rows import RowSpec
from cser_bench.harness.spec.run import LOCAL_NUMBERS, MethodSettings, RunConfig
from cser_bench.harness.spec.spec import Spec
from cser_bench.harness.tasks.task import find_task
from cser_bench.harness.train.method import method_of

TOO_WIDE = 0.1
"""A margin of a share from which on it can only be one in points: ten of them are what methods
differ by at most."""


def check_spec(spec: Spec) -> None:
    """Check what is known before any record is read.

    Raises SpecError: a task, model, metric or margin that cannot be, or two rows that are
    one.
    """
    task = find_task(spec.task.name)
    model_without_memory(spec.model.model_dump_json(), spec.task.name)
    metrics = ("accuracy", "loss", *task.metrics)
    for name in metrics:
        if name not in METRICS:
            raise SpecError(
                f"task {spec.task.name} is scored by {name!r}, which nothing says how to show; add "
                "it to METRICS in harness/measures/metrics.py"
            )
    if spec.statistics.metric not in metrics:
        raise SpecError(
            f"statistics.metric: task {spec.task.name} is not scored by "
            f"{spec.statistics.metric!r}; give one of {', '.join(metrics)}"
        )
    _check_margins(spec)
    if spec.evaluation.beam > 1:
        raise SpecError("evaluation.beam: sentences are decoded greedily; remove it")
    _check_rows_differ(spec)


def check_rows(spec: Spec, planned: Iterable[PlannedRow]) -> None:
    """Check rows whose ratio groups are known.

    Raises SpecError: a main ratio group that no row is in, or a label by which a report could not tell two
    rows apart.
    """
    planned_groups = {row.row.row: row.row.ratio_group for row in planned}
    groups = {
        row.row: row.ratio_group or planned_groups.get(row.row)
        for row in spec.all_rows()
    }
    _check_main_group(spec.statistics.main_ratio_group, list(groups.values()))
    _check_labels(spec, groups)


def check_numbers_are_read(spec: Spec, own: Collection[str]) -> None:
    """Check that some row's local step reads what a file's own [training] says, such as betas.

    Else whoever wrote it believes in another experiment. What a file inherits may go unread.

    Args:
        own: the keys that the file's own [training] has.
    """
    chosen = {row.local_step or spec.training.local_step for row in spec.all_rows()}
    # Rows refuse one that is none.
    if not chosen <= local_steps().keys():
        return
    for key in LOCAL_NUMBERS:
        readers = which_read(key)
        if key not in own or chosen & set(readers):
            continue
        # [training] must have this key, so it can only be 0.
        if key == "momentum":
            if not spec.training.momentum:
                continue
            remedy = "give 0.0"
        else:
            remedy = "remove it"
        raise SpecError(
            f"training.{key} does nothing, as no row's local_step is {' or '.join(readers)}; {remedy}"
        )


def _check_margins(spec: Spec) -> None:
    metric = metric_of(spec.statistics.metric)
    margins = {"statistics.margin": spec.statistics.margin}
    for contrast in spec.contrasts:
        where = f"the margin of {contrast.row!r} to {contrast.reference!r}"
        # 0 where it has the experiment's margin, which is checked above.
        margins[where] = contrast.margin or 0.0
    for where, margin in margins.items():
        if metric.is_share and margin >= TOO_WIDE:
            raise SpecError(
                f"{where} = {margin:g} is {100 * margin:g} points of {metric.label}, which no "
                "method loses; a margin is a share, so half a point is 0.005"
            )


def _check_rows_differ(spec: Spec) -> None:
    """Raise SpecError where two rows are the same.

    They are where they have one method and the same settings and rate, or the same choice of these.
    """
    rows = {row.row: row for row in spec.all_rows()}
    for restart in spec.restarts:
        restarted = rows[restart.row].restarted(restart)
        rows[restarted.row] = restarted
    names: dict[str, str] = {}
    for name, row in rows.items():
        science = _science(spec, row)
        if science in names:
            raise SpecError(
                f"rows {names[science]!r} and {name!r} are the same: their runs would be; remove "
                "one, or change what it was to differ by"
            )
        names[science] = name


def _science(spec: Spec, row: RowSpec) -> str:
    """Return a text that two rows share if their runs do.

    Settings at their defaults are left out of it, and 8 is 8.0.
    """
    # A config needs a rate, and a row that is tuned has none. What it has of settings and rates is
    # compared below.
    with_rate = row.model_copy(
        update={"settings": MethodSettings(), "learning_rate": row.learning_rate or 1.0}
    )
    config = config_of(spec, with_rate, 0)
    tables = [_without_defaults(config, settings) for settings in row.settings_to_try]
    text = json.dumps(
        [config.model_dump(mode="json"), tables, row.learning_rate, row.learning_rates],
        default=str,
    )
    return json.dumps(json.loads(text, parse_int=float), sort_keys=True)


def _without_defaults(config: RunConfig, settings: MethodSettings) -> dict[str, Any]:
    """Return the table of these settings without those that say what the method does anyway."""
    table = settings.table
    try:
        declared = method_of(config).declared
    except SpecError:
        # An unknown method is told when its row is planned, by the row's name.
        return table
    return {
        key: value
        for key, value in table.items()
        if key not in declared or declared[key].default != value
    }


def _check_main_group(main: float | None, groups: list[float | None]) -> None:
    """Raise SpecError where no row is in the main ratio group.

    A group that is neither given nor planned, as that of a row that is not tuned yet, may be it.
    """
    if main is None or main in groups or None in groups:
        return
    present = {group for group in groups if group is not None}
    raise SpecError(
        f"no row has the ratio {main:g} of statistics.main_ratio; those of rows are "
        f"{', '.join(f'{group:g}' for group in sorted(present))}"
    )


def _check_labels(spec: Spec, groups: dict[str, float | None]) -> None:
    """Raise SpecError where two rows have one label and a report could not tell them apart."""
    # A label stands for one method, at whatever ratio.
    by_label: dict[str, RowSpec] = {}
    for row in spec.all_rows():
        first = by_label.setdefault(row.label, row)
        if first.algorithm != row.algorithm:
            difference = f"though one is {first.algorithm} and one {row.algorithm}"
            raise SpecError(_one_label(first, row, difference))
    by_label_and_group: dict[tuple[str, float], RowSpec] = {}
    # Those of a grid are alike in both, and differ in their rates.
    for row in spec.rows:
        group = groups[row.row]
        if group is None:
            continue
        first = by_label_and_group.setdefault((row.label, group), row)
        if first is not row:
            raise SpecError(_one_label(first, row, f"and have the ratio {group:g}"))


def _one_label(first: RowSpec, second: RowSpec, difference: str) -> str:
    return (
        f"rows {first.row!r} and {second.row!r} are both labelled {first.label!r}, {difference}, "
        "so that a report could not tell them apart; give each a label of its own"
    )
