"""Local steps: each is a file, from which scripts, specs, plans and timings know it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cser_bench.algorithms.local_steps as package
from cser_bench.algorithms import LocalSGD, StackedCollectives
from cser_bench.algorithms.core.local_step import local_steps
from cser_bench.harness.plan.plan import make_plan
from cser_bench.harness.plan.show import show_plan
from cser_bench.harness.spec.spec import Spec
from cser_bench.harness.train.build import build_optimizer
from tests.harness.support import small_spec

SIGN = '''
"""Descent along the sign of the gradient: p_i = eta sign(g_i)."""

from typing import ClassVar

from cser_bench.algorithms.core.local_step import REQUIRED, LocalStep, Span


class Sign(LocalStep):
    """It keeps nothing, and reads the learning rate alone."""

    name = "sign"
    numbers: ClassVar = {"lr": REQUIRED, "weight_decay": 0.0}
    rule = "along signs"
    words = "signs of gradients"

    def buffers(self, groups):
        return []

    def spans(self, groups):
        pairs = zip(self.flat.parts, groups, strict=True)
        return [Span(part.start, part.stop, group) for part, group in pairs]

    def step_(self, span, x, g, buffers, target):
        sign = -1 if target is None else 1
        (x if target is None else target).add_(g.sign(), alpha=sign * span.group["lr"])
'''


@pytest.fixture
def sign_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file more in the package."""
    (tmp_path / "sign.py").write_text(SIGN)
    folders = [*package.__path__, str(tmp_path)]
    monkeypatch.setattr(package, "__path__", folders)
    local_steps.cache_clear()
    yield
    local_steps.cache_clear()
    sys.modules.pop("cser_bench.algorithms.local_steps.sign", None)


def test_scripts_have_a_local_step_by_its_file_alone(sign_step: None) -> None:
    """Two workers, of whom each steps by its own gradient, and then they average."""
    zeros = torch.zeros(2, 3)
    rows = torch.nn.Parameter(zeros)
    optimizer = LocalSGD(
        [rows],
        lr=0.5,
        sync_interval=1,
        local_step="sign",
        collectives=StackedCollectives(2),
    )
    rows.grad = torch.tensor([[3.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
    optimizer.step()
    assert rows.tolist() == [[-0.5, 0.0, 0.25]] * 2
    with pytest.raises(ValueError, match=r"momentum belongs to .*, not 'sign'"):
        LocalSGD([rows], lr=0.5, momentum=0.9, sync_interval=1, local_step="sign")


def test_specs_and_plans_have_a_local_step_by_its_file_alone(
    sign_step: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table: dict[str, Any] = small_spec()
    table["rows"][0] |= {"local_step": "sign"}
    plan = make_plan(Spec.model_validate(table), tmp_path)
    row = table["rows"][0]["row"]
    config = next(run.config for run in plan.runs if run.row == row)
    assert config.momentum == 0.0
    assert config.betas == [0.9, 0.999]
    assert config.eps == 1e-8
    model = torch.nn.Linear(3, 1)
    optimizer = build_optimizer(config, model, StackedCollectives(1), 1)
    numbers = {key for group in optimizer.param_groups for key in group}
    assert numbers == {"params", "lr", "weight_decay"}
    show_plan(plan)
    assert "signs of gradients" in capsys.readouterr().out


def test_each_names_numbers_that_it_reads_and_buffers_that_it_has() -> None:
    for name, step in local_steps().items():
        ones = torch.ones(2, 3)
        x = torch.nn.Parameter(ones)
        x.grad = torch.ones(2, 3)
        optimizer = LocalSGD([x], lr=0.1, local_step=name, sync_interval=1)
        optimizer.step()
        (group,) = optimizer.param_groups
        expected = {"params", *step.numbers, *step.options}
        assert group.keys() == expected
        held = optimizer.replicas[0].buffers.keys()
        known = {*step.moments, *step.made_later, "exp_avg", "exp_avg_sq"}
        assert held <= known
        assert set(step.moments) <= held
