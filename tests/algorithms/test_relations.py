"""Which setting of which method is which other method: the list, and each trained; SGD without
compression as well."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from cser_bench.algorithms import Compressor, Identity, Zero, algorithms
from tests.algorithms.cases import NUM_WORKERS, Relation, definitions
from tests.algorithms.problems import (
    COMPRESSORS,
    NAMES,
    named_compressors,
    own_settings,
    plain_sgd,
    switches,
    trained,
)

RUN = 12
NEVER = {"sync_interval": RUN + 1}
OFF = switches("cser_released")
AVERAGE = {"outer_lr": 1, "outer_momentum": 0}
"""Settings of an outer SGD that steps to the workers' average."""
UNCOMPRESSED = {"compressor": Identity()}
ON_ITS_MEAN_GRADIENT = "torch.optim.SGD"
"""With Nesterov's momentum; for a heavy ball with `dampening` = `momentum`."""


def rounded(method: str, settings: dict[str, Any], other: str, **more: Any) -> Relation:
    return Relation(method, settings, other, exact=False, **more)


def alone(method: str, settings: dict[str, Any]) -> Relation:
    """One worker has nobody to send to, so every compressor will do."""
    return rounded(
        method, settings, "sgd", num_workers=1, compressors=tuple(COMPRESSORS)
    )


RELATIONS = [
    Relation("local_sgd", NEVER, "alone"),
    Relation("sparse_loco", {"outer_lr": 1, "error_decay": 1}, "qsparse_local_sgd"),
    Relation("cser", {"gradient_compressor": Zero()}, "cser_pl"),
    Relation("mcser", {}, "cser"),
    Relation("cser_released", OFF, "cser"),
    Relation(
        "cser_released",
        {"gradient_compressor": Zero(), "decay_in_momentum_only": False},
        "cser_pl",
    ),
    Relation("mcser_released", {}, "cser_released"),
    Relation("cser_pl", {"reset_interval": 1}, "csea"),
    Relation("cser_pl", {"error_compressor": Identity()}, "local_sgd"),
    Relation("cser_pl", {"error_compressor": Zero()}, "alone"),
    Relation("diloco", {**AVERAGE, "num_fragments": 1}, "local_sgd"),
    Relation("diloco", AVERAGE, "sgd", num_workers=1),
    Relation("diloco", {**NEVER, "num_fragments": 1}, "alone"),
    Relation("streaming_diloco", {"merge": 1}, "alone"),
    *(alone(method, {}) for method in ("alone", "csea", "cser", "cser_pl", "mcser")),
    *(alone(method, OFF) for method in ("cser_released", "mcser_released")),
    rounded("streaming_diloco", {"delay": 0, "merge": 0}, "diloco"),
    rounded("sgd", {}, ON_ITS_MEAN_GRADIENT),
    rounded("ef21_sgdm", UNCOMPRESSED, ON_ITS_MEAN_GRADIENT),
    rounded(
        "ef21_sgdm",
        {**UNCOMPRESSED, "momentum": 0},
        "sgd",
        other_settings={"momentum": 0},
    ),
    rounded("qsparse_local_sgd", UNCOMPRESSED, "local_sgd"),
    # But for what compressors draw, as the two draw for different purposes.
    rounded(
        "qsparse_local_sgd",
        {"sync_interval": 1},
        "ef_sgd",
        compressors=("top_k", "sign"),
    ),
    rounded(
        "sparse_loco", {**UNCOMPRESSED, "outer_lr": 1, "error_decay": 1}, "local_sgd"
    ),
    rounded(
        "noloco",
        {"group_size": NUM_WORKERS, "outer_momentum": 0},
        "diloco",
        other_settings={"outer_momentum": 0},
    ),
    *(
        rounded(
            method,
            {**UNCOMPRESSED, "gamma": 1},
            "dpsgd",
            other_settings={"order": "adapt_then_combine"},
        )
        for method in ("choco_sgd", "deep_squeeze")
    ),
    *(
        rounded(name, dict(method.no_compression), "sgd")
        for name, method in algorithms().items()
        # another SGD, as said above
        if method.no_compression and name != "ef21_sgdm"
    ),
]
"""Besides, test_definitions.py holds three to transcriptions of the other side, which is no method
of ours: `sgd_accumulate` is SGD with larger batches, `ef21_sgdm` without momentum EF21, and
`cser_pl` with RandomK(1 / p) and an exchange in every step SPARTA (exo-explore/gym), which averages
a share p of the parameters."""


for definition in definitions():
    RELATIONS += getattr(definition, "RELATIONS", [])


def rest_of(relation: Relation) -> list[dict[str, Any]]:
    """Settings that the relation leaves open, at some values."""
    name = relation.method
    values = own_settings(name).items()
    is_open = any(
        isinstance(value, Compressor) and key not in relation.settings
        for key, value in values
    )
    tried = {key: COMPRESSORS[key] for key in relation.compressors}
    keys = named_compressors(name, tried) if is_open else ["identity"]
    both = "explicit_error" in switches(name) and not relation.exact
    forms = [{"explicit_error": held} for held in (False, True)] if both else [{}]
    return [
        own_settings(name, [COMPRESSORS[key], COMPRESSORS["block"]], interval, **form)
        for key, interval, form in itertools.product(keys, (2, 4), forms)
    ]


def result(
    name: str, given: dict[str, Any], num_workers: int, exact: bool
) -> list[Tensor]:
    """Each worker's parameters, of a method that is given what it takes of these."""
    own = {
        key: value for key, value in given.items() if key in algorithms()[name].declared
    }
    common = {"momentum": given["momentum"]} if "momentum" in given else {}
    return trained(
        name,
        own,
        num_workers,
        RUN,
        torch.float32 if exact else torch.float64,
        seed=5,
        **common,
    )


def expected(relation: Relation, rest: dict[str, Any]) -> list[Tensor]:
    if relation.other == ON_ITS_MEAN_GRADIENT:
        return [
            plain_sgd(relation.method, relation.num_workers, RUN)
        ] * relation.num_workers
    interval = (
        {"sync_interval": rest["reset_interval"]} if "reset_interval" in rest else {}
    )
    return result(
        relation.other,
        interval | rest | relation.other_settings,
        relation.num_workers,
        relation.exact,
    )


@pytest.mark.parametrize(
    "relation",
    RELATIONS,
    ids=lambda each: f"{each.method} {each.settings} is {each.other}",
)
def test_one_method_is_another(relation: Relation) -> None:
    for rest in rest_of(relation):
        found = result(
            relation.method,
            rest | relation.settings,
            relation.num_workers,
            relation.exact,
        )
        atol = 0 if relation.exact else 1e-12
        wanted = expected(relation, rest)
        torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def test_local_sgd_with_the_runs_length_is_one_average_at_the_end() -> None:
    alone = trained("alone", {}, 3, RUN)
    mean = torch.stack(alone).mean(0)
    found = trained("local_sgd", {"sync_interval": RUN}, 3, RUN)
    torch.testing.assert_close(found, [mean] * 3, rtol=0, atol=1e-12)


def test_each_method_has_a_relation_and_settings_are_of_their_methods() -> None:
    assert set(NAMES) <= {
        name for each in RELATIONS for name in (each.method, each.other)
    }
    for each in RELATIONS:
        for name, settings in (
            (each.method, each.settings),
            (each.other, each.other_settings),
        ):
            assert name == ON_ITS_MEAN_GRADIENT or settings.keys() <= {
                *algorithms()[name].declared,
                "momentum",
            }
