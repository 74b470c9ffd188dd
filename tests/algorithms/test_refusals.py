"""What cannot be is refused in a sentence that says what and where: settings, numbers, groups,
compressors, ratios."""

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cser_bench.algorithms import (
    QSGD,
    SGD,
    BlockSparsifier,
    ChunkTopK,
    Compressor,
    DiLoCo,
    DistributedOptimizer,
    PerTensorBlockSparsifier,
    QuantisedBlocks,
    RandomK,
    TopK,
    algorithms,
)
from cser_bench.algorithms.baselines.ddp import DDP
from cser_bench.algorithms.core.layout import Layout
from cser_bench.algorithms.core.local_step import REQUIRED
from cser_bench.algorithms.core.topology import rounds_of
from tests.algorithms.problems import (
    ADAMW,
    JOINT,
    MUON,
    NAMES,
    SHORT,
    TAKING_ADAMW,
    flat_parameters,
    kinds_taken,
    make_model,
    make_optimizer,
    own_settings,
    train,
)


def test_a_model_in_the_place_of_its_parameters_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"not the Linear itself; write SGD\(model.parameters\(\)"
    ):
        SGD(nn.Linear(3, 2), lr=0.1)  # type: ignore[arg-type]


# Compressors.

WRONG: list[tuple[Callable[[], Compressor], str]] = [
    (lambda: BlockSparsifier(0), "ratio"),
    (lambda: BlockSparsifier(True), "ratio"),
    (lambda: BlockSparsifier(4, 6), "num_blocks"),
    (lambda: BlockSparsifier(4, -4), "num_blocks"),
    (lambda: PerTensorBlockSparsifier(0.5), "row_ratio"),
    (lambda: PerTensorBlockSparsifier(2, 0), "column_ratio"),
    (lambda: PerTensorBlockSparsifier(2, 2, math.nan), "tensor_ratio"),
    (lambda: RandomK(math.inf), "ratio"),
    (lambda: TopK("4"), "ratio"),  # type: ignore[arg-type]
    (lambda: ChunkTopK(0), "kept"),
    (lambda: ChunkTopK(5, 4), "lower kept"),
    (lambda: ChunkTopK(1, 4, 3), "bits"),
    (lambda: QSGD(3), "one of 2, 4, 8"),
    (lambda: QSGD(4.0), "one of 2, 4, 8, not 4.0"),  # type: ignore[arg-type]
    (lambda: QSGD(4, 0), "bucket_size"),
    (lambda: QSGD(4, 2.5), "bucket_size"),  # type: ignore[arg-type]
    (lambda: ChunkTopK(2.5), "kept"),  # type: ignore[arg-type]
    (lambda: BlockSparsifier(2.5), "ratio"),  # type: ignore[arg-type]
    (lambda: QuantisedBlocks(8.0), "one of 1, 4, 8, not 8.0"),  # type: ignore[arg-type]
    (lambda: QuantisedBlocks(2), "bits"),
    (lambda: QuantisedBlocks(8, 12), "block_size"),
]


