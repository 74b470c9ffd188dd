"""Bad data under the commands: one sentence that says which file and what to do, and no run is started for nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.records.store import Failure, read_record, read_run
from harness.tasks import imagenet
from harness.tasks.imagenet import ImageNet
from harness.workers.attempt import attempt_stacked
from tests.harness.support import Table, changed, job_for, small_config, small_spec, write_spec
from tests.tasks.miniatures import MiniatureCIFAR100, imagenet_tree, write

CIFAR = MiniatureCIFAR100(25, 15, num_classes=5)

BAD: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    # name: (task, what is done with an empty folder, what the sentence must contain)
    "missing archive": ("cifar100", lambda folder: None, ["holds no undamaged release", "cifar-100-python.tar.gz"]),
    "partial archive": (
        "cifar100",
        lambda folder: write(folder, {"cifar-100-python.tar.gz": CIFAR.archive[:9_000]}),
        ["holds no undamaged release", "put the folder cifar-100-python/"],
    ),
    "wrong checksum": (
        "cifar100",
        lambda folder: write(folder / "cifar-100-python", CIFAR.pickled),
        ["holds no undamaged release", "put the folder cifar-100-python/"],
    ),
    "no folder of images": ("imagenet", lambda folder: None, ["train is not a folder", "DATA=FOLDER"]),
    "too few classes": (
        "imagenet",
        lambda folder: imagenet_tree(folder, 9, 9),
        ["train holds 3 class folders where 1,000 are expected", "extract"],
    ),
    "no files": ("fashion_mnist", lambda folder: None, ["train-images-idx3-ubyte.gz is missing", "DATA=FOLDER"]),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_run_is_refused_in_one_sentence_before_it_starts(
    bad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    task, make, words = BAD[bad]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    spec = changed(changed(small_spec(), "tuning"), "task.name", task)
    options = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    path = str(write_spec(tmp_path, spec))
    assert main(["run", path, *options]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert not [each for each in words if each not in output.err], output.err
    assert str(tmp_path / "data") in output.err
    assert [each.name for each in (tmp_path / "results" / "small").iterdir()] == ["experiment.json"]
    # A preflight says so too.
    assert main(["preflight", path, *options]) == 1
    assert any(line.startswith("FAIL") and words[0] in line for line in capsys.readouterr().out.splitlines())


CONFIG: Table = {"batch_size": 4, "evaluation": {"per_epoch": 1}}


@pytest.mark.parametrize("allowed", [0, 1])
def test_so_many_undecodable_images_as_the_spec_allows_are_named_and_one_more_stops_the_run(
    allowed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A miniature ImageNet, known to the harness, with an image for training that is cut short."""
    data = imagenet_tree(tmp_path / "data", 24, 12)
    monkeypatch.setattr(imagenet, "TASK", ImageNet(24, 12, num_classes=3, side=16, resize=20))
    task: Table = {"name": "imagenet", "max_undecodable": allowed}
    config = small_config(**CONFIG, task=task)

    def damaged(path: str, results: str) -> str:
        """What a run says once this image is cut short, too; nothing where it has a result."""
        (data / path).write_bytes((data / path).read_bytes()[:200])
        job = job_for(config, tmp_path / results, data=data)
        if attempt_stacked(job):
            return ""
        failure = read_record(job.folder / "failure.json", Failure)
        assert failure.kind == "data" and read_run(job.folder).result is None
        return failure.message

    words = f"{data}/train/n02/n02_13.JPEG is no image that can be decoded"
    said = damaged("train/n02/n02_13.JPEG", "one")
    assert said == "" if allowed else said.startswith(words)
    assert capsys.readouterr().out.count(words) == 1 or not allowed
    spec = changed(changed(small_spec(), "training.batch_size", 4), "training.num_epochs", 4)
    path, options = write_spec(tmp_path, changed(spec, "task", task)), ["--data", str(data), "--results", str(tmp_path)]
    assert main(["preflight", str(path), *options]) == (0 if allowed else 1)
    assert (words in capsys.readouterr().out) == (not allowed)
    if allowed:
        assert "no image that can be decoded" in damaged("train/n01/n01_03.JPEG", "two")
