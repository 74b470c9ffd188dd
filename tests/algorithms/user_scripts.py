"""What four processes of somebody's own script do with each method: cases that look after
themselves.

A case is run by all processes, for every method or for one of each sort. What its look at the
results finds wrong, it raises.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from cser_bench.algorithms import (
    BlockSparsifier,
    CollectiveError,
    Compressor,
    DistributedOptimizer,
    PerTensorBlockSparsifier,
    ProcessGroupCollectives,
    Purpose,
    algorithms,
    consensus_checkpoint,
    load_checkpoint,
    noop_hook,
)
from tests.algorithms.problems import (
    JOINT,
    NAMES,
    assert_close,
    assert_expected_traffic,
    kinds_taken,
    own_settings,
    reloaded,
)

GUIDE = Path(__file__).parents[2] / "docs" / "in-your-own-script.md"
WORLD_SIZE = 4
LR = 0.05
MOMENTUM = 0.9
WEIGHT_DECAY = 0.02
BLOCK = BlockSparsifier(4)
FLATTENED = StateDictOptions(flatten_optimizer_state_dict=True)
PAIR: list[dist.ProcessGroup] = []
"""A group of ranks 0 and 1, once it is made."""


class Net(nn.Module):
    """A convolution, BatchNorm, a head, and a second head that scripts may leave out."""

    def __init__(
        self,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        heads_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 5, 3)
            self.norm = nn.BatchNorm2d(5)
            self.head = nn.Linear(5, 2)
            self.other = nn.Linear(5, 2)
        self.to(dtype)
        heads = nn.ModuleList([self.head, self.other])
        heads.to(heads_dtype)

    def forward(self, images: Tensor, both: bool = True) -> Tensor:
        hidden = (
            self.norm(self.conv(images)).tanh().mean((2, 3)).to(self.head.weight.dtype)
        )
        scores: Tensor = self.head(hidden)
        return scores + self.other(hidden) if both else scores


def loss_of(model: nn.Module, step: int, rank: int, both: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    images = torch.randn(4, 3, 4, 4, dtype=torch.float64, generator=generator).to(
        next(model.parameters()).dtype
    )
    targets = images.mean((2, 3))[:, :2]
    return (model(images, both) - targets).square().mean()


def make(
    name: str,
    model: nn.Module,
    /,
    interval: int = 3,
    compressor: Compressor = BLOCK,
    **more: Any,
) -> Any:
    usual = {"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    common = usual | more
    return algorithms()[name](
        model.parameters(), **own_settings(name, [compressor], interval), **common
    )


def train(optimizer: DistributedOptimizer, model: nn.Module, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, step, dist.get_rank())
        loss.backward()
        optimizer.step()


def values(model: nn.Module) -> Tensor:
    return torch.cat(
        [parameter.detach().reshape(-1).clone() for parameter in model.parameters()]
    )


def everyones(tensor: Tensor) -> list[Tensor]:
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    return gathered


def refused(kind: type[Exception], *words: str) -> Any:
    """The body must raise an error of this kind with these words in it, in this order."""
    pattern = ".*".join(re.escape(word) for word in words)
    return pytest.raises(kind, match=pattern)


# 1. Parameters that are moved.


def set_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def set_gradient_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.data = parameter.grad.data.clone()


def to_channels_last(model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def moved_parameters_are_taken_back(name: str) -> None:
    """Before and after a backward pass."""

    def trained(move: Callable[[nn.Module], object], after_backward: bool) -> Tensor:
        model = Net()
        # Regardless of strides.
        compressor = PerTensorBlockSparsifier(2, 2, 1.2)
        optimizer = make(name, model, compressor=compressor)
        train(optimizer, model, range(1, 5))
        optimizer.zero_grad()
        if after_backward:
            loss = loss_of(model, 5, dist.get_rank())
            loss.backward()
            move(model)
            optimizer.step()
        else:
            move(model)
        train(optimizer, model, range(6, 8))
        weight = model.conv.weight
        assert weight.grad is not None
        assert weight.grad.stride() == weight.stride()
        assert move is not to_channels_last or weight.is_contiguous(
            memory_format=torch.channels_last
        )
        return values(model)

    for after_backward in (False, True):
        expected = trained(lambda model: None, after_backward)
        for move in (set_data, set_gradient_data, to_channels_last):
            assert_close(trained(move, after_backward), expected)


def what_cannot_be_taken_back_is_refused(name: str) -> None:
    def assign(model: nn.Module) -> None:
        other = Net(3).state_dict()
        model.load_state_dict(other, assign=True)

    for change, num_steps, words in (
        (
            nn.Module.bfloat16,
            2,
            (
                "parameter 0 is torch.bfloat16",
                "was torch.float64",
                "then make the optimiser",
            ),
        ),
        (assign, 0, ("another Parameter in place of number 0", "assign=False")),
    ):
        model = Net()
        optimizer = make(name, model, model=model)
        train(optimizer, model, range(1, num_steps + 1))
        change(model)
        loss = loss_of(model, 3, dist.get_rank())
        loss.backward()
        for action in (
            optimizer.step,
            optimizer.state_dict,
            optimizer.consensus().__enter__,
        ):
            with refused(RuntimeError, *words):
                action()


# 3. Resuming.


def interrupted(name: str) -> tuple[dict[str, Any], Tensor]:
    """What this worker saves after 7 steps, in three ways, and its parameters after 12."""
    model = Net(dist.get_rank())
    optimizer = make(name, model)
    train(optimizer, model, range(1, 8))
    of_model, of_optimizer = get_state_dict(model, optimizer)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "torchs": {"model_state_dict": of_model, "optim_state_dict": of_optimizer},
        "flattened": get_optimizer_state_dict(model, optimizer, options=FLATTENED),
    }
    state = reloaded(state)
    train(optimizer, model, range(8, 13))
    return state, values(model)


def resumed_in_any_order(name: str) -> None:
    """Also by torch's own functions, which keep all or are refused."""
    state, expected = interrupted(name)
    orders = [
        "model, make, load",
        "make, model, load",
        "make, load, model",
        "make, torchs",
    ]
    for order in (
        [*orders, "make, load"] if algorithms()[name].workers_differ else orders
    ):
        model = Net(7)
        for word in order.split(", "):
            if word == "make":
                optimizer = make(name, model)
            elif word == "model":
                model.load_state_dict(state["model"])
            elif word == "load":
                optimizer.load_state_dict(state["optimizer"])
            else:
                set_state_dict(model, optimizer, **state["torchs"])
        if order == "make, load":  # the state has parameters where workers' differ
            model.norm.load_state_dict(
                {key: state["model"][f"norm.{key}"] for key in model.norm.state_dict()}
            )
        train(optimizer, model, range(8, 13))
        assert torch.equal(values(model), expected), order
    with refused(ValueError, "a worker's own", "without flatten_optimizer_state_dict"):
        set_optimizer_state_dict(
            model, make(name, model), state["flattened"], options=FLATTENED
        )