@pytest.mark.parametrize(("make", "word"), WRONG)
def test_compressors_out_of_range(make: Callable[[], Compressor], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


@pytest.mark.parametrize(
    "compressor",
    [BlockSparsifier(11), BlockSparsifier(1, 11), RandomK(10.5), TopK(11)],
    ids=str,
)
def test_a_model_too_small_for_the_ratio(compressor: Compressor) -> None:
    with pytest.raises(ValueError, match="10"):
        ten = Layout.of([torch.empty(10)])
        compressor.check(ten)
    eleven = Layout.of([torch.empty(11)])
    compressor.check(eleven)


# Methods.

OF_NO_KIND: dict[type, list[Any]] = {
    bool: ["no", None, 1],
    int: [-1, 1.5, True, torch.tensor(2), np.float64(2)],
    float: [-0.1, math.nan, math.inf, True],
    str: ["torus"],
}


@pytest.mark.parametrize("name", NAMES)
def test_any_setting_of_the_wrong_kind_and_a_share_of_traffic_that_is_none(
    name: str,
) -> None:
    own = own_settings(name)
    declared = algorithms()[name].declared.items()
    defaults = {
        key: each.default for key, each in declared if each.default is not REQUIRED
    }
    for key, value in (defaults | own).items():
        wrong = [
            *OF_NO_KIND.get(type(value), []),
            *[0] * (type(value) is int and value != 0),
        ]
        wrong = (
            ["block", None, TopK(1000), BlockSparsifier(1000)]
            if isinstance(value, Compressor)
            else wrong
        )
        for bad in wrong:
            with pytest.raises(ValueError, match=rf"^{name}: .*{key}"):
                make_optimizer(name, make_model(), own | {key: bad})
    for share in (0, -1, 1.5, True, "1/24", None, math.nan):
        with pytest.raises(
            ValueError, match=f"{name}: share must be a number above 0 and up to 1"
        ):
            algorithms()[name].at_traffic(share, world_size=8)
    for world_size in (1, 8.0, True, None):
        with pytest.raises(
            ValueError, match=f"{name}: world_size must be an integer from 2 up"
        ):
            algorithms()[name].at_traffic(1 / 24, world_size=world_size)


@pytest.mark.parametrize("name", NAMES)
def test_numpys_numbers_are_settings_and_are_kept_as_pythons(name: str) -> None:
    """So that workers, and states as text, compare 8 with 8."""
    own = own_settings(name)
    declared = algorithms()[name].declared.items()
    defaults = {
        key: each.default for key, each in declared if each.default is not REQUIRED
    }
    numpys = {int: np.int64, float: np.float64, bool: np.bool_}
    given = {
        key: numpys[type(value)](value)
        for key, value in (defaults | own).items()
        if type(value) in numpys
    }
    with_pythons = make_optimizer(name, make_model(), own, seed=3)
    with_numpys = make_optimizer(name, make_model(), own | given, seed=np.int32(3))
    assert repr(with_numpys.settings) == repr(with_pythons.settings)
    assert repr(with_numpys.seed) == "3"
    expected = with_pythons.expected_traffic(6)
    assert with_numpys.expected_traffic(np.int64(6)) == expected  # type: ignore[arg-type]


def test_numpys_numbers_are_taken_by_compressors_and_by_shares_of_traffic() -> None:
    two = np.int64(2)
    for made, same in (
        (BlockSparsifier(two, np.uint8(4)), BlockSparsifier(2, 4)),  # type: ignore[arg-type]
        (RandomK(np.float32(2.5)), RandomK(2.5)),  # type: ignore[arg-type]
        (TopK(two), TopK(2)),  # type: ignore[arg-type]
        (ChunkTopK(two, np.int32(8), two), ChunkTopK(2, 8, 2)),  # type: ignore[arg-type]
        (QSGD(two, np.int16(64)), QSGD(2, 64)),  # type: ignore[arg-type]
        (QuantisedBlocks(np.int64(4), np.int64(64)), QuantisedBlocks(4, 64)),  # type: ignore[arg-type]
    ):
        assert repr(made) == repr(same)
    eight = np.int64(8)
    given = DiLoCo.at_traffic(np.float64(1 / 4), world_size=eight)  # type: ignore[arg-type]
    assert given == DiLoCo.at_traffic(1 / 4, world_size=8)
    optimizer = make_optimizer("ef_sgd", make_model(), {"compressor": TopK(4)})
    assert optimizer.traffic_share(eight) == optimizer.traffic_share(8)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, "text", 1.5, True, None])
def test_a_seed_that_is_no_integer_from_0_up(seed: Any) -> None:
    with pytest.raises(
        ValueError, match=r"sgd: seed must be an integer from 0 up, not"
    ):
        SGD(make_model().parameters(), lr=0.1, seed=seed)


@pytest.mark.parametrize("value", ["no", "False", 1, None])
def test_skip_nonfinite_is_true_or_false(value: Any) -> None:
    with pytest.raises(ValueError, match=r"sgd: skip_nonfinite must be True or False"):
        SGD(make_model().parameters(), lr=0.1, skip_nonfinite=value)


def test_a_learning_rate_of_none_is_missing() -> None:
    with pytest.raises(ValueError, match=r"^group 0: lr is missing; give a number"):
        SGD(make_model().parameters(), lr=None)  # type: ignore[arg-type]
    in_each_group = [{"params": make_model().parameters(), "lr": 0.2}]
    optimizer = SGD(in_each_group, lr=None)  # type: ignore[arg-type]
    assert optimizer.param_groups[0]["lr"] == 0.2


