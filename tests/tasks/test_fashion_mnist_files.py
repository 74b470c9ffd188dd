"""Finding, fetching, verifying and reading the Fashion-MNIST files: no network, small made files."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torchvision

from harness.tasks import fashion_mnist_files as fm
from harness.tasks.errors import DataError
from harness.tasks.fashion_mnist_files import Expected
from harness.tasks.fetching import cache_folder
from tests.tasks.miniatures import md5


def idx(shape: tuple[int, ...]) -> bytes:
    """An idx file of unsigned bytes 0, 1, 2..."""
    count = int(np.prod(shape))
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(i % 256 for i in range(count))


CONTENTS = dict(zip(fm.FILES, (idx((5, 4, 4)), idx((5,)), idx((3, 4, 4)), idx((3,))), strict=True))
PACKED = {name: gzip.compress(raw, mtime=0) for name, raw in CONTENTS.items()}
EXPECTED = {name: Expected(hashlib.sha256(raw).hexdigest(), md5(PACKED[name])) for name, raw in CONTENTS.items()}
IMAGES, LABELS = list(CONTENTS)[:2]


def fill(folder: Path) -> Path:
    """Write the four good files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in PACKED.items():
        (folder / name).write_bytes(raw)
    return folder


@dataclass
class Places:
    """The places that `locate` looks at, all empty to begin with, and what it is run with."""

    root: Path
    mirrors: list[str]

    @property
    def package(self) -> Path:
        return self.root / "package"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def calls(self) -> list[str]:
        """The calls of apt-get so far."""
        log = self.root / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def locate(self, data: Path | None = None) -> Path:
        return fm.locate(data, self.cache, files=EXPECTED, package_folder=self.package, mirrors=self.mirrors)

    def cached(self) -> list[str]:
        """What is in the cache, temporary folders included."""
        return sorted(os.listdir(self.cache)) if self.cache.exists() else []

    def tool(self, name: str, script: str) -> None:
        """Put a fake tool on PATH, which is this folder and nothing else."""
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        path.chmod(0o755)

    def fake_apt(self, download: str) -> None:
        """An apt-get that logs its command, and a dpkg-deb that takes a folder beside it for the package's contents."""
        log = f"for word; do case $word in -o*) ;; *) break;; esac; shift; done; echo $1 >> {self.root}/calls"
        self.tool("apt-get", f'all="$*"\n{log}\ncase $1 in download) {download};; esac')
        target = f"$3{fm.PACKAGE_FOLDER}"
        self.tool("dpkg-deb", f'test -f "$2" || exit 2\nmkdir -p {target}\ncp {self.root}/contents/* {target}')


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Places(tmp_path, [])


def test_the_published_sums_are_torchvisions() -> None:
    theirs = torchvision.datasets.FashionMNIST
    assert [mirror.rstrip("/") for mirror in theirs.mirrors] == list(fm.MIRRORS)
    assert theirs.resources == [(name, expected.gz_md5) for name, expected in fm.FILES.items()]


def test_given_folder_is_used(places: Places) -> None:
    fill(places.package)
    assert places.locate(fill(places.root / "mine")) == places.root / "mine"


def test_given_folder_in_torchvision_layout_is_used(places: Places) -> None:
    raw = fill(places.root / "mine" / "FashionMNIST" / "raw")
    assert places.locate(places.root / "mine") == raw


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def damage_flip(path: Path) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[-1] ^= 1
    path.write_bytes(gzip.compress(raw))


def damage_lengthen(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"x"))


def damage_text(path: Path) -> None:
    path.write_text("<html>Please log in</html>")


