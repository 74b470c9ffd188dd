"""Reports that ship are what their packed records give, to the byte; and the same as from folders of runs."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import pytest

from harness.records.packing import unpack
from harness.records.packs import NAME, open_runs
from report.accuracy.build import build_report
from report.accuracy.records import read_records

RESULTS = Path(__file__).parents[2] / "results"
REPORTED = sorted(path.parent for path in RESULTS.rglob(NAME) if (path.parent / "report.md").exists())


@pytest.fixture(scope="module", params=REPORTED, ids=[str(folder.relative_to(RESULTS)) for folder in REPORTED])
def shipped(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


@pytest.fixture(scope="module")
def rebuilt(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report built from the pack."""
    output = tmp_path_factory.mktemp("rebuilt")
    build_report(shipped, _tuning(shipped), output)
    return output


def _tuning(shipped: Path) -> Path | None:
    """Where the records of the experiment's tuning ship: beside it, or under results/."""
    named = read_records(shipped).experiment.tuning
    places = [folder / named.experiment for folder in (shipped.parent, RESULTS)] if named else []
    return next((place for place in places if place.exists()), None)


def _files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_reports_ship() -> None:
    assert REPORTED


@pytest.mark.parametrize("pattern", ["report.md", "csv/*.csv"])
def test_a_shipped_report_is_rebuilt_to_the_byte(pattern: str, shipped: Path, rebuilt: Path) -> None:
    assert _files(rebuilt, pattern) and _files(rebuilt, pattern) == _files(shipped, pattern)


def test_shipped_figures_are_rebuilt_to_the_byte(shipped: Path, rebuilt: Path) -> None:
    drawn_with = next(iter(open_runs(shipped).values())).run.attempts[-1].packages["matplotlib"]
    if metadata.version("matplotlib") != drawn_with:
        pytest.skip(f"the figures were drawn with matplotlib {drawn_with}; another one draws other pixels")
    assert _files(rebuilt, "figures/*") and _files(rebuilt, "figures/*") == _files(shipped, "figures/*")


def test_a_report_from_folders_is_that_from_the_pack(shipped: Path, rebuilt: Path, tmp_path: Path) -> None:
    for folder in (shipped, _tuning(shipped)):
        if folder is not None:
            copied = tmp_path / folder.name
            copied.mkdir()
            for name in ("experiment.json", NAME):
                shutil.copy(folder / name, copied)
            unpack(copied)
            (copied / NAME).unlink()
    build_report(tmp_path / shipped.name, output=tmp_path / "report")
    assert _files(tmp_path / "report", "**/*.*") == _files(rebuilt, "**/*.*")
