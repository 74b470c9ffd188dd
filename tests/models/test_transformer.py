"""The Transformer: what a position may see, decoding step by step and at once, its sizes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from cser_bench.harness.models.transformer import _causal, gpt, sines
from cser_bench.harness.models.transformer import transformer as build
from cser_bench.harness.tasks.pairs import BEGIN, END, PAD
from cser_bench.harness.train.evaluate import greedy

NUM_TOKENS = 11
LENGTH = 9
SIZES = {"width": 16, "num_heads": 2, "num_layers": 2, "feedforward": 24}


def seeded(seed: int) -> torch.Generator:
    generator = torch.Generator()
    generator.manual_seed(seed)
    return generator


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def small(**sizes: int) -> nn.Module:
    torch.manual_seed(0)
    options = SIZES | sizes
    model = build((2, LENGTH), NUM_TOKENS, **options)
    return model.eval()


def small_gpt() -> nn.Module:
    torch.manual_seed(0)
    model = gpt((LENGTH,), NUM_TOKENS, **SIZES)
    return model.eval()


def pairs(batch: int = 3, length: int = 7) -> Tensor:
    shape = (batch, 2, length)
    generator = seeded(1)
    return torch.randint(END + 1, NUM_TOKENS, shape, generator=generator)


@pytest.mark.parametrize("is_gpt", [False, True])
def test_a_position_sees_the_source_and_what_was_said_up_to_itself(
    is_gpt: bool,
) -> None:
    model = small()
    if is_gpt:
        model = small_gpt()
    sides = pairs()
    num_words = NUM_TOKENS - END - 1

    def scores(inputs: Tensor) -> Tensor:
        """Of a pair, or of its second side alone: (batch, tokens, places)."""
        if is_gpt:
            inputs = inputs[:, 1]
        found: Tensor = model(inputs)
        return found

    before = scores(sides)
    assert before.shape == (3, NUM_TOKENS, 7)

    def change_by(side: int, place: int) -> Tensor:
        """Each place's greatest change by another token in this one."""
        inputs = sides.clone()
        tokens = inputs[:, side, place]
        others = (tokens - END) % num_words + END + 1
        inputs[:, side, place] = others
        after = scores(inputs)
        sizes = (after - before).abs()
        return sizes.amax((0, 1))

    changed = change_by(1, 4)
    earlier = changed[:4]
    later = changed[4:]
    assert (earlier < 1e-6).all()
    assert (later > 1e-6).all()
    if not is_gpt:
        by_source = change_by(0, 6)
        assert (by_source > 1e-4).all()


def test_what_fills_a_batch_up_changes_nothing() -> None:
    model = small()
    inputs = pairs()
    wider = torch.full((3, 2, LENGTH), PAD)
    wider[:, :, :7] = inputs
    scores = model(wider)
    found = scores[:, :, :7]
    expected = model(inputs)
    assert_near(found, expected)


def test_decoding_step_by_step_scores_as_the_whole_does() -> None:
    model = small()
    inputs = pairs()
    whole = model(inputs)
    source, said = inputs.unbind(1)
    state = model.begin(source)
    length = inputs.shape[2]
    for place in range(length):
        tokens = said[:, place]
        scores, state = model.next_scores(tokens, state)
        expected = whole[:, :, place]
        assert_near(scores, expected)


@dataclass(frozen=True)
class Table:
    """Scores that depend on the last two tokens alone, at first on BEGIN and the source's first."""

    scores: Tensor

    def begin(self, source: Tensor) -> TableState:
        return TableState(source[:, 0])

    def next_scores(
        self, tokens: Tensor, state: TableState
    ) -> tuple[Tensor, TableState]:
        following = self.scores[state.before, tokens]
        own = following.clone()
        after = TableState(tokens)
        return own, after


@dataclass(frozen=True)
class TableState:
    before: Tensor


@pytest.mark.parametrize("seed", range(6))
def test_greedy_says_the_likeliest_token_each_time_until_the_end(seed: int) -> None:
    scores = torch.randn((6, 6, 6), generator=seeded(seed))
    firsts = [BEGIN, END, 3, 4]
    with torch.no_grad():
        found = greedy(Table(scores), torch.tensor([[first] for first in firsts]), 4)  # type: ignore[arg-type]
    for first, row in zip(firsts, found.tolist(), strict=True):
        said = [first, BEGIN]
        while len(said) < 6 and said[-1] != END:
            before, last = said[-2:]
            # No sentence holds PAD or BEGIN.
            said.append(
                max(range(END, 6), key=lambda token: scores[before, last, token])
            )
        assert [token for token in row if token != PAD] == said[2:]


def test_sizes_go_from_small_to_base() -> None:
    def count(num_tokens: int, **sizes: int) -> int:
        with torch.device("meta"):
            model = build((2, 64), num_tokens, **sizes)
        numels = [parameter.numel() for parameter in model.parameters()]
        return sum(numels)

    # Vaswani et al. count 65 million with 37,000 tokens.
    base = {"width": 512, "num_heads": 8, "num_layers": 6, "feedforward": 2048}
    numel = count(37_000, **base)
    assert numel == pytest.approx(63e6, rel=0.05)
    least = {"width": 64, "num_heads": 4, "num_layers": 2, "feedforward": 128}
    least_numel = count(71, **least)
    assert least_numel == 172_224


def test_gradients_are_dense_and_reach_every_parameter() -> None:
    model = small()
    model.train()
    inputs = pairs()
    scores = model(inputs)
    loss = scores.square().sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        assert not gradient.is_sparse, name
        assert gradient.abs().sum() > 0, name


def test_positions_are_the_sines_of_the_paper() -> None:
    found = sines(5, 6)
    for place, index in itertools.product(range(5), range(3)):
        power = 2 * index / 6
        wave_length = 10_000**power
        angle = torch.tensor(place / wave_length)
        expected_sine = angle.sin()
        expected_cosine = angle.cos()
        sine = found[place, index]
        cosine = found[place, index + 3]
        torch.testing.assert_close(sine, expected_sine)
        torch.testing.assert_close(cosine, expected_cosine)


def test_sizes_that_do_not_fit_and_images_are_refused() -> None:
    with pytest.raises(ValueError, match="width must be a multiple of 2 num_heads"):
        small(width=18)
    with pytest.raises(ValueError, match="give a text task"):
        build((3, 32, 32), 10, **SIZES)
    with pytest.raises(ValueError, match="takes windows of a text"):
        gpt((1, 28, 28), NUM_TOKENS, **SIZES)
    odd = SIZES | {"width": 15}
    with pytest.raises(ValueError, match="multiple of num_heads"):
        gpt((LENGTH,), NUM_TOKENS, **odd)


def test_attention_that_is_written_out_is_the_fused_one() -> None:
    generator = seeded(3)
    # Batch, heads, places, width of a head.
    shape = (2, 3, 7, 4)
    queries = torch.randn(shape, generator=generator, dtype=torch.float64)
    keys = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    fused = nn.functional.scaled_dot_product_attention(
        queries, keys, values, is_causal=True
    )
    written_out = _causal(queries, keys, values)
    torch.testing.assert_close(written_out, fused)
