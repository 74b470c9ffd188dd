"""GPUs: who has which, and too few of them; and the checks before a long experiment."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cser_bench.algorithms import ProcessGroupCollectives, SoloCollectives
from cser_bench.harness.plan.plan import make_plan
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.spec_file import load_spec
from cser_bench.harness.tasks.task import find_task
from cser_bench.harness.train import checkpoint
from cser_bench.harness.train.build import build_model, build_optimizer
from cser_bench.harness.workers import process_group
from cser_bench.harness.workers.launch import workers_of
from cser_bench.harness.workers.preflight import (
    check_gpus,
    check_results,
    check_writable,
)
from cser_bench.harness.workers.process_group import device_groups, joined, own_gpu
from tests.harness.support import (
    CommandLine,
    changed,
    launch_options,
    small_config,
    small_spec,
    write_spec,
)


def test_each_local_rank_has_the_gpu_of_its_number_and_too_few_are_refused_with_a_remedy() -> (
    None
):
    assert device_groups("cuda", 4, 4) == [("cuda:0", "cuda:1", "cuda:2", "cuda:3")]
    # Runs at once have GPUs of their own.
    assert device_groups("cuda", 2, 5) == [("cuda:0", "cuda:1"), ("cuda:2", "cuda:3")]
    assert device_groups("cpu", 3, 0) == [("cpu", "cpu", "cpu")]
    with pytest.raises(SpecError, match=r"no GPUs on this machine; .*--device cpu"):
        device_groups("cuda", 1, 0)
    with pytest.raises(
        SpecError, match=r"8 processes .* torch sees 4; .*--workers stacked"
    ):
        device_groups("cuda", 8, 4)


def test_what_a_process_of_another_launcher_has_and_what_auto_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sees all GPUs of its host, or its own alone, as with Slurm; too few are for `joined` to
    refuse."""
    assert [own_gpu(local_rank, 4) for local_rank in range(3)] == [
        "cuda:0",
        "cuda:1",
        "cuda:2",
    ]
    gpus = [own_gpu(local_rank, 1) for local_rank in range(2)]
    assert gpus == ["cuda:0", "cuda:0"]
    config = small_config(num_workers=8)
    for device, num_gpus, workers in (
        ("cuda", 8, "processes"),
        ("cuda", 7, "stacked"),
        ("cpu", 8, "stacked"),
    ):
        monkeypatch.setattr(
            torch.cuda, "device_count", lambda num_gpus=num_gpus: num_gpus
        )
        assert (
            workers_of(config, launch_options(tmp_path, "auto", device=device))
            == workers
        )
        assert (
            workers_of(config, launch_options(tmp_path, "processes", device=device))
            == "processes"
        )


def join(rank: int, init_method: str, own: str) -> str:
    """As one of two processes, with this for a device: what joining the group came to."""
    process_group.identity = lambda device: own
    try:
        with joined("cpu", 60.0, init_method, rank, 2):
            # One that went at once would close what the other is still connecting.
            dist.barrier()
            return f"rank {ProcessGroupCollectives().rank}"
    except SpecError as error:
        return str(error)


@pytest.mark.parametrize("same", [False, True])
def test_ranks_of_a_group_tell_each_other_what_they_have(
    same: bool, tmp_path: Path
) -> None:
    init = f"file://{tmp_path}/rendezvous"
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        ranks = [
            pool.submit(join, rank, init, "GPU a of x" if same else f"GPU {rank} of x")
            for rank in range(2)
        ]
        ends = [rank.result() for rank in ranks]
    if same:
        for end in ends:
            assert end.startswith("ranks 0 and 1 both have GPU a of x, ")
    else:
        assert ends == ["rank 0", "rank 1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpus_that_are_not_there_are_said_before_anything_is_written(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = write_spec(tmp_path, small_spec())
    results = tmp_path / "results"
    said = cli.refused("run", path, "--results", results, "--device", "cuda")
    assert said.startswith("--device cuda: torch sees no GPUs")
    assert not results.exists()
    lines = cli.out(
        "preflight", path, "--results", tmp_path, "--device", "cuda", code=1
    ).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "ok   data",
        "ok   disk",
        "FAIL GPUs",
        "FAIL GPUs suffice",
    ]


# Preflight


def test_disk_that_is_asked_for_is_what_checkpoints_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Large enough for headers not to matter.
    spec = changed(small_spec(), "model.options.widths", [32, 128])
    plan = make_plan(load_spec(write_spec(tmp_path, spec)), tmp_path)
    taken = {}
    for run in plan.runs:
        model = build_model(
            run.config.model, find_task("blobs"), 1, torch.device("cpu")
        )
        state = {
            "models": [model.state_dict()],
            "optimizer": build_optimizer(run.config, model, None, 40).state_dict(),
        }
        folder = tmp_path / run.row
        for step in range(4):
            checkpoint.save(folder, step, state, SoloCollectives(), "attempt")
        taken[run.row] = (
            sum(path.stat().st_size for path in folder.rglob("rank-0.pt"))
            / checkpoint.GENERATIONS
        )
    expected = {
        row: footprint.checkpoint_bytes for row, footprint in plan.footprints.items()
    }
    assert expected.keys() == taken.keys()
    for row, each in expected.items():
        assert 1.0 <= taken[row] / each < 1.1, row

    # Two runs of two workers at once, with one generation being written and two that stay.
    needed = 2 * 2 * 3 * max(expected.values())
    for free, suffices in ((needed, False), (needed + 1, True)):
        usage = shutil._ntuple_diskusage(free, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, usage=usage: usage)
        check = check_results(plan, tmp_path / "not" / "there", jobs=2)
        assert check.passed == suffices
        assert ("make room" in check.detail) != suffices


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_cannot_be_written_to_is_one_sentence(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_writable("scratch", tmp_path / "not" / "there").passed
    assert not list(tmp_path.iterdir())

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    spec = load_spec(write_spec(tmp_path, small_spec()))
    plan = make_plan(spec, tmp_path)
    for check in (
        check_writable("scratch", tmp_path),
        check_results(plan, tmp_path, jobs=1),
    ):
        assert not check.passed
        assert os.strerror(number) in check.detail
        assert str(tmp_path) in check.detail
        assert "make room or give permission" in check.detail
        assert "\n" not in check.detail


def test_a_torch_without_code_for_the_gpu_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_code(*size: int, device: str) -> None:
        raise RuntimeError(
            "CUDA error: no kernel image is available for execution on the device\nCUDA kernel "
            "errors"
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_name", lambda index: "Tesla V100-SXM2-16GB"
    )
    monkeypatch.setattr(torch, "ones", no_code)
    (gpu,) = check_gpus()
    assert not gpu.passed
    assert "Tesla V100-SXM2-16GB: CUDA error: no kernel image" in gpu.detail
    assert "\n" not in gpu.detail
