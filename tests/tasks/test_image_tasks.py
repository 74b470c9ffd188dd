"""CIFAR-100 and ImageNet: augmentation in order, exact counts, decoding, bad data; miniatures in
the real formats."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError, cifar100, imagenet
from cser_bench.harness.tasks.augment import Draws
from cser_bench.harness.tasks.imagenet import (
    ImageNet,
    decoded,
    random_crop,
    read_images,
)
from cser_bench.harness.tasks.samples import Samples
from cser_bench.harness.train.order import worker_batches
from tests.tasks.miniatures import (
    MiniatureCIFAR100,
    imagenet_tree,
    jpeg,
    photo,
    same,
    write,
)

CPU = torch.device("cpu")
TRAIN = 24
TEST = 12
RELEASE = MiniatureCIFAR100(TRAIN, TEST, num_classes=3)
IMAGENET = ImageNet(num_train=TRAIN, num_test=TEST, num_classes=3, side=16, resize=20)


@dataclass(frozen=True)
class Miniature:
    """A task of 24 + 12 images in 3 classes, its data, and the mean and deviation that its pixels
    are normalised by."""

    name: str
    task: Any
    data: Path
    scale: tuple[Tensor, Tensor]

    def load(self, **spec: int) -> Any:
        task_spec = TaskSpec(name=self.name, **spec)
        return self.task.load(self.data, task_spec, CPU)

    def bytes_of(self, inputs: Tensor) -> Tensor:
        mean, deviation = self.scale
        normalised = deviation[:, None, None] * inputs
        return 255 * (normalised + mean[:, None, None])


@pytest.fixture(params=["cifar100", "imagenet"])
def miniature(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Miniature:
    """Their caches are empty, and there is no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(RELEASE.release, "url", "http://127.0.0.1:1/release.tar.gz")
    data = tmp_path / "data"
    if request.param == "cifar100":
        write(data / "cifar-100-python", RELEASE.pickled)
        mean = torch.tensor(cifar100.MEAN)
        deviation = torch.tensor(cifar100.STANDARD_DEVIATION)
        return Miniature("cifar100", RELEASE.task, data, (mean, deviation))
    imagenet_tree(data, TRAIN, TEST)
    mean = torch.tensor(imagenet.MEAN)
    deviation = torch.tensor(imagenet.STANDARD_DEVIATION)
    return Miniature("imagenet", IMAGENET, data, (mean, deviation))


only_cifar100 = pytest.mark.parametrize("miniature", ["cifar100"], indirect=True)
only_imagenet = pytest.mark.parametrize("miniature", ["imagenet"], indirect=True)


def batches(
    samples: Samples, steps: range, seed: int = 1, rank: int = 0
) -> list[tuple[Tensor, Tensor]]:
    indices = worker_batches(seed, TRAIN, rank, 2, 4, steps)
    return list(samples.training_batches(indices, seed, rank, steps.start))


def test_batches_are_normalised_and_augmented_by_seed_rank_and_step_alone(
    miniature: Miniature,
) -> None:
    samples = miniature.load()
    torch.manual_seed(1)
    whole = batches(samples, range(6))
    torch.manual_seed(2)
    resumed = batches(miniature.load(), range(4, 6))
    of_another_seed = batches(samples, range(6), seed=2)
    of_another_rank = batches(samples, range(6), rank=1)
    assert same(whole[4:], resumed)
    assert not same(whole, of_another_seed)
    assert not same(whole, of_another_rank)

    def first_four(rank: int) -> list[tuple[Tensor, Tensor]]:
        return batches(samples, range(4), rank=rank)

    with ThreadPoolExecutor(3) as pool:
        at_once = list(pool.map(first_four, range(3)))
    for rank, found in enumerate(at_once):
        assert same(found, first_four(rank))
    indices = worker_batches(1, TRAIN, 0, 2, 4, range(6))
    for (inputs, labels), index in zip(whole, indices, strict=True):
        expected = samples.train_labels[index]
        assert torch.equal(labels, expected)
        assert inputs.shape == (4, *miniature.task.input_shape)
        assert inputs.dtype == torch.float32
        assert inputs.is_contiguous()
        pixels = miniature.bytes_of(inputs)
        assert pixels.min() > -1e-2
        assert pixels.max() < 255.01


@pytest.mark.parametrize("workers", [1, 3])
def test_every_test_image_is_scored_once_and_unaugmented(
    miniature: Miniature, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagenet, "EVALUATION_BATCH", 2)
    samples = miniature.load()
    labels = torch.full((TEST,), -1)
    inputs = torch.empty(TEST, *miniature.task.input_shape)
    for rank in range(workers):
        mine = torch.arange(rank, TEST, workers)
        found = list(samples.evaluation_batches(mine))
        images, of_images = zip(*found, strict=True)
        inputs[mine] = torch.cat(images)
        labels[mine] = torch.cat(of_images)
    if miniature.name == "cifar100":
        pixels = torch.from_numpy(RELEASE.images["test"])
        expected = pixels.view(-1, 3, 32, 32)
        known = RELEASE.labels["test"]
        assert labels.tolist() == known.tolist()
    else:
        files = (miniature.data / "val").rglob("*.JPEG")
        paths = sorted(str(file) for file in files)
        expected = read_images(paths, 16, 20)
        assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    found_pixels = miniature.bytes_of(inputs)
    assert torch.allclose(found_pixels, expected.float(), atol=1e-3)
    nothing = torch.arange(0)
    assert list(samples.evaluation_batches(nothing)) == []


