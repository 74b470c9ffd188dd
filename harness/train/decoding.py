"""From a model's scores to sentences: the best token each time, or the best of several beams."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from harness.tokens import BEGIN, END, PAD

LENGTH_POWER = 1.0
"""Beams are compared by their log-probability over their length to this power."""


class Translator(Protocol):
    """What decoding needs of a model; a state has `of(rows)`."""

    def begin(self, source: Tensor) -> Any: ...

    def next_scores(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]: ...


def decode(model: Translator, source: Tensor, max_length: int, num_beams: int) -> list[list[int]]:
    """Answers to sources of shape (batch, length), with END where one came within `max_length` tokens."""
    tokens = greedy(model, source, max_length) if num_beams == 1 else beam(model, source, max_length, num_beams)
    return tokens.tolist()


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
    """Of `num_beams` beams the one with the best log-probability per token, int64 of shape (batch, at most max_length).

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
