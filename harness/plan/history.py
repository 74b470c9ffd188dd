"""Dates of contrasts from the git history of their spec, for records of plans that kept none."""

from __future__ import annotations

import datetime
import json
import shlex
import tomllib
from collections.abc import Collection, Mapping
from itertools import dropwhile, takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cser_bench.harness.measures.declared import is_without_verdict, run_files, seen_runs, starts_of
from cser_bench.harness.places import EXPERIMENTS
from cser_bench.harness.records import store
from cser_bench.harness.records.experiment import Contrast, Experiment, read_experiment
from cser_bench.harness.records.provenance import output_of
from cser_bench.harness.records.store import RunFile
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.spec_file import find_spec


class Asked(NamedTuple):
    """A contrast as a version of a spec has it.

    `margin` is the experiment's where it gives none of its own.
    """

    row: str
    reference: str
    kind: str
    margin: float | None


class Version(NamedTuple):
    """A spec in a commit; `at` is when that was committed, as records write times."""

    commit: str
    at: str
    contrasts: list[Asked]


def date_contrasts(folder: Path, keep_verdicts: bool) -> Experiment:
    """Write when each contrast of a folder's experiment was declared, and return it.

    Contrasts that have a date keep it.

    No other field of the file is changed. A contrast that stands in no commit stays without a date.

    Args:
        keep_verdicts: of contrasts that are dated now and came too late for a verdict, as these
            were published.

    Raises RecordError: a record is damaged; SpecError: there is no spec or no history of it.
    """
    experiment = read_experiment(folder)
    runs = run_files(folder)
    undated = [contrast for contrast in experiment.contrasts or [] if contrast.declared_at is None]
    if not undated:
        return experiment
    versions = versions_of(find_spec(shlex.split(experiment.commands[0])[-1]))
    names = {row.row: _names(row.row, row.runs.values(), runs) for row in experiment.rows}
    run_ids = {row.row: row.runs.values() for row in experiment.rows}
    starts = starts_of(runs)
    path = folder / "experiment.json"
    # Not from the record that was read, which has lost the keys that this version does not know.
    fields = json.loads(path.read_text())
    for contrast, written in zip(experiment.contrasts or [], fields["contrasts"], strict=True):
        if contrast not in undated:
            continue
        version = declaring_version(contrast, names, versions)
        if version is None:
            continue
        written |= {"declared_at": version.at, "declared_in": version.commit}
        dated = Contrast(**written)
        seen = seen_runs(dated, run_ids[contrast.row], run_ids[contrast.reference], starts)
        if keep_verdicts and is_without_verdict(dated, seen):
            written["is_verdict_kept"] = True
    store.write_text_atomically(path, store.record_text(fields))
    return read_experiment(folder)


def _names(row: str, run_ids: Collection[str], runs: Mapping[str, RunFile]) -> set[str]:
    """Return the row's name, and those under which its runs were made.

    A row may have been renamed since.
    """
    return {row} | {runs[run_id].row for run_id in run_ids if run_id in runs}


def declaring_version(
    contrast: Contrast, names: Mapping[str, Collection[str]], versions: Collection[Version]
) -> Version | None:
    """Return the version since which the spec had the contrast without a break.

    None where none has it.

    A contrast that was withdrawn and declared again counts from then: what it was judged by was
    declared then.

    Args:
        names: of each row, the name that it has and those that it had.
        versions: of the spec, the newest first.
    """

    def has_it(version: Version) -> bool:
        return any(_is_same(contrast, asked, names, version) for asked in version.contrasts)

    since = list(takewhile(has_it, dropwhile(lambda version: not has_it(version), versions)))
    return since[-1] if since else None


def _is_same(
    contrast: Contrast, asked: Asked, names: Mapping[str, Collection[str]], version: Version
) -> bool:
    if (asked.kind, asked.margin) != (contrast.kind, contrast.margin):
        return False
    used = set()
    for other in version.contrasts:
        used |= {other.row, other.reference}

    def is_named(row: str, name: str) -> bool:
        # An old name counts only in versions that do not use the present one: there it may be
        # another row's.
        return name == row or (row not in used and name in names[row])

    return is_named(contrast.row, asked.row) and is_named(contrast.reference, asked.reference)


def versions_of(path: Path) -> list[Version]:
    """Return all versions of a spec in git history, the newest first.

    A file that was renamed is followed. One that began as a copy of another begins there.

    Raises SpecError: the file stands in no commit, or there is no git.
    """
    path = path.resolve()
    root = output_of("git", "rev-parse", "--show-toplevel", cwd=path.parent)
    log = output_of(
        "git",
        "log",
        "--follow",
        "--name-status",
        "--format=%H %cI",
        "--",
        path.name,
        cwd=path.parent,
    )
    if root is None or not log:
        raise SpecError(
            f"{path} stands in no commit, so that git history says of no contrast when it was "
            "declared"
        )
    versions: list[Version] = []
    commit = ""
    at = ""
    for line in filter(None, log.splitlines()):
        status, *paths = line.split("\t")
        if not paths:
            commit, at = status.split()
            continue
        # Of a rename git names the old path before the new one, and this commit has the new one.
        versions.append(Version(commit, _in_utc(at), _contrasts_at(Path(root), commit, paths[-1])))
        if status.startswith("C"):
            break
    return versions


def _in_utc(time: str) -> str:
    return (
        datetime.datetime.fromisoformat(time).astimezone(datetime.UTC).isoformat(timespec="seconds")
    )


def _contrasts_at(root: Path, commit: str, path: str) -> list[Asked]:
    """Return the contrasts of the spec at this path in a commit.

    Contrasts are never taken over by `like`; margins are.
    """
    spec = _spec_at(root, commit, path)
    margin = spec.get("statistics", {}).get("margin")
    if margin is None and "like" in spec:
        margin = _base_at(root, commit, path, str(spec["like"])).get("statistics", {}).get("margin")
    return [
        Asked(asked["row"], asked["reference"], asked["kind"], asked.get("margin", margin))
        for asked in spec.get("contrasts", [])
    ]


def _base_at(root: Path, commit: str, path: str, like: str) -> dict[str, Any]:
    """Return the spec that one is like, as it was in that commit.

    It lies beside that one, or among those that ship.
    """
    places = [str(PurePosixPath(path).parent / f"{like}.toml")]
    # Resolved: in a checkout the package is a link, beyond which git knows no path.
    shipped = EXPERIMENTS.resolve() / f"{like}.toml"
    if shipped.is_relative_to(root):
        places.append(shipped.relative_to(root).as_posix())
    for place in places:
        spec = _spec_at(root, commit, place)
        if spec:
            return spec
    return {}


def _spec_at(root: Path, commit: str, path: str) -> dict[str, Any]:
    """Return the tables of a file in a commit.

    There are none where it was not there, or was no TOML.
    """
    text = output_of("git", "show", f"{commit}:{path}", cwd=root)
    try:
        return tomllib.loads(text or "")
    except tomllib.TOMLDecodeError:
        return {}
