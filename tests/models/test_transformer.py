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


def small(**sizes: int) -> nn.Module:
    torch.manual_seed(0)
    return build((2, LENGTH), NUM_TOKENS, **(SIZES | sizes)).eval()


def pairs(batch: int = 3, length: int = 7) -> Tensor:
    return torch.randint(
        END + 1,
        NUM_TOKENS,
        (batch, 2, length),
        generator=torch.Generator().manual_seed(1),
    )


@pytest.mark.parametrize("is_gpt", [False, True])
def test_a_position_sees_the_source_and_what_was_said_up_to_itself(
    is_gpt: bool,
) -> None:
    torch.manual_seed(0)
    model = gpt((LENGTH,), NUM_TOKENS, **SIZES).eval() if is_gpt else small()
    sides = pairs()

    def scores(side: int, place: int) -> Tensor:
        """With another token in this place."""
        inputs = sides.clone()
        inputs[:, side, place] = (
            (inputs[:, side, place] - END) % (NUM_TOKENS - END - 1) + END + 1
        )
        found: Tensor = model(inputs[:, 1] if is_gpt else inputs)
        return found

    before = model(sides[:, 1] if is_gpt else sides)
    assert before.shape == (3, NUM_TOKENS, 7)
    changed = (scores(1, 4) - before).abs().amax((0, 1))
    assert (changed[:4] < 1e-6).all()
    assert (changed[4:] > 1e-6).all()
    assert is_gpt or ((scores(0, 6) - before).abs().amax((0, 1)) > 1e-4).all()


def test_what_fills_a_batch_up_changes_nothing() -> None:
    model = small()
    inputs = pairs()
    wider = torch.full((3, 2, LENGTH), PAD)
    wider[:, :, :7] = inputs
    torch.testing.assert_close(
        model(wider)[:, :, :7], model(inputs), atol=1e-5, rtol=1e-5
    )


def test_decoding_step_by_step_and_by_rows_scores_as_the_whole_does() -> None:
    model = small()
    inputs = pairs()
    whole = model(inputs)
    state = model.begin(inputs[:, 0])
    for place in range(inputs.shape[2]):
        scores, state = model.next_scores(inputs[:, 1, place], state)
        torch.testing.assert_close(scores, whole[:, :, place], atol=1e-5, rtol=1e-5)
    _, state = model.next_scores(inputs[:, 1, 0], model.begin(inputs[:, 0]))
    rows = torch.tensor([2, 0, 2])
    scores, _ = model.next_scores(inputs[rows, 1, 1], state.of(rows))
    torch.testing.assert_close(scores, whole[rows, :, 1], atol=1e-5, rtol=1e-5)


@dataclass(frozen=True)
class Table:
    """Scores that depend on the last two tokens alone, at first on BEGIN and the source's first."""

    scores: Tensor

    def begin(self, source: Tensor) -> TableState:
        return TableState(source[:, 0])

    def next_scores(
        self, tokens: Tensor, state: TableState
    ) -> tuple[Tensor, TableState]:
        return self.scores[state.before, tokens].clone(), TableState(tokens)


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
            ends = said[-1] == END or length == longest
            if END in said[:-1] or not ends:
                continue
            whole = [first, BEGIN, *said]
            total = sum(
                float(likely[a, b, c])
                for a, b, c in zip(whole, whole[1:], said, strict=False)
            )
            best = max(best, (total / length**LENGTH_POWER, list(said)))
    return best[1]


@pytest.mark.parametrize("seed", range(6))
def test_beams_enough_find_the_best_sentence_and_one_is_greedy(seed: int) -> None:
    scores = 2 * torch.randn((6, 6, 6), generator=torch.Generator().manual_seed(seed))
    model = Table(scores)
    source = torch.tensor([[BEGIN], [END], [3], [4]])
    expected = [best_of_all(scores, int(first), 4) for first in source]
    with torch.no_grad():
        found = beam(model, source, 4, num_beams=200 if seed % 2 else 256)
        assert [
            [token for token in row if token != PAD] for row in found.tolist()
        ] == expected
        assert (
            beam(model, source, 4, num_beams=1).tolist()
            == greedy(model, source, 4).tolist()
        )


def test_sizes_go_from_small_to_base() -> None:
    def count(num_tokens: int, **sizes: int) -> int:
        with torch.device("meta"):
            return sum(
                each.numel()
                for each in build((2, 64), num_tokens, **sizes).parameters()
            )

    # Vaswani et al. count 65 million with 37,000 tokens.
    base = {"width": 512, "num_heads": 8, "num_layers": 6, "feedforward": 2048}
    assert count(37_000, **base) == pytest.approx(63e6, rel=0.05)
    assert count(71, width=64, num_heads=4, num_layers=2, feedforward=128) == 172_224


def test_gradients_are_dense_and_reach_every_parameter() -> None:
    model = small().train()
    model(pairs()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (
            parameter.grad is not None
            and not parameter.grad.is_sparse
            and parameter.grad.abs().sum() > 0
        ), name


def test_positions_are_the_sines_of_the_paper() -> None:
    found = sines(5, 6)
    for place, index in itertools.product(range(5), range(3)):
        angle = torch.tensor(place / 10_000 ** (2 * index / 6))
        torch.testing.assert_close(
            found[place, [index, index + 3]], torch.stack([angle.sin(), angle.cos()])
        )


def test_sizes_that_do_not_fit_and_images_are_refused() -> None:
    with pytest.raises(ValueError, match="width must be a multiple of 2 num_heads"):
        small(width=18)
    with pytest.raises(ValueError, match="give a text task"):
        build((3, 32, 32), 10, **SIZES)
    with pytest.raises(ValueError, match="takes windows of a text"):
        gpt((1, 28, 28), NUM_TOKENS, **SIZES)
    with pytest.raises(ValueError, match="multiple of num_heads"):
        gpt((LENGTH,), NUM_TOKENS, **(SIZES | {"width": 15}))


def test_attention_that_is_written_out_is_the_fused_one() -> None:
    generator = torch.Generator().manual_seed(3)
    heads = [
        torch.randn(2, 3, 7, 4, generator=generator, dtype=torch.float64)
        for _ in range(3)
    ]
    fused = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
    torch.testing.assert_close(_causal(*heads), fused)