@pytest.mark.parametrize("value", ["0.1", None, [0.1]])
@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lr", "the learning rate must be a number from 0 up"),
        ("momentum", "the momentum must lie in"),
        ("weight_decay", "the weight decay must be a number from 0 up"),
    ],
)
def test_what_a_script_later_puts_in_the_place_of_a_groups_number(
    key: str, words: str, value: Any
) -> None:
    optimizer = SGD(make_model().parameters(), lr=0.1, momentum=0.9)
    optimizer.param_groups[0][key] = value
    with pytest.raises(ValueError, match=rf"{words}.*, not {re.escape(repr(value))}$"):
        optimizer.step()


def cases() -> Iterator[tuple[str, dict[str, Any], str]]:
    """A method, what is given to it in place of what fits though it is of the right kind, and a
    word of the error."""
    yield "diloco", {"sync_interval": 5, "num_fragments": 2}, "multiple"
    yield "diloco", {"sync_interval": 52, "num_fragments": 52}, "51 parameters"
    yield "diloco", {"outer_lr": 0.0}, "outer_lr"
    yield "noloco", {"outer_momentum": 1.0}, "outer_momentum"
    yield "sparse_loco", {"error_decay": 1.1}, "error_decay"
    yield "streaming_diloco", {"delay": 1}, "below sync_interval"
    yield "streaming_diloco", {"bits": 2}, "4, 8, 32"
    yield "choco_sgd", {"topology": "one_peer"}, "one_peer"
    yield "choco_sgd", {"gamma": 1.5}, "gamma"
    for name in ("cser_released", "mcser_released"):
        for key in ("gradient_compressor", "error_compressor"):
            yield name, {key: TopK(10)}, "all workers share"
    for name in JOINT:
        if kinds_taken(name) and "released" not in name:
            key = next(
                key
                for key, each in algorithms()[name].declared.items()
                if each.declared is Compressor
            )
            yield (
                name,
                {key: TopK(5), "communication_dtype": torch.float16},
                "format of their own",
            )
    for name in NAMES:
        if name not in TAKING_ADAMW:
            yield name, ADAMW, "leave local_step out"
    for plain in ("cser", "cser_released"):
        yield f"m{plain}", {"momentum": 0.0}, f"without .* is {plain}$"
    yield "sgd", ADAMW | {"local_step": "adam"}, "adamw, muon, sgd"
    yield (
        "sgd",
        ADAMW | {"momentum": 0.9},
        "momentum belongs to local_step = 'muon' or 'sgd'",
    )
    yield (
        "sgd",
        ADAMW | {"local_step": "sgd"},
        "betas belongs to local_step = 'adamw' or 'muon'",
    )
    yield "sgd", ADAMW | {"betas": 0.9}, "betas must be two numbers"
    yield "sgd", ADAMW | {"betas": (0.9, True)}, "betas must be a plain number"
    yield "sgd", ADAMW | {"eps": 0}, "eps"
    yield "local_sgd", {"first_moment_interval": 3}, "first_moment_interval"
    short = {"second_moment_interval": 3, "communication_dtype": torch.float16}
    yield "local_sgd", ADAMW | short, "second_moment_interval"


@pytest.mark.parametrize(("name", "given", "words"), cases())
def test_settings_that_cannot_be(name: str, given: dict[str, Any], words: str) -> None:
    own = own_settings(name)
    common = {
        key: value
        for key, value in given.items()
        if key not in algorithms()[name].declared
    }
    own |= {key: value for key, value in given.items() if key not in common}
    with pytest.raises(ValueError, match=words):
        make_optimizer(name, make_model(), own, **common)


def test_a_method_with_momentum_in_its_name_has_some() -> None:
    for name, momentum in (
        ("mcser", 0.9),
        ("mcser_released", 0.9),
        ("cser", 0.0),
        ("cser_released", 0.0),
    ):
        optimizer = algorithms()[name](
            make_model().parameters(), lr=0.1, **own_settings(name)
        )
        assert optimizer.param_groups[0]["momentum"] == momentum


GROUPS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"lr": -1.0}, "learning rate"),
    ({}, {"lr": math.nan}, "learning rate"),
    ({}, {"momentum": 1.5}, "momentum"),
    ({}, {"weight_decay": -1.0}, "weight decay"),
    ({}, {"lr": torch.tensor(0.1)}, "lr must be a plain number"),
    ({}, {"nesterov": False}, "nesterov = False"),
    ({}, {"maximize": True}, "maximize = True"),
    ({}, {"dampening": 0.5}, "dampening = 0.5"),
    ({}, {"muon": True}, "muon is True or False"),
    (
        ADAMW,
        {"decoupled_weight_decay": False, "weight_decay": 0.1, "amsgrad": False},
        r"weight_decay = 0.1 is of torch.optim.Adam, .* take the groups of torch.optim.AdamW",
    ),
    (ADAMW, {"momentum_decay": 4e-3}, "group 0 is of torch.optim's NAdam"),
    (MUON, {"muon": 1}, "muon is True or False"),
    (ADAMW, {"momentum": 0.9}, "momentum belongs to local_step = 'muon' or 'sgd'"),
    (ADAMW, {"amsgrad": True}, "amsgrad"),
    (ADAMW, {"betas": (1.5, 0.9)}, "betas must lie in"),
]


