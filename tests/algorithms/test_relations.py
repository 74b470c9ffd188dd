"""Which setting of which method is which other method: each line of the table in docs/algorithms.md is held here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import Collectives, Compressor, Identity, Zero, algorithms
from algorithms.cser import CSER
from tests.algorithms import transcription
from tests.algorithms.following import NUM_STEPS, assert_follows, compress_of, make_problem, mask_of
from tests.algorithms.problems import (
    COMPRESSORS,
    MOMENTUM,
    NAMES,
    SHARED,
    batch_loss,
    flat_of,
    make_model,
    make_optimizer,
    named_compressors,
    own_settings,
    plain_sgd,
    switches,
    trained,
    workers,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "algorithms.md"
HEADING = "## Which setting of which method is which other method"
BIT, ROUNDING = "to the bit", "up to rounding"
SOME = ["block", "random_k", "top_k"]
FIXED = ["top_k", "sign"]
"""Compressors that draw nothing."""
BLOCKS = [("blocks", "block"), ("per_tensor", "random_k")]


@dataclass(frozen=True)
class Relation:
    """A line of the table, and what holds it."""

    method: str
    setting: str
    other: str
    up_to: str
    checks: tuple[Callable[[], None], ...]


def table_lines(up_to: str) -> list[str]:
    """The lines of the table, in which methods of one setting and one other method stand together."""
    methods: dict[tuple[str, str], list[str]] = {}
    for each in RELATIONS:
        if each.up_to == up_to:
            methods.setdefault((each.setting, each.other), []).append(f"`{each.method}`")
    return [f"| {', '.join(names)} | {setting} | {other} |" for (setting, other), names in methods.items()]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


# What holds for every method, as it says itself.

NESTEROV = "`torch.optim.SGD`, with Nesterov's momentum, on the mean gradient"
HEAVY_BALL = "`torch.optim.SGD` with `dampening` = `momentum`, without Nesterov's, on the mean gradient"


def is_sgd(name: str, num_workers: int) -> Callable[[], None]:
    def check() -> None:
        expected = plain_sgd(name, num_workers, 15)
        forms = [{}, {"explicit_error": True}] if "explicit_error" in switches(name) else [{}]
        for chosen in forms:
            for parameters in trained(name, own_settings(name, **chosen), num_workers, 15):
                assert_close(parameters, expected)

    return check


def without_compression(name: str) -> Relation:
    stated = algorithms()[name].no_compression
    if stated is None:
        return Relation(name, "one worker", "`sgd`", ROUNDING, (is_sgd(name, 1),))
    words = ", ".join(f"{key} = {value!r}" for key, value in stated.items() if not isinstance(value, bool))
    words = (f"`{words}`" if words else "as it is") + ", all switches off" * bool(switches(name).keys() & stated.keys())
    other = NESTEROV if name == "sgd" else "`sgd`" if algorithms()[name].nesterov else HEAVY_BALL
    return Relation(name, words, other, ROUNDING, (is_sgd(name, 1), is_sgd(name, 4)))


# What holds for one method and another.


def csers(gradient: Compressor, error: Compressor, interval: int) -> dict[str, Any]:
    return {"gradient_compressor": gradient, "error_compressor": error, "reset_interval": interval}


def released(own: dict[str, Any]) -> dict[str, Any]:
    return own | dict.fromkeys(switches("cser_released"), False)


def error_of(key: str, interval: int) -> dict[str, Any]:
    return {"error_compressor": COMPRESSORS[key], "reset_interval": interval}


def outer(interval: int, num_fragments: int = 1) -> dict[str, Any]:
    return {"sync_interval": interval, "num_fragments": num_fragments, "outer_lr": 1.0, "outer_momentum": 0.0}


def one_average_at_the_end() -> None:
    mean = torch.stack(trained("alone", {}, 3, 12)).mean(0)
    for parameters in trained("local_sgd", {"sync_interval": 12}, 3, 12):
        assert_close(parameters, mean)


def accumulated_batches_are_one_batch() -> None:
    """Three steps' gradients of all workers, at one place, against one step on the mean of their losses."""

    def work(collectives: Collectives) -> Tensor:
        model = make_model()
        optimizer = make_optimizer("sgd", model, {}, collectives)
        for first in (1, 4, 7):
            optimizer.zero_grad()
            losses = [batch_loss(model, step, collectives.rank) for step in range(first, first + 3)]
            torch.stack(losses).mean().backward()
            optimizer.step()
        return flat_of(optimizer)

    accumulated = trained("sgd_accumulate", {"accumulation_steps": 3}, 2, 9)
    for parameters, expected in zip(accumulated, workers(work, 2), strict=True):
        assert_close(parameters, expected)


def is_sparta() -> None:
    expected = transcription.sparta(make_problem(), NUM_STEPS, mask_of(SHARED["random_k"]))
    assert_follows("cser_pl", {"error_compressor": SHARED["random_k"], "reset_interval": 1}, expected)


