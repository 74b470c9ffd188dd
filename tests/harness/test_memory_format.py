"""Channels last: which runs have it, that flat vectors keep it, and that no vector is read in another order."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

from algorithms import SoloCollectives
from harness.records.store import Failure, read_record, read_run
from harness.tasks import blobs
from harness.train.build import build_optimizer, format_of, lay_out
from harness.workers import attempt
from harness.workers.attempt import attempt_stacked
from tests.harness.support import CSER, DoctoredBlobs, job_for, small_config


def network() -> nn.Module:
    torch.manual_seed(1)
    convolutions = (
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=2, bias=False),
        nn.Conv2d(6, 4, 1),
    )
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(4 * 36, 5))


def test_channels_last_is_for_convolutions_on_gpus() -> None:
    model = network()
    lay_out(model)
    assert format_of(model) == "contiguous"
    with patch.object(torch.Tensor, "is_cuda", True):
        lay_out(model, keep_contiguous=True)
        assert format_of(model) == "contiguous"
        lay_out(model)
        lay_out(nn.Linear(3, 3))
    assert format_of(model) == "channels_last"


def test_flat_vectors_keep_the_format_through_steps_and_give_the_same_model() -> None:
    config = small_config("mcser", CSER | {"explicit_error": False})
    inputs, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    ends = []
    for wanted, order in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        model = network()
        model.to(memory_format=order)  # type: ignore[call-overload]
        assert format_of(model) == wanted
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


def test_a_run_says_its_format_and_goes_on_in_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(rank: int, step: int) -> None:
        if step == 30:
            raise KeyError("stopped")

    def as_on_a_gpu(model: nn.Module, keep_contiguous: bool) -> None:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    config = small_config("cser", CSER)
    with monkeypatch.context() as here:
        here.setattr(attempt, "lay_out", as_on_a_gpu)
        with monkeypatch.context() as doctored:
            doctored.setattr(blobs, "TASK", DoctoredBlobs(hook=stop))
            assert not attempt_stacked(job_for(config, tmp_path))
    other = job_for(config, tmp_path)
    assert not attempt_stacked(other)
    failure = read_record(other.folder / "failure.json", Failure)
    assert failure.kind == "data" and "in the memory format channels_last, and here" in failure.message
    monkeypatch.setattr(attempt, "lay_out", as_on_a_gpu)
    assert attempt_stacked(job_for(config, tmp_path))
    attempts = read_run(other.folder).run.attempts
    assert [(each.memory_format, each.resumed_from_step) for each in attempts] == [
        ("channels_last", 0),
        ("channels_last", 25),
    ]
