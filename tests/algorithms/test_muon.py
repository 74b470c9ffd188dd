"""Muon as the local step: torch's own, and which tensors are matrices."""

import torch
from torch import Tensor, nn

from cser_bench.algorithms import SGD, DiLoCo, muon_groups
from tests.algorithms.problems import MUON, batch_loss, flat_parameters, make_model


def test_it_is_torchs_muon_and_adamw_up_to_the_bfloat16_of_its_iteration() -> None:
    def steps(model: nn.Module, *optimizers: torch.optim.Optimizer) -> Tensor:
        for step in range(1, 9):
            model.zero_grad()
            batch_loss(model, step, 0).backward()
            for optimizer in optimizers:
                optimizer.step()
        return flat_parameters(model)

    ours, theirs = make_model(torch.float32), make_model(torch.float32)
    weights, biases = list(theirs.parameters())[::2], list(theirs.parameters())[1::2]
    common = {"lr": 0.02, "weight_decay": 0.05}
    muon = torch.optim.Muon(weights, momentum=0.9, adjust_lr_fn="match_rms_adamw", **common)
    adam = torch.optim.AdamW(biases, betas=MUON["betas"], eps=MUON["eps"], **common)
    expected, start = steps(theirs, muon, adam), flat_parameters(ours)
    found = steps(ours, SGD(ours.parameters(), **MUON))
    assert (found - expected).norm() < 0.02 * (expected - start).norm()


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