def is_ef21(key: str) -> Callable[[], None]:
    def check() -> None:
        expected = transcription.ef21(make_problem(momentum=0.0), NUM_STEPS, compress_of(key))
        assert_follows("ef21_sgdm", {"compressor": COMPRESSORS[key]}, expected, momentum=0.0)

    return check


def same(
    method: str,
    setting: str,
    other: str,
    up_to: str,
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
    words: str = "",
    num_workers: int = 3,
    momentum: float = MOMENTUM,
) -> Relation:
    """Two methods, with each pair of settings, train the same parameters on each worker."""

    def check(own: dict[str, Any], others: dict[str, Any]) -> None:
        dtype = torch.float32 if up_to == BIT else torch.float64
        first = trained(method, own, num_workers, 12, dtype, momentum=momentum, seed=5)
        second = trained(other, others, num_workers, 12, dtype, momentum=momentum, seed=5)
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b) if up_to == BIT else torch.allclose(a, b, rtol=0, atol=1e-12)

    return Relation(method, setting, f"`{other}`{words}", up_to, tuple(partial(check, *pair) for pair in pairs))


def one_worker_of_the_cser_family(name: str) -> Relation:
    keys, intervals = named_compressors(name, COMPRESSORS), (1, 3)
    pairs = [(own_settings(name, [COMPRESSORS[key]], each), {}) for key in keys for each in intervals]
    return same(name, "one worker" + ", all switches off" * ("released" in name), "sgd", ROUNDING, pairs, num_workers=1)


def mixed(method: str, setting: str, order: str, forms: list[dict[str, Any]], kinds: list[str]) -> Relation:
    """A method of neighbours, with everything sent, is decentralised SGD: on four workers, of whom not all are such."""
    sent = {"compressor": Identity(), "gamma": 1.0}
    pairs = [
        ({**sent, **form, "topology": kind}, {"topology": kind, "order": order}) for form in forms for kind in kinds
    ]
    words = f" with the same `topology`, `order = '{order}'`"
    return same(method, setting, "dpsgd", ROUNDING, pairs, words, num_workers=4)


