"""Each algorithm against its definition: the NumPy transcription, and what must hold at every step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms import Collectives, Compressor, Zero, algorithms
from algorithms.core.compressors import Draw
from algorithms.cser import CSER
from tests.algorithms import transcription
from tests.algorithms.following import (
    NUM_STEPS,
    NUM_WORKERS,
    SEED,
    Watched,
    assert_follows,
    compress_of,
    dense,
    make_problem,
    mask_of,
    per_coordinate,
)
from tests.algorithms.problems import (
    BIAS_LR,
    BIAS_WEIGHT_DECAY,
    COMPRESSORS,
    LR,
    MOMENTUM,
    NAMES,
    NUM_PARAMETERS,
    SHARED,
    WEIGHT_DECAY,
    batch_loss,
    make_model,
    make_optimizer,
    named_compressors,
    own_settings,
    switches,
    train,
    workers,
)
from tests.algorithms.transcription import Array, Compress, Problem, State
from tests.threads import ThreadCollectives

SHAPES = [(6, 4), (3, 6), (6,), (3,)]
RING = transcription.ring(NUM_WORKERS)


def first_q(number: int, columns: int, rank: int) -> Array:
    return Draw(SEED, 0, "gradient").normal((columns, rank), number).double().numpy()


def test_the_problem_is_not_convex_and_tells_workers_apart() -> None:
    problem = make_problem()
    gradients = [problem.gradient(problem.start, 1, worker) for worker in range(NUM_WORKERS)]
    assert np.ptp(gradients, axis=0).max() > 0.1
    ahead = [problem.gradient(problem.start + step, 1, 0) for step in 1e-5 * np.eye(NUM_PARAMETERS)]
    hessian = (np.array(ahead) - gradients[0]) / 1e-5
    assert np.linalg.eigvalsh((hessian + hessian.T) / 2).min() < -0.01


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(momentum: float) -> None:
    assert_follows("sgd", {}, transcription.sgd(make_problem(momentum), NUM_STEPS), momentum)


@pytest.mark.parametrize("accumulation_steps", [1, 7])
def test_sgd_accumulate(accumulation_steps: int) -> None:
    expected = transcription.sgd_accumulate(make_problem(), NUM_STEPS, accumulation_steps)
    assert_follows("sgd_accumulate", {"accumulation_steps": accumulation_steps}, expected)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_alone(momentum: float) -> None:
    assert_follows("alone", {}, transcription.alone(make_problem(momentum), NUM_STEPS), momentum)


@pytest.mark.parametrize("interval", [1, 7])
def test_local_sgd(interval: int) -> None:
    expected = transcription.local_sgd(make_problem(), NUM_STEPS, interval)
    assert_follows("local_sgd", {"sync_interval": interval}, expected)


@pytest.mark.parametrize("key", COMPRESSORS)
def test_ef_sgd(key: str) -> None:
    expected = transcription.ef_sgd(make_problem(), NUM_STEPS, compress_of(key))
    assert_follows("ef_sgd", {"compressor": COMPRESSORS[key]}, expected)


@pytest.mark.parametrize("key", COMPRESSORS)
def test_ef_sgd_that_drops_the_rest(key: str) -> None:
    expected = transcription.ef_sgd(make_problem(), NUM_STEPS, compress_of(key), drop_rest=True)
    assert_follows("ef_sgd", {"compressor": COMPRESSORS[key], "drop_rest": True}, expected)


@pytest.mark.parametrize("key", COMPRESSORS)
def test_qsparse_local_sgd(key: str) -> None:
    expected = transcription.qsparse_local_sgd(make_problem(), NUM_STEPS, compress_of(key), 4)
    assert_follows("qsparse_local_sgd", {"compressor": COMPRESSORS[key], "sync_interval": 4}, expected)


@pytest.mark.parametrize("key", ["blocks", "top_k"])
def test_qsparse_local_sgd_that_keeps_its_master(key: str) -> None:
    expected = transcription.qsparse_local_sgd(make_problem(), NUM_STEPS, compress_of(key), 4, keep_master=True)
    own = {"compressor": COMPRESSORS[key], "sync_interval": 4, "keep_master": True}
    assert_follows("qsparse_local_sgd", own, expected)


# C2, C1, H, momentum
CSER_CASES = [
    ("blocks", "block", 5, 0.9),
    ("block", "blocks", 5, 0.0),
    ("block", "block", 1, 0.9),
    ("per_tensor", "per_tensor", 3, 0.9),
    ("random_k", "block", 4, 0.9),
    ("identity", "random_k", 4, 0.9),
    ("zero", "random_k", 1, 0.9),
    ("block", "identity", 6, 0.9),
    ("block", "zero", 6, 0.9),
]
MIXED_CASES = [
    ("top_k", "sign", 4, 0.9),
    ("sign", "top_k", 4, 0.0),
    ("qsgd", "block", 3, 0.9),
    ("block", "qsgd", 3, 0.9),
    ("top_k", "top_k", 1, 0.9),
]


@pytest.mark.parametrize(("c2", "c1"), [("blocks", "block"), ("top_k", "qsgd")])
def test_mcser(c2: str, c1: str) -> None:
    own = {"gradient_compressor": COMPRESSORS[c2], "error_compressor": COMPRESSORS[c1], "reset_interval": 4}
    assert_follows("mcser", own, transcription.cser(make_problem(), NUM_STEPS, compress_of(c2), compress_of(c1), 4))


def forms(*keys: str) -> list[bool]:
    """Values of explicit_error worth a test: it changes nothing where the error must be held anyway."""
    return [False, True] if all(key in SHARED for key in keys) else [False]


@pytest.mark.parametrize(("c2", "c1", "interval", "momentum"), CSER_CASES + MIXED_CASES)
def test_cser(c2: str, c1: str, interval: int, momentum: float) -> None:
    own = {"gradient_compressor": COMPRESSORS[c2], "error_compressor": COMPRESSORS[c1], "reset_interval": interval}
    expected = list(transcription.cser(make_problem(momentum), NUM_STEPS, compress_of(c2), compress_of(c1), interval))
    for explicit in forms(c2, c1):
        assert_follows("cser", {**own, "explicit_error": explicit}, iter(expected), momentum)


@pytest.mark.parametrize("key", COMPRESSORS)
@pytest.mark.parametrize(("name", "interval"), [("csea", 1), ("cser_pl", 6)])
def test_cser_that_sends_no_updates(name: str, interval: int, key: str) -> None:
    expected = list(transcription.cser(make_problem(), NUM_STEPS, transcription.nothing, compress_of(key), interval))
    for explicit in forms(key):
        assert_follows(name, own_settings(name, [COMPRESSORS[key]], interval, explicit_error=explicit), iter(expected))


RELEASED_SWITCHES = [
    dict(zip(("average_parameters", "skip_gradient_at_reset", "decay_in_momentum_only"), values, strict=True))
    for values in itertools.product((False, True), repeat=3)
]


@pytest.mark.parametrize("chosen", RELEASED_SWITCHES, ids=str)
@pytest.mark.parametrize(
    ("name", "c2"), [("cser_released", "blocks"), ("cser_released", "per_tensor"), ("mcser_released", "blocks")]
)
def test_cser_released(name: str, c2: str, chosen: dict[str, bool]) -> None:
    own = own_settings(name, [SHARED[c2], SHARED["block"]], 3, **chosen)
    expected = transcription.cser_released(
        make_problem(), NUM_STEPS, mask_of(SHARED[c2]), mask_of(SHARED["block"]), 3, **chosen
    )
    assert_follows(name, own, expected)


@pytest.mark.parametrize("name", ["cser_released", "mcser_released"])
def test_the_release_is_what_its_authors_published_unless_told_otherwise(name: str) -> None:
    own = own_settings(name, [SHARED["blocks"], SHARED["block"]], 3)
    defaults = {key: value for key, value in own.items() if key not in switches(name)}
    expected = transcription.cser_released(
        make_problem(), NUM_STEPS, mask_of(SHARED["blocks"]), mask_of(SHARED["block"]), 3, True, True, True
    )
    assert_follows(name, defaults, expected)


@pytest.mark.parametrize("name", ["cser_released", "mcser_released"])
def test_the_released_variants_take_no_explicit_error(name: str) -> None:
    own = own_settings(name, [SHARED["block"]], 3)
    with pytest.raises(TypeError, match="explicit_error"):
        algorithms()[name](make_model().parameters(), lr=0.1, momentum=0.9, explicit_error=True, **own)


def test_the_total_weight_of_the_released_decay() -> None:
    """With g = 0 and a tiny learning rate, all steps add up to 9 times eta lambda x each, where PyTorch's is 10."""
    totals = []
    for decay_in_momentum_only in (True, False):
        parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        own = own_settings("cser_released", decay_in_momentum_only=decay_in_momentum_only)
        optimizer = algorithms()["cser_released"]([parameter], lr=1e-9, momentum=0.9, weight_decay=1.0, **own)
        for _ in range(500):
            parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        before = parameter.item()
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        totals.append((before - parameter.item()) / 1e-9)
    assert totals == pytest.approx([9, 10], rel=1e-5)


