"""What would be wrong in silence in anyone's script: weights loaded late, models that moved on,
copies of states."""

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from cser_bench.algorithms import (
    EFSGD,
    QSGD,
    SGD,
    BlockSparsifier,
    ChocoSGD,
    Collectives,
    DiLoCo,
    DistributedOptimizer,
    Purpose,
    SoloCollectives,
    StackedCollectives,
    algorithms,
    consensus_checkpoint,
)
from cser_bench.algorithms.core.traffic import Entry, Traffic
from tests.algorithms.anew import SENT_LATE, begins_anew
from tests.algorithms.problems import (
    ACCURATE,
    ADAMW,
    LR,
    MOMENTUM,
    NAMES,
    SHARED,
    WEIGHT_DECAY,
    Types,
    batch_loss,
    flat_parameters,
    groups,
    make_model,
    make_optimizer,
    own_settings,
    train,
    trained,
    workers,
)

EACH = [
    *((name, torch.float64) for name in NAMES),
    ("diloco", ACCURATE),
    ("mcser", ACCURATE),
]


def made(
    name: str, model: nn.Module, /, collectives: Collectives | None = None, **more: Any
) -> DistributedOptimizer:
    own = own_settings(name, [SHARED["blocks"]], 3)
    return make_optimizer(name, model, own, collectives, **more)


def put(model: nn.Module, seed: int, dtype: Types = torch.float64) -> None:
    """What load_state_dict does: other weights in the same parameters."""
    other = make_model(dtype, seed)
    model.load_state_dict(other.state_dict())


# Weights that are loaded late.


