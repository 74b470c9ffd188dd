"""Reads experiment files: TOML, with what they take from the experiment that they are like put in its place."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cser_bench.harness.spec import Spec, SpecError, explain

EXPERIMENTS = Path(__file__).parent / "experiments"

NOT_INHERITED = ("lengths", "restarts", "contrasts", "exponents", "sensitivity")
NOT_INHERITED_STATISTICS = ("declared", "baseline_seeds")
"""What an experiment says of its own plan, and not of the setting that others share with it."""

OWN_IN_SHARED_TUNING = {"both_rules", "both_rules_seeds"}
"""What an experiment may say in [tuning] and still share the tuning of the experiment that it is like."""


def find_spec(name_or_path: str) -> Path:
    """The file of a shipped experiment by its name or that of its file, or of any other by its path."""
    path = Path(name_or_path)
    shipped = EXPERIMENTS / f"{name_or_path}.toml"
    for candidate in (path, shipped):
        if candidate.is_file():
            return candidate
    for candidate in sorted(EXPERIMENTS.rglob("*.toml")):
        if f'\nname = "{name_or_path}"\n' in candidate.read_text():
            return candidate
    known = [file.relative_to(EXPERIMENTS).as_posix()[:-5] for file in EXPERIMENTS.rglob("*.toml")]
    near = ", ".join(difflib.get_close_matches(name_or_path, known)) or "cmudict"
    raise SpecError(
        f"no experiment {name_or_path!r}: give the path of a TOML file, or the name of one in {EXPERIMENTS}, as {near}"
    )


def load_spec(path: Path) -> Spec:
    """Read and validate an experiment file. Raises SpecError, in one sentence."""
    data = read_toml(path)
    try:
        if "records" in _table(data, "tuning"):
            raise SpecError(
                "tuning.records is no key; name the experiment whose tuning this shares in `like`, and give no grid"
            )
        if "like" in data:
            beside = path.parent / f"{data['like']}.toml"
            data = _varied(read_toml(beside if beside.is_file() else find_spec(str(data["like"]))), data)
        return Spec.model_validate(data)
    except ValidationError as error:
        raise SpecError(f"{path}: {_row_of(error, data)}{explain(error)}") from None
    except SpecError as error:
        raise SpecError(str(error) if str(error).startswith(f"{path}") else f"{path}: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file. Raises SpecError: it is no TOML, or cannot be read."""
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None


def _varied(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The data of `base` with that of `own` in its place, key by key within a table.

    `rows` may name rows of the base; tables replace them. An experiment with a tuning of its own leaves the learning
    rates of the rows that it names to that; one without has its choices from the base's tuning. Raises SpecError:
    `rows` names one that the base has not, or the base is itself like another.
    """
    like = own["like"]
    if "like" in base:
        raise SpecError(f"like = {like!r}, which is itself like {base['like']!r}; name that instead")
    tunes_itself = not _table(own, "tuning").keys() <= OWN_IN_SHARED_TUNING
    left_out = {"statistics": NOT_INHERITED_STATISTICS, "tuning": () if tunes_itself else OWN_IN_SHARED_TUNING}
    base = {key: value for key, value in base.items() if key not in NOT_INHERITED} | {
        table: {key: value for key, value in base[table].items() if key not in keys}
        for table, keys in left_out.items()
        if table in base
    }
    data = base | {key: _table(base, key) | value if isinstance(value, dict) else value for key, value in own.items()}
    del data["like"]
    known = {row.get("row"): row for row in base.get("rows", [])}
    if isinstance(data.get("rows"), list):
        if unknown := [row for row in data["rows"] if isinstance(row, str) and row not in known]:
            raise SpecError(f"rows names {unknown[0]!r}, which is not among the [[rows]] of {like}")
        left_to_tuning = {"learning_rate"} if tunes_itself else set()
        data["rows"] = [
            {key: known[row][key] for key in known[row] if key not in left_to_tuning} if isinstance(row, str) else row
            for row in data["rows"]
        ]
    rows = [row for row in data.get("rows", []) if isinstance(row, dict)]
    if not tunes_itself and "tuning" in base:
        strange = [row.get("row") for row in rows if row.get("row") not in known and "learning_rate" not in row]
        if strange:
            raise SpecError(
                f"row {strange[0]!r} has no learning_rate, and {like} no tuning of it; give it one, or the experiment "
                "a [tuning] of its own"
            )
        data["tuning"] = _table(data, "tuning") | {"records": base.get("name")}
    statistics = _table(data, "statistics")
    if "floor" not in _table(own, "statistics") and statistics.get("floor") not in [row.get("row") for row in rows]:
        statistics.pop("floor", None)
    return data


def _table(data: dict[str, Any], key: str) -> dict[str, Any]:
    """The table of that name; empty where there is none, or it is none."""
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _row_of(error: ValidationError, data: dict[str, Any]) -> str:
    """Whose mistake it is, where it is one in a row or a grid: these have names, and pydantic counts them from 0."""
    match error.errors()[0]["loc"]:
        case ("rows" | "grids" as many, int(number), *_):
            kind = many.removesuffix("s")
            name = data[many][number].get(kind) if isinstance(data[many][number], dict) else None
            return f"{kind} {name if isinstance(name, str) else number + 1}: "
    return ""
