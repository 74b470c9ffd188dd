"""Muon as the local step: torch's own, and which tensors are matrices."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cser_bench.algorithms import SGD, DiLoCo, muon_groups
from cser_bench.algorithms.local_steps.muon import iterated, iteration_type
from tests.algorithms.problems import MUON, batch_loss, flat_parameters, make_model


def test_it_is_torchs_muon_and_adamw_up_to_the_bfloat16_of_its_iteration() -> None:
    def steps(model: nn.Module, *optimizers: torch.optim.Optimizer) -> Tensor:
        for step in range(1, 9):
            model.zero_grad()
            loss = batch_loss(model, step, 0)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        return flat_parameters(model)

    ours = make_model(torch.float32)
    theirs = make_model(torch.float32)
    parameters = list(theirs.parameters())
    weights = parameters[::2]
    biases = parameters[1::2]
    common = {"lr": 0.02, "weight_decay": 0.05}
    muon = torch.optim.Muon(
        weights, momentum=0.9, adjust_lr_fn="match_rms_adamw", **common
    )
    adam_numbers = {"betas": MUON["betas"], "eps": MUON["eps"]}
    adam = torch.optim.AdamW(biases, **adam_numbers, **common)
    expected = steps(theirs, muon, adam)
    start = flat_parameters(ours)
    sgd = SGD(ours.parameters(), **MUON)
    found = steps(ours, sgd)
    apart = (found - expected).norm()
    moved = (expected - start).norm()
    assert apart < 0.05 * moved


TYPES = {
    (6, 1): torch.float32,
    (7, 0): torch.float16,
    (7, 5): torch.float16,
    (8, 6): torch.bfloat16,
    (9, 0): torch.bfloat16,
    (12, 0): torch.bfloat16,
}


@pytest.mark.parametrize("capability", TYPES)
def test_a_gpu_iterates_in_bits_that_it_has_units_for(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    on_gpu = iteration_type(torch.device("cuda:1"), torch.float32)
    on_cpu = iteration_type(torch.device("cpu"), torch.float64)
    assert on_gpu == TYPES[capability]
    assert on_cpu == torch.float64


def orthogonal(matrix: Tensor) -> Tensor:
    """Columns of length 1, at right angles, that span those of the matrix."""
    return torch.linalg.qr(matrix.double()).Q


@pytest.mark.parametrize("condition", [10.0, 1e3])
def test_fp16_is_nearer_to_the_exact_iteration_than_bfloat16(condition: float) -> None:
    """The matrix has norm 1, and singular values that fall by the condition number."""
    rows = 64
    columns = 512
    draws = torch.Generator()
    draws.manual_seed(1)
    square = torch.randn(rows, rows, generator=draws)
    tall = torch.randn(columns, rows, generator=draws)
    left = orthogonal(square)
    right = orthogonal(tall)
    exponents = torch.linspace(0, 1, rows).double()
    singular_values = condition**-exponents
    matrix = left * singular_values @ right.mT
    normalised = matrix / matrix.norm()
    matrices = normalised[None]
    exact = iterated(matrices)
    in_fp16 = iterated(matrices.to(torch.float16))
    in_bfloat16 = iterated(matrices.to(torch.bfloat16))
    size = exact.norm()
    fp16 = (in_fp16 - exact).norm()
    bfloat16 = (in_bfloat16 - exact).norm()
    assert fp16 < 0.5 * bfloat16
    assert bfloat16 < 0.2 * size


def test_convolutions_are_matrices_and_vectors_and_groups_that_say_so_are_not() -> None:
    """Steps of Muon have a spectral norm of about 0.2 eta sqrt(max(rows, columns)), the first of
    AdamW +- eta."""
    shapes = ((4, 3, 2, 2), (1, 5, 6), (7, 1), (4, 12))
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    free = {"params": parameters[:3]}
    kept = {"params": parameters[3:], "muon": False}
    optimizer = SGD([free, kept], lr=0.1, local_step="muon")
    for number, each in enumerate(parameters):
        generator = torch.Generator()
        generator.manual_seed(number)
        drawn = torch.randn(each.shape, generator=generator)
        each.grad.copy_(drawn)  # type: ignore[union-attr]
    optimizer.step()
    values_after = [each.detach() for each in parameters]
    convolution, *others = values_after
    for each in others:
        moved_by = each.abs()
        expected = torch.full_like(each, 0.1)
        torch.testing.assert_close(moved_by, expected, rtol=1e-4, atol=0)
    spectral_norm = 0.1 * 0.2 * 12**0.5
    matrix = convolution.view(4, 12)
    singular_values = torch.linalg.svdvals(matrix)
    values = singular_values / spectral_norm
    assert (values > 0.5).all()
    assert (values < 1.5).all()


def by_muon(groups: list[dict[str, Any]]) -> list[bool]:
    return [group["muon"] for group in groups]


def test_embeddings_and_the_output_are_left_to_adamw() -> None:
    body = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)]
    output = nn.Linear(4, 9, bias=False)
    text = nn.Sequential(nn.Embedding(9, 4), *body, output)
    groups = muon_groups(text)
    assert by_muon(groups) == [False, True, False]
    in_groups = []
    for group in groups:
        in_groups += group["params"]
    assert in_groups == list(text.parameters())
    # A matrix that is no output may have as many rows as an embedding.
    wide = nn.Sequential(nn.Embedding(4, 9), *body)
    groups_of_wide = muon_groups(wide)
    assert by_muon(groups_of_wide) == [False, True]
    without_text = nn.Sequential(*body)
    sizes = []
    for group in muon_groups(without_text):
        sizes.append(len(group["params"]))
    assert sizes == [2, 1, 1]
    without_output = nn.Sequential(nn.Embedding(9, 4), *body)
    groups_without_output = muon_groups(without_output)
    assert by_muon(groups_without_output) == [False, True]
    optimizer = DiLoCo(groups, lr=0.1, sync_interval=2, local_step="muon")
    _, body_group, _ = optimizer.param_groups
    assert body_group["momentum"] == 0.95
