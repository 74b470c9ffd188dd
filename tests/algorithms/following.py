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
        torch.nn.utils.vector_to_parameters(torch.from_numpy(x), parameters)
        gradients = torch.autograd.grad(batch_loss(model, step, worker), parameters)
        return torch.cat([part.reshape(-1) for part in gradients]).numpy()

    def per_coordinate(weights: float, biases: float) -> Array:
        return np.where(np.arange(NUM_PARAMETERS) < NUM_WEIGHTS, weights, biases)

    eta = per_coordinate(common["lr"], BIAS_LR)
    decay = per_coordinate(common["weight_decay"], BIAS_WEIGHT_DECAY)
    problem = Problem(
        start, gradient, NUM_WORKERS, eta, common["momentum"] or 0.0, decay
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
        support = compressor.support(layout, Draw(SEED, step, purpose))
        support.add_(chosen, torch.ones(support.payload_numel))
        return chosen.numpy() > 0

    return mask


def qsgd_noise(step: int, purpose: str, worker: int) -> Array:
    generator = Draw(SEED, step, purpose).generator(torch.device("cpu"), worker)
    return (
        torch.empty(64, dtype=torch.float64)
        .uniform_(generator=generator)
        .numpy()[:NUM_PARAMETERS]
    )


def first_q(seed: int) -> Callable[[int, int, int], Array]:
    """Where PowerSGD begins: that it is drawn rightly is tested with the draws."""
    return lambda number, columns, rank: (
        Draw(seed, 0, "gradient").normal((columns, rank), number).double().numpy()
    )


ENCODED: dict[str, Compress] = {
    "top_k": transcription.top_k(5),  # 51 / 10
    "sign": transcription.quantised_blocks(1, NUM_PARAMETERS),
    "qsgd": transcription.qsgd(7, 16, qsgd_noise),
    "chunks": transcription.chunk_top_k(5, 12, 2),
    "int4": transcription.in_two_stages(transcription.quantised_blocks(4, 16), 16),
}


def compress_of(key: str, among_neighbours: bool = False) -> Compress:
    if key == "int4" and among_neighbours:
        return transcription.quantised_blocks(4, 16)
    return (
        ENCODED[key] if key in ENCODED else transcription.masked(mask_of(SHARED[key]))
    )


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
                for group, peak in zip(
                    optimizer.param_groups, (1.0, BIAS_LR / LR), strict=True
                ):
                    group["lr"] = peak * rate(step)
            train(optimizer, model, collectives.rank, [step])
            error = (
                None if optimizer.error is None else optimizer.error[0].numpy().copy()
            )
            states.append((flat_parameters(model).numpy(), error))
        assert (
            optimizer.traffic.training()
            == optimizer.expected_traffic(NUM_STEPS).training()
        )
        return states

    tolerance = 1e-8 if "local_step" in common else 1e-9
    actual = zip(*workers(work, NUM_WORKERS), strict=True)
    for step, (states, (want_xs, want_es)) in enumerate(
        zip(actual, expected, strict=False), start=1
    ):
        found = [(f"parameters after step {step}", [x for x, _ in states], want_xs)]
        if states[0][1] is not None:
            found.append((f"errors after step {step}", [e for _, e in states], want_es))
        for what, vectors, wanted in found:
            np.testing.assert_allclose(
                vectors, wanted, rtol=tolerance, atol=tolerance, err_msg=what
            )
