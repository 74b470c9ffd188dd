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
    whole = Window(0, (numel,), (1,))
    return Layout((whole,))


def layout_of(*shapes: tuple[int, ...]) -> Layout:
    tensors = [torch.empty(shape) for shape in shapes]
    return Layout.of(tensors)


def random_vector(numel: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers of widely different sizes."""
    generator = np.random.default_rng(seed)
    numbers = generator.normal(size=numel)
    powers = generator.integers(-6, 4, numel)
    scaled = numbers * 10.0**powers
    vector = torch.from_numpy(scaled)
    return vector.to(dtype)


def draw_at(step: int, seed: int = 0) -> Draw:
    return Draw(seed, step, "gradient")


def mask(compressor: SharedSupport, layout: Layout, draw: Draw) -> Tensor:
    """How often each coordinate is in the support."""
    support = compressor.support(layout, draw)
    counts = torch.zeros(layout.numel)
    ones = torch.ones(support.payload_numel)
    support.add_(counts, ones)
    return counts


def compressed(
    compressor: Compressor, vector: Tensor, draw: Draw, rank: int = 0
) -> Tensor:
    """C(v)."""
    numel = vector.numel()
    if isinstance(compressor, SharedSupport):
        layout = flat_layout(numel)
        support = compressor.support(layout, draw)
        payload = support.gather(vector)
        result = torch.zeros_like(vector)
        support.add_(result, payload)
        return result
    assert isinstance(compressor, Encoded)
    message = compressor.encode(vector, draw, rank)
    return compressor.decode(message, numel, vector.dtype)


def norm_squared(vector: Tensor) -> Tensor:
    squares = vector.square()
    return squares.sum()


@st.composite
def block_sparsifiers(draw: st.DrawFn, most: int = 12) -> BlockSparsifier:
    ratio = draw(st.integers(1, most))
    multiples = st.integers(1, 4).map(lambda factor: factor * ratio)
    blocks = draw(st.none() | multiples)
    return BlockSparsifier(ratio, blocks)


def chunk_sparsifiers(bits: st.SearchStrategy[int]) -> st.SearchStrategy[ChunkTopK]:
    kept = st.integers(1, 5)
    chunk_sizes = st.integers(5, 60)
    return st.builds(ChunkTopK, kept, chunk_sizes, bits)


RATIOS = st.floats(1, 12)
PER_TENSOR = st.builds(PerTensorBlockSparsifier, RATIOS, RATIOS, st.floats(1, 3))
SPARSIFIERS = st.one_of(
    block_sparsifiers(),
    PER_TENSOR,
    st.builds(RandomK, RATIOS),
    st.just(Identity()),
    st.just(Zero()),
)
BITS = st.sampled_from([2, 4, 8])
QSGDS = st.builds(QSGD, BITS, st.integers(1, 60))
CHUNKS = chunk_sparsifiers(BITS)
BLOCK_SIZES = st.integers(1, 9).map(lambda count: 8 * count)
INTEGER_BITS = st.sampled_from([1, 4, 8])
INTEGERS = st.builds(QuantisedBlocks, INTEGER_BITS, BLOCK_SIZES)
ENCODED = st.one_of(
    st.builds(TopK, RATIOS),
    chunk_sparsifiers(st.just(32)),
    CHUNKS,
    QSGDS,
    INTEGERS,
    st.just(ScaledSign()),
)
ANY = st.one_of(SPARSIFIERS, ENCODED)
NUMELS = st.integers(48, 200)
LEVELS = {2: 1, 4: 7, 8: 127}
"""Of QSGD on either side of 0, by bits."""


def test_every_compressor_is_known_by_its_name() -> None:
    shipped = [
        Identity,
        Zero,
        BlockSparsifier,
        PerTensorBlockSparsifier,
        RandomK,
        TopK,
        ChunkTopK,
        ScaledSign,
        QSGD,
        QuantisedBlocks,
    ]
    by_name = {kind.kind: kind for kind in shipped}
    assert compressors() == by_name


BIASED = ANY.filter(lambda each: not isinstance(each, QSGD))


@given(BIASED, NUMELS, SEEDS, DTYPES)
def test_compression_never_adds_to_the_error(
    compressor: Compressor, numel: int, seed: int, dtype: torch.dtype
) -> None:
    vector = random_vector(numel, seed, dtype)
    draw = draw_at(1, seed)
    kept = compressed(compressor, vector, draw)
    rest = vector - kept
    lost = norm_squared(rest.double())
    whole = norm_squared(vector.double())
    assert lost <= whole * (1 + 1e-6)


@given(ANY, NUMELS, SEEDS, DTYPES, st.integers(1, 5), st.integers(0, 9))
def test_the_payload_is_what_is_sent_and_the_cost_of_many_steps_is_the_sum(
    compressor: Compressor,
    numel: int,
    seed: int,
    dtype: torch.dtype,
    interval: int,
    count: int,
) -> None:
    layout = flat_layout(numel)
    last = interval * count
    steps = range(interval, last + 1, interval)
    draws = [draw_at(step) for step in steps]
    compressor.check(layout)
    bits = []
    for draw in draws:
        if isinstance(compressor, SharedSupport):
            support = compressor.support(layout, draw)
            zeros = torch.zeros(numel)
            payload = support.gather(zeros)
            bits.append(32 * payload.numel())
        else:
            assert isinstance(compressor, Encoded)
            vector = random_vector(numel, seed, dtype)
            message = compressor.encode(vector, draw, 1)
            assert message.dtype == torch.uint8
            bits.append(8 * message.numel())
    expected = [compressor.payload_bits(layout, draw) for draw in draws]
    assert bits == expected
    whole = sum(bits)
    gathered = 0
    if isinstance(compressor, Gathered):
        gathered = whole
    messages = [message for message in bits if message > 0]
    cost = compressor.cost(layout, draw_at, steps)
    expected_cost = Entry(whole, len(messages), gathered)
    assert cost == expected_cost


@pytest.mark.parametrize(
    "compressor",
    [PerTensorBlockSparsifier(3, 2, 1.5), PerTensorBlockSparsifier(2.5, 1, 4)],
    ids=str,
)
def test_the_mean_cost_of_draws_that_differ_is_their_mean(
    compressor: PerTensorBlockSparsifier,
) -> None:
    layout = layout_of((10, 7), (9,), (4, 3, 2))
    steps = range(3000)
    root = math.sqrt(len(steps))
    by_step = []
    for step in steps:
        draw = draw_at(step)
        payload_bits = compressor.payload_bits(layout, draw)
        by_step.append(payload_bits)
    bits = np.array(by_step)
    mean = compressor.cost(layout, None, steps)
    off_bits = mean.bits - bits.sum()
    deviation = bits.std() * root
    assert abs(off_bits) < 5 * deviation
    is_sent = bits > 0
    off_messages = mean.collectives - is_sent.sum()
    # A message is sent or not: its standard deviation is at most 1/2.
    largest_deviation = root / 2
    assert abs(off_messages) < 5 * largest_deviation
    short = compressor.cost(layout, None, steps, 16)
    half = mean.bits / 2
    assert short.bits == pytest.approx(half, abs=1)


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
    vectors = [
        torch.ones(1024),
        random_vector(1024, 1, torch.float32),
        torch.eye(1024)[5],
    ]

    def fitted(drop_rest: bool) -> Compressor:
        """What EF-SGD makes of the compressor."""
        zeros = torch.zeros(1024)
        parameter = nn.Parameter(zeros)
        optimizer = EFSGD(
            [parameter], lr=0.1, compressor=compressor, drop_rest=drop_rest
        )
        replica = optimizer.replicas[0]
        return replica.fitted(compressor)

    def share_lost(used: Compressor, vector: Tensor) -> float:
        """Mean over 40 draws of |v - C(v)|^2 / |v|^2."""
        squares = []
        for step in range(40):
            draw = draw_at(step)
            kept = compressed(used, vector, draw)
            lost = norm_squared(vector - kept)
            squares.append(lost)
        mean = torch.tensor(squares).mean()
        whole = norm_squared(vector)
        return float(mean / whole)

    scaled = fitted(drop_rest=False)
    dropping = fitted(drop_rest=True)
    assert dropping is compressor
    omega = compressor.variance(layout)
    lost = [share_lost(compressor, vector) for vector in vectors]
    scaled_lost = [share_lost(scaled, vector) for vector in vectors]
    if omega:
        assert scaled is not compressor
        assert max(lost) == pytest.approx(omega, rel=0.1)
        expected = omega / (1 + omega)
    else:
        assert scaled is compressor
        assert max(lost) < 1
        expected = lost[0]
    assert max(scaled_lost) < 1
    assert scaled_lost[0] == pytest.approx(expected, rel=0.1)


# Blocks.


@given(block_sparsifiers(), st.integers(48, 120))
def test_blocks_cut_the_vector_into_equal_parts(
    compressor: BlockSparsifier, numel: int
) -> None:
    layout = flat_layout(numel)
    size = math.ceil(numel / compressor.blocks)
    count = math.ceil(numel / size)
    wanted = compressor.blocks // compressor.ratio
    expected = min(wanted, count)
    for step in range(5):
        draw = draw_at(step)
        chosen = mask(compressor, layout, draw)
        kept = 0
        for block in chosen.split(size):
            times = block.unique().tolist()
            assert times in ([0], [1]), "blocks are kept whole, and once"
            kept += int(times[0])
        assert kept == expected


def test_all_draws_of_a_block_together_are_the_vector_and_the_short_one_is_filled_up_with_zeros() -> (
    None
):
    compressor = BlockSparsifier(4)
    layout = flat_layout(51)
    places = torch.arange(51.0)
    sent = set()
    for step in range(60):
        draw = draw_at(step)
        support = compressor.support(layout, draw)
        payload = support.gather(places)
        numbers = payload.tolist()
        sent.add(tuple(numbers))
    first = range(0, 13)
    second = range(13, 26)
    third = range(26, 39)
    last = range(39, 51)
    assert sorted(sent) == [tuple(first), tuple(second), tuple(third), (*last, 0)]


# Blocks per tensor.


def ranges(
    kept: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], axis: int
) -> tuple[int, int]:
    """The first and last + 1 of the places along an axis where anything is kept; they must be
    adjacent."""
    num_places = kept.shape[axis]
    along_axis = np.moveaxis(kept, axis, 0)
    in_rows = along_axis.reshape(num_places, -1)
    has_any = in_rows.any(1)
    places = np.flatnonzero(has_any)
    first = int(places[0])
    end = int(places[-1]) + 1
    assert len(places) == end - first
    return first, end


def assert_aligned(span: tuple[int, int], size: int, ratio: float) -> None:
    first, end = span
    rounded = round(size / ratio)
    length = max(1, rounded)
    assert first % length == 0
    expected_end = min(first + length, size)
    assert end == expected_end


def in_channels_last(tensor: Tensor) -> Tensor:
    """Of four dimensions; others have no such layout."""
    if tensor.dim() != 4:
        return tensor
    return tensor.to(memory_format=torch.channels_last)


SHAPE = st.lists(st.integers(1, 7), max_size=4).map(tuple)
SHAPES = st.lists(SHAPE, min_size=1, max_size=4)


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
        tensors = [in_channels_last(tensor) for tensor in tensors]
    layout = Layout.of(tensors)
    compressor = PerTensorBlockSparsifier(rows, columns)
    draw = draw_at(1, seed)
    chosen = mask(compressor, layout, draw)
    assert chosen.max() == 1
    for window in layout.tensors:
        times = window.view(chosen).numpy()
        kept = times > 0
        # A vector has rows alone, a scalar neither rows nor columns.
        num_cut = min(2, kept.ndim)
        ratios = (rows, columns)[:num_cut]
        spans = [ranges(kept, axis) for axis in range(num_cut)]
        sizes = kept.shape[:num_cut]
        for span, size, ratio in zip(spans, sizes, ratios, strict=True):
            assert_aligned(span, size, ratio)
        rectangle = tuple(slice(first, end) for first, end in spans)
        assert kept[rectangle].all(), "a full rectangle"
        lengths = [end - first for first, end in spans]
        area = np.prod(lengths)
        other_sizes = kept.shape[2:]
        rest = np.prod(other_sizes)
        assert kept.sum() == area * rest


def test_empty_tensors_take_no_part_in_a_block_of_each_tensor() -> None:
    compressor = PerTensorBlockSparsifier(3, 2, 1.5)
    layout = layout_of((10, 7), (0, 3), (9,), (4, 0))
    for step in range(20):
        draw = draw_at(step)
        support = compressor.support(layout, draw)
        payload_bits = compressor.payload_bits(layout, draw)
        assert payload_bits == 32 * support.payload_numel
        for window in support.windows:
            assert window.numel
    filled = layout_of((10, 7), (9,))
    steps = range(100)
    found = compressor.cost(layout, None, steps)
    expected = compressor.cost(filled, None, steps)
    assert found == expected


# Top-k, sign, QSGD.


def test_top_k_reaches_as_many_parameters_as_int32_counts() -> None:
    compressor = TopK(1000)
    compressor.check(flat_layout(2**31))
    too_many = flat_layout(2**31 + 1)
    words = r"reaches 2,147,483,648 parameters, .* 2,147,483,649; take chunk_top_k"
    with pytest.raises(ValueError, match=words):
        compressor.check(too_many)


def definition_of(compressor: Encoded, numel: int, dtype: torch.dtype) -> Compress:
    def noise(step: int, purpose: str, worker: int) -> Array:
        padded = torch.empty(2 * numel + 60, dtype=dtype)
        draw = Draw(0, step, purpose)
        generator = draw.generator(padded.device, worker)
        padded.uniform_(generator=generator)
        numbers: Array = padded.double().numpy()
        return numbers[:numel]

    match compressor:
        case TopK(ratio):
            floored = math.floor(numel / ratio)
            count = max(1, floored)
            return transcription.top_k(count)
        case ChunkTopK(kept, chunk_size, bits):
            return transcription.chunk_top_k(kept, chunk_size, bits)
        case QuantisedBlocks(bits, block_size):
            return transcription.quantised_blocks(bits, block_size)
        case QSGD(bits, bucket_size):
            return transcription.qsgd(LEVELS[bits], bucket_size, noise)
    return transcription.quantised_blocks(1, numel)  # ScaledSign: one block


@given(ENCODED, st.integers(12, 150), SEEDS, DTYPES)
def test_a_message_says_what_the_definition_does(
    compressor: Encoded, numel: int, seed: int, dtype: torch.dtype
) -> None:
    vector = random_vector(numel, seed, dtype)
    vector[0] = 0
    definition = definition_of(compressor, numel, dtype)
    # Of one worker: shape (1, numel).
    vectors = vector.double().numpy()[None]
    (expected,) = definition(1, "gradient", vectors)
    draw = draw_at(1)
    sent = compressed(compressor, vector, draw)
    found = sent.double().numpy()
    apart = np.abs(found - expected)
    magnitudes = vector.abs()
    largest = float(magnitudes.max())
    near = apart < 1e-6 * largest
    is_unrounded = isinstance(compressor, ChunkTopK) and compressor.bits == 32
    if is_unrounded or isinstance(compressor, TopK | ScaledSign):
        assert near.all()
    else:
        # A number at a bin's edge, or half-way between two levels, may fall to either side.
        assert near.mean() > 0.9


def test_numbers_that_are_alike_stay_what_they_are() -> None:
    vector = torch.tensor([2.5, 0, 0, 2.5, 0])
    draw = draw_at(0)
    for kept, chunk_size in ((2, 5), (1, 3)):
        compressor = ChunkTopK(kept, chunk_size, 2)
        sent = compressed(compressor, vector, draw)
        assert torch.equal(sent, vector)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_qsgd_is_unbiased(bits: int) -> None:
    """The mean of 1000 roundings, each at most one level off: standard deviation at most level / (2
    sqrt(1000))."""
    compressor = QSGD(bits, 8)
    numel = 20
    draws = 1000
    drawn = np.random.default_rng(5)
    numbers = drawn.normal(size=numel)
    vector = torch.from_numpy(numbers)
    total = torch.zeros(numel, dtype=vector.dtype)
    for step in range(draws):
        draw = draw_at(step)
        total += compressed(compressor, vector, draw)
    mean = total / draws
    # Each number's bucket of 8, the last of them of 4.
    buckets = vector.split(8)
    norms = torch.empty(numel)
    for place in range(numel):
        bucket = buckets[place // 8]
        norms[place] = bucket.norm()
    level = norms / LEVELS[bits]
    spread = level / 2 / math.sqrt(draws)
    tolerance = 4.5 * spread + 1e-6
    off = (mean - vector).abs()
    assert (off < tolerance).all()


@pytest.mark.parametrize("drop_rest", [False, True])
def test_a_norm_beyond_fp16_leaves_fp16_parameters_finite(drop_rest: bool) -> None:
    """512 gradients of 3,000 have a norm of 67,882, and fp16 ends at 65,504."""
    ones = torch.ones(4, 512, dtype=torch.float16)  # of 4 workers
    parameter = nn.Parameter(ones)
    optimizer = EFSGD(
        [parameter],
        lr=1e-4,
        compressor=QSGD(2),
        error_feedback_on="gradients",
        drop_rest=drop_rest,
        collectives=StackedCollectives(4),
    )
    parameter.grad = torch.full_like(ones, 3000)
    optimizer.step()
    assert parameter.isfinite().all()
    assert parameter.mean() < 1, "and the step is taken"


def test_a_mean_of_fp16_numbers_is_finite_though_their_sum_is_not() -> None:
    vector = torch.full((4, 8), 3e4, dtype=torch.float16)
    sending = Sending(StackedCollectives(4))
    sent = sending.exchange(
        vector, TopK(1), flat_layout(8), draw_at(1), Purpose.GRADIENT
    )
    assert torch.equal(sent.mean, vector)


def test_qsgd_draws_anew_for_each_worker_and_step() -> None:
    vector = random_vector(40, 0)
    compressor = QSGD(2, 40)
    ones = torch.ones(40)
    outcomes = set()
    for step, rank in ((0, 0), (0, 1), (1, 0), (1, 1)):
        draw = draw_at(step)
        sent = compressed(compressor, ones, draw, rank)
        numbers = sent.tolist()
        outcomes.add(tuple(numbers))
    assert len(outcomes) == 4
    once = compressed(compressor, vector, draw_at(3), 1)
    again = compressed(compressor, vector, draw_at(3), 1)
    assert torch.equal(once, again)


@pytest.mark.parametrize(
    "compressor",
    [TopK(4), ScaledSign(), QSGD(4, 16), ChunkTopK(), QuantisedBlocks()],
    ids=str,
)
def test_zero_stays_zero_and_encoding_leaves_all_else_alone(
    compressor: Encoded,
) -> None:
    draw = draw_at(0)
    zeros = torch.zeros(40)
    nothing = compressed(compressor, zeros, draw)
    assert nothing.tolist() == [0] * 40
    vector = random_vector(40, 1)
    before = vector.clone()
    state = torch.get_rng_state()
    compressed(compressor, vector, draw)
    state_after = torch.get_rng_state()
    assert torch.equal(vector, before)
    assert torch.equal(state_after, state)


# The all-reduce of quantised blocks: what all receive and what each keeps make up what was sent, at
# any size.

QUANTISERS = st.builds(QuantisedBlocks, INTEGER_BITS, st.sampled_from([8, 16, 40]))


def sent_by(vector: Tensor, compressor: QuantisedBlocks) -> tuple[Exchanged, Entry]:
    """What the exchange gives workers that are stacked, and what was counted."""
    num_workers, numel = vector.shape
    collectives = StackedCollectives(num_workers)
    layout = flat_layout(numel)
    sending = Sending(collectives)
    draw = draw_at(1)
    sent = sending.exchange(vector, compressor, layout, draw, Purpose.GRADIENT)
    return sent, collectives.traffic[Purpose.GRADIENT]


@given(
    QUANTISERS, st.sampled_from([1, 2, 3, 8]), st.integers(1, 120), st.integers(0, 99)
)
def test_what_all_receive_and_what_each_keeps_is_what_there_was(
    compressor: QuantisedBlocks, num_workers: int, numel: int, seed: int
) -> None:
    numbers = random_vector(num_workers * numel, seed, torch.float32)
    vector = numbers.view(num_workers, numel)
    sent, counted = sent_by(vector, compressor)
    size = compressor.block_size
    num_blocks = math.ceil(numel / size)
    block_bits = 32 + size * compressor.bits  # a scale, and a code for each number
    assert counted == Entry(num_blocks * block_bits, 1, gathered_bits=0)
    received = sent.mean[0]
    assert (sent.mean == received).all(), "all receive the same"
    once = transcription.quantised_blocks(compressor.bits, size)
    definition = transcription.in_two_stages(once, size)
    vectors = vector.double().numpy()
    expected = definition(1, "gradient", vectors)
    expected_mean = expected.mean(axis=0)
    # Rounding may fall to the other side where a number lies half-way between two levels.
    magnitudes = vector.abs()
    largest = float(magnitudes.max())
    found_mean = received.double().numpy()
    off = abs(found_mean - expected_mean)
    near = off < 1e-5 * largest
    assert near.mean() > 0.9
    kept = vector - sent.own
    received_and_kept = num_workers * received + kept.sum(dim=0)
    whole = vector.sum(dim=0)
    tolerance = 4e-6 * largest * num_workers
    torch.testing.assert_close(received_and_kept, whole, rtol=0, atol=tolerance)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_large_numbers_stay_finite_and_those_that_are_not_are_seen(bits: int) -> None:
    compressor = QuantisedBlocks(bits, 8)
    vector = torch.full((8, 40), 3e38)
    sent, _ = sent_by(vector, compressor)
    torch.testing.assert_close(sent.mean, vector, rtol=1e-6, atol=0)
    vector[3, 11] = torch.nan
    sent, _ = sent_by(vector, compressor)
    seen = sent.mean[0].isnan()
    assert seen[8:16].any()
    assert not seen[:8].any(), "in its block alone"
    assert not seen[16:].any(), "in its block alone"
