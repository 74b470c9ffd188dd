"""What four processes do with methods and collectives: here, so that other interpreters can import
it."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from cser_bench.algorithms import (
    CollectiveError,
    Collectives,
    ProcessGroupCollectives,
    Purpose,
)
from cser_bench.algorithms.core.agreement import enter_together
from cser_bench.algorithms.core.topology import Topology
from tests.algorithms import overlap_scripts, user_scripts
from tests.algorithms.problems import (
    COMPRESSORS,
    NAMES,
    flat_parameters,
    join,
    make_model,
    make_optimizer,
    named_compressors,
    outcomes,
    own_settings,
    train,
)

WORLD_SIZE = 4
NUM_STEPS = 12
PATIENCE = 10
"""Seconds that a group waits where a collective is missed; it must be enough to make the group, and
to train two steps, on a busy machine."""

MISSED = ("sum", "consensus")
"""What worker 1 is missed in; into a consensus one goes alone, while the others train."""
KEYS = [*user_scripts.CASES, *overlap_scripts.KEYS, "the guide"]
"""Cases that look after themselves."""

Run = tuple[str, dict[str, Any], dict[str, Any]]


def runs() -> Iterator[Run]:
    """Methods, with settings of their own and those that all have, such that each sort of
    collective takes place."""
    for name in NAMES:
        for key in named_compressors(
            name, {key: COMPRESSORS[key] for key in ("blocks", "top_k")}
        ):
            own = own_settings(name, [COMPRESSORS[key]], 4)
            yield name, own, {}
    for name, key in (("ef_sgd", "qsgd"), ("ef_sgd", "int4"), ("mcser", "int4")):
        own = own_settings(name, [COMPRESSORS[key]], 4)
        yield name, own, {}
    yield "diloco", {"sync_interval": 6, "num_fragments": 3}, {}
    yield "local_sgd", {"sync_interval": 4}, {"communication_dtype": torch.bfloat16}
    for kind in get_args(Topology):
        yield "dpsgd", own_settings("dpsgd", topology=kind), {}


def final_state(collectives: Collectives, run: Run) -> tuple[Tensor, dict[str, Any]]:
    """The parameters after a short training, and what it sent."""
    name, own, common = run
    model = make_model(torch.float32, seed=collectives.rank)
    optimizer = make_optimizer(name, model, own, collectives, **common)
    steps = range(1, NUM_STEPS + 1)
    train(optimizer, model, collectives.rank, steps)
    return flat_parameters(model), optimizer.traffic.state_dict()


LEFT_OVER = [
    (
        "noloco",
        {"sync_interval": 1, "group_size": 2, "outer_lr": 0.7, "outer_momentum": 0.5},
    ),
    (
        "noloco",
        {"sync_interval": 2, "group_size": 2, "outer_lr": 1.0, "outer_momentum": 0.0},
    ),
]
"""Three workers in pairs, so that at each meeting one is left over."""


def missed(collectives: Collectives, kind: str) -> tuple[str, float]:
    """What the others' error says, and after how many seconds."""
    started = time.monotonic()
    if collectives.rank != 1:
        try:
            if kind == "consensus" and collectives.rank == 0:
                enter_together(collectives, "consensus()")
            ones = torch.ones(1, 5)
            collectives.all_reduce_sum_(ones, Purpose.GRADIENT)
        except CollectiveError as error:
            return str(error), time.monotonic() - started
    return "", time.monotonic() - started


def froze_alone(collectives: Collectives) -> str:
    """What the error says where worker 0 alone freezes a parameter, of which all others average at
    every step."""
    model = make_model()
    optimizer = make_optimizer("local_sgd", model, {"sync_interval": 1}, collectives)
    train(optimizer, model, collectives.rank, [1, 2])
    model[0].weight.requires_grad_(collectives.rank != 0)
    try:
        train(optimizer, model, collectives.rank, range(3, 9))
    except (CollectiveError, ValueError) as error:
        return str(error)
    return ""


def process(rank: int, folder: Path) -> None:
    """All that one process has to do, so that starting it is paid for once; what it found goes to a
    file."""
    join(rank, folder, WORLD_SIZE)
    os.chdir(folder)
    pair = dist.new_group([0, 1])
    trio = dist.new_group([0, 1, 2])
    user_scripts.PAIR.append(pair)
    impatient = [
        dist.new_group(timeout=timedelta(seconds=PATIENCE))
        for _ in (*MISSED, "froze alone")
    ]
    cases: dict[str, Callable[[], object]] = {
        **user_scripts.CASES,
        **overlap_scripts.cases(pair),
        "the guide": user_scripts.the_guide_runs_as_it_stands,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="cser_bench")
        results: dict[str, Any] = {"cases": outcomes(cases)}
    results["runs"] = []
    for run in runs():
        # Of its own, since it counts what a run sends.
        state = final_state(ProcessGroupCollectives(), run)
        results["runs"].append(state)
    if rank < 3:
        results["left over"] = [
            final_state(ProcessGroupCollectives(trio), (name, own, {}))
            for name, own in LEFT_OVER
        ]
    dist.barrier()
    *ends, last = [ProcessGroupCollectives(group) for group in impatient]
    with ThreadPoolExecutor() as pool:  # all at once, each on its own group
        results["missed"] = dict(
            zip(MISSED, pool.map(missed, ends, MISSED), strict=True)
        )
    dist.barrier()  # worker 1 is alive all the while
    results["froze alone"] = froze_alone(last)
    dist.barrier()
    torch.save(results, folder / f"{rank}.pt")
    overlap_scripts.leave_a_sum_under_way()
