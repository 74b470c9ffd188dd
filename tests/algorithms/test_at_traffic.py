"""Settings by traffic: each method says them itself, and with them links carry about that share of
DDP's traffic."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from cser_bench.algorithms import (
    EFSGD,
    QSGD,
    BlockSparsifier,
    ChunkTopK,
    DistributedOptimizer,
    QuantisedBlocks,
    SoloCollectives,
    StackedCollectives,
    TopK,
    algorithms,
)
from cser_bench.algorithms.powersgd import PowerSGD
from tests.algorithms.problems import NAMES

NUMEL = 491_520
"""Length of a vector whose messages are hardly rounded up."""
WORKERS = (2, 4, 8, 16)
SHARES = (1 / 4, 1 / 8, 1 / 24, 1 / 100)
SHAPES = [(64, 48), (64,), (32, 16, 3, 3), (10, 64), (10,)]
REFUSED = {
    "alone": "sends nothing",
    "sgd": "sends everything",
    "dpsgd": "sends whole models at every step",
    "qsr": "depends on the learning rates",
    "powersgd": r"give at_traffic its parameters as params=model\.parameters\(\)",
}
"""Methods that do not choose their settings by traffic, or not without the model's shapes."""
MOST = dict.fromkeys(
    ("qsparse_local_sgd", "cser_pl", "streaming_diloco"), (4 + 32 / 256) / 32
)
"""The share of 4 bits a number, sent at every step: more these methods do not send in the form that
their records have."""


def made(name: str, own: dict[str, Any], num_workers: int) -> DistributedOptimizer:
    zeros = torch.zeros(num_workers, NUMEL)
    parameters = [nn.Parameter(zeros)]
    return algorithms()[name](
        parameters,
        lr=0.1,
        momentum=0.9,
        collectives=StackedCollectives(num_workers),
        **own,
    )


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
@pytest.mark.parametrize("num_workers", WORKERS)
def test_links_carry_that_share_within_the_rounding_of_an_integer(
    name: str, num_workers: int
) -> None:
    """The nearest of the integers 1, 2, ... is at most a factor of sqrt(2) off, and of those from H
    up at most sqrt(1 + 1/H)."""
    method = algorithms()[name]
    for share in SHARES:
        if share > math.sqrt(2) * MOST.get(name, 1) or (
            name == "sparse_loco" and share > num_workers / 2 * 14 / 32 / 8
        ):
            with pytest.raises(
                ValueError, match=rf"^{name}: .*it cannot have {share:.3g}; ask"
            ):
                method.at_traffic(share, world_size=num_workers)
            continue
        own = method.at_traffic(share, world_size=num_workers)
        reached = made(name, own, num_workers).traffic_share(num_workers)
        factor = 1.0
        if name in MOST or name == "noloco":
            factor = math.sqrt(
                1 + 1 / own.get("sync_interval", own.get("reset_interval"))
            )
        if "topology" in own:
            ratio = own["compressor"].ratio
            factor = math.sqrt(1 + 1 / ratio)
        least = 0.97 * share / factor
        most = 1.03 * share * factor
        assert least <= reached <= most, (share, own)


def test_the_forms_of_the_records() -> None:
    """Those of table_cnn, resnet_methods, gpt_text and gpt_text_methods at 8 workers."""

    def at(name: str, share: float) -> dict[str, Any]:
        return algorithms()[name].at_traffic(share, world_size=8)

    top_k = {"compressor": TopK(192)}
    assert at("ef_sgd", 1 / 24) == top_k
    assert at("ef21_sgdm", 1 / 24) == top_k
    assert at("ef_sgd", 1 / 8) == {"compressor": TopK(64)}
    ratio = at("ef_sgd", 1 / 24)["compressor"].ratio
    assert isinstance(ratio, int)
    assert at("csea", 1 / 24) == {"error_compressor": TopK(192)}
    for share, interval in ((1 / 24, 3), (1 / 8, 1), (1 / 64, 8)):
        own = {"compressor": QuantisedBlocks(4), "sync_interval": interval}
        assert at("qsparse_local_sgd", share) == own
    assert at("cser_pl", 1 / 24) == {
        "error_compressor": QuantisedBlocks(4),
        "reset_interval": 3,
    }
    outer = {"outer_lr": 0.7, "outer_momentum": 0.5}
    assert at("local_sgd", 1 / 24) == {"sync_interval": 24}
    assert at("diloco", 1 / 24) == {"sync_interval": 24, **outer}
    late = {"delay": 1, "bits": 4}
    every_third = {"sync_interval": 3, **outer, **late}
    assert at("streaming_diloco", 1 / 24) == every_third
    assert at("noloco", 1 / 24) == {"sync_interval": 14}
    kept = at("sparse_loco", 1 / 24)["compressor"].kept
    assert at("sparse_loco", 1 / 24) == {
        "compressor": ChunkTopK(kept=kept),
        "sync_interval": 8,
    }
    assert kept == pytest.approx(780, rel=0.01)