def distinct(images: Tensor) -> set[bytes]:
    """The bytes of each image."""
    found = set()
    for image in images:
        pixels = image.numpy()
        found.add(pixels.tobytes())
    return found


def test_held_out_images_are_scored_and_not_trained_on(miniature: Miniature) -> None:
    samples = miniature.load(held_out=5)
    assert len(samples.train_labels) == TRAIN - 5
    if miniature.name == "cifar100":
        unpadded = samples.padded[:, :, 4:36, 4:36]
        trained = distinct(unpadded)
        scored = distinct(samples.evaluation_images)
    else:
        trained = set(samples.train.paths)
        scored = set(samples.evaluated.paths)
    assert len(scored) == 5
    assert not trained & scored
    assert len(trained | scored) == TRAIN
    every = torch.arange(5)
    count = 0
    for _, labels in samples.evaluation_batches(every):
        count += len(labels)
    assert count == 5


# CIFAR-100


def leave_out(folder: Path) -> None:
    """No folder."""


def cut_short(folder: Path) -> None:
    whole = RELEASE.pickled["train"]
    files = RELEASE.pickled | {"train": whole[:9000]}
    write(folder / "cifar-100-python", files)


def put_a_page_in_its_place(folder: Path) -> None:
    write(folder, {"cifar-100-python.tar.gz": b"<html>"})


BAD_RELEASES: dict[str, Callable[[Path], None]] = {
    "no folder": leave_out,
    "cut short": cut_short,
    "no archive": put_a_page_in_its_place,
}


@only_cifar100
@pytest.mark.parametrize("bad", BAD_RELEASES)
def test_a_bad_release_is_refused_in_one_sentence(
    bad: str, miniature: Miniature, tmp_path: Path
) -> None:
    folder = tmp_path / "bad"
    BAD_RELEASES[bad](folder)
    words = r"holds no undamaged release.*; put the folder .* DATA=FOLDER"
    with pytest.raises(DataError, match=words) as error:
        miniature.task.prepare(folder)
    said = str(error.value)
    assert str(folder) in said
    assert "\n" not in said


