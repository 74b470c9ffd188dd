"""What processes do to try overlap: each training with it and without; what they find wrong, they
raise."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _world
from torch.optim.lr_scheduler import StepLR

from cser_bench.algorithms import (
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
from cser_bench.algorithms.core.state import OTHER_TYPES
from tests.algorithms.anew import SENT_LATE, begins_anew
from tests.algorithms.problems import (
    ADAMW,
    MUON,
    assert_expected_traffic,
    make_optimizer,
    own_settings,
    reloaded,
    switches,
)
from tests.algorithms.user_scripts import Net, loss_of

NUM_STEPS = 7
INTERVAL = 3
OVERLAPPING = (
    "ef_sgd",
    "qsparse_local_sgd",
    "csea",
    "cser_pl",
    "cser",
    "mcser",
    "cser_released",
    "mcser_released",
)
BLOCKS = {
    # 174 = 5 * 34 + 4: blocks of 35 that cross tensors' borders
    "block": BlockSparsifier(5),
    "blocks": BlockSparsifier(20, num_blocks=60),
    "per_tensor": PerTensorBlockSparsifier(3, 2, 1.5),
    "zero": Zero(),
    "random_k": RandomK(4),
    "identity": Identity(),
}


@dataclass(frozen=True)
class Case:
    """A training in which overlap must change nothing."""

    name: str
    blocks: tuple[str, ...] = ("blocks", "block")
    own: dict[str, Any] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    heads_dtype: torch.dtype | None = None
    """The last layers', if it is another."""
    habit: str = "plain"
    """How the training script goes about a step: see `one_step`."""
    group: str = "all"
    """Who trains: all workers, ranks 0 and 1 as a pair, or each alone."""
    is_early: bool = True
    """Whether there are messages that need a few tensors' gradients alone."""


WASTEFUL = ("accumulate", "skip", "scaler", "reload")
"""Habits in which something is sent that no step asks for."""
HABITS = (
    *WASTEFUL,
    "to_none",
    "no_sync",
    "forget",
    "branch",
    "other_branch",
    "harmless",
    "freeze",
)
STREAMING: dict[str, Any] = {"num_fragments": 3, "delay": 2}
"""Messages that travel beside the steps that follow."""
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "released": (
        OVERLAPPING[-2:],
        {"own": dict.fromkeys(switches("cser_released"), True)},
    ),
    "bf16": (
        ("ef_sgd", "csea", "mcser"),
        {"common": {"communication_dtype": torch.bfloat16}},
    ),
    "without momentum": (
        ("ef_sgd", "cser"),
        {"common": {"momentum": 0.0, "weight_decay": 0.0}},
    ),
    "adamw": (("ef_sgd", "mcser"), {"common": ADAMW}),
    "muon": (("mcser",), {"common": MUON}),
    "adamw, branch": (("ef_sgd",), {"common": ADAMW, "habit": "branch"}),
    "on gradients": (
        ("ef_sgd",),
        {"own": {"error_feedback_on": "gradients"}, "common": ADAMW},
    ),
    "double": (("ef_sgd",), {"dtype": torch.float64}),
    "types, accumulate": (
        ("ef_sgd",),
        {"heads_dtype": torch.float64, "habit": "accumulate"},
    ),
    "types, reload": (("mcser",), {"heads_dtype": torch.float64, "habit": "reload"}),
    "short types": (("mcser",), {"heads_dtype": torch.bfloat16}),
    "keep": (("qsparse_local_sgd",), {"own": {"keep_master": True}}),
    "keep, each step": (
        ("qsparse_local_sgd",),
        {"own": {"keep_master": True, "sync_interval": 1}, "is_early": False},
    ),
    "alone": (("ef_sgd", "csea", "mcser"), {"group": "alone"}),
    "pair": (("mcser",), {"group": "pair"}),
    "zero": (("cser",), {"blocks": ("zero", "block")}),
    "whole": (("sgd", "local_sgd"), {"is_early": False}),
    "explicit": (("cser",), {"own": {"explicit_error": True}, "is_early": False}),
    "streamed": (("streaming_diloco",), {"own": STREAMING, "is_early": False}),
    "streamed, freeze": (
        ("streaming_diloco",),
        {"own": STREAMING | {"bits": 4}, "habit": "freeze", "is_early": False},
    ),
    "streamed, bf16": (
        ("streaming_diloco",),
        {
            "own": STREAMING,
            "common": {"communication_dtype": torch.bfloat16},
            "is_early": False,
        },
    ),
    "streamed in 4 bits": (
        ("streaming_diloco",),
        {"own": STREAMING | {"bits": 4}, "habit": "reload", "is_early": False},
    ),
    "others": (("mcser",), {"blocks": ("random_k", "identity"), "is_early": False}),
}
TRAININGS = {
    **{
        f"{name}, {key}": Case(name, (key, "block"))
        for name in OVERLAPPING
        for key in [*BLOCKS][:3]
    },
    **{
        f"{name}, {habit}": Case(name, habit=habit)
        for name in ("ef_sgd", "mcser")
        for habit in HABITS
    },
    **{
        f"{name}, {key}": Case(name, **given)
        for key, (names, given) in VARIANTS.items()
        for name in names
    },
}