EVERYTHING = "`compressor = Identity(), gamma = 1`"
TOP_K = COMPRESSORS["top_k"]
BETWEEN: list[Relation] = [
    Relation(
        "sgd_accumulate",
        "batches of b",
        "`sgd` with batches of b times `accumulation_steps`",
        ROUNDING,
        (accumulated_batches_are_one_batch,),
    ),
    same("local_sgd", "`sync_interval` beyond the run's end", "alone", BIT, [({"sync_interval": 13}, {})]),
    Relation(
        "local_sgd",
        "`sync_interval` = the run's length",
        "one average of the models of `alone`, at the end",
        ROUNDING,
        (one_average_at_the_end,),
    ),
    same(
        "qsparse_local_sgd",
        "`compressor = Identity()`",
        "local_sgd",
        ROUNDING,
        [({"compressor": Identity(), "sync_interval": each}, {"sync_interval": each}) for each in (1, 4)],
    ),
    same(
        "qsparse_local_sgd",
        "`sync_interval = 1`",
        "ef_sgd",
        ROUNDING,
        [({"compressor": COMPRESSORS[key], "sync_interval": 1}, {"compressor": COMPRESSORS[key]}) for key in FIXED],
        words=", but for what compressors draw",
    ),
    same(
        "qsr",
        "`alpha = 0`",
        "local_sgd",
        BIT,
        [({"sync_interval": k, "alpha": 0.0}, {"sync_interval": k}) for k in (1, 4)],
    ),
    same(
        "sparse_loco",
        "`outer_lr = 1, error_decay = 1`",
        "qsparse_local_sgd",
        BIT,
        [
            (own | {"outer_lr": 1.0, "error_decay": 1.0}, own)
            for own in ({"compressor": COMPRESSORS[key], "sync_interval": 4} for key in (*SOME, "chunks"))
        ],
    ),
    same(
        "sparse_loco",
        "`compressor = Identity(), outer_lr = 1, error_decay = 1`",
        "local_sgd",
        ROUNDING,
        [({"compressor": Identity(), "sync_interval": 4, "error_decay": 1.0}, {"sync_interval": 4})],
    ),
    same(
        "noloco",
        "`group_size` = all workers, `outer_momentum = 0`",
        "diloco",
        ROUNDING,
        [
            (meet | {"group_size": size, "outer_momentum": 0.0}, meet | {"outer_momentum": 0.0})
            for meet, size in (({"sync_interval": 4, "outer_lr": 0.7}, 3), ({"sync_interval": 1, "outer_lr": 1.0}, 5))
        ],
        words=" with the same `outer_lr`, `outer_momentum = 0`",
    ),
    same(
        "cser",
        "`gradient_compressor = Zero()`",
        "cser_pl",
        BIT,
        [(csers(Zero(), COMPRESSORS[key], 4), error_of(key, 4)) for key in SOME],
    ),
    same(
        "mcser",
        "any",
        "cser",
        BIT,
        [(csers(TOP_K, COMPRESSORS[key], 4), csers(TOP_K, COMPRESSORS[key], 4)) for key in SOME],
        words=" with the same `momentum`",
    ),
    same(
        "cser_released",
        "all switches off",
        "cser",
        BIT,
        [(released(csers(SHARED[c2], SHARED[c1], 3)), csers(SHARED[c2], SHARED[c1], 3)) for c2, c1 in BLOCKS],
    ),
    same(
        "cser_released",
        "`gradient_compressor = Zero(), decay_in_momentum_only = False`",
        "cser_pl",
        BIT,
        [(csers(Zero(), SHARED["block"], 3) | {"decay_in_momentum_only": False}, error_of("block", 3))],
    ),
    same(
        "mcser_released",
        "any",
        "cser_released",
        BIT,
        [(csers(SHARED[c2], SHARED[c1], 3), csers(SHARED[c2], SHARED[c1], 3)) for c2, c1 in BLOCKS],
        words=" with the same `momentum`",
    ),
    same(
        "cser_pl",
        "`reset_interval = 1`",
        "csea",
        BIT,
        [(error_of(key, 1), {"error_compressor": COMPRESSORS[key]}) for key in SOME],
    ),
    same(
        "cser_pl",
        "`error_compressor = Identity()`",
        "local_sgd",
        BIT,
        [(error_of("identity", each), {"sync_interval": each}) for each in (1, 4)],
    ),
    same("cser_pl", "`error_compressor = Zero()`", "alone", BIT, [(error_of("zero", 2), {})]),
    Relation(
        "cser_pl",
        "`error_compressor = RandomK(ratio=1/p), reset_interval = 1`",
        "[SPARTA](#sparta) of share p",
        ROUNDING,
        (is_sparta,),
    ),
    same(
        "diloco",
        "`outer_lr = 1, outer_momentum = 0, num_fragments = 1`",
        "local_sgd",
        BIT,
        [(outer(each), {"sync_interval": each}) for each in (1, 3)],
    ),
    same(
        "diloco",
        "`outer_lr = 1, outer_momentum = 0`, one worker",
        "sgd",
        BIT,
        [(outer(*each), {}) for each in ((1, 1), (4, 1), (6, 3))],
        words=", the inner optimiser",
        num_workers=1,
    ),
    same(
        "diloco",
        "`sync_interval` beyond the run's end, `num_fragments = 1`",
        "alone",
        BIT,
        [({"sync_interval": 13}, {})],
    ),
    same(
        "streaming_diloco",
        "`delay = 0, merge = 0`",
        "diloco",
        ROUNDING,
        [
            ({"delay": 0, "merge": 0.0, **fragments}, fragments)
            for fragments in ({"sync_interval": 6, "num_fragments": 3},)
        ],
        words=" with the same other settings",
    ),
    same(
        "streaming_diloco",
        "`merge = 1`",
        "alone",
        BIT,
        [({"sync_interval": 4, "num_fragments": 2, "delay": 1, "merge": 1.0}, {})],
    ),
    Relation("ef21_sgdm", "`momentum = 0`", "EF21 on stochastic gradients", ROUNDING, tuple(map(is_ef21, SOME))),
    same(
        "ef21_sgdm",
        "`compressor = Identity(), momentum = 0`",
        "sgd",
        ROUNDING,
        [({"compressor": Identity()}, {})],
        words=" with `momentum = 0`",
        momentum=0.0,
    ),
    mixed(
        "choco_sgd",
        EVERYTHING,
        "adapt_then_combine",
        [{}, {"estimates_from_zero": True}],
        ["ring", "exponential", "complete"],
    ),
    mixed(
        "choco_sgd",
        "`compressor = Identity(), gamma = 1, released_order = True`",
        "combine_while_adapt",
        [{"released_order": True}],
        ["ring", "exponential"],
    ),
    mixed("deep_squeeze", EVERYTHING, "adapt_then_combine", [{}], ["ring", "one_peer"]),
    *(one_worker_of_the_cser_family(name) for name in NAMES if issubclass(algorithms()[name], CSER)),
]
RELATIONS = [*map(without_compression, NAMES), *BETWEEN]
CHECKS = [
    pytest.param(check, id=f"{relation.method}, {relation.setting}: {number}")
    for relation in RELATIONS
    for number, check in enumerate(relation.checks)
]


@pytest.mark.parametrize("check", CHECKS)
def test_one_method_is_another(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("up_to", [BIT, ROUNDING])
def test_the_document_has_these_lines_and_no_others(up_to: str) -> None:
    section = DOCUMENT.read_text().split(HEADING)[1].split("\n## ")[0]
    table = section.split(f"\n{up_to.capitalize()}:\n\n")[1].split("\n\n")[0]
    written = [line for line in table.splitlines() if line.startswith("| `")]
    expected = table_lines(up_to)
    missing, extra = (
        [line for line in expected if line not in written],
        [line for line in written if line not in expected],
    )
    assert not missing and not extra, "\n".join([f"{DOCUMENT} lacks", *missing, "and should not have", *extra])


def test_every_method_is_related_to_another() -> None:
    for name in NAMES:
        assert any(f"`{name}`" in f"`{each.method}` {each.other}" for each in RELATIONS), name
