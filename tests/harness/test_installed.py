"""The program as others have it: from a wheel, in a folder with nothing of ours in it, or with
names like ours; and from a checkout without symbolic links."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import pytest

from cser_bench.harness.places import SHIPPED_TUNINGS
from cser_bench.harness.records.packs import NAME, read_pack
from cser_bench.harness.records.shipped import shipped_experiments
from cser_bench.harness.spec.spec_file import find_spec, load_spec
from cser_bench.report.trial import RIVALS
from tests.harness.support import ROOT, call, only, small_spec, write_spec

pytestmark = pytest.mark.whole

PACKAGES = ("algorithms", "harness", "slurm", "report")
"""The folders at the top of the repository to which `cser_bench` has links."""

ADVICE = "advise --parameters 25.6M --steps 450000 --workers 8 --compute-ms 27 --bandwidth 10Gb/s"

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


@dataclass(frozen=True)
class Installed:
    """Another environment, with the wheel in it and our packages' dependencies beside it."""

    folder: Path
    wheel: Path

    def call(self, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """A console script, in `cwd`, without anything of this checkout on the path."""
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("PYTHON")
        }
        name, *rest = map(str, words)
        program = [str(self.folder / "bin" / name), *rest]
        return subprocess.run(
            program, cwd=cwd, env=clean, capture_output=True, text=True, timeout=280
        )

    @property
    def packages(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))


def _kept() -> list[str]:
    """The files of the repository as they are now, but for those of which nothing is built.

    These are pictures, and experiments that are not done.
    """
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    words.append(":!results/unfinished")
    listed = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    names = [
        name
        for name in listed.split("\0")
        if name and not name.endswith((".png", ".pdf"))
    ]
    return [name for name in names if os.path.lexists(ROOT / name)]


def _wheel_of(source: Path) -> Path:
    offline = ["--no-deps", "--no-build-isolation"]
    subprocess.run([*PIP, "wheel", *offline, "-w", source.parent, source], check=True)
    (wheel,) = source.parent.glob("cser_bench-*.whl")
    return wheel