DEFINITIONS: dict[str, Callable[[Problem, Compress, int], Iterator[State]]] = {
    "diloco": lambda problem, c, interval: transcription.diloco(problem, NUM_STEPS, interval, 0.7, 0.9),
    "ef21_sgdm": lambda problem, c, interval: transcription.ef21_sgdm(problem, NUM_STEPS, c),
    "alone": lambda problem, c, interval: transcription.alone(problem, NUM_STEPS),
    "dpsgd": lambda problem, c, interval: transcription.dpsgd(problem, NUM_STEPS, lambda t: RING, False),
    "choco_sgd": lambda problem, c, interval: transcription.choco_sgd(problem, NUM_STEPS, RING, c, 0.3),
    "deep_squeeze": lambda problem, c, interval: transcription.deep_squeeze(problem, NUM_STEPS, lambda t: RING, c, 0.1),
    "sgd": lambda problem, c, interval: transcription.sgd(problem, NUM_STEPS),
    "sgd_accumulate": lambda problem, c, interval: transcription.sgd_accumulate(problem, NUM_STEPS, interval),
    "powersgd": lambda problem, c, interval: transcription.powersgd(problem, NUM_STEPS, SHAPES, 1, first_q),
    "local_sgd": lambda problem, c, interval: transcription.local_sgd(problem, NUM_STEPS, interval),
    "ef_sgd": lambda problem, c, interval: transcription.ef_sgd(problem, NUM_STEPS, c),
    "qsparse_local_sgd": lambda problem, c, interval: transcription.qsparse_local_sgd(problem, NUM_STEPS, c, interval),
    "csea": lambda problem, c, interval: transcription.cser(problem, NUM_STEPS, transcription.nothing, c, 1),
    "cser_pl": lambda problem, c, interval: transcription.cser(problem, NUM_STEPS, transcription.nothing, c, interval),
    "cser": lambda problem, c, interval: transcription.cser(problem, NUM_STEPS, c, c, interval),
    "mcser": lambda problem, c, interval: transcription.cser(problem, NUM_STEPS, c, c, interval),
    # With all switches off the release is what is written.
    "cser_released": lambda problem, c, interval: transcription.cser(problem, NUM_STEPS, c, c, interval),
    "mcser_released": lambda problem, c, interval: transcription.cser(problem, NUM_STEPS, c, c, interval),
}
"""Each method's transcription, given the problem, C for all its compressors, and the length of its intervals."""