@pytest.mark.parametrize(("name", "dtype"), EACH)
def test_weights_loaded_after_the_optimiser_was_made_are_where_it_begins(
    name: str, dtype: Types
) -> None:
    """As if they had been there before, to the bit; and of ranks that load different ones worker
    0's count."""

    def work(collectives: Collectives) -> tuple[Tensor, Tensor, Tensor]:
        rank = collectives.rank
        before = make_model(dtype, seed=5)
        late = make_model(dtype, seed=6)
        apart = make_model(dtype, seed=7)
        first = made(name, before, collectives)
        second = made(name, late, collectives)
        put(late, 5, dtype)
        train(first, before, rank, range(1, 9))
        train(second, late, rank, range(1, 9))
        third = made(name, apart, collectives)
        for group in third.param_groups:
            group["lr"] = 0.0
        put(apart, 10 + rank, dtype)
        train(third, apart, rank, [1])
        return flat_parameters(before), flat_parameters(late), flat_parameters(apart)

    wanted = flat_parameters(make_model(dtype, 10))
    tolerance = 1e-14 if dtype == torch.float64 else 1e-7
    for first, second, apart in workers(work, 2):
        assert torch.equal(first, second)
        torch.testing.assert_close(apart, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_a_new_anchor_in_the_middle(name: str) -> None:
    def held_by(optimizer: DistributedOptimizer) -> dict[str, Any]:
        first_group = optimizer.state_dict()["param_groups"][0]
        held: dict[str, Any] = first_group["flat"]
        return held

    def work(collectives: Collectives) -> None:
        rank = collectives.rank
        model = make_model()
        optimizer = made(name, model, collectives)
        train(optimizer, model, rank, range(1, 6))
        no_momentum = torch.zeros(1)
        held = held_by(optimizer)
        momentum = held.get("momentum", no_momentum).clone()
        put(model, 20 + rank)
        optimizer.reanchor()
        expected = flat_parameters(make_model(seed=20))
        held = held_by(optimizer)
        assert torch.equal(flat_parameters(model), expected)
        assert held["num_steps"] == 5
        anchors = {"anchor", "mixed_estimates"}
        if name != "ef21_sgdm":
            anchors.add("estimate")
        for key in anchors & held.keys():
            assert torch.equal(held[key][0], expected)
        for key in {"error", "accumulated"} & held.keys():
            assert not held[key].any()
        kept = held.get("momentum", no_momentum)
        assert torch.equal(kept, momentum)
        train(optimizer, model, rank, range(6, 9))

    workers(work, 2)


@pytest.mark.parametrize(
    "dtype", [torch.float64, ACCURATE], ids=["one type", "two types"]
)
@pytest.mark.parametrize(
    "common",
    [{}, ADAMW, {"communication_dtype": torch.bfloat16}],
    ids=["sgd", "adamw", "bf16"],
)
@pytest.mark.parametrize("kind", SENT_LATE)
def test_what_was_sent_for_later_steps_does_not_arrive_after_a_new_anchor(
    kind: str, common: Any, dtype: Types
) -> None:
    has_a_format_of_its_own = bool(SENT_LATE[kind].get("bits"))
    if has_a_format_of_its_own and "communication_dtype" in common:
        return

    def work(collectives: Collectives) -> None:
        def make() -> tuple[DistributedOptimizer, nn.Module]:
            model = make_model(dtype)
            end = copy.copy(collectives)
            end.traffic = Traffic()
            optimizer = make_optimizer(
                "streaming_diloco", model, SENT_LATE[kind], end, **common
            )
            return optimizer, model

        def train_one(
            optimizer: DistributedOptimizer, model: nn.Module, step: int
        ) -> None:
            train(optimizer, model, collectives.rank, [step])

        begins_anew(make, train_one)

    workers(work, 2)


def test_a_state_says_what_does_not_arrive_any_more() -> None:
    own = SENT_LATE["fragments"]
    model = make_model()
    optimizer = make_optimizer("streaming_diloco", model, own)
    train(optimizer, model, 0, range(1, 5))
    put(model, 7)
    optimizer.reanchor()
    train(optimizer, model, 0, [5])
    again = make_model()
    resumed = make_optimizer("streaming_diloco", again, own)
    resumed.load_state_dict(optimizer.state_dict())
    train(optimizer, model, 0, range(6, 13))
    train(resumed, again, 0, range(6, 13))
    expected = flat_parameters(model)
    assert torch.equal(flat_parameters(again), expected)


@pytest.mark.parametrize("name", ["sgd", "diloco", "mcser"])
@pytest.mark.parametrize(
    "dtype", [torch.float64, ACCURATE], ids=["one type", "two types"]
)
def test_weights_that_are_loaded_in_the_middle_are_said_once(
    name: str, dtype: Types
) -> None:
    model = make_model(dtype)
    optimizer = made(name, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(optimizer, model, 0, range(1, 4))
        with optimizer.consensus(model):
            pass
        weights = copy.deepcopy(model.state_dict())
        state = copy.deepcopy(optimizer.state_dict())
        train(optimizer, model, 0, [4])
        # Back to a state of its own, in either order.
        optimizer.load_state_dict(state)
        model.load_state_dict(weights)
        train(optimizer, model, 0, [4])
        put(model, 20, dtype)
        optimizer.reanchor()
        train(optimizer, model, 0, [5])
    put(model, 21, dtype)
    with pytest.warns(
        UserWarning, match=r"written parameters after step 5; .*reanchor\(\)"
    ) as said:
        train(optimizer, model, 0, [6])
        put(model, 22, dtype)
        train(optimizer, model, 0, [7])
    (warning,) = said
    assert warning.filename.endswith("problems.py"), "where step() was called"


@pytest.mark.parametrize(
    "name", [name for name in NAMES if not algorithms()[name].workers_differ]
)
def test_workers_that_resume_from_different_models_are_told_so(name: str) -> None:
    def work(collectives: Collectives) -> str:
        model = make_model()
        optimizer = made(name, model, collectives)
        optimizer.load_state_dict(optimizer.state_dict())
        put(model, collectives.rank)
        with pytest.raises(
            RuntimeError,
            match=r"the workers' parameters differ, .* optimizer.reanchor\(\)",
        ):
            train(optimizer, model, collectives.rank, [1])
        optimizer.reanchor()
        train(optimizer, model, collectives.rank, [1, 2])
        return str(flat_parameters(model).tolist())

    first, second = workers(work, 2)
    assert first == second


@pytest.mark.parametrize("common", [{}, ADAMW], ids=["sgd", "adamw"])
def test_local_sgds_interval_may_grow_after_a_warm_up(common: Any) -> None:
    """Models are averaged at every step of it, and then at every fourth."""

    def work(collectives: Collectives) -> list[Tensor]:
        model = make_model()
        seen = []
        optimizer = make_optimizer(
            "local_sgd", model, {"sync_interval": 4}, collectives, **common
        )
        for step in range(1, 13):
            optimizer.sync_interval = 1 if step <= 5 else 4  # type: ignore[attr-defined]
            train(optimizer, model, collectives.rank, [step])
            seen.append(flat_parameters(model))
        return seen

    are_equal = []
    one, two = workers(work, 2)
    for step, both in enumerate(zip(one, two, strict=True), 1):
        if torch.equal(*both):
            are_equal.append(step)
    assert are_equal == [1, 2, 3, 4, 5, 8, 12]


# Workers whose gradients others have averaged already.


@pytest.mark.parametrize("name", ["sgd", "ef_sgd", "local_sgd", "alone"])
@pytest.mark.parametrize(
    ("together", "words"),
    [
        (
            [[0, 1], [2, 3]],
            r"^ranks 0, 1 have the same gradients, .*give collectives= the group",
        ),
        (
            [[1, 3]],
            r"^ranks 1, 3 have the same gradients, .*give collectives= the group",
        ),
        ([[0, 1, 2, 3]], r"^every worker has the same gradients, .*noop_hook"),
    ],
    ids=str,
)
def test_workers_whose_gradients_were_averaged_among_some_are_told_so(
    name: str, together: list[list[int]], words: str
) -> None:
    """Each of two processes of one DistributedDataParallel would count as a worker."""

    def work(collectives: Collectives) -> None:
        model = make_model()
        optimizer = made(name, model, collectives)
        batch_loss(model, 1, collectives.rank).backward()
        for number, ranks in enumerate(together):
            if collectives.rank in ranks:
                generator = torch.Generator().manual_seed(number)
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.grad.normal_(generator=generator)
        with pytest.raises(RuntimeError, match=words):
            optimizer.step()

    workers(work, 4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", [0.0, math.nan])
@pytest.mark.parametrize("ranks", [[1, 2], [0, 1, 2, 3]], ids=str)
def test_gradients_of_zeros_or_of_an_overflow_are_no_average(
    value: float, ranks: list[int]
) -> None:
    """As of workers without a batch, or where a norm that is infinite was clipped."""

    def work(collectives: Collectives) -> None:
        model = make_model()
        optimizer = made("local_sgd", model, collectives)
        batch_loss(model, 1, collectives.rank).backward()
        if collectives.rank in ranks:
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad.fill_(value)
        optimizer.step()
        assert optimizer.num_steps == 1

    workers(work, 4)


# Workers that part while they train.


@pytest.mark.parametrize("name", ["sgd", "local_sgd", "mcser", "dpsgd"])
@pytest.mark.parametrize("parted_at", [1, 2, 5])
def test_workers_whose_learning_rates_part_are_told_so(
    name: str, parted_at: int
) -> None:
    """Within 22 steps, whenever it was; nobody is while they are alike."""

    def work(collectives: Collectives, lr_of_rank_1: float) -> None:
        rank = collectives.rank
        model = make_model()
        optimizer = made(name, model, collectives)
        train(optimizer, model, rank, range(1, parted_at + 1))
        lr = lr_of_rank_1 if rank == 1 else 0.01
        optimizer.param_groups[0]["lr"] = lr
        train(optimizer, model, rank, range(parted_at + 1, 23))

    workers(lambda collectives: work(collectives, 0.01), 3)
    words = r"lr of group 0 = 0.02 on rank 1[;)].*set it alike"
    with pytest.raises(ValueError, match=words):
        workers(lambda collectives: work(collectives, 0.02), 3)


def test_a_state_of_no_steps_that_one_worker_loads_is_told_to_all() -> None:
    """The others would send worker 0's parameters anew, and wait for it."""

    def work(collectives: Collectives) -> None:
        model = make_model()
        optimizer = made("local_sgd", model, collectives)
        put(model, 5)
        if collectives.rank == 1:
            optimizer.load_state_dict(optimizer.state_dict())
        with pytest.raises(
            ValueError, match=r"loaded = False on rank 0; .* = True on rank 1"
        ):
            train(optimizer, model, collectives.rank, [1])

    workers(work, 2)


# Models that went on without the optimiser.


def test_parameters_that_are_replaced_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model from meta, a new head, and a conversion that makes new parameters."""
    for is_known in (False, True):
        with torch.device("meta"):
            model: nn.Module = nn.Linear(3, 2)
        known = model if is_known else None
        optimizer = SGD(model.parameters(), lr=0.1, model=known)
        materialised = model.to_empty(device="cpu")
        outputs = materialised(torch.ones(1, 3))
        outputs.sum().backward()
        with pytest.raises(
            RuntimeError,
            match=r"on the meta device|another Parameter in place of number 0",
        ):
            optimizer.step()
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = SGD(model.parameters(), lr=0.1)
    model[1] = nn.Linear(3, 5)  # type: ignore[operator]
    inputs = torch.ones(1, 3)
    model(inputs).sum().backward()
    with pytest.warns(
        UserWarning,
        match=r"parameters 2, 3 have no gradient at the optimiser's first step",
    ):
        optimizer.step()
    monkeypatch.setattr(
        torch.__future__, "_overwrite_module_params_on_conversion", True
    )
    model = nn.Linear(3, 2)
    optimizer = SGD(model.parameters(), lr=0.1)
    outputs = model.double()(inputs.double())
    outputs.sum().backward()
    with pytest.warns(UserWarning, match="no parameter has a gradient"):
        optimizer.step()


def test_a_process_that_trains_alone_is_told_so_unless_it_says_so_itself() -> None:
    with pytest.warns(
        UserWarning, match=r"trains alone; call .*init_process_group\(\)"
    ) as said:
        SGD(make_model().parameters(), lr=0.1)
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parameters = make_model().parameters()
        SGD(parameters, lr=0.1, collectives=SoloCollectives())
        with torch.device("meta"):
            layer = nn.Linear(3, 2)
            SGD(layer.parameters(), lr=0.1)


# Copies, and the average.


@pytest.mark.parametrize(
    "act",
    [
        copy.copy,
        copy.deepcopy,
        pickle.dumps,
        lambda each: torch.save(each, io.BytesIO()),
    ],
)
def test_an_optimiser_is_neither_copied_nor_pickled(
    act: Callable[[object], object],
) -> None:
    with pytest.raises(
        TypeError,
        match=r"DiLoCo cannot be copied or pickled, .*; save its state_dict\(\)",
    ):
        parameters = make_model().parameters()
        act(DiLoCo(parameters, lr=0.1, sync_interval=2))


def test_what_would_be_thrown_away_or_saved_as_ones_own_is_refused_inside_consensus() -> (
    None
):
    model = make_model()
    optimizer = made("mcser", model)
    calls: list[Callable[[], object]] = [
        optimizer.step,
        optimizer.state_dict,
        lambda: consensus_checkpoint("nowhere", model, optimizer),
        lambda: optimizer.load_state_dict({}),
        optimizer.reanchor,
    ]
    with optimizer.consensus(model):
        with optimizer.consensus():
            pass
        for call in calls:
            with pytest.raises(RuntimeError, match=r"inside consensus\(\)"):
                call()
    train(optimizer, model, 0, [1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_moving_averages_are_averaged_where_they_are_named_and_a_masks_least_number_stays(
    dtype: torch.dtype,
) -> None:
    least = torch.finfo(dtype).min

    def work(collectives: Collectives) -> None:
        model = make_model(torch.float32)
        numbers = [0.0, least, float("-inf"), 1.0 + collectives.rank]
        mask = torch.tensor(numbers, dtype=dtype)
        model.register_buffer("mask", mask)
        optimizer = made("local_sgd", model, collectives)
        train(optimizer, model, collectives.rank, [1])
        ema = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in ema.parameters():
                parameter.fill_(collectives.rank)
        with pytest.raises(
            RuntimeError,
            match=r"another Parameter in place of number 0 .*averages=\[ema\]",
        ):
            optimizer.consensus(ema).__enter__()
        averaged = [0.0, least, float("-inf"), 2.0]
        with optimizer.consensus(model, averages=[ema]):
            for parameter in ema.parameters():
                assert (parameter == 1.0).all()
            assert model.mask.tolist() == averaged
            assert ema.mask.tolist() == averaged
        for parameter in ema.parameters():
            assert (parameter == collectives.rank).all()

    workers(work, 3)


def test_what_is_counted_inside_consensus_and_buffers_that_are_expanded_are_put_back() -> (
    None
):
    def work(collectives: Collectives) -> None:
        own_scale = 1.0 + collectives.rank
        own = torch.full((1,), own_scale)
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        model.register_buffer("scale", own.expand(4))
        optimizer = SGD(
            model.parameters(), lr=0.1, collectives=collectives, model=model
        )
        assert model.scale.tolist() == [1.0] * 4, "worker 0's"
        model(torch.ones(4, 3))
        before = copy.deepcopy(model.state_dict())
        inputs = [torch.randn(4, 3) for _ in range(5)]
        with optimizer.consensus(model):
            update_bn(inputs, model)
            assert model[1].num_batches_tracked == 5
        assert before["1.num_batches_tracked"] == 1
        after = model.state_dict()
        for key, value in before.items():
            assert torch.equal(after[key], value), key

    workers(work, 2)


# Groups and types.


@pytest.mark.parametrize(("name", "dtype"), EACH)
def test_groups_may_be_added_before_the_first_step(name: str, dtype: Types) -> None:
    own = own_settings(name, [SHARED["blocks"]], 3)
    numbers = {"lr": LR, "momentum": MOMENTUM}

    def work(collectives: Collectives) -> tuple[Tensor, Tensor]:
        at_once = make_model(dtype, 2)
        later = make_model(dtype, 2)
        whole = made(name, at_once, collectives)
        weights, biases = groups(list(later.parameters()))
        make = algorithms()[name]
        optimizer = make(
            [weights],
            collectives=collectives,
            weight_decay=WEIGHT_DECAY,
            **own,
            **numbers,
        )
        first_weight = weights["params"][0]
        view = nn.Parameter(first_weight.detach())
        with pytest.raises(ValueError, match="share memory"):
            optimizer.add_param_group({"params": [view]})
        optimizer.add_param_group(biases)
        train(whole, at_once, collectives.rank, range(1, 8))
        train(optimizer, later, collectives.rank, range(1, 8))
        head = nn.Parameter(torch.zeros(2))
        with pytest.raises(
            ValueError, match=r"after the first step .* add it at the start, frozen"
        ):
            optimizer.add_param_group({"params": [head]})
        return flat_parameters(at_once), flat_parameters(later)

    for whole, grown in workers(work, 2):
        assert torch.equal(whole, grown)


def test_numbers_of_a_type_that_are_too_few_to_compress_are_sent_whole() -> None:
    many = nn.Parameter(torch.zeros(64))
    few = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = EFSGD([many, few], lr=1.0, compressor=BlockSparsifier(8))
    few.grad = torch.ones_like(few)
    optimizer.step()
    assert (few == -1).all()
    sent = Entry(8 * 32 + 6 * 64, 2)
    assert optimizer.traffic[Purpose.GRADIENT] == sent
    assert optimizer.expected_traffic(1)[Purpose.GRADIENT] == sent


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_that_a_script_changes_holds_for_parameters_of_each_type(
    name: str,
) -> None:
    """As if it had been given at the start."""
    own = own_settings(name, [SHARED["blocks"]], 2)
    changed: dict[str, Any] = {}
    declared = algorithms()[name].declared
    for key, each in declared.items():
        if each.declared is float and key != "outer_momentum":
            changed[key] = 0.6
    for key, value in own.items():
        if isinstance(value, BlockSparsifier):
            changed[key] = BlockSparsifier(2)

    def work(collectives: Collectives) -> tuple[Tensor, Tensor]:
        def after_six(given: dict[str, Any], later: dict[str, Any]) -> Tensor:
            """Parameters after six steps with settings given at once and set afterwards."""
            model = make_model(ACCURATE)
            optimizer = make_optimizer(name, model, given, collectives)
            for key, value in later.items():
                setattr(optimizer, key, value)
            train(optimizer, model, collectives.rank, range(1, 7))
            return flat_parameters(model)

        at_once = after_six(own | changed, {})
        later = after_six(own, changed)
        return at_once, later

    for at_once, later in workers(work, 2):
        assert torch.equal(at_once, later)


@pytest.mark.parametrize(
    "name", ["cser_released", "mcser_released", "qsparse_local_sgd"]
)
def test_a_group_without_momentum_keeps_its_decay_beside_one_with_momentum(
    name: str,
) -> None:
    """It steps as torch.optim.SGD does."""
    own = own_settings(name, [SHARED["identity"]], 1, decay_in_momentum_only=True)
    plain, other, ours = (nn.Parameter(torch.ones(6)) for _ in range(3))
    without = {"params": [ours], "momentum": 0.0}
    with_momentum = {"params": [other], "momentum": 0.9}
    optimizer = algorithms()[name](
        [without, with_momentum], lr=0.1, weight_decay=0.2, momentum=0.9, **own
    )
    reference = torch.optim.SGD([plain], lr=0.1, weight_decay=0.2)
    for step in range(1, 6):
        for parameter in (plain, other, ours):
            parameter.grad = torch.full_like(parameter, step)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)


def test_a_first_step_without_gradients_is_warned_of_after_parameters_were_assigned() -> (
    None
):
    model = make_model()
    other = make_model(seed=1)
    optimizer = SGD(model.parameters(), lr=0.1)
    model.load_state_dict(other.state_dict(), assign=True)
    with pytest.warns(
        UserWarning,
        match=r"no parameter has a gradient .* load_state_dict with assign=True",
    ):
        train(optimizer, model, 0, [1])


def test_frozen_layers_may_be_thawed_later() -> None:
    model = make_model()
    model[0].requires_grad_(False)
    with pytest.warns(
        UserWarning,
        match=r"parameter 0 does not require a gradient, nor do 1 more, yet they are sent",
    ):
        optimizer = SGD(
            model.parameters(), lr=0.1, momentum=0.9, collectives=SoloCollectives()
        )
    start = [parameter.detach().clone() for parameter in model.parameters()]
    for step in (1, 2, 3):
        model[0].requires_grad_(step > 1)
        train(optimizer, model, 0, [step])
        moved = []
        for parameter, before in zip(model.parameters(), start, strict=True):
            moved.append(not torch.equal(parameter, before))
        is_thawed = step > 1
        assert moved == [is_thawed, is_thawed, True, True]


# Workers that have the same parameters in another order.


class Twins(nn.Module):
    """Two layers of one shape, and two buffers of one shape."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("variance", torch.ones(3))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        outputs: Tensor = self.second(hidden)
        return outputs.sum()

    def second_first(self) -> list[tuple[str, nn.Parameter]]:
        return [
            *self.second.named_parameters("second"),
            *self.first.named_parameters("first"),
        ]

    def variance_first(self) -> nn.Module:
        mean = self.get_buffer("mean")
        del self.mean
        self.register_buffer("mean", mean)
        return self


def unnamed(pairs: list[tuple[str, nn.Parameter]]) -> list[nn.Parameter]:
    return [parameter for _, parameter in pairs]


def of_torch(pairs: Any) -> list[dict[str, Any]]:
    return torch.optim.SGD(pairs, lr=0.1).param_groups


def divided(model: Twins, first: int) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    first_group = {"params": parameters[:first]}
    second_group = {"params": parameters[first:]}
    return [first_group, second_group]


Given = Callable[[Twins], dict[str, Any]]
SWAPPED = "float32 parameter 0 = first.weight .* on ranks 0, 2; .* = second.weight .* on rank 1"
ORDERS: dict[str, tuple[Given, Given, str]] = {
    "with the model": (
        lambda model: {"params": model.parameters(), "model": model},
        lambda model: {"params": unnamed(model.second_first()), "model": model},
        SWAPPED,
    ),
    "named": (
        lambda model: {"params": model.named_parameters()},
        lambda model: {"params": model.second_first()},
        SWAPPED,
    ),
    "torch's groups, named": (
        lambda model: {"params": of_torch(model.named_parameters())},
        lambda model: {"params": of_torch(model.second_first())},
        SWAPPED,
    ),
    "named on some": (
        lambda model: {"params": model.named_parameters()},
        lambda model: {"params": model.parameters()},
        "parameter 0 = first.weight .* on ranks 0, 2; .* = one without a name .* on rank 1",
    ),
    "in other groups": (
        lambda model: {"params": divided(model, 2)},
        lambda model: {"params": divided(model, 3)},
        "parameter 2 = .* in group 1, .* on ranks 0, 2; .* in group 0, .* on rank 1",
    ),
    "buffers": (
        lambda model: {"params": model.named_parameters(), "model": model},
        lambda model: {
            "params": model.named_parameters(),
            "model": model.variance_first(),
        },
        "tensor 0 of the rest = mean, .* on ranks 0, 2; .* = variance, .* on rank 1",
    ),
    "a model on some": (
        lambda model: {"params": model.named_parameters(), "model": model},
        lambda model: {"params": model.named_parameters()},
        "rest of the model = 2 tensors on ranks 0, 2; .* = no model is given on rank 1",
    ),
}
"""What workers 0 and 2 give, what worker 1 gives, and the difference that all are told."""


@pytest.mark.parametrize("order", ORDERS)
def test_another_order_on_one_worker_is_told_to_all(order: str) -> None:
    """Though all begin with values of their own; and nothing of theirs is changed."""
    usual, other, words = ORDERS[order]

    def work(collectives: Collectives) -> str:
        model = Twins(collectives.rank)
        give = other if collectives.rank == 1 else usual
        given = give(model)
        with pytest.raises(
            ValueError, match=f"optimisers differ .*{words}.*; .*same order"
        ) as told:
            SGD(lr=0.1, collectives=collectives, **given)
        before = Twins(collectives.rank)
        for now, old in zip(model.parameters(), before.parameters(), strict=True):
            assert torch.equal(now, old)
        return str(told.value)

    said = workers(work, 3)
    assert len(set(said)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["sgd", "mcser"])
def test_another_order_without_names_is_seen_by_equal_values(
    name: str, dtype: torch.dtype
) -> None:
    own = own_settings(name, [SHARED["blocks"]], 3)

    def work(collectives: Collectives) -> str:
        model = Twins(0).to(dtype)
        pairs = list(model.named_parameters())
        if collectives.rank == 1:
            pairs = model.second_first()
        given = unnamed(pairs)
        with pytest.raises(
            ValueError,
            match=r"parameter 0 has on rank 1 the values that \w+ parameter 2 has on",
        ) as told:
            algorithms()[name](
                given, lr=0.1, momentum=0.9, collectives=collectives, **own
            )
        return str(told.value)

    said = workers(work, 3)
    assert len(set(said)) == 1


def test_layers_that_begin_by_seeds_of_rank_and_layer_are_in_one_order() -> None:
    """A worker's layer then begins as the next one of the worker before."""

    def work(collectives: Collectives) -> None:
        layers = []
        for number in range(5):
            value = float(collectives.rank + number)
            numbers = torch.full((4,), value)
            layers.append(nn.Parameter(numbers))
        SGD(layers, lr=0.1, collectives=collectives)
        firsts = [layer[0].item() for layer in layers]
        assert firsts == [0, 1, 2, 3, 4]

    workers(work, 3)


def test_norms_that_are_exchanged_are_seen_where_weights_are_each_workers_own() -> None:
    """A norm's scales, which begin as ones, and its shifts, as zeros, have one shape."""

    def work(collectives: Collectives) -> None:
        model = nn.Sequential(Twins(collectives.rank), nn.LayerNorm(3))
        *others, scales, shifts = model.parameters()
        norm = [shifts, scales] if collectives.rank == 1 else [scales, shifts]
        with pytest.raises(ValueError, match=r"differ .* has on rank 1 the values"):
            SGD([*others, *norm], lr=0.1, collectives=collectives)

    workers(work, 2)


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["equal", "own"])
@pytest.mark.parametrize("given", [*ORDERS, "unnamed"])
def test_workers_of_one_order_begin_from_worker_0s_values_whatever_theirs_are(
    given: str, seeds: tuple[int, int]
) -> None:
    """And all that was sent to see it is counted as control."""
    usual, _, _ = ORDERS.get(
        given, (lambda model: {"params": model.parameters()}, None, "")
    )

    def work(collectives: Collectives) -> None:
        model = Twins(seeds[collectives.rank])
        seen = []

        @contextmanager
        def observe(kind: object, group: str, num_bytes: int) -> Iterator[None]:
            seen.append(8 * num_bytes)
            yield

        collectives.observer = observe
        optimizer = SGD(lr=0.1, collectives=collectives, **usual(model))
        for now, first in zip(
            model.parameters(), Twins(seeds[0]).parameters(), strict=True
        ):
            assert torch.equal(now, first)
        assert optimizer.traffic[Purpose.CONTROL].gathered_bits == sum(seen) > 0
        assert optimizer.traffic.training_bits == 0
        model(torch.ones(3)).backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())

    workers(work, 2)


# Scaled gradients: the scale is taken out, and all workers skip a step where one of them
# overflowed.


SCALED = [(name, dtype, clip) for name, dtype in EACH for clip in (False, True)]


# Gradients of 16 bits are scaled, too, but torch does not take the scale out of them before the
# step.
@pytest.mark.parametrize(
    ("name", "dtype", "clip"),
    [*SCALED, ("mcser", (torch.float16, torch.float32), False)],
)
def test_the_scale_is_taken_out_and_all_workers_skip_where_one_overflowed(
    name: str, dtype: Types, clip: bool
) -> None:
    def scaled_steps(overflow: dict[int, int]) -> list[tuple[Tensor, int]]:
        """Return each worker's parameters and the steps counted. `overflow`: the worker that
        overflows, by step."""

        def work(collectives: Collectives) -> tuple[Tensor, int]:
            model = make_model(dtype)
            optimizer = made(name, model, collectives)
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            for step in range(1, 9):
                optimizer.zero_grad()
                loss = batch_loss(model, step, collectives.rank)
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                if overflow.get(step) == collectives.rank:
                    first = next(model.parameters())
                    first.grad.view(-1)[0] = float("inf")  # type: ignore[union-attr]
                if clip:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), 1e9)
                scaler.step(optimizer)
                scaler.update()
            return flat_parameters(model), optimizer.num_steps

        return workers(work, 2)

    own = own_settings(name, [SHARED["blocks"]], 3)
    plain = trained(name, own, 2, 8, dtype)
    tolerances = {torch.float64: 1e-12, ACCURATE: 1e-6}
    tolerance = tolerances.get(dtype, 0.02)
    for (parameters, num_steps), expected in zip(scaled_steps({}), plain, strict=True):
        assert num_steps == 8
        torch.testing.assert_close(parameters, expected, rtol=0, atol=tolerance)
    for parameters, num_steps in scaled_steps({2: 0, 5: 1}):
        assert num_steps == 6
        assert parameters.isfinite().all()


