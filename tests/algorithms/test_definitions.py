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

PLAIN: list[Case] = []
for momentum in (0.0, 0.9):
    PLAIN.append(Case("sgd", {}, by(t.sgd), momentum))
for momentum in (0.0, 0.9):
    never_synchronised = by(t.local_sgd, NUM_STEPS + 1)
    PLAIN.append(Case("alone", {}, never_synchronised, momentum))
for h in (1, 7):
    follow = by(t.sgd_accumulate, h)
    PLAIN.append(Case("sgd_accumulate", {"accumulation_steps": h}, follow))
for h in (1, 7):
    PLAIN.append(Case("local_sgd", {"sync_interval": h}, by(t.local_sgd, h)))


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
    follow = by(t.streaming_diloco, *values, 0.0)
    return Case("diloco", settings, follow)


def streaming(values: tuple[Any, ...], bits: int | None) -> Case:
    settings = dict(zip(OUTER, values, strict=True))
    if bits is None:
        follow = by(t.streaming_diloco, *values)
        return Case("streaming_diloco", settings, follow)
    once = t.quantised_blocks(bits, 256)
    compress = t.in_two_stages(once, 256)
    follow = by(t.streaming_diloco, *values, compress=compress)
    return Case("streaming_diloco", settings | {"bits": bits}, follow)


def meetings(size: int) -> Callable[[int], list[list[int]]]:
    """The groups of the four workers that meet at a step: as many as have a place, in an order that
    is drawn."""

    def groups(step: int) -> list[list[int]]:
        drawn = Draw(SEED, step, "model").integers(NUM_WORKERS)
        order = np.argsort(drawn, kind="stable").tolist()
        firsts = range(0, NUM_WORKERS, size)
        return [order[first : first + size] for first in firsts]

    return groups


def noloco(interval: int, size: int, outer_lr: float, outer_momentum: float) -> Case:
    settings = {
        "sync_interval": interval,
        "group_size": size,
        "outer_lr": outer_lr,
        "outer_momentum": outer_momentum,
    }
    groups = meetings(size)
    follow = by(t.noloco, interval, groups, outer_lr, outer_momentum)
    return Case("noloco", settings, follow)


BY_DEFAULT = (5, 1, 0, 0.7, 0.9, 0.0)
OUTER_STEPS = [diloco(values) for values in DILOCO_CASES]
OUTER_STEPS += [
    Case("diloco", {"sync_interval": 5}, by(t.streaming_diloco, *BY_DEFAULT)),
    Case(
        "diloco",
        {"sync_interval": 5, "send_gradients": True},
        by(t.streaming_diloco, *BY_DEFAULT, send_gradients=True),
    ),
]
for values, bits in itertools.product(STREAMING_CASES, (None, 4, 8)):
    OUTER_STEPS.append(streaming(values, bits))
for given in NOLOCO_CASES:
    OUTER_STEPS.append(noloco(*given))


# Error feedback, by each compressor.


def forms(*keys: str) -> list[bool]:
    """Values of explicit_error worth a test: it changes nothing where the error must be held
    anyway."""
    if all(key in SHARED for key in keys):
        return [False, True]
    return [False]


def with_compressor(key: str) -> list[Case]:
    """Methods of one compressor, with this one."""
    compressor = COMPRESSORS[key]
    c = compress_of(key)
    only = {"compressor": compressor}
    local = {"compressor": compressor, "sync_interval": 4}
    outer = {"outer_lr": 0.8, "error_decay": 0.9}
    sparse_loco = by(t.qsparse_local_sgd, c, 4, **outer)
    cases = [
        Case("ef_sgd", only, by(t.ef_sgd, c)),
        Case("qsparse_local_sgd", local, by(t.qsparse_local_sgd, c, 4)),
        Case("ef21_sgdm", only, by(t.ef21_sgdm, c)),
        Case("ef21_sgdm", only, by(t.ef21, c), momentum=0.0),
        Case("sparse_loco", local | outer, sparse_loco),
    ]
    for method, held in itertools.product(("csea", "cser_pl"), forms(key)):
        cases.append(cser_pl_like(method, key, held))
    return cases


def cser_pl_like(method: str, key: str, held: bool) -> Case:
    """CSEA, or CSER-PL with H = 6: CSER without a gradient stage."""
    h = 1 if method == "csea" else 6
    settings = {"error_compressor": COMPRESSORS[key], "explicit_error": held}
    if method == "cser_pl":
        settings["reset_interval"] = h
    compress = compress_of(key)
    follow = by(t.cser, t.nothing, compress, h)
    return Case(method, settings, follow)


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


