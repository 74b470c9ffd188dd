"""The program as others have it: from a wheel, in a folder with nothing of ours in it, or with
names like ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from cser_bench.harness.places import SHIPPED_TUNINGS
from cser_bench.harness.plan.trial import NETWORKS
from cser_bench.harness.records.shipped import shipped_experiments
from cser_bench.harness.spec.spec_file import find_spec, load_spec
from tests.harness.support import ROOT, changed, only, small_spec, write_spec

PACKAGES = ("algorithms", "harness", "slurm", "report")
"""The folders at the top of the repository, to which `cser_bench` has a link each."""


@dataclass(frozen=True)
class Installed:
    """Another environment, with the wheel in it and our packages' dependencies beside it."""

    folder: Path

    def call(self, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """A console script, in `cwd`, without anything of this checkout on the path."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        name, *rest = map(str, words)
        program = [str(self.folder / "bin" / name), *rest]
        return subprocess.run(
            program, cwd=cwd, env=clean, capture_output=True, text=True, timeout=280
        )

    @property
    def packages(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))


def tunings() -> list[Path]:
    """The searches that ship."""
    return [path for path in shipped_experiments() if path.name.endswith("_tuning")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*PACKAGES, "cser_bench", "tracks"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for tuning in tunings():
        shutil.copytree(tuning, source / "results" / tuning.name, ignore=ignored)
    for shipped in NETWORKS.values():
        runs = Path("results", shipped.runs.relative_to(SHIPPED_TUNINGS))
        shutil.copytree(ROOT / runs, source / runs, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    env = Installed(folder / "env")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    offline = ["--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *offline, "-w", folder, source], check=True)
    (wheel,) = folder.glob("cser_bench-*.whl")
    subprocess.run(
        [*pip, "--python", env.folder / "bin" / "python", "install", "--no-deps", wheel], check=True
    )
    # What the wheel needs is not installed again. Links that lie there, as to this checkout, are
    # not followed.
    (env.packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return env


@pytest.mark.timeout(400)
def test_shipped_experiments_plan_from_an_empty_folder(
    installed: Installed, tmp_path: Path
) -> None:
    code = "from cser_bench import harness, report; print(harness.__file__, report.__file__)"
    done = installed.call("python", "-c", code, cwd=tmp_path)
    assert done.stdout.count(str(installed.packages)) == 2, done.stdout + done.stderr
    names = {path.name for path in tunings()}
    packed = {path.name for path in (installed.packages / "cser_bench/harness/shipped").iterdir()}
    assert names and packed >= names
    for shipped in NETWORKS.values():
        runs = shipped.runs.relative_to(SHIPPED_TUNINGS)
        pack = installed.packages / "cser_bench/harness/shipped" / runs / "runs.jsonl"
        assert pack.exists(), "what `try` holds methods against"
    for name in (
        "fashion_mnist_regime",
        "studies/two_level",
    ):  # of which the first takes another's tuning
        done = installed.call("cser-harness", "plan", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(load_spec(find_spec(name)).title)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(400)
def test_run_report_and_status_from_a_folder_with_names_like_ours(
    installed: Installed, tmp_path: Path
) -> None:
    path = write_spec(tmp_path, changed(only(small_spec(), "sgd"), "tuning"))
    for name in PACKAGES:  # modules of the user's own, which must not be executed
        (tmp_path / f"{name}.py").write_text("raise SystemExit('SHADOWED')\n")
    for words, said in (
        (["run", path], "sgd seed 1: done"),
        (["status", path], "sgd"),
        (["report", path], "report.pdf"),
    ):
        done = installed.call("cser-harness", *words, cwd=tmp_path)
        assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr
    assert "SHADOWED" not in (tmp_path / "results" / "small").joinpath("report.md").read_text()


def test_usage_names_the_command_that_was_typed_and_missing_packages_what_to_install(
    installed: Installed, tmp_path: Path
) -> None:
    done = installed.call("cser-harness", "sing", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("usage: cser-harness "), done.stderr
    others = installed.packages / "dependencies.pth"
    hidden = others.rename(tmp_path / "hidden")
    try:
        for words in (["--help"], ["plan", "--help"]):
            done = installed.call("cser-harness", *words, cwd=tmp_path)
            assert done.returncode == 0 and "usage: cser-harness" in done.stdout, done.stderr
        done = installed.call("cser-harness", "plan", "cmudict", cwd=tmp_path)
        assert done.returncode == 1 and done.stderr == (
            "error: pydantic is not installed; pip install 'PATH-TO-THE-CHECKOUT[harness]' has all "
            "that is needed\n"
        )
    finally:
        hidden.rename(others)