def states_that_do_not_belong_together_are_refused(name: str) -> None:
    """Another worker's, and of workers that went on from different steps."""
    state, _ = interrupted(name)
    rank = dist.get_rank()
    box = [state]
    dist.broadcast_object_list(box)
    if rank == 0 or algorithms()[name].state_is_common:
        resumed = make(name, Net())
        resumed.load_state_dict(box[0]["optimizer"])
    else:
        optimizer = make(name, Net())
        with refused(ValueError, "worker 0's", f"worker {rank}", "file of its own"):
            optimizer.load_state_dict(box[0]["optimizer"])
    if algorithms()[name].workers_differ:
        optimizer = make(name, model := Net())
        optimizer.load_state_dict(state["optimizer"])
        model.load_state_dict(box[0]["model"])
        loss_of(model, 8, rank).backward()
        for _ in range(2 if rank else 0):
            with refused(RuntimeError, "this worker's own", "load the model next"):
                optimizer.step()
    dist.barrier()
    optimizer = make(name, model := Net())
    if rank != 2:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for step in (8, 9):
        with refused(RuntimeError, "[7, 7, 0, 7] steps", "saved itself"):
            train(optimizer, model, range(step, step + 1))


def a_state_of_other_settings_is_refused(name: str) -> None:
    state = make(name, Net()).state_dict()
    if kinds_taken(name):
        with refused(ValueError, "ratio=4", "ratio=2"):
            other = make(name, Net(), compressor=BlockSparsifier(2))
            other.load_state_dict(state)
    for key in [
        key for key, value in own_settings(name, [BLOCK], 3).items() if value == 3
    ]:
        with refused(ValueError, f"{key} = 3", "has 5"):
            other = make(name, Net(), interval=5)
            other.load_state_dict(state)
    with refused(ValueError, "communication_dtype = None", "torch.float32"):
        other = make(name, Net(), communication_dtype=torch.float32)
        other.load_state_dict(state)