@pytest.mark.parametrize(("common", "group", "words"), GROUPS, ids=str)
def test_what_a_group_says_is_done_or_refused_then_and_once_a_schedule_has_put_it_out_of_range(
    common: Any, group: dict[str, Any], words: str
) -> None:
    numbers = {
        key: value for key, value in ({"lr": 0.1} | common).items() if value is not None
    }
    for name in NAMES if not common else ["sgd", "diloco"]:
        momentum = {} if common else {"momentum": 0.9}
        make: Callable[[Any], DistributedOptimizer] = partial(
            algorithms()[name], **own_settings(name), **numbers, **momentum
        )
        with pytest.raises(ValueError, match=words):
            parameters = make_model().parameters()
            make([{"params": parameters, **group}])
        if words in ("learning rate", "momentum", "weight decay", "betas must lie in"):
            optimizer = make(make_model().parameters())
            optimizer.param_groups[0].update(group)
            with pytest.raises(ValueError, match=words):
                optimizer.step()


LATER: list[tuple[dict[str, Any], str, Any]] = [
    ({"momentum": 0.9}, "nesterov", False),
    ({}, "maximize", True),
    ({"momentum": 0.9}, "dampening", 0.5),
    (ADAMW, "amsgrad", True),
    (MUON, "maximize", True),
]


@pytest.mark.parametrize(("common", "key", "value"), LATER)
def test_an_option_that_a_script_sets_later_is_refused_before_anything_moves(
    common: dict[str, Any], key: str, value: Any
) -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), **{"lr": 0.1} | common)
    before = flat_parameters(model)
    train(optimizer, model, 0, [1])
    after = flat_parameters(model)
    assert not torch.equal(before, after)
    optimizer.param_groups[0][key] = value
    with pytest.raises(ValueError, match=rf"group 0: {key} = {value} is an option of"):
        train(optimizer, model, 0, [2])
    assert torch.equal(flat_parameters(model), after)
    assert optimizer.num_steps == 1


def test_options_that_say_what_is_done_anyway_may_be_set_later() -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    # As a scheduler and torch's own groups have them; without momentum `nesterov` says nothing.
    said = {"maximize": False, "nesterov": False, "foreach": None, "initial_lr": 0.1}
    optimizer.param_groups[0].update(said)
    train(optimizer, model, 0, [1])
    optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ValueError, match="group 0: nesterov = False"):
        train(optimizer, model, 0, [2])


def test_a_model_of_other_parameters_is_refused() -> None:
    model = make_model()
    other = make_model()
    parameters = list(model.parameters())
    with pytest.raises(
        ValueError,
        match=rf"model does not have {len(parameters)} of the {len(parameters)} parameters .*, "
        "number 0 first; give model= the module",
    ):
        SGD(model.parameters(), lr=0.1, model=other)
    added = nn.Parameter(torch.zeros(3))
    with pytest.raises(
        ValueError, match=rf"not have 1 of the .* number {len(parameters)} first"
    ):
        SGD([*parameters, added], lr=0.1, model=model)
    optimizer = SGD(parameters, lr=0.1, model=model)
    with pytest.raises(ValueError, match=r"model does not have 1 of the"):
        optimizer.add_param_group({"params": [added]})
    train(optimizer, model, 0, [1])
    # Of a larger model, in whatever it is wrapped.
    SGD(parameters[:1], lr=0.1, model=nn.Sequential(model))


def torchs_groups(kind: str, **numbers: Any) -> list[dict[str, Any]]:
    parameters = make_model().parameters()
    optimizer = getattr(torch.optim, kind)(parameters, **numbers)
    return list(optimizer.param_groups)


