"""What the processes of the overlap's tests do with each case; what they find wrong, they raise."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from algorithms import (
    BlockSparsifier,
    Collectives,
    DistributedOptimizer,
    Identity,
    PerTensorBlockSparsifier,
    ProcessGroupCollectives,
    Purpose,
    RandomK,
    Zero,
)
from algorithms.core.overlap import EarlyMeans
from algorithms.core.state import OTHER_TYPES
from tests.algorithms.problems import join, make_optimizer, outcomes, own_settings, reloaded, switches

WORLD_SIZE, NUM_STEPS, INTERVAL = 3, 7, 3
SIZES = (7, 23, 19, 5)
OVERLAPPING = ("ef_sgd", "qsparse_local_sgd", "csea", "cser_pl", "cser", "mcser", "cser_released", "mcser_released")
BLOCKS = {
    "block": BlockSparsifier(6),  # 740 = 6 * 123 + 2: blocks of 124 that cross tensors' borders
    "blocks": BlockSparsifier(20, num_blocks=60),
    "per_tensor": PerTensorBlockSparsifier(3, 2, 1.5),
    "zero": Zero(),
    "random_k": RandomK(4),
    "identity": Identity(),
}


@dataclass(frozen=True)
class Case:
    """A training in which overlap must change nothing."""

    name: str = "mcser"
    blocks: tuple[str, ...] = ("blocks", "block")
    own: dict[str, Any] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    first_dtype: torch.dtype | None = None
    """The first layer's, if it is another."""
    habit: str = "plain"
    """How the training script goes about a step: see `one_step`."""
    group: str = "all"
    """Who trains: all three workers, the first and the last as a pair, or each alone."""


WASTEFUL = ("accumulate", "skip", "scaler", "reload")
"""Habits in which something is sent that no step asks for."""
HABITS = (*WASTEFUL, "to_none", "no_sync", "forget", "branch", "other_branch", "harmless", "freeze")
ADAMW: dict[str, Any] = {"local_step": "adamw", "momentum": None, "lr": 0.01}
CASES = {
    **{f"{name}-{key}": Case(name, (key, "block")) for name in OVERLAPPING for key in [*BLOCKS][:3]},
    **{f"{name}-released": Case(name, own=dict.fromkeys(switches(name), True)) for name in OVERLAPPING[-2:]},
    **{
        f"{name}-bf16": Case(name, common={"communication_dtype": torch.bfloat16})
        for name in ("ef_sgd", "csea", "mcser")
    },
    **{f"{name}-{habit}": Case(name, habit=habit) for name in ("ef_sgd", "mcser") for habit in HABITS},
    **{f"{name}-plain": Case(name, common={"momentum": 0.0, "weight_decay": 0.0}) for name in ("ef_sgd", "cser")},
    **{f"{name}-adamw": Case(name, common=ADAMW) for name in ("ef_sgd", "mcser")},
    "mcser-muon": Case("mcser", common={**ADAMW, "local_step": "muon"}),
    "ef_sgd-branch-adamw": Case("ef_sgd", common=ADAMW, habit="branch"),
    "ef_sgd-gradients": Case("ef_sgd", own={"error_feedback_on": "gradients"}, common=ADAMW),
    "ef_sgd-double": Case("ef_sgd", dtype=torch.float64),
    **{
        f"{name}-{first}": Case(name, first_dtype=first, habit=habit)
        for name, first, habit in (
            ("ef_sgd", torch.float64, "accumulate"),
            ("mcser", torch.float64, "reload"),
            ("mcser", torch.bfloat16, "plain"),
        )
    },
    "qsparse-keep": Case("qsparse_local_sgd", own={"keep_master": True}),
    "sgd": Case("sgd"),
    "local_sgd": Case("local_sgd"),
    "cser-explicit": Case("cser", own={"explicit_error": True}),
    **{f"{name}-alone": Case(name, group="alone") for name in ("ef_sgd", "csea", "mcser")},
    "mcser-pair": Case(group="pair"),
    "cser-zero": Case("cser", ("zero", "block")),
    "mcser-others": Case("mcser", ("random_k", "identity")),
}
STREAMING: dict[str, Any] = {"num_fragments": 3, "delay": 2}
CASES |= {
    "streaming": Case("streaming_diloco", own=STREAMING),
    "streaming-4-bits": Case("streaming_diloco", own={**STREAMING, "bits": 4}, habit="reload"),
    "streaming-bf16": Case("streaming_diloco", own=STREAMING, common={"communication_dtype": torch.bfloat16}),
}
NEVER_EARLY = ("sgd", "local_sgd", "cser-explicit", "mcser-others", "streaming", "streaming-bf16", "streaming-4-bits")
"""Messages that need all gradients. Those of Streaming DiLoCo travel beside the steps that follow."""