def test_blocks_are_those_of_the_records_and_of_the_paper() -> None:
    for ratio, r1, interval in (
        (8, 2, 8),
        (24, 3, 16),
        (32, 4, 16),
        (64, 8, 16),
        (96, 12, 16),
        (256, 16, 32),
        (1024, 8, 256),
    ):
        for name in ("cser", "mcser", "cser_released", "mcser_released"):
            own = algorithms()[name].at_traffic(1 / ratio, world_size=8)
            less = r1 if name.endswith("released") and ratio < 32 else 0
            assert own == {
                "gradient_compressor": BlockSparsifier(2 * ratio - less),
                "error_compressor": BlockSparsifier(r1),
                "reset_interval": interval,
            }


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_that_does_not_choose_by_traffic_says_so(name: str) -> None:
    for share in SHARES:
        with pytest.raises(ValueError, match=rf"^{name}.*{REFUSED[name]}"):
            algorithms()[name].at_traffic(share, world_size=8)


def test_sgd_has_all_of_ddps_traffic() -> None:
    assert algorithms()["sgd"].at_traffic(1, world_size=8) == {}


@pytest.mark.parametrize("share", [1, 0.5, 1 / 3, 0.2, 0.1, 0.055])
def test_powersgd_takes_the_nearest_rank(share: float) -> None:
    def reached(rank: int) -> float:
        zeros = [torch.zeros(shape) for shape in SHAPES]
        parameters = [nn.Parameter(each) for each in zeros]
        optimizer = PowerSGD(
            parameters, lr=0.1, rank=rank, collectives=SoloCollectives()
        )
        return optimizer.traffic_share(8)

    def off(rank: int) -> float:
        return abs(math.log(reached(rank) / share))

    params = [torch.zeros(shape, device="meta") for shape in SHAPES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = PowerSGD.at_traffic(share, world_size=8, params=params)
    rank = settings["rank"]
    smallest = min(off(other) for other in range(1, 65))
    assert off(rank) <= smallest + 1e-12


def test_powersgd_cannot_send_as_little_as_one_likes() -> None:
    params = [torch.zeros(shape) for shape in SHAPES]
    sent = (64 + 48) + 64 + (32 + 144) + (10 + 64) + 10
    numel = sum(each.numel() for each in params)
    least = sent / numel
    with pytest.raises(
        ValueError,
        match=rf"^powersgd: at rank 1 it sends {least:.3g} of .* more than 0.00391; ask",
    ):
        PowerSGD.at_traffic(1 / 256, world_size=8, params=params)
    at_least = PowerSGD.at_traffic(least, world_size=8, params=params)
    assert at_least == {"rank": 1}


def test_more_than_the_fp16_hook_sends_is_warned_of_once() -> None:
    with pytest.warns(
        UserWarning, match=r"^local_sgd: at 8 workers .* are 1 of .* the 0\.5 of"
    ) as seen:
        algorithms()["local_sgd"].at_traffic(1, world_size=8)
    assert [warning.filename for warning in seen] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EFSGD.at_traffic(1 / 2, world_size=8)


@pytest.mark.parametrize(
    ("compressor", "share"),
    [(TopK(8), 1), (TopK(4), 2), (QSGD(4, 512), 0.5078)],
    ids=str,
)
def test_an_optimiser_warns_of_gathered_messages_dearer_than_the_fp16_hooks(
    compressor: Any, share: float
) -> None:
    said = rf"^ef_sgd: at 8 workers its messages are {share:.3g} of DDP's traffic in fp32, more than"
    with pytest.warns(UserWarning, match=said) as seen:
        made("ef_sgd", {"compressor": compressor}, 8)
    assert [warning.filename for warning in seen] == [__file__]


@pytest.mark.parametrize(
    ("name", "own", "num_workers"),
    [
        ("ef_sgd", {"compressor": TopK(16)}, 8),
        ("ef_sgd", {"compressor": TopK(192)}, 16),
        ("qsparse_local_sgd", {"compressor": TopK(4), "sync_interval": 4}, 8),
        ("sgd", {}, 8),
        ("local_sgd", {"sync_interval": 1}, 8),
    ],
)
def test_it_does_not_warn_of_others(
    name: str, own: dict[str, Any], num_workers: int
) -> None:
    """Nor of what is not compressed: that is what was asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(name, own, num_workers)
