"""How many threads read images: as many as cores fall to a process, as it was bound by whoever
started it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from cser_bench.harness.tasks import imagenet
from cser_bench.harness.tasks.cores import note_others
from cser_bench.harness.workers.process_group import joined
from cser_bench.harness.workers.processes import Worker, start_workers


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    imagenet.readers.cache_clear()
    yield
    imagenet.readers.cache_clear()
    note_others([])


CASES = {
    "one process": ([range(48)], 48),
    "Slurm binds 1 x 8": ([range(8 * rank, 8 * rank + 8) for rank in range(8)], 8),
    "torchrun binds none": ([range(64)] * 8, 8),
    "more processes than cores": ([range(2)] * 8, 1),
    "thirds": ([range(9)] * 3, 3),
    "one of two is bound": ([range(8), range(4)], 6),
}


@pytest.mark.parametrize("case", CASES)
def test_a_process_reads_on_the_cores_that_fall_to_it(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, number = CASES[case]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(len(masks)))
    own_cores = set(masks[0])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: own_cores)
    note_others(set(mask) for mask in masks[1:])
    assert imagenet.readers().number == number


def readers_of(worker: Worker, masks: list[range], hosts: list[str]) -> int:
    """The number of reading threads of a worker that may run on these cores of this host."""
    with pytest.MonkeyPatch.context() as patch:
        own_cores = set(masks[worker.rank])
        patch.setattr(os, "sched_getaffinity", lambda process: own_cores)
        patch.setattr("platform.node", lambda: hosts[worker.rank])
        with joined("cpu", 60.0, worker.init_method, worker.rank, worker.world_size):
            number = imagenet.readers().number
            # A worker that left at once would close what slower ones still connect to.
            torch.distributed.barrier()
            return number


@pytest.mark.whole
@pytest.mark.timeout(240)
def test_workers_tell_each_other_which_cores_they_may_run_on() -> None:
    masks = [range(8), range(8), range(8, 24), range(24)]
    with start_workers(readers_of, [(masks, ["a", "a", "a", "b"])] * 4) as workers:
        assert workers.hear_all() == [4, 4, 16, 24]