def test_groups_of_another_rule_than_the_local_step_are_refused() -> None:
    make = partial(SGD, lr=0.1, local_step="adamw")
    # Not in torch 2.6
    says_decay = "decoupled_weight_decay" in torchs_groups("Adam")[0]
    for kind in (
        "NAdam",
        "RAdam",
        "Adamax",
        "Adadelta",
        "Adagrad",
        "RMSprop",
        "ASGD",
        "Rprop",
    ):
        with pytest.raises(ValueError, match=rf"group 0 is of torch.optim's .*{kind}"):
            make(torchs_groups(kind))
    if says_decay:
        with pytest.raises(ValueError, match=r"take the groups of torch.optim.AdamW"):
            make(torchs_groups("Adam", weight_decay=0.1))
    of_both = (torchs_groups("Adam"), torchs_groups("AdamW", weight_decay=0.1))
    for groups in of_both:
        optimizer = make(groups)
        own_group, *_ = optimizer.param_groups
        assert own_group["weight_decay"] == groups[0]["weight_decay"]


def test_groups_of_torchs_sgd_are_taken_without_momentum_and_refused_by_a_method_of_momentum() -> (
    None
):
    groups = torchs_groups("SGD", lr=0.1)
    optimizer = SGD(groups, lr=0.1)
    assert optimizer.param_groups[0]["nesterov"] is False
    with pytest.raises(ValueError, match=r"mcser: the momentum must not be 0"):
        algorithms()["mcser"](
            torchs_groups("SGD", lr=0.1), lr=0.1, **own_settings("mcser")
        )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr": 0.1}, r"^DiLoCo needs sync_interval by name"),
        (
            {"lr": 0.1, "sync_interval": 2, "process_group": None},
            r"^DiLoCo has no argument process_group; give it as collectives=$",
        ),
        (
            {"lr": 0.1, "sync_intervall": 2},
            r"^DiLoCo has no argument sync_intervall; did you mean sync_interval\?$",
        ),
        (
            {"lr": 0.1, "sync_interval": 2, "nesterov": True},
            r"^DiLoCo has no argument nesterov; it takes lr, sync_int",
        ),
    ],
)
def test_arguments_that_are_missing_or_unknown_are_named_by_the_methods_name(
    given: Any, words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        DiLoCo(make_model().parameters(), **given)
    with pytest.raises(
        TypeError, match=r"^SGD takes all but the parameters by name, as in SGD\("
    ):
        SGD(make_model().parameters(), 0.1)  # type: ignore[call-arg]
    with pytest.raises(
        TypeError, match=r"^model must be the torch.nn.Module .* not a OrderedDict"
    ):
        state = make_model().state_dict()
        SGD(make_model().parameters(), lr=0.1, model=state)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="explicit_error"):
        algorithms()["cser_released"](
            make_model().parameters(), lr=0.1, **own_settings("cser")
        )


@pytest.mark.filterwarnings("ignore:optimizer contains")
def test_what_cannot_be_parameters() -> None:
    weight = nn.Parameter(torch.zeros(4))
    zeros = torch.zeros(4, dtype=torch.bfloat16)
    half = nn.Parameter(zeros)
    for tensors, words in (
        ([], "every group is empty"),
        ([nn.Parameter(torch.zeros(2, dtype=torch.complex64))], "complex64"),
        ([weight, nn.Parameter(weight.detach())], "parameters 0 and 1 share memory"),
        ([weight, weight], "one and the same Parameter"),
        (
            [weight, nn.Parameter(torch.zeros(2, device="meta"))],
            "parameter 1 is on meta, parameter 0 on cpu",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            SGD([{"params": tensors}], lr=0.1)
    with pytest.raises(ValueError, match="ddp: parameters must have one type"):
        DDP(make_model(SHORT).parameters(), lr=0.1)
    single = nn.Parameter(torch.zeros(64))
    two_types = [single, half]
    with pytest.raises(
        ValueError, match=r"num_fragments = 8 is more .* of type torch.bfloat16"
    ):
        DiLoCo(two_types, lr=1.0, sync_interval=8, num_fragments=8)
    zeros = torch.zeros(64, dtype=torch.float16)
    halves = [nn.Parameter(zeros)]
    with pytest.raises(
        ValueError, match=r"second_moment_interval .* or parameters in fp16"
    ):
        algorithms()["local_sgd"](
            halves,
            lr=0.1,
            local_step="adamw",
            sync_interval=2,
            second_moment_interval=2,
        )
    with pytest.raises(
        ValueError, match="one_peer needs a power of two of workers, not 12"
    ):
        rounds_of("one_peer", 12)