FED_BACK: list[Case] = []
for key in COMPRESSORS:
    FED_BACK += with_compressor(key)
for key in ("blocks", "top_k", "int4"):
    FED_BACK += variants(key)
FED_BACK += [
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
    return {
        "gradient_compressor": COMPRESSORS[c2],
        "error_compressor": COMPRESSORS[c1],
        "reset_interval": interval,
    }


def cser(c2: str, c1: str, interval: int, momentum: float) -> list[Case]:
    """CSER in the forms that it has, and M-CSER, which has momentum."""
    settings = csers(c2, c1, interval)
    gradient_stage = compress_of(c2)
    error_stage = compress_of(c1)
    follow = by(t.cser, gradient_stage, error_stage, interval)
    cases = []
    for held in forms(c2, c1):
        form = settings | {"explicit_error": held}
        cases.append(Case("cser", form, follow, momentum))
    if momentum:
        cases.append(Case("mcser", settings, follow, momentum))
    return cases


def switched_release(method: str, c2: str, chosen: tuple[bool, ...]) -> Case:
    """The release with these switches."""
    switches = dict(zip(RELEASED_SWITCHES, chosen, strict=True))
    settings = csers(c2, "block", 3) | switches
    c2_mask = mask_of(SHARED[c2])
    c1_mask = mask_of(SHARED["block"])
    follow = by(t.cser_released, c2_mask, c1_mask, 3, *chosen)
    return Case(method, settings, follow)


def released_cser(
    c2: str, c1: str, interval: int, method: str = "cser_released"
) -> Case:
    """The release with what need not be given, which is as its authors published it."""
    c2_mask = mask_of(SHARED[c2])
    c1_mask = mask_of(SHARED[c1])
    follow = by(released.cser, c2_mask, c1_mask, interval)
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
    mask = mask_of(SHARED[key])
    follow = by(released.qsparse, mask, interval, keep_master)
    return Case("qsparse_local_sgd", settings, follow, momentum)


def released_ef_sgd(key: str, momentum: float) -> Case:
    settings = {"compressor": SHARED[key], "decay_apart": True}
    follow = by(released.ef_sgd, mask_of(SHARED[key]))
    return Case("ef_sgd", settings, follow, momentum)


def as_released(key: str) -> list[Case]:
    """What the authors of CSER ran, with blocks of this sort."""
    mask = mask_of(SHARED[key])
    cser_pl = by(released.cser_pl, mask, 4)
    return [
        released_ef_sgd(key, momentum=0.9),
        released_qsparse(key, 1, keep_master=False),
        released_qsparse(key, 4, keep_master=False),
        released_qsparse(key, 4, keep_master=True),
        Case("cser_released", csers("zero", key, 4), cser_pl),
        released_cser("zero", key, 1),  # CSEA
        released_cser(key, "block", 3),
    ]


CSER_FAMILY: list[Case] = []
for c2, c1, interval, momentum in CSER_CASES:
    CSER_FAMILY += cser(c2, c1, interval, momentum)
for method, key, choices in (
    ("cser_released", "blocks", EACH_CHOICE),
    ("cser_released", "per_tensor", ALL_OR_NONE),
    ("mcser_released", "blocks", ALL_OR_NONE),
):
    for chosen in choices:
        CSER_FAMILY.append(switched_release(method, key, chosen))
CSER_FAMILY.append(released_cser("blocks", "block", 3, "mcser_released"))
for key in ("per_tensor", "blocks", "zero"):
    CSER_FAMILY += as_released(key)
CSER_FAMILY += [
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
    settings = {"topology": kind, "order": order}
    while_adapt = order == "combine_while_adapt"
    follow = by(t.dpsgd, WEIGHTS[kind], while_adapt)
    return Case("dpsgd", settings, follow, momentum)


def choco_sgd(kind: str, key: str, gamma: float) -> Case:
    settings = {"topology": kind, "compressor": COMPRESSORS[key], "gamma": gamma}
    weights = WEIGHTS[kind](1)
    compress = compress_of(key, among_neighbours=True)
    follow = by(t.choco_sgd, weights, compress, gamma)
    return Case("choco_sgd", settings, follow)


def deep_squeeze(kind: str, key: str) -> Case:
    gamma = 0.1
    settings = {"topology": kind, "compressor": COMPRESSORS[key], "gamma": gamma}
    compress = compress_of(key, among_neighbours=True)
    follow = by(t.deep_squeeze, WEIGHTS[kind], compress, gamma)
    return Case("deep_squeeze", settings, follow)


ORDERS = ("combine_while_adapt", "adapt_then_combine")
NEIGHBOURS: list[Case] = []
for order, kind in itertools.product(ORDERS, WEIGHTS):
    NEIGHBOURS.append(dpsgd(order, kind, momentum=0.9))
for order in ORDERS:
    NEIGHBOURS.append(dpsgd(order, "ring", momentum=0.0))
for kind, key, gamma in CHOCO_CASES:
    NEIGHBOURS.append(choco_sgd(kind, key, gamma))
for kind, key in DEEP_SQUEEZE_CASES:
    NEIGHBOURS.append(deep_squeeze(kind, key))


# Local steps by AdamW and by Muon.


def mcser_by_adamw(c2: str, c1: str, held: bool) -> Case:
    settings = csers(c2, c1, 3) | {"explicit_error": held}
    gradient_stage = compress_of(c2)
    error_stage = compress_of(c1)
    follow = by(t.cser, gradient_stage, error_stage, 3)
    return Case("mcser", settings, follow, local=ADAMW)


def on_gradients(key: str, local: dict[str, Any]) -> Case:
    settings = {"compressor": COMPRESSORS[key], "error_feedback_on": "gradients"}
    follow = by(t.ef_on_gradients, compress_of(key))
    return Case("ef_sgd", settings, follow, local=local)


def ef_sgd(key: str, local: dict[str, Any]) -> Case:
    settings: dict[str, Compressor] = {"compressor": COMPRESSORS[key]}
    follow = by(t.ef_sgd, compress_of(key))
    return Case("ef_sgd", settings, follow, local=local)


def moments(parameters: int, first: int, second: int) -> Case:
    """Local SGD whose moments are averaged too, each in its own interval."""
    settings = {
        "sync_interval": parameters,
        "first_moment_interval": first,
        "second_moment_interval": second,
    }
    follow = by(t.local_sgd, parameters, (first, second))
    return Case("local_sgd", settings, follow, local=ADAMW)


MUON_OUTER = {
    "sync_interval": 6,
    "num_fragments": 3,
    "outer_lr": 0.7,
    "outer_momentum": 0.9,
}
SENT_TO_ADAMW = ("blocks", "random_k", "top_k")
LOCAL_STEPS = [
    mcser_by_adamw("block", "blocks", held=False),
    mcser_by_adamw("blocks", "block", held=True),
    mcser_by_adamw("top_k", "random_k", held=True),
]
for key in SENT_TO_ADAMW:
    LOCAL_STEPS.append(ef_sgd(key, ADAMW))
for key in SENT_TO_ADAMW:
    LOCAL_STEPS.append(on_gradients(key, {}))
    LOCAL_STEPS.append(on_gradients(key, ADAMW))
LOCAL_STEPS += [
    moments(1, 1, 1),
    moments(4, 4, 4),  # Local Adam
    moments(2, 6, 12),  # DES-LOC as it is recommended
    moments(3, 2, 5),  # such as never meet
    Case("local_sgd", {"sync_interval": 4}, by(t.local_sgd, 4), local=MUON),
    Case(
        "diloco", MUON_OUTER, by(t.streaming_diloco, 6, 3, 0, 0.7, 0.9, 0.0), local=MUON
    ),
    ef_sgd("top_k", MUON),
]


CASES = [*PLAIN, *OUTER_STEPS, *FED_BACK, *CSER_FAMILY, *NEIGHBOURS, *LOCAL_STEPS]
for definition in definitions():
    CASES += definition.CASES


def name_of(number: int, case: Case) -> str:
    return f"{case.method}-{number} {case.settings}"


@pytest.mark.parametrize(
    "case", CASES, ids=[name_of(number, case) for number, case in enumerate(CASES)]
)
def test_each_method_is_what_its_definition_says(case: Case) -> None:
    common = dict(case.local)
    if "local_step" not in case.local:
        common["momentum"] = case.momentum
    of_problem = common.copy()
    of_problem.pop("rate", None)
    problem = make_problem(of_problem)
    expected = case.definition(problem)
    assert_follows(case.method, case.settings, expected, **common)


def test_every_method_has_a_definition() -> None:
    missing = set(NAMES) - {case.method for case in CASES}
    assert not missing, (
        f"{missing}: write the definition down in tests/algorithms/definitions/NAME.py, with CASES"
    )
