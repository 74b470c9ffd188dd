"""An experiment that is like another one: what it says itself takes the place of what is said there, key by key."""

from __future__ import annotations

from typing import Any


def varied(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The data of `base` with that of `own` in its place, key by key within a table.

    `rows` may be the names of those rows of the base that the variation has; tables of its own replace them all. With
    a tuning of its own a variation leaves the learning rates of rows that it names to that.

    Raises:
        ValueError: `rows` names one that the base has not, or the base is itself like another.
    """
    if "like" in base:
        raise ValueError(f"like = {own['like']!r}, which is itself like {base['like']!r}; name that instead")
    rows = own.get("rows", base.get("rows", []))
    if isinstance(rows, list) and rows and all(isinstance(name, str) for name in rows):
        known = {row.get("row"): row for row in base.get("rows", [])}
        unknown = [name for name in rows if name not in known]
        if unknown:
            raise ValueError(f"rows names {unknown[0]!r}, which is not among the [[rows]] of {own['like']}")
        left = {"learning_rate"} if "tuning" in own else set()
        rows = [{key: value for key, value in known[name].items() if key not in left} for name in rows]
    tables = {
        key: base[key] | value if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in own.items()
    }
    return {key: value for key, value in (base | tables).items() if key != "like"} | {"rows": rows}