def make(case: Case, collectives: Collectives, model: Net) -> DistributedOptimizer:
    own = (
        own_settings(case.name, [BLOCKS[key] for key in case.blocks], INTERVAL)
        | case.own
    )
    return make_optimizer(case.name, model, own, collectives, **case.common)


def one_step(
    habit: str,
    optimizer: DistributedOptimizer,
    model: Net,
    step: int,
    scaler: torch.amp.GradScaler,
) -> int:
    """A step as scripts do it: gradients set to None or accumulated, steps skipped, layers left
    out, and so on.

    Returns:
        How many sums were begun before `optimizer.step()`.
    """
    rank = optimizer.collectives.rank
    early = optimizer.collectives.early
    if habit == "to_none":
        model.zero_grad()
    elif habit != "forget" or step % 2:
        optimizer.zero_grad()
    if habit == "freeze":
        model.head.requires_grad_(step % 3 != 0)
    if habit in ("no_sync", "accumulate"):
        with optimizer.no_sync() if habit == "no_sync" else torch.enable_grad():
            loss_of(model, step, rank + 50).backward()
    if habit == "skip" and step % 2 == 0:
        loss_of(model, step, rank + 60).backward()
        optimizer.zero_grad()
        assert early is None or early.drop() == [], (
            "a step that is left out leaves nothing under way"
        )
    short = step % 2 == 0 and (
        habit in ("branch", "skip") or (habit == "other_branch" and rank == 1)
    )
    loss = loss_of(model, step, rank, not short)
    (scaler.scale(loss) if habit == "scaler" else loss).backward()  # type: ignore[no-untyped-call]
    num_begun = 0 if early is None else len(early._begun)
    if habit == "scaler":
        if (step, rank) in ((2, 0), (5, 1)):
            gradient = model.conv.weight.grad
            gradient.view(-1)[0] = float("inf")  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()
        return num_begun
    if habit == "harmless":
        nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    optimizer.step()
    return num_begun


def outcome(
    case: Case, overlap: bool, group: dist.ProcessGroup | None = None
) -> dict[str, Any]:
    """Parameters, state and traffic after a training, and how many sums were begun before their
    step."""
    collectives = ProcessGroupCollectives(group, overlap)
    model = Net(collectives.rank, case.dtype, case.heads_dtype)
    optimizer = make(case, collectives, model)
    schedule = StepLR(optimizer, 2, gamma=0.7)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    num_begun = 0
    for step in range(1, NUM_STEPS + 1):
        num_begun += one_step(case.habit, optimizer, model, step, scaler)
        schedule.step()
        if case.habit == "reload" and step == 4:
            # A checkpoint may come at any time
            loss_of(model, 99, collectives.rank).backward()
            state = reloaded(optimizer.state_dict()), reloaded(model.state_dict())
            model = Net(7, case.dtype, case.heads_dtype)
            optimizer = make(case, collectives, model)
            optimizer.load_state_dict(state[0])
            model.load_state_dict(state[1])
            schedule.optimizer = optimizer
    first_group = optimizer.state_dict()["param_groups"][0]
    flat = first_group["flat"] | dict(model.state_dict())
    for other in flat.pop(OTHER_TYPES, {}).values():
        flat |= {f"other {key}": value for key, value in other.items()}
    assert not collectives.early or collectives.early.drop() == [], (
        "nothing is left under way"
    )
    return {
        "vectors": {
            key: value.clone()
            for key, value in flat.items()
            if isinstance(value, Tensor)
        },
        "training": optimizer.traffic.training(),
        "control": optimizer.traffic[Purpose.CONTROL].bits,
        "begun": num_begun,
    }


