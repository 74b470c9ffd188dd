"""What a stranger relies on beside the code: the versions that records were made with, and checks
that are the same everywhere."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
STATISTICS = (
    "correlations",
    "dictionary_efficiency",
    "dictionary_means",
    "families",
    "law/cells",
    "law/exponents",
    "law/fits",
    "law/models",
    "law/predictions",
    "simulation",
)
PACKAGES = re.compile(r'"packages": ?(\{[^{}]*\})')


def _kept(*arguments: str) -> list[str]:
    """Return the files that git keeps."""
    words = ["git", "ls-files", *arguments]
    files = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return files.splitlines()


def test_nothing_is_kept_that_is_built_from_records() -> None:
    """Tables, pages and the studies' PDFs would change with every change of wording."""
    assert _kept("--cached", "--ignored", "--exclude-standard") == []
    assert _kept("results/*.csv") == [
        f"results/statistics/{name}.csv" for name in STATISTICS
    ]


def test_constraints_are_the_versions_of_all_shipped_records() -> None:
    """One's own records, which git does not know, may be of any."""
    recorded = set()
    for name in _kept(
        "results/*.jsonl", "results/*speedups/*.json", ":!results/unfinished"
    ):
        text = (ROOT / name).read_text()
        for table in set(PACKAGES.findall(text)):
            recorded.update(json.loads(table).items())
    lines = (ROOT / "results" / "constraints.txt").read_text().splitlines()
    constraints = [line for line in lines if not line.startswith("#")]
    pinned = {tuple(line.split("==")) for line in constraints}
    # A build's own label, as in 2.13.0+cpu, is no part of what pip compares.
    expected = {(name, version.partition("+")[0]) for name, version in recorded}
    assert pinned == expected


def test_what_the_project_needs_is_met_by_the_constraints() -> None:
    """Each package of which a version is recorded is one that the project asks for."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = table["project"]
    optional = project["optional-dependencies"]
    asked = [*project["dependencies"], *optional["harness"]]
    names = {re.split(r"[><=~\[ ]", line)[0] for line in asked}
    lines = (ROOT / "results" / "constraints.txt").read_text().splitlines()
    constraints = [line for line in lines if not line.startswith("#")]
    names_pinned = {line.split("==")[0] for line in constraints}
    assert names_pinned <= names


def test_hooks_before_a_commit_are_commands_of_make_check() -> None:
    makefile = (ROOT / "Makefile").read_text()
    _, _, check = makefile.partition("\ncheck:")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for command in (
        "ruff check",
        "ruff format",
        "-m mypy --strict",
        "lint-imports --no-logo",
    ):
        assert command in check
        assert command in hooks
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "check.yml").read_text()
