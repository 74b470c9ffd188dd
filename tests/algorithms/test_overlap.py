"""Overlap: the same bits and the same traffic as without it, begun before the backward pass is done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import (
    EFSGD,
    BlockSparsifier,
    DistributedOptimizer,
    Identity,
    PerTensorBlockSparsifier,
    Purpose,
    RandomK,
    SoloCollectives,
    Zero,
)
from algorithms.core.compressors import Draw
from tests.algorithms import overlap_processes as processes
from tests.algorithms.overlap_processes import CASES, OVERLAPPING, Net, loss_of
from tests.algorithms.problems import flat_of, make_optimizer, own_settings, run_processes

slow_to_start = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What three processes, started once, found; that they end is part of the test."""
    return run_processes(processes.process, processes.WORLD_SIZE, tmp_path_factory.mktemp("processes"))


def assert_same(without: dict[str, Any], overlapped: dict[str, Any]) -> None:
    assert without["vectors"].keys() == overlapped["vectors"].keys()
    for key, vector in without["vectors"].items():
        assert torch.equal(vector, overlapped["vectors"][key]), key
    assert without["training"] == overlapped["training"]
    assert overlapped["left"] == []


@slow_to_start
@pytest.mark.parametrize("key", CASES)
def test_overlap_changes_no_bit(found: list[dict[str, Any]], key: str) -> None:
    for results in found:
        without, overlapped = results[key]
        assert_same(without, overlapped)
        wasted = overlapped["control"] - without["control"]
        assert (wasted > 0) == (CASES[key].habit in processes.WASTEFUL and key.split("-")[0] != "sgd"), wasted
        assert without["begun"] == 0
        assert (overlapped["begun"] > 0) == (key not in ("sgd", "local_sgd", "cser-explicit"))


@slow_to_start
@pytest.mark.parametrize("name", processes.ALONE)
def test_overlap_changes_no_bit_for_one_worker(found: list[dict[str, Any]], name: str) -> None:
    for results in found:
        assert_same(*results[f"{name} alone"])


@slow_to_start
def test_overlap_changes_no_bit_in_a_group_of_some(found: list[dict[str, Any]]) -> None:
    for rank in (0, 2):
        assert_same(*found[rank]["pair"])
    assert not torch.equal(found[0]["pair"][0]["vectors"]["x"], found[0]["mcser-blocks"][0]["vectors"]["x"])


def touched_tensors(optimizer: DistributedOptimizer, purpose: str, step: int) -> set[int]:
    compressor = getattr(optimizer, f"{purpose}_compressor", None) or optimizer.compressor  # type: ignore[attr-defined]
    layout = optimizer.flat.layout
    mask = torch.zeros(layout.numel)
    support = compressor.support(layout, Draw(optimizer.seed, step, purpose))
    support.copy_(mask, torch.ones(support.payload_numel))
    return {number for number, tensor in enumerate(layout.tensors) if tensor.view(mask).any()}


@slow_to_start
@pytest.mark.parametrize("change", ["clip", "lr"])
def test_what_changes_a_message_afterwards_is_refused(found: list[dict[str, Any]], change: str) -> None:
    for results in found:
        assert results["refused"][change].startswith("step 3: overlap: the error message of this step differs")
        assert results["refused"][change].endswith("make the collectives with overlap=False; left []")


@slow_to_start
def test_under_a_grad_scaler_nothing_is_sent_early(found: list[dict[str, Any]]) -> None:
    for results in found:
        assert results["warnings"] == [
            "overlap: a GradScaler takes the scale out of the gradients in step(), so nothing is sent before step()"
        ]
        assert results["mcser-scaler"][1]["begun"] == 1, "only in the first step, which did not know of it"


@slow_to_start
def test_not_a_number_is_no_difference(found: list[dict[str, Any]]) -> None:
    assert all(results["diverged"] == [True] for results in found)


