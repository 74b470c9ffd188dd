"""What a type checker says of a user's script: nothing where it is right, and the place where it is
wrong."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.test_documented import METHOD, shown

ROOT = Path(__file__).parents[2]

SCRIPT = """
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from cser_bench.algorithms import (
    CSER, DPSGD, EFSGD, MCSER, QSGD, SGD, BlockSparsifier, CSERReleased, DeepSqueeze, DiLoCo, LocalSGD,
    ProcessGroupCollectives, QSparseLocalSGD, TopK, consensus_checkpoint,
)

model = nn.Linear(3, 2)
params = model.parameters()
block = BlockSparsifier(ratio=8)

SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-4, seed=1, communication_dtype=torch.float16, model=model)
EFSGD(params, lr=0.1, compressor=TopK(ratio=8.5))
LocalSGD(params, lr=0.1, sync_interval=8, collectives=ProcessGroupCollectives())
LocalSGD(params, lr=0.1, sync_interval=8, collectives=dist.new_group([0, 1]))
LocalSGD(params, lr=0.1, sync_interval=8, collectives=init_device_mesh("cpu", (2,)))
QSparseLocalSGD(params, lr=0.1, compressor=QSGD(bits=4), sync_interval=8)
DiLoCo(params, lr=0.1, sync_interval=8, outer_lr=1, outer_momentum=0.5, num_fragments=4)
optimizer = CSER(params, lr=0.1, gradient_compressor=block, error_compressor=block, reset_interval=8)
CSERReleased(params, lr=0.1, gradient_compressor=block, error_compressor=block, reset_interval=8)
DPSGD(params, lr=0.1, topology="one_peer", order="adapt_then_combine")
DeepSqueeze(params, lr=0.1, topology="ring", compressor=QSGD(bits=4), gamma=1)
with optimizer.consensus(model):
    print(optimizer.traffic.training_bits + 1)
consensus_checkpoint("step-1", model, optimizer, step=1)

SGD(params, lr="0.1")  # wrong
SGD(params)  # wrong
SGD(params, lr=0.1, collectives="world")  # wrong
SGD(params, lr=0.1, momentun=0.9)  # wrong
LocalSGD(params, lr=0.1, sync_interval=8, nesterov=True)  # wrong
LocalSGD(params, lr=0.1, sync_interval="8")  # wrong
EFSGD(params, lr=0.1, compressor=8)  # wrong
CSERReleased(params, lr=0.1, gradient_compressor=TopK(8), error_compressor=block, reset_interval=8)  # wrong
MCSER(params, lr=0.1, gradient_compressor=block, error_compressor=block, reset_interval=8, seed=None)  # wrong
consensus_checkpoint("step-1", model.state_dict(), optimizer)  # wrong
optimizer.no_such_thing  # wrong
DPSGD(params, lr=0.1, topology="rings", order="adapt_then_combine")  # wrong
"""


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_a_type_checker_finds_what_is_wrong_in_a_script_and_nothing_else(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    example = tmp_path / "my_method.py"
    script.write_text(SCRIPT)
    example.write_text(shown(METHOD))
    # From the checkout and with its settings, so that what `make check` found out of PyTorch is
    # used again.
    words = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-error-summary",
        "--hide-error-context",
    ]
    words += [str(script), str(example)]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    told = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=590
    )
    lines = told.stdout.splitlines()
    errors = [line for line in lines if ": error:" in line]
    wrong = [
        number
        for number, line in enumerate(SCRIPT.splitlines(), 1)
        if line.endswith("# wrong")
    ]
    assert {int(line.split(":")[1]) for line in errors} == set(wrong), (
        told.stdout + told.stderr
    )
    assert not any(example.name in line for line in errors), (
        "nor in the documented method"
    )


def test_every_package_tells_type_checkers_that_it_has_types() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for package in table["tool"]["importlinter"]["root_packages"]:
        assert (ROOT / package / "py.typed").exists()
        assert "py.typed" in table["tool"]["setuptools"]["package-data"][package]
