"""CIFAR-100: finding, verifying and reading the official layouts, and batches; small made-up releases."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from harness.spec import TaskSpec
from harness.tasks import cifar100_files
from harness.tasks.cifar100 import CIFAR100, MEAN, STANDARD_DEVIATION, CIFAR100Samples
from harness.tasks.cifar100_files import Release, locate, read_split
from harness.tasks.errors import DataError
from harness.tasks.task import find_task
from tests.tasks.miniatures import MiniatureCIFAR100, archive, md5, write

TRAIN, TEST = 60, 10
MINIATURE = MiniatureCIFAR100(TRAIN, TEST, num_classes=5)
CPU = torch.device("cpu")
IMAGES, LABELS, RELEASE = MINIATURE.images, MINIATURE.labels, MINIATURE.release
PICKLED, BINARY = MINIATURE.pickled, MINIATURE.binary
PICKLED_ARCHIVE, BINARY_ARCHIVE = MINIATURE.pickled_archive, MINIATURE.binary_archive


@pytest.fixture
def publish(tmp_path: Path, serve: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], object]:
    """Puts an archive where the release is published."""
    monkeypatch.setattr(cifar100_files, "ADDRESS", serve() + "release.tar.gz")
    return lambda raw: write(tmp_path / "mirror", {"release.tar.gz": raw})


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CIFAR100:
    """A task whose cache is empty and which has no network."""

    def no_network(address: str, path: Path, md5: str) -> None:
        raise OSError("no network in tests")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(cifar100_files, "fetch", no_network)
    return CIFAR100(RELEASE)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "data" / "cifar-100-python", PICKLED)
    return tmp_path / "data"


def test_the_official_sums_are_torchvisions() -> None:
    official, theirs = Release(), torchvision.datasets.CIFAR100
    assert [["train", official.train_md5]] == theirs.train_list
    assert [["test", official.test_md5]] == theirs.test_list
    assert (official.archive_md5, cifar100_files.ADDRESS) == (theirs.tgz_md5, theirs.url)
    found = find_task("cifar100")
    assert (found.num_train, found.num_test, found.num_classes, found.input_shape) == (50_000, 10_000, 100, (3, 32, 32))


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "extracted, its parent": lambda p: write(p / "cifar-100-python", PICKLED).parent,
    "extracted": lambda p: write(p / "cifar-100-python", PICKLED),
    "archive, its folder": lambda p: write(p, {"cifar-100-python.tar.gz": PICKLED_ARCHIVE}),
    "archive": lambda p: write(p, {"cifar-100-python.tar.gz": PICKLED_ARCHIVE}) / "cifar-100-python.tar.gz",
    "binary": lambda p: write(p / "cifar-100-binary", BINARY),
    "binary archive": lambda p: write(p, {"cifar-100-binary.tar.gz": BINARY_ARCHIVE}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_official_layout_is_read(layout: str, tmp_path: Path) -> None:
    place = locate(LAYOUTS[layout](tmp_path / "data"), tmp_path / "cache", RELEASE)
    for split in IMAGES:
        images, labels = read_split(place, split, RELEASE)
        assert np.array_equal(images.reshape(-1, 3072), IMAGES[split]) and np.array_equal(labels, LABELS[split])
    assert not (tmp_path / "cache").exists()


def test_torchvision_reads_what_the_tests_write(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, files in (("train_list", [["train", RELEASE.train_md5]]), ("test_list", [["test", RELEASE.test_md5]])):
        monkeypatch.setattr(torchvision.datasets.CIFAR100, name, files)
    meta = pickle.dumps({"fine_label_names": [str(n) for n in range(MINIATURE.num_classes)]}, protocol=2)
    (data / "cifar-100-python" / "meta").write_bytes(meta)
    monkeypatch.setitem(torchvision.datasets.CIFAR100.meta, "md5", md5(meta))
    theirs = torchvision.datasets.CIFAR100(str(data), train=True)
    assert theirs.targets == LABELS["train"].tolist()
    assert np.array_equal(theirs.data.transpose(0, 3, 1, 2).reshape(-1, 3072), IMAGES["train"])


def cut(folder: Path, name: str, keep: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty folder": (lambda p: p.mkdir(), "holds no CIFAR-100: looked for cifar-100-python/"),
    "no folder": (lambda p: None, "holds no CIFAR-100"),
    "test missing": (lambda p: write(p / "cifar-100-python", {"train": PICKLED["train"]}), "test is missing"),
    "cut short": (lambda p: cut(write(p / "cifar-100-python", PICKLED), "train", 9000), "train is damaged (its md5"),
    "cut archive": (
        lambda p: cut(write(p, {"cifar-100-python.tar.gz": PICKLED_ARCHIVE}), "cifar-100-python.tar.gz", 99_000),
        "damaged or cut short",
    ),
    "no archive": (lambda p: write(p, {"cifar-100-python.tar.gz": b"<html>"}), "damaged or cut short"),
    "archive without test": (
        lambda p: write(p, {"cifar-100-python.tar.gz": archive("cifar-100-python", {"train": PICKLED["train"]})}),
        "cifar-100-python/test",
    ),
    "binary archive of another sum": (
        lambda p: write(p, {"cifar-100-binary.tar.gz": archive("cifar-100-binary", BINARY)[:-1] + b"x"}),
        "cifar-100-binary.tar.gz is damaged (its md5",
    ),
    "binary cut within an image": (
        lambda p: cut(write(p / "cifar-100-binary", BINARY), "train.bin", 5000),
        "no multiple of 3074",
    ),
    "binary cut between images": (
        lambda p: cut(write(p / "cifar-100-binary", BINARY), "train.bin", 3074 * 59),
        "holds 59 images where 60 are expected",
    ),
    "binary with a label too many": (
        lambda p: write(p / "cifar-100-binary", BINARY | {"train.bin": b"\0\7" + BINARY["train.bin"][2:]}),
        "does not hold 12 images of each of 5 classes",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_data_is_refused_in_one_sentence(bad: str, task: CIFAR100, tmp_path: Path) -> None:
    make, words = BAD[bad]
    make(tmp_path / "data")
    for use in (task.prepare, lambda data: task.load(data, TaskSpec(name="cifar100"), CPU)):
        with pytest.raises(DataError) as error:
            use(tmp_path / "data")
        assert words in str(error.value) and "\n" not in str(error.value)
    assert not all(good for _, good, _ in task.check(tmp_path / "data"))


def test_a_pickle_of_other_contents_is_refused(tmp_path: Path) -> None:
    raw = pickle.dumps({"data": 1})
    place = locate(write(tmp_path, {"train": raw, "test": raw}), tmp_path / "cache", RELEASE)
    with pytest.raises(DataError, match="not a CIFAR-100 pickle"):
        read_split(place, "train", Release(train_md5=md5(raw)))


def test_it_is_fetched_into_the_cache_once(tmp_path: Path, publish: Callable[[bytes], object]) -> None:
    for raw in (PICKLED_ARCHIVE, b"gone"):
        publish(raw)
        place = locate(None, tmp_path / "cache", RELEASE)
        assert np.array_equal(read_split(place, "test", RELEASE)[1], LABELS["test"])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cifar-100-python"]


def test_a_damaged_cache_is_fetched_anew(tmp_path: Path, publish: Callable[[bytes], object]) -> None:
    cut(write(tmp_path / "cifar-100-python", PICKLED), "train", 100)
    publish(PICKLED_ARCHIVE)
    place = locate(None, tmp_path, RELEASE)
    assert len(read_split(place, "train", RELEASE)[1]) == TRAIN


def test_a_failed_fetch_names_every_place_and_leaves_nothing(
    tmp_path: Path, publish: Callable[[bytes], object]
) -> None:
    publish(PICKLED_ARCHIVE[:-9])
    with pytest.raises(DataError) as error:
        locate(None, tmp_path / "cache", RELEASE)
    for words in (
        str(tmp_path / "cache"),
        cifar100_files.ADDRESS,
        "expected md5:" + RELEASE.archive_md5,
        "DATA=FOLDER",
    ):
        assert words in str(error.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_without_network_the_message_says_what_to_do(task: CIFAR100) -> None:
    with pytest.raises(
        DataError, match=r"nowhere to be found(.|\n)*no network in tests(.|\n)*put cifar-100-python.tar.gz"
    ):
        task.prepare(None)
    ((_, good, words),) = task.check(None)
    assert not good and "no network in tests" in words


def batches(samples: CIFAR100Samples, seed: int, rank: int, steps: range) -> list[tuple[Tensor, Tensor]]:
    indices = (torch.arange(step, step + 4) for step in steps)
    return list(samples.training_batches(indices, seed, rank, steps.start))


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return all(
        torch.equal(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)
    )


def test_augmentation_depends_on_seed_rank_and_step_alone(task: CIFAR100, data: Path) -> None:
    samples = task.load(data, TaskSpec(name="cifar100"), CPU)
    torch.manual_seed(1)
    whole = batches(samples, 1, 0, range(6))
    torch.manual_seed(2)
    assert same(whole[3:], batches(samples, 1, 0, range(3, 6)))
    assert not same(whole, batches(samples, 2, 0, range(6))) and not same(whole, batches(samples, 1, 1, range(6)))
    with ThreadPoolExecutor(4) as pool:
        ranks = list(pool.map(lambda rank: batches(samples, 1, rank, range(6)), range(4)))
    assert all(same(ranks[rank], batches(samples, 1, rank, range(6))) for rank in range(4))


def test_batches_are_float_normalised_and_labelled(task: CIFAR100, data: Path) -> None:
    samples = task.load(data, TaskSpec(name="cifar100"), CPU)
    ((inputs, labels),) = batches(samples, 1, 0, range(1))
    assert inputs.dtype == torch.float32 and inputs.shape == (4, 3, 32, 32) and inputs.is_contiguous()
    assert labels.tolist() == LABELS["train"][:4].tolist() == samples.train_labels[:4].tolist()
    bytes_again = inputs * torch.tensor(STANDARD_DEVIATION)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert torch.allclose(bytes_again * 255, (bytes_again * 255).round(), atol=1e-3)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_every_test_image_is_scored_once_and_unaugmented(task: CIFAR100, data: Path, workers: int) -> None:
    samples = task.load(data, TaskSpec(name="cifar100"), CPU)
    seen = torch.full((TEST,), -1)
    for rank in range(workers):
        mine = torch.arange(rank, TEST, workers)
        got = list(samples.evaluation_batches(mine))
        seen[mine] = torch.cat([labels for _, labels in got])
        for inputs, _ in got:
            pixels = (
                inputs * torch.tensor(STANDARD_DEVIATION)[:, None, None] + torch.tensor(MEAN)[:, None, None]
            ) * 255
            expected = torch.from_numpy(IMAGES["test"][mine.numpy()]).view(-1, 3, 32, 32)
            assert torch.allclose(pixels, expected.float(), atol=1e-3)
    assert seen.tolist() == LABELS["test"].tolist()
    assert list(samples.evaluation_batches(torch.arange(0))) == []


def test_held_out_samples_are_scored_and_not_trained_on(task: CIFAR100, data: Path) -> None:
    samples = task.load(data, TaskSpec(name="cifar100", held_out=12), CPU)
    assert (len(samples.padded), len(samples.train_labels), len(samples.evaluation_labels)) == (48, 48, 12)
    kept = {image.numpy().tobytes() for image in samples.padded[:, :, 4:36, 4:36]}
    held_out = {image.numpy().tobytes() for image in samples.evaluation_images}
    assert kept | held_out == {image.tobytes() for image in IMAGES["train"]} and not kept & held_out
    shutil.rmtree(data)


def test_a_preflight_counts(task: CIFAR100, data: Path) -> None:
    lines = task.check(data)
    assert [good for _, good, _ in lines] == [True, True]
    assert "60 images" in lines[0][2] and "10 images" in lines[1][2]
