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
from slurm import look, submit
from slurm.campaign import read_campaign
from slurm.errors import CampaignError
from slurm.fabric import Place, in_words, no_way
from slurm.look import CheckLine, Look, Looked, merged
from slurm.profile import load_profile
from slurm.request import Request
from slurm.script import SubmissionPaths as Files
from slurm.script import array_parameters, preflight_parameters
from tests.harness.support import ROOT, changed, small_spec, write_spec
from tests.slurm.support import allocation, small_profile, write_profile
from tests.tasks.miniatures import imagenet_tree

FILES = Files(Path("/shared/jobs"), Path("/shared/code"), Path("/shared/campaign.json"), 0)


def plan_of(folder: Path, **changes: Any) -> Plan:
    spec = small_spec()
    for key, value in changes.items():
        spec = changed(spec, key.replace("__", "."), value)
    return make_plan(load_spec(write_spec(folder, spec)), folder)


def looked(
    folder: Path, plan: Plan, data: Path | None = None, **environment: tuple[str, str] | str
) -> dict[str, CheckLine]:
    """The answer of two processes on two nodes by what it looks at; a pair of values is one for each process."""
    profile = load_profile(str(write_profile(folder, small_profile(link_gigabits_per_second=10.0))))
    task = Look(plan, folder / "results", data, profile, folder / "preflight.json")
    (folder / "task.pickle").write_bytes(pickle.dumps(task))
    with ExitStack() as stack:
        processes = [stack.enter_context(_process(folder, rank, environment)) for rank in (0, 1)]
        stack.callback(lambda: [process.kill() for process in processes])
        codes = [process.wait() for process in processes]
    answer = read_record(folder / "preflight.json", Looked)
    assert answer.nodes == "node[0-1]"
    assert codes == [0 if all(line.passed for line in answer.lines) else 1, 0]
    return {line.what: line for line in answer.lines}


def _process(folder: Path, rank: int, environment: dict[str, tuple[str, str] | str]) -> subprocess.Popen[bytes]:
    """One of the two, with what Slurm would tell it."""
    own = {name: value if isinstance(value, str) else value[rank] for name, value in environment.items()}
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_PROCID": str(rank), "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "node[0-1]", "GLOO_SOCKET_IFNAME": "lo"}
    given = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | slurm | own
    command = [sys.executable, "-m", "tests.slurm.look_processes", str(folder / "task.pickle")]
    return subprocess.Popen(command, env=given, cwd=ROOT)


@pytest.mark.timeout(600)
def test_all_ranks_reduce_through_the_network_and_say_its_rate_beside_the_profiles(tmp_path: Path) -> None:
    lines = looked(tmp_path, plan_of(tmp_path))
    assert set(lines) == {"temporary files", "network", "disk", "locks", "data"}
    assert all(line.passed for line in lines.values())
    said = lines["network"].detail
    assert said.startswith("an all-reduce among 2 workers on 2 nodes gets ") and "; the profile says 10" in said


@pytest.mark.timeout(600)
def test_network_that_only_reaches_loopback_and_data_that_no_node_sees_are_one_sentence_each(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, task={"name": "cifar100"}, model={"name": "small_cnn", "options": {"widths": [4, 8]}})
    elsewhere = {"LOOK_MACHINE": ("a", "b"), "LOOK_ADDRESS": ("10.0.0.1", "127.0.1.1")}
    lines = looked(tmp_path, plan, tmp_path / "nowhere", **elsewhere)
    said = lines.pop("network")
    assert not said.passed and "\n" not in said.detail
    assert "only reaches loopback: node node1 would have the others call 127.0.1.1" in said.detail
    assert "set network_interface in the profile" in said.detail
    (bad,) = [line.detail for line in lines.values() if not line.passed]
    assert "nowhere" in bad and "(on " not in bad and "\n" not in bad


def test_one_gpu_that_several_ranks_see_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "identity", lambda device: "GPU 7f of node1")
    monkeypatch.setattr(look, "prepare_thread", lambda device: None)
    profile = load_profile(str(write_profile(tmp_path, small_profile())))
    task, store = Look(plan_of(tmp_path), tmp_path, None, profile, tmp_path / "preflight.json"), dist.HashStore()
    store.set("device of 0", "GPU 7f of node1")
    here = look._Here(task, allocation(rank=1, world_size=2), "cuda:0", store)
    (check,) = look._network_checks(here, num_nodes=1)
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
    task = Look(plan_of(tmp_path), tmp_path, None, profile, tmp_path / "preflight.json")

    def found(local_rank: int) -> dict[str, Check]:
        here = look._Here(task, allocation(rank=local_rank, local_rank=local_rank), "cuda:0", dist.HashStore())
        return {check.what: check for check in look._node_checks(here)}

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
    task = Look(plan_of(tmp_path), tmp_path, archive, profile, tmp_path / "preflight.json")

    def found(rank: int, local_rank: int) -> list[Check]:
        place = allocation(rank=rank, local_rank=local_rank)
        return list(look._data_checks(look._Here(task, place, "cpu", dist.HashStore())))

    early = Check("archive", False, f"{archive} ends early, as no tar file does; copy or make it again")
    assert [check.what for check in found(0, 0)] == ["disk", "locks", "archive"]
    assert found(2, 0) == [early] == found(0, 0)[2:] and not found(1, 1)


@pytest.mark.timeout(600)
def test_files_are_opened_and_read_by_all_ranks_together(tmp_path: Path) -> None:
    data = imagenet_tree(tmp_path / "data", 24, 12)
    plan = plan_of(tmp_path, task={"name": "imagenet"}, model={"name": "resnet50"})
    lines = looked(tmp_path, plan, data, LOOK_MINIATURE="1", XDG_CACHE_HOME=str(tmp_path / "cache"))
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


def place(**changes: Any) -> Place:
    given = {"host": "n1", "machine": "a", "interface": "", "address": "10.0.0.1", "interfaces": ("lo", "eth0", "ib0")}
    return Place(**(given | changes))


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([place(), place(host="n2", machine="b", address="10.0.0.2")], None),
        ([place(address="127.0.0.1", interface="lo"), place(host="n2", address="127.0.0.1", interface="lo")], None),
        ([place(), place(host="n2", machine="b", address="127.0.1.1")], "n2 would have the others call 127.0.1.1, the"),
        ([place(interface="lo", address="127.0.0.1"), place(machine="b")], "127.0.0.1, its interface lo, which leads"),
        ([place(interface="ib1")], "node n1 has no network interface ib1, but lo, eth0, ib0; set network_interface"),
        ([place(interface="eth"), place(interface="^lo,docker", machine="b")], None),  # as NCCL takes them too
        ([place(), place(machine="b", address="")], None),  # which cannot be told
    ],
)
def test_ways_that_lead_nowhere(places: list[Place], words: str | None) -> None:
    said = no_way(places)
    assert said is None if words is None else (said is not None and words in said)


def test_a_link_that_carries_less_than_half_is_pointed_out() -> None:
    assert in_words(9.1e9, None, 8, 8) == "an all-reduce among 8 workers on 8 nodes gets 9.1 Gb/s through a link"
    assert in_words(9.1e9, 10e9, 8, 8).endswith("gets 9.1 Gb/s through a link; the profile says 10")
    assert in_words(0.94e9, 10e9, 8, 2).endswith("0.94 Gb/s through a link; the profile says 10, so look at "
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
