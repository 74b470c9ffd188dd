"""The records that ship are packs: whole, planned, packed by these rules, and what their reports were built from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.records.experiment import read_experiment
from harness.records.packing import pack, unpack
from harness.records.packs import NAME, open_runs, read_pack, render
from tests.harness.support import ROOT

SHIPPED = sorted(path.parent for path in (ROOT / "results").rglob(NAME))


@pytest.fixture(params=SHIPPED, ids=[str(folder.relative_to(ROOT)) for folder in SHIPPED])
def shipped(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


def test_records_ship_as_packs() -> None:
    assert ROOT / "results/reference/fashion_mnist" in SHIPPED and ROOT / "results/fashion_mnist_tuning" in SHIPPED


def test_a_shipped_pack_holds_the_runs_that_its_experiment_plans(shipped: Path) -> None:
    planned = {run_id for row in read_experiment(shipped).rows for run_id in row.runs.values()}
    pack = read_pack(shipped)
    assert pack is not None and set(pack.lines) <= planned
    # An experiment that is not done yet ships its runs as they come, and no report.
    if (shipped / "report.md").exists() or shipped.name.endswith("_tuning"):
        assert set(pack.lines) == planned
    assert all(pack.record(run_id).result is not None for run_id in pack.lines)


def test_a_shipped_pack_unpacks_to_folders_that_pack_to_its_bytes(shipped: Path, tmp_path: Path) -> None:
    for name in ("experiment.json", NAME):
        shutil.copy(shipped / name, tmp_path)
    unpack(tmp_path)
    (tmp_path / NAME).unlink()
    assert repr(dict(open_runs(tmp_path))).replace(str(tmp_path), str(shipped)) == repr(dict(open_runs(shipped)))
    assert pack(tmp_path).path.read_bytes() == (shipped / NAME).read_bytes()


def test_files_of_a_shipped_run_are_as_the_store_writes_them(shipped: Path) -> None:
    """Written in the pack as values, not as texts, so that one can see what is in them."""
    pack = read_pack(shipped)
    assert pack is not None
    for text in pack.lines.values():
        assert not any(isinstance(each, str) for each in json.loads(text)["files"].values())
    assert render(pack.header.experiment, {run: pack.files(run) for run in pack.lines}) == (shipped / NAME).read_text()
