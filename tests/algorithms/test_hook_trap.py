"""A checkpoint of one rank, given to all: what that does with torch's PowerSGD hook, and with our PowerSGD."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from tests.algorithms import hook_trap
from tests.algorithms.hook_trap import CHECKPOINTS, COLUMNS, RANK, ROWS, WORLD_SIZE

NUMEL = ROWS * COLUMNS + ROWS
Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Of each rank."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "torch._dynamo"])
    mp.start_processes(hook_trap.process, (folder,), nprocs=WORLD_SIZE, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]


def moved(results: Results, kind: str, number: int, loaded: str) -> float:
    """How far from the uninterrupted run the parameters are, some steps after the checkpoint."""
    later = results[0][kind][number]["later"]
    return float((later[loaded] - later["uninterrupted"]).norm())


def test_all_ranks_agree_and_each_with_its_own_file_goes_on_to_the_bit(results: Results) -> None:
    for kind in ("hook", "ours"):
        for number, _ in enumerate(CHECKPOINTS):
            for name, parameters in results[0][kind][number]["later"].items():
                for other in results[1:]:
                    torch.testing.assert_close(other[kind][number]["later"][name], parameters, rtol=0, atol=1e-12)
            assert moved(results, kind, number, "own") == 0


def test_the_hooks_error_grows_with_the_steps_and_ours_does_not(results: Results) -> None:
    for each in results:
        first, second, third = (each["hook"][number]["norm"] for number in range(3))
        assert second > 2.5 * first and third > 3 * second
        ours = [each["ours"][number]["norm"] for number in range(3)]
        assert ours[2] < 1.3 * ours[1] and third > 8 * ours[2]


def test_rank_0s_file_for_all_moves_the_parameters_by_what_has_added_up(results: Results) -> None:
    by_hook = [moved(results, "hook", number, "rank 0's") for number in range(3)]
    by_ours = [moved(results, "ours", number, "rank 0's") for number in range(3)]
    assert by_hook[1] > 1.5 * by_hook[0] and by_hook[2] > 1.5 * by_hook[1]
    assert by_hook[2] > 4 * max(by_ours)


def test_ours_refuses_it_in_a_sentence(results: Results) -> None:
    assert results[0]["refusal"] is None
    for rank in range(1, WORLD_SIZE):
        refusal = results[rank]["refusal"]
        assert f"it is worker 0's, this is worker {rank}" in refusal and "\n" not in refusal


def test_it_is_better_to_drop_the_errors_than_to_load_one_ranks(results: Results) -> None:
    """As docs/lost-state.md says, and the more so the longer the run was."""
    by_hook = [moved(results, "hook", n, "rank 0's") / moved(results, "hook", n, "none") for n in range(3)]
    assert 1 < by_hook[0] < by_hook[1] < by_hook[2]


def test_what_both_hold_in_memory(results: Results) -> None:
    assert results[0]["memory"] == {
        "hook": {"error": NUMEL, "P": ROWS * RANK, "Q": COLUMNS * RANK},
        "ours": {"error": NUMEL, "Q": COLUMNS * RANK},
    }
