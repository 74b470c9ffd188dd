"""How tests hold a method to its transcription: the same problem and draws, compared step by
step."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cser_bench.algorithms import Collectives
from cser_bench.algorithms.core.compressors import Draw, SharedSupport
from cser_bench.algorithms.core.layout import Layout
from tests.algorithms import transcription
from tests.algorithms.problems import (
    BIAS_LR,
    BIAS_WEIGHT_DECAY,
    LR,
    NUM_PARAMETERS,
    NUM_WEIGHTS,
    SGD,
    SHARED,
    assert_expected_traffic,
    batch_loss,
    flat_parameters,
    make_model,
    make_optimizer,
    ordered,
    train,
    workers,
)
from tests.algorithms.transcription import Array, Compress, Mask, Problem, State

SEED = 11
NUM_WORKERS = 4
NUM_STEPS = 32
"""More than two of the longest interval, and past step 30, where intervals of 2, 3 and 5 meet."""
SHAPES = [(6, 4), (3, 6), (6,), (3,)]


def make_problem(common: dict[str, Any] | None = None) -> Problem:
    """The problem for a transcription, under the numbers that the method is given."""
    common = SGD | (common or {})
    model = make_model()
    start = flat_parameters(make_model()).numpy()
    parameters = ordered(model)

    def gradient(x: Array, step: int, worker: int) -> Array:
        vector = torch.from_numpy(x)
        torch.nn.utils.vector_to_parameters(vector, parameters)
        loss = batch_loss(model, step, worker)
        gradients = torch.autograd.grad(loss, parameters)
        flat = torch.cat([part.reshape(-1) for part in gradients])
        return flat.numpy()

    def per_coordinate(weights: float, biases: float) -> Array:
        is_weight = np.arange(NUM_PARAMETERS) < NUM_WEIGHTS
        return np.where(is_weight, weights, biases)

    eta = per_coordinate(common["lr"], BIAS_LR)
    decay = per_coordinate(common["weight_decay"], BIAS_WEIGHT_DECAY)
    problem = Problem(
        start=start,
        gradient=gradient,
        num_workers=NUM_WORKERS,
        eta=eta,
        beta=common["momentum"] or 0.0,
        decay=decay,
    )
    if "local_step" in common:
        shapes = SHAPES[:2] if common["local_step"] == "muon" else []
        zero = problem.everywhere(0 * start)
        problem.adam = transcription.AdamW(
            zero, common["betas"], common["eps"], problem.beta, shapes
        )
    return problem


def mask_of(compressor: SharedSupport) -> Mask:
    """The coordinates that the compressor draws; that they are drawn rightly is tested with the
    compressors."""
    layout = Layout.of(ordered(make_model()))

    def mask(step: int, purpose: str) -> NDArray[np.bool_]:
        chosen = torch.zeros(NUM_PARAMETERS)
        draw = Draw(SEED, step, purpose)
        support = compressor.support(layout, draw)
        support.add_(chosen, torch.ones(support.payload_numel))
        return chosen.numpy() > 0

    return mask


def qsgd_noise(step: int, purpose: str, worker: int) -> Array:
    draw = Draw(SEED, step, purpose)
    generator = draw.generator(torch.device("cpu"), worker)
    padded = torch.empty(64, dtype=torch.float64)
    padded.uniform_(generator=generator)
    return padded.numpy()[:NUM_PARAMETERS]


def first_q(seed: int) -> Callable[[int, int, int], Array]:
    """Where PowerSGD begins: that it is drawn rightly is tested with the draws."""

    def drawn(number: int, columns: int, rank: int) -> Array:
        of_step_0 = Draw(seed, 0, "gradient")
        q: Array = of_step_0.normal((columns, rank), number).double().numpy()
        return q

    return drawn


INT4 = transcription.quantised_blocks(4, 16)
ENCODED: dict[str, Compress] = {
    "top_k": transcription.top_k(5),  # 51 / 10
    "sign": transcription.quantised_blocks(1, NUM_PARAMETERS),
    "qsgd": transcription.qsgd(7, 16, qsgd_noise),
    "chunks": transcription.chunk_top_k(5, 12, 2),
    "int4": transcription.in_two_stages(INT4, 16),
}


def compress_of(key: str, among_neighbours: bool = False) -> Compress:
    if key == "int4" and among_neighbours:
        return INT4
    if key in ENCODED:
        return ENCODED[key]
    return transcription.masked(mask_of(SHARED[key]))


def rises_and_falls(step: int) -> float:
    """A learning rate: up to 0.1 in 8 steps, then by a line that would reach 0 at step 58."""
    return LR * min(step / 8, (58 - step) / 50)


def assert_follows(
    name: str,
    own: dict[str, Any],
    expected: Iterator[State],
    rate: Callable[[int], float] | None = None,
    **common: Any,
) -> None:
    """After each step the workers' parameters, and their errors where the method holds them, are as
    expected.

    `rate` is the first group's learning rate at a step; that of the second is in proportion.
    """

    def work(collectives: Collectives) -> list[tuple[Array, Array | None]]:
        model = make_model()
        optimizer = make_optimizer(name, model, own, collectives, seed=SEED, **common)
        states = []
        for step in range(1, NUM_STEPS + 1):
            if rate is not None:
                weights, biases = optimizer.param_groups
                weights["lr"] = rate(step)
                biases["lr"] = BIAS_LR / LR * rate(step)
            train(optimizer, model, collectives.rank, [step])
            error = optimizer.error
            own_error = None if error is None else error[0].numpy().copy()
            x = flat_parameters(model).numpy()
            states.append((x, own_error))
        assert_expected_traffic(optimizer, NUM_STEPS)
        return states

    tolerance = 1e-8 if "local_step" in common else 1e-9

    def assert_near(found: list[Array], wanted: Any, what: str) -> None:
        np.testing.assert_allclose(
            found, wanted, rtol=tolerance, atol=tolerance, err_msg=what
        )

    by_step = zip(*workers(work, NUM_WORKERS), strict=True)
    for step, states in enumerate(by_step, start=1):
        wanted_xs, wanted_es = next(expected)
        xs = [x for x, _ in states]
        assert_near(xs, wanted_xs, f"parameters after step {step}")
        es = [e for _, e in states if e is not None]
        if es:
            assert_near(es, wanted_es, f"errors after step {step}")
