"""Overlap: the same bits and the same traffic as without it, begun before the backward pass is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.algorithms import overlap_processes as processes
from tests.algorithms.problems import run_processes

slow_to_start = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, Any], list[str]]]:
    """What three processes, started once, found wrong, and were told; that they end is part of the test."""
    folder: Path = tmp_path_factory.mktemp("processes")
    return run_processes(processes.process, processes.WORLD_SIZE, folder)


@slow_to_start
@pytest.mark.parametrize("key", [*processes.CASES, *processes.OTHERS])
def test_overlap_changes_no_bit_and_what_would_change_a_message_afterwards_is_refused(
    found: list[tuple[dict[str, Any], list[str]]], key: str
) -> None:
    wrong = [f"rank {rank}: {results[key]}" for rank, (results, _) in enumerate(found) if results.get(key)]
    assert not wrong and any(key in results for results, _ in found), "\n".join(wrong)


@slow_to_start
def test_under_a_grad_scaler_nothing_is_sent_early(found: list[tuple[dict[str, Any], list[str]]]) -> None:
    words = "overlap: a GradScaler takes the scale out of the gradients in step(), so nothing is sent before step()"
    assert [said for _, said in found] == [[words]] * processes.WORLD_SIZE
