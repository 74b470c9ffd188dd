"""What four processes do with methods and collectives: here, so that other interpreters can import it."""

import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from algorithms import Collectives, ProcessGroupCollectives, Purpose, Topology
from algorithms.core.checks import enter_together
from algorithms.core.topology import Mixing, Named
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

WORLD_SIZE, NUM_STEPS = 4, 30
PATIENCE = 4
"""Seconds that a group waits where a collective is missed; it must be enough to make the group on a busy machine."""

MISSED = ("sum", "gather", "exchange with neighbours", "consensus")
"""What one worker is missed in; into a consensus one goes alone, while the others train."""

KEYS = ["blocks", "top_k"]
RUNS = [(name, key) for name in NAMES for key in named_compressors(name, {key: COMPRESSORS[key] for key in KEYS})]
RUNS += [("ef_sgd", "qsgd"), ("ef_sgd", "int4"), ("mcser", "int4"), ("diloco", "fragments")]
FRAGMENTS = {"sync_interval": 6, "num_fragments": 3}


def final_state(collectives: Collectives, name: str, key: str) -> tuple[Tensor, dict[str, Any]]:
    """The parameters after a short training, and what it sent."""
    model = make_model(torch.float32, seed=collectives.rank)
    own = FRAGMENTS if key == "fragments" else own_settings(name, [COMPRESSORS[key]], 4)
    optimizer = make_optimizer(name, model, own, collectives)
    train(optimizer, model, collectives.rank, range(1, NUM_STEPS + 1))
    return flat_parameters(model), optimizer.traffic.state_dict()


def every_run(make: Callable[[], Collectives]) -> dict[tuple[str, str], tuple[Tensor, dict[str, Any]]]:
    return {(name, key): final_state(make(), name, key) for name, key in RUNS}


def every_collective(collectives: Collectives) -> dict[str, Any]:
    """The results of each collective, for odd sizes, empty shares and several dimensions, and the traffic."""
    rank, results = collectives.rank, {}
    for shape in [(1,), (7,), (2, 5)]:
        start = torch.full((1, *shape), 0.1) * (rank + 1)
        total, mean, first = start.clone(), start.clone(), start.clone()
        collectives.all_reduce_sum_(total, Purpose.GRADIENT)
        collectives.all_reduce_mean_(mean, Purpose.ERROR)
        collectives.broadcast_(first, Purpose.MODEL)
        gathered = collectives.all_gather(start, Purpose.EVALUATION)
        results[str(shape)] = [total[0], mean[0], first[0], gathered.clone()]
    for kind, mixing in every_mixing(collectives.world_size):
        message = torch.full((1, 2, 5), 0.1) * (rank + 1)
        received = collectives.exchange_with_neighbours(message, mixing, Purpose.MODEL)
        results[kind] = [torch.tensor(sorted(received)), *(received[sender].clone() for sender in sorted(received))]
    for dtype in (torch.float16, torch.bfloat16):
        results[str(dtype)] = [torch.tensor([[20_000.0 + rank, 3.0, *(0.1 * rank * i for i in range(5))]], dtype=dtype)]
        collectives.all_reduce_mean_(results[str(dtype)][0], Purpose.CONTROL)
    counts = torch.tensor([[rank, 1]])
    collectives.all_reduce_sum_(counts, Purpose.CONTROL)
    codes = collectives.all_gather(torch.tensor([[rank, 255]], dtype=torch.uint8), Purpose.CONTROL)
    return {**results, "whole": [counts[0], codes.clone()], "traffic": collectives.traffic.state_dict()}


def every_mixing(num_workers: int) -> list[tuple[str, Mixing]]:
    """The rounds of each topology that there is of so many workers."""
    kinds = [kind for kind in get_args(Named) if kind != "one_peer" or num_workers & (num_workers - 1) == 0]
    rounds = {kind: Topology(kind).rounds(num_workers) for kind in kinds}
    return [(f"{kind} {number}", mixing) for kind, own in rounds.items() for number, mixing in enumerate(own)]


def outcome(action: Callable[[], object]) -> dict[str, Any]:
    """What an action raised, and how long it took."""
    started = time.monotonic()
    try:
        action()
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error), "seconds": time.monotonic() - started}
    return {"error": None, "seconds": time.monotonic() - started}


def missed(collectives: Collectives, kind: str) -> dict[str, Any]:
    """All but worker 1 take part."""
    if collectives.rank == 1:
        return {}
    tensor = torch.ones(1, 5)
    action: dict[str, Callable[[], object]] = {
        "sum": lambda: collectives.all_reduce_sum_(tensor, Purpose.GRADIENT),
        "gather": lambda: collectives.all_gather(tensor, Purpose.GRADIENT),
        # All are neighbours: a worker whose neighbours have come is not held up by others.
        "consensus": lambda: (
            enter_together(collectives, "consensus()")
            if collectives.rank == 0
            else collectives.all_reduce_mean_(tensor, Purpose.MODEL)
        ),
        "exchange with neighbours": lambda: collectives.exchange_with_neighbours(
            tensor, Topology("complete").rounds(collectives.world_size)[0], Purpose.MODEL
        ),
    }
    return outcome(action[kind])


def process(rank: int, folder: Path) -> None:
    """All that one process has to do, so that starting it is paid for once; what it found goes to a file."""
    join(rank, folder, WORLD_SIZE)
    os.chdir(folder)
    pair = dist.new_group([0, 1])
    user_scripts.PAIR.append(pair)
    impatient = [dist.new_group(timeout=timedelta(seconds=PATIENCE)) for _ in MISSED]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="algorithms")
        scripts = {(case, name): partial(act, name) for case, act in user_scripts.CASES.items() for name in NAMES}
        results: dict[str, Any] = {"scripts": outcomes(scripts)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results["overlap"] = outcomes(overlap_scripts.cases(pair))
    results["said"] = sorted({str(each.message) for each in caught if "overlap" in str(each.message)})
    results["runs_of_4"] = every_run(ProcessGroupCollectives)
    results["collectives"] = every_collective(ProcessGroupCollectives())
    if rank < 2:
        results["runs_of_2"] = every_run(lambda: ProcessGroupCollectives(pair))
    dist.barrier()
    ends = [ProcessGroupCollectives(group) for group in impatient]
    with ThreadPoolExecutor() as pool:  # all at once, each on its own group
        results["missed"] = dict(zip(MISSED, pool.map(missed, ends, MISSED), strict=True))
    dist.barrier()  # worker 1 is alive all the while
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results["printed"] = user_scripts.documents()
    torch.save(results, folder / f"{rank}.pt")
    overlap_scripts.leave_a_sum_under_way()
