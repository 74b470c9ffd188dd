"""Preflight's job without Slurm: its processes meet over gloo, check together, and leave what they found."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.plan.plan import Plan, make_plan
from harness.spec_file import load_spec
from harness.tasks.task import Check
from harness.workers.preflight import check_gpus
from harness.workers.process_group import require_own_devices
from slurm import job as preflight
from slurm import submit
from slurm.campaign import CampaignError
from slurm.job import PreflightTask, rate_in_words
from slurm.profile import SubmissionPaths, array_parameters, load_profile, preflight_parameters, sbatch_text
from slurm.submit import wait_for_preflight
from tests.harness.support import ROOT, changed, small_spec, write_spec
from tests.slurm.support import allocation, small_profile, write_profile
from tests.tasks.miniatures import imagenet_tree

PROCESS = """
import os, pickle, sys
import harness.tasks.imagenet as imagenet
from slurm import job as preflight
from slurm import submit
preflight.PATIENCE_SECONDS, preflight.machine.READING_SECONDS = 600.0, 0.3  # on a busy machine
if os.environ.get("TEST_MINIATURE"):
    imagenet.TASK = imagenet.ImageNet(num_train=24, num_test=12, num_classes=3, side=16, resize=20)
with open(sys.argv[1], "rb") as file:
    preflight.preflight(pickle.load(file))
