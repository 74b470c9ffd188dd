"""Reads experiment files: TOML, with what they take from the experiment that they are like put in
its place."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cser_bench.harness.places import EXPERIMENTS
from cser_bench.harness.spec.errors import SpecError, explain, first_complaint
from cser_bench.harness.spec.spec import ADAM_ONLY, OF_KIND, Spec

NOT_INHERITED = ("lengths", "restarts", "contrasts", "exponents", "sensitivity", "evidence")
NOT_INHERITED_STATISTICS = ("declared", "baseline_seeds")
"""What an experiment says of its own plan, and not of the setting that others share with it."""

OWN_RECORDS = (
    "tuning.records is no key; name the experiment whose tuning this shares in `like`, "
    "and give no grid"
)

OWN_IN_SHARED_TUNING = {"both_rules", "both_rules_seeds"}
"""What an experiment may say in [tuning] and still share the tuning of the experiment that it is
like."""


def find_spec(name_or_path: str) -> Path:
    """The file of a shipped experiment by its name or that of its file, or of any other by its
    path."""
    for candidate in (Path(name_or_path), EXPERIMENTS / f"{name_or_path}.toml"):
        if is_file(candidate):
            return candidate
    for candidate in sorted(EXPERIMENTS.rglob("*.toml")):
        if f'\nname = "{name_or_path}"\n' in candidate.read_text():
            return candidate
    known = [file.relative_to(EXPERIMENTS).as_posix()[:-5] for file in EXPERIMENTS.rglob("*.toml")]
    near = ", ".join(difflib.get_close_matches(name_or_path, known)) or "cmudict"
    raise SpecError(
        f"no experiment {name_or_path!r}: give the path of a TOML file, or the name of one in "
        f"{EXPERIMENTS}, as {near}"
    )


def is_file(path: Path) -> bool:
    """Whether there is a file; no for what can be no path, as one that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def load_spec(path: Path) -> Spec:
    """Read and validate an experiment file. Raises SpecError, in one sentence."""
    data = read_toml(path)
    if "like" in data:
        try:
            data = _varied(_base(path, str(data["like"])), data)
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from None
    elif "records" in _table(data, "tuning"):
        raise SpecError(f"{path}: {OWN_RECORDS}")
    return _validated(path, data)


def _base(path: Path, like: str) -> dict[str, Any]:
    """The data of what the file at `path` is like. Raises SpecError: it is no experiment, or itself
    like another."""
    beside = path.parent / f"{like}.toml"
    place = beside if is_file(beside) else find_spec(like)
    data = read_toml(place)
    if "like" in data:
        raise SpecError(
            f"like = {like!r}, which is itself like {data['like']!r}; name that instead"
        )
    _validated(place, data)
    return data


def _validated(path: Path, data: dict[str, Any]) -> Spec:
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        raise SpecError(f"{path}: {_row_of(error, data)}{explain(error)}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file. Raises SpecError: it is no TOML, or cannot be read."""
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None


def _varied(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The data of `base`, an experiment, with that of `own` in its place, key by key within a
    table.

    `rows` may name rows of the base; tables replace them. An experiment with a tuning of its own
    leaves the learning rates of the rows that it names to that; one without has its choices from
    the base's tuning. What the base says and means nothing in what comes of it is left out. Raises
    SpecError: `rows` names one that the base has not.
    """
    like = own["like"]
    if "records" in _table(own, "tuning"):
        raise SpecError(OWN_RECORDS)
    tunes_itself = not _table(own, "tuning").keys() <= OWN_IN_SHARED_TUNING
    left_out = {
        "statistics": NOT_INHERITED_STATISTICS,
        "tuning": () if tunes_itself else OWN_IN_SHARED_TUNING,
    }
    base = {key: value for key, value in base.items() if key not in NOT_INHERITED} | {
        table: {key: value for key, value in base[table].items() if key not in keys}
        for table, keys in left_out.items()
        if table in base
    }
    data = base | {
        key: _table(base, key) | value if isinstance(value, dict) else value
        for key, value in own.items()
    }
    del data["like"]
    known = {row["row"]: row for row in base.get("rows", [])}
    if isinstance(data.get("rows"), list):
        if unknown := [row for row in data["rows"] if isinstance(row, str) and row not in known]:
            raise SpecError(f"rows names {unknown[0]!r}, which is not among the [[rows]] of {like}")
        left_to_tuning = {"learning_rate"} if tunes_itself else set()
        data["rows"] = [
            {key: known[row][key] for key in known[row] if key not in left_to_tuning}
            if isinstance(row, str)
            else row
            for row in data["rows"]
        ]
    rows = [row for row in _list(data, "rows") if isinstance(row, dict)]
    if not tunes_itself and "tuning" in base:
        names = list(known)  # in which a name that is none can be looked for too
        strange = [
            row.get("row")
            for row in rows
            if row.get("row") not in names and "learning_rate" not in row
        ]
        if strange:
            raise SpecError(
                f"row {strange[0]!r} has no learning_rate, and {like} no tuning of it; give it "
                "one, or the experiment a [tuning] of its own"
            )
        data["tuning"] = _table(data, "tuning") | {"records": base.get("name")}
    statistics = _table(data, "statistics")
    if "floor" not in _table(own, "statistics") and statistics.get("floor") not in [
        row.get("row") for row in rows
    ]:
        statistics.pop("floor", None)
    _leave_out_idle(data, own)
    return data


def _leave_out_idle(data: dict[str, Any], own: dict[str, Any]) -> None:
    """Take out of the data what the base says and what `own` says has no more use for."""
    idle = [
        (table, key)
        for table, kinds in OF_KIND.items()
        for key, kind in kinds.items()
        if _table(data, table).get("kind") != kind
    ]
    steppers = [_table(data, "training"), *_list(data, "rows"), *_list(data, "grids")]
    if not any(
        isinstance(each, dict) and each.get("local_step", "sgd") != "sgd" for each in steppers
    ):
        idle += [("training", key) for key in ADAM_ONLY]
    counts = {"per_epoch", "num_scores"}
    idle += [
        ("evaluation", key) for key in counts if (counts - {key}) & _table(own, "evaluation").keys()
    ]
    for table, key in idle:
        if key not in _table(own, table):
            _table(data, table).pop(key, None)


def _list(data: dict[str, Any], key: str) -> list[Any]:
    """The list of that name; empty where there is none, or it is none."""
    found = data.get(key)
    return found if isinstance(found, list) else []


def _table(data: dict[str, Any], key: str) -> dict[str, Any]:
    """The table of that name; empty where there is none, or it is none."""
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _row_of(error: ValidationError, data: dict[str, Any]) -> str:
    """Whose mistake it is, where it is one in a row or a grid: these have names, and pydantic
    counts them from 0."""
    match first_complaint(error)["loc"]:
        case ("rows" | "grids" as many, int(number), *_):
            kind = many.removesuffix("s")
            name = data[many][number].get(kind) if isinstance(data[many][number], dict) else None
            return (
                f"{kind} {name if isinstance(name, str) and name.isprintable() else number + 1}: "
            )
    return ""
