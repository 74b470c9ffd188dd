"""Reads experiment files.

They are TOML; what they take from the experiment that they are like is put in its place.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from cser_bench.harness.places import EXPERIMENTS
from cser_bench.harness.spec.errors import SpecError, explain, first_complaint
from cser_bench.harness.spec.like import (
    inherited_words,
    refuse_records,
    resolve,
    table_of,
)
from cser_bench.harness.spec.spec import Spec


class SpecFile(NamedTuple):
    """A file that was read.

    It has the spec that the file makes with what it is like, and what it has of that.
    """

    spec: Spec
    inherited: str | None
    """What the file inherits, in words; None if it has no `like`."""
    own_training: frozenset[str]
    """Keys that the file's own [training] has."""


def find_spec(name_or_path: str) -> Path:
    """Return the file of an experiment.

    A shipped one is found by its name or that of its file, any other by its path.
    """
    for candidate in (Path(name_or_path), EXPERIMENTS / f"{name_or_path}.toml"):
        if is_file(candidate):
            return candidate
    for candidate in sorted(EXPERIMENTS.rglob("*.toml")):
        # As text: to parse every file for a name would take far longer.
        if f'\nname = "{name_or_path}"\n' in candidate.read_text():
            return candidate
    near = (
        ", ".join(difflib.get_close_matches(name_or_path, known_experiments()))
        or "cmudict"
    )
    raise SpecError(
        f"no experiment {name_or_path!r}: give the path of a TOML file, or the name of one in "
        f"{EXPERIMENTS}, as {near}"
    )


def known_experiments() -> list[str]:
    """Return the names of the shipped experiments' files, which `find_spec` understands."""
    files = [path.relative_to(EXPERIMENTS) for path in EXPERIMENTS.rglob("*.toml")]
    return sorted(path.with_suffix("").as_posix() for path in files)


def shipped_titles() -> dict[str, str]:
    """Return the titles of the shipped experiments by their names."""
    tables = [read_toml(path) for path in EXPERIMENTS.rglob("*.toml")]
    return {table["name"]: table["title"] for table in tables}


def is_file(path: Path) -> bool:
    """Say whether there is a file.

    The answer is no for what can be no path, as one that is too long.
    """
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def load_spec(path: Path) -> Spec:
    """Read and validate an experiment file.

    Raises SpecError, in one sentence.
    """
    return read_spec(path).spec


def read_spec(path: Path) -> SpecFile:
    """Parse a file, put what it is like in its place, and validate.

    Raises SpecError as `load_spec` does.
    """
    own = read_toml(path)
    try:
        if "like" not in own:
            refuse_records(own)
            data = own
            inherited = None
        else:
            # Resolved as tables, before validation: what is inherited is checked as if it stood
            # here.
            data = resolve(_parent(path, str(own["like"])), own)
            inherited = inherited_words(data, own)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    own_training = frozenset(table_of(own, "training"))
    return SpecFile(_validated(path, data), inherited, own_training)


def _parent(path: Path, like: str) -> dict[str, Any]:
    """Return the data of what the file at `path` is like.

    Raises SpecError: it is no experiment, or itself like another.
    """
    beside = path.parent / f"{like}.toml"
    # A user's file means its neighbour before one that ships.
    place = beside if is_file(beside) else find_spec(like)
    data = read_toml(place)
    if "like" in data:
        raise SpecError(
            f"like = {like!r}, which is itself like {data['like']!r}; name that instead"
        )
    # `resolve` takes the form of the parent's tables for granted.
    _validated(place, data)
    return data


def _validated(path: Path, data: dict[str, Any]) -> Spec:
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        raise SpecError(f"{path}: {_row_of(error, data)}{explain(error)}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a file.

    Raises SpecError: it is no TOML, or cannot be read.
    """
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None


def _row_of(error: ValidationError, data: dict[str, Any]) -> str:
    """Return whose mistake it is, where it is one in a row or a grid.

    These have names, and pydantic counts them from 0.
    """
    match first_complaint(error)["loc"]:
        case ("rows" | "grids" as many, int(number), *_):
            kind = many.removesuffix("s")
            table = data[many][number]
            name = table.get(kind) if isinstance(table, dict) else None
            if isinstance(name, str) and name.isprintable():
                return f"{kind} {name}: "
            return f"{kind} {number + 1}: "
    return ""
