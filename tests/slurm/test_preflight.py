"""Preflight's job without Slurm: its processes meet over gloo, look together, and rank 0 says what all found."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from harness.plan.plan import Plan, make_plan
from harness.records.store import read_record
from harness.spec_file import load_spec
from harness.tasks.task import Check
from harness.workers import devices
from slurm import preflight, submit
from slurm.campaign import CampaignError, read_campaign
from slurm.preflight import Answer, CheckLine, PreflightTask, merged, rate_in_words
from slurm.profile import load_profile
from slurm.sbatch import SubmissionPaths as Files
from slurm.sbatch import array_parameters, preflight_parameters
from slurm.submit import Request
from tests.harness.support import ROOT, changed, small_spec, write_spec
from tests.slurm.support import allocation, small_profile, write_profile
from tests.tasks.miniatures import imagenet_tree

FILES = Files(Path("/shared/jobs"), Path("/shared/code"), Path("/shared/campaign.json"), 0)


def plan_of(folder: Path, **changes: Any) -> Plan:
    spec = small_spec()
    for key, value in changes.items():
        spec = changed(spec, key.replace("__", "."), value)
    return make_plan(load_spec(write_spec(folder, spec)), folder)


def checked(folder: Path, plan: Plan, data: Path | None = None, **environment: str) -> dict[str, CheckLine]:
    """The answer of two processes on two nodes, by what is checked."""
    profile = load_profile(str(write_profile(folder, small_profile(link_gigabits_per_second=10.0))))
    task = PreflightTask(plan, folder / "results", data, profile, folder / "preflight.json")
    (folder / "task.pickle").write_bytes(pickle.dumps(task))
    with ExitStack() as stack:
        processes = [stack.enter_context(_process(folder, rank, environment)) for rank in (0, 1)]
        stack.callback(lambda: [process.kill() for process in processes])
        code = processes[0].wait()
    answer = read_record(folder / "preflight.json", Answer)
    assert answer.nodes == "node[0-1]"
    assert code == (0 if all(line.passed for line in answer.lines) else 1)
    return {line.what: line for line in answer.lines}


def _process(folder: Path, rank: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """One of the two, with what Slurm would tell it."""
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_PROCID": str(rank), "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[0-1]"}
    slurm |= {"SUBMITIT_EXECUTOR": "slurm", "SLURMD_NODENAME": f"node{rank}", "GLOO_SOCKET_IFNAME": "lo"}
    given = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | slurm | environment
    command = [sys.executable, "-m", "tests.slurm.preflight_process", str(folder / "task.pickle")]
    return subprocess.Popen(command, env=given, cwd=ROOT)


@pytest.mark.timeout(600)
def test_all_ranks_reduce_through_the_network_and_say_its_rate_beside_the_profiles(tmp_path: Path) -> None:
    lines = checked(tmp_path, plan_of(tmp_path))
    assert set(lines) == {"temporary files", "network", "disk", "locks", "data"}
    assert all(line.passed for line in lines.values())
    said = lines["network"].detail
    assert said.startswith("an all-reduce among 2 workers on 2 nodes gets ") and "; the profile says 10" in said


@pytest.mark.timeout(600)
def test_an_interface_that_is_not_there_and_data_that_no_node_sees_are_one_sentence_each(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, task={"name": "cifar100"}, model={"name": "small_cnn", "options": {"widths": [4, 8]}})
    lines = checked(tmp_path, plan, tmp_path / "nowhere", GLOO_SOCKET_IFNAME="ib7")
    said = lines.pop("network")
    assert not said.passed and "\n" not in said.detail and said.detail.startswith("an all-reduce fails: ")
    assert "look at network_interface in the profile, of which there are lo" in said.detail
    (bad,) = [line.detail for line in lines.values() if not line.passed]
    assert "nowhere" in bad and "(on " not in bad and "\n" not in bad


@pytest.mark.timeout(600)
def test_an_all_reduce_that_does_not_end_is_given_up_by_rank_0_with_a_word(tmp_path: Path) -> None:
    lines = checked(tmp_path, plan_of(tmp_path), TEST_NETWORK_SECONDS="0")
    assert lines["network"].detail.startswith("an all-reduce did not end within 0 s; look at network_interface in the")


def test_one_gpu_that_several_ranks_see_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "identity", lambda device: "GPU 7f of node1")
    monkeypatch.setattr(preflight, "prepare_thread", lambda device: None)
    profile = load_profile(str(write_profile(tmp_path, small_profile())))
    task, store = (
        PreflightTask(plan_of(tmp_path), tmp_path, None, profile, tmp_path / "preflight.json"),
        dist.HashStore(),
    )
    store.set("device of 0", "GPU 7f of node1")
    here = preflight._Here(task, allocation(rank=1, world_size=2), "cuda:0", store)
    (check,) = preflight._network_checks(here, num_nodes=1)
    assert not check.passed and "\n" not in check.detail
    assert check.detail.startswith("ranks 0 and 1 both have GPU 7f of node1, and each needs a GPU of its own; ")
    assert check.detail.endswith("; in the profile look at gpus_per_node and gpu_request")


def test_each_process_looks_at_its_gpus_and_one_of_a_node_at_its_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torch without the GPU's architecture, and disks that cannot be written to: one sentence each."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0))
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    profile = load_profile(str(write_profile(tmp_path, small_profile(scratch="$NODE_DISK/mine"))))
    task = PreflightTask(plan_of(tmp_path), tmp_path, None, profile, tmp_path / "preflight.json")

    def found(local_rank: int) -> dict[str, Check]:
        here = preflight._Here(task, allocation(rank=local_rank, local_rank=local_rank), "cuda:0", dist.HashStore())
        return {check.what: check for check in preflight._node_checks(here)}

    def read_only(descriptor: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    assert {what: check.passed for what, check in found(0).items()} == {
        "GPU 0": False,
        "temporary files": True,
        "scratch": True,
    }
    assert list(found(1)) == ["GPU 0"]
    monkeypatch.setattr(os, "fsync", read_only)
    said = found(0)
    assert not any(check.passed for check in said.values())
    assert not any("\n" in check.detail for check in said.values())
    assert "sm_70" in said["GPU 0"].detail and "built for CUDA 12.6 (cu126)" in said["GPU 0"].detail
    assert str(tmp_path) in said["scratch"].detail and "Read-only file system" in said["scratch"].detail


def test_an_archive_that_ends_early_is_one_sentence_on_each_node(tmp_path: Path) -> None:
    archive = tmp_path / "images.tar"
    archive.write_bytes(bytes(2000) + b"cut off here")
    profile = load_profile(str(write_profile(tmp_path, small_profile(scratch=str(tmp_path / "disk")))))
    task = PreflightTask(plan_of(tmp_path), tmp_path, archive, profile, tmp_path / "preflight.json")

    def found(rank: int, local_rank: int) -> list[Check]:
        place = allocation(rank=rank, local_rank=local_rank)
        return list(preflight._data_checks(preflight._Here(task, place, "cpu", dist.HashStore())))

    early = Check("archive", False, f"{archive} ends early, as no tar file does; copy or make it again")
    assert [check.what for check in found(0, 0)] == ["disk", "locks", "archive"]
    assert found(2, 0) == [early] == found(0, 0)[2:] and not found(1, 1)


@pytest.mark.timeout(600)
def test_files_are_opened_and_read_by_all_ranks_together(tmp_path: Path) -> None:
    data = imagenet_tree(tmp_path / "data", 24, 12)
    plan = plan_of(tmp_path, task={"name": "imagenet"}, model={"name": "resnet50"})
    lines = checked(tmp_path, plan, data, TEST_MINIATURE="1", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert all(line.passed for line in lines.values())
    assert lines["opening files"].detail.startswith("2 workers at once open and read ")
    assert "readers a worker reach about" in lines["reading"].detail and "GPU" not in lines["reading"].detail


def test_findings_alike_are_said_once_and_failures_with_their_nodes() -> None:
    well, bad, other = (
        Check("scratch", True, "fine"),
        Check("scratch", False, "full"),
        Check("disk", False, "read-only"),
    )
    hosts = ["n1", "n1", "n2", "n3"]
    assert merged([[well], [], [well], [bad]], hosts) == [well, bad._replace(detail="full (on n3)")]
    assert merged([[other], [other], [other], [other]], hosts) == [other]
    assert merged([[], [bad], [bad], []], hosts) == [bad._replace(detail="full (on n1, n2)")]


def test_a_link_that_carries_less_than_half_is_pointed_out() -> None:
    assert rate_in_words(9.1e9, None, 8, 8) == "an all-reduce among 8 workers on 8 nodes gets 9.1 Gb/s a link"
    assert rate_in_words(9.1e9, 10e9, 8, 8).endswith("gets 9.1 Gb/s a link; the profile says 10")
    assert rate_in_words(0.94e9, 10e9, 8, 2).endswith("0.94 Gb/s a link; the profile says 10, so look at "
                                                 "network_interface, or ask the site")  # fmt: skip


@pytest.mark.parametrize("name", ["local", "v100", "v100:2x4", "v100:1x8"])
def test_the_job_has_a_runs_own_shape(name: str) -> None:
    profile = load_profile(name)
    run, own = array_parameters(profile, "x", FILES), preflight_parameters(profile, "x", FILES)
    other = {"job_name", "time", "signal_delay_s", "array_parallelism", "teardown", "additional_parameters"}
    assert {key: run[key] for key in run.keys() - other} == {key: own[key] for key in own.keys() - other}
    asked = own["additional_parameters"]
    assert {**run["additional_parameters"], **asked} == run["additional_parameters"]
    assert (own["nodes"] * own["ntasks_per_node"], own["time"]) == (8, 20)


def test_what_sbatch_would_refuse_is_said_before_anything_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, said = tmp_path / "bin" / "sbatch", tmp_path / "said"
    program.parent.mkdir()
    answer = "sbatch: error: Batch job submission failed: Requested time limit is invalid"
    program.write_text(f'#!/bin/sh\necho "$1" >>{said}; grep "time=10$" "$2" >>{said}; echo "{answer}" >&2; exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    profile = load_profile(str(write_profile(tmp_path, small_profile())))
    request = Request(plan_of(tmp_path), tmp_path / "results", None, "mine", profile, "command", True)
    with pytest.raises(CampaignError, match="time limit is invalid; look at time_limit_minutes in the profile mine"):
        submit.submit(request)
    assert said.read_text() == "--test-only\n#SBATCH --time=10\n"
    assert read_campaign(request.folder) is None
