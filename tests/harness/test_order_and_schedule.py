"""Learning rates against closed forms; which worker sees what; seeds that pair the algorithms."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms import Collectives
from algorithms.registry import algorithms
from harness.seeds import derive_seed
from harness.spec import ScheduleSpec
from harness.tasks.blobs import TASK
from harness.tasks.task import held_out_indices
from harness.train.build import build_model, build_optimizer
from harness.train.order import evaluation_steps, learning_rate_factor, worker_batches
from harness.train.train import parameters_sha256
from tests.harness.support import BLOCK, settings_of, small_config
from tests.threads import run_workers


def factors(schedule: ScheduleSpec, per_epoch: int, num_epochs: int) -> list[float]:
    return [learning_rate_factor(schedule, step, per_epoch, num_epochs) for step in range(per_epoch * num_epochs)]


TEN = [step / 10 for step in range(1, 11)]
SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    # Of three epochs of ten steps.
    "constant": ({"kind": "constant"}, [1.0] * 30),
    "warm-up": ({"kind": "constant", "warmup_epochs": 0.5}, [0.2, 0.4, 0.6, 0.8, *[1.0] * 26]),
    "a share of the run": ({"kind": "constant", "warmup_epochs": 0.4, "warmup_share": 0.2}, [*TEN, *[1.0] * 20]),
    "warm-up beyond the run": ({"kind": "constant", "warmup_epochs": 3200.0}, [(n + 1) / 32_000 for n in range(30)]),
    "cosine": (
        {"kind": "cosine", "warmup_epochs": 1.0},
        [*TEN, *(math.cos(math.pi * number / 40) ** 2 for number in range(20))],
    ),
    "cosine not reached": ({"kind": "cosine", "warmup_epochs": 3.0}, [(step + 1) / 30 for step in range(30)]),
    "milestones": (
        {"kind": "milestones", "milestones": [1.0, 2.5], "factor": 0.1},
        [*[1.0] * 10, *[0.1] * 15, *[0.01] * 5],
    ),
    "milestones during the warm-up": (
        {"kind": "milestones", "milestones": [1.0, 2.5], "factor": 0.2, "warmup_epochs": 2.0},
        [*(n / 20 for n in range(1, 11)), *(0.2 * n / 20 for n in range(11, 21)), *[0.2] * 5, *[0.04] * 5],
    ),
    "staircase": (
        {"kind": "milestones", "milestones": [9.0], "warmup_epochs": 2.5, "staircase_warmup": True},
        [*[1 / 2.5] * 10, *[2 / 2.5] * 10, *[1.0] * 10],
    ),
    "inverse root": (
        {"kind": "inverse_sqrt", "warmup_epochs": 1.0},
        [*TEN, *(math.sqrt(10 / step) for step in range(10, 30))],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    table, expected = SCHEDULES[name]
    assert factors(ScheduleSpec.model_validate(table), 10, 3) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("per_epoch", "scores", "epochs", "expected"),
    [(40, 2, 1, {20, 40}), (40, 1, 3, {40, 80, 120}), (10, 3, 2, {3, 7, 10, 13, 17, 20}), (3, 10, 1, {1, 2, 3})],
)
def test_scores_are_evenly_spaced_and_the_last_step_has_one(
    per_epoch: int, scores: int, epochs: int, expected: set[int]
) -> None:
    config = small_config(evaluation={"per_epoch": scores}, num_epochs=epochs)
    steps = evaluation_steps(config, per_epoch)
    assert steps == expected


Sizes = tuple[int, int, int]
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 4)).flatmap(
    lambda sizes: st.tuples(st.integers(sizes[0] * sizes[1], 200), st.just(sizes[0]), st.just(sizes[1]))
)


def order(seed: int, sizes: Sizes, rank: int, steps: range) -> list[list[int]]:
    num_train, num_workers, batch_size = sizes
    batches = worker_batches(seed, num_train, rank, num_workers, batch_size, steps)
    return [batch.tolist() for batch in batches]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 2**32), SIZES, st.integers(0, 3))
def test_an_epoch_covers_each_sample_at_most_once_over_all_workers(seed: int, sizes: Sizes, epoch: int) -> None:
    num_train, num_workers, batch_size = sizes
    per_epoch = num_train // (num_workers * batch_size)
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    batches = [batch for rank in range(num_workers) for batch in order(seed, sizes, rank, steps)]
    seen = [sample for batch in batches for sample in batch]
    assert {len(batch) for batch in batches} == {batch_size}
    assert len(set(seen)) == len(seen) == per_epoch * num_workers * batch_size
    assert num_train - len(seen) < num_workers * batch_size
    assert set(seen) <= set(range(num_train))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 2**32), SIZES, st.data())
def test_order_goes_on_from_any_step(seed: int, sizes: Sizes, data: st.DataObject) -> None:
    last = 3 * (sizes[0] // (sizes[1] * sizes[2]))
    first = data.draw(st.integers(0, last))
    rank = data.draw(st.integers(0, sizes[1] - 1))
    torch.manual_seed(first)  # The global generator has no say.
    assert order(seed, sizes, rank, range(first, last)) == order(seed, sizes, rank, range(last))[first:]
    assert sizes[0] < 20 or order(seed, sizes, rank, range(last)) != order(seed + 1, sizes, rank, range(last))


def test_held_out_samples_are_always_the_same_and_apart() -> None:
    kept, held_out = held_out_indices(1600, 400)
    assert sorted(kept.tolist() + held_out.tolist()) == list(range(1600))
    assert len(held_out) == 400
    torch.manual_seed(7)
    assert held_out_indices(1600, 400)[1].equal(held_out)
    assert held_out.tolist() != list(range(400)) and held_out.tolist() != list(range(1200, 1600))


def test_seeds_of_different_streams_differ_and_never_change() -> None:
    assert derive_seed(1, "init") == derive_seed(1, "init")
    streams = {derive_seed(*parts) for parts in [(1, "init"), (2, "init"), (1, "order"), (1, "order", 0), (11, "init")]}
    assert len(streams) == 5
    assert all(0 <= seed < 2**63 for seed in streams)
    # Written down, so that records of today can be repeated tomorrow.
    assert derive_seed(1, "init") == int.from_bytes(bytes.fromhex(SHA256_OF_1_INIT)[:8], "little") >> 1


SHA256_OF_1_INIT = "c533243a0e98fb04cf3310c202edd5809d3a39f4485ac357a057d64b88e691a6"


def first_state(name: str, seed: int) -> tuple[str, str]:
    """Digests of the initial parameters of worker 1, and of the flat vector that its optimiser trains."""
    config = small_config(name, settings_of(name, BLOCK), seed=seed)
    before = torch.get_rng_state()
    built = build_model(config.model, TASK, config.seed, torch.device("cpu"))
    assert torch.get_rng_state().equal(before)  # the global generator

    def work(collectives: Collectives) -> tuple[str, str]:
        model = copy.deepcopy(built)
        named = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
        optimizer = build_optimizer(config, model, collectives, 40)
        return parameters_sha256(named), parameters_sha256(optimizer.flat.parameters)

    return run_workers(work, 2)[1]


def test_all_algorithms_start_from_the_same_parameters() -> None:
    states = {first_state(name, seed=1) for name in algorithms()}
    assert len(states) == 1
    ((before, after),) = states
    assert before == after
    assert first_state("sgd", seed=2) not in states
