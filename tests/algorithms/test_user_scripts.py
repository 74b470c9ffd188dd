"""The optimisers in anyone's script: four processes that do to them what scripts do, and what they must be told."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer

from algorithms import BlockSparsifier, DistributedOptimizer, Purpose, SoloCollectives, Traffic, algorithms
from tests.algorithms import user_scripts
from tests.algorithms.problems import NAMES, make_model, own_settings, run_processes

slow_to_start = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where four processes, started once, wrote what they found."""
    folder: Path = tmp_path_factory.mktemp("processes")
    run_processes(user_scripts.process, user_scripts.WORLD_SIZE, folder)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[tuple[str, str], Any]]:
    """Of each process, what each case found wrong."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(user_scripts.WORLD_SIZE)]


@slow_to_start
@pytest.mark.parametrize("case", user_scripts.CASES)
@pytest.mark.parametrize("name", NAMES)
def test_in_four_processes(found: list[dict[tuple[str, str], Any]], name: str, case: str) -> None:
    wrong = [f"rank {rank}: {results[case, name]}" for rank, results in enumerate(found) if results[case, name]]
    assert not wrong, "\n".join(wrong)


@slow_to_start
def test_what_the_guide_shows_runs_as_it_stands(folder: Path) -> None:
    for rank in range(user_scripts.WORLD_SIZE):
        said = (folder / f"{rank}.txt").read_text()
        assert "evaluated 1302 parameters" in said
        assert "training in all" in said and "MCSER(gradient_compressor=BlockSparsifier(ratio=512" in said
        assert f"worker {rank} of 4" in said


# 2. Numbers of 16 bits.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_16_bits_move(name: str, dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.ones(100, dtype=dtype))
    optimizer = algorithms()[name]([parameter], lr=0.1, momentum=0.9, **own_settings(name))
    for _ in range(3):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    assert (parameter < 0.6).all()


# 5. No process group.


@pytest.mark.parametrize("name", NAMES)
def test_several_processes_without_a_group_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")

    def make(**more: Any) -> DistributedOptimizer:
        return algorithms()[name](make_model().parameters(), lr=0.1, momentum=0.9, **own_settings(name), **more)

    with pytest.raises(RuntimeError, match=r"WORLD_SIZE is 4 .* call torch.distributed.init_process_group\(\)"):
        make()
    assert make(collectives=SoloCollectives()).collectives.world_size == 1
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert make().collectives.world_size == 1


# 7. Values that would be ignored.


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"lr": -1.0}, "learning rate"),
        ({"lr": float("nan")}, "learning rate"),
        ({"momentum": 1.5}, "momentum"),
        ({"weight_decay": -1.0}, "weight decay"),
        ({"lr": True}, "lr"),
        ({"lr": torch.tensor(0.1)}, "lr must be a plain number"),
        ({"nesterov": False}, "nesterov = False"),
        ({"maximize": True}, "maximize = True"),
        ({"foreach": True}, "foreach = True"),
        ({"differentiable": True}, "differentiable = True"),
        ({"dampening": 0.5}, "dampening = 0.5"),
        ({"fused": False}, "fused = False"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_what_a_group_says_is_done_or_refused(name: str, group: dict[str, Any], words: str) -> None:
    given = [{"params": make_model().parameters(), **group}]
    with pytest.raises(ValueError, match=words):
        algorithms()[name](given, lr=0.1, momentum=0.9, **own_settings(name))
    if set(group) <= {"lr", "momentum", "weight_decay"} and type(next(iter(group.values()))) is float:
        model = make_model()
        optimizer = algorithms()[name](model.parameters(), lr=0.1, momentum=0.9, **own_settings(name))
        optimizer.param_groups[0].update(group)
        with pytest.raises(ValueError, match=words):
            optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_parameters(name: str) -> None:
    def make(*groups: dict[str, Any]) -> DistributedOptimizer:
        return algorithms()[name](list(groups), lr=0.1, momentum=0.9, **own_settings(name))

    with pytest.raises(ValueError, match="every group is empty"):
        make({"params": []})
    with pytest.raises(ValueError, match="complex64"):
        make({"params": [nn.Parameter(torch.zeros(2, dtype=torch.complex64))]})
    first, second = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    second.data = first.data
    with pytest.raises(ValueError, match="parameters 0 and 1 share memory"):
        make({"params": [first, second]})
    weight, empty = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(0, 3))
    optimizer = make({"params": []}, {"params": [weight, empty]}, {"params": []})
    (weight.sum() + empty.sum()).backward()
    optimizer.step()
    assert torch.equal(weight, weight[:1].expand(4)) and weight[0] < 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["flat", "original", "dtensor", "zero"])
def test_shards_of_parameters_are_refused(kind: str) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model: nn.Module = nn.Linear(4, 4)
        if kind == "dtensor":
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        elif kind != "zero":
            model = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=kind == "original")
        before = [parameter.detach().clone() for parameter in model.parameters()]
        said = "a shard by fully_shard or tensor" if kind == "dtensor" else "a shard by FullyShardedDataParallel"
        for name in NAMES:
            make: Callable[..., object] = algorithms()[name]
            if kind == "zero":
                make, said = (
                    partial(ZeroRedundancyOptimizer, optimizer_class=make),
                    "ZeroRedundancyOptimizer gives each",
                )
            with pytest.raises(ValueError, match=said):
                make(model.parameters(), lr=0.1, momentum=0.9, **own_settings(name))
        assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", NAMES)
def test_sparse_gradients_count_in_full(name: str) -> None:
    dense, sparse = (nn.Embedding(6, 2, sparse=flag, _weight=torch.ones(6, 2)) for flag in (False, True))
    for table in (dense, sparse):
        optimizer = algorithms()[name](table.parameters(), lr=0.1, momentum=0.9, **own_settings(name))
        for _ in range(3):
            table.zero_grad()
            table(torch.tensor([1, 4])).square().sum().backward()
            optimizer.step()
    assert torch.equal(dense.weight, sparse.weight) and not torch.equal(dense.weight, torch.ones(6, 2))


def test_a_first_step_without_any_gradient_is_noticed() -> None:
    optimizer = algorithms()["sgd"](make_model().parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="no parameter has a gradient"):
        optimizer.step()


# 9. What people read.


def test_traffic_prints_as_a_table() -> None:
    traffic = Traffic()
    traffic.add(Purpose.GRADIENT, 8_000_000, 10)
    traffic.add(Purpose.ERROR, 400, 2)
    traffic.add(Purpose.CONTROL, 32)
    assert str(traffic).splitlines() == [
        "sent by one worker for     collectives        payload bits     megabytes",
        "gradient                            10           8,000,000         1.000",
        "error                                2                 400         0.000",
        "control                              1                  32         0.000",
        "training in all                     12           8,000,400         1.000",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_says_what_it_is(name: str) -> None:
    own: dict[str, Any] = own_settings(name, [BlockSparsifier(4)], 3)
    optimizer = algorithms()[name]([nn.Parameter(torch.zeros(64, 32))], lr=0.1, momentum=0.9, **own)
    said = repr(optimizer)
    assert "\n" not in said and f"{type(optimizer).__name__}(" in said and "d = 2,048" in said
    assert all(f"{key}={value!r}" in said for key, value in own.items())
    ratio = optimizer.overall_ratio()
    alone = name == "alone" or bool({"topology", "group_size"} & own.keys())
    assert (ratio == math.inf) == alone and ratio >= 1, "one worker has no neighbours"
    assert name != "mcser" or said == (
        "MCSER(gradient_compressor=BlockSparsifier(ratio=4, num_blocks=None), "
        "error_compressor=BlockSparsifier(ratio=4, num_blocks=None), reset_interval=3, explicit_error=False, lr=0.1, "
        "momentum=0.9, weight_decay=0.0; d = 2,048, overall ratio 3, worker 0 of 1)"
    )