@pytest.mark.parametrize("name", NAMES)
def test_each_method_is_what_its_definition_says(name: str) -> None:
    if name not in DEFINITIONS:
        pytest.fail(f"{name} has no definition: write it down in transcription.py and name it in DEFINITIONS")
    own = own_settings(name, [COMPRESSORS["blocks"]], 4)
    assert_follows(name, own, DEFINITIONS[name](make_problem(), compress_of("blocks"), 4))


# The form without an error buffer.


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
@pytest.mark.parametrize("c1", SHARED)
@pytest.mark.parametrize("c2", SHARED)
def test_cser_without_an_error_buffer_equals_the_explicit_form(
    c2: str, c1: str, dtype: torch.dtype, tolerance: float
) -> None:
    def work(collectives: Collectives) -> tuple[Tensor, Tensor]:
        results = []
        for explicit in (False, True):
            own = own_settings("cser", [SHARED[c2], SHARED[c1]], 4, explicit_error=explicit)
            model = make_model(dtype)
            optimizer = make_optimizer("cser", model, own, collectives)
            assert (optimizer.error is not None) == explicit
            train(optimizer, model, collectives.rank, range(1, 17))
            results.append(optimizer.flat.parameters[0].detach())
        return results[0], results[1]

    for free, held in workers(work, 2):
        torch.testing.assert_close(free, held, rtol=tolerance, atol=tolerance)


# What holds at every step.


@dataclass
class Step:
    """What one worker saw of one step."""

    x_before: Array
    gradient: Array
    e_before: Array | None
    x_after: Array
    e_after: Array | None
    sent: Array
    """C(v) as it left this worker, 0 where nothing did."""


def watch(
    name: str, own: dict[str, Any], compressor: Compressor | None, purpose: str, num_steps: int
) -> list[list[Step]]:
    """The steps of each worker; `compressor` is the one that sends for `purpose`."""

    def copied(vector: Tensor | None) -> Array | None:
        return None if vector is None else vector.detach().numpy().copy()

    def work(collectives: Collectives) -> list[Step]:
        assert isinstance(collectives, ThreadCollectives)
        watched = Watched(collectives.group, collectives.rank)
        model = make_model()
        optimizer = make_optimizer(name, model, own, watched, seed=SEED)
        steps = []
        for step in range(1, num_steps + 1):
            optimizer.zero_grad()
            batch_loss(model, step, watched.rank).backward()
            x, e, g = (
                copied(optimizer.flat.parameters[0]),
                copied(None if optimizer.error is None else optimizer.error[0]),
                copied(optimizer.flat.gradients[0]),
            )
            watched.last = None
            optimizer.step()
            x_after, e_after = (
                copied(optimizer.flat.parameters[0]),
                copied(None if optimizer.error is None else optimizer.error[0]),
            )
            assert x is not None and g is not None and x_after is not None
            steps.append(Step(x, g, e, x_after, e_after, dense(watched.last, compressor, step, purpose)))
        return steps

    return workers(work, NUM_WORKERS)


