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
from tests.harness.support import changed, job_for, small_config, small_spec, write_spec
from tests.tasks.miniatures import MiniatureCIFAR100, imagenet_tree, write

CIFAR = MiniatureCIFAR100(25, 15, num_classes=5)

BAD: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    # name: (task, what is done with an empty folder, what the sentence must contain)
    "missing archive": ("cifar100", lambda folder: None, ["holds no undamaged release", "cifar-100-python.tar.gz"]),
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


def test_a_damaged_image_stops_a_run_and_a_preflight_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A miniature ImageNet, known to the harness, with an image for training that is cut short."""
    data = imagenet_tree(tmp_path / "data", 24, 12)
    monkeypatch.setattr(imagenet, "TASK", ImageNet(24, 12, num_classes=3, side=16, resize=20))
    damaged = data / "train/n02/n02_13.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:200])
    words = f"{damaged} is no image that can be decoded"
    config = small_config(batch_size=4, evaluation={"per_epoch": 1}, task={"name": "imagenet"})
    job = job_for(config, tmp_path / "results", data=data)
    assert not attempt_stacked(job)
    failure = read_record(job.folder / "failure.json", Failure)
    assert failure.kind == "data" and failure.message.startswith(words) and read_run(job.folder).result is None
    spec = changed(changed(small_spec(), "training.batch_size", 4), "training.num_epochs", 4)
    path = str(write_spec(tmp_path, changed(spec, "task.name", "imagenet")))
    assert main(["preflight", path, "--data", str(data), "--results", str(tmp_path)]) == 1
    assert words in capsys.readouterr().out
