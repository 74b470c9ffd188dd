"""How tests hold a method to its transcription: the same problem and draws, compared step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from algorithms import Collectives
from algorithms.core.compressors import Draw, SharedSupport
from algorithms.core.layout import Layout
from tests.algorithms import transcription
from tests.algorithms.problems import (
    BIAS_LR,
    BIAS_WEIGHT_DECAY,
    LR,
    MOMENTUM,
    NUM_PARAMETERS,
    SHARED,
    WEIGHT_DECAY,
    batch_loss,
    make_model,
    make_optimizer,
    ordered,
    train,
    workers,
)
from tests.algorithms.transcription import Array, Compress, Mask, Problem, State

SEED, NUM_WORKERS, NUM_STEPS = 11, 4, 50
NUM_WEIGHTS = 42


def per_coordinate(weights: float, biases: float) -> Array:
    return np.where(np.arange(NUM_PARAMETERS) < NUM_WEIGHTS, weights, biases)


def make_problem(momentum: float = MOMENTUM) -> Problem:
    model = make_model()
    parameters = ordered(model)

    def gradient(x: Array, step: int, worker: int) -> Array:
        torch.nn.utils.vector_to_parameters(torch.from_numpy(x), parameters)
        gradients = torch.autograd.grad(batch_loss(model, step, worker), parameters)
        return torch.cat([part.reshape(-1) for part in gradients]).numpy()

    return Problem(
        start=torch.cat([parameter.detach().reshape(-1) for parameter in parameters]).numpy(),
        gradient=gradient,
        num_workers=NUM_WORKERS,
        eta=per_coordinate(LR, BIAS_LR),
        beta=momentum,
        decay=per_coordinate(WEIGHT_DECAY, BIAS_WEIGHT_DECAY),
    )


def mask_of(compressor: SharedSupport) -> Mask:
    """The coordinates that the compressor draws; that they are drawn rightly is tested with the compressors."""
    layout = Layout.of(ordered(make_model()))

    def mask(step: int, purpose: str) -> NDArray[np.bool_]:
        chosen = torch.zeros(NUM_PARAMETERS)
        support = compressor.support(layout, Draw(SEED, step, purpose))
        support.add_(chosen, torch.ones(support.payload_numel))
        return chosen.numpy() > 0

    return mask


def qsgd_noise(step: int, purpose: str, worker: int) -> Array:
    generator = Draw(SEED, step, purpose).generator(torch.device("cpu"), worker)
    return torch.empty(64, dtype=torch.float64).uniform_(generator=generator).numpy()[:NUM_PARAMETERS]


def first_q(seed: int) -> Callable[[int, int, int], Array]:
    """Where PowerSGD begins: that it is drawn rightly is tested with the draws."""
    return lambda number, columns, rank: Draw(seed, 0, "gradient").normal((columns, rank), number).double().numpy()


ENCODED: dict[str, Compress] = {
    "top_k": transcription.top_k(5),  # 51 / 10
    "sign": transcription.scaled_sign,
    "qsgd": transcription.qsgd(7, 16, qsgd_noise),
    "chunks": transcription.chunk_top_k(5, 12, 2),
    "int4": transcription.in_two_stages(transcription.quantised_blocks(4, 16), 16),
}


def compress_of(key: str, among_neighbours: bool = False) -> Compress:
    if key == "int4" and among_neighbours:
        return transcription.quantised_blocks(4, 16)
    return ENCODED[key] if key in ENCODED else transcription.masked(mask_of(SHARED[key]))


def trajectory(name: str, own: dict[str, Any], **numbers: Any) -> list[tuple[list[Array], list[Array]]]:
    """After each step, the workers' parameters, and their errors where the method holds them."""

    def work(collectives: Collectives) -> list[tuple[Array, Array | None]]:
        model = make_model()
        optimizer = make_optimizer(name, model, own, collectives, seed=SEED, **numbers)
        states = []
        for step in range(1, NUM_STEPS + 1):
            train(optimizer, model, collectives.rank, [step])
            error = None if optimizer.error is None else optimizer.error[0].numpy().copy()
            states.append((optimizer.flat.parameters[0].numpy().copy(), error))
        return states

    per_worker = workers(work, NUM_WORKERS)
    return [
        ([x for x, _ in states], [e for _, e in states if e is not None]) for states in zip(*per_worker, strict=True)
    ]


def assert_follows(
    name: str,
    own: dict[str, Any],
    expected: Iterator[State],
    momentum: float | None = MOMENTUM,
    rtol: float = 1e-9,
    **numbers: Any,
) -> None:
    actual = trajectory(name, own, momentum=momentum, **numbers)
    for step, ((xs, es), (want_xs, want_es)) in enumerate(zip(actual, expected, strict=True), start=1):
        np.testing.assert_allclose(xs, want_xs, rtol=rtol, atol=rtol, err_msg=f"parameters after step {step}")
        if es:
            np.testing.assert_allclose(es, want_es, rtol=rtol, atol=rtol, err_msg=f"errors after step {step}")
