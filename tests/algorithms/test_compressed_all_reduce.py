"""The all-reduce of quantised blocks: what all receive and what each keeps make up what was sent, at any size."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from algorithms import Purpose, QuantisedBlocks, StackedCollectives
from algorithms.core.compressors import Draw
from algorithms.core.exchange import Exchanged, Sending
from algorithms.core.layout import Layout
from algorithms.core.traffic import Entry
from tests.algorithms.problems import workers
from tests.algorithms.transcription import in_two_stages, quantised_blocks

DRAW = Draw(0, 1, "gradient")
QUANTISERS = st.builds(
    QuantisedBlocks, st.sampled_from([1, 4, 8]), st.sampled_from([8, 16, 40]), second_error=st.booleans()
)


def numbers(num_workers: int, numel: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Workers' vectors, whose coordinates differ by orders of magnitude."""
    generator = np.random.default_rng(seed)
    scales = 10.0 ** generator.integers(-4, 5, numel)
    return torch.from_numpy(scales * generator.normal(size=(num_workers, numel))).to(dtype)


def layout_of(vector: Tensor) -> Layout:
    return Layout.of([vector[0]])


def sent_by(vector: Tensor, compressor: QuantisedBlocks) -> tuple[Exchanged, Entry]:
    """What the exchange gives workers that are stacked, and what was counted."""
    collectives = StackedCollectives(len(vector))
    sent = Sending(collectives).exchange(vector, compressor, layout_of(vector), DRAW, Purpose.GRADIENT)
    return sent, collectives.traffic[Purpose.GRADIENT]


@given(QUANTISERS, st.sampled_from([1, 2, 3, 8]), st.integers(1, 120), st.integers(0, 99))
def test_what_all_receive_and_what_each_keeps_is_what_there_was(
    compressor: QuantisedBlocks, num_workers: int, numel: int, seed: int
) -> None:
    vector = numbers(num_workers, numel, seed)
    sent, counted = sent_by(vector, compressor)
    num_blocks, size = -(-numel // compressor.block_size), compressor.block_size
    assert counted == Entry(num_blocks * (32 + size * compressor.bits), 1, gathered_bits=0)
    assert (sent.mean == sent.mean[0]).all(), "all receive the same"
    once = quantised_blocks(compressor.bits, size)
    twice = in_two_stages(once, size)
    expected = twice(1, "gradient", vector.double().numpy())
    # Rounding may fall to the other side where a number lies half-way between two levels.
    largest = float(vector.abs().max())
    assert (abs(sent.mean[0].double().numpy() - expected.mean(axis=0)) < 1e-5 * largest).mean() > 0.9
    if compressor.second_error:
        received_and_kept = num_workers * sent.mean[0] + (vector - sent.own).sum(dim=0)
        torch.testing.assert_close(received_and_kept, vector.sum(dim=0), rtol=0, atol=4e-6 * largest * num_workers)
    else:
        alone = once(1, "gradient", vector.double().numpy())
        assert (abs(sent.own.double().numpy() - alone) < 1e-5 * largest).mean() > 0.9


@pytest.mark.parametrize("numel", [1, 3, 51, 64])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_workers_of_their_own_get_the_bits_of_stacked_ones(bits: int, numel: int) -> None:
    vector, compressor = numbers(4, numel, 0), QuantisedBlocks(bits, 8)
    sent, _ = sent_by(vector, compressor)
    found = workers(
        lambda each: Sending(each).exchange(
            vector[each.rank : each.rank + 1], compressor, layout_of(vector), DRAW, Purpose.GRADIENT
        ),
        4,
    )
    for rank, own in enumerate(found):
        assert torch.equal(own.own[0], sent.own[rank])
        assert torch.equal(own.mean[0], sent.mean[0])


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_large_numbers_stay_finite_and_those_that_are_not_are_seen(bits: int) -> None:
    vector = torch.full((8, 40), 3e38)
    sent, _ = sent_by(vector, QuantisedBlocks(bits, 8, second_error=False))
    torch.testing.assert_close(sent.mean, vector, rtol=1e-6, atol=0)
    vector[3, 11] = float("nan")
    seen = sent_by(vector, QuantisedBlocks(bits, 8))[0].mean[0].isnan()
    assert seen[8:16].any() and not seen[:8].any() and not seen[16:].any(), "in its block alone"
