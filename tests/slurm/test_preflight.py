"""Preflight's job without Slurm: what each process checks and says, and what the submitter makes of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from harness.plan.plan import make_plan
from harness.spec_file import load_spec
from harness.tasks.task import Check
from harness.workers.preflight import check_gpus
from harness.workers.process_group import require_own_devices
from slurm import job as preflight
from slurm import submit
from slurm.campaign import CampaignError, Request
from slurm.job import ALL_WELL, rate_in_words
from slurm.profile import load_profile
from slurm.submit import wait_for_preflight
from tests.harness.support import small_spec, write_spec
from tests.slurm.support import allocation, small_profile, write_profile


def task_of(folder: Path) -> Request:
    profile = load_profile(str(write_profile(folder, small_profile(link_gigabits_per_second=10.0))))
    plan = make_plan(load_spec(write_spec(folder, small_spec())), folder)
    return Request(plan, folder / "results", None, "cluster", profile, True)


def test_what_all_ranks_say_is_told_once_and_what_fails_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = [tmp_path / "rank0.log", tmp_path / "rank1.log"]
    well = f"ok   network: 9 Gb/s (on node0)\nan aside\n{ALL_WELL}\n"
    for log in logs:
        log.write_text(well)
    assert wait_for_preflight("12", logs) and capsys.readouterr().out == "ok   network: 9 Gb/s (on node0)\n"
    logs[1].write_text("FAIL data: it is not there (on node1)\n")
    words = f"preflight fails on the compute nodes: FAIL data: it is not there (on node1) (see {logs[0]})"
    with pytest.raises(CampaignError, match=re.escape(words)):
        wait_for_preflight("12", logs)


def test_an_interface_that_is_not_there_is_a_sentence_with_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib7")
    profile = load_profile(str(write_profile(tmp_path, small_profile())))
    check = preflight.network_check(profile, allocation(job=str(os.getpid()), world_size=1), "cpu")
    assert not check.passed and check.detail.startswith("an all-reduce fails: ") and "\n" not in check.detail
    assert "look at network_interface in the profile, of which there are lo" in check.detail


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


def test_disk_and_data_are_looked_at_on_each_node_and_results_by_rank_0_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "network_check", lambda *arguments: Check("network", True, ""))
    ranks = [allocation(rank=rank, local_rank=rank % 2) for rank in range(3)]
    task, disk = task_of(tmp_path), "temporary files"
    looked = [[check.what for check in preflight.checks_here(task, here)] for here in ranks]
    assert looked == [[disk, "network", "disk", "data"], ["network"], [disk, "network", "data"]]


def test_a_link_that_carries_less_than_half_is_pointed_out() -> None:
    fast, unknown = load_profile("v100:2x4"), load_profile("local")
    assert rate_in_words(9.1e9, unknown) == "an all-reduce among 8 workers on 4 nodes gets 9.1 Gb/s a link"
    assert rate_in_words(9.1e9, fast).endswith("8 workers on 2 nodes gets 9.1 Gb/s a link; the profile says 10")
    assert rate_in_words(0.94e9, fast).endswith("says 10, so look at network_interface, or ask the site")
