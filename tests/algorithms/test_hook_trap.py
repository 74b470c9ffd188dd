"""A checkpoint of one rank, given to all, as torch's PowerSGD hook takes it: what docs/lost-state.md says of that."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from tests.algorithms.problems import join, run_processes

WORLD_SIZE, ROWS, COLUMNS = 4, 24, 16
CHECKPOINTS, LATER = (20, 80, 320), 20
"""Steps after which a checkpoint is made, and for which runs go on from it."""


def normal(rank: int, like: Tensor, step: int = -1) -> Tensor:
    generator = torch.Generator().manual_seed((step + 1) * WORLD_SIZE + rank)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64)


class Run:
    """DDP with the hook, and SGD, on each worker's own quadratic, whose middle differs from worker to worker."""

    def __init__(self, rank: int) -> None:
        self.rank, self.step = rank, 0
        self.model = nn.Linear(COLUMNS, ROWS, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.model.weight)
        self.middle = normal(rank, self.model.weight)
        self.state = PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
        self.ddp = DistributedDataParallel(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)

        def hook(run: Run, bucket: GradBucket) -> torch.futures.Future[Tensor]:
            future: torch.futures.Future[Tensor] = powerSGD_hook(run.state, bucket)
            return future

        hook.__annotations__ = {"bucket": GradBucket, "return": torch.futures.Future[Tensor]}
        self.ddp.register_comm_hook(self, hook)

    def take(self, count: int) -> Tensor:
        """The weights after so many steps more."""
        for _ in range(count):
            self.step += 1
            self.optimizer.zero_grad()
            x, noise = self.model.weight, normal(self.rank, self.model.weight, self.step)
            seen = self.ddp(torch.zeros(1, COLUMNS, dtype=torch.float64)).sum() * 0  # for DDP to see a forward pass
            (seen + 0.5 * (x - self.middle).square().sum() + 0.5 * (noise * x).sum()).backward()
            self.optimizer.step()
        return self.model.weight.detach().clone()

    def save(self) -> bytes:
        file = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "hook": self.state, "step": self.step}, file)
        return file.getvalue()

    def load(self, content: bytes) -> None:
        saved = torch.load(io.BytesIO(content), weights_only=False)
        self.model.load_state_dict(saved["model"])
        self.state, self.step = saved["hook"], saved["step"]
        self.state.process_group = dist.group.WORLD


def process(rank: int, folder: Path) -> None:
    """At each checkpoint: the error's norm, and the weights some steps later, by what was loaded before."""
    join(rank, folder, WORLD_SIZE)
    run, results = Run(rank), []
    for stop in CHECKPOINTS:
        run.take(stop - run.step)
        own = run.save()
        (error,) = run.state.error_dict.values()
        box, norm = [own], error.norm().item()
        dist.broadcast_object_list(box)
        later = {"uninterrupted": run.take(LATER)}
        for loaded, content in (("own", own), ("rank 0's", box[0]), ("no errors", own)):
            run.load(content)
            if loaded == "no errors":
                for error in run.state.error_dict.values():
                    error.zero_()
            later[loaded] = run.take(LATER)
        run.load(own)
        results.append({"norm": norm, "later": later})
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    return run_processes(process, WORLD_SIZE, tmp_path_factory.mktemp("processes"))


def test_the_error_grows_and_rank_0s_file_for_all_does_more_harm_than_none(results: list[list[dict[str, Any]]]) -> None:
    for first, second, third in results:
        assert second["norm"] > 2.5 * first["norm"] and third["norm"] > 3 * second["norm"]
    moved = [
        {loaded: float((each["later"][loaded] - each["later"]["uninterrupted"]).norm()) for loaded in each["later"]}
        for each in results[0]
    ]
    assert all(each["own"] == 0 for each in moved)
    assert moved[1]["rank 0's"] > 1.5 * moved[0]["rank 0's"] and moved[2]["rank 0's"] > 1.5 * moved[1]["rank 0's"]
    harm = [each["rank 0's"] / each["no errors"] for each in moved]
    assert 1 < harm[0] < harm[1] < harm[2]