def a_checkpoint_fits_as_many_workers_to_the_bit_and_fewer_by_the_average(
    name: str,
) -> None:
    rank = dist.get_rank()
    folder = Path("checkpoints") / name
    model = Net(rank)
    optimizer = make(name, model)
    train(optimizer, model, range(1, 8))
    own = optimizer.state_dict()["param_groups"][0]["flat"]
    average = sum(everyones(values(model))) / WORLD_SIZE
    means = {
        key: sum(everyones(own[key])) / WORLD_SIZE
        for key in own
        if isinstance(own[key], Tensor)
    }
    consensus_checkpoint(folder, model, optimizer, rank=rank, none={})
    train(optimizer, model, range(8, 13))

    plain = {"model": Net(5).state_dict()}
    dcp.load(plain, checkpoint_id=folder)
    assert_close(
        torch.cat(
            [plain["model"][key].reshape(-1) for key, _ in model.named_parameters()]
        ),
        average,
    )

    again = Net(7)
    resumed = make(name, again)
    loaded = load_checkpoint(folder, again, resumed)
    assert loaded == {"rank": rank, "none": {}}
    train(resumed, again, range(8, 13))
    assert all(
        torch.equal(value, model.state_dict()[key])
        for key, value in again.state_dict().items()
    )

    if rank < 2:
        model = Net(7)
        pair = ProcessGroupCollectives(PAIR[0])
        fewer = make(name, model, collectives=pair)
        if not algorithms()[name].state_is_common:
            with refused(
                ValueError, "4 workers'", "here are 2", "consensus_checkpoint()"
            ):
                fewer.load_state_dict(optimizer.state_dict())
        loaded = load_checkpoint(folder, model, fewer)
        assert loaded == {"rank": 0, "none": {}}
        assert_close(values(model), average)
        held = fewer.state_dict()["param_groups"][0]["flat"] | {
            "parameters": average.unsqueeze(0)
        }
        for key, mean in means.items():
            assert_close(held[key], mean)
        expected = plain["model"]["norm.running_mean"]
        assert torch.equal(model.norm.running_mean, expected)  # type: ignore[arg-type]
        train(fewer, model, range(8, 12))
        assert fewer.num_steps == 11


def consensus_averages_buffers_too(name: str) -> None:
    model = Net()
    optimizer = make(name, model)
    train(optimizer, model, range(1, 6))
    own = {key: value.clone() for key, value in model.state_dict().items()}
    means = everyones(own["norm.running_mean"])
    mean = torch.stack(means).mean(0)
    with optimizer.consensus():
        assert torch.equal(model.norm.running_mean, own["norm.running_mean"])  # type: ignore[arg-type]
        assert torch.is_grad_enabled()
    with optimizer.consensus(model):
        assert_close(model.norm.running_mean, mean)  # type: ignore[arg-type]
        gathered = everyones(
            torch.cat(
                [value.double().reshape(-1) for value in model.state_dict().values()]
            )
        )
        for other in gathered:
            assert torch.equal(gathered[0], other)
    averaged = optimizer.consensus(model)(model.norm.running_mean.clone)()  # type: ignore[operator]
    assert_close(averaged, mean)
    assert all(
        torch.equal(value, own[key]) for key, value in model.state_dict().items()
    )


