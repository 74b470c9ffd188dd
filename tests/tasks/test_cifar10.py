"""CIFAR-10: torchvision's files before the archive of JPEGs, whose images are PIL's, and whose name
and digest are kept; bad archives."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10 as Release

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.augment import CroppedSamples
from cser_bench.harness.tasks.cifar10 import ARCHIVE, CIFAR10
from tests.tasks.miniatures import Bytes, cifar10_archive, md5, photo, write

NUM_TRAIN = 20
NUM_TEST = 10
TASK = CIFAR10(num_train=NUM_TRAIN, num_test=NUM_TEST)
SPEC = TaskSpec(name="cifar10")


def archive_in(folder: Path, **changes: Bytes | None) -> Path:
    """Write the archive with these arrays in place of its own, or without them."""
    arrays = cifar10_archive(NUM_TRAIN, NUM_TEST) | changes
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: array for name, array in arrays.items() if array is not None}
    np.savez(folder / ARCHIVE, **kept)
    return folder


def loaded(task: CIFAR10, folder: Path, **spec: int) -> CroppedSamples:
    return task.load(folder, SPEC.model_copy(update=spec), torch.device("cpu"))


def test_the_archives_images_are_pils_to_a_step_and_close_to_the_originals(
    tmp_path: Path,
) -> None:
    folder = archive_in(tmp_path / "data")
    TASK.prepare(folder)
    samples = loaded(TASK, folder)
    arrays = cifar10_archive(NUM_TRAIN, NUM_TEST)
    starts = [0, *arrays["test_ends"][:-1]]
    for number, image in enumerate(samples.evaluation_images):
        raw = arrays["test_jpeg"][starts[number] : arrays["test_ends"][number]]
        by_pil = np.array(Image.open(io.BytesIO(raw.tobytes())))
        original = np.array(photo(1000 + number, 32, 32))
        found = image.permute(1, 2, 0).numpy().astype(int)
        assert abs(found - by_pil).max() <= 1
        assert abs(found - original).mean() < 4
    assert samples.evaluation_labels.tolist() == list(range(10))
    assert samples.train_labels.tolist() == [*range(10), *range(10)]
    assert samples.padded.shape == (NUM_TRAIN, 3, 40, 40)


def test_the_archives_name_and_digest_are_kept(tmp_path: Path) -> None:
    folder = archive_in(tmp_path / "data")
    modality = loaded(TASK, folder, held_out=5).modality
    raw = (folder / ARCHIVE).read_bytes()
    assert modality.data_name == "cifar10_jpeg.npz"
    assert modality.sha256 == hashlib.sha256(raw).hexdigest()


def miniature_release(folder: Path) -> type[Release]:
    """torchvision's data set of two files of five images of noise, written into the folder."""
    random = np.random.default_rng(1)
    files = {}
    for name in ("train", "test"):
        pixels = random.integers(0, 256, (5, 3072), dtype=np.uint8)
        entry = {"data": pixels, "labels": [4, 3, 2, 1, 0]}
        files[name] = pickle.dumps(entry, protocol=2)
    files["meta"] = pickle.dumps({"label_names": list("abcde")}, protocol=2)
    write(folder / "cifar-10-batches-py", files)
    sums = {
        "train_list": [["train", md5(files["train"])]],
        "test_list": [["test", md5(files["test"])]],
        "meta": {"filename": "meta", "key": "label_names", "md5": md5(files["meta"])},
    }
    return type("Miniature", (Release,), sums)


def test_torchvisions_files_come_before_the_archive_and_have_no_other_name(
    tmp_path: Path,
) -> None:
    folder = archive_in(tmp_path / "data")
    release = miniature_release(folder)
    task = CIFAR10(num_train=5, num_test=5, release=release)
    task.prepare(folder)
    samples = loaded(task, folder)
    assert samples.train_labels.tolist() == [4, 3, 2, 1, 0]
    assert samples.modality.data_name is None
    assert samples.modality.sha256 is None


def broken_file(arrays: dict[str, Bytes]) -> Bytes:
    files = arrays["test_jpeg"].copy()
    files[:20] = 0
    return files


ARRAYS = cifar10_archive(NUM_TRAIN, NUM_TEST)
BAD: dict[str, Callable[[Path], object]] = {
    "no archive": lambda folder: write(folder, {ARCHIVE: b"<html>"}),
    "cut short": lambda folder: write(
        folder, {ARCHIVE: (archive_in(folder) / ARCHIVE).read_bytes()[:5000]}
    ),
    "no labels": lambda folder: archive_in(folder, test_labels=None),
    "fewer images": lambda folder: archive_in(
        folder, test_ends=ARRAYS["test_ends"][:-1]
    ),
    "a class too many": lambda folder: archive_in(
        folder, test_labels=ARRAYS["test_labels"] + 1
    ),
    "a broken file": lambda folder: archive_in(folder, test_jpeg=broken_file(ARRAYS)),
    "ends out of order": lambda folder: archive_in(
        folder, test_ends=ARRAYS["test_ends"][::-1].copy()
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_archive_is_refused_in_one_sentence(bad: str, tmp_path: Path) -> None:
    BAD[bad](tmp_path)
    words = (
        rf"{ARCHIVE} cannot be used \(.+\); put an undamaged copy there.*DATA=FOLDER"
    )
    with pytest.raises(DataError, match=words) as error:
        TASK.prepare(tmp_path)
    assert "\n" not in str(error.value)


def test_an_empty_folder_is_told_what_to_put_there(tmp_path: Path) -> None:
    words = r"CIFAR-10 is not at hand: .* put the folder cifar-10-batches-py/"
    with pytest.raises(DataError, match=words):
        TASK.prepare(tmp_path)
