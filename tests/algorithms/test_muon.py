"""Muon as the local step: torch's own, and which tensors are matrices."""

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
            batch_loss(model, step, 0).backward()
            for optimizer in optimizers:
                optimizer.step()
        return flat_parameters(model)

    ours = make_model(torch.float32)
    theirs = make_model(torch.float32)
    weights = list(theirs.parameters())[::2]
    biases = list(theirs.parameters())[1::2]
    common = {"lr": 0.02, "weight_decay": 0.05}
    muon = torch.optim.Muon(
        weights, momentum=0.9, adjust_lr_fn="match_rms_adamw", **common
    )
    adam = torch.optim.AdamW(biases, betas=MUON["betas"], eps=MUON["eps"], **common)
    expected = steps(theirs, muon, adam)
    start = flat_parameters(ours)
    found = steps(ours, SGD(ours.parameters(), **MUON))
    assert (found - expected).norm() < 0.05 * (expected - start).norm()


TYPES = {
    (6, 1): torch.float32,
    (7, 0): torch.float16,
    (7, 5): torch.float16,
    (8, 6): torch.bfloat16,
}
TYPES |= {(9, 0): torch.bfloat16, (12, 0): torch.bfloat16}


@pytest.mark.parametrize("capability", TYPES)
def test_a_gpu_iterates_in_bits_that_it_has_units_for(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert iteration_type(torch.device("cuda:1"), torch.float32) == TYPES[capability]
    assert iteration_type(torch.device("cpu"), torch.float64) == torch.float64


@pytest.mark.parametrize("condition", [10.0, 1e3])
def test_fp16_is_nearer_to_the_exact_iteration_than_bfloat16(condition: float) -> None:
    """The matrix has norm 1, and singular values that fall by the condition number."""
    rows = 64
    columns = 512
    draws = torch.Generator().manual_seed(1)
    left, right = (
        torch.linalg.qr(torch.randn(size, rows, generator=draws).double()).Q
        for size in (rows, columns)
    )
    matrix = left * condition ** -torch.linspace(0, 1, rows).double() @ right.mT
    matrix = (matrix / matrix.norm())[None]
    exact = iterated(matrix)
    fp16, bfloat16 = (
        (iterated(matrix.to(each)) - exact).norm()
        for each in (torch.float16, torch.bfloat16)
    )
    assert fp16 < 0.5 * bfloat16
    assert bfloat16 < 0.2 * exact.norm()


def test_convolutions_are_matrices_and_vectors_and_groups_that_say_so_are_not() -> None:
    """Steps of Muon have a spectral norm of about 0.2 eta sqrt(max(rows, columns)), the first of
    AdamW +- eta."""
    parameters = [
        nn.Parameter(torch.zeros(shape))
        for shape in ((4, 3, 2, 2), (1, 5, 6), (7, 1), (4, 12))
    ]
    free = {"params": parameters[:3]}
    kept = {"params": parameters[3:], "muon": False}
    optimizer = SGD([free, kept], lr=0.1, local_step="muon")
    for number, each in enumerate(parameters):
        each.grad.copy_(
            torch.randn(each.shape, generator=torch.Generator().manual_seed(number))
        )  # type: ignore[union-attr]
    optimizer.step()
    for each in parameters[1:]:
        torch.testing.assert_close(
            each.detach().abs(), torch.full_like(each, 0.1), rtol=1e-4, atol=0
        )
    values = torch.linalg.svdvals(parameters[0].detach().view(4, 12)) / (
        0.1 * 0.2 * 12**0.5
    )
    assert (values > 0.5).all()
    assert (values < 1.5).all()


def test_embeddings_and_the_output_are_left_to_adamw() -> None:
    body = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)]
    text = nn.Sequential(nn.Embedding(9, 4), *body, nn.Linear(4, 9, bias=False))
    groups = muon_groups(text)
    assert [each["muon"] for each in groups] == [False, True, False]
    assert [each for group in groups for each in group["params"]] == list(
        text.parameters()
    )
    # A matrix that is no output may have as many rows as an embedding.
    assert [
        each["muon"] for each in muon_groups(nn.Sequential(nn.Embedding(4, 9), *body))
    ] == [False, True]
    assert [len(each["params"]) for each in muon_groups(nn.Sequential(*body))] == [
        2,
        1,
        1,
    ]
    assert [
        each["muon"] for each in muon_groups(nn.Sequential(nn.Embedding(9, 4), *body))
    ] == [False, True]
    assert (
        DiLoCo(groups, lr=0.1, sync_interval=2, local_step="muon").param_groups[1][
            "momentum"
        ]
        == 0.95
    )