@only_cifar100
def test_it_is_fetched_into_the_cache_once_and_an_archive_of_ones_own_is_extracted(
    miniature: Miniature,
    tmp_path: Path,
    serve: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = TaskSpec(name="cifar100")
    words = r"put the folder cifar-100-python/ or cifar-100-python.tar.gz"
    with pytest.raises(DataError, match=words):
        miniature.task.prepare(None)
    url = serve() + "release.tgz"
    monkeypatch.setattr(RELEASE.release, "url", url)
    mirror = write(tmp_path / "mirror", {"release.tgz": RELEASE.archive})
    miniature.task.prepare(None)
    (mirror / "release.tgz").write_bytes(b"gone")
    fetched = miniature.task.load(None, spec, CPU)
    train_labels = RELEASE.labels["train"]
    assert fetched.train_labels.tolist() == train_labels.tolist()
    own = write(tmp_path / "own", {"cifar-100-python.tar.gz": RELEASE.archive})
    extracted = miniature.task.load(own, spec, CPU)
    test_labels = RELEASE.labels["test"]
    assert extracted.evaluation_labels.tolist() == test_labels.tolist()


# ImageNet


@only_imagenet
def test_labels_follow_sorted_class_folders_and_order_sorted_names(
    miniature: Miniature,
) -> None:
    folder = miniature.data / "train"
    first_class = folder / "n01"
    image = first_class / "n01_21.JPEG"
    image.rename(first_class / "zoë (1).jpg")
    samples = miniature.load()
    expected = [0] * 8 + [1] * 8 + [2] * 8
    assert samples.train_labels.tolist() == expected
    files = [*folder.rglob("*.JPEG"), *folder.rglob("*.jpg")]
    paths = [str(file) for file in files]
    assert samples.train.paths == sorted(paths)


def bytes_of_pil(image: Image.Image) -> Tensor:
    """Shape (channels, height, width)."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.permute(2, 0, 1)


def largest_difference(found: Tensor, expected: Tensor) -> int:
    apart = found.int() - expected.int()
    return int(apart.abs().max())


def central_crop(
    folder: Path, image: Image.Image, side: int, resize: int, kind: str = "JPEG"
) -> Tensor:
    path = folder / "image"
    path.write_bytes(jpeg(image, kind))
    (pixels,) = read_images([str(path)], side, resize)
    return pixels


@pytest.mark.parametrize("size", [(500, 375), (300, 300), (233, 601)])
def test_central_crops_are_torchvisions_on_pil(
    size: tuple[int, int], tmp_path: Path
) -> None:
    image = photo(1, *size)
    crop = central_crop(tmp_path, image, 224, 256)
    as_torchvision = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224)]
    )
    file = io.BytesIO(jpeg(image))
    cropped = as_torchvision(Image.open(file))
    expected = bytes_of_pil(cropped)
    assert largest_difference(crop, expected) <= 1


def test_a_training_crop_is_pils_and_mirrored_where_drawn() -> None:
    raw = jpeg(photo(2, 500, 375))
    # 54 % of the area, square, at the top right
    attempt = torch.tensor([0.5, 0.5], dtype=torch.float64)
    place = torch.tensor([0.0, 1.0 - 1e-9], dtype=torch.float64)
    draws = Draws(
        attempts=attempt.expand(2, 1, 2),
        places=place.expand(2, 2),
        flips=torch.tensor([False, True]),
        orders=torch.zeros(2, 3),
        factors=torch.zeros(2, 3),
        lighting=torch.zeros(2, 3),
    )
    image = Image.open(io.BytesIO(raw))
    square = image.crop((182, 0, 500, 318))
    resized = square.resize((224, 224), Image.Resampling.BILINEAR)
    expected = bytes_of_pil(resized)
    expected_mirrored = expected.flip(-1)
    found = random_crop(decoded(raw), 224, draws, 0)
    mirrored = random_crop(decoded(raw), 224, draws, 1)
    assert largest_difference(found, expected) <= 1
    assert largest_difference(mirrored, expected_mirrored) <= 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_become_rgb(mode: str, tmp_path: Path) -> None:
    image = photo(4).convert(mode)
    pixels = central_crop(tmp_path, image, 16, 20)
    rgb = image.convert("RGB")
    expected = central_crop(tmp_path, rgb, 16, 20, "PNG")
    assert pixels.shape == (3, 16, 16)
    change = pixels.int() - expected.int()
    apart = change.abs().float()
    assert apart.mean() < 4
    if mode == "L":
        assert torch.equal(pixels[0], pixels[2])


@only_imagenet
@pytest.mark.parametrize("how", ["cut short", "empty", "not an image", "gone"])
@pytest.mark.parametrize("bad", ["train/n02/n02_13.JPEG", "val/n03/n03_05.JPEG"])
def test_an_image_that_cannot_be_used_is_named(
    miniature: Miniature, bad: str, how: str
) -> None:
    samples = miniature.load()
    path = miniature.data / bad
    raw = path.read_bytes()
    if how == "gone":
        path.unlink()
        words = rf"{bad} cannot be read \(No such file or directory\); put it back"
    else:
        broken = {
            "cut short": raw[: len(raw) // 2],
            "empty": b"",
            "not an image": b"<html>" * 50,
        }
        path.write_bytes(broken[how])
        words = rf"{bad} is no image that can be decoded \(.+\); put an undamaged copy in its place"
        with pytest.raises(DataError, match=words):
            miniature.task.prepare(miniature.data)
    if "train" in bad:
        every = torch.arange(TRAIN)
        read = samples.training_batches([every], 1, 0, 0)
    else:
        read = samples.evaluation_batches(torch.arange(TEST))
    with pytest.raises(DataError, match=words):
        list(read)


def rename_val(data: Path) -> None:
    val = data / "val"
    val.rename(data / "validation")


def add_an_empty_class(data: Path) -> None:
    folder = data / "train" / "n04"
    folder.mkdir()


def move_a_class_out(data: Path) -> None:
    folder = data / "val" / "n03"
    folder.rename(data / "n03")


def remove_an_image(data: Path) -> None:
    image = data / "train" / "n02" / "n02_01.JPEG"
    image.unlink()


def rename_a_class(data: Path) -> None:
    folder = data / "val" / "n03"
    folder.rename(data / "val" / "n09")


BAD_TREES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no val": (rename_val, "val is not a folder; ILSVRC-2012 may not be fetched"),
    "an empty class too many": (
        add_an_empty_class,
        "Found no valid file for the classes n04",
    ),
    "a class too few": (move_a_class_out, "2 class folders where 3 are expected"),
    "an image missing": (
        remove_an_image,
        "holds 23 images where 24 are expected (the fewest, 7 of n02)",
    ),
    "other classes": (rename_a_class, "class n03 is in only one of"),
}


@only_imagenet
@pytest.mark.parametrize("bad", BAD_TREES)
def test_an_incomplete_tree_is_refused_in_one_sentence(
    miniature: Miniature, bad: str
) -> None:
    change, words = BAD_TREES[bad]
    change(miniature.data)
    with pytest.raises(DataError) as of_preparing:
        miniature.task.prepare(miniature.data)
    with pytest.raises(DataError) as of_loading:
        miniature.load()
    for error in (of_preparing, of_loading):
        said = str(error.value)
        assert words in said
        assert "\n" not in said
