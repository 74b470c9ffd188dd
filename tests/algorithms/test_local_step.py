"""The local step, by SGD, AdamW or Muon: in every type and size, which tensors are matrices, and its state."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms import SGD, DiLoCo, DistributedOptimizer, TopK, muon_groups
from algorithms.core.flat import FlatBuffers
from algorithms.core.local_step import AdamW, Span, nesterov_step_
from tests.algorithms.problems import (
    ADAMW,
    MUON,
    batch_loss,
    flat_parameters,
    make_model,
    make_optimizer,
)

SIZES = [1, 7, 8, 9, 15, 16, 17, 31, 33, 48, 64, 65, 100, 1023, 1024, 1025]
"""Around multiples of a vector's 16 numbers."""
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", ["sgd", "sgd with momentum", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_step_is_right_for_every_type_and_size(dtype: torch.dtype, rule: str, device: str) -> None:
    """Of the parameters themselves, or of another vector that the update is added to or taken from."""
    beta = 0.9 if "momentum" in rule else 0.0
    for size, separate in itertools.product(SIZES, (False, True)):
        generator = torch.Generator().manual_seed(size)
        numbers = [torch.randn(size, generator=generator).to(dtype) for _ in range(5)]
        numbers[3] = numbers[3].abs() + 0.1
        x, g, m, v, target = (each.double() for each in numbers)
        rows = [each.clone().to(device).unsqueeze(0) for each in numbers]
        sign = 1 if separate and rule == "adamw" else -1
        if rule == "adamw":
            after = [0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2]
            direction = after[0] / (1 - 0.8**3) / ((after[1] / (1 - 0.95**3)).sqrt() + 1e-6)
            update = 0.02 * (0.05 * x + direction)
            step = AdamW(FlatBuffers([[nn.Parameter(rows[0][0].clone())]]), {}).step_
            step(Span(0, size, ADAMW, 2), rows[0], rows[1], rows[2:4], rows[4] if separate else None, sign)
        else:
            group = {"lr": 0.1, "momentum": beta, "weight_decay": 0.02}
            after = [beta * m + (g + 0.02 * x)] if beta else []
            update = 0.1 * (beta * (after[0] if beta else 0) + (g + 0.02 * x))
            moment = rows[2] if beta else None
            nesterov_step_(group, rows[0], rows[1], moment, rows[4] if separate else None, sign)
        moved, start = (rows[4], target) if separate else (rows[0], x)
        rounding = 8 * torch.finfo(dtype).eps
        for actual, wanted in zip([moved, *rows[2:4]], [start + sign * update, *after], strict=False):
            torch.testing.assert_close(actual[0].double().cpu(), wanted, rtol=rounding, atol=rounding)


# Muon.


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


# States.


def test_states_of_another_local_step_of_other_tensors_or_from_before_a_method_had_a_setting() -> None:
    """What a state does not know was at its default."""

    def make(**more: Any) -> DistributedOptimizer:
        own = {"compressor": TopK(10), "error_feedback_on": more.pop("on", "updates")}
        return make_optimizer("ef_sgd", make_model(), own, **more)

    with pytest.raises(ValueError, match="saved with local_step = None, this has 'adamw'"):
        make(**ADAMW).load_state_dict(make().state_dict())
    state = make(**ADAMW).state_dict()
    state["param_groups"][0]["flat"]["tensor_steps"] = [1]
    with pytest.raises(ValueError, match=r"tensor_steps is \[1\], not 4 numbers"):
        make(**ADAMW).load_state_dict(state)
    state = make().state_dict()
    del state["param_groups"][0]["flat"]["settings"]["error_feedback_on"]
    make().load_state_dict(copy.deepcopy(state))
    with pytest.raises(ValueError, match="saved with error_feedback_on = 'updates', this has 'gradients'"):
        make(on="gradients").load_state_dict(state)
