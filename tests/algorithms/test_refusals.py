"""What cannot be is refused in a sentence that says what and where: settings, numbers, groups, compressors, ratios."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from algorithms import (
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
    Topology,
    algorithms,
)
from algorithms.baselines.ddp import DDP
from algorithms.core.layout import Layout, Window
from algorithms.core.topology import as_topology
from algorithms.registry import settings
from tests.algorithms.problems import (
    ADAMW,
    JOINT,
    MUON,
    NAMES,
    SHORT,
    TAKING_ADAMW,
    kinds_taken,
    make_model,
    make_optimizer,
    own_settings,
)

# Compressors.

WRONG: list[tuple[Callable[[], Compressor], str]] = [
    (lambda: BlockSparsifier(0), "at least 1"),
    (lambda: BlockSparsifier(-2), "at least 1"),
    (lambda: BlockSparsifier(4, 6), "multiple"),
    (lambda: BlockSparsifier(4, 0), "num_blocks"),
    (lambda: BlockSparsifier(4, -4), "num_blocks"),
    (lambda: BlockSparsifier(2.5), "ratio"),  # type: ignore[arg-type]
    (lambda: BlockSparsifier(True), "not True"),
    (lambda: BlockSparsifier("4"), "not '4'"),  # type: ignore[arg-type]
    (lambda: BlockSparsifier(4, num_blocks=True), "num_blocks = True"),
    (lambda: PerTensorBlockSparsifier(0.5), "row_ratio"),
    (lambda: PerTensorBlockSparsifier(2, 0), "column_ratio"),
    (lambda: PerTensorBlockSparsifier(2, 2, math.nan), "tensor_ratio"),
    (lambda: PerTensorBlockSparsifier(True), "not True"),
    (lambda: RandomK(0.9), "random-k"),
    (lambda: RandomK(math.inf), "random-k"),
    (lambda: TopK(0), "top-k"),
    (lambda: TopK("4"), "not '4'"),  # type: ignore[arg-type]
    (lambda: ChunkTopK(0), "kept must be"),
    (lambda: ChunkTopK(5, 4), "lower kept"),
    (lambda: ChunkTopK(1, 4, 3), "2, 4, 8 or 32 bits"),
    (lambda: QSGD(3), "2, 4 or 8"),
    (lambda: QSGD(True), "not True"),
    (lambda: QSGD(4, 0), "bucket_size"),
    (lambda: QSGD(4, bucket_size=True), "not True"),
    (lambda: QuantisedBlocks(2), "1, 4 or 8"),
    (lambda: QuantisedBlocks(8, 12), "multiple of 8"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_compressors_out_of_range(make: Callable[[], Compressor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("compressor", [BlockSparsifier(11), BlockSparsifier(1, 11), RandomK(10.5), TopK(11)], ids=str)
def test_a_model_too_small_for_the_ratio(compressor: Compressor) -> None:
    def layout(numel: int) -> Layout:
        return Layout((Window(0, (numel,), (1,)),))

    with pytest.raises(ValueError, match="10"):
        compressor.check(layout(10))
    compressor.check(layout(11))


# Methods.


def cases() -> Iterator[tuple[str, dict[str, Any], str]]:
    """A method, what is given to it in place of what fits, and the words."""
    for key in ("sync_interval", "num_fragments"):
        yield "diloco", {key: 0}, f"^diloco: {key} must be an integer from 1 up, not 0"
    yield "diloco", {"sync_interval": 5, "num_fragments": 2}, "5 must be a multiple of num_fragments = 2"
    yield "diloco", {"sync_interval": 52, "num_fragments": 52}, "52 is more than the model's 51 parameters; lower it"
    for name in ("diloco", "sparse_loco", "noloco"):
        for wrong in (0, -1.0, math.inf, math.nan, True):
            yield name, {"outer_lr": wrong}, f"^{name}: outer_lr must be a number above 0, not {wrong}"
    for wrong in (1.0, -0.1, math.nan, True):
        yield "noloco", {"outer_momentum": wrong}, r"^noloco: outer_momentum must lie in \[0, 1\)"
    yield "sparse_loco", {"error_decay": 1.1}, r"error_decay must lie in \[0, 1\]"
    yield "streaming_diloco", {"delay": 1}, "delay must be an integer from 0 up and below sync_interval"
    yield "streaming_diloco", {"bits": 2}, "bits must be one of 4, 8, 32, not 2"
    yield "streaming_diloco", {"merge": -0.1}, r"merge must lie in \[0, 1\]"
    for wrong in (-0.1, math.inf, math.nan, True, "0.1"):
        yield "qsr", {"alpha": wrong}, "qsr: alpha must be a number from 0 up"
    yield "choco_sgd", {"topology": "one_peer"}, "choco_sgd: .* needs the same neighbours in each step, .* one_peer"
    yield "dpsgd", {"order": "adapt"}, "dpsgd: order must be one of combine_while_adapt, adapt_then_combine"
    for name in ("dpsgd", "choco_sgd", "deep_squeeze"):
        yield name, {"topology": "torus"}, f"^{name}: unknown topology 'torus'"
    for name in ("choco_sgd", "deep_squeeze"):
        for wrong in (0, 1.5, math.nan, True, "1"):
            yield name, {"gamma": wrong}, f"{name}: gamma must be a number above 0 and up to 1, not "
    for name in ("cser_released", "mcser_released"):
        for key in ("gradient_compressor", "error_compressor"):
            yield name, {key: TopK(10)}, "all workers share"
    for name in JOINT:
        if kinds_taken(name) and "released" not in name:
            key = next(key for key, (kind, _) in settings(algorithms()[name]).items() if kind is Compressor)
            yield name, {key: TopK(5), "communication_dtype": torch.float16}, "format of their own"
    for name in NAMES:
        if name not in TAKING_ADAMW:
            yield name, ADAMW, f"^{name}: local_step = 'adamw' cannot be, since .*; leave local_step out$"
    for plain in ("cser", "cser_released"):
        yield f"m{plain}", {"momentum": 0.0}, f"^m{plain}: the momentum must not be 0; without .* is {plain}$"
    yield "sgd", ADAMW | {"local_step": "adam"}, "sgd: local_step must be one of sgd, adamw, muon, not 'adam'"
    yield "sgd", ADAMW | {"momentum": 0.9}, "momentum belongs to local_step = 'sgd', and local_step is 'adamw'; leave"
    yield "sgd", ADAMW | {"local_step": "sgd"}, "betas belongs to local_step = 'adamw', and local_step is 'sgd'"
    yield "sgd", ADAMW | {"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), not \(0.9, 1.0\)"
    yield "sgd", ADAMW | {"betas": 0.9}, "group 0: betas must be two numbers, not 0.9"
    yield "sgd", ADAMW | {"betas": (0.9, True)}, "group 0: betas must be a plain number, not True"
    yield "sgd", ADAMW | {"eps": 0}, "eps must be a number above 0, not 0"
    yield "sgd", ADAMW | {"eps": -1e-8}, "eps must be a number above 0"
    yield "sgd", ADAMW | {"lr": math.nan}, "learning rate"
    yield "local_sgd", {"first_moment_interval": 3}, "first_moment_interval is for local_step = 'adamw'"
    short = {"second_moment_interval": 3, "communication_dtype": torch.float16}
    yield "local_sgd", ADAMW | short, "local_sgd: second_moment_interval is for local_step = 'adamw'"
    yield "ef_sgd", {"error_feedback_on": "both"}, "error_feedback_on must be one of updates, gradients, not 'both'"


@pytest.mark.parametrize(("name", "given", "words"), cases())
def test_settings_that_cannot_be(name: str, given: dict[str, Any], words: str) -> None:
    own = own_settings(name)
    common = {key: value for key, value in given.items() if key not in settings(algorithms()[name])}
    own |= {key: value for key, value in given.items() if key not in common}
    with pytest.raises(ValueError, match=words):
        make_optimizer(name, make_model(), own, **common)


@pytest.mark.parametrize("name", NAMES)
def test_any_setting_of_the_wrong_kind_and_a_ratio_that_is_no_integer_from_1_up(name: str) -> None:
    for key, value in own_settings(name).items():
        wrong: list[Any] = [*[0] * (value != 0), -1, 1.5, True] if type(value) is int else []
        wrong = ["block", None, TopK(1000), BlockSparsifier(1000)] if isinstance(value, Compressor) else wrong
        for bad in wrong:
            with pytest.raises(ValueError, match=key):
                make_optimizer(name, make_model(), own_settings(name) | {key: bad})
    for ratio in (0, -1, 1.5, True, "256", None):
        with pytest.raises(ValueError, match=f"{name}: ratio must be an integer from 1 up"):
            algorithms()[name].at_ratio(ratio)


def test_a_method_with_momentum_in_its_name_has_some() -> None:
    for name, momentum in (("mcser", 0.9), ("mcser_released", 0.9), ("cser", 0.0), ("cser_released", 0.0)):
        optimizer = algorithms()[name](make_model().parameters(), lr=0.1, **own_settings(name))
        assert optimizer.param_groups[0]["momentum"] == momentum


GROUPS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"lr": -1.0}, "learning rate"),
    ({}, {"lr": math.nan}, "learning rate"),
    ({}, {"momentum": 1.5}, "momentum"),
    ({}, {"weight_decay": -1.0}, "weight decay"),
    ({}, {"lr": True}, "lr"),
    ({}, {"lr": torch.tensor(0.1)}, "lr must be a plain number"),
    ({}, {"nesterov": False}, "nesterov = False"),
    ({}, {"maximize": True}, "maximize = True"),
    ({}, {"foreach": True}, "foreach = True"),
    ({}, {"differentiable": True}, "differentiable = True"),
    ({}, {"dampening": 0.5}, "dampening = 0.5"),
    ({}, {"fused": False}, "fused = False"),
    ({}, {"muon": True}, "group 0: muon is True or False, for local_step = 'muon' alone"),
    (MUON, {"muon": 1}, "group 0: muon is True or False, for local_step = 'muon' alone"),
    (ADAMW, {"momentum": 0.9}, "group 0: momentum belongs to local_step = 'sgd'"),
    (ADAMW, {"amsgrad": True}, "amsgrad"),
    (ADAMW, {"betas": (1.5, 0.9)}, "betas must lie in"),
]


@pytest.mark.parametrize(("common", "group", "words"), GROUPS, ids=str)
def test_what_a_group_says_is_done_or_refused_then_and_once_a_schedule_has_put_it_out_of_range(
    common: Any, group: dict[str, Any], words: str
) -> None:
    numbers = {key: value for key, value in ({"lr": 0.1} | common).items() if value is not None}
    for name in NAMES if not common else ["sgd", "diloco"]:
        momentum = {} if common else {"momentum": 0.9}
        make: Callable[[Any], DistributedOptimizer] = partial(
            algorithms()[name], **own_settings(name), **numbers, **momentum
        )
        with pytest.raises(ValueError, match=words):
            make([{"params": make_model().parameters(), **group}])
        if words in ("learning rate", "momentum", "weight decay", "betas must lie in"):
            optimizer = make(make_model().parameters())
            optimizer.param_groups[0].update(group)
            with pytest.raises(ValueError, match=words):
                optimizer.step()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sync_interval": 2}, r"^DiLoCo needs lr by name"),
        ({"lr": 0.1}, r"^DiLoCo needs sync_interval by name"),
        ({"lr": 0.1, "sync_intervall": 2}, r"^DiLoCo has no argument sync_intervall; did you mean sync_interval\?$"),
        ({"lr": 0.1, "sync_interval": 2, "nesterov": True}, r"^DiLoCo has no argument nesterov; it takes lr, sync_int"),
    ],
)
def test_arguments_that_are_missing_or_unknown_are_named_by_the_methods_name(given: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        DiLoCo(make_model().parameters(), **given)
    with pytest.raises(TypeError, match="explicit_error"):
        algorithms()["cser_released"](make_model().parameters(), lr=0.1, **own_settings("cser"))


@pytest.mark.filterwarnings("ignore:optimizer contains")
def test_what_cannot_be_parameters() -> None:
    weight, half = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    shared = nn.Parameter(weight.detach())
    imaginary = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    for tensors, words in (
        ([], "every group is empty"),
        ([imaginary], "complex64"),
        ([weight, shared], "parameters 0 and 1 share memory"),
        ([weight, weight], "parameters 0 and 1 are one and the same Parameter; give each once"),
        ([weight, nn.Parameter(torch.zeros(2, device="meta"))], "parameter 1 is on meta, parameter 0 on cpu"),
    ):
        with pytest.raises(ValueError, match=words):
            SGD([{"params": tensors}], lr=0.1)
    with pytest.raises(ValueError, match=r"ddp: parameters must have one type, and here are torch.float32 besides"):
        DDP(make_model(SHORT).parameters(), lr=0.1)
    two_types = [nn.Parameter(torch.zeros(64)), half]
    with pytest.raises(ValueError, match=r"num_fragments = 8 is more .* \(of the parameters of type torch.bfloat16, "):
        DiLoCo(two_types, lr=1.0, sync_interval=8, num_fragments=8)


# Topologies.


def test_topologies_that_there_are_not() -> None:
    for n in (3, 5, 6, 7, 12):
        with pytest.raises(ValueError, match=f"one_peer needs a power of two of workers, not {n}"):
            Topology("one_peer").rounds(n)
    with pytest.raises(ValueError, match="unknown topology 'torus'; it must be one of ring, exponential, one_peer, "):
        Topology("torus")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="some_method: unknown topology 3"):
        as_topology("some_method", 3)  # type: ignore[arg-type]