def frozen_weights_and_buffers_start_equal(name: str) -> None:
    model = Net(dist.get_rank())
    model.conv.requires_grad_(False)
    model.norm.running_mean.fill_(dist.get_rank())  # type: ignore[union-attr,operator]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    algorithms()[name](
        trained, lr=LR, momentum=MOMENTUM, model=model, **own_settings(name, [BLOCK], 3)
    )
    first = Net(0)
    expected = first.conv.weight
    assert torch.equal(model.conv.weight, expected)
    assert not model.norm.running_mean.any()  # type: ignore[union-attr,operator]
    assert torch.equal(values(model), values(first))


# 6. Workers that differ.


def workers_that_differ_are_told_so(name: str) -> None:
    rank = dist.get_rank()
    with refused(ValueError, "seed = 0 on rank 0", "seed = 3 on rank 3"):
        make(name, Net(), seed=rank)
    with refused(
        ValueError,
        "skip_nonfinite = False on ranks 0, 2, 3; skip_nonfinite = True on rank 1",
    ):
        make(name, Net(), skip_nonfinite=rank == 1)
    with refused(ValueError, "0.05", "on ranks 0, 1, 3", "0.5", "on rank 2"):
        lr = 0.5 if rank == 2 else LR
        make(name, Net(), lr=lr)
    if kinds_taken(name):
        with refused(ValueError, "ratio=4", "on ranks 0, 1, 2", "ratio=2", "on rank 3"):
            compressor = BlockSparsifier(2) if rank == 3 else BLOCK
            make(name, Net(), compressor=compressor)
    for key in [
        key for key, value in own_settings(name, [BLOCK], 3).items() if value == 3
    ]:
        with refused(ValueError, f"{key} = 3 on ranks 0, 1, 3", f"{key} = 5 on rank 2"):
            interval = 5 if rank == 2 else 3
            make(name, Net(), interval=interval)
    with refused(ValueError, "float64", "float32 on cpu", "rank 1"):
        dtype = torch.float32 if rank == 1 else torch.float64
        make(name, Net(dtype=dtype))
    model = Net()
    if rank == 1:
        model.head = nn.Linear(5, 3).double()
    with refused(ValueError, "parameters = "):
        make(name, model)
    model = Net(seed=rank)
    *trunk, weight, bias, other_weight, other_bias = model.named_parameters()
    heads = [weight, bias, other_weight, other_bias]
    if rank == 1:
        heads = [other_weight, other_bias, weight, bias]
    with refused(
        ValueError,
        "4 = head.weight",
        "on ranks 0, 2, 3",
        "4 = other.weight",
        "on rank 1",
    ):
        algorithms()[name](
            [*trunk, *heads], lr=LR, momentum=MOMENTUM, **own_settings(name, [BLOCK])
        )
    other = next(each for each in ("sgd", "local_sgd") if each != name)
    with refused(
        ValueError, f"method = {name} on ranks", f"method = {other} on rank 1"
    ):
        make(other if rank == 1 else name, Net())
    model = Net()
    optimizer = make(name, model)
    train(optimizer, model, range(1, 3))


