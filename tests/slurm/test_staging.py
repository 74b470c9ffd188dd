"""Staging: an archive is extracted once on a node, whole or not at all, and what is in the way is one sentence."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from harness.plan.plan import make_plan
from harness.spec import SpecError
from harness.spec_file import load_spec
from harness.tasks.errors import DataError
from slurm import staging, submit
from slurm.job import _data
from slurm.profile import load_profile
from slurm.staging import check_archive, is_archive, staged
from tests.harness.support import small_spec, write_spec
from tests.slurm.support import allocation, small_profile, write_profile


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "shared" / "images.v1.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name in ("train/n01/a.JPEG", "train/n02/b.JPEG", "val/n01/c.JPEG"):
            (tmp_path / "file").write_text(name)
            tar.add(tmp_path / "file", name)
    return path


@pytest.fixture
def extractions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one with each call of tar."""
    calls: list[object] = []
    run = subprocess.run

    def counted(command: list[object], **options: object) -> object:
        calls.append(command)
        return run(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(staging.subprocess, "run", counted)
    return calls


def test_the_workers_of_a_node_extract_once_and_all_have_it_whole(
    archive: Path, tmp_path: Path, extractions: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    together = threading.Barrier(4)

    def worker(_: int) -> Path:
        together.wait()
        return staged(archive, "$NODE_DISK/someone")

    with ThreadPoolExecutor(4) as pool:
        (folder,) = set(pool.map(worker, range(4)))
    assert folder.is_relative_to(tmp_path / "disk" / "someone") and len(extractions) == 1
    assert (folder / "train/n02/b.JPEG").read_text() == "train/n02/b.JPEG"
    assert staged(archive, "$NODE_DISK/someone") == folder and len(extractions) == 1


def test_what_a_killed_job_left_half_is_done_again(archive: Path, tmp_path: Path) -> None:
    folder = staged(archive, str(tmp_path / "disk"))
    (folder / ".whole").unlink()
    shutil.rmtree(folder / "train")
    (folder / "train").write_text("in the way")
    assert (staged(archive, str(tmp_path / "disk")) / "train/n01/a.JPEG").is_file()


def test_another_archive_of_the_same_name_is_another_folder(archive: Path, tmp_path: Path) -> None:
    before = staged(archive, str(tmp_path / "disk"))
    with tarfile.open(archive, "a") as tar:
        tar.add(tmp_path / "file", "val/n02/d.JPEG")
    after = staged(archive, str(tmp_path / "disk"))
    assert after != before and (after / "val/n02/d.JPEG").is_file()


def test_no_room_a_damaged_archive_and_none_at_all_are_one_sentence(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = str(tmp_path / "disk")
    assert check_archive(archive, disk).passed
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(DataError, match=r"0\.0 GB free, .*; make room, or name another scratch"):
            staged(archive, disk)
        assert "make room" in check_archive(archive, disk).detail
        staged_before = tmp_path / "other"
    staged(archive, str(staged_before))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
        assert check_archive(archive, str(staged_before)).passed  # it is there already
    archive.write_bytes(archive.read_bytes()[:700])
    assert check_archive(archive, disk).detail == f"{archive} ends early, as no tar file does; copy or make it again"
    with pytest.raises(DataError, match=r"tar cannot extract .*images\.v1\.tar"):
        staged(archive, disk)
    archive.unlink()
    with pytest.raises(DataError, match="cannot be put into"):
        staged(archive, disk)
    assert not check_archive(archive, disk).passed


def test_no_worker_goes_on_before_all_nodes_have_the_data(archive: Path, tmp_path: Path) -> None:
    profile = load_profile(str(write_profile(tmp_path, small_profile(scratch=str(tmp_path / "disk")))))
    shared: TCPStore = dist.HashStore()  # type: ignore[assignment]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_data, archive, profile, allocation(rank=0, world_size=2), shared)
        time.sleep(0.5)
        assert not first.done()
        folder = _data(archive, profile, allocation(rank=1, world_size=2), shared)
        assert first.result() == folder == staged(archive, str(tmp_path / "disk"))
    assert _data(tmp_path, profile, allocation(), shared) == tmp_path


def test_an_archive_needs_a_scratch_in_the_profile(tmp_path: Path) -> None:
    assert is_archive(Path("/data/imagenet.tar")) and not is_archive(Path("/data/imagenet")) and not is_archive(None)
    plan = make_plan(load_spec(write_spec(tmp_path, small_spec())), tmp_path)
    for scratch in ({}, {"scratch": "/local"}):
        profile = load_profile(str(write_profile(tmp_path, small_profile(**scratch))))
        asked = submit.Request(plan, tmp_path, Path("/data/imagenet.tar"), "mine", profile, "command", True)
        if scratch:
            submit.check(asked)
        else:
            with pytest.raises(SpecError, match="the profile mine has no scratch"):
                submit.check(asked)
