"""Every shipped experiment, each of its methods: a few steps with a shrunken model on miniature
data, end to end."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from cser_bench.harness.places import EXPERIMENTS
from cser_bench.harness.plan.plan import make_plan
from cser_bench.harness.records.experiment import Row
from cser_bench.harness.records.store import read_run
from cser_bench.harness.spec.run import ModelSpec, PlannedRun
from cser_bench.harness.spec.spec import Spec
from cser_bench.harness.spec.spec_file import load_spec
from cser_bench.harness.tasks import fashion_mnist, gcide, kjv_text
from cser_bench.harness.tasks.cifar10 import ARCHIVE, CIFAR10
from cser_bench.harness.tasks.cmudict import CMUDict
from cser_bench.harness.tasks.fashion_mnist import FashionMNIST
from cser_bench.harness.tasks.imagenet import ImageNet
from cser_bench.harness.tasks.task import find_task
from cser_bench.harness.workers.attempt import attempt_stacked
from tests.harness.support import Table, job_for
from tests.tasks.miniatures import (
    MiniatureCIFAR100,
    bible,
    cifar10_archive,
    dictionary,
    fashion_mnist_files,
    imagenet_tree,
    made_up_entries,
    write,
)

NUM_WORKERS = 2
BATCH_SIZE = 2
STEPS_PER_EPOCH = 6
NUM_EPOCHS = {"fp32": 1, "bf16": 1, "fp16": 3}
"""Loss scaling skips the first steps until it has found the scale of a network as small as
these."""
NUM_TRAIN = 25
NUM_TEST = 15
LARGEST_RATIO = 2_048

TRANSFORMER = {"width": 16, "num_heads": 2, "num_layers": 1, "feedforward": 16}
# The least width that has parameters enough for the largest ratio. ResNet-50 has them at width 1
# already, but overflows there in fp16 at nearly every scale.
SHRUNKEN: dict[str, Table] = {
    "cifar10": {"depth": 10, "width": 1, "stem_stride": 2},
    "cifar100": {"depth": 10, "width": 1},
    "imagenet": {"width": 2},
    "imagenet_released": {"width": 3},
    "fashion_mnist": {"widths": [4, 8]},
    "fashion_mnist_crops": {"depth": 10, "width": 1, "stem_stride": 2},
    "fashion_mnist_long": {"hidden": 4},
    "cmudict": TRANSFORMER,
    "cmudict_adamw": TRANSFORMER,
    "kjv_text": TRANSFORMER,
    "gcide": TRANSFORMER,
}


def shrunken(name: str) -> Spec:
    """The experiment with a row a method, one seed, few samples at a time and a small model; all
    else as shipped."""
    whole = load_spec(EXPERIMENTS / f"{name}.toml")
    spec = whole.model_copy(update={"cells": []})
    small: Table = {
        "num_workers": NUM_WORKERS,
        "batch_size": BATCH_SIZE,
        "num_steps": None,
    }
    small["num_epochs"] = NUM_EPOCHS[spec.training.precision]
    of_task = SHRUNKEN[spec.task.name]
    options = SHRUNKEN.get(name, of_task)
    # In fp16 so small a network could overflow at every scale.
    slower = 10 if spec.training.precision == "fp16" else 1
    rows = [
        row.model_copy(
            update={
                "settings": row.settings_to_try[-1],
                "candidates": [],
                "num_steps": None,
                "run_lengths": [],
                "learning_rate": (row.learning_rate or 0.01) / slower,
            }
        )
        for row in {row.label: row for row in spec.all_rows()}.values()
        # One with its own number of workers is another row's method.
        if row.num_workers is None
    ]
    return spec.model_copy(
        update={
            "task": spec.task.model_copy(update={"num_train": 0}),
            "model": ModelSpec(name=spec.model.name, options=options),
            "training": spec.training.model_copy(update=small),
            "statistics": spec.statistics.model_copy(
                update={"seeds": spec.statistics.seeds[:1], "baseline_seeds": []}
            ),
            "evaluation": spec.evaluation.model_copy(
                update={"per_epoch": 1, "num_scores": None}
            ),
            "rows": rows,
            "stages": [],
            **{
                "grids": [],
                "tuning": None,
                "lengths": None,
                "sensitivity": None,
                "contrasts": [],
            },
        }
    )


def miniature(name: str, folder: Path, patch: pytest.MonkeyPatch) -> object:
    """A task with few samples, which are in this folder."""
    own: Table = {"num_train": NUM_TRAIN, "num_test": NUM_TEST}
    if name == "cifar100":
        release = MiniatureCIFAR100(NUM_TRAIN, NUM_TEST, num_classes=5)
        write(folder / "cifar-100-python", release.pickled)
        return release.task
    if name == "cifar10":
        folder.mkdir()
        np.savez(folder / ARCHIVE, **cifar10_archive(NUM_TRAIN, NUM_TEST))
        return CIFAR10(**own)
    if name == "imagenet":
        imagenet_tree(folder, NUM_TRAIN, NUM_TEST)
        return ImageNet(**own, num_classes=3, side=16, resize=20)
    if name.startswith("fashion_mnist"):
        patch.setattr(
            fashion_mnist, "FILES", fashion_mnist_files(folder, NUM_TRAIN, NUM_TEST)
        )
        return replace(cast(FashionMNIST, find_task(name)), **own)
    if name == "cmudict":
        return CMUDict(
            **own, sha256=None, entries=partial(made_up_entries, NUM_TRAIN + NUM_TEST)
        )
    if name == "kjv_text":
        num_slots = bible(folder, 1, chapters=(40, 40))
        return replace(kjv_text.TASK, **own, length=8, num_slots=num_slots, sha256=None)
    assert name == "gcide"
    dictionary(folder, 1, 40)
    return replace(gcide.TASK, **own, length=8, num_test_entries=8, sha256=None)


# Their rows are another's, all or some.
BORROWERS = {
    "fashion_mnist_contrasts",
    "first_look",
    "score_cnn_t2",
    "score_cnn_workers_2",
    "score_cnn_workers_4",
    "score_cnn_workers_16",
    "score_cnn_workers_32",
    "score_gpt_batch_4",
    "score_gpt_batch_quarter",
    "score_gpt_t1",
    "state_gpt",
}
NAMES = sorted({path.stem for path in EXPERIMENTS.glob("*.toml")} - BORROWERS)


@pytest.mark.whole
@pytest.mark.parametrize("name", NAMES)
def test_each_method_trains_to_a_valid_result_and_sends_what_its_plan_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run checks its bits against its closed form."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(
        "cser_bench.harness.plan.rows.why_too_short", lambda row, foreseen: None
    )
    # Rows of miniatures send other shares than the networks that their ratios are of.
    monkeypatch.setattr(
        "cser_bench.harness.plan.rows._check_ratio_group", lambda *row: None
    )
    spec = shrunken(name)
    task = spec.task.name
    monkeypatch.setattr(
        f"cser_bench.harness.tasks.{task}.TASK",
        miniature(task, tmp_path / "data", monkeypatch),
    )
    plan = make_plan(spec, tmp_path)
    rows = {row.row: row for row in plan.experiment.rows}
    for run in plan.runs:
        job = job_for(
            run.config, tmp_path, data=tmp_path / "data", checkpoint_minutes=5.0
        )
        assert attempt_stacked(replace(job, run=run)), (
            job.folder / "failure.json"
        ).read_text()
        assert job.run.run_id == run.run_id
        check_result(run, rows[run.row], job.folder)


def check_result(run: PlannedRun, row: Row, folder: Path) -> None:
    """The records are whole, and say what the plan and the data say."""
    config = run.config
    record = read_run(folder)
    result = record.result
    local = config.evaluation.batch_norm == "local" or config.algorithm == "alone"
    assert result is not None
    assert record.failure is None
    read_from = ARCHIVE if config.task.name == "cifar10" else None
    assert result.data_name == read_from
    num_steps = STEPS_PER_EPOCH * NUM_EPOCHS[config.precision]
    assert (result.status, result.num_steps, row.num_steps) == (
        "done",
        num_steps,
        num_steps,
    )
    labels = 8 if config.task.name in ("kjv_text", "gcide") else 1
    assert result.test_count == NUM_TEST * labels * (NUM_WORKERS if local else 1)
    assert [event.step for event in record.events] == list(
        range(STEPS_PER_EPOCH, num_steps + 1, STEPS_PER_EPOCH)
    )
    assert result.num_parameters == row.num_parameters >= LARGEST_RATIO
    if config.partition.kind == "contiguous":
        assert result.class_counts is not None
        assert [sum(counts) for counts in result.class_counts] == [
            NUM_TRAIN // NUM_WORKERS
        ] * NUM_WORKERS
    traffic = result.traffic
    sent = sum(traffic[key].bits for key in result.expected_traffic)
    if config.precision == "fp16":  # loss scaling skips some steps, but not all
        assert sent > 0 or config.algorithm != "sgd"
    elif "per_tensor_block" not in str(config.settings):
        # Which draws other bits at each step
        assert sent == row.expected_bits