def damage_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = [
    (Path.unlink, "is missing"),
    (damage_truncate, "damaged or unreadable"),
    (damage_flip, "sha256"),
    (damage_lengthen, "sha256"),
    (damage_text, "damaged or unreadable"),
    (damage_folder, "damaged or unreadable"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_damaged_given_folder_is_an_error_and_no_other_place_is_used(
    places: Places, damage: Callable[[Path], None], words: str, name: str
) -> None:
    fill(places.package)
    mine = fill(places.root / "mine")
    damage(mine / name)
    with pytest.raises(DataError, match=words) as caught:
        places.locate(mine)
    assert str(mine / name) in str(caught.value)
    assert "DATA" in str(caught.value)


def test_sha256_error_gives_both_digests(places: Places) -> None:
    mine = fill(places.root / "mine")
    damage_flip(mine / LABELS)
    found = hashlib.sha256(gzip.decompress((mine / LABELS).read_bytes())).hexdigest()
    with pytest.raises(DataError, match=f"{found}, expected {EXPECTED[LABELS].sha256}"):
        places.locate(mine)


def test_given_folder_that_is_none(places: Places) -> None:
    with pytest.raises(DataError, match="absent is not a folder"):
        places.locate(places.root / "absent")


def test_order_is_package_cache_apt_mirror(places: Places, serve: Callable[[], str]) -> None:
    """All places are good; the first in the order goes bad, one after the other."""
    fill(places.package)
    fill(places.cache)
    fill(places.root / "contents")
    fill(places.root / "mirror")
    places.fake_apt("touch it.deb")
    places.mirrors.append(serve())
    assert places.locate() == places.package
    (places.package / LABELS).unlink()
    assert places.locate() == places.cache
    assert places.calls == []
    damage_flip(places.cache / LABELS)
    assert places.locate() == places.cache
    assert places.calls == ["download"]
    fm.verify(places.cache, EXPECTED)
    damage_flip(places.cache / LABELS)
    damage_flip(places.root / "contents" / LABELS)
    assert places.locate() == places.cache
    fm.verify(places.cache, EXPECTED)
    assert places.cached() == sorted(CONTENTS)


def test_apt_renews_lists_in_private_where_the_machines_do_not_do(places: Places) -> None:
    fill(places.root / "contents")
    places.fake_apt('case $all in *Dir::State=*) touch it.deb;; *) echo "E: Unable to locate" >&2; exit 100;; esac')
    assert places.locate() == places.cache
    assert places.calls == ["download", "update", "download"]


def test_mirror_is_used_without_apt_and_a_bad_mirror_is_passed_over(
    places: Places,
    serve: Callable[[], str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    fill(places.root / "mirror")
    good = serve()
    places.mirrors += [good + "absent/", good]
    assert places.locate() == places.cache
    output = capsys.readouterr()
    assert output.out == ""
    assert [line.split()[1] for line in output.err.splitlines()] == ["fetching", "fetching", "placed"]
    assert not caplog.records, "the library's own words are not for the user"


def test_all_fail_names_each_place_with_its_reason(places: Places, serve: Callable[[], str]) -> None:
    fill(places.root / "mirror")
    damage_flip(places.root / "mirror" / LABELS)
    places.fake_apt('echo "E: Unable to locate package" >&2; exit 100')
    places.mirrors += [serve(), "http://127.0.0.1:1/", "no address"]
    with pytest.raises(DataError) as caught:
        places.locate()
    reasons = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
    words = [
        "package is not a folder",
        "cache is not a folder",
        "E: Unable to locate package",
        f"expected md5:{EXPECTED[LABELS].gz_md5}",
        "refused",
        "mirror no address: ",
    ]
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True)), reasons
    assert "DATA=" in str(caught.value)
    assert ".fetch-" not in str(caught.value)
    assert places.cached() == [IMAGES], "what was good stays"


def test_no_apt_is_a_reason(places: Places) -> None:
    with pytest.raises(DataError, match="apt-get is not on this machine"):
        places.locate()


def test_cache_that_cannot_be_written_is_a_reason(places: Places) -> None:
    places.cache.write_text("a file")
    with pytest.raises(DataError, match="cannot write to the cache"):
        places.locate()


def test_concurrent_fetches_all_end_well(places: Places, serve: Callable[[], str]) -> None:
    fill(places.root / "mirror")
    places.mirrors.append(serve())
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: places.locate(), range(8)))
    assert folders == [places.cache] * 8
    fm.verify(places.cache, EXPECTED)
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in places.cache.iterdir()), (
        "others may read a shared cache"
    )
    assert places.cached() == sorted(CONTENTS)


def test_interrupted_fetch_is_never_taken_for_done(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between the renames of two files: the next call sees an incomplete cache and fetches again."""
    fill(places.root / "contents")
    places.fake_apt("touch it.deb")
    replace, done = os.replace, []

    def stop_at_the_third(source: Path, target: Path) -> None:
        done.append(target)
        if len(done) == 3:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            places.locate()
    assert len(places.cached()) == 2
    assert places.locate() == places.cache
    assert places.calls == ["download", "download"]


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder("fashion-mnist") == Path("/somewhere/cser-bench/fashion-mnist")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/me")
    assert cache_folder("fashion-mnist") == Path("/me/.cache/cser-bench/fashion-mnist")


def test_read_idx(tmp_path: Path) -> None:
    fill(tmp_path)
    images, labels = fm.read_idx(tmp_path / IMAGES), fm.read_idx(tmp_path / LABELS)
    assert images.shape == (5, 4, 4)
    assert images.dtype == np.uint8
    assert images.flags.writeable
    assert images[1, 0, 1] == 17
    assert labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x08\x03" + bytes(8),
        b"\0\0\x0d\x01" + idx((5,))[4:],
        b"\0\0\x08\0" + bytes(1),
        idx((5,))[:-1],
        idx((5, 4, 4)) + b"x",
    ],
)
def test_read_idx_refuses_damage(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(raw))
    with pytest.raises(DataError, match=r"a\.gz .*undamaged copy"):
        fm.read_idx(path)


def test_read_idx_refuses_what_is_not_gzip(tmp_path: Path) -> None:
    fill(tmp_path)
    damage_truncate(tmp_path / LABELS)
    (tmp_path / "b.gz").write_bytes(idx((5,)))
    for path in (tmp_path / LABELS, tmp_path / "b.gz", tmp_path / "absent.gz"):
        with pytest.raises(DataError, match="cannot be read"):
            fm.read_idx(path)


def test_torch_is_not_loaded() -> None:
    code = "import sys, harness.tasks.fashion_mnist_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(fm.__file__).parents[2]).returncode == 0
