"""DDP and its hooks as rows of an experiment: the same as SGD or less exact, counted, resumed, and
refused in words."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cser_bench.algorithms import ProcessGroupCollectives, Purpose
from cser_bench.algorithms.baselines import ddp
from cser_bench.algorithms.registry import baselines
from cser_bench.harness.plan.footprint import footprint_of
from cser_bench.harness.plan.plan import make_plan
from cser_bench.harness.records.store import read_run
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.spec import Spec
from cser_bench.harness.tasks import blobs
from cser_bench.harness.tasks.task import find_task
from cser_bench.harness.train.build import build_model
from cser_bench.harness.train.passes import DryTraining
from cser_bench.harness.train.train import train
from cser_bench.harness.train.training import Job
from cser_bench.harness.workers.attempt import prepare_thread
from cser_bench.harness.workers.launch import launch, places
from cser_bench.harness.workers.process_group import joined
from tests.harness.support import (
    DoctoredBlobs,
    Quiet,
    Stopped,
    Table,
    comparable,
    job_for,
    launch_options,
    small_config,
    small_spec,
    stop_before,
)

pytestmark = pytest.mark.whole

WORLD_SIZE = 3
CASES: dict[str, Table] = {
    "sgd": {},
    "ddp": {},
    "ddp_fp16": {},
    "ddp_powersgd": {"rank": 1},
}
STOPS = {"ddp": [4, 20], "ddp_powersgd": [20]}
"""Steps, counted from 0, before which attempts end; the checkpoint is of step 13."""


def process(
    rank: int, rendezvous: Path, whole: list[Job], broken: list[list[Job]]
) -> None:
    """As one worker: the runs of `whole`, then those of `broken`, each in one attempt more than it
    has stops."""
    prepare_thread()
    # Several buckets, of 256 numbers or little more, so that their order tells.
    ddp.wrapped = partial(ddp.wrapped, bucket_cap_mb=1 / 1024)  # type: ignore[assignment]
    plain = blobs.TASK
    with joined("cpu", 60.0, f"file://{rendezvous}", rank, WORLD_SIZE):
        for job in whole:
            train(job, ProcessGroupCollectives())
        for *stopped, last in broken:
            for job, stop in zip(
                stopped, STOPS[last.run.config.algorithm], strict=True
            ):
                blobs.TASK = DoctoredBlobs(hook=partial(stop_before, stop))
                with suppress(Stopped):
                    train(job, ProcessGroupCollectives())
            blobs.TASK = plain
            train(last, ProcessGroupCollectives())


NUMEL = 742
Results = dict[str, tuple[list[Table], Table]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    """Events and result of each case, done at once, and stopped and resumed, by three processes
    started once."""
    folder: Path = tmp_path_factory.mktemp("baselines")
    configs = {
        name: small_config(name, table, num_workers=WORLD_SIZE)
        for name, table in CASES.items()
    }
    folder_of_whole = folder / "whole"
    whole = [job_for(config, folder_of_whole) for config in configs.values()]
    broken = [
        [job_for(configs[name], folder / "broken") for _ in range(len(STOPS[name]) + 1)]
        for name in STOPS
    ]
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["torch", "torch._dynamo"]
    )
    arguments = (folder / "rendezvous", whole, broken)
    mp.start_processes(process, arguments, nprocs=WORLD_SIZE, start_method="forkserver")
    for *_, last in broken:
        attempts = [
            attempt.resumed_from_step for attempt in read_run(last.folder).run.attempts
        ]
        expected = [0, 0, 13] if last.run.config.algorithm == "ddp" else [0, 13]
        assert attempts == expected
    return (
        {job.run.config.algorithm: comparable(job.folder) for job in whole},
        {last.run.config.algorithm: comparable(last.folder) for *_, last in broken},
    )


def test_ddp_is_sgd_up_to_rounding(results: tuple[Results, Results]) -> None:
    ours, plain = results[0]["ddp"]
    sgd, sgd_result = results[0]["sgd"]
    assert len(ours) == 2
    for event, other in zip(ours, sgd, strict=True):
        for key in ("train_loss", "test_loss"):
            # Sums in another order, which momentum and batch norm magnify.
            expected = pytest.approx(other[key], rel=1e-4)
            assert event[key] == expected
        assert event["bits_sent"] == other["bits_sent"]
        assert event["worker_distance"] < 1e-6
    # An example whose two best classes are level may be counted by one of them alone.
    assert abs(plain["test_correct"] - sgd_result["test_correct"]) <= 1


@pytest.mark.parametrize("name", ["ddp", "ddp_fp16", "ddp_powersgd"])
def test_a_plan_predicts_what_is_sent(
    name: str, results: tuple[Results, Results]
) -> None:
    config = small_config(name, CASES[name], num_workers=WORLD_SIZE)
    foreseen = footprint_of(config)
    _, result = results[0][name]
    assert result["traffic"]["gradient"]["bits"] == foreseen.bits
    assert not foreseen.final_exchange


def test_a_rounded_or_compressed_gradient_is_another(
    results: tuple[Results, Results],
) -> None:
    """The fp16 hook's is near, as it must be; the error of PowerSGD's is recorded."""
    sgd, fp16, powersgd = (
        results[0][name][0] for name in ("sgd", "ddp_fp16", "ddp_powersgd")
    )
    for event, rounded, compressed in zip(sgd, fp16, powersgd, strict=True):
        by_rounding = abs(rounded["train_loss"] - event["train_loss"])
        by_compression = abs(compressed["train_loss"] - event["train_loss"])
        assert 0 < by_rounding < 5e-3
        assert by_compression > max(1e-3, 2 * by_rounding)
        assert event["error_norm"] is None
        assert rounded["error_norm"] is None
        assert compressed["error_norm"] > 0
        assert compressed["worker_distance"] < 1e-6


@pytest.mark.parametrize("name", STOPS)
def test_resumed_equals_uninterrupted_to_the_bit(
    name: str, results: tuple[Results, Results]
) -> None:
    assert results[1][name] == results[0][name]


# One worker that is alone in its group


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    with joined("cpu", 60.0, f"file://{tmp_path}/rendezvous", 0, 1):
        yield


def trainee_of(name: str, table: Table | None = None, **changes: Any) -> DryTraining:
    config = small_config(name, table, num_workers=1, **changes)
    task = find_task("blobs")
    model = build_model(config.model, task, 1, torch.device("cpu"))
    return DryTraining(config, model, ProcessGroupCollectives())


@pytest.mark.parametrize("name", baselines())
def test_the_count_is_what_torch_distributed_is_given(
    name: str, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = dist.all_reduce
    bits = list[int]()

    def all_reduce(tensor: torch.Tensor, *rest: Any, **options: Any) -> Any:
        num_bytes = tensor.numel() * tensor.element_size()
        bits.append(8 * num_bytes)
        return original(tensor, *rest, **options)

    settings = {"rank": 2} if name == "ddp_powersgd" else None
    trainee = trainee_of(name, settings)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    for _ in range(5):
        trainee.step()
    assert sum(bits) > 0
    assert trainee.optimizer.traffic[Purpose.GRADIENT].bits == sum(bits)
    assert (
        trainee.optimizer.traffic.training()
        == trainee.optimizer.expected_traffic(5).training()
    )


def test_a_step_that_is_skipped_is_none_of_the_methods_cost(group: None) -> None:
    trainee = trainee_of("ddp", precision="fp16")
    trainee.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainee.step()
    trainee.precision.scaler.update(2.0**120)
    before = trainee.optimizer.traffic[Purpose.CONTROL].bits
    trainee.step()
    assert trainee.optimizer.num_steps == 1
    assert (
        trainee.optimizer.traffic.training()
        == trainee.optimizer.expected_traffic(1).training()
    )
    control = trainee.optimizer.traffic[Purpose.CONTROL]
    assert control.bits >= before + 32 * NUMEL


def test_a_forward_pass_beside_ddp_is_noticed(group: None) -> None:
    trainee = trainee_of("ddp")
    trainee.precision.both_passes(trainee.models[0], *trainee.batches[0])
    with pytest.raises(RuntimeError, match="let forward passes go through"):
        trainee.optimizer.step()


# From a spec


def spec_with(algorithm: str, table: Table, **training: Any) -> Spec:
    """SGD and one baseline."""
    spec = small_spec()
    row = {
        "row": "other",
        "label": "Other",
        "algorithm": algorithm,
        "ratio": 1,
        "learning_rate": 0.05,
    }
    own_row = row | {"settings": table}
    spec["rows"] = [spec["rows"][0], own_row]
    spec["statistics"]["seeds"] = [1]
    own_training = spec["training"] | training
    return Spec.model_validate(spec | {"training": own_training})


def test_a_launch_starts_processes_for_a_baseline_alone(tmp_path: Path) -> None:
    plan = make_plan(spec_with("ddp", {}), tmp_path)
    options = launch_options(tmp_path, "stacked", jobs=1)
    assert launch(plan, options, Quiet()) == 0
    launched = {
        run.row: read_run(tmp_path / "small" / run.run_id).run.attempts[0].launch
        for run in plan.runs
    }
    assert launched == {"sgd": "stacked", "other": "processes"}


def test_without_a_gpu_for_each_worker_a_baseline_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(spec_with("ddp", {}), tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        SpecError,
        match=r"2 processes .* need a GPU each, torch sees 1; .* without the rows of DDP",
    ):
        places(plan, launch_options(tmp_path, device="cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert places(plan, launch_options(tmp_path, device="cuda"))[0].devices == (
        "cuda:0",
        "cuda:1",
    )
