"""What a worker's link carries as a share of DDP's in fp32: message by message, from what a ring and an all-gather
are."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cser_bench.algorithms as package
from cser_bench.algorithms import (
    QSGD,
    BlockSparsifier,
    Collectives,
    Compressor,
    DistributedOptimizer,
    QuantisedBlocks,
    RandomK,
    SoloCollectives,
    StackedCollectives,
    TopK,
    algorithms,
)
from cser_bench.algorithms.core.compressors import Draw, Encoded
from cser_bench.algorithms.core.traffic import carried
from cser_bench.harness.measures.steps import link_models
from tests.algorithms.problems import NAMES, own_settings

NUMEL = 30_720
"""Length of a vector that the compressors below divide without a rest."""
WORKERS = (2, 4, 8, 16, 32)


def made(
    name: str,
    own: dict[str, Any],
    collectives: Collectives | None = None,
    **common: Any,
) -> DistributedOptimizer:
    num_rows = (
        collectives.world_size if isinstance(collectives, StackedCollectives) else None
    )
    shape = (NUMEL,) if num_rows is None else (num_rows, NUMEL)
    parameters = [nn.Parameter(torch.zeros(shape))]
    collectives = collectives or SoloCollectives()
    return algorithms()[name](
        parameters, lr=0.1, momentum=0.9, collectives=collectives, **own, **common
    )


def message_bytes(compressor: Compressor) -> int:
    """The length of a real message; numbers that all workers keep alike travel bare, in 4 bytes."""
    draw = Draw(0, 1, "gradient")
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(NUMEL, generator=generator)
    if isinstance(compressor, Encoded):
        return compressor.encode(vector, draw, 0).numel()
    assert isinstance(compressor, package.Identity | BlockSparsifier | RandomK)
    return (
        4
        * compressor.support(
            package.core.layout.Layout.of([vector]), draw
        ).payload_numel
    )


def ring_all_reduce(size: float, num_workers: int) -> float:
    """Bytes that a worker passes on: a chunk in each hop that adds, and in each that tells the sum."""
    adding = [size / num_workers for _ in range(num_workers - 1)]
    telling = [size / num_workers for _ in range(num_workers - 1)]
    return sum(adding) + sum(telling)


def all_gather(size: float, num_workers: int) -> float:
    """Bytes that a worker passes on: a whole message in each hop, until all have all."""
    return sum(size for _ in range(num_workers - 1))


def two_stages(size: float, num_workers: int) -> float:
    """Bytes that a worker sends: to each other one that one's share of its message, and then the sum of its own."""
    others = range(num_workers - 1)
    return sum(size / num_workers for _ in others) + sum(
        size / num_workers for _ in others
    )


WAYS = [
    (TopK(24), all_gather),
    (TopK(192), all_gather),
    (QSGD(4), all_gather),
    (QuantisedBlocks(4), two_stages),
    (BlockSparsifier(24), ring_all_reduce),
    (RandomK(24), ring_all_reduce),
]


@pytest.mark.parametrize("num_workers", WORKERS)
@pytest.mark.parametrize(
    ("compressor", "carried"), WAYS, ids=lambda value: str(value)[:20]
)
def test_it_is_what_a_link_carries_over_what_it_carries_for_ddp(
    compressor: Compressor, carried: Any, num_workers: int
) -> None:
    expected = carried(message_bytes(compressor), num_workers) / ring_all_reduce(
        4 * NUMEL, num_workers
    )
    optimizer = made("ef_sgd", {"compressor": compressor})
    share = optimizer.traffic_share(num_workers)
    assert share == pytest.approx(expected, rel=1e-12)
    collectives = StackedCollectives(num_workers)
    there = made("ef_sgd", {"compressor": compressor}, collectives)
    assert there.traffic_share() == optimizer.traffic_share(num_workers)


def test_that_of_top_k_grows_with_the_workers_and_no_other_does_that_is_added_on_its_way() -> (
    None
):
    def shares(compressor: Compressor) -> list[float]:
        optimizer = made("ef_sgd", {"compressor": compressor})
        return [optimizer.traffic_share(num_workers) for num_workers in WORKERS]

    of_24 = [1 / 12, 1 / 6, 1 / 3, 2 / 3, 4 / 3]
    of_192 = [1 / 96, 1 / 48, 1 / 24, 1 / 12, 1 / 6]
    assert shares(TopK(24)) == pytest.approx(of_24)
    assert shares(TopK(192)) == pytest.approx(of_192)
    assert shares(BlockSparsifier(24)) == pytest.approx([1 / 24] * 5)
    # A scale of 32 bits for each 256 numbers of 4.
    of_4_bits = (4 + 32 / 256) / 32
    assert shares(QuantisedBlocks(4)) == pytest.approx([of_4_bits] * 5)


