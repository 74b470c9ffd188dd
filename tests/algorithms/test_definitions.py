"""Each algorithm against its definition, the NumPy transcription; and the two forms of CSER."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from cser_bench.algorithms import Compressor
from cser_bench.algorithms.core.compressors import Draw
from tests.algorithms import released
from tests.algorithms import transcription as t
from tests.algorithms.cases import Case, by, definitions
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
)
from tests.algorithms.problems import ADAMW, COMPRESSORS, MUON, NAMES, SHARED
from tests.algorithms.transcription import Array

# Without compression.

PLAIN = [
    *(Case("sgd", {}, by(t.sgd), momentum) for momentum in (0.0, 0.9)),
    *(
        Case("alone", {}, by(t.local_sgd, NUM_STEPS + 1), momentum)
        for momentum in (0.0, 0.9)
    ),
    *(
        Case("sgd_accumulate", {"accumulation_steps": h}, by(t.sgd_accumulate, h))
        for h in (1, 7)
    ),
    *(Case("local_sgd", {"sync_interval": h}, by(t.local_sgd, h)) for h in (1, 7)),
]


# Outer steps.

OUTER = (
    "sync_interval",
    "num_fragments",
    "delay",
    "outer_lr",
    "outer_momentum",
    "merge",
)
# H, F, tau, eta, mu; DiLoCo has no delay tau, and no merge alpha, which is 0.
DILOCO_CASES = [
    (1, 1, 0, 0.7, 0.9),
    (7, 1, 0, 0.4, 0.0),
    (6, 3, 0, 0.7, 0.9),
    (4, 4, 0, 1.0, 0.5),
    (8, 2, 0, 1.3, 0.0),
]
# H, F, tau, eta, mu, alpha
STREAMING_CASES = [
    (6, 3, 1, 0.7, 0.9, 0.5),
    (6, 3, 5, 0.7, 0.9, 0.5),
    (5, 1, 2, 1.0, 0.0, 0.0),
    (4, 4, 0, 0.4, 0.5, 0.25),
]
# H, group size, eta, mu
NOLOCO_CASES = [(1, 2, 0.7, 0.5), (5, 2, 0.7, 0.5), (3, 3, 1.0, 0.0), (4, 4, 0.5, 0.9)]


def diloco(values: tuple[Any, ...]) -> Case:
    settings = dict(zip(OUTER, values, strict=False))
    del settings["delay"]
    return Case("diloco", settings, by(t.streaming_diloco, *values, 0.0))


def streaming(values: tuple[Any, ...], bits: int | None) -> Case:
    settings = dict(zip(OUTER, values, strict=True))
    if bits is None:
        return Case("streaming_diloco", settings, by(t.streaming_diloco, *values))
    compress = t.in_two_stages(t.quantised_blocks(bits, 256), 256)
    follow = by(t.streaming_diloco, *values, compress=compress)
    return Case("streaming_diloco", settings | {"bits": bits}, follow)


def meetings(size: int) -> Callable[[int], list[list[int]]]:
    """The groups of the four workers that meet at a step: as many as have a place, in an order that
    is drawn."""

    def groups(step: int) -> list[list[int]]:
        order = np.argsort(
            Draw(SEED, step, "model").integers(NUM_WORKERS), kind="stable"
        ).tolist()
        return [order[first : first + size] for first in range(0, NUM_WORKERS, size)]

    return groups


def noloco(interval: int, size: int, outer_lr: float, outer_momentum: float) -> Case:
    keys = ("sync_interval", "group_size", "outer_lr", "outer_momentum")
    values = (interval, size, outer_lr, outer_momentum)
    follow = by(t.noloco, interval, meetings(size), outer_lr, outer_momentum)
    return Case("noloco", dict(zip(keys, values, strict=True)), follow)


BY_DEFAULT = (5, 1, 0, 0.7, 0.9, 0.0)
OUTER_STEPS = [
    *(diloco(values) for values in DILOCO_CASES),
    Case("diloco", {"sync_interval": 5}, by(t.streaming_diloco, *BY_DEFAULT)),
    Case(
        "diloco",
        {"sync_interval": 5, "send_gradients": True},
        by(t.streaming_diloco, *BY_DEFAULT, send_gradients=True),
    ),
    *(streaming(values, bits) for values in STREAMING_CASES for bits in (None, 4, 8)),
    *(noloco(*values) for values in NOLOCO_CASES),
]


# Error feedback, by each compressor.


def forms(*keys: str) -> list[bool]:
    """Values of explicit_error worth a test: it changes nothing where the error must be held
    anyway."""
    return [False, True] if all(key in SHARED for key in keys) else [False]


def with_compressor(key: str) -> list[Case]:
    """Methods of one compressor, with this one."""
    compressor = COMPRESSORS[key]
    c = compress_of(key)
    local = {"compressor": compressor, "sync_interval": 4}
    outer = {"outer_lr": 0.8, "error_decay": 0.9}
    return [
        Case("ef_sgd", {"compressor": compressor}, by(t.ef_sgd, c)),
        Case("qsparse_local_sgd", local, by(t.qsparse_local_sgd, c, 4)),
        Case("ef21_sgdm", {"compressor": compressor}, by(t.ef21_sgdm, c)),
        Case("ef21_sgdm", {"compressor": compressor}, by(t.ef21, c), momentum=0.0),
        Case("sparse_loco", local | outer, by(t.qsparse_local_sgd, c, 4, **outer)),
        *(cser_pl_like("csea", key, held) for held in forms(key)),
        *(cser_pl_like("cser_pl", key, held) for held in forms(key)),
    ]


def cser_pl_like(method: str, key: str, held: bool) -> Case:
    """CSEA, or CSER-PL with H = 6: CSER without a gradient stage."""
    interval = {} if method == "csea" else {"reset_interval": 6}
    settings = {
        "error_compressor": COMPRESSORS[key],
        "explicit_error": held,
        **interval,
    }
    h = interval.get("reset_interval", 1)
    return Case(method, settings, by(t.cser, t.nothing, compress_of(key), h))


def variants(key: str) -> list[Case]:
    """Switches and other forms of such methods; what a switch does is the same for each
    compressor."""
    compressor = COMPRESSORS[key]
    c = compress_of(key)
    twice = {"sync_interval": 4, "outer_lr": 0.5**2, "error_decay": 0.9}
    return [
        Case(
            "ef_sgd",
            {"compressor": compressor, "drop_rest": True},
            by(t.ef_sgd, c, drop_rest=True),
        ),
        Case(
            "ef_sgd",
            {"compressor": compressor, "decay_apart": True},
            by(t.ef_sgd, c, decay_apart=True),
        ),
        Case(
            "sparse_loco",
            {"compressor": compressor, **twice},
            by(t.sparse_loco_with_alpha_twice, c, 4, 0.5, 0.9),
        ),
    ]


FED_BACK = [
    *(case for key in COMPRESSORS for case in with_compressor(key)),
    *(case for key in ("blocks", "top_k", "int4") for case in variants(key)),
    Case(
        "cser_pl",
        {"error_compressor": COMPRESSORS["random_k"], "reset_interval": 1},
        by(t.sparta, mask_of(SHARED["random_k"])),
    ),
    Case("powersgd", {"rank": 1}, by(t.powersgd, SHAPES, 1, first_q(SEED))),
]


# CSER.

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
RELEASED_SWITCHES = (
    "average_parameters",
    "skip_gradient_at_reset",
    "decay_in_momentum_only",
)
EACH_CHOICE = list(itertools.product((False, True), repeat=3))
ALL_OR_NONE = [(False,) * 3, (True,) * 3]


def csers(c2: str, c1: str, interval: int) -> dict[str, Any]:
    compressors = {
        "gradient_compressor": COMPRESSORS[c2],
        "error_compressor": COMPRESSORS[c1],
    }
    return {**compressors, "reset_interval": interval}


def cser(c2: str, c1: str, interval: int, momentum: float) -> list[Case]:
    """CSER in the forms that it has, and M-CSER, which has momentum."""
    settings = csers(c2, c1, interval)
    follow = by(t.cser, compress_of(c2), compress_of(c1), interval)
    cases = [
        Case("cser", settings | {"explicit_error": held}, follow, momentum)
        for held in forms(c2, c1)
    ]
    if momentum:
        cases.append(Case("mcser", settings, follow, momentum))
    return cases


def switched_release(method: str, c2: str, chosen: tuple[bool, ...]) -> Case:
    """The release with these switches."""
    settings = csers(c2, "block", 3) | dict(zip(RELEASED_SWITCHES, chosen, strict=True))
    masks = mask_of(SHARED[c2]), mask_of(SHARED["block"])
    return Case(method, settings, by(t.cser_released, *masks, 3, *chosen))


def released_cser(
    c2: str, c1: str, interval: int, method: str = "cser_released"
) -> Case:
    """The release with what need not be given, which is as its authors published it."""
    follow = by(released.cser, mask_of(SHARED[c2]), mask_of(SHARED[c1]), interval)
    return Case(method, csers(c2, c1, interval), follow)


def released_qsparse(
    key: str, interval: int, keep_master: bool, momentum: float = 0.9
) -> Case:
    settings = {
        "compressor": SHARED[key],
        "sync_interval": interval,
        "keep_master": keep_master,
        "decay_in_momentum_only": True,
    }
    follow = by(released.qsparse, mask_of(SHARED[key]), interval, keep_master)
    return Case("qsparse_local_sgd", settings, follow, momentum)


def released_ef_sgd(key: str, momentum: float) -> Case:
    settings = {"compressor": SHARED[key], "decay_apart": True}
    return Case("ef_sgd", settings, by(released.ef_sgd, mask_of(SHARED[key])), momentum)


def as_released(key: str) -> list[Case]:
    """What the authors of CSER ran, with blocks of this sort."""
    return [
        released_ef_sgd(key, momentum=0.9),
        released_qsparse(key, 1, keep_master=False),
        released_qsparse(key, 4, keep_master=False),
        released_qsparse(key, 4, keep_master=True),
        Case(
            "cser_released",
            csers("zero", key, 4),
            by(released.cser_pl, mask_of(SHARED[key]), 4),
        ),
        released_cser("zero", key, 1),  # CSEA
        released_cser(key, "block", 3),
    ]


CSER_FAMILY = [
    *(case for values in CSER_CASES for case in cser(*values)),
    *(switched_release("cser_released", "blocks", chosen) for chosen in EACH_CHOICE),
    *(
        switched_release("cser_released", "per_tensor", chosen)
        for chosen in ALL_OR_NONE
    ),
    *(switched_release("mcser_released", "blocks", chosen) for chosen in ALL_OR_NONE),
    released_cser("blocks", "block", 3, "mcser_released"),
    *(case for key in ("per_tensor", "blocks", "zero") for case in as_released(key)),
    released_ef_sgd("per_tensor", momentum=0.0),
    # With interval 1 a master copy's errors grow without end if momentum adds to them, and rounding
    # errors with them.
    released_qsparse("blocks", 1, keep_master=True, momentum=0.0),
]


# Among neighbours.

WEIGHTS: dict[str, Callable[[int], Array]] = {
    kind: partial(weights, NUM_WORKERS) for kind, weights in t.WEIGHTS.items()
}
"""W of each step, by topology."""
# Topology, compressor, gamma.
CHOCO_CASES = [
    *(("ring", key, 0.3) for key in COMPRESSORS),
    *((kind, "top_k", 0.2) for kind in WEIGHTS if kind != "one_peer"),
]
DEEP_SQUEEZE_CASES = [
    *(("ring", key) for key in COMPRESSORS),
    *((kind, "qsgd") for kind in WEIGHTS),
]


def dpsgd(order: str, kind: str, momentum: float) -> Case:
    follow = by(t.dpsgd, WEIGHTS[kind], order == "combine_while_adapt")
    return Case("dpsgd", {"topology": kind, "order": order}, follow, momentum)


def choco_sgd(kind: str, key: str, gamma: float) -> Case:
    settings = {"topology": kind, "compressor": COMPRESSORS[key], "gamma": gamma}
    weights = WEIGHTS[kind](1)
    compress = compress_of(key, True)
    return Case("choco_sgd", settings, by(t.choco_sgd, weights, compress, gamma))


def deep_squeeze(kind: str, key: str) -> Case:
    settings = {"topology": kind, "compressor": COMPRESSORS[key], "gamma": 0.1}
    follow = by(t.deep_squeeze, WEIGHTS[kind], compress_of(key, True), 0.1)
    return Case("deep_squeeze", settings, follow)


ORDERS = ("combine_while_adapt", "adapt_then_combine")
NEIGHBOURS = [
    *(dpsgd(order, kind, 0.9) for order in ORDERS for kind in WEIGHTS),
    *(dpsgd(order, "ring", 0.0) for order in ORDERS),
    *(choco_sgd(*values) for values in CHOCO_CASES),
    *(deep_squeeze(*values) for values in DEEP_SQUEEZE_CASES),
]


# Local steps by AdamW and by Muon.


def mcser_by_adamw(c2: str, c1: str, held: bool) -> Case:
    follow = by(t.cser, compress_of(c2), compress_of(c1), 3)
    return Case(
        "mcser", csers(c2, c1, 3) | {"explicit_error": held}, follow, local=ADAMW
    )


def on_gradients(key: str, local: dict[str, Any]) -> Case:
    settings = {"compressor": COMPRESSORS[key], "error_feedback_on": "gradients"}
    return Case(
        "ef_sgd", settings, by(t.ef_on_gradients, compress_of(key)), local=local
    )


def ef_sgd(key: str, local: dict[str, Any]) -> Case:
    settings: dict[str, Compressor] = {"compressor": COMPRESSORS[key]}
    return Case("ef_sgd", settings, by(t.ef_sgd, compress_of(key)), local=local)


def moments(periods: tuple[int, int, int]) -> Case:
    """Local SGD whose moments are averaged too, each in its own interval."""
    keys = ("sync_interval", "first_moment_interval", "second_moment_interval")
    follow = by(t.local_sgd, periods[0], periods[1:])
    return Case("local_sgd", dict(zip(keys, periods, strict=True)), follow, local=ADAMW)


LOCAL_STEPS = [
    mcser_by_adamw("block", "blocks", held=False),
    mcser_by_adamw("blocks", "block", held=True),
    mcser_by_adamw("top_k", "random_k", held=True),
    *(ef_sgd(key, ADAMW) for key in ("blocks", "random_k", "top_k")),
    *(
        on_gradients(key, local)
        for key in ("blocks", "random_k", "top_k")
        for local in ({}, ADAMW)
    ),
    moments((1, 1, 1)),
    moments((4, 4, 4)),  # Local Adam
    moments((2, 6, 12)),  # DES-LOC as it is recommended
    moments((3, 2, 5)),  # such as never meet
    Case("local_sgd", {"sync_interval": 4}, by(t.local_sgd, 4), local=MUON),
    Case(
        "diloco",
        {
            "sync_interval": 6,
            "num_fragments": 3,
            "outer_lr": 0.7,
            "outer_momentum": 0.9,
        },
        by(t.streaming_diloco, 6, 3, 0, 0.7, 0.9, 0.0),
        local=MUON,
    ),
    ef_sgd("top_k", MUON),
]


CASES = [*PLAIN, *OUTER_STEPS, *FED_BACK, *CSER_FAMILY, *NEIGHBOURS, *LOCAL_STEPS]
for definition in definitions():
    CASES += definition.CASES


@pytest.mark.parametrize(
    "case",
    CASES,
    ids=[
        f"{case.method}-{number} {case.settings}" for number, case in enumerate(CASES)
    ],
)
def test_each_method_is_what_its_definition_says(case: Case) -> None:
    common = {"momentum": case.momentum} if "local_step" not in case.local else {}
    common |= case.local
    problem = make_problem(
        {key: value for key, value in common.items() if key != "rate"}
    )
    assert_follows(case.method, case.settings, case.definition(problem), **common)


def test_every_method_has_a_definition() -> None:
    missing = set(NAMES) - {case.method for case in CASES}
    assert not missing, (
        f"{missing}: write the definition down in tests/algorithms/definitions/NAME.py, with CASES"
    )
