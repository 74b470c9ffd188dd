"""CIFAR-100: data that cannot be used, and batches; small made-up releases, read and verified by torchvision."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.spec import TaskSpec
from harness.tasks import DataError
from harness.tasks.cifar100 import CIFAR100, MEAN, STANDARD_DEVIATION, CIFAR100Samples
from harness.tasks.task import find_task
from tests.tasks.miniatures import MiniatureCIFAR100, same, write

TRAIN, TEST = 60, 10
MINIATURE = MiniatureCIFAR100(TRAIN, TEST, num_classes=5)
CPU = torch.device("cpu")
IMAGES, LABELS = MINIATURE.images, MINIATURE.labels


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CIFAR100:
    """A task whose cache is empty and which has no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(MINIATURE.release, "url", "http://127.0.0.1:1/release.tar.gz")
    return MINIATURE.task


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "data" / "cifar-100-python", MINIATURE.pickled)
    return tmp_path / "data"


def test_the_task_is_known_without_data() -> None:
    found = find_task("cifar100")
    assert (found.num_train, found.num_test, found.num_classes, found.input_shape) == (50_000, 10_000, 100, (3, 32, 32))


def cut(folder: Path, name: str, keep: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])


BAD: dict[str, Callable[[Path], object]] = {
    "empty folder": lambda p: p.mkdir(),
    "no folder": lambda p: None,
    "test missing": lambda p: (write(p / "cifar-100-python", MINIATURE.pickled) / "test").unlink(),
    "cut short": lambda p: cut(write(p / "cifar-100-python", MINIATURE.pickled), "train", 9000),
    "no archive": lambda p: write(p, {"cifar-100-python.tar.gz": b"<html>"}),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_data_is_refused_in_one_sentence(bad: str, task: CIFAR100, tmp_path: Path) -> None:
    BAD[bad](tmp_path / "data")
    for use in (task.prepare, lambda data: task.load(data, TaskSpec(name="cifar100"), CPU)):
        with pytest.raises(DataError, match=r"holds no undamaged release.*; put the folder .* DATA=FOLDER") as error:
            use(tmp_path / "data")
        assert str(tmp_path / "data") in str(error.value) and "\n" not in str(error.value)


def test_it_is_fetched_into_the_cache_once_and_an_archive_of_ones_own_is_extracted(
    task: CIFAR100, tmp_path: Path, serve: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"put the folder cifar-100-python/ or cifar-100-python.tar.gz"):
        task.prepare(None)
    monkeypatch.setattr(MINIATURE.release, "url", serve() + "release.tgz")
    mirror = write(tmp_path / "mirror", {"release.tgz": MINIATURE.archive})
    task.prepare(None)
    (mirror / "release.tgz").write_bytes(b"gone")
    assert task.load(None, TaskSpec(name="cifar100"), CPU).train_labels.tolist() == LABELS["train"].tolist()
    own = write(tmp_path / "own", {"cifar-100-python.tar.gz": MINIATURE.archive})
    assert task.load(own, TaskSpec(name="cifar100"), CPU).evaluation_labels.tolist() == LABELS["test"].tolist()


def batches(samples: CIFAR100Samples, seed: int, rank: int, steps: range) -> list[tuple[Tensor, Tensor]]:
    indices = (torch.arange(step, step + 4) for step in steps)
    return list(samples.training_batches(indices, seed, rank, steps.start))


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


def bytes_of(inputs: Tensor) -> Tensor:
    return (inputs * torch.tensor(STANDARD_DEVIATION)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255


def test_batches_are_float_normalised_and_labelled(task: CIFAR100, data: Path) -> None:
    samples = task.load(data, TaskSpec(name="cifar100"), CPU)
    ((inputs, labels),) = batches(samples, 1, 0, range(1))
    assert inputs.dtype == torch.float32 and inputs.shape == (4, 3, 32, 32) and inputs.is_contiguous()
    assert labels.tolist() == LABELS["train"][:4].tolist() == samples.train_labels[:4].tolist()
    assert torch.allclose(bytes_of(inputs), bytes_of(inputs).round(), atol=1e-3)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_test_image_is_scored_once_and_unaugmented(task: CIFAR100, data: Path, workers: int) -> None:
    samples = task.load(data, TaskSpec(name="cifar100"), CPU)
    seen = torch.full((TEST,), -1)
    for rank in range(workers):
        mine = torch.arange(rank, TEST, workers)
        ((inputs, seen[mine]),) = samples.evaluation_batches(mine)
        expected = torch.from_numpy(IMAGES["test"][mine.numpy()]).view(-1, 3, 32, 32)
        assert torch.allclose(bytes_of(inputs), expected.float(), atol=1e-3)
    assert seen.tolist() == LABELS["test"].tolist()
    assert list(samples.evaluation_batches(torch.arange(0))) == []


def test_held_out_samples_are_scored_and_not_trained_on(task: CIFAR100, data: Path) -> None:
    samples = task.load(data, TaskSpec(name="cifar100", held_out=12), CPU)
    assert (len(samples.padded), len(samples.train_labels), len(samples.evaluation_labels)) == (48, 48, 12)
    kept = {image.numpy().tobytes() for image in samples.padded[:, :, 4:36, 4:36]}
    held_out = {image.numpy().tobytes() for image in samples.evaluation_images}
    assert kept | held_out == {image.tobytes() for image in IMAGES["train"]} and not kept & held_out
