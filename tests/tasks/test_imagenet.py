"""ImageNet: index, decoding, augmentation in order, exact counts and bad data; miniature trees of real JPEGs."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from harness.spec import TaskSpec
from harness.tasks import DataError, imagenet
from harness.tasks.augment import Draws
from harness.tasks.image_files import decoded, image_index, num_readers, own_cores, random_crop, read_images
from harness.tasks.imagenet import MEAN, STANDARD_DEVIATION, ImageNet, ImageNetSamples
from harness.tasks.task import find_task
from harness.train.order import worker_batches
from tests.tasks.miniatures import CLASSES, imagenet_tree, jpeg, photo, same

CPU = torch.device("cpu")
TRAIN, TEST = 24, 12
MINIATURE = ImageNet(num_train=TRAIN, num_test=TEST, num_classes=3, side=16, resize=20)
SPEC = TaskSpec(name="imagenet")


def tree(root: Path) -> Path:
    return imagenet_tree(root, TRAIN, TEST)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tree(tmp_path / "data")


def batches(samples: ImageNetSamples, steps: range, seed: int = 1, rank: int = 0) -> list[tuple[Tensor, Tensor]]:
    indices = worker_batches(seed, TRAIN, rank, 2, 4, steps)
    return list(samples.training_batches(indices, seed, rank, steps.start))


def test_the_task_is_known_without_data() -> None:
    found = find_task("imagenet")
    assert (found.num_train, found.num_test, found.num_classes) == (1_281_167, 50_000, 1_000)
    assert found.input_shape == (3, 224, 224)


def test_labels_follow_sorted_class_folders_and_order_sorted_names(data: Path) -> None:
    odd = data / "train" / "n01" / "zoë (1).jpg"
    odd.write_bytes(jpeg(photo(5)))
    assert image_index(data / "train").path(8) == str(odd)
    odd.unlink()
    index = image_index(data / "train")
    assert index.classes == CLASSES and len(index) == TRAIN
    assert [index.path(number) for number in range(TRAIN)] == sorted(map(str, (data / "train").rglob("*.JPEG")))
    samples = MINIATURE.load(data, SPEC, CPU)
    assert samples.train_labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    expected = worker_batches(1, TRAIN, 0, 2, 4, range(3))
    for (inputs, labels), index_of_step in zip(batches(samples, range(3)), expected, strict=True):
        assert labels.tolist() == (index_of_step // 8).tolist()
        assert inputs.shape == (4, 3, 16, 16) and inputs.dtype == torch.float32 and inputs.is_contiguous()
        pixels = inputs * torch.tensor(STANDARD_DEVIATION)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        assert pixels.min() > -1e-5 and pixels.max() < 1 + 1e-5


def test_augmentation_depends_on_seed_rank_and_step_alone(data: Path) -> None:
    samples = MINIATURE.load(data, SPEC, CPU)
    torch.manual_seed(1)
    whole = batches(samples, range(6))
    torch.manual_seed(2)
    again = MINIATURE.load(data, SPEC, CPU)
    assert same(whole[4:], batches(again, range(4, 6)))
    assert not same(whole, batches(samples, range(6), seed=2)) and not same(whole, batches(samples, range(6), rank=1))
    with ThreadPoolExecutor(3) as pool:
        ranks = list(pool.map(lambda rank: batches(samples, range(4), rank=rank), range(3)))
    assert all(same(ranks[rank], batches(samples, range(4), rank=rank)) for rank in range(3))


@pytest.mark.parametrize("workers", [1, 3])
def test_every_test_image_is_scored_once(data: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.tasks.imagenet.EVALUATION_BATCH", 2)
    samples = MINIATURE.load(data, SPEC, CPU)
    read_paths: list[str] = []

    def reading(paths: list[str], *arguments: Any) -> imagenet.Read:
        read_paths.extend(paths)
        return read_images(paths, *arguments)

    monkeypatch.setattr(imagenet, "read_images", reading)
    labels = torch.full((TEST,), -1)
    for rank in range(workers):
        mine = torch.arange(rank, TEST, workers)
        labels[mine] = torch.cat([labels for _, labels in samples.evaluation_batches(mine)])
    assert sorted(read_paths) == sorted(map(str, (data / "val").rglob("*.JPEG")))
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert list(samples.evaluation_batches(torch.arange(0))) == []


def test_reading_stops_with_the_consumer(data: Path) -> None:
    samples = MINIATURE.load(data, SPEC, CPU)
    asked = 0

    def endless() -> Iterator[Tensor]:
        nonlocal asked
        while True:
            asked += 1
            yield torch.tensor([0, 1])

    for _, _ in zip(range(3), samples.training_batches(endless(), 1, 0, 0), strict=False):
        pass
    assert 3 <= asked <= 4 + num_readers(own_cores())


def test_held_out_images_are_scored_and_not_trained_on(data: Path) -> None:
    samples = MINIATURE.load(data, TaskSpec(name="imagenet", held_out=5), CPU)
    assert len(samples.train_labels) == TRAIN - 5
    trained, scored = (set(part.paths(torch.arange(len(part)))) for part in (samples.train, samples.evaluated))
    assert len(scored) == 5 and not trained & scored and len(trained | scored) == TRAIN
    ((inputs, _),) = samples.evaluation_batches(torch.arange(5))
    ((again, _),) = samples.evaluation_batches(torch.arange(5))
    assert torch.equal(inputs, again)


def central_crop(folder: Path, image: Image.Image, side: int, resize: int, kind: str = "JPEG") -> Tensor:
    (folder / "image").write_bytes(jpeg(image, kind))
    (pixels,), failures = read_images([str(folder / "image")], side, resize)
    assert not failures
    return pixels


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (300, 300), (233, 601)])
def test_central_crops_are_torchvisions_on_pil(size: tuple[int, int], tmp_path: Path) -> None:
    image = photo(1, *size)
    crop = central_crop(tmp_path, image, 224, 256)
    resized = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    expected = resized(Image.open(io.BytesIO(jpeg(image))))
    assert (crop.int() - torch.from_numpy(np.array(expected)).permute(2, 0, 1).int()).abs().max() <= 1


def test_a_training_crop_is_pils_and_mirrored_where_drawn() -> None:
    raw = jpeg(photo(2, 500, 375))
    draws = Draws(
        attempts=torch.tensor([[[0.5, 0.5]]] * 2, dtype=torch.float64),  # 54 % of the area, square
        places=torch.tensor([[0.0, 1.0 - 1e-9]] * 2, dtype=torch.float64),  # at the top right
        flips=torch.tensor([False, True]),
        orders=torch.zeros(2, 3), factors=torch.zeros(2, 3), lighting=torch.zeros(2, 3),
    )  # fmt: skip
    cropped = Image.open(io.BytesIO(raw)).crop((182, 0, 500, 318)).resize((224, 224), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(cropped)).permute(2, 0, 1).int()
    assert (random_crop(decoded(raw), 224, draws, 0).int() - expected).abs().max() <= 1
    assert (random_crop(decoded(raw), 224, draws, 1).int() - expected.flip(-1)).abs().max() <= 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_become_rgb(mode: str, tmp_path: Path) -> None:
    image = photo(4).convert(mode)
    pixels = central_crop(tmp_path, image, 16, 20)
    expected = central_crop(tmp_path, image.convert("RGB"), 16, 20, "PNG")
    assert pixels.shape == (3, 16, 16) and (pixels.int() - expected.int()).abs().float().mean() < 4
    assert mode != "L" or torch.equal(pixels[0], pixels[2])


def damage(path: Path, how: str) -> None:
    raw = path.read_bytes()
    path.write_bytes({"cut short": raw[: len(raw) // 2], "empty": b"", "not an image": b"<html>" * 50}[how])


@pytest.mark.parametrize("how", ["cut short", "empty", "not an image"])
def test_an_undecodable_image_is_named(data: Path, how: str) -> None:
    bad = data / "train" / "n02" / "n02_13.JPEG"
    damage(bad, how)
    samples = MINIATURE.load(data, SPEC, CPU)
    with pytest.raises(
        DataError, match=r"n02/n02_13.JPEG is no image that can be decoded \(.+\); put an undamaged copy"
    ):
        list(samples.training_batches([torch.arange(TRAIN)], 1, 0, 0))
    with pytest.raises(DataError, match=r"n02_13.JPEG"):
        MINIATURE.prepare(data)


def test_a_stated_number_of_undecodable_images_is_replaced_and_counted(data: Path) -> None:
    for name in ("n01_21", "n02_01", "n03_23"):  # the last of a class, the one after it, and the very last
        damage(data / "train" / name[:3] / f"{name}.JPEG", "cut short")
    samples = replace(MINIATURE, max_undecodable=3).load(data, SPEC, CPU)
    ((inputs, labels),) = samples.training_batches([torch.tensor([7, 9, 23, 0])], 1, 0, 0)
    assert labels.tolist() == [1, 1, 0, 0]
    assert {Path(path).name for path in samples.undecodable} == {"n01_21.JPEG", "n02_01.JPEG", "n03_23.JPEG"}
    again = replace(MINIATURE, max_undecodable=3).load(data, SPEC, CPU)
    ((same_draws, _),) = again.training_batches([torch.tensor([9, 9, 0, 0])], 1, 0, 0)
    assert torch.equal(inputs, same_draws)  # each under the draws of the position that it fills
    assert not again.undecodable
    with pytest.raises(DataError, match="no image that can be decoded"):
        few = replace(MINIATURE, max_undecodable=2).load(data, SPEC, CPU)
        list(few.training_batches([torch.arange(TRAIN)], 1, 0, 0))


def test_an_undecodable_test_image_is_always_an_error(data: Path) -> None:
    damage(data / "val" / "n03" / "n03_05.JPEG", "cut short")
    samples = replace(MINIATURE, max_undecodable=9).load(data, SPEC, CPU)
    with pytest.raises(DataError, match=r"val/n03/n03_05.JPEG is no image"):
        list(samples.evaluation_batches(torch.arange(TEST)))


def test_a_file_that_vanished_is_no_undecodable_image(data: Path) -> None:
    samples = replace(MINIATURE, max_undecodable=9).load(data, SPEC, CPU)
    (data / "train" / "n01" / "n01_03.JPEG").unlink()
    with pytest.raises(DataError, match=r"n01_03.JPEG cannot be read \(No such file or directory\)"):
        list(samples.training_batches([torch.arange(TRAIN)], 1, 0, 0))


def flatten(split: Path) -> None:
    for path in list(split.rglob("*.JPEG")):
        path.rename(split / path.name)
    for folder in split.iterdir():
        if folder.is_dir():
            (folder / "notes.txt").unlink(missing_ok=True)
            folder.rmdir()


BAD_TREES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no val": (lambda p: (p / "val").rename(p / "validation"), "val is not a folder; ILSVRC-2012 may not be fetched"),
    "flat val": (lambda p: flatten(p / "val"), "Couldn't find any class folder in"),
    "a class too many": (lambda p: (p / "train" / "n04").mkdir(), "Found no valid file for the classes n04"),
    "an image missing": (
        lambda p: (p / "train" / "n02" / "n02_01.JPEG").unlink(),
        "holds 23 images where 24 are expected (the fewest, 7 of n02)",
    ),
    "other classes": (lambda p: (p / "val" / "n03").rename(p / "val" / "n09"), "class n03 is in only one of"),
}


@pytest.mark.parametrize("bad", BAD_TREES)
def test_an_incomplete_tree_is_refused_in_one_sentence(data: Path, bad: str) -> None:
    change, words = BAD_TREES[bad]
    change(data)
    for use in (MINIATURE.prepare, lambda data: MINIATURE.load(data, SPEC, CPU)):
        with pytest.raises(DataError) as error:
            use(data)
        assert words in str(error.value) and "\n" not in str(error.value)


def test_without_data_the_message_says_where_it_goes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"xdg/cser-bench/imagenet/train is not a folder; .* DATA=FOLDER"):
        MINIATURE.prepare(None)
    tree(tmp_path / "xdg" / "cser-bench" / "imagenet")
    MINIATURE.prepare(None)


@pytest.mark.parametrize(
    ("machine", "usable", "ranks", "per_task", "cores"),
    [
        (64, 64, 8, None, 8),  # torchrun, 8 ranks on a machine of 64 cores
        (64, 8, 8, "8", 8),  # Slurm, 1 x 8: each task is bound to its 8
        (32, 8, 4, "8", 8),  # 2 x 4
        (96, 6, 4, "6", 6),  # a part of a machine, each task bound
        (32, 32, 4, "8", 8),  # Slurm binds no task
        (96, 64, 8, "8", 8),  # the job has a part of the machine, and no task is bound
        (96, 16, 4, "4", 4),  # the same where the job's part is less than a task's share would be
        (96, 96, 8, None, 12),
        (4, 4, 8, None, 1),  # more ranks than cores
        (8, 8, 1, None, 8),
    ],
)
def test_a_local_ranks_cores_are_divided_once(
    machine: int, usable: int, ranks: int, per_task: str | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", per_task or "")
    assert own_cores() == cores
    assert num_readers(cores) == min(8, cores)


def test_reading_rates_as_a_plan_reckons_them_and_as_they_are(data: Path) -> None:
    full = ImageNet()
    assert full.expected_reading_rate(4) == (pytest.approx(4 / 1.2e-3), 4)
    assert full.expected_reading_rate(20)[1] == 8
    rate, readers = MINIATURE.measured_reading_rate(data, 0.2)
    assert rate > 0 and readers == num_readers(own_cores())
    assert MINIATURE.measured_opening_rate(data, 0.2) > 0
    for measure in (MINIATURE.measured_reading_rate, MINIATURE.measured_opening_rate):
        with pytest.raises(DataError, match="is not a folder"):
            measure(data / "nowhere", 0.2)
    for path in data.rglob("*.JPEG"):
        os.replace(path, path.with_suffix(".gone"))
    with pytest.raises(DataError, match="Found no valid file"):
        MINIATURE.measured_opening_rate(data, 0.2)
