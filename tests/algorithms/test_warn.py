"""Warnings name the script's own line, however many calls of torch's or ours stand between."""

import warnings
from collections.abc import Callable

import pytest
import torch

from cser_bench.algorithms import SGD, SoloCollectives
from cser_bench.algorithms.core.warn import warn_script


@pytest.mark.parametrize("num_wrappers", [0, 1, 5])
def test_calls_of_torch_are_passed_over(num_wrappers: int) -> None:
    warn: Callable[[str], None] = warn_script
    for _ in range(num_wrappers):
        warn = torch.no_grad()(warn)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn("well")
        warn("again")
    assert [each.filename for each in said] == [__file__] * 2
    assert said[1].lineno == said[0].lineno + 1


def test_a_step_that_another_hook_wraps_warns_at_its_own_line() -> None:
    weights = torch.nn.Parameter(torch.ones(3))
    optimizer = SGD(
        [weights], lr=0.1, collectives=SoloCollectives(), skip_nonfinite=True
    )
    optimizer.register_step_pre_hook(lambda *_: None)
    weights.grad = torch.full((3,), torch.nan)
    with pytest.warns(UserWarning, match="left step 1 out") as said:
        torch.no_grad()(optimizer.step)()
    assert said[0].filename == __file__