class Net(nn.Module):
    """Three layers, the middle one of which can be left out."""

    def __init__(self, rank: int, dtype: torch.dtype, first_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(rank)
            self.first, self.middle, self.last = (nn.Linear(a, b) for a, b in itertools.pairwise(SIZES))
            self.shortcut = torch.randn(SIZES[1], SIZES[2]).to(dtype)
        self.to(dtype)
        self.first.to(first_dtype)

    def forward(self, inputs: Tensor, short: bool = False) -> Tensor:
        hidden = self.first(inputs.to(self.first.weight.dtype)).tanh().to(inputs.dtype)
        return self.last(hidden @ self.shortcut if short else self.middle(hidden).tanh())  # type: ignore[no-any-return]


def loss_of(model: Net, rank: int, step: int, short: bool = False, part: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + 10 * rank + part)
    inputs = torch.randn(6, SIZES[0], generator=generator).to(model.last.weight.dtype)
    return (model(inputs, short) - inputs[:, : SIZES[-1]].sin()).square().mean()


def make(case: Case, collectives: Collectives, model: Net) -> DistributedOptimizer:
    own = own_settings(case.name, [BLOCKS[key] for key in case.blocks], INTERVAL) | case.own
    momentum = {"momentum": 0.0} if case.name in ("cser", "csea") and not case.common else {}
    return make_optimizer(case.name, model, own, collectives, **(momentum | case.common))


def one_step(habit: str, optimizer: DistributedOptimizer, model: Net, step: int, scaler: torch.amp.GradScaler) -> None:
    """A step as scripts do it: gradients set to None or accumulated, steps skipped, layers left out, and so on."""
    rank = optimizer.collectives.rank
    if habit == "to_none":
        model.zero_grad()
    elif habit != "forget" or step % 2:
        optimizer.zero_grad()
    if habit == "freeze":
        model.middle.requires_grad_(step % 3 != 0)
    if habit in ("no_sync", "accumulate"):
        with optimizer.no_sync() if habit == "no_sync" else torch.enable_grad():
            loss_of(model, rank, step, part=1).backward()
    if habit == "skip" and step % 2 == 0:
        loss_of(model, rank, step, part=2).backward()
        optimizer.zero_grad()
        early = optimizer.collectives.early
        assert early is None or early.drop() == [], "a step that is left out leaves nothing under way"
    short = step % 2 == 0 and (habit in ("branch", "skip") or (habit == "other_branch" and rank == 1))
    loss = loss_of(model, rank, step, short)
    if habit != "scaler":
        loss.backward()
        if habit == "harmless":
            nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        optimizer.step()
        return
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    if (step, rank) in ((2, 0), (5, 1)):
        model.first.weight.grad.view(-1)[0] = float("inf")  # type: ignore[union-attr]
    scaler.step(optimizer)
    scaler.update()


def outcome(case: Case, overlap: bool, group: dist.ProcessGroup | None = None) -> dict[str, Any]:
    """Parameters, state and traffic after a training, and how many sums were begun before their step."""
    collectives = ProcessGroupCollectives(group, overlap)
    model = Net(collectives.rank, case.dtype, case.first_dtype)
    optimizer = make(case, collectives, model)
    schedule = StepLR(optimizer, 2, gamma=0.7)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    begun = count_early(collectives.early, optimizer)
    for step in range(1, NUM_STEPS + 1):
        one_step(case.habit, optimizer, model, step, scaler)
        schedule.step()
        if case.habit == "reload" and step == 4:
            loss_of(model, collectives.rank, 99).backward()  # a checkpoint may come at any time
            state = reloaded(optimizer.state_dict()), reloaded(model.state_dict())
            model = Net(7, case.dtype, case.first_dtype)
            optimizer = make(case, collectives, model)
            optimizer.load_state_dict(state[0])
            model.load_state_dict(state[1])
            schedule.optimizer = optimizer
    flat = optimizer.state_dict()["param_groups"][0]["flat"] | dict(model.state_dict())
    for other in flat.pop(OTHER_TYPES, {}).values():
        flat |= {f"other {key}": value for key, value in other.items()}
    assert not collectives.early or collectives.early.drop() == [], "nothing is left under way"
    return {
        "vectors": {key: value.clone() for key, value in flat.items() if isinstance(value, Tensor)},
        "training": optimizer.traffic.training(),
        "control": optimizer.traffic[Purpose.CONTROL].bits,
        "begun": len(begun),
    }


def changes_no_bit(key: str, group: dist.ProcessGroup | None) -> None:
    case = CASES[key]
    without, overlapped = (outcome(case, overlap, group) for overlap in (False, True))
    for part, vector in without["vectors"].items():
        assert torch.equal(vector, overlapped["vectors"][part]), part
    assert without["vectors"].keys() == overlapped["vectors"].keys()
    assert without["training"] == overlapped["training"]
    if case.group == "all":
        wasted = overlapped["control"] - without["control"]
        assert (wasted > 0) == (case.habit in WASTEFUL and key not in NEVER_EARLY), wasted
        assert without["begun"] == 0 and (overlapped["begun"] > 0) == (key not in NEVER_EARLY)
    # Only in the first step, which does not know of the GradScaler.
    assert key != "mcser-scaler" or overlapped["begun"] == 1


def count_early(early: EarlyMeans | None, optimizer: DistributedOptimizer) -> list[Purpose]:
    """A list that grows with each sum that is begun outside of `step()`."""
    log: list[Purpose] = []
    if early is None:
        return log
    begin, stepping = early.begin, [False]

    def spy(message: Tensor, purpose: Purpose) -> None:
        if not stepping[0]:
            log.append(purpose)
        begin(message, purpose)

    early.begin = spy  # type: ignore[method-assign]
    optimizer.register_step_pre_hook(lambda *_: stepping.__setitem__(0, True))
    optimizer.register_step_post_hook(lambda *_: stepping.__setitem__(0, False))
    return log


def refuses(change: Callable[[DistributedOptimizer, Net], object]) -> None:
    """A step says so where something was changed after the backward pass."""
    collectives = ProcessGroupCollectives(overlap=True)
    model = Net(0, torch.float32)
    optimizer = make(Case("csea"), collectives, model)
    for step in range(1, 4):
        optimizer.zero_grad()
        loss_of(model, collectives.rank, step).backward()
        if step < 3:
            optimizer.step()
    change(optimizer, model)
    with pytest.raises(RuntimeError, match=r"^overlap: the error message of this step differs .* overlap=False$"):
        optimizer.step()
    assert collectives.early and collectives.early.drop() == []


def halve_rates(optimizer: DistributedOptimizer, model: Net) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= 0.5


def takes_what_is_no_number() -> None:
    """A training that ends in NaN goes on without complaint, and sends NaN."""
    collectives = ProcessGroupCollectives(overlap=True)
    model = Net(0, torch.float32)
    optimizer = make(Case("csea"), collectives, model)
    for step in range(1, 8):
        optimizer.zero_grad()
        (loss_of(model, collectives.rank, step) * float("nan")).backward()
        optimizer.step()
    assert optimizer.flat.parameters.isnan().all()


def streams_beside_the_steps() -> None:
    """What is sent in one step is not waited for before the step that uses it."""
    collectives, go_on, was_free = ProcessGroupCollectives(overlap=True), threading.Event(), list[bool]()
    model = Net(0, torch.float32)
    optimizer = make(Case("streaming_diloco", own=STREAMING), collectives, model)
    for step in range(1, 6):
        if step == 4:  # What is sent here waits, and is used two steps later.
            hold = lambda: (was_free.append(go_on.wait(20)), ())[1]  # noqa: E731
            collectives.early.beside(hold, torch.zeros(1))  # type: ignore[union-attr]
        optimizer.zero_grad()
        loss_of(model, collectives.rank, step).backward()
        optimizer.step()
        if step == 4:
            assert not was_free
            go_on.set()
    assert optimizer.traffic.training() == optimizer.expected_traffic(5).training() and was_free == [True]


OTHERS: dict[str, Callable[[], None]] = {
    "streams beside the steps": streams_beside_the_steps,
    "clipped afterwards": lambda: refuses(lambda optimizer, model: nn.utils.clip_grad_norm_(model.parameters(), 1e-3)),
    "another rate afterwards": lambda: refuses(halve_rates),
    "no number": takes_what_is_no_number,
}


def process(rank: int, folder: Path) -> None:
    """All that one process has to do, so that starting it is paid for once."""
    join(rank, folder, WORLD_SIZE)
    alone = [dist.new_group([other]) for other in range(WORLD_SIZE)][rank]
    groups = {"all": None, "alone": alone, "pair": dist.new_group([0, 2])}
    mine = [key for key, case in CASES.items() if case.group != "pair" or rank != 1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = outcomes({key: partial(changes_no_bit, key, groups[CASES[key].group]) for key in mine} | OTHERS)
    said = {str(warning.message) for warning in caught if "overlap" in str(warning.message)}
    torch.save((found, sorted(said)), folder / f"{rank}.pt")
    # Ends with a sum under way: that must not keep the process from ending.
    model = Net(0, torch.float32)
    make(Case("ef_sgd"), ProcessGroupCollectives(overlap=True), model)
    loss_of(model, rank, 1).backward()
