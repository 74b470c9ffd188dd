"""Compressors: what they keep, what they lose, and how many bits they send."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cser_bench.algorithms import (
    EFSGD,
    QSGD,
    BlockSparsifier,
    ChunkTopK,
    Compressor,
    Identity,
    PerTensorBlockSparsifier,
    Purpose,
    QuantisedBlocks,
    RandomK,
    ScaledSign,
    StackedCollectives,
    TopK,
    Zero,
)
from cser_bench.algorithms.core.compressors import (
    Draw,
    Encoded,
    Gathered,
    SharedSupport,
)
from cser_bench.algorithms.core.exchange import Exchanged, Sending
from cser_bench.algorithms.core.layout import Layout, Window
from cser_bench.algorithms.core.traffic import Entry
from cser_bench.algorithms.registry import compressors
from tests.algorithms import transcription
from tests.algorithms.transcription import Array, Compress

DTYPES = st.sampled_from([torch.float32, torch.float64])
SEEDS = st.integers(0, 2**32)


def flat_layout(numel: int) -> Layout:
    return Layout((Window(0, (numel,), (1,)),))


def layout_of(*shapes: tuple[int, ...]) -> Layout:
    return Layout.of([torch.empty(shape) for shape in shapes])


def random_vector(numel: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers of widely different sizes."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(
        generator.normal(size=numel) * 10.0 ** generator.integers(-6, 4, numel)
    ).to(dtype)


def draw_at(step: int, seed: int = 0) -> Draw:
    return Draw(seed, step, "gradient")


def mask(compressor: SharedSupport, layout: Layout, draw: Draw) -> Tensor:
    """How often each coordinate is in the support."""
    support = compressor.support(layout, draw)
    counts = torch.zeros(layout.numel)
    support.add_(counts, torch.ones(support.payload_numel))
    return counts


def compressed(
    compressor: Compressor, vector: Tensor, draw: Draw, rank: int = 0
) -> Tensor:
    """C(v)."""
    if isinstance(compressor, SharedSupport):
        support = compressor.support(flat_layout(vector.numel()), draw)
        result = torch.zeros_like(vector)
        support.add_(result, support.gather(vector))
        return result
    assert isinstance(compressor, Encoded)
    return compressor.decode(
        compressor.encode(vector, draw, rank), vector.numel(), vector.dtype
    )


@st.composite
def block_sparsifiers(draw: st.DrawFn, most: int = 12) -> BlockSparsifier:
    ratio = draw(st.integers(1, most))
    return BlockSparsifier(
        ratio, draw(st.none() | st.integers(1, 4).map(lambda factor: factor * ratio))
    )


def chunk_sparsifiers(bits: st.SearchStrategy[int]) -> st.SearchStrategy[ChunkTopK]:
    return st.builds(ChunkTopK, st.integers(1, 5), st.integers(5, 60), bits)


RATIOS = st.floats(1, 12)
PER_TENSOR = st.builds(PerTensorBlockSparsifier, RATIOS, RATIOS, st.floats(1, 3))
SPARSIFIERS = st.one_of(
    block_sparsifiers(),
    PER_TENSOR,
    st.builds(RandomK, RATIOS),
    st.just(Identity()),
    st.just(Zero()),
)
QSGDS = st.builds(QSGD, st.sampled_from([2, 4, 8]), st.integers(1, 60))
CHUNKS = chunk_sparsifiers(st.sampled_from([2, 4, 8]))
INTEGERS = st.builds(
    QuantisedBlocks,
    st.sampled_from([1, 4, 8]),
    st.integers(1, 9).map(lambda count: 8 * count),
)
ENCODED = st.one_of(
    st.builds(TopK, RATIOS),
    chunk_sparsifiers(st.just(32)),
    CHUNKS,
    QSGDS,
    INTEGERS,
    st.just(ScaledSign()),
)
ANY = st.one_of(SPARSIFIERS, ENCODED)


def test_every_compressor_is_known_by_its_name() -> None:
    sparsifiers = [
        Identity,
        Zero,
        BlockSparsifier,
        PerTensorBlockSparsifier,
        RandomK,
        TopK,
        ChunkTopK,
    ]
    assert compressors() == {
        kind.kind: kind for kind in [*sparsifiers, ScaledSign, QSGD, QuantisedBlocks]
    }


@given(
    ANY.filter(lambda each: not isinstance(each, QSGD)),
    st.integers(48, 200),
    SEEDS,
    DTYPES,
)
def test_compression_never_adds_to_the_error(
    compressor: Compressor, numel: int, seed: int, dtype: torch.dtype
) -> None:
    vector = random_vector(numel, seed, dtype)
    lost = (vector - compressed(compressor, vector, draw_at(1, seed))).double()
    assert lost.square().sum() <= vector.double().square().sum() * (1 + 1e-6)


@given(ANY, st.integers(48, 200), SEEDS, DTYPES, st.integers(1, 5), st.integers(0, 9))
def test_the_payload_is_what_is_sent_and_the_cost_of_many_steps_is_the_sum(
    compressor: Compressor,
    numel: int,
    seed: int,
    dtype: torch.dtype,
    interval: int,
    count: int,
) -> None:
    layout = flat_layout(numel)
    steps = range(interval, interval * count + 1, interval)
    compressor.check(layout)
    bits = []
    for draw in map(draw_at, steps):
        if isinstance(compressor, SharedSupport):
            bits.append(
                32 * compressor.support(layout, draw).gather(torch.zeros(numel)).numel()
            )
        else:
            assert isinstance(compressor, Encoded)
            message = compressor.encode(random_vector(numel, seed, dtype), draw, 1)
            assert message.dtype == torch.uint8
            bits.append(8 * message.numel())
    assert bits == [
        compressor.payload_bits(layout, draw) for draw in map(draw_at, steps)
    ]
    gathered = sum(bits) if isinstance(compressor, Gathered) else 0
    assert compressor.cost(layout, draw_at, steps) == Entry(
        sum(bits), sum(message > 0 for message in bits), gathered
    )


@pytest.mark.parametrize(
    "compressor",
    [PerTensorBlockSparsifier(3, 2, 1.5), PerTensorBlockSparsifier(2.5, 1, 4)],
    ids=str,
)
def test_the_mean_cost_of_draws_that_differ_is_their_mean(
    compressor: PerTensorBlockSparsifier,
) -> None:
    layout = layout_of((10, 7), (9,), (4, 3, 2))
    draws = 3000
    bits = np.array(
        [compressor.payload_bits(layout, draw_at(step)) for step in range(draws)]
    )
    mean = compressor.cost(layout, None, range(draws))
    assert abs(mean.bits - bits.sum()) < 5 * bits.std() * math.sqrt(draws)
    assert abs(mean.collectives - (bits > 0).sum()) < 5 * math.sqrt(draws) / 2
    assert compressor.cost(layout, None, range(draws), 16).bits == pytest.approx(
        mean.bits / 2, abs=1
    )


@pytest.mark.parametrize(
    "compressor",
    [QSGD(2), QSGD(2, 16), QSGD(2, 4), QSGD(2, 3), QSGD(4, 64), QSGD(4)],
    ids=str,
)
def test_the_variance_of_qsgd_is_what_its_worst_vector_loses(compressor: QSGD) -> None:
    """Numbers that are all alike are the worst where it is 1 or more; below, what is lost is less
    than what there was.

    Scaled for feedback, it loses omega / (1 + omega) of them.
    """
    layout = flat_layout(1024)
    lost = []
    scaled_lost = []
    fed_back, dropped = (
        EFSGD(
            [nn.Parameter(torch.zeros(1024))],
            lr=0.1,
            compressor=compressor,
            drop_rest=drops,
        )
        for drops in (False, True)
    )
    scaled = fed_back.replicas[0].fitted(compressor)
    assert dropped.replicas[0].fitted(compressor) is compressor
    omega = compressor.variance(layout)
    assert (scaled is compressor) == (omega == 0)
    for vector in (
        torch.ones(1024),
        random_vector(1024, 1, torch.float32),
        torch.eye(1024)[5],
    ):
        squares = [
            [
                (vector - compressed(each, vector, draw_at(step))).square().sum()
                for step in range(40)
            ]
            for each in (compressor, scaled)
        ]
        lost.append(float(torch.tensor(squares[0]).mean() / vector.square().sum()))
        scaled_lost.append(
            float(torch.tensor(squares[1]).mean() / vector.square().sum())
        )
    assert max(lost) == pytest.approx(omega, rel=0.1) if omega else max(lost) < 1
    assert max(scaled_lost) < 1
    assert scaled_lost[0] == pytest.approx(
        omega / (1 + omega) if omega else lost[0], rel=0.1
    )


# Blocks.


@given(block_sparsifiers(), st.integers(48, 120))
def test_blocks_cut_the_vector_into_equal_parts(
    compressor: BlockSparsifier, numel: int
) -> None:
    layout = flat_layout(numel)
    size = math.ceil(numel / compressor.blocks)
    count = math.ceil(numel / size)
    for step in range(5):
        chosen = mask(compressor, layout, draw_at(step))
        blocks = [chosen[start : start + size] for start in range(0, numel, size)]
        assert all(block.unique().tolist() in ([0], [1]) for block in blocks), (
            "blocks are kept whole, and once"
        )
        kept = sum(int(block[0]) for block in blocks)
        assert kept == min(compressor.blocks // compressor.ratio, count)


def test_all_draws_of_a_block_together_are_the_vector_and_the_short_one_is_filled_up_with_zeros() -> (
    None
):
    compressor = BlockSparsifier(4)
    layout = flat_layout(51)
    sent = {
        tuple(
            compressor.support(layout, draw_at(step))
            .gather(torch.arange(51.0))
            .tolist()
        )
        for step in range(60)
    }
    assert sorted(sent) == [
        (*range(0, 13),),
        (*range(13, 26),),
        (*range(26, 39),),
        (*range(39, 51), 0),
    ]


# Blocks per tensor.


def ranges(
    kept: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], axis: int
) -> tuple[int, int]:
    """The first and last + 1 of the places along an axis where anything is kept; they must be
    adjacent."""
    places = np.flatnonzero(
        np.moveaxis(kept, axis, 0).reshape(kept.shape[axis], -1).any(1)
    )
    assert len(places) == places[-1] + 1 - places[0]
    return int(places[0]), int(places[-1]) + 1


def assert_aligned(span: tuple[int, int], size: int, ratio: float) -> None:
    length = max(1, round(size / ratio))
    assert span[0] % length == 0
    assert span[1] == min(span[0] + length, size)


SHAPES = st.lists(
    st.lists(st.integers(1, 7), max_size=4).map(tuple), min_size=1, max_size=4
)


@given(SHAPES, RATIOS, RATIOS, SEEDS, st.booleans())
def test_each_tensor_keeps_an_aligned_block(
    shapes: list[tuple[int, ...]],
    rows: float,
    columns: float,
    seed: int,
    channels_last: bool,
) -> None:
    tensors = [torch.empty(shape) for shape in shapes]
    if channels_last:
        tensors = [
            t.to(memory_format=torch.channels_last) if t.dim() == 4 else t
            for t in tensors
        ]
    layout = Layout.of(tensors)
    chosen = mask(PerTensorBlockSparsifier(rows, columns), layout, draw_at(1, seed))
    assert chosen.max() == 1
    for window in layout.tensors:
        kept = window.view(chosen).numpy() > 0
        spans = [ranges(kept, axis) for axis in range(min(2, kept.ndim))]
        for span, size, ratio in zip(spans, kept.shape, (rows, columns), strict=False):
            assert_aligned(span, size, ratio)
        assert kept[tuple(slice(*span) for span in spans)].all(), "a full rectangle"
        assert kept.sum() == np.prod([hi - lo for lo, hi in spans]) * np.prod(
            kept.shape[2:]
        )


def test_empty_tensors_take_no_part_in_a_block_of_each_tensor() -> None:
    compressor = PerTensorBlockSparsifier(3, 2, 1.5)
    layout = layout_of((10, 7), (0, 3), (9,), (4, 0))
    for step in range(20):
        draw = draw_at(step)
        support = compressor.support(layout, draw)
        assert support.payload_numel * 32 == compressor.payload_bits(layout, draw)
        assert all(window.numel for window in support.windows)
    filled = layout_of((10, 7), (9,))
    assert compressor.cost(layout, None, range(100)) == compressor.cost(
        filled, None, range(100)
    )


# Top-k, sign, QSGD.


def test_top_k_reaches_as_many_parameters_as_int32_counts() -> None:
    TopK(1000).check(flat_layout(2**31))
    with pytest.raises(
        ValueError,
        match=r"reaches 2,147,483,648 parameters, .* 2,147,483,649; take chunk_top_k",
    ):
        TopK(1000).check(flat_layout(2**31 + 1))


def definition_of(compressor: Encoded, numel: int, dtype: torch.dtype) -> Compress:
    def noise(step: int, purpose: str, worker: int) -> Array:
        padded = torch.empty(2 * numel + 60, dtype=dtype)
        return (
            padded.uniform_(
                generator=Draw(0, step, purpose).generator(padded.device, worker)
            )
            .double()
            .numpy()[:numel]
        )

    match compressor:
        case TopK(ratio):
            return transcription.top_k(max(1, math.floor(numel / ratio)))
        case ChunkTopK(kept, chunk_size, bits):
            return transcription.chunk_top_k(kept, chunk_size, bits)
        case QuantisedBlocks(bits, block_size):
            return transcription.quantised_blocks(bits, block_size)
        case QSGD(bits, bucket_size):
            return transcription.qsgd({2: 1, 4: 7, 8: 127}[bits], bucket_size, noise)
    return transcription.quantised_blocks(1, numel)  # ScaledSign: one block


@given(ENCODED, st.integers(12, 150), SEEDS, DTYPES)
def test_a_message_says_what_the_definition_does(
    compressor: Encoded, numel: int, seed: int, dtype: torch.dtype
) -> None:
    vector = random_vector(numel, seed, dtype)
    vector[0] = 0
    expected = definition_of(compressor, numel, dtype)(
        1, "gradient", vector.double().numpy()[None]
    )[0]
    sent = compressed(compressor, vector, draw_at(1)).double().numpy()
    near = np.abs(sent - expected) < 1e-6 * float(vector.abs().max())
    # A number at a bin's edge, or half-way between two levels, may fall to either side.
    is_exact = isinstance(compressor, TopK | ScaledSign) or (
        isinstance(compressor, ChunkTopK) and compressor.bits == 32
    )
    assert near.all() if is_exact else near.mean() > 0.9


def test_numbers_that_are_alike_stay_what_they_are() -> None:
    vector = torch.tensor([2.5, 0, 0, 2.5, 0])
    for chunk in (5, 3):
        assert torch.equal(
            compressed(ChunkTopK(2 if chunk == 5 else 1, chunk, 2), vector, draw_at(0)),
            vector,
        )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_qsgd_is_unbiased(bits: int) -> None:
    """The mean of 1000 roundings, each at most one level off: standard deviation at most level / (2
    sqrt(1000))."""
    compressor = QSGD(bits, 8)
    numel = 20
    draws = 1000
    vector = torch.from_numpy(np.random.default_rng(5).normal(size=numel))
    mean = (
        sum(compressed(compressor, vector, draw_at(step)) for step in range(draws))
        / draws
    )
    assert isinstance(mean, Tensor)
    norms = torch.stack(
        [vector[i // 8 * 8 : i // 8 * 8 + 8].norm() for i in range(numel)]
    )
    spread = norms / {2: 1, 4: 7, 8: 127}[bits] / 2 / math.sqrt(draws)
    assert ((mean - vector).abs() < 4.5 * spread + 1e-6).all()


def test_qsgd_draws_anew_for_each_worker_and_step() -> None:
    vector = random_vector(40, 0)
    compressor = QSGD(2, 40)
    outcomes = {
        tuple(compressed(compressor, torch.ones(40), draw_at(s), r).tolist())
        for s in (0, 1)
        for r in (0, 1)
    }
    assert len(outcomes) == 4
    assert torch.equal(
        compressed(compressor, vector, draw_at(3), 1),
        compressed(compressor, vector, draw_at(3), 1),
    )


@pytest.mark.parametrize(
    "compressor",
    [TopK(4), ScaledSign(), QSGD(4, 16), ChunkTopK(), QuantisedBlocks()],
    ids=str,
)
def test_zero_stays_zero_and_encoding_leaves_all_else_alone(
    compressor: Encoded,
) -> None:
    assert compressed(compressor, torch.zeros(40), draw_at(0)).tolist() == [0] * 40
    vector = random_vector(40, 1)
    before = vector.clone()
    state = torch.get_rng_state()
    compressed(compressor, vector, draw_at(0))
    assert torch.equal(vector, before)
    assert torch.equal(torch.get_rng_state(), state)


# The all-reduce of quantised blocks: what all receive and what each keeps make up what was sent, at
# any size.

QUANTISERS = st.builds(
    QuantisedBlocks, st.sampled_from([1, 4, 8]), st.sampled_from([8, 16, 40])
)


def sent_by(vector: Tensor, compressor: QuantisedBlocks) -> tuple[Exchanged, Entry]:
    """What the exchange gives workers that are stacked, and what was counted."""
    collectives = StackedCollectives(len(vector))
    layout = flat_layout(vector.shape[1])
    sent = Sending(collectives).exchange(
        vector, compressor, layout, draw_at(1), Purpose.GRADIENT
    )
    return sent, collectives.traffic[Purpose.GRADIENT]


@given(
    QUANTISERS, st.sampled_from([1, 2, 3, 8]), st.integers(1, 120), st.integers(0, 99)
)
def test_what_all_receive_and_what_each_keeps_is_what_there_was(
    compressor: QuantisedBlocks, num_workers: int, numel: int, seed: int
) -> None:
    vector = random_vector(num_workers * numel, seed, torch.float32).view(
        num_workers, numel
    )
    sent, counted = sent_by(vector, compressor)
    num_blocks = -(-numel // compressor.block_size)
    size = compressor.block_size
    assert counted == Entry(
        num_blocks * (32 + size * compressor.bits), 1, gathered_bits=0
    )
    assert (sent.mean == sent.mean[0]).all(), "all receive the same"
    once = transcription.quantised_blocks(compressor.bits, size)
    expected = transcription.in_two_stages(once, size)(
        1, "gradient", vector.double().numpy()
    )
    # Rounding may fall to the other side where a number lies half-way between two levels.
    largest = float(vector.abs().max())
    assert (
        abs(sent.mean[0].double().numpy() - expected.mean(axis=0)) < 1e-5 * largest
    ).mean() > 0.9
    received_and_kept = num_workers * sent.mean[0] + (vector - sent.own).sum(dim=0)
    torch.testing.assert_close(
        received_and_kept, vector.sum(dim=0), rtol=0, atol=4e-6 * largest * num_workers
    )


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_large_numbers_stay_finite_and_those_that_are_not_are_seen(bits: int) -> None:
    vector = torch.full((8, 40), 3e38)
    sent, _ = sent_by(vector, QuantisedBlocks(bits, 8))
    torch.testing.assert_close(sent.mean, vector, rtol=1e-6, atol=0)
    vector[3, 11] = float("nan")
    seen = sent_by(vector, QuantisedBlocks(bits, 8))[0].mean[0].isnan()
    assert seen[8:16].any() and not seen[:8].any() and not seen[16:].any(), (
        "in its block alone"
    )
