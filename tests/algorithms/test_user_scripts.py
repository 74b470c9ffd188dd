"""The optimisers in anyone's script: four processes that do to them what scripts do, and what they must be told."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from tests.algorithms import user_scripts
from tests.algorithms.problems import NAMES

slow_to_start = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], Any]]:
    """What four processes, started once, found in each case."""
    folder: Path = tmp_path_factory.mktemp("processes")
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "torch._dynamo"])
    mp.start_processes(user_scripts.process, (folder,), nprocs=user_scripts.WORLD_SIZE, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(user_scripts.WORLD_SIZE)]


@slow_to_start
@pytest.mark.parametrize("case", user_scripts.CASES)
@pytest.mark.parametrize("name", NAMES)
def test_in_four_processes(found: list[dict[tuple[str, str], Any]], name: str, case: str) -> None:
    wrong = [f"rank {rank}: {results[case, name]}" for rank, results in enumerate(found) if results[case, name]]
    assert not wrong, "\n".join(wrong)
