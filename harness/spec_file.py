"""Reads experiment files: TOML, with what they take from other experiments and other files put in its place."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.spec import Spec, SpecError, explain

EXPERIMENTS = Path(__file__).parent / "experiments"
OWN_IN_BORROWED_TUNING = {"both_rules", "both_rules_seeds"}


def find_spec(name_or_path: str) -> Path:
    """The file of a shipped experiment by its name, or of any other by its path.

    Raises:
        SpecError: there is no such file; the message names the shipped experiments.
    """
    path = Path(name_or_path)
    shipped = EXPERIMENTS / f"{name_or_path}.toml"
    for candidate in (path, shipped):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(file.relative_to(EXPERIMENTS).as_posix()[:-5] for file in EXPERIMENTS.rglob("*.toml")))
    raise SpecError(f"no experiment {name_or_path!r}: give the path of a TOML file or one of {known}")


def load_spec(path: Path) -> Spec:
    """Read and validate an experiment file.

    Raises:
        SpecError: not TOML, unknown keys, wrong types or impossible values, in one sentence.
    """
    data = _with_borrowed(path, _read(path))
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        raise SpecError(f"{path}: {_of_row(error, data)}{explain(error)}") from None


def _read(path: Path) -> dict[str, Any]:
    """A file's data; where it is like another experiment, with what that one says."""
    data = _parse(path)
    if "like" not in data:
        return data
    try:
        return _varied(_parse(find_spec(str(data["like"]))), data)
    except ValueError as error:
        raise SpecError(f"{path}: {error}") from None


def _varied(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
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


def _parse(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = _with_matrices(path, tomllib.loads(path.read_text()))
        return data
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None


def _with_matrices(path: Path, data: Any) -> Any:
    """The data, each topology {kind = "matrix", file = ...} with what the file says in its place.

    So a run's id is the hash of the weights, and nobody needs the file again. Its path is relative to the spec's.
    """
    if isinstance(data, list):
        return [_with_matrices(path, each) for each in data]
    if not isinstance(data, dict):
        return data
    if data.get("kind") == "matrix" and isinstance(data.get("file"), str):
        file = path.parent / data["file"]
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise SpecError(f"{path}: the mixing matrix in {file} cannot be read: {why}") from None
        return {key: value for key, value in data.items() if key != "file"} | {"weights": text}
    return {key: _with_matrices(path, value) for key, value in data.items()}


def _with_borrowed(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    """The file's data with what `tuning.records` stands for: another experiment's rows and its tuning of them.

    Rows of its own may follow, whose learning rates are given.

    Raises:
        SpecError: no such experiment or row there, or something that is borrowed is also given.
    """
    tuning = data.get("tuning")
    if not isinstance(tuning, dict) or "records" not in tuning:
        return data
    names = tuning.get("rows")
    beside = [f"tuning.{key}" for key in sorted(set(tuning) - {"records", "rows"} - OWN_IN_BORROWED_TUNING)]
    own_rows = data.get("rows", [])
    if not isinstance(own_rows, list) or not all(isinstance(row, dict) and "learning_rate" in row for row in own_rows):
        beside.append("[[rows]] without a learning_rate")
    if beside or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SpecError(
            f"{path}: a tuning with records takes its settings and rows from another experiment; give tuning.rows, the "
            f"names of the rows to take, and no {(beside or ['other [[rows]]'])[0]}"
        )
    lender = path.parent / f"{tuning['records']}.toml"
    lender = lender if lender.is_file() else find_spec(str(tuning["records"]))
    lent = _read(lender)
    if "records" in lent.get("tuning", {"records": None}):
        raise SpecError(f"{path}: {tuning['records']} has no [tuning] of its own to take from; name one that has")
    load_spec(lender)
    rows = {row["row"]: row for row in lent.get("rows", [])}
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise SpecError(
            f"{path}: tuning.rows names {unknown[0]!r}, which {tuning['records']} has not among its [[rows]]"
        )
    shared = {key: value for key, value in lent["tuning"].items() if key not in OWN_IN_BORROWED_TUNING}
    own = {key: value for key, value in tuning.items() if key != "rows"}
    return data | {"tuning": shared | own, "rows": [*(rows[name] for name in names), *own_rows]}


def _of_row(error: ValidationError, data: dict[str, Any]) -> str:
    """Whose mistake it is, where it is one in a row or a grid: these have names, and pydantic counts them from 0."""
    match error.errors()[0]["loc"]:
        case ("rows" | "grids" as many, int(number), *_):
            kind = many.removesuffix("s")
            name = data[many][number].get(kind) if isinstance(data[many][number], dict) else None
            return f"{kind} {name if isinstance(name, str) else number + 1}: "
    return ""