def with_updates(steps: list[Step]) -> Iterator[tuple[Step, Array]]:
    """Each step with its p, from the definition of Nesterov momentum."""
    m, eta = np.zeros(NUM_PARAMETERS), per_coordinate(LR, BIAS_LR)
    for step in steps:
        g = step.gradient + per_coordinate(WEIGHT_DECAY, BIAS_WEIGHT_DECAY) * step.x_before
        m = MOMENTUM * m + g
        yield step, eta * (MOMENTUM * m + g)


def assert_same(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("key", COMPRESSORS)
def test_ef_sgd_sends_or_keeps_everything(key: str) -> None:
    compressor = COMPRESSORS[key]
    runs = watch("ef_sgd", {"compressor": compressor}, compressor, "gradient", 20)
    for worker in runs:
        for number, (step, p) in enumerate(with_updates(worker)):
            assert step.e_before is not None and step.e_after is not None
            assert_same(step.e_after + step.sent, step.e_before + p)
            assert_same(step.x_after, step.x_before - transcription.mean([run[number].sent for run in runs]))


@pytest.mark.parametrize("key", COMPRESSORS)
def test_qsparse_local_sgd_sends_or_keeps_everything(key: str) -> None:
    compressor = COMPRESSORS[key]
    runs = watch("qsparse_local_sgd", {"compressor": compressor, "sync_interval": 4}, compressor, "model", 20)
    for worker in runs:
        anchor = worker[0].x_before
        for number, (step, p) in enumerate(with_updates(worker), start=1):
            assert step.e_before is not None and step.e_after is not None
            y = step.x_before - p
            if number % 4:
                assert_same(step.x_after, y)
                assert_same(step.e_after, step.e_before)
                continue
            assert_same(step.e_after + step.sent, step.e_before + anchor - y)
            anchor = anchor - transcription.mean([run[number - 1].sent for run in runs])
            assert_same(step.x_after, anchor)


FAMILY = [name for name in NAMES if issubclass(algorithms()[name], CSER)]
FORMS = [
    (name, key, explicit)
    for name in FAMILY
    for key in named_compressors(name, COMPRESSORS)
    for explicit in (forms(key) if "explicit_error" in switches(name) else [False])
]


def form(name: str, key: str, explicit: bool) -> dict[str, Any]:
    """The settings of the algorithm as written, in the form with or without an error buffer."""
    return own_settings(name, [COMPRESSORS[key]], 3, **({"explicit_error": True} if explicit else {}))


@pytest.mark.parametrize(("name", "key", "explicit"), FORMS)
def test_the_mean_of_the_cser_family_moves_by_the_mean_update(name: str, key: str, explicit: bool) -> None:
    runs = watch(name, form(name, key, explicit), None, "gradient", 10)
    for steps in zip(*map(with_updates, runs), strict=True):
        moved = transcription.mean([step.x_after - step.x_before for step, _ in steps])
        assert_same(moved, -transcription.mean([p for _, p in steps]))


@pytest.mark.parametrize(
    ("name", "key", "explicit"), [(name, key, held) for name, key, held in FORMS if held or key not in SHARED]
)
def test_parameters_less_error_are_the_same_on_all_workers(name: str, key: str, explicit: bool) -> None:
    runs = watch(name, form(name, key, explicit), None, "gradient", 10)
    for steps in zip(*runs, strict=True):
        common = []
        for step in steps:
            assert step.e_after is not None
            common.append(step.x_after - step.e_after)
        for other in common[1:]:
            assert_same(other, common[0])
    if key != "identity":
        assert np.ptp([worker[0].x_after for worker in runs], axis=0).max() > 1e-6, "the workers differ"


@pytest.mark.parametrize("key", COMPRESSORS)
def test_csea_sends_or_keeps_the_whole_error(key: str) -> None:
    compressor = COMPRESSORS[key]
    own = {"error_compressor": compressor, "explicit_error": True}
    for worker in watch("csea", own, compressor, "error", 15):
        for step, p in with_updates(worker):
            assert step.e_before is not None and step.e_after is not None
            assert_same(step.e_after + step.sent, step.e_before - p)


@pytest.mark.parametrize("key", COMPRESSORS)
def test_cser_keeps_what_it_did_not_send_of_an_update(key: str) -> None:
    compressor = COMPRESSORS[key]
    own = own_settings("cser", [compressor, Zero()], 1000, explicit_error=True)
    for worker in watch("cser", own, compressor, "gradient", 15):
        for step, p in with_updates(worker):
            assert step.e_before is not None and step.e_after is not None
            assert_same(step.e_after - step.sent, step.e_before - p)
