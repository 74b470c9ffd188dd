"""Finding, fetching, verifying and reading the Fashion-MNIST files: no network, small made
files."""

from __future__ import annotations

import gzip
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError, fashion_mnist
from cser_bench.harness.tasks.fashion_mnist import (
    MEAN,
    STANDARD_DEVIATION,
    FashionMNIST,
    contents,
    verified,
)
from cser_bench.harness.tasks.fashion_mnist_crops import TASK as CROPS
from tests.tasks.miniatures import fashion_mnist_files

IMAGES, LABELS = list(fashion_mnist.FILES)[:2]


class Places:
    """The places that `contents` looks at, all empty to begin with."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.package, self.cache = (
            root,
            root / "package",
            root / "xdg" / "cser-bench" / "fashion-mnist",
        )
        monkeypatch.setenv("XDG_CACHE_HOME", str(root / "xdg"))
        monkeypatch.setattr(fashion_mnist, "PACKAGE_FOLDER", self.package)
        monkeypatch.setattr(fashion_mnist, "PUBLISHED", "http://127.0.0.1:1")
        monkeypatch.setattr(
            fashion_mnist, "FILES", fashion_mnist_files(root / "good", 5, 3)
        )

    def fill(self, folder: Path) -> Path:
        """Write the four good files."""
        fashion_mnist_files(folder, 5, 3)
        return folder

    def fake_apt(self, download: str) -> None:
        """An apt-get that does this, and a dpkg-deb that takes a folder beside it for the package's
        contents."""
        folder = f"$3{self.package}"
        for name, script in {
            "apt-get": f"for word; do case $word in -*) ;; *) echo $word >> {self.root}/calls; break;; esac; done\n"
            f"case $word in download) {download};; esac",
            "dpkg-deb": f'test -f "$2" || exit 2\nmkdir -p {folder}\ncp {self.root}/contents/* {folder}',
        }.items():
            path = self.root / "bin" / name
            path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
            path.chmod(0o755)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # this folder and nothing else
    return Places(tmp_path, monkeypatch)


def flip(path: Path) -> None:
    """Change the last of the unpacked bytes."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[-1] ^= 1
    path.write_bytes(gzip.compress(raw))


def test_the_files_are_torchvisions() -> None:
    theirs = torchvision.datasets.FashionMNIST
    known = [mirror.rstrip("/") for mirror in theirs.mirrors]
    names = [name for name, _ in theirs.resources]
    assert fashion_mnist.PUBLISHED in known
    assert names == list(fashion_mnist.FILES)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, "is missing"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-9]),
            "is damaged or unreadable",
        ),
        (flip, "is damaged: its contents have sha256"),
    ],
)
@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_a_damaged_given_folder_is_an_error_and_no_other_place_is_used(
    places: Places, damage: Callable[[Path], object], words: str, name: str
) -> None:
    good = contents(places.fill(places.package))
    mine = places.fill(places.root / "mine" / "FashionMNIST" / "raw")
    assert contents(places.root / "mine") == contents(mine) == good, (
        "also in torchvision's layout"
    )
    damage(mine / name)
    with pytest.raises(DataError, match=rf"{mine / name} {words}.*DATA=FOLDER"):
        contents(mine)


def test_the_order_is_package_cache_server_and_the_package_from_debian(
    places: Places, serve: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package lies there and is damaged; then the cache is, and then what the server has
    too."""
    folders = (places.package, places.root / "contents", places.root / "mirror")
    for folder in folders:
        places.fill(folder)
    places.fake_apt("touch it.deb")
    address = serve().rstrip("/")
    monkeypatch.setattr(fashion_mnist, "PUBLISHED", address)
    good = contents(None)
    assert not places.cache.exists()  # the package was enough
    (places.package / LABELS).unlink()
    assert contents(None) == good == verified(places.cache)  # from the server
    flip(places.root / "mirror" / LABELS)
    assert contents(None) == good  # from the cache
    assert not (places.root / "calls").exists()
    flip(places.cache / LABELS)
    assert contents(None) == good == verified(places.cache)
    calls = (places.root / "calls").read_text()
    assert calls.split() == ["update", "download"]
    fetched = sorted(os.listdir(places.cache))
    assert fetched == sorted(fashion_mnist.FILES)


def test_where_all_fail_each_place_is_named_with_its_reason(places: Places) -> None:
    places.fake_apt('echo "E: Unable to locate package" >&2; exit 100')
    with pytest.raises(DataError) as caught:
        contents(None)
    said = str(caught.value)
    for words in (
        "package/train-",
        "fashion-mnist/train-",
        "refused",
        "E: Unable to locate package",
        "DATA=FOLDER",
    ):
        assert words in said
    assert "\n" not in said
    assert os.listdir(places.cache) == []
    (places.root / "bin" / "apt-get").unlink()
    with pytest.raises(DataError, match="No such file or directory: 'apt-get'"):
        contents(None)


def test_samples_are_the_files_bytes_normalised(places: Places) -> None:
    samples = FashionMNIST(5, 3).load(
        places.root / "good", TaskSpec(name="fashion_mnist"), torch.device("cpu")
    )
    packed = (places.root / "good" / IMAGES).read_bytes()
    raw = gzip.decompress(packed)
    bytes_of_pixels = list(raw[16:])
    numbers = torch.tensor(bytes_of_pixels, dtype=torch.float32)
    pixels = numbers.view(5, 1, 28, 28)
    assert torch.allclose(
        samples.train_inputs, (pixels / 255 - MEAN) / STANDARD_DEVIATION, atol=1e-6
    )
    assert samples.train_labels.tolist() == [0, 1, 2, 3, 4]
    assert samples.evaluation_labels.tolist() == [0, 1, 2]


def test_with_crops_training_images_are_shifted_and_all_others_are_as_without(
    places: Places,
) -> None:
    folder = fashion_mnist_files(places.root / "large", 40, 6)
    fashion_mnist.FILES.update(folder)
    sized = {"num_train": 40, "num_test": 6}
    plain, cropped = (
        replace(task, **sized).load(
            places.root / "large", TaskSpec(name="any"), torch.device("cpu")
        )
        for task in (FashionMNIST(), CROPS)
    )
    for ours, theirs in zip(
        *(each.evaluation_batches(torch.arange(6)) for each in (cropped, plain)),
        strict=True,
    ):
        torch.testing.assert_close(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    order = torch.arange(40)
    batches = cropped.training_batches([order], seed=3, rank=1, first_step=5)
    [(images, labels)] = batches
    whole = plain.train_inputs
    classes = plain.train_labels
    assert torch.equal(labels, classes)
    assert not torch.allclose(images, whole)
    black = -MEAN / STANDARD_DEVIATION
    padded = torch.nn.functional.pad(whole, [4] * 4, value=black)
    shifts = []
    for y, x in itertools.product(range(9), range(9)):
        shifts.append(padded[..., y : y + 28, x : x + 28])
    mirrored = [each.flip(-1) for each in shifts]
    candidates = torch.stack([*shifts, *mirrored])
    assert (candidates - images).abs().amax(dim=(2, 3, 4)).min(
        dim=0
    ).values.max() < 1e-5, "each is a shift or its mirror"
