"""Channels last: which runs have it, that flat vectors keep it, and that no vector is read in another order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from algorithms import SoloCollectives
from harness.__main__ import main
from harness.records.store import Failure, read_record, read_run
from harness.tasks import blobs
from harness.train import memory_format
from harness.train.build import build_optimizer
from harness.train.memory_format import choose_format, format_of, lay_out
from harness.workers.attempt import attempt_in_threads, attempt_stacked, use_device
from tests.harness.support import CSER, DoctoredBlobs, comparable, job_for, small_config

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def network() -> nn.Module:
    torch.manual_seed(1)
    convolutions = (
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=2, bias=False),
        nn.Conv2d(6, 4, 1),
    )
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(4 * 36, 5))


def test_auto_is_channels_last_for_convolutions_on_gpus() -> None:
    assert choose_format("auto", network(), GPU) == "channels_last"
    assert choose_format("auto", network(), CPU) == "contiguous"
    assert choose_format("auto", nn.Sequential(nn.Linear(3, 3)), GPU) == "contiguous"
    assert choose_format("contiguous", network(), GPU) == "contiguous"


def test_flat_vectors_keep_the_format_through_steps_and_give_the_same_model() -> None:
    config = small_config("mcser", CSER | {"explicit_error": False})
    inputs, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    ends = []
    for wanted, order in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        model = network()
        assert lay_out(model, wanted) == format_of(model) == wanted  # type: ignore[arg-type]
        optimizer = build_optimizer(config, model, SoloCollectives(), 40)
        for _ in range(3):
            optimizer.zero_grad()
            assert model[0](inputs).is_contiguous(memory_format=order)  # type: ignore[index]
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        assert format_of(model) == wanted
        parameters = list(model.parameters())
        assert all(each.grad is not None and each.grad.stride() == each.stride() for each in parameters)
        addresses = [each.data_ptr() for each in parameters]
        assert addresses[0] == optimizer.flat.parameters.data_ptr() and addresses == sorted(addresses)
        ends.append([each.detach().contiguous() for each in parameters])
    for usual, last in zip(*ends, strict=True):
        assert torch.allclose(usual, last, rtol=1e-4, atol=1e-6)


@pytest.fixture
def on_cpu_as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs on the CPU choose their format as they would on a GPU."""
    choose = memory_format.choose_format
    monkeypatch.setattr(memory_format, "choose_format", lambda wanted, model, device: choose(wanted, model, GPU))
    yield


@pytest.mark.usefixtures("on_cpu_as_on_gpu")
def test_a_run_says_its_format_and_goes_on_in_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(rank: int, step: int) -> None:
        if step == 30:
            raise KeyError("stopped")

    config = small_config("cser", CSER)
    with monkeypatch.context() as patch:
        patch.setattr(blobs, "TASK", DoctoredBlobs(hook=stop))
        assert not attempt_in_threads(job_for(config, tmp_path))
    other = job_for(config, tmp_path, memory_format="contiguous")
    assert not attempt_in_threads(other)
    failure = read_record(other.folder / "failure.json", Failure)
    assert failure.kind == "data" and "give --memory-format channels_last, or delete the folder" in failure.message
    assert attempt_in_threads(job_for(config, tmp_path))
    attempts = read_run(other.folder).run.attempts
    assert [(each.memory_format, each.resumed_from_step) for each in attempts] == [
        ("channels_last", 0),
        ("channels_last", 25),
    ]


@pytest.mark.usefixtures("on_cpu_as_on_gpu")
def test_stacked_workers_have_the_format_too_and_do_the_same(tmp_path: Path) -> None:
    config = small_config("mcser", CSER)
    stacked, threads = job_for(config, tmp_path / "stacked"), job_for(config, tmp_path / "threads")
    assert attempt_stacked(stacked) and attempt_in_threads(threads)
    (attempt,) = read_run(stacked.folder).run.attempts
    assert attempt.memory_format == "channels_last"
    assert comparable(stacked.folder) == comparable(threads.folder)


def test_channels_last_on_a_cpu_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["run", "fashion_mnist_small", "--memory-format", "channels_last", "--results", str(tmp_path)]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("error: --memory-format channels_last is for GPUs; ")


def test_cudnn_tries_its_algorithms_on_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    before = torch.backends.cudnn.benchmark
    try:
        torch.backends.cudnn.benchmark = False
        use_device("cpu")
        assert not torch.backends.cudnn.benchmark
        use_device("cuda:0")
        assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.benchmark = before