@pytest.fixture(scope="module")
def without_links(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout as `git archive` packs it in a ZIP, and as Python unpacks that: a link is a text
    file."""
    folder = tmp_path_factory.mktemp("without_links")
    with ZipFile(folder / "main.zip", "w") as archive:
        for name in _kept():
            if (ROOT / name).is_symlink():
                link = ZipInfo(name)
                link.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(link, os.readlink(ROOT / name))
            else:
                archive.write(ROOT / name, name)
    with ZipFile(folder / "main.zip") as archive:
        archive.extractall(folder / "source")
    assert (folder / "source" / "cser_bench" / "harness").is_file()
    return folder / "source"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    for name in _kept():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True
    )
    env = Installed(folder / "env", _wheel_of(source))
    python = env.folder / "bin" / "python"
    subprocess.run(
        [*PIP, "--python", python, "install", "--no-deps", env.wheel], check=True
    )
    # What the wheel needs is not installed again. Links that lie there, as to this checkout, are
    # not followed.
    beside = [
        path
        for path in sys.path
        if Path(path).name in ("site-packages", "dist-packages")
    ]
    (env.packages / "dependencies.pth").write_text("\n".join(beside))
    return env


@pytest.mark.timeout(400)
def test_shipped_experiments_plan_from_an_empty_folder(
    installed: Installed, tmp_path: Path
) -> None:
    code = "from cser_bench import harness, report; print(harness.__file__, report.__file__)"
    done = installed.call("python", "-c", code, cwd=tmp_path)
    assert done.stdout.count(str(installed.packages)) == 2, done.stdout + done.stderr
    shipped = installed.packages / "cser_bench" / "results"
    packed = [folder for folder in shipped_experiments() if (folder / NAME).exists()]
    experiments = {folder.relative_to(SHIPPED_TUNINGS) for folder in packed}
    for name in ("experiment.json", f"{NAME}.gz"):
        assert {
            path.relative_to(shipped).parent for path in shipped.rglob(name)
        } == experiments
    for rival in RIVALS:
        runs = rival.folder.relative_to(SHIPPED_TUNINGS)
        pack = read_pack(shipped / runs)
        assert pack and pack == read_pack(ROOT / "results" / runs), (
            "what `try` compares with"
        )
    # It takes another experiment's tuning.
    name = "first_look"
    done = installed.call("cser-harness", "plan", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(load_spec(find_spec(name)).title)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(400)
def test_advice_is_that_of_a_checkout(installed: Installed, tmp_path: Path) -> None:
    # Without a user's own experiments, which a checkout may have.
    words = [*ADVICE.split(), "--results", str(tmp_path / "none")]
    done = installed.call("cser-harness", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    in_checkout = call([sys.executable, "-m", "harness", *words], ROOT)
    assert done.stdout
    assert done.stdout == in_checkout.stdout


@pytest.mark.timeout(400)
def test_a_checkout_without_links_gives_the_same_wheel(
    installed: Installed, without_links: Path
) -> None:
    for package in ("cser_bench/algorithms", "algorithms"):
        left = without_links / "build" / "lib" / package / "gone.py"
        left.parent.mkdir(parents=True)
        left.touch()  # as by an earlier version that was built here
    wheels = (installed.wheel, _wheel_of(without_links))
    first, second = (
        {each.filename: each.CRC for each in ZipFile(w).filelist} for w in wheels
    )
    assert first == second


@pytest.mark.timeout(400)
def test_a_checkout_without_links_runs(
    installed: Installed, without_links: Path, tmp_path: Path
) -> None:
    """Its code and records are its own, beside the same that is installed.

    This environment may have an editable install, by which code of this checkout would be found.
    """
    code = "from cser_bench.harness import places; print(places.OURS, places.SHIPPED_TUNINGS)"
    done = installed.call("python", "-c", code, cwd=without_links)
    assert done.stdout.split() == [
        str(without_links),
        str(without_links / "results"),
    ], done.stderr
    done = installed.call("python", "-m", "harness", "--help", cwd=without_links)
    assert done.returncode == 0 and done.stdout.startswith(
        "Usage: python -m harness"
    ), done.stderr
    # It takes another experiment's tuning.
    name = "first_look"
    done = installed.call("python", "-m", "harness", "plan", name, cwd=without_links)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(load_spec(find_spec(name)).title)


def test_jobs_get_whole_packages_from_a_checkout_without_links(
    installed: Installed, without_links: Path, tmp_path: Path
) -> None:
    code = (
        "import pathlib, sys; from cser_bench.slurm.campaign import take_snapshot; "
        "take_snapshot(pathlib.Path(sys.argv[1]))"
    )
    done = installed.call("python", "-c", code, tmp_path / "code", cwd=without_links)
    assert done.returncode == 0, done.stderr
    done = installed.call(
        "python", "-m", "cser_bench.harness", "--help", cwd=tmp_path / "code"
    )
    assert done.returncode == 0 and "Usage: " in done.stdout, done.stderr


@pytest.mark.timeout(400)
def test_a_source_distribution_gives_the_same_wheel_and_has_nothing_that_needs_a_checkout(
    installed: Installed, without_links: Path, tmp_path: Path
) -> None:
    """Nor experiments of one's own."""
    own = without_links / "results" / "mine"
    own.mkdir()
    for name in ("experiment.json", NAME):
        (own / name).touch()
    code = (
        f"import setuptools.build_meta as build; build.build_sdist({str(tmp_path)!r})"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=without_links, check=True, capture_output=True
    )
    (packed,) = tmp_path.glob("cser_bench-*.tar.gz")
    shutil.unpack_archive(packed, tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    for name in ("Makefile", "tests", "results/mine"):
        assert not (source / name).exists(), name
    wheels = (installed.wheel, _wheel_of(source))
    first, second = (
        {each.filename: each.CRC for each in ZipFile(wheel).filelist}
        for wheel in wheels
    )
    assert first == second


@pytest.mark.timeout(400)
def test_run_report_and_status_from_a_folder_with_names_like_ours(
    installed: Installed, tmp_path: Path
) -> None:
    path = write_spec(tmp_path, only(small_spec(), "sgd"))
    for name in PACKAGES:  # modules of the user's own, which must not be executed
        (tmp_path / f"{name}.py").write_text("raise SystemExit('SHADOWED')\n")
    for words, said in (
        (["run", path], "sgd seed 1: done"),
        (["status", path], "sgd"),
        (["report", path], "report.pdf"),
    ):
        done = installed.call("cser-harness", *words, cwd=tmp_path)
        assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr
    assert (
        "SHADOWED"
        not in (tmp_path / "results" / "small").joinpath("report.md").read_text()
    )


def test_usage_names_the_command_that_was_typed_and_missing_packages_what_to_install(
    installed: Installed, tmp_path: Path
) -> None:
    done = installed.call("cser-harness", "sing", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith("; see `cser-harness --help`\n")
    others = installed.packages / "dependencies.pth"
    hidden = others.rename(tmp_path / "hidden")
    try:
        done = installed.call("cser-harness", "--help", cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr == (
            "error: click is not installed; pip install 'PATH-TO-THE-CHECKOUT[harness]' has all "
            "that is needed\n"
        )
    finally:
        hidden.rename(others)
