"""Bad data under the commands: one sentence that says which file and what to do, and no run is started for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.records.store import Failure, read_record, read_run
from harness.tasks import imagenet
from harness.tasks.imagenet import ImageNet
from harness.workers.attempt import attempt_stacked
from tests.harness.support import CommandLine, changed, job_for, small_config, small_spec, write_spec
from tests.tasks.miniatures import imagenet_tree

BAD = {
    "cifar100": ["holds no undamaged release", "cifar-100-python.tar.gz"],
    "imagenet": ["train is not a folder", "DATA=FOLDER"],
    "fashion_mnist": ["train-images-idx3-ubyte.gz is missing", "DATA=FOLDER"],
}
"""What the sentence must contain where the folder is empty; other damage is the tasks' own affair."""


@pytest.mark.parametrize("task", BAD)
def test_a_run_is_refused_in_one_sentence_before_it_starts(
    task: str, tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    words = BAD[task]
    (tmp_path / "data").mkdir()
    spec = changed(changed(small_spec(), "tuning"), "task.name", task)
    options = ["--data", tmp_path / "data", "--results", tmp_path / "results"]
    path = str(write_spec(tmp_path, spec))
    said = cli.refused("run", path, *options, code=1)
    assert not [each for each in (*words, str(tmp_path / "data")) if each not in said], said
    assert [each.name for each in (tmp_path / "results" / "small").iterdir()] == ["experiment.json"]
    # A preflight says so too.
    lines = cli.out("preflight", path, *options, code=1).splitlines()
    assert any(line.startswith("FAIL") and words[0] in line for line in lines)


def test_a_damaged_image_stops_a_run_and_a_preflight_and_is_named(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
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
    assert words in cli.out("preflight", path, "--data", data, "--results", tmp_path, code=1)
