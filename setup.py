"""Which folders are packages, and what the wheel has of records and rules; pyproject.toml has the rest.

The folders at the top are built as packages of `cser_bench`, whether or not its links to them are
links: where git makes none, or in an unpacked ZIP, they are text files.
"""

import gzip
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

FOLDERS = ("algorithms", "harness", "report", "slurm")
LISTED = Path("results", "shipped.txt")
"""Names what ships in results/. Own experiments, packed or not, stay here."""


class BuildWithRecords(build_py):
    """Builds the packages, and beside them the records that commands read."""

    def run(self):
        """Build afresh: what an earlier version left in the folder would go into the wheel."""
        if self.editable_mode:
            super().run()
            return
        # All of it: an earlier version may have had packages of other names.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        built = Path(self.build_lib, "cser_bench")
        super().run()
        copy(LISTED, built / LISTED)
        # The factor of a message in two stages, which `advise` needs, is read from them.
        for session in Path("results", "scored_speedups").glob("table-*.json"):
            copy(session, built / session)
        for folder in shipped_folders():
            pack = folder / "runs.jsonl"
            if not pack.is_file():
                continue
            copy(
                pack.with_name("experiment.json"),
                built / pack.with_name("experiment.json"),
            )
            # Without the time, so that the same records give the same wheel.
            compressed = gzip.compress(pack.read_bytes(), mtime=0)
            (built / f"{pack}.gz").write_bytes(compressed)


class SourcesThatShip(sdist):
    """Packs the sources, and of results/ what ships."""

    def make_distribution(self):
        """Leave out own experiments, which MANIFEST.in cannot tell from others."""
        shipped = shipped_folders()
        kept = []
        for name in self.filelist.files:
            path = Path(name)
            is_own = (
                path.parts[0] == "results"
                and path != LISTED
                and path.parent not in shipped
            )
            if not is_own:
                kept.append(name)
        self.filelist.files = kept
        super().make_distribution()


def shipped_folders():
    """Return the folders of results/ that are listed."""
    return [Path("results", name) for name in LISTED.read_text().splitlines()]


def copy(source, target):
    """Copy a file into a folder that may not be there yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


in_folders = find_packages(include=[*FOLDERS, *(f"{folder}.*" for folder in FOLDERS)])
setup(
    packages=["cser_bench", *(f"cser_bench.{name}" for name in in_folders)],
    package_dir={f"cser_bench.{folder}": folder for folder in FOLDERS},
    cmdclass={"build_py": BuildWithRecords, "sdist": SourcesThatShip},
)
