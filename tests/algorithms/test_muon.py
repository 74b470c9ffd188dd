"""Muon as the local step: against NumPy and torch.optim.Muon, alone and in DiLoCo; which tensors are matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import SGD, DiLoCo, muon_groups
from algorithms.core.muon import orthogonalised
from tests.algorithms import transcription
from tests.algorithms.following import NUM_STEPS, NUM_WEIGHTS, assert_follows, compress_of, make_problem
from tests.algorithms.problems import (
    BIAS_LR,
    BIAS_WEIGHT_DECAY,
    COMPRESSORS,
    assert_close,
    assert_resumable,
    batch_loss,
    flat_parameters,
    make_model,
    own_settings,
    stacked,
    trained,
)
from tests.algorithms.transcription import Array, Problem, Vectors

MUON: dict[str, Any] = {
    "local_step": "muon",
    "lr": 0.02,
    "momentum": 0.9,
    "betas": (0.8, 0.95),
    "eps": 1e-6,
    "weight_decay": 0.05,
}
SHAPES = [(6, 4), (3, 6)]
CASES = [
    ("sgd", "identity"),
    ("diloco", "identity"),
    ("mcser", "blocks"),
    ("ef_sgd", "int4"),
    ("local_sgd", "identity"),
]


# From the definition.


def polar(u: Array) -> Array:
    """X <- a X + (b A + c A^2) X, five times, A = X X^T, from u over its Frobenius norm, lying wide."""
    x = (u if u.shape[0] <= u.shape[1] else u.T) / max(np.linalg.norm(u), 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if u.shape[0] <= u.shape[1] else x.T


class Rule:
    """Of each worker m, for biases v too; t steps. Returns p_i."""

    def __init__(self, problem: Problem) -> None:
        self.m, self.v = (problem.everywhere(0 * problem.start) for _ in range(2))
        self.t = 0

    def updates(self, gradients: Vectors, xs: Vectors) -> Vectors:
        self.t += 1
        is_weight = np.arange(xs.shape[1]) < NUM_WEIGHTS
        b1 = np.where(is_weight, MUON["momentum"], MUON["betas"][0])
        b2 = MUON["betas"][1]
        self.m = b1 * self.m + (1 - b1) * gradients
        self.v = b2 * self.v + (1 - b2) * gradients**2
        by_adam = self.m / (1 - b1**self.t) / (np.sqrt(self.v / (1 - b2**self.t)) + MUON["eps"])
        nesterov = b1 * self.m + (1 - b1) * gradients
        p = np.where(is_weight, 0.02 * 0.05 * xs, BIAS_LR * (BIAS_WEIGHT_DECAY * xs + by_adam))
        for worker, u in enumerate(nesterov):
            start = 0
            for rows, columns in SHAPES:
                here = slice(start, start + rows * columns)
                p[worker, here] += (
                    0.02 * 0.2 * max(rows, columns) ** 0.5 * polar(u[here].reshape(rows, columns)).ravel()
                )
                start = here.stop
        return p


def problem() -> Problem:
    made = make_problem(0.0)
    made.rule = Rule(made).updates
    return made


def test_alone_in_diloco_and_under_compression_it_follows_its_definition() -> None:
    t, n = transcription, NUM_STEPS
    assert_follows("local_sgd", {"sync_interval": 4}, t.local_sgd(problem(), n, 4), rtol=1e-8, **MUON)
    outer = {"sync_interval": 6, "num_fragments": 3, "outer_lr": 0.7, "outer_momentum": 0.9}
    expected = t.streaming_diloco(problem(), n, 6, 3, 0, 0.7, 0.9, 0.0)
    assert_follows("diloco", outer, expected, rtol=1e-8, **MUON)
    expected = t.ef_sgd(problem(), n, compress_of("top_k"))
    assert_follows("ef_sgd", {"compressor": COMPRESSORS["top_k"]}, expected, rtol=1e-8, **MUON)


@pytest.mark.parametrize("shape", [(5, 5), (3, 17), (40, 8)])
def test_singular_values_become_about_one_and_directions_stay(shape: tuple[int, int]) -> None:
    u = np.random.default_rng(0).normal(size=shape) * 1e-3
    (found,) = orthogonalised(torch.from_numpy(u)[None])
    np.testing.assert_allclose(found.numpy(), polar(u), atol=1e-12)
    left, _, right = np.linalg.svd(u, full_matrices=False)
    across = left.T @ found.numpy() @ right.T
    assert (abs(np.diag(across)) > 0.3).all() and (abs(np.diag(across)) < 1.5).all()
    np.testing.assert_allclose(across, np.diag(np.diag(across)), atol=1e-6)
    assert not orthogonalised(torch.zeros(1, 3, 4)).any()


def test_it_is_torchs_muon_and_adamw_up_to_the_bfloat16_of_its_iteration() -> None:
    def steps(model: nn.Module, *optimizers: torch.optim.Optimizer) -> Tensor:
        for step in range(1, 9):
            model.zero_grad()
            batch_loss(model, step, 0).backward()
            for optimizer in optimizers:
                optimizer.step()
        return flat_parameters(model)

    ours, theirs = make_model(torch.float32), make_model(torch.float32)
    numbers = {key: MUON[key] for key in ("betas", "eps")}
    weights = [each for each in theirs.parameters() if each.dim() > 1]
    biases = [each for each in theirs.parameters() if each.dim() == 1]
    common = {"lr": 0.02, "weight_decay": 0.05}
    muon = torch.optim.Muon(weights, momentum=0.9, adjust_lr_fn="match_rms_adamw", **common)
    expected = steps(theirs, muon, torch.optim.AdamW(biases, **common, **numbers))
    start = flat_parameters(ours)
    found = steps(ours, SGD(ours.parameters(), **MUON))
    assert (found - expected).norm() < 0.02 * (expected - start).norm()


# As every local step.


@pytest.mark.parametrize(("name", "key"), CASES)
def test_a_worker_among_others_and_one_that_is_resumed_step_alike(name: str, key: str) -> None:
    own = own_settings(name, [COMPRESSORS[key]], 3)
    rows = stacked(name, own, 3, 8, **MUON)
    for row, alone in zip(rows.flat.parameters, trained(name, own, 3, 8, torch.float32, **MUON), strict=True):
        assert_close(row, alone, atol=1e-5)
    assert rows.traffic.training() == rows.expected_traffic(8).training()
    assert_resumable(name, own, (3, 4), **MUON)


def test_convolutions_are_matrices_and_vectors_and_groups_that_say_so_are_not() -> None:
    """Steps of Muon have a spectral norm of about 0.2 eta sqrt(max(rows, columns)), the first of AdamW +- eta."""
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((4, 3, 2, 2), (1, 5, 6), (7, 1), (4, 12))]
    free, kept = {"params": parameters[:3]}, {"params": parameters[3:], "muon": False}
    optimizer = SGD([free, kept], lr=0.1, local_step="muon")
    for number, each in enumerate(parameters):
        each.grad.copy_(torch.randn(each.shape, generator=torch.Generator().manual_seed(number)))  # type: ignore[union-attr]
    optimizer.step()
    for each in parameters[1:]:
        torch.testing.assert_close(each.detach().abs(), torch.full_like(each, 0.1), rtol=1e-4, atol=0)
    values = torch.linalg.svdvals(parameters[0].detach().view(4, 12)) / (0.1 * 0.2 * 12**0.5)
    assert (values > 0.5).all() and (values < 1.5).all()


def test_embeddings_and_the_output_are_left_to_adamw() -> None:
    body = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)]
    text = nn.Sequential(nn.Embedding(9, 4), *body, nn.Linear(4, 9, bias=False))
    groups = muon_groups(text)
    assert [each["muon"] for each in groups] == [False, True, False]
    assert [each for group in groups for each in group["params"]] == list(text.parameters())
    # A matrix that is no output may have as many rows as an embedding.
    assert [each["muon"] for each in muon_groups(nn.Sequential(nn.Embedding(4, 9), *body))] == [False, True]
    assert [len(each["params"]) for each in muon_groups(nn.Sequential(*body))] == [2, 1, 1]
    assert [each["muon"] for each in muon_groups(nn.Sequential(nn.Embedding(9, 4), *body))] == [False, True]
    assert DiLoCo(groups, lr=0.1, sync_interval=2, local_step="muon").param_groups[1]["momentum"] == 0.95


@pytest.mark.parametrize(("given", "group"), [({"lr": 0.1}, {"muon": True}), (MUON, {"muon": 1})])
def test_a_group_that_says_muon_must_be_meant(given: dict[str, Any], group: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="group 0: muon is True or False, for local_step = 'muon' alone"):
        SGD([{"params": make_model().parameters(), **group}], **given)
