"""The Transformer: what a position may see, decoding step by step and at once, greedily and by
beams, its sizes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from cser_bench.harness.models.transformer import _causal, gpt, sines
from cser_bench.harness.models.transformer import transformer as build
from cser_bench.harness.tasks.pairs import BEGIN, END, PAD
from cser_bench.harness.train.evaluate import LENGTH_POWER, beam, greedy

NUM_TOKENS = 11
LENGTH = 9
SIZES = {"width": 16, "num_heads": 2, "num_layers": 2, "feedforward": 24}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    model = small_gpt() if is_gpt else small()
    sides = pairs()
    num_words = NUM_TOKENS - END - 1

    def scores(inputs: Tensor) -> Tensor:
        """Of a pair, or of its second side alone: (batch, tokens, places)."""
        found: Tensor = model(inputs[:, 1] if is_gpt else inputs)
        return found

    before = scores(sides)
    assert before.shape == (3, NUM_TOKENS, 7)

    def change_by(side: int, place: int) -> Tensor:
        """Each place's greatest change by another token in this one."""
        inputs = sides.clone()
        tokens = inputs[:, side, place]
        others = (tokens - END) % num_words + END + 1
        inputs[:, side, place] = others
        change = scores(inputs) - before
        return change.abs().amax((0, 1))

    changed = change_by(1, 4)
    assert (changed[:4] < 1e-6).all()
    assert (changed[4:] > 1e-6).all()
    if not is_gpt:
        by_source = change_by(0, 6)
        assert (by_source > 1e-4).all()


def test_what_fills_a_batch_up_changes_nothing() -> None:
    model = small()
    inputs = pairs()
    wider = torch.full((3, 2, LENGTH), PAD)
    wider[:, :, :7] = inputs
    scores = model(wider)
    expected = model(inputs)
    assert_near(scores[:, :, :7], expected)


def test_decoding_step_by_step_and_by_rows_scores_as_the_whole_does() -> None:
    model = small()
    inputs = pairs()
    whole = model(inputs)
    source, said = inputs.unbind(1)
    state = model.begin(source)
    for place in range(inputs.shape[2]):
        scores, state = model.next_scores(said[:, place], state)
        assert_near(scores, whole[:, :, place])
    begun = model.begin(source)
    _, state = model.next_scores(said[:, 0], begun)
    rows = torch.tensor([2, 0, 2])
    of_rows = state.of(rows)
    scores, _ = model.next_scores(said[rows, 1], of_rows)
    assert_near(scores, whole[rows, :, 1])


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
        return following.clone(), TableState(tokens)


@dataclass(frozen=True)
class TableState:
    before: Tensor

    def of(self, rows: Tensor) -> TableState:
        return TableState(self.before[rows])


def best_of_all(scores: Tensor, first: int, longest: int) -> list[int]:
    """By trying every sentence: the best mean log-probability, of those that end, or are as long as
    may be."""
    likely = scores.clone()
    likely[:, :, :END] = -torch.inf
    likely = torch.log_softmax(likely, -1)
    tokens = range(END, scores.shape[0])
    best: tuple[float, list[int]] = (-torch.inf, [])
    for length in range(1, longest + 1):
        for said in itertools.product(tokens, repeat=length):
            *earlier, last = said
            ends = last == END or length == longest
            if END in earlier or not ends:
                continue
            whole = [first, BEGIN, *said]
            total = 0.0
            triples = zip(whole, whole[1:], said, strict=False)
            for triple in triples:
                total += float(likely[triple])
            mean = total / length**LENGTH_POWER
            best = max(best, (mean, list(said)))
    _, sentence = best
    return sentence


@pytest.mark.parametrize("seed", range(6))
def test_beams_enough_find_the_best_sentence_and_one_is_greedy(seed: int) -> None:
    drawn = torch.randn((6, 6, 6), generator=seeded(seed))
    scores = 2 * drawn
    model = Table(scores)
    source = torch.tensor([[BEGIN], [END], [3], [4]])
    firsts = source.flatten().tolist()
    expected = [best_of_all(scores, first, 4) for first in firsts]
    enough = 200 if seed % 2 else 256
    with torch.no_grad():
        found = beam(model, source, 4, num_beams=enough)
        narrow = beam(model, source, 4, num_beams=1)
        by_greed = greedy(model, source, 4)
    sentences = []
    for row in found.tolist():
        said = [token for token in row if token != PAD]
        sentences.append(said)
    assert sentences == expected
    assert narrow.tolist() == by_greed.tolist()


def test_sizes_go_from_small_to_base() -> None:
    def count(num_tokens: int, **sizes: int) -> int:
        with torch.device("meta"):
            model = build((2, 64), num_tokens, **sizes)
        return sum(parameter.numel() for parameter in model.parameters())

    # Vaswani et al. count 65 million with 37,000 tokens.
    base = {"width": 512, "num_heads": 8, "num_layers": 6, "feedforward": 2048}
    assert count(37_000, **base) == pytest.approx(63e6, rel=0.05)
    least = {"width": 64, "num_heads": 4, "num_layers": 2, "feedforward": 128}
    assert count(71, **least) == 172_224


def test_gradients_are_dense_and_reach_every_parameter() -> None:
    model = small().train()
    scores = model(pairs())
    scores.square().sum().backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        assert not gradient.is_sparse, name
        assert gradient.abs().sum() > 0, name


def test_positions_are_the_sines_of_the_paper() -> None:
    found = sines(5, 6)
    for place, index in itertools.product(range(5), range(3)):
        wave_length = 10_000 ** (2 * index / 6)
        angle = torch.tensor(place / wave_length)
        sine = found[place, index]
        cosine = found[place, index + 3]
        torch.testing.assert_close(sine, angle.sin())
        torch.testing.assert_close(cosine, angle.cos())


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
    # Queries, keys and values, each (batch, heads, places, width of a head).
    heads = [
        torch.randn(2, 3, 7, 4, generator=generator, dtype=torch.float64)
        for _ in range(3)
    ]
    fused = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
    written_out = _causal(*heads)
    torch.testing.assert_close(written_out, fused)
