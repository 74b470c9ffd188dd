"""The answers of a model to sentences, greedily or by beams, and what they score."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.tasks.pairs import BEGIN, END, PAD, PairSamples, plain
from harness.train.precision import MixedPrecision

LENGTH_POWER = 1.0
"""Beams are compared by their log-probability over their length to this power."""


class Translator(Protocol):
    """What decoding needs of a model; a state has `of(rows)`."""

    def begin(self, source: Tensor) -> Any: ...

    def next_scores(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]: ...


def answers(model: Any, source: Tensor, precision: MixedPrecision, max_length: int, num_beams: int) -> list[list[int]]:
    """What a `Translator` says to sources of shape (batch, length), without END."""
    with precision.autocast():
        tokens = greedy(model, source, max_length) if num_beams == 1 else beam(model, source, max_length, num_beams)
    return [plain(row) for row in tokens.tolist()]


def greedy(model: Translator, source: Tensor, max_length: int) -> Tensor:
    """The likeliest token each time, int64 of shape (batch, at most max_length); PAD after END."""
    state = model.begin(source)
    newest = source.new_full(source.shape[:1], BEGIN)
    ended = torch.zeros_like(newest, dtype=torch.bool)
    tokens: list[Tensor] = []
    while len(tokens) < max_length and not (tokens and bool(ended.all())):
        scores, state = model.next_scores(newest, state)
        scores[:, :END] = -torch.inf  # what no sentence holds: PAD and BEGIN
        newest = scores.argmax(1).masked_fill(ended, PAD)
        ended = ended | (newest == END)
        tokens.append(newest)
    return torch.stack(tokens, 1)


def beam(model: Translator, source: Tensor, max_length: int, num_beams: int) -> Tensor:
    """The best of `num_beams` beams by log-probability per token, int64 of shape (batch, at most max_length).

    A beam that has ended stays among the best while its log-probability does.
    """
    batch = len(source)
    first = torch.arange(batch, device=source.device).unsqueeze(1) * num_beams
    state = model.begin(source.repeat_interleave(num_beams, 0))
    newest = source.new_full((batch * num_beams,), BEGIN)
    tokens = source.new_empty((batch * num_beams, 0))
    # All beams are alike at first, so one alone may go on.
    total = torch.full((batch, num_beams), -torch.inf, device=source.device)
    total[:, 0] = 0.0
    ended = torch.zeros_like(newest, dtype=torch.bool)
    while tokens.shape[1] < max_length and not (tokens.shape[1] and bool(ended.all())):
        scores, state = model.next_scores(newest, state)
        scores[:, :END] = -torch.inf
        likely = torch.log_softmax(scores.float(), 1).masked_fill(ended.unsqueeze(1), -torch.inf)
        likely[:, PAD].masked_fill_(ended, 0.0)
        candidates = (total.view(-1, 1) + likely).view(batch, -1)
        total, chosen = candidates.topk(num_beams, dim=1)
        rows = (first + chosen // likely.shape[1]).view(-1)
        newest = (chosen % likely.shape[1]).view(-1)
        tokens = torch.cat([tokens[rows], newest.unsqueeze(1)], 1)
        ended, state = ended[rows] | (newest == END), state.of(rows)
    lengths = (tokens != PAD).sum(1).view(batch, num_beams).clamp(min=1)
    best = (total / lengths**LENGTH_POWER).argmax(1)
    return tokens.view(batch, num_beams, -1)[torch.arange(batch, device=source.device), best]


def translation_sums(
    model: nn.Module, indices: Tensor, precision: MixedPrecision, samples: PairSamples, num_beams: int
) -> Tensor:
    """Sentences answered word for word, sentences, summed loss of tokens, tokens, and the sums of the measure.

    Args:
        model: in its mode for evaluation.

    Returns:
        float64 of shape (4 + samples.measure.num_sums,), on the model's device.
    """
    totals = torch.zeros(4 + samples.measure.num_sums, dtype=torch.float64)
    for index in samples.parts(indices):
        inputs, labels = samples.evaluation.batch(index)
        outputs = precision.outputs(model, inputs)
        loss = nn.functional.cross_entropy(outputs, labels, reduction="sum").item()
        said = answers(model, inputs[:, 0], precision, samples.max_length, num_beams)
        expected = samples.evaluation.target.sequences(index)
        correct = sum(map(list.__eq__, said, expected))
        tokens = int(samples.evaluation.num_tokens[index].sum())
        sums = [correct, len(said), loss, tokens, *samples.measure.sums(said, expected)]
        totals += torch.tensor(sums, dtype=torch.float64)
    return totals.to(next(model.parameters()).device)