def changes_no_bit(case: Case, groups: dict[str, dist.ProcessGroup | None]) -> None:
    if case.group not in groups:
        return
    warns = pytest.warns(UserWarning, match="a GradScaler .* so nothing is sent before")
    without = outcome(case, False, groups[case.group])
    with warns if case.habit == "scaler" else nullcontext():
        overlapped = outcome(case, True, groups[case.group])
    assert without["vectors"].keys() == overlapped["vectors"].keys()
    for part, vector in without["vectors"].items():
        expected = overlapped["vectors"][part]
        assert torch.equal(vector, expected), part
    assert without["training"] == overlapped["training"]
    if case.group == "all":
        wasted = overlapped["control"] - without["control"]
        wastes = case.habit in WASTEFUL and case.is_early
        assert (wasted > 0) == wastes, wasted
        assert without["begun"] == 0
        assert (overlapped["begun"] > 0) == case.is_early
    # Only in the first step, which does not know of the GradScaler.
    assert (case.name, case.habit) != ("mcser", "scaler") or overlapped["begun"] == 1


def after_two_steps(factor: float) -> tuple[DistributedOptimizer, Net]:
    """An optimiser before its third step, all gradients times the factor."""
    model = Net(0, torch.float32)
    overlapping = ProcessGroupCollectives(overlap=True)
    optimizer = make(Case("csea"), overlapping, model)
    for step in range(1, 4):
        optimizer.zero_grad()
        loss = loss_of(model, step, dist.get_rank()) * factor
        loss.backward()
        if step < 3:
            optimizer.step()
    return optimizer, model


def refuses(change: Callable[[DistributedOptimizer, Net], object]) -> None:
    """A step says so where something was changed after the backward pass."""
    optimizer, model = after_two_steps(1.0)
    change(optimizer, model)
    with pytest.raises(
        RuntimeError,
        match=r"^overlap: the error message of this step differs .* overlap=False$",
    ):
        optimizer.step()
    assert optimizer.collectives.early
    assert optimizer.collectives.early.drop() == []


def takes_what_is_no_number() -> None:
    """A training that ends in NaN goes on, and sends NaN; who began is said once."""
    with pytest.warns(
        UserWarning, match=r"csea: what worker \d sent at step 1 is not finite"
    ) as warned:
        optimizer, _ = after_two_steps(float("nan"))
        optimizer.step()
    assert len(warned) == 1
    assert optimizer.flat.parameters.isnan().any()


def leaves_steps_out_and_sends_nothing_early() -> None:
    """What is not finite must not be on its way before that is known."""
    collectives = ProcessGroupCollectives(overlap=True)
    model = Net(0, torch.float32)
    with pytest.warns(
        UserWarning, match=r"overlap: skip_nonfinite .*, so nothing is sent before step"
    ):
        optimizer = make(
            Case("csea", common={"skip_nonfinite": True}), collectives, model
        )
    assert collectives.early is not None
    for step in (1, 2):
        optimizer.zero_grad()
        loss = loss_of(model, step, collectives.rank)
        spoilt = loss * float("nan") if step == 2 else loss
        spoilt.backward()
        assert not collectives.early._begun
        with (
            nullcontext()
            if step == 1
            else pytest.warns(
                UserWarning, match="left step 2 out, .* workers 0, 1, 2, 3 "
            )
        ):
            optimizer.step()
    assert optimizer.num_steps == 1
    assert_expected_traffic(optimizer, 1)


