"""What the processes of `test_hook_trap.py` do: train with DDP's PowerSGD hook, and with ours, through checkpoints."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from algorithms import PowerSGD, ProcessGroupCollectives
from tests.algorithms.problems import reloaded

WORLD_SIZE, RANK, LR = 4, 1, 0.05
ROWS, COLUMNS = 24, 16
CHECKPOINTS, LATER = (20, 80, 320), 20
"""Steps after which a checkpoint is made, and for which runs go on from it."""


class Run:
    """One worker's training on its own quadratic, whose middle is at a matrix that differs from worker to worker."""

    def __init__(self, rank: int) -> None:
        self.rank, self.step = rank, 0
        self.model = nn.Linear(COLUMNS, ROWS, dtype=torch.float64)
        for parameter in self.model.parameters():
            nn.init.zeros_(parameter)
        self.middles = [_normal(rank, number, each) for number, each in enumerate(self.model.parameters())]

    def loss(self, model: nn.Module) -> Tensor:
        """Its gradient is x, less the worker's middle, with noise. The forward pass is there for DDP to see it."""
        total = model(torch.zeros(1, COLUMNS, dtype=torch.float64)).sum() * 0
        for number, (x, middle) in enumerate(zip(self.model.parameters(), self.middles, strict=True)):
            noise = _normal(self.rank, number, x, self.step)
            total = total + 0.5 * (x - middle).square().sum() + 0.5 * (noise * x).sum()
        self.step += 1
        return total

    def parameters(self) -> Tensor:
        return torch.cat([each.detach().reshape(-1) for each in self.model.parameters()])


def _normal(rank: int, number: int, like: Tensor, step: int = -1) -> Tensor:
    seed = ((step + 1) * WORLD_SIZE + rank) * 2 + number
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class WithHook(Run):
    """DDP with torch's PowerSGD hook, and SGD."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.state = PowerSGDState(None, matrix_approximation_rank=RANK, start_powerSGD_iter=2)
        self.ddp = DistributedDataParallel(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR)

        def hook(run: WithHook, bucket: GradBucket) -> torch.futures.Future[Tensor]:
            future: torch.futures.Future[Tensor] = powerSGD_hook(run.state, bucket)
            return future

        hook.__annotations__ = {"bucket": GradBucket, "return": torch.futures.Future[Tensor]}
        self.ddp.register_comm_hook(self, hook)

    def take(self, count: int) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            self.loss(self.ddp).backward()
            self.optimizer.step()

    def save(self) -> bytes:
        file = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "hook": self.state, "step": self.step}, file)
        return file.getvalue()

    def load(self, content: bytes) -> None:
        saved = torch.load(io.BytesIO(content), weights_only=False)
        self.model.load_state_dict(saved["model"])
        self.state, self.step = saved["hook"], saved["step"]
        self.state.process_group = dist.group.WORLD

    def forget(self) -> None:
        for error in self.state.error_dict.values():
            error.zero_()

    def error(self) -> Tensor:
        (error,) = self.state.error_dict.values()
        return error

    def memory(self) -> dict[str, int]:
        """Numbers that the hook holds."""
        held = {"error": self.state.error_dict, "P": self.state.p_memory_dict, "Q": self.state.q_memory_dict}
        return {name: sum(each.numel() for each in tensors.values()) for name, tensors in held.items()}


class WithOurs(Run):
    """The same with our PowerSGD, which compresses from the same step on."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        collectives = ProcessGroupCollectives()
        self.optimizer = PowerSGD(self.model.parameters(), lr=LR, rank=RANK, start_step=3, collectives=collectives)

    def take(self, count: int) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            self.loss(self.model).backward()
            self.optimizer.step()

    def save(self) -> bytes:
        file = io.BytesIO()
        torch.save(
            {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}, file
        )
        return file.getvalue()

    def load(self, content: bytes) -> None:
        saved = torch.load(io.BytesIO(content), weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]

    def load_forced(self, content: bytes) -> None:
        """As if it were this worker's own, which takes a lie in the file."""
        saved = torch.load(io.BytesIO(content), weights_only=True)
        saved["optimizer"]["flat"]["rank"] = self.rank
        file = io.BytesIO()
        torch.save(saved, file)
        self.load(file.getvalue())

    def forget(self) -> None:
        self.error().zero_()

    def error(self) -> Tensor:
        assert self.optimizer.error is not None
        return self.optimizer.error

    def memory(self) -> dict[str, int]:
        flat = self.optimizer.state_dict()["flat"]
        return {"error": flat["error"].numel(), "Q": flat["right_factors"].numel()}


def from_rank_0(content: bytes) -> bytes:
    """Rank 0's file, which the others would find where it was saved."""
    found: list[Any] = [content]
    dist.broadcast_object_list(found, src=0)
    result: bytes = found[0]
    return result


def branches(run: WithHook | WithOurs, common: Callable[[bytes], None]) -> Iterator[dict[str, Any]]:
    """At each checkpoint: the error's norm, and the parameters some steps later, by what was loaded before."""
    for stop in CHECKPOINTS:
        run.take(stop - run.step)
        content, norm = run.save(), run.error().norm().item()
        at_stop = run.parameters()
        later = {}
        loaded: dict[str, Callable[[], None]] = {
            "uninterrupted": lambda: None,
            "own": lambda content=content: run.load(content),  # type: ignore[misc]
            "rank 0's": lambda content=content: common(from_rank_0(content)),  # type: ignore[misc]
            "none": lambda content=content: (run.load(content), run.forget()),  # type: ignore[misc]
        }
        for name, load in loaded.items():
            load()
            assert torch.equal(run.parameters(), at_stop) or name == "uninterrupted"
            run.take(LATER)
            later[name] = run.parameters()
        run.load(content)
        yield {"stop": stop, "norm": norm, "later": later}


def process(rank: int, folder: Path) -> None:
    """All that one process has to do, so that starting it is paid for once."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD_SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE, timeout=timedelta(seconds=60))
    hook, ours = WithHook(rank), WithOurs(rank)
    results: dict[str, Any] = {
        "hook": list(branches(hook, hook.load)),
        "ours": list(branches(ours, ours.load_forced)),
        "memory": {"hook": hook.memory(), "ours": ours.memory()},
    }
    refusal = None
    content = from_rank_0(ours.save())
    try:
        ours.load(content)
    except ValueError as error:
        refusal = str(error)
    results["refusal"] = refusal
    torch.save(copy.deepcopy(reloaded(results)), folder / f"{rank}.pt")
    dist.barrier()
