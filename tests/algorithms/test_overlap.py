"""Overlap: the same bits and the same traffic as without it, begun before the backward pass is done."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from tests.algorithms import overlap_processes as processes
from tests.algorithms.overlap_processes import CASES, FORETELLING, NUM_STEPS


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What three processes, started once, found; that they end is part of the test."""
    folder: Path = tmp_path_factory.mktemp("processes")
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "torch._dynamo"])
    mp.start_processes(processes.process, (folder,), nprocs=processes.WORLD_SIZE, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes.WORLD_SIZE)]


def assert_same(without: dict[str, Any], overlapped: dict[str, Any]) -> None:
    assert without["vectors"].keys() == overlapped["vectors"].keys()
    for key, vector in without["vectors"].items():
        assert torch.equal(vector, overlapped["vectors"][key]), key
    assert without["training"] == overlapped["training"]
    assert overlapped["left"] == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize("world", ["", " alone"])
@pytest.mark.parametrize("key", CASES)
def test_overlap_changes_no_bit(found: list[dict[str, Any]], key: str, world: str) -> None:
    for results in found:
        without, overlapped = results[key + world]
        assert_same(without, overlapped)
        wasted = overlapped["control"] - without["control"]
        assert (wasted > 0) == (CASES[key].habit in ("accumulate", "skip", "forget", "scaler", "reload")), wasted


def test_overlap_changes_no_bit_in_a_group_of_some(found: list[dict[str, Any]]) -> None:
    for rank in (0, 2):
        assert_same(*found[rank]["pair"])
    assert not torch.equal(found[0]["pair"][0]["vectors"]["x"], found[0]["mcser-blocks"][0]["vectors"]["x"])