def streams_beside_the_steps() -> None:
    """What is sent in one step is not waited for before the step that uses it."""
    collectives = ProcessGroupCollectives(overlap=True)
    go_on = threading.Event()
    was_free = list[bool]()
    model = Net(0, torch.float32)
    case = Case("streaming_diloco", own=STREAMING)
    optimizer = make(case, collectives, model)
    for step in range(1, 6):
        if step == 4:  # What is sent here waits, and is used two steps later.
            hold = lambda: (was_free.append(go_on.wait(20)), ())[1]  # noqa: E731
            collectives.early.beside(hold, torch.zeros(1))  # type: ignore[union-attr]
        optimizer.zero_grad()
        loss_of(model, step, collectives.rank).backward()
        optimizer.step()
        if step == 4:
            assert not was_free
            go_on.set()
    assert_expected_traffic(optimizer, 5)
    assert was_free == [True]


def drops_what_is_under_way_where_it_begins_anew() -> None:
    """With messages that travel beside the steps, as with those that are waited for at once."""
    for own in SENT_LATE.values():

        def make(own: dict[str, Any] = own) -> tuple[DistributedOptimizer, Net]:
            model = Net(0, torch.float32)
            common = {} if "bits" in own else {"communication_dtype": torch.bfloat16}
            end = ProcessGroupCollectives(overlap=True)
            return make_optimizer("streaming_diloco", model, own, end, **common), model

        def one_step(
            optimizer: DistributedOptimizer, model: nn.Module, step: int
        ) -> None:
            optimizer.zero_grad()
            loss_of(model, step, dist.get_rank()).backward()
            optimizer.step()

        begins_anew(make, one_step)


def gives_back_what_overlap_held(group: dist.ProcessGroup | None) -> None:
    """One training after the other; torch has no names for new groups of a part of the workers, so
    theirs stay."""
    model = Net(0, torch.float32)
    num_groups = len(_world.pg_map)
    threads = set(threading.enumerate())
    for number in range(1, 4):
        collectives = ProcessGroupCollectives(group, overlap=True)
        optimizer = make(Case("ef_sgd"), collectives, model)
        loss_of(model, number, collectives.rank).backward()
        optimizer.step()
        assert len(_world.pg_map) > num_groups
        assert set(threading.enumerate()) - threads
        collectives.close()
        collectives.close()
        kept = 0 if group is None or collectives.world_size == 1 else number
        assert len(_world.pg_map) == num_groups + kept
        assert not [
            each
            for each in set(threading.enumerate()) - threads
            if each.name.startswith("early_means")
        ]
    ProcessGroupCollectives(group).close()  # has nothing to give back


OTHERS: dict[str, Callable[[], None]] = {
    "streams beside the steps": streams_beside_the_steps,
    "drops what is under way": drops_what_is_under_way_where_it_begins_anew,
    "clipped afterwards": lambda: refuses(
        lambda optimizer, model: nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    ),
    "another rate afterwards": lambda: refuses(
        lambda optimizer, model: optimizer.param_groups[0].update(lr=0.01)
    ),
    "no number": takes_what_is_no_number,
    "no number, left out": leaves_steps_out_and_sends_nothing_early,
}
GIVEN_BACK = {f"given back by {group}": group for group in ("all", "alone", "pair")}
KEYS = [*TRAININGS, *OTHERS, *GIVEN_BACK]


def cases(pair: dist.ProcessGroup) -> dict[str, Callable[[], None]]:
    """All of them, for one of the processes; `pair` is a group of ranks 0 and 1."""
    alone = [dist.new_group([rank]) for rank in range(dist.get_world_size())][
        dist.get_rank()
    ]
    groups = {
        "all": None,
        "alone": alone,
        **({"pair": pair} if dist.get_rank() < 2 else {}),
    }
    trainings = {
        key: partial(changes_no_bit, case, groups) for key, case in TRAININGS.items()
    }
    given_back: dict[str, Callable[[], None]] = {
        key: partial(gives_back_what_overlap_held, groups[group])
        if group in groups
        else lambda: None
        for key, group in GIVEN_BACK.items()
    }
    return trainings | OTHERS | given_back


def leave_a_sum_under_way() -> None:
    """Ends so: that must not keep the process from ending."""
    model = Net(0, torch.float32)
    make(Case("ef_sgd"), ProcessGroupCollectives(overlap=True), model)
    loss_of(model, 1, dist.get_rank()).backward()
