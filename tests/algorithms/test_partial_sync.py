"""Partial synchronisation: it keeps the mean, and lies between nothing and a full average."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from algorithms import Collectives, Compressor, Purpose, partial_sync
from algorithms.core.compressors import Draw, SharedSupport
from algorithms.core.layout import Layout
from tests.algorithms.problems import COMPRESSORS, make_model, ordered, workers

LAYOUT = Layout.of(ordered(make_model()))
DRAW = Draw(4, 2, "gradient")


def vector_of(rank: int) -> Tensor:
    return torch.empty(LAYOUT.numel, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(rank))


def synchronised(compressor: Compressor, world_size: int = 4) -> list[tuple[Tensor, Tensor]]:
    """v' and r of each worker."""

    def work(collectives: Collectives) -> tuple[Tensor, Tensor]:
        vector = vector_of(collectives.rank).unsqueeze(0)
        after, residual = partial_sync(vector, compressor, LAYOUT, DRAW, Purpose.GRADIENT, collectives)
        assert torch.equal(vector[0], vector_of(collectives.rank)), "the vector is left as it is"
        return after[0], residual[0]

    return workers(work, world_size)


VECTORS = torch.stack([vector_of(rank) for rank in range(4)])


@pytest.mark.parametrize("key", COMPRESSORS)
def test_it_keeps_the_mean(key: str) -> None:
    after = torch.stack([v for v, _ in synchronised(COMPRESSORS[key])])
    torch.testing.assert_close(after.mean(0), VECTORS.mean(0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("key", COMPRESSORS)
def test_the_result_less_the_residual_is_the_same_on_all_workers(key: str) -> None:
    averages = [v - r for v, r in synchronised(COMPRESSORS[key])]
    sent = torch.stack([VECTORS[rank] - r for rank, (_, r) in enumerate(synchronised(COMPRESSORS[key]))])
    for average in averages:
        torch.testing.assert_close(average, sent.mean(0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("key", [key for key, value in COMPRESSORS.items() if isinstance(value, SharedSupport)])
def test_a_shared_support_is_averaged_and_the_rest_stays(key: str) -> None:
    compressor = COMPRESSORS[key]
    assert isinstance(compressor, SharedSupport)
    support, mask = compressor.support(LAYOUT, DRAW), torch.zeros(LAYOUT.numel)
    support.copy_(mask, torch.ones(support.payload_numel))
    for rank, (after, residual) in enumerate(synchronised(compressor)):
        expected = torch.where(mask > 0, VECTORS.mean(0), VECTORS[rank])
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-14)
        assert torch.equal(residual, torch.where(mask > 0, 0.0, VECTORS[rank]))