def workers_that_part_are_told_so_where_they_meet(name: str) -> None:
    """At consensus, and at a step in which they ask each other anyway."""
    rank = dist.get_rank()

    def made(**more: Any) -> tuple[DistributedOptimizer, nn.Module]:
        optimizer = make(name, model := Net(), **more)
        train(optimizer, model, range(1, 3))
        return optimizer, model

    optimizer, model = made()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=0
    )
    # Each worker's own: only worker 0's is worse than before
    for loss in (1.0, 2.0 - 2 * rank):
        plateau.step(loss)
    words = (
        "all workers must enter consensus() together and alike",
        "lr of group 0 = 0.025 on rank 0; lr of group 0 = 0.05 on ranks 1, 2, 3",
        "step a scheduler that looks at a loss, such as ReduceLROnPlateau, on a number that all",
    )
    with refused(CollectiveError, *words):
        optimizer.consensus(model).__enter__()
    with refused(CollectiveError, *words):
        consensus_checkpoint("never", model, optimizer)
    optimizer.param_groups[0]["lr"] = LR
    model.conv.requires_grad_(rank != 2)
    with refused(
        CollectiveError, "frozen parameters = [[0, 1]] on rank 2", "freeze and thaw"
    ):
        optimizer.consensus().__enter__()
    model.conv.requires_grad_(True)
    optimizer.num_steps += rank == 3
    with refused(CollectiveError, "steps done = 3 on rank 3", "equally often"):
        optimizer.consensus().__enter__()
    optimizer.num_steps = 2
    with torch.no_grad():
        model.head.weight[0, 0] += rank == 1
    if optimizer.workers_differ:
        optimizer.consensus().__enter__()
    else:
        words = (
            "sum of the bits of all parameters = ",
            "on rank 1",
            "optimizer.reanchor() on all",
        )
        with refused(CollectiveError, *words):
            optimizer.consensus().__enter__()

    optimizer, model = made(skip_nonfinite=True)
    momentum = 0.8 if rank == 1 else MOMENTUM
    optimizer.param_groups[0]["momentum"] = momentum
    with refused(
        ValueError,
        "momentum of group 0 = 0.9 on ranks 0, 2, 3; momentum of group 0 = 0.8",
    ):
        optimizer.step()
    optimizer = make(name, model := Net())
    lr = 0.1 if rank == 1 else LR
    optimizer.param_groups[0]["lr"] = lr
    with refused(
        ValueError,
        "lr of group 0 = 0.05 on ranks 0, 2, 3; lr of group 0 = 0.1 on rank 1",
    ):
        train(optimizer, model, range(1, 2))


def a_ddp_that_was_left_is_named(name: str) -> None:
    model = Net()
    wrapped = DistributedDataParallel(model)
    optimizer = make(name, wrapped)
    for step in (1, 2):
        optimizer.zero_grad()
        loss = loss_of(wrapped, step, dist.get_rank())
        loss.backward()
        with refused(RuntimeError, "DistributedDataParallel", "noop_hook"):
            optimizer.step()
    optimizer.zero_grad()
    loss = loss_of(model, 3, dist.get_rank())
    loss.backward()
    optimizer.step()
    same = Net()
    optimizer = make(name, same)
    loss_of(
        same, 1, 0
    ).backward()  # where all workers see the same batch, nobody has averaged anything
    optimizer.step()


def a_ddp_that_sends_nothing_changes_nothing(name: str) -> None:
    """BatchNorm's statistics are each worker's own without DDP, so that DDP must not send them."""
    ends = []
    for in_ddp in (False, True):
        optimizer = make(name, model := Net())
        wrapped = (
            DistributedDataParallel(model, broadcast_buffers=False) if in_ddp else model
        )
        if in_ddp:
            wrapped.register_comm_hook(None, noop_hook)
        train(optimizer, wrapped, range(1, 9))
        ends.append(optimizer.flat.parameters.clone())
    assert torch.equal(*ends)


