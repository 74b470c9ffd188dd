"""Scaled gradients: the scale is taken out, and all workers skip a step where one of them overflowed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from algorithms import Collectives
from tests.algorithms.problems import (
    NAMES,
    SHARED,
    batch_loss,
    flat_of,
    make_model,
    make_optimizer,
    own_settings,
    trained,
    workers,
)


def scaled_steps(name: str, overflow: dict[int, int], clip: bool = False) -> list[tuple[Tensor, int]]:
    """Of each worker its parameters and the steps counted. `overflow`: the worker that overflows, by step."""

    def work(collectives: Collectives) -> tuple[Tensor, int]:
        model = make_model()
        optimizer = make_optimizer(name, model, own_settings(name, [SHARED["blocks"]], 3), collectives)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(1, 9):
            optimizer.zero_grad()
            loss = batch_loss(model, step, collectives.rank)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if overflow.get(step) == collectives.rank:
                next(model.parameters()).grad.view(-1)[0] = float("inf")  # type: ignore[union-attr]
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1e9)
            scaler.step(optimizer)
            scaler.update()
        return flat_of(optimizer), optimizer.num_steps

    return workers(work, 2)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_scale_is_taken_out_and_all_workers_skip_where_one_overflowed(name: str, clip: bool) -> None:
    plain = trained(name, own_settings(name, [SHARED["blocks"]], 3), 2, 8)
    for (parameters, num_steps), expected in zip(scaled_steps(name, {}, clip), plain, strict=True):
        assert num_steps == 8
        torch.testing.assert_close(parameters, expected, rtol=0, atol=1e-12)
    for parameters, num_steps in scaled_steps(name, {2: 0, 5: 1}, clip):
        assert num_steps == 6 and parameters.isfinite().all()
