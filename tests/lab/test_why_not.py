"""Machines that can have no lab: each is told why, in one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.lab.lab import LabError, LabTopology, lab, why_not
from tests.lab.support import needs_lab

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.usefixtures("root_on_linux")
def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "needs Linux" in str(why_not())


@pytest.mark.usefixtures("root_on_linux")
@pytest.mark.parametrize("missing", ["ip", "tc"])
def test_a_program_is_missing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else f"/usr/sbin/{name}")
    assert str(why_not()) == f"a network lab needs the program {missing}: install iproute2"


@needs_lab
def test_a_capability_is_missing() -> None:
    code = "from harness.lab.lab import why_not; print(why_not())"
    without = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin", sys.executable, "-c", code]
    done = subprocess.run(without, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "a network lab needs CAP_NET_ADMIN, which root has not here\n"


@pytest.mark.usefixtures("root_on_linux")
def test_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert main(["netlab"]) == 2
    assert capsys.readouterr().err == (
        "error: a network lab needs root, to make network namespaces: call it with sudo\n"
    )
    with pytest.raises(LabError, match="needs root"), lab(LabTopology(2, 1, 1e8)):
        pass