def a_ddp_inside_a_node_needs_the_workers_group(name: str) -> None:
    """Where it is forgotten, each of four processes would be a worker; by it there are two."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("nodes", "local"))
    model = Net()
    wrapped = DistributedDataParallel(model, process_group=mesh.get_group("local"))
    forgotten = make(name, wrapped)
    loss_of(wrapped, 1, dist.get_rank()).backward()
    with refused(RuntimeError, "ranks 0, 1 have the same gradients", "collectives="):
        forgotten.step()
    model = Net()
    optimizer = make(name, model, collectives=mesh["nodes"])
    wrapped = DistributedDataParallel(model, process_group=mesh.get_group("local"))
    train(optimizer, wrapped, range(1, 6))
    assert optimizer.collectives.world_size == 2
    everyone = everyones(values(model))
    # The processes of a node hold one model.
    assert torch.equal(everyone[0], everyone[1])
    assert torch.equal(everyone[2], everyone[3])


def a_group_or_a_mesh_has_the_workers(name: str) -> None:
    """Of two machines with two processes each: those of one number talk to each other."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("nodes", "local"))
    group = mesh.get_group("nodes")
    ends = []
    for given in (ProcessGroupCollectives(group), group, mesh["nodes"]):
        model = Net(dist.get_rank())
        optimizer = make(name, model, collectives=given)
        assert optimizer.collectives.world_size == 2
        assert optimizer.collectives.rank == dist.get_rank() // 2
        train(optimizer, model, range(1, 6))
        ends.append((values(model), optimizer.traffic.as_dict()))
    for parameters, traffic in ends:
        assert torch.equal(parameters, ends[0][0])
        assert traffic == ends[0][1]


# 7. Gradients that are None, and parameters frozen later.


def what_one_worker_leaves_out_others_train(name: str) -> None:
    """A head, or later all: a worker without a batch still takes part. Parameters that are
    everybody's stay so."""
    model = Net(dtype=torch.float32)
    optimizer = make(name, model)
    for step in range(1, 9):
        optimizer.zero_grad()
        if dist.get_rank() != 1 or step < 6:
            rank = dist.get_rank()
            loss = loss_of(model, step, rank, both=rank != 1)
            loss.backward()
        optimizer.step()
    assert optimizer.num_steps == 8
    assert_expected_traffic(optimizer, 8)
    with optimizer.consensus():
        inside = everyones(values(model))
    common = (
        [inside] if optimizer.workers_differ else [inside, everyones(values(model))]
    )
    for same in common:
        for other in same:
            assert torch.equal(same[0], other)
    assert name not in JOINT or not torch.equal(
        model.other.weight, Net(dtype=torch.float32).other.weight
    )


# 8. What is not finite.


def with_nan(name: str, **more: Any) -> tuple[DistributedOptimizer, Tensor, list[str]]:
    """An optimiser after eight steps, in the second of which worker 1's gradients are NaN; what was
    warned of."""
    model = Net()
    optimizer = make(name, model, **more)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for step in range(1, 9):
            optimizer.zero_grad()
            loss = loss_of(model, step, dist.get_rank())
            (
                loss * float("nan") if (step, dist.get_rank()) == (2, 1) else loss
            ).backward()
            optimizer.step()
    assert_expected_traffic(optimizer, optimizer.num_steps)
    said = [str(each.message) for each in warned]
    return optimizer, values(model), said


def who_sent_what_is_not_finite_first_is_named_by_all(name: str) -> None:
    """All that it has reached send again, once; another optimiser begins anew."""
    for _ in range(2):
        optimizer, _, said = with_nan(name)
        bits = [optimizer.expected_traffic(step).training_bits for step in range(9)]
        sent_at = next(
            (step for step in range(2, 9) if bits[step] > bits[step - 1]), None
        )
        if sent_at is None or (
            dist.get_rank() != 1 and name in ("noloco", "qsr") and not said
        ):
            assert said == []
            continue
        (words,) = said
        assert words.startswith(
            f"{name}: what worker 1 sent at step {sent_at} is not finite, and so will be, for good"
        )
        assert "the models of all workers" in words
        assert "no error ends the training" in words
        assert "skip_nonfinite=True, with which all workers leave out a step" in words


def a_step_that_is_not_finite_is_skipped_by_all(name: str) -> None:
    """As if it had not been; what the workers need to agree on that is control."""
    optimizer, skipped, said = with_nan(name, skip_nonfinite=True)
    without = make(name, model := Net())
    train(without, model, range(1, 2))
    train(without, model, range(3, 9))
    assert torch.equal(skipped, values(model))
    assert optimizer.num_steps == 7
    (words,) = said
    assert words.startswith(
        f"{name}: all workers left step 2 out, since gradients of worker 1 are not finite"
    )
    control, usual = (
        each.traffic[Purpose.CONTROL].bits for each in (optimizer, without)
    )
    assert control - usual == 8 * 72


