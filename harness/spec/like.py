"""Inheritance of specs by `like`: what an experiment inherits, and what it must say itself."""

from __future__ import annotations

from typing import Any

from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.spec import OF_KIND

Table = dict[str, Any]

INHERITED = (
    "format",
    "name",
    "title",
    "task",
    "model",
    "training",
    "schedule",
    "evaluation",
    "partition",
    "statistics",
    "tuning",
    "rows",
    "grids",
    "cells",
)
"""Tables and keys that a file inherits if it does not have them, or key by key.

Others are the parent's own plan: what it asks, at which lengths and after which restarts.
"""

NOT_INHERITED_KEYS = {
    "statistics": {"declared", "baseline_seeds"},
    "tuning": {"both_rules", "both_rules_seeds"},
}
"""By table, the keys in it that are the parent's own plan; those of the tuning do not make a tuning
another either."""

ONE_OF = {"evaluation": ("per_epoch", "num_scores")}
"""Alternative keys, by table: a file's own one replaces the other one of the parent."""

OWN_RECORDS = (
    "tuning.records is no key; name the experiment whose tuning this shares in `like`, "
    "and give no grid"
)


def resolve(parent: Table, own: Table) -> Table:
    """Return the data of an experiment whose file has `own`, and `parent` where that says nothing.

    An experiment with a tuning of its own leaves the learning rates of the rows that it names to
    that; one without has its choices from the parent's tuning. Raises SpecError: `rows` names one
    that the parent has not, or a row has no rate and no tuning.
    """
    refuse_records(own)
    # By its keys: [tuning] with none but the parent's own plan in it shares the parent's trials.
    tunes_itself = bool(table_of(own, "tuning").keys() - NOT_INHERITED_KEYS["tuning"])
    data = _merged(_inherited(parent, tunes_itself), own)
    _put_rows_in(data, parent, own["like"], tunes_itself)
    if not tunes_itself and "tuning" in parent:
        _share_tuning(data, parent, own["like"])
    _leave_out_floor(data, own)
    _leave_out_idle(data, own)
    return data


def refuse_records(own: Table) -> None:
    """Raise SpecError where a file says itself what only `like` may say."""
    if "records" in table_of(own, "tuning"):
        raise SpecError(OWN_RECORDS)


def inherited_words(data: Table, own: Table) -> str:
    """Describe what a resolved experiment inherits from its parent.

    That is tables, and keys of those that it changes.
    """
    parts = []
    for key in INHERITED:
        if key not in data or key == "format":
            continue
        if key not in own:
            parts.append(key)
        elif isinstance(own[key], dict):
            # `records` was put there by `_share_tuning`, and is no key that a file has.
            taken = [
                name for name in data[key] if name not in own[key] and name != "records"
            ]
            if taken:
                parts.append(f"{key} ({', '.join(taken)})")
    named = [row for row in list_of(own, "rows") if isinstance(row, str)]
    if named:
        parts.append(f"rows ({', '.join(named)})")
    return f"like {own['like']}, from which it takes {'; '.join(parts) or 'nothing'}"


def _inherited(parent: Table, tunes_itself: bool) -> Table:
    """Return what may be taken of the parent's data, in tables of its own."""
    data = {}
    for key in INHERITED:
        if key not in parent:
            continue
        # A file with a tuning of its own goes on from all of the parent's.
        left_out = (
            set()
            if key == "tuning" and tunes_itself
            else NOT_INHERITED_KEYS.get(key, set())
        )
        value = parent[key]
        if isinstance(value, dict):
            value = {
                name: inner for name, inner in value.items() if name not in left_out
            }
        data[key] = value
    return data


def _merged(inherited: Table, own: Table) -> Table:
    """Return the inherited data with the file's own in its place, key by key within a table."""
    data = dict(inherited)
    for key, value in own.items():
        if isinstance(value, dict):
            # One level deep: a table in a table is replaced as a whole.
            data[key] = table_of(inherited, key) | value
        elif key != "like":
            data[key] = value
    return data


def _put_rows_in(data: Table, parent: Table, like: str, tunes_itself: bool) -> None:
    """Put the parent's rows in the place of their names."""
    if not isinstance(data.get("rows"), list):
        return
    rows_of_parent = _rows_by_name(parent)
    rows = []
    for row in data["rows"]:
        if not isinstance(row, str):
            rows.append(row)
            continue
        if row not in rows_of_parent:
            raise SpecError(
                f"rows names {row!r}, which is not among the [[rows]] of {like}"
            )
        # A copy, as a rate may be taken out of it.
        table = dict(rows_of_parent[row])
        if tunes_itself:
            table.pop("learning_rate", None)
        rows.append(table)
    data["rows"] = rows


def _share_tuning(data: Table, parent: Table, like: str) -> None:
    """Take over the choices of the parent's tuning.

    Raises SpecError: it has none of a row without a rate.
    """
    rows_of_parent = list(_rows_by_name(parent))
    for row in _row_tables(data):
        # A name that is none, as a number, is looked for too, and refused later.
        if row.get("row") not in rows_of_parent and "learning_rate" not in row:
            raise SpecError(
                f"row {row.get('row')!r} has no learning_rate, and {like} no tuning of it; give it "
                "one, or the experiment a [tuning] of its own"
            )
    data["tuning"] = table_of(data, "tuning") | {"records": parent.get("name")}


def _leave_out_floor(data: Table, own: Table) -> None:
    """Drop the inherited floor if it is none of the rows."""
    statistics = table_of(data, "statistics")
    names = [row.get("row") for row in _row_tables(data)]
    if (
        "floor" not in table_of(own, "statistics")
        and statistics.get("floor") not in names
    ):
        # One that the file itself names stays, and is refused where it is no row.
        statistics.pop("floor", None)


def _leave_out_idle(data: Table, own: Table) -> None:
    """Drop inherited keys that the override makes irrelevant."""
    for table, key in _idle_keys(data, own):
        if key not in table_of(own, table):
            table_of(data, table).pop(key, None)


def _idle_keys(data: Table, own: Table) -> list[tuple[str, str]]:
    """Return tables, and keys in them that mean nothing in the resolved data."""
    idle = []
    for table, kinds in OF_KIND.items():
        kind = table_of(data, table).get("kind")
        idle += [(table, key) for key, needed in kinds.items() if kind != needed]
    for table, keys in ONE_OF.items():
        given = table_of(own, table).keys()
        for key in keys:
            if given & (set(keys) - {key}):
                idle.append((table, key))
    return idle


def _rows_by_name(parent: Table) -> dict[str, Table]:
    """Return the [[rows]] of a parent, which was validated."""
    return {row["row"]: row for row in parent.get("rows", [])}


def _row_tables(data: Table) -> list[Table]:
    return [row for row in list_of(data, "rows") if isinstance(row, dict)]


def list_of(data: Table, key: str) -> list[Any]:
    """Return the list of that name.

    It is empty where there is no such name, or what it names is no list.
    """
    value = data.get(key)
    return value if isinstance(value, list) else []


def table_of(data: Table, key: str) -> Table:
    """Return the table of that name.

    It is empty where there is no such name, or what it names is no table.
    """
    value = data.get(key)
    return value if isinstance(value, dict) else {}