class Recording(SoloCollectives):
    """Keeps what is sent for training."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, Tensor] = {}

    def all_reduce_mean_(self, tensor: Tensor, purpose: Purpose) -> None:
        self.sent[purpose.value] = tensor.clone()


SPARSIFIERS = {
    "block": (BlockSparsifier(6), BlockSparsifier(6)),
    "blocks": (BlockSparsifier(25, num_blocks=100), BlockSparsifier(9)),
    "per_tensor": (PerTensorBlockSparsifier(3, 2, 1.5), PerTensorBlockSparsifier(2)),
    "mixed": (Zero(), BlockSparsifier(5)),
    "others": (RandomK(4), Identity()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sparsifiers", SPARSIFIERS)
@pytest.mark.parametrize("name", OVERLAPPING)
def test_early_messages_are_what_the_step_sends(name: str, sparsifiers: str, dtype: torch.dtype) -> None:
    """To the bit, with its size and tensors; and what is not early has all tensors or depends on other workers."""
    model, collectives = Net(0, dtype), Recording()
    optimizer = make_optimizer(name, model, own_settings(name, SPARSIFIERS[sparsifiers], 3), collectives)
    num_early = num_sent = 0
    for step in range(1, 25):
        optimizer.zero_grad()
        loss_of(model, 0, step).backward()
        early = {message.purpose.value: message for message in optimizer.early_messages(step)}
        payloads = {purpose: message.payload() for purpose, message in early.items()}
        before = flat_of(optimizer)
        assert torch.equal(before, optimizer.flat.parameters[0])
        collectives.sent.clear()
        optimizer.step()
        assert early.keys() <= collectives.sent.keys()
        for purpose, message in early.items():
            sent = collectives.sent[purpose]
            assert torch.equal(payloads[purpose], sent)
            assert message.payload_bits == 32 * sent.numel()
            assert set(message.tensors) == touched_tensors(optimizer, purpose, step)
            assert list(message.tensors) == sorted(message.tensors)
        for purpose in collectives.sent.keys() - early.keys():
            overlapping = purpose == "error" and "gradient" in collectives.sent and share_coordinates(optimizer, step)
            assert overlapping or sparsifiers == "others"
        num_early += len(early)
        num_sent += len(collectives.sent)
    assert (num_early > 0) == (num_sent > 0 and sparsifiers != "others")


def share_coordinates(optimizer: DistributedOptimizer, step: int) -> bool:
    """Whether the two blocks of a step of CSER overlap, or for strided blocks lie in one tensor."""
    layout = optimizer.flat.layout
    masks = []
    for key, purpose in (("gradient_compressor", Purpose.GRADIENT), ("error_compressor", Purpose.ERROR)):
        support = getattr(optimizer, key).support(layout, optimizer.draw(step, purpose))
        mask = torch.zeros(layout.numel)
        support.copy_(mask, torch.ones(support.payload_numel))
        masks.append(mask)
    if isinstance(optimizer.error_compressor, PerTensorBlockSparsifier):  # type: ignore[attr-defined]
        masks = [torch.stack([tensor.view(mask).any() for tensor in layout.tensors]).float() for mask in masks]
    return bool((masks[0] * masks[1]).any())


def test_slices_have_the_bits_of_the_whole_where_many_threads_share_it() -> None:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        parameters = [torch.nn.Parameter(torch.randn(size)) for size in (100_003, 70_001, 31)]
        groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.03}]
        collectives = Recording()
        optimizer = EFSGD(
            groups,
            lr=0.1,
            momentum=0.9,
            weight_decay=0.013,
            compressor=BlockSparsifier(40, 1000),
            collectives=collectives,
        )
        for step in range(1, 9):
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizer.flat.collect_gradients()
            (message,) = optimizer.early_messages(step)
            payload = message.payload()
            optimizer.step()
            assert torch.equal(payload, collectives.sent["gradient"])
    finally:
        torch.set_num_threads(num_threads)