# 9. Saved tensors.


def saving_a_part_saves_that_part(name: str) -> None:
    model = nn.Sequential(nn.Linear(64, 512), nn.Linear(512, 2))

    def size(thing: object) -> int:
        file = io.BytesIO()
        torch.save(thing, file)
        return len(file.getvalue())

    head_bytes = size(model[1].state_dict())
    model_bytes = size(model.state_dict())
    optimizer = make(name, model)
    for after in (False, True):
        if after:
            outputs = model(torch.ones(2, 64))
            outputs.sum().backward()
            optimizer.step()
        assert size(model[1].state_dict()) <= head_bytes + 100
        assert size(model.state_dict()) <= model_bytes + 400
        assert size(model[1].weight) < head_bytes
        assert size(model[1].weight.grad) < head_bytes


OF_EVERY_METHOD: tuple[Callable[[str], None], ...] = (
    a_checkpoint_fits_as_many_workers_to_the_bit_and_fewer_by_the_average,
    what_one_worker_leaves_out_others_train,
    who_sent_what_is_not_finite_first_is_named_by_all,
    a_step_that_is_not_finite_is_skipped_by_all,
)
"""What depends on a method's own state and messages."""
OF_THE_CORE: tuple[Callable[[str], None], ...] = (
    moved_parameters_are_taken_back,
    what_cannot_be_taken_back_is_refused,
    resumed_in_any_order,
    states_that_do_not_belong_together_are_refused,
    a_state_of_other_settings_is_refused,
    consensus_averages_buffers_too,
    frozen_weights_and_buffers_start_equal,
    workers_that_differ_are_told_so,
    workers_that_part_are_told_so_where_they_meet,
    a_ddp_that_was_left_is_named,
    a_ddp_that_sends_nothing_changes_nothing,
    a_ddp_inside_a_node_needs_the_workers_group,
    a_group_or_a_mesh_has_the_workers,
    saving_a_part_saves_that_part,
)
"""What all methods have from one place."""
SORTS = ("sgd", "ef_sgd", "mcser", "powersgd", "streaming_diloco", "choco_sgd")
"""Methods of each sort: without state, with errors, with models that differ, with a state that is
everybody's, with messages under way, among neighbours."""
CASES: dict[str, Callable[[], None]] = {
    f"{case.__name__}: {name}": partial(case, name)
    for cases, names in ((OF_EVERY_METHOD, NAMES), (OF_THE_CORE, SORTS))
    for case in cases
    for name in names
}


# What the documents show.


def the_guide_runs_as_it_stands() -> None:
    """Its snippets, after a few steps of a script; a checkpoint is read after the model has gone
    on."""
    model = nn.Sequential(
        nn.Linear(8, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 2)
    )
    optimizer = algorithms()["mcser"](
        model.parameters(),
        lr=0.1,
        model=model,
        **algorithms()["mcser"].at_traffic(1 / 256, world_size=2),
    )
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(34):
        optimizer.zero_grad()
        inputs = torch.randn(4, 8, generator=generator)
        model(inputs).square().mean().backward()
        optimizer.step()
    names = {
        "torch": torch,
        "model": model,
        "optimizer": optimizer,
        "schedule": torch.optim.lr_scheduler.ConstantLR(optimizer),
        "evaluate": lambda model: print(
            f"evaluated {sum(map(torch.numel, model.parameters()))} parameters"
        ),
    }
    saved = values(model)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for code in re.findall(
            "```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL
        ):
            save, load, restore = code.partition("if newest")
            exec(save, names)
            if load:
                with torch.no_grad():
                    model[0].weight.zero_()
                exec(load + restore, names)
            assert torch.equal(values(model), saved)
    for words in (
        "evaluated 1302 parameters",
        "MCSER(gradient_compressor=",
        " of 4",
        "training in all",
    ):
        assert words in said.getvalue()
