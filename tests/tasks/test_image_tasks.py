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
        return self.task.load(self.data, TaskSpec(name=self.name, **spec), CPU)

    def bytes_of(self, inputs: Tensor) -> Tensor:
        return (
            inputs * self.scale[1][:, None, None] + self.scale[0][:, None, None]
        ) * 255


@pytest.fixture(params=["cifar100", "imagenet"])
def miniature(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Miniature:
    """Their caches are empty, and there is no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(RELEASE.release, "url", "http://127.0.0.1:1/release.tar.gz")
    module = {"cifar100": cifar100, "imagenet": imagenet}[request.param]
    scale = torch.tensor(module.MEAN), torch.tensor(module.STANDARD_DEVIATION)  # type: ignore[attr-defined]
    data = tmp_path / "data"
    if request.param == "cifar100":
        write(data / "cifar-100-python", RELEASE.pickled)
        return Miniature(request.param, RELEASE.task, data, scale)
    return Miniature(request.param, IMAGENET, imagenet_tree(data, TRAIN, TEST), scale)


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
    assert same(whole[4:], batches(miniature.load(), range(4, 6)))
    assert not same(whole, batches(samples, range(6), seed=2))
    assert not same(whole, batches(samples, range(6), rank=1))
    with ThreadPoolExecutor(3) as pool:
        ranks = list(
            pool.map(lambda rank: batches(samples, range(4), rank=rank), range(3))
        )
    assert all(
        same(ranks[rank], batches(samples, range(4), rank=rank)) for rank in range(3)
    )
    for (inputs, labels), index in zip(
        whole, worker_batches(1, TRAIN, 0, 2, 4, range(6)), strict=True
    ):
        assert labels.tolist() == samples.train_labels[index].tolist()
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
        inputs[mine], labels[mine] = (
            torch.cat(each)
            for each in zip(*samples.evaluation_batches(mine), strict=True)
        )
    if miniature.name == "cifar100":
        expected = torch.from_numpy(RELEASE.images["test"]).view(-1, 3, 32, 32)
        assert labels.tolist() == RELEASE.labels["test"].tolist()
    else:
        expected = read_images(
            sorted(map(str, (miniature.data / "val").rglob("*.JPEG"))), 16, 20
        )
        assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.allclose(miniature.bytes_of(inputs), expected.float(), atol=1e-3)
    assert list(samples.evaluation_batches(torch.arange(0))) == []


def test_held_out_images_are_scored_and_not_trained_on(miniature: Miniature) -> None:
    samples = miniature.load(held_out=5)
    assert len(samples.train_labels) == TRAIN - 5
    if miniature.name == "cifar100":
        trained = {
            image.numpy().tobytes() for image in samples.padded[:, :, 4:36, 4:36]
        }
        scored = {image.numpy().tobytes() for image in samples.evaluation_images}
    else:
        trained = set(samples.train.paths)
        scored = set(samples.evaluated.paths)
    assert len(scored) == 5
    assert not trained & scored
    assert len(trained | scored) == TRAIN
    assert (
        sum(len(labels) for _, labels in samples.evaluation_batches(torch.arange(5)))
        == 5
    )


# CIFAR-100


BAD_RELEASES: dict[str, Callable[[Path], object]] = {
    "no folder": lambda p: None,
    "cut short": lambda p: write(
        p / "cifar-100-python",
        RELEASE.pickled | {"train": RELEASE.pickled["train"][:9000]},
    ),
    "no archive": lambda p: write(p, {"cifar-100-python.tar.gz": b"<html>"}),
}


@only_cifar100
@pytest.mark.parametrize("bad", BAD_RELEASES)
def test_a_bad_release_is_refused_in_one_sentence(
    bad: str, miniature: Miniature, tmp_path: Path
) -> None:
    BAD_RELEASES[bad](tmp_path / "bad")
    with pytest.raises(
        DataError, match=r"holds no undamaged release.*; put the folder .* DATA=FOLDER"
    ) as error:
        miniature.task.prepare(tmp_path / "bad")
    assert str(tmp_path / "bad") in str(error.value)
    assert "\n" not in str(error.value)


@only_cifar100
def test_it_is_fetched_into_the_cache_once_and_an_archive_of_ones_own_is_extracted(
    miniature: Miniature,
    tmp_path: Path,
    serve: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = TaskSpec(name="cifar100")
    with pytest.raises(
        DataError, match=r"put the folder cifar-100-python/ or cifar-100-python.tar.gz"
    ):
        miniature.task.prepare(None)
    monkeypatch.setattr(RELEASE.release, "url", serve() + "release.tgz")
    mirror = write(tmp_path / "mirror", {"release.tgz": RELEASE.archive})
    miniature.task.prepare(None)
    (mirror / "release.tgz").write_bytes(b"gone")
    assert (
        miniature.task.load(None, spec, CPU).train_labels.tolist()
        == RELEASE.labels["train"].tolist()
    )
    own = write(tmp_path / "own", {"cifar-100-python.tar.gz": RELEASE.archive})
    assert (
        miniature.task.load(own, spec, CPU).evaluation_labels.tolist()
        == RELEASE.labels["test"].tolist()
    )


# ImageNet


@only_imagenet
def test_labels_follow_sorted_class_folders_and_order_sorted_names(
    miniature: Miniature,
) -> None:
    folder = miniature.data / "train"
    (folder / "n01" / "n01_21.JPEG").rename(folder / "n01" / "zoë (1).jpg")
    samples = miniature.load()
    assert samples.train_labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert samples.train.paths == sorted(
        map(str, [*folder.rglob("*.JPEG"), *folder.rglob("*.jpg")])
    )


def central_crop(
    folder: Path, image: Image.Image, side: int, resize: int, kind: str = "JPEG"
) -> Tensor:
    (folder / "image").write_bytes(jpeg(image, kind))
    (pixels,) = read_images([str(folder / "image")], side, resize)
    return pixels


@pytest.mark.parametrize("size", [(500, 375), (300, 300), (233, 601)])
def test_central_crops_are_torchvisions_on_pil(
    size: tuple[int, int], tmp_path: Path
) -> None:
    image = photo(1, *size)
    crop = central_crop(tmp_path, image, 224, 256)
    resized = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    expected = resized(Image.open(io.BytesIO(jpeg(image))))
    assert (
        crop.int() - torch.from_numpy(np.array(expected)).permute(2, 0, 1).int()
    ).abs().max() <= 1


def test_a_training_crop_is_pils_and_mirrored_where_drawn() -> None:
    raw = jpeg(photo(2, 500, 375))
    draws = Draws(
        # 54 % of the area, square
        attempts=torch.tensor([[[0.5, 0.5]]] * 2, dtype=torch.float64),
        # At the top right
        places=torch.tensor([[0.0, 1.0 - 1e-9]] * 2, dtype=torch.float64),
        flips=torch.tensor([False, True]),
        orders=torch.zeros(2, 3), factors=torch.zeros(2, 3), lighting=torch.zeros(2, 3),
    )  # fmt: skip
    cropped = (
        Image.open(io.BytesIO(raw))
        .crop((182, 0, 500, 318))
        .resize((224, 224), Image.Resampling.BILINEAR)
    )
    expected = torch.from_numpy(np.array(cropped)).permute(2, 0, 1).int()
    assert (random_crop(decoded(raw), 224, draws, 0).int() - expected).abs().max() <= 1
    assert (
        random_crop(decoded(raw), 224, draws, 1).int() - expected.flip(-1)
    ).abs().max() <= 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_become_rgb(mode: str, tmp_path: Path) -> None:
    image = photo(4).convert(mode)
    pixels = central_crop(tmp_path, image, 16, 20)
    expected = central_crop(tmp_path, image.convert("RGB"), 16, 20, "PNG")
    assert pixels.shape == (3, 16, 16)
    assert (pixels.int() - expected.int()).abs().float().mean() < 4
    assert mode != "L" or torch.equal(pixels[0], pixels[2])


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
        path.write_bytes(
            {
                "cut short": raw[: len(raw) // 2],
                "empty": b"",
                "not an image": b"<html>" * 50,
            }[how]
        )
        words = rf"{bad} is no image that can be decoded \(.+\); put an undamaged copy in its place"
        with pytest.raises(DataError, match=words):
            miniature.task.prepare(miniature.data)
    every = torch.arange(TRAIN if "train" in bad else TEST)
    with pytest.raises(DataError, match=words):
        list(
            samples.training_batches([every], 1, 0, 0)
            if "train" in bad
            else samples.evaluation_batches(every)
        )


BAD_TREES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no val": (
        lambda p: (p / "val").rename(p / "validation"),
        "val is not a folder; ILSVRC-2012 may not be fetched",
    ),
    "an empty class too many": (
        lambda p: (p / "train" / "n04").mkdir(),
        "Found no valid file for the classes n04",
    ),
    "a class too few": (
        lambda p: (p / "val" / "n03").rename(p / "n03"),
        "2 class folders where 3 are expected",
    ),
    "an image missing": (
        lambda p: (p / "train" / "n02" / "n02_01.JPEG").unlink(),
        "holds 23 images where 24 are expected (the fewest, 7 of n02)",
    ),
    "other classes": (
        lambda p: (p / "val" / "n03").rename(p / "val" / "n09"),
        "class n03 is in only one of",
    ),
}


@only_imagenet
@pytest.mark.parametrize("bad", BAD_TREES)
def test_an_incomplete_tree_is_refused_in_one_sentence(
    miniature: Miniature, bad: str
) -> None:
    change, words = BAD_TREES[bad]
    change(miniature.data)
    for use in (lambda: miniature.task.prepare(miniature.data), miniature.load):
        with pytest.raises(DataError) as error:
            use()
        assert words in str(error.value)
        assert "\n" not in str(error.value)