@pytest.mark.parametrize(("gamma", "grows"), [(0.3, True), (0.03, False)])
def test_choco_sgd_warns_of_a_gamma_at_which_workers_move_apart(
    gamma: float, grows: bool
) -> None:
    """Workers are put apart by one gradient, and then left to mix."""
    size = 1024
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = ChocoSGD(
            [nn.Parameter(torch.zeros(8, size))],
            lr=1.0,
            momentum=0.0,
            seed=0,
            collectives=StackedCollectives(8),
            topology="ring",
            compressor=QSGD(2),
            gamma=gamma,
        )
    warned = [str(each.message) for each in caught if "gamma" in str(each.message)]
    assert len(warned) == grows
    generator = torch.Generator().manual_seed(0)
    apart = []
    for number in range(200):
        gradients = torch.zeros(8, size)
        if number == 0:
            gradients.normal_(generator=generator)
        optimizer.flat.gradients.copy_(gradients)
        with warnings.catch_warnings():
            # That no parameter has a gradient: they are put into the flat vector.
            warnings.simplefilter("ignore")
            optimizer.step()
        apart.append(optimizer.flat.parameters.std(dim=0).mean().item())
    assert (apart[-1] > 10 * apart[0]) == grows
    assert (apart[-1] < 0.5 * apart[0]) == (not grows)
