"""AdamW in experiments: what a spec says of it, and what a plan makes of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import StackedCollectives
from harness.cli.show import show_plan
from harness.plan.footprint import footprint_of
from harness.plan.plan import make_plan
from harness.spec import SpecError
from harness.spec_file import load_spec
from harness.train.build import build_optimizer
from tests.harness.support import changed, small_config, small_spec, write_spec


def adamw_spec() -> dict[str, Any]:
    """All rows by AdamW, the second one with numbers of its own, the third by SGD."""
    spec = small_spec()
    spec["training"] |= {"local_step": "adamw", "betas": [0.9, 0.98], "eps": 1e-9}
    spec["rows"][1] |= {"betas": [0.8, 0.9], "eps": 1e-6}
    del spec["rows"][1]["momentum"]
    spec["rows"][2] |= {"local_step": "sgd"}
    return spec


def test_a_plan_has_each_rows_local_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(load_spec(write_spec(tmp_path, adamw_spec())), tmp_path)
    configs = {run.row: run.config for run in plan.runs}
    stepping = {row: (each.local_step, each.momentum, each.betas, each.eps) for row, each in configs.items()}
    assert stepping == {
        "sgd": ("adamw", 0.0, [0.9, 0.98], 1e-9),
        "cser": ("adamw", 0.0, [0.8, 0.9], 1e-6),
        "ef_sgd": ("sgd", 0.9, [0.9, 0.999], 1e-8),
    }
    show_plan(plan)
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()[:1]}
    assert said["sgd"].endswith("  AdamW with betas 0.9, 0.98, eps 1e-09")
    assert said["cser"].endswith("; AdamW with betas 0.8, 0.9, eps 1e-06")
    assert said["ef_sgd"].endswith("; momentum 0.9")


def test_a_plan_counts_two_moments_in_memory() -> None:
    sgd, adamw = footprint_of(small_config()), footprint_of(small_config(local_step="adamw", momentum=0.0))
    assert adamw.memory_bytes - sgd.memory_bytes == 4 * sgd.num_parameters
    assert adamw.checkpoint_bytes - sgd.checkpoint_bytes == 4 * sgd.num_parameters
    assert adamw.bits == sgd.bits


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("rows.1.momentum", 0.9, "row cser: its local step is adamw, which has no momentum"),
        ("rows.2.betas", [0.9, 0.99], "row ef_sgd: its local step is sgd, which has no betas"),
        ("rows.1.eps", 0.0, "eps"),
        ("rows.1.betas", [0.9], "betas"),
        ("rows.1.betas", [0.9, 1.0], "betas"),
        ("training.local_step", "adam", "local_step"),
    ],
)
def test_what_does_not_fit_is_refused(path: str, value: Any, words: str, tmp_path: Path) -> None:
    spec = adamw_spec()
    with pytest.raises(SpecError, match=words):
        make_plan(load_spec(write_spec(tmp_path, changed(spec, path, value))), tmp_path)


def test_methods_that_step_by_sgd_alone_are_refused_when_planned() -> None:
    config = small_config("ef21_sgdm", {"compressor": {"kind": "block", "ratio": 4}}, local_step="adamw", momentum=0.0)
    with pytest.raises(SpecError, match="ef21_sgdm: local_step = 'adamw' cannot be"):
        footprint_of(config)
    with pytest.raises(SpecError, match="momentum belongs to local_step = 'sgd'"):
        footprint_of(small_config(local_step="adamw"))


def test_the_optimiser_is_made_with_the_configs_numbers() -> None:
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(2, 3))])
    config = small_config(local_step="adamw", momentum=0.0, betas=[0.7, 0.8], eps=1e-5)
    (group,) = build_optimizer(config, model, StackedCollectives(2), 1).param_groups
    numbers = {key: value for key, value in group.items() if key != "params"}
    assert numbers == {"lr": 0.05, "betas": (0.7, 0.8), "eps": 1e-5, "weight_decay": 1e-3}