def test_it_is_of_all_messages_in_the_long_run() -> None:
    assert made("sgd", {}).traffic_share(8) == 1
    assert made("alone", {}).traffic_share(8) == 0
    assert made("local_sgd", {"sync_interval": 8}).traffic_share(3) == pytest.approx(
        1 / 8
    )
    settings = {
        "gradient_compressor": BlockSparsifier(192),
        "error_compressor": TopK(16),
        "reset_interval": 24,
    }
    assert made("mcser", settings).traffic_share(8) == pytest.approx(
        1 / 192 + 8 / 16 / 24
    )
    # EF21's first message is whole, and the only one.
    assert made("ef21_sgdm", {"compressor": TopK(192)}).traffic_share(
        8
    ) == pytest.approx(1 / 24)
    short = made(
        "ef_sgd", {"compressor": RandomK(24)}, communication_dtype=torch.float16
    )
    assert short.traffic_share(8) == pytest.approx(1 / 48)


def test_among_neighbours_it_is_known_of_the_workers_that_there_are() -> None:
    """A message to a neighbour crosses a link once."""
    ring = {"topology": "ring", "order": "adapt_then_combine"}
    there = made("dpsgd", ring, StackedCollectives(8))
    assert (
        there.traffic_share()
        == there.traffic_share(8)
        == pytest.approx(2 / (2 * 7 / 8))
    )
    for optimizer in (there, made("dpsgd", ring)):
        with pytest.raises(
            ValueError, match=r"^dpsgd: .* neighbours .*; ask where there are 16"
        ):
            optimizer.traffic_share(16)


@pytest.mark.parametrize("num_workers", [0, 1, -8, 2.0, "8", True])
def test_of_no_number_of_workers_it_is_refused(num_workers: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^ef_sgd: world_size must be an integer from 2 up, not"
    ):
        optimizer = made("ef_sgd", {"compressor": TopK(24)})
        optimizer.traffic_share(num_workers)


def test_a_worker_alone_has_none_unless_it_says_of_how_many() -> None:
    with pytest.raises(
        ValueError, match=r"^ef_sgd: world_size must be an integer from 2 up, not 1"
    ):
        optimizer = made("ef_sgd", {"compressor": TopK(24)})
        optimizer.traffic_share()


@pytest.mark.parametrize("name", NAMES)
def test_an_optimiser_shows_it(name: str) -> None:
    optimizer = made(
        name,
        own_settings(name, [TopK(192) if name == "ef_sgd" else BlockSparsifier(4)], 3),
        StackedCollectives(8),
    )
    said = repr(optimizer)
    if name == "alone":
        assert "nothing is sent" in said
        return
    (share,) = re.findall(
        r", ([\d.e-]+) of DDP's traffic in fp32, worker 0 of 8\)$", said
    )
    counted = optimizer.traffic_share(8)
    assert float(share) == pytest.approx(counted, rel=1e-3)


def test_the_documents_have_them() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "algorithms.md").read_text()
    head = re.search(r"^\| compressor \| (.*?) \|$", page, re.MULTILINE)
    assert head is not None
    columns = head[1].split(" | ")
    workers = [int(column.split()[0]) for column in columns]
    rows = re.findall(r"^\| `(\w+\(\d*\))` \| ([\d., /|]+) \|$", page, re.MULTILINE)
    assert len(rows) >= 4
    for words, numbers in rows:
        compressor = eval(words, vars(package))
        optimizer = made("ef_sgd", {"compressor": compressor})
        cells = numbers.split(" | ")
        for num_workers, number in zip(workers, cells, strict=True):
            over, _, under = number.partition("/")
            said = float(over) / float(under or 1)
            assert said == pytest.approx(
                optimizer.traffic_share(num_workers), rel=0.01
            ), words


def test_a_report_computes_what_links_carry_as_methods_do() -> None:
    """Reports load no torch, and so have a formula of their own."""
    for num_workers in (2, 3, 8, 32):
        by_methods = carried(
            num_workers, all_reduced=3.0, gathered=0.25, to_neighbours=1.5
        )
        assert link_models(4.75, 0.25, 1.5, num_workers) == pytest.approx(
            by_methods, rel=1e-15
        )
