"""The first stage of the paper's ImageNet experiment through Slurm to its report, in miniature, and on
to the next stage."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest

from cser_bench.harness.places import PACKAGE
from cser_bench.harness.records.store import read_run
from cser_bench.report.build import build
from tests.harness.support import ROOT, digest_anew
from tests.slurm.support import slurm_command, small_profile, write_profile
from tests.tasks.miniatures import imagenet_tree

pytestmark = [
    pytest.mark.usefixtures("slurm_conf"),
    pytest.mark.timeout(600),
    pytest.mark.whole,
]

NUM_TRAIN = 25
NUM_TEST = 15
SMALLER = {
    "harness/experiments/imagenet.toml": {
        'name = "resnet50_v2"': 'name = "resnet50_v2"\noptions = { width = 2 }',
        "num_workers = 8": "num_workers = 2",
        "batch_size = 32": "batch_size = 2",
        "num_epochs = 120": "num_epochs = 3",
        "warmup_epochs = 5": "warmup_epochs = 1",
        # So small a network overflows in fp16 at larger rates.
        "learning_rate = 0.": "learning_rate = 0.0",
        # One run more than the first stage.
        'stage = "second"\nrows = ["sgd", "ef_sgd-32", ': 'stage = "second"\nrows = ["sgd", ',
        '"qsparse-32", "qsparse-256", "cser-32", "cser-256"]\nseeds = [1, 2, 3]': (
            '"cser-32", "cser-256"]\nseeds = [1]'
        ),
    },
    "harness/tasks/imagenet.py": {
        "num_train: int = 1_281_167": f"num_train: int = {NUM_TRAIN}",
        "num_test: int = 50_000": f"num_test: int = {NUM_TEST}",
        "num_classes: int = 1_000": "num_classes: int = 3",
        "side: int = 224": "side: int = 16",
        "resize: int = 256": "resize: int = 20",
    },
    # A few steps are too few for the intervals of the paper.
    "harness/plan/rows.py": {"why = why_too_short(row, footprint)": "why = None"},
}
"""What is written otherwise in the copy of the sources, by file."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources whose experiment is small enough."""
    folder = tmp_path_factory.mktemp("smaller")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=ignored)
    for name, changes in SMALLER.items():
        path = folder / PACKAGE / name
        text = path.read_text()
        for before, after in changes.items():
            assert before in text, before
            text = text.replace(before, after)
        path.write_text(text)
    return folder


def results_of(folder: Path) -> dict[str, int]:
    """When each run's result was written, by its row."""
    files = folder.glob("*/result.json")
    return {read_run(file.parent).run.row: file.stat().st_mtime_ns for file in files}


def accuracies_of(folder: Path) -> list[tuple[str, str]]:
    """The percent of test images that were classified correctly, by the method's label."""
    accuracies = {}
    for file in folder.glob("*/result.json"):
        record = read_run(file.parent)
        assert record.result is not None
        assert record.result.test_correct is not None
        percent = 100 * record.result.test_correct / NUM_TEST
        accuracies[record.run.row] = f"{percent:.2f}"
    labels = {"sgd": "SGD", "ef_sgd-256": "EF-SGD", "cser-256": "CSER"}
    return [(label, accuracies[row]) for row, label in labels.items()]


def as_if_on_gpus(folder: Path) -> None:
    """Let the records say that each worker had a GPU, as hours of other runs are not compared."""
    for path in folder.glob("*/run.json"):
        text = path.read_text()
        assert text.count('"backend": "gloo"') == 1
        assert '"accelerator"' not in text
        path.write_text(
            text.replace(
                '"backend": "gloo"', '"backend": "nccl", "accelerator": "A GPU"'
            )
        )
        digest_anew(path.parent)


def test_the_first_stage_has_its_report_and_the_next_one_goes_on(
    checkout: Path, tmp_path: Path
) -> None:
    data = imagenet_tree(tmp_path / "data", NUM_TRAIN, NUM_TEST)
    profile = write_profile(tmp_path, small_profile())
    words = ["submit", "imagenet", "--results", tmp_path / "results", "--yes", "--wait"]
    words.append("--no-preflight")
    first = [*words, "--stage", "first", "--cluster", profile, "--data", data]
    done = slurm_command(*first, checkout=checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted 3 runs as job " in done.stdout
    folder = tmp_path / "results" / "imagenet"
    as_if_on_gpus(folder)
    before = results_of(folder)
    assert before.keys() == {"sgd", "ef_sgd-256", "cser-256"}
    page = build(folder).read_text()
    [added] = re.findall(r"the next stage, second, adds 1 run: .* hours", done.stdout)
    assert f"3 of 80 runs are done, none diverged.\n\nT{added[1:]}.\n" in page
    line = r"^\| \**([\w-]+)\** \|.*\| \**1 of 5\** \| \**([\d.]+)\** \|"
    # The report has the best first.
    assert sorted(re.findall(line, page, re.MULTILINE)) == sorted(accuracies_of(folder))
    assert "](figures/hours.png)" in page
    assert (folder / "figures/hours.png").exists()
    with (folder / "csv" / "hours.csv").open(newline="") as file:
        hours = {line["row"]: line for line in csv.DictReader(file)}
    assert hours.keys() == before.keys()
    for line in hours.values():
        speed_up = float(hours["sgd"]["hours"]) / float(line["hours"])
        assert float(line["speed_up"]) == pytest.approx(speed_up)

    done = slurm_command(*words, "--stage", "second", checkout=checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted 1 run as job " in done.stdout
    after = results_of(folder)
    assert after.keys() - before.keys() == {"cser-32"}
    assert {row: after[row] for row in before} == before
