"""Each algorithm against its definition, the NumPy transcription; and the two forms of CSER."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from cser_bench.algorithms.core.compressors import Draw
from tests.algorithms import released, transcription
from tests.algorithms.following import (
    NUM_STEPS,
    NUM_WORKERS,
    SEED,
    SHAPES,
    assert_follows,
    compress_of,
    first_q,
    make_problem,
    mask_of,
    rises_and_falls,
)
from tests.algorithms.problems import ADAMW, COMPRESSORS, LR, MUON, NAMES, SHARED
from tests.algorithms.transcription import Array, Problem, State

ORDERS = ("combine_while_adapt", "adapt_then_combine")
WEIGHTS: dict[str, Callable[[int], Array]] = {
    kind: partial(weights, NUM_WORKERS) for kind, weights in transcription.WEIGHTS.items()
}
"""W of each step, by topology."""


# C2, C1, H, momentum
CSER_CASES = [
    ("blocks", "block", 5, 0.9),
    ("block", "blocks", 5, 0.0),
    ("block", "block", 1, 0.9),
    ("per_tensor", "per_tensor", 3, 0.9),
    ("random_k", "block", 4, 0.9),
    ("identity", "random_k", 4, 0.9),
    ("zero", "random_k", 1, 0.9),
    ("block", "identity", 6, 0.9),
    ("block", "zero", 6, 0.9),
    ("top_k", "sign", 4, 0.9),
    ("sign", "top_k", 4, 0.0),
    ("qsgd", "block", 3, 0.9),
    ("block", "qsgd", 3, 0.9),
    ("top_k", "top_k", 1, 0.9),
    ("int4", "int4", 3, 0.9),
]
RELEASED_SWITCHES = ("average_parameters", "skip_gradient_at_reset", "decay_in_momentum_only")
# Topology, W of each step, compressor, gamma, and whether in the order of the release of CHOCO-SGD.
CHOCO_CASES = [
    *(("ring", key, 0.3, False) for key in COMPRESSORS),
    *((kind, "top_k", 0.2, False) for kind in WEIGHTS if kind != "one_peer"),
    *(("ring", key, 0.2, True) for key in ("blocks", "top_k", "sign")),
]
# H, F, tau, eta, mu, alpha; DiLoCo has no delay tau and no merge alpha.
DILOCO_CASES = [
    (1, 1, 0, 0.7, 0.9),
    (7, 1, 0, 0.4, 0.0),
    (6, 3, 0, 0.7, 0.9),
    (4, 4, 0, 1.0, 0.5),
    (8, 2, 0, 1.3, 0.0),
]
STREAMING_CASES = [
    (6, 3, 1, 0.7, 0.9, 0.5),
    (6, 3, 5, 0.7, 0.9, 0.5),
    (5, 1, 2, 1.0, 0.0, 0.0),
    (4, 4, 0, 0.4, 0.5, 0.25),
]

Follow = Callable[[Problem], Iterator[State]]


def by(definition: Callable[..., Iterator[State]], *given: Any, **more: Any) -> Follow:
    return lambda problem: definition(problem, *given, **more)


def forms(*keys: str) -> list[bool]:
    """Values of explicit_error worth a test: it changes nothing where the error must be held
    anyway."""
    return [False, True] if all(key in SHARED for key in keys) else [False]


def csers(c2: str, c1: str, interval: int) -> dict[str, Any]:
    compressors = {"gradient_compressor": COMPRESSORS[c2], "error_compressor": COMPRESSORS[c1]}
    return {**compressors, "reset_interval": interval}


def cases() -> Iterator[tuple[str, dict[str, Any], float | dict[str, Any], Follow]]:
    """A method, its settings, the momentum or the local step, and the transcription that it must
    follow with these."""
    t = transcription
    for momentum in (0.0, 0.9):
        yield "sgd", {}, momentum, by(t.sgd)
        yield "alone", {}, momentum, by(t.local_sgd, NUM_STEPS + 1)
    for interval in (1, 7):
        yield (
            "sgd_accumulate",
            {"accumulation_steps": interval},
            0.9,
            by(t.sgd_accumulate, interval),
        )
        yield "local_sgd", {"sync_interval": interval}, 0.9, by(t.local_sgd, interval)
    for key, compressor in COMPRESSORS.items():
        own, c = {"compressor": compressor}, compress_of(key)
        yield "ef_sgd", own, 0.9, by(t.ef_sgd, c)
        yield "ef_sgd", own | {"drop_rest": True}, 0.9, by(t.ef_sgd, c, drop_rest=True)
        yield "ef_sgd", own | {"decay_apart": True}, 0.9, by(t.ef_sgd, c, decay_apart=True)
        yield "qsparse_local_sgd", own | {"sync_interval": 4}, 0.9, by(t.qsparse_local_sgd, c, 4)
        yield "ef21_sgdm", own, 0.9, by(t.ef21_sgdm, c)
        yield "ef21_sgdm", own, 0.0, by(t.ef21, c)
        for held in forms(key):
            own = {"error_compressor": compressor, "explicit_error": held}
            yield "csea", own, 0.9, by(t.cser, t.nothing, c, 1)
            yield "cser_pl", own | {"reset_interval": 6}, 0.9, by(t.cser, t.nothing, c, 6)
        outer = {"sync_interval": 4, "outer_lr": 0.8, "error_decay": 0.9}
        yield (
            "sparse_loco",
            {"compressor": compressor, **outer},
            0.9,
            by(t.qsparse_local_sgd, c, 4, outer_lr=0.8, error_decay=0.9),
        )
    for key in ("blocks", "top_k"):
        own = {
            "compressor": COMPRESSORS[key],
            "sync_interval": 4,
            "outer_lr": 0.5**2,
            "error_decay": 0.9,
        }
        yield (
            "sparse_loco",
            own,
            0.9,
            by(t.sparse_loco_with_alpha_twice, compress_of(key), 4, 0.5, 0.9),
        )
    sparta = {"error_compressor": COMPRESSORS["random_k"], "reset_interval": 1}
    yield "cser_pl", sparta, 0.9, by(t.sparta, mask_of(SHARED["random_k"]))
    for base, alpha in ((1, 0.0), (4, 0.15), (2, 0.25)):
        yield (
            "qsr",
            {"sync_interval": base, "alpha": alpha},
            0.9,
            by(t.qsr, base, alpha, lambda step: LR),
        )
    yield (
        "qsr",
        {"sync_interval": 2, "alpha": 0.15},
        {"rate": rises_and_falls},
        by(t.qsr, 2, 0.15, rises_and_falls),
    )
    for alpha in (0.15, 1e200):
        own = {"sync_interval": 2, "alpha": alpha, "total_steps": NUM_STEPS}
        yield (
            "qsr",
            own,
            {"rate": rises_and_falls},
            by(t.qsr, 2, min(alpha, 1e9), rises_and_falls, NUM_STEPS),
        )
    for c2, c1, interval, momentum in CSER_CASES:
        definition = by(t.cser, compress_of(c2), compress_of(c1), interval)
        for held in forms(c2, c1):
            yield "cser", csers(c2, c1, interval) | {"explicit_error": held}, momentum, definition
        if momentum:
            yield "mcser", csers(c2, c1, interval), momentum, definition
    for name, c2 in (
        ("cser_released", "blocks"),
        ("cser_released", "per_tensor"),
        ("mcser_released", "blocks"),
    ):
        masks = mask_of(SHARED[c2]), mask_of(SHARED["block"])
        for chosen in itertools.product((False, True), repeat=3):
            switched = dict(zip(RELEASED_SWITCHES, chosen, strict=True))
            yield (
                name,
                csers(c2, "block", 3) | switched,
                0.9,
                by(t.cser_released, *masks, 3, *chosen),
            )
        # What need not be given is as its authors published it.
        yield name, csers(c2, "block", 3), 0.9, by(released.cser, *masks, 3)
    yield "powersgd", {"rank": 1}, 0.9, by(t.powersgd, SHAPES, 1, first_q(SEED))
    keys = ("sync_interval", "num_fragments", "delay", "outer_lr", "outer_momentum", "merge")
    for case in DILOCO_CASES:
        own = dict(zip(keys, case, strict=False))
        yield (
            "diloco",
            {key: own[key] for key in own if key != "delay"},
            0.9,
            by(t.streaming_diloco, *case, 0.0),
        )
    for more in ({}, {"send_gradients": True}):
        yield (
            "diloco",
            {"sync_interval": 5, **more},
            0.9,
            by(t.streaming_diloco, 5, 1, 0, 0.7, 0.9, 0.0, **more),
        )
    for case in STREAMING_CASES:
        yield (
            "streaming_diloco",
            dict(zip(keys, case, strict=True)),
            0.9,
            by(t.streaming_diloco, *case),
        )
        for bits in (4, 8):
            compress = t.in_two_stages(t.quantised_blocks(bits, 256), 256)
            own = {**dict(zip(keys, case, strict=True)), "bits": bits}
            yield "streaming_diloco", own, 0.9, by(t.streaming_diloco, *case, compress=compress)
    yield from neighbours()
    yield from other_local_steps()
    yield from released_forms()


def released_forms() -> Iterator[tuple[str, dict[str, Any], float, Follow]]:
    """All switches on, beside what their authors ran."""
    for key, momentum in (
        ("per_tensor", 0.9),
        ("per_tensor", 0.0),
        ("blocks", 0.9),
        ("identity", 0.9),
        ("zero", 0.9),
    ):
        compressor, block = SHARED[key], mask_of(SHARED[key])
        yield (
            "ef_sgd",
            {"compressor": compressor, "decay_apart": True},
            momentum,
            by(released.ef_sgd, block),
        )
        for interval, keep_master in ((1, False), (4, False), (4, True)):
            switched = {"keep_master": keep_master, "decay_in_momentum_only": True}
            own = {"compressor": compressor, "sync_interval": interval, **switched}
            yield (
                "qsparse_local_sgd",
                own,
                momentum,
                by(released.qsparse, block, interval, keep_master),
            )
        yield "cser_released", csers("zero", key, 4), momentum, by(released.cser_pl, block, 4)
        csea = by(released.cser, mask_of(SHARED["zero"]), block, 1)
        yield "cser_released", csers("zero", key, 1), momentum, csea
        both = by(released.cser, block, mask_of(SHARED["block"]), 3)
        yield "cser_released", csers(key, "block", 3), momentum, both
    # With interval 1 a master copy's errors grow without end if momentum adds to them, and rounding
    # errors with them.
    own = {
        "compressor": SHARED["blocks"],
        "sync_interval": 1,
        "keep_master": True,
        "decay_in_momentum_only": True,
    }
    yield "qsparse_local_sgd", own, 0.0, by(released.qsparse, mask_of(SHARED["blocks"]), 1, True)


def other_local_steps() -> Iterator[tuple[str, dict[str, Any], dict[str, Any], Follow]]:
    t, outer = (
        transcription,
        {"sync_interval": 6, "num_fragments": 3, "outer_lr": 0.7, "outer_momentum": 0.9},
    )
    for c2, c1, held in (
        ("block", "blocks", False),
        ("blocks", "block", True),
        ("top_k", "random_k", True),
    ):
        definition = by(t.cser, compress_of(c2), compress_of(c1), 3)
        yield "mcser", csers(c2, c1, 3) | {"explicit_error": held}, ADAMW, definition
    for key in ("blocks", "random_k", "top_k"):
        own = {"compressor": COMPRESSORS[key]}
        yield "ef_sgd", own, ADAMW, by(t.ef_sgd, compress_of(key))
        for common in ({}, ADAMW):
            own = own | {"error_feedback_on": "gradients"}
            yield "ef_sgd", own, common, by(t.ef_on_gradients, compress_of(key))
    # All averaged in each step, Local Adam, DES-LOC as it is recommended, and such as never meet.
    for periods in ((1, 1, 1), (4, 4, 4), (2, 6, 12), (3, 2, 5)):
        keys = ("sync_interval", "first_moment_interval", "second_moment_interval")
        yield (
            "local_sgd",
            dict(zip(keys, periods, strict=True)),
            ADAMW,
            by(t.local_sgd, periods[0], periods[1:]),
        )
    yield "local_sgd", {"sync_interval": 4}, MUON, by(t.local_sgd, 4)
    yield "diloco", outer, MUON, by(t.streaming_diloco, 6, 3, 0, 0.7, 0.9, 0.0)
    yield "ef_sgd", {"compressor": COMPRESSORS["top_k"]}, MUON, by(t.ef_sgd, compress_of("top_k"))


def meetings(size: int) -> Callable[[int], list[list[int]]]:
    """The groups of the four workers that meet at a step: as many as have a place, in an order that
    is drawn."""

    def groups(step: int) -> list[list[int]]:
        order = np.argsort(Draw(SEED, step, "model").integers(NUM_WORKERS), kind="stable").tolist()
        return [order[first : first + size] for first in range(0, NUM_WORKERS, size)]

    return groups


def neighbours() -> Iterator[tuple[str, dict[str, Any], float, Follow]]:
    t = transcription
    for interval, size, outer_lr, outer_momentum in (
        (1, 2, 0.7, 0.5),
        (5, 2, 0.7, 0.5),
        (3, 3, 1.0, 0.0),
        (4, 4, 0.5, 0.9),
    ):
        own = {
            "sync_interval": interval,
            "group_size": size,
            "outer_lr": outer_lr,
            "outer_momentum": outer_momentum,
        }
        yield "noloco", own, 0.9, by(t.noloco, interval, meetings(size), outer_lr, outer_momentum)
    for order, momentum, kind in itertools.product(ORDERS, (0.0, 0.9), WEIGHTS):
        if momentum or kind == "ring":
            definition = by(t.dpsgd, WEIGHTS[kind], order == "combine_while_adapt")
            yield "dpsgd", {"topology": kind, "order": order}, momentum, definition
    for kind, key, gamma, as_released in CHOCO_CASES:
        own = {
            "topology": kind,
            "compressor": COMPRESSORS[key],
            "gamma": gamma,
            "released_order": as_released,
        }
        yield (
            "choco_sgd",
            own,
            0.9,
            by(t.choco_sgd, WEIGHTS[kind](1), compress_of(key, True), gamma, as_released),
        )
    for kind, key in [
        *(("ring", key) for key in COMPRESSORS),
        *((kind, "qsgd") for kind in WEIGHTS),
    ]:
        own = {"topology": kind, "compressor": COMPRESSORS[key], "gamma": 0.1}
        yield (
            "deep_squeeze",
            own,
            0.9,
            by(t.deep_squeeze, WEIGHTS[kind], compress_of(key, True), 0.1),
        )


CASES = list(cases())


@pytest.mark.parametrize(
    ("name", "own", "local", "definition"),
    CASES,
    ids=[f"{name}-{number}" for number, (name, *_) in enumerate(CASES)],
)
def test_each_method_is_what_its_definition_says(
    name: str, own: Any, local: Any, definition: Follow
) -> None:
    common = local if isinstance(local, dict) else {"momentum": local}
    assert_follows(name, own, definition(make_problem(common)), **common)


def test_every_method_has_a_definition() -> None:
    missing = set(NAMES) - {name for name, *_ in CASES}
    assert not missing, (
        f"{missing}: write the definition down in transcription.py and name it in `cases`"
    )
