"""The optimisers in anyone's script, in one process: types, groups, shards, sparse gradients, and
what people read."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer

from cser_bench.algorithms import (
    SGD,
    BlockSparsifier,
    DistributedOptimizer,
    ProcessGroupCollectives,
    SoloCollectives,
    algorithms,
)
from tests.algorithms.problems import NAMES, TAKING_ADAMW, make_model, own_settings

# Numbers of 16 bits.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_16_bits_move(name: str, dtype: torch.dtype) -> None:
    for common in (
        {"momentum": 0.9},
        *([{"local_step": "adamw"}] if name in TAKING_ADAMW else []),
    ):
        ones = torch.ones(100, dtype=dtype)
        parameter = nn.Parameter(ones)
        optimizer = algorithms()[name](
            [parameter], lr=0.2, **common, **own_settings(name)
        )
        for _ in range(3):
            optimizer.zero_grad()
            parameter.square().sum().backward()
            optimizer.step()
        assert (parameter < 0.6).all()


# No process group.


@pytest.mark.parametrize("name", NAMES)
def test_several_processes_without_a_group_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")

    def make(**more: Any) -> DistributedOptimizer:
        return algorithms()[name](
            make_model().parameters(),
            lr=0.1,
            momentum=0.9,
            **own_settings(name),
            **more,
        )

    with pytest.raises(
        RuntimeError,
        match=r"WORLD_SIZE is 4 .* call torch.distributed.init_process_group\(\)",
    ):
        make()
    assert make(collectives=SoloCollectives()).collectives.world_size == 1
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert make().collectives.world_size == 1


# What `collectives=` takes.


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", NAMES)
def test_a_group_or_a_mesh_is_taken_as_it_is(name: str) -> None:
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("nodes", "local"))
    group = dist.new_group([0])
    for given, expected in (
        (group, group),
        (dist.group.WORLD, dist.group.WORLD),
        (mesh["nodes"], mesh.get_group("nodes")),
    ):
        optimizer = algorithms()[name](
            make_model().parameters(),
            lr=0.1,
            momentum=0.9,
            collectives=given,
            **own_settings(name),
        )
        assert isinstance(optimizer.collectives, ProcessGroupCollectives)
        assert optimizer.collectives.group is expected


@pytest.mark.usefixtures("one_process")
def test_what_is_no_group_of_workers_is_refused() -> None:
    parameters = list(make_model().parameters())
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("nodes", "local"))
    unnamed = init_device_mesh("cpu", (1, 1))
    elsewhere = dist.GroupMember.NON_GROUP_MEMBER
    for given, kind, words in (
        (mesh, ValueError, r"of 2 dimensions \('nodes', 'local'\); .* mesh\['nodes'\]"),
        (unnamed, ValueError, r"of 2 dimensions \(without names\); .*get_group\(0\)"),
        (elsewhere, ValueError, r"this process is not in the group that collectives="),
        ("world", TypeError, r"collectives must be a process group, .*, not 'world'"),
        (4, TypeError, r"collectives must be .*, not 4"),
        ([0, 1], TypeError, r"collectives must be .*, not \[0, 1\]"),
        (False, TypeError, r"collectives must be .*, not False"),
    ):
        with pytest.raises(kind, match=words):
            SGD(parameters, lr=0.1, collectives=given)  # type: ignore[arg-type]


@pytest.mark.usefixtures("one_process")
def test_parameters_on_meta_are_refused_where_processes_are_to_train() -> None:
    """A plan says that it is one."""
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    for given in (None, dist.group.WORLD, ProcessGroupCollectives()):
        with pytest.raises(
            ValueError, match=r"on the meta device, .* after to_empty\(\) and the init"
        ):
            SGD(model.parameters(), lr=0.1, collectives=given)
    plan = SGD(model.parameters(), lr=0.1, collectives=SoloCollectives())
    assert plan.expected_traffic(2).training_bits == 2 * 32 * 8
    materialised = model.to_empty(device="cpu")
    SGD(materialised.parameters(), lr=0.1)


# Groups and shards.


@pytest.mark.parametrize("name", NAMES)
def test_groups_and_parameters_may_be_empty_or_have_gaps(name: str) -> None:
    whole = torch.ones(4, 6)
    weight = nn.Parameter(whole[:, ::2])
    empty = nn.Parameter(torch.zeros(0, 3))
    given = [{"params": []}, {"params": [weight, empty]}, {"params": []}]
    own = own_settings(name)
    optimizer = algorithms()[name](given, lr=0.1, momentum=0.9, **own)
    loss = weight.sum() + empty.sum()
    loss.backward()
    optimizer.step()
    expected = weight[0, 0].expand(4, 3)
    torch.testing.assert_close(weight, expected)
    assert weight[0, 0] < 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["flat", "original", "dtensor", "zero"])
def test_shards_of_parameters_are_refused(kind: str) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model: nn.Module = nn.Linear(4, 4)
        if kind == "dtensor":
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        elif kind != "zero":
            model = FullyShardedDataParallel(
                model, device_id=torch.device("cpu"), use_orig_params=kind == "original"
            )
        before = [parameter.detach().clone() for parameter in model.parameters()]
        said = (
            "a shard by fully_shard or tensor"
            if kind == "dtensor"
            else "a shard by FullyShardedDataParallel"
        )
        for name in NAMES:
            make: Callable[..., object] = algorithms()[name]
            if kind == "zero":
                make = partial(ZeroRedundancyOptimizer, optimizer_class=make)
                said = "ZeroRedundancyOptimizer each worker would have other"
                # Nothing tells these; of one worker it has all
                if not own_settings(name):
                    continue
            with pytest.raises(ValueError, match=said):
                own = own_settings(name)
                make(model.parameters(), lr=0.1, momentum=0.9, **own)
        for pair in zip(before, model.parameters(), strict=True):
            assert torch.equal(*pair)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", NAMES)
def test_sparse_gradients_count_in_full(name: str) -> None:
    dense, sparse = (
        nn.Embedding(6, 2, sparse=flag, _weight=torch.ones(6, 2))
        for flag in (False, True)
    )
    for table in (dense, sparse):
        optimizer = algorithms()[name](
            table.parameters(), lr=0.1, momentum=0.9, **own_settings(name)
        )
        for _ in range(3):
            table.zero_grad()
            outputs = table(torch.tensor([1, 4]))
            outputs.square().sum().backward()
            optimizer.step()
    assert torch.equal(dense.weight, sparse.weight)
    ones = torch.ones(6, 2)
    assert not torch.equal(dense.weight, ones)


# What people read.


@pytest.mark.parametrize("name", NAMES)
def test_every_method_says_what_it_is(name: str) -> None:
    own: dict[str, Any] = own_settings(name, [BlockSparsifier(4)], 3)
    optimizer = algorithms()[name](
        [nn.Parameter(torch.zeros(64, 32))], lr=0.1, momentum=0.9, **own
    )
    said = repr(optimizer)
    assert "\n" not in said
    assert f"{type(optimizer).__name__}(" in said
    assert "d = 2,048" in said
    for key, value in own.items():
        assert f"{key}={value!r}" in said
    ratio = optimizer.overall_ratio()
    has_neighbours = bool({"topology", "group_size"} & own.keys())
    alone = name == "alone" or has_neighbours
    assert (ratio == math.inf) == alone and ratio >= 1, "one worker has no neighbours"