"""


def plan_of(folder: Path, **changes: Any) -> Plan:
    spec = small_spec()
    for key, value in changes.items():
        spec = changed(spec, key, value)
    return make_plan(load_spec(write_spec(folder, spec)), folder)


def task_of(folder: Path, plan: Plan | None = None, data: Path | None = None, **fields: Any) -> PreflightTask:
    profile = load_profile(str(write_profile(folder, small_profile(link_gigabits_per_second=10.0, **fields))))
    return PreflightTask(plan or plan_of(folder), folder / "results", data, profile)


def said_of(
    folder: Path, capsys: pytest.CaptureFixture[str], plan: Plan, data: Path | None = None, **environment: str
) -> str:
    """What the submitter prints, or the error, of a job of two processes on two nodes."""
    (folder / "task.pickle").write_bytes(pickle.dumps(task_of(folder, plan, data)))
    with ExitStack() as stack:
        processes = [stack.enter_context(_process(folder, rank, environment)) for rank in (0, 1)]
        stack.callback(lambda: [process.kill() for process in processes])
        codes = [process.wait() for process in processes]
    try:
        assert wait_for_preflight("12", [folder / "rank0.log", folder / "rank1.log"])
    except CampaignError as error:
        assert any(codes)
        return str(error)
    assert codes == [0, 0]
    return capsys.readouterr().out


def _process(folder: Path, rank: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """One of the two, with what Slurm would tell it."""
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_PROCID": str(rank), "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[0-1]"}
    slurm |= {"SUBMITIT_EXECUTOR": "slurm", "SLURMD_NODENAME": f"node{rank}", "GLOO_SOCKET_IFNAME": "lo"}
    given = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | slurm | environment
    words = [sys.executable, "-c", PROCESS, str(folder / "task.pickle")]
    with open(folder / f"rank{rank}.log", "wb") as log:
        return subprocess.Popen(words, env=given, cwd=ROOT, stdout=log)


@pytest.mark.timeout(600)
def test_all_ranks_reduce_and_read_and_the_rates_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path, task={"name": "imagenet"}, model={"name": "resnet50"})
    data = imagenet_tree(tmp_path / "data", 24, 12)
    said = said_of(tmp_path, capsys, plan, data, TEST_MINIATURE="1", XDG_CACHE_HOME=str(tmp_path / "cache"))
    lines = dict(line.removeprefix("ok   ").split(": ", 1) for line in said.splitlines())
    assert {"temporary files", "network", "disk", "reading"} <= set(lines)
    assert lines["network"].startswith("an all-reduce among 2 workers on 2 nodes gets ")
    assert "; the profile says 10" in lines["network"]
    assert "reach about" in lines["reading"] and "GPU" not in lines["reading"]


@pytest.mark.timeout(600)
def test_an_interface_that_is_not_there_is_a_sentence_with_the_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = said_of(tmp_path, capsys, plan_of(tmp_path), GLOO_SOCKET_IFNAME="ib7")
    assert said.startswith("preflight fails on the compute nodes: FAIL network: an all-reduce fails: ")
    assert "look at network_interface in the profile, of which there are lo" in said and " (on node" in said
    assert said.endswith(f"(see {tmp_path}/rank0.log)") and "\n" not in said


def test_job_that_ends_without_an_answer_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "LATE_SECONDS", 0.0)
    monkeypatch.setattr(submit.campaign, "queued_jobs", lambda: {})
    with pytest.raises(CampaignError, match=f"the preflight job 12 ended without an answer; see {tmp_path}/log"):
        wait_for_preflight("12", [tmp_path / "log"])


def test_job_that_waits_is_waited_for_no_longer_than_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(submit.campaign, "queued_jobs", lambda: {"12": "PENDING"})
    assert not wait_for_preflight("12", [tmp_path / "log"])


def test_one_gpu_that_several_ranks_see_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "meeting", lambda *arguments: require_own_devices(["GPU 7f of node1"] * 2))
    check = preflight.network_check(task_of(tmp_path).profile, allocation(rank=1, world_size=2), "cpu")
    assert not check.passed and "\n" not in check.detail
    assert check.detail.startswith("ranks 0 and 1 both have GPU 7f of node1, and each needs a GPU of its own; ")
    assert check.detail.endswith("; in the profile look at workers_per_node and at what [sbatch] asks for")


def test_a_torch_without_code_for_the_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_code(*size: int, device: str) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr(torch, "ones", no_code)
    (gpu,) = check_gpus()
    assert not gpu.passed and "Tesla V100-SXM2-16GB: CUDA error: no kernel image" in gpu.detail
    assert "\n" not in gpu.detail


def test_data_in_memory_are_looked_at_on_each_node_and_folders_of_files_by_rank_0_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "network_check", lambda *arguments: Check("network", True, ""))
    ranks = [allocation(rank=rank, local_rank=rank % 2) for rank in range(3)]

    def looked(task: PreflightTask) -> list[list[str]]:
        return [[check.what for check in preflight.checks_here(task, here)] for here in ranks]

    disk = "temporary files"
    assert looked(task_of(tmp_path)) == [[disk, "network", "disk", "data"], ["network"], [disk, "network", "data"]]
    plan = plan_of(tmp_path, task={"name": "imagenet"}, model={"name": "resnet50"})
    files = looked(task_of(tmp_path, plan, tmp_path / "none"))
    assert files == [[disk, "network", "disk", "data"], ["network"], [disk, "network"]]


def test_a_link_that_carries_less_than_half_is_pointed_out() -> None:
    fast, unknown = load_profile("v100:2x4"), load_profile("local")
    assert rate_in_words(9.1e9, unknown) == "an all-reduce among 8 workers on 4 nodes gets 9.1 Gb/s a link"
    assert rate_in_words(9.1e9, fast).endswith("8 workers on 2 nodes gets 9.1 Gb/s a link; the profile says 10")
    assert rate_in_words(0.94e9, fast).endswith("says 10, so look at network_interface, or ask the site")


@pytest.mark.parametrize("name", ["local", "v100:2x4"])
def test_the_job_has_a_runs_own_shape(name: str) -> None:
    profile = load_profile(name)
    place = SubmissionPaths(Path("/shared/jobs"), Path("/shared/code"), Path("/shared/campaign.json"), 0)
    run = sbatch_text(profile, place, array_parameters(profile, "x", place)).splitlines()
    own = sbatch_text(profile, place, preflight_parameters(profile, "x", place)).splitlines()
    assert {line.partition("=")[0] for line in set(own) - set(run)} <= {
        "#SBATCH --job-name",
        "#SBATCH --time",
        "#SBATCH --signal",
    }
    assert "#SBATCH --time=20" in own and any(line.startswith("#SBATCH --nodes=") for line in own)
