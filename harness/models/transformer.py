"""Transformers with layer norm before each part: one that translates, one that goes on.

The first is that of Vaswani et al. (NeurIPS 2017), the second is as GPT-2.
Norms come first, as in Xiong et al. (ICML 2020), so that training needs no long warm-up. Positions
are the fixed sines of section 3.5. There is no dropout: its masks would have to come from a
generator of each worker and step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cser_bench.harness.spec.values import Count
from cser_bench.harness.tasks.pairs import PAD

Past = tuple[Tensor, Tensor]
"""Keys and values of the positions so far, each of shape (batch, heads, positions, width /
heads)."""


def transformer(
    input_shape: tuple[int, ...],
    num_classes: int,
    width: Count,
    num_heads: Count,
    num_layers: Count,
    feedforward: Count,
) -> nn.Module:
    """Build an encoder and a decoder of `num_layers` each.

    One matrix embeds source and target and, transposed, is the output.

    Args:
        width: of an embedding.
        feedforward: the hidden width of the part that looks at one position alone.
    """
    if len(input_shape) != 2 or input_shape[0] != 2:
        raise ValueError(
            f"transformer takes pairs of sentences, not samples of shape {input_shape}; give a "
            "text task"
        )
    if width % (2 * num_heads):
        raise ValueError(
            f"width must be a multiple of 2 num_heads, not {width} with num_heads = {num_heads}"
        )
    return Transformer(
        input_shape[1], num_classes, width, num_heads, num_layers, feedforward
    )


@dataclass(frozen=True)
class DecoderState:
    """What decoding has seen of a batch: the source, and the target so far.

    Attributes:
        memory: of each layer, keys and values of the source.
        visible: bool of shape (batch, 1, 1, source), False where the source is filled up.
        past: of each layer, keys and values of the target.
    """

    memory: tuple[Past, ...]
    visible: Tensor
    past: tuple[Past, ...]


class Transformer(nn.Module):
    """Scores of the next token at each position of the target."""

    positions: Tensor

    def __init__(
        self,
        length: int,
        num_tokens: int,
        width: int,
        num_heads: int,
        num_layers: int,
        feedforward: int,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        self.encoder = nn.ModuleList(
            EncoderLayer(width, num_heads, feedforward) for _ in range(num_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(
            DecoderLayer(width, num_heads, feedforward) for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_tokens, bias=False)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        # After the draw, as both are one parameter.
        self.output.weight = self.embedding.weight
        # (length, width), recomputed and so not saved.
        self.register_buffer("positions", sines(length, width), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Score each next token of the target.

        Args:
            inputs: source and target, of shape (batch, 2, length).

        Returns:
            Shape (batch, num_tokens, length).
        """
        source, target = inputs.long().unbind(1)
        memory, visible = self._encode(source)
        # (batch, length, width)
        hidden = self._embedded(target, 0)
        for layer, seen in zip(self.decoder, memory, strict=True):
            hidden, _ = layer(hidden, seen, visible, None)
        scores: Tensor = self.output(self.decoder_norm(hidden))
        return scores.transpose(1, 2)

    def begin(self, source: Tensor) -> DecoderState:
        """Read sources of shape (batch, length)."""
        memory, visible = self._encode(source)
        keys, _ = memory[0]
        batch, num_heads, _, width_of_head = keys.shape
        # Past of a target without positions: the first token appends to it.
        empty = keys.new_zeros(batch, num_heads, 0, width_of_head)
        return DecoderState(memory, visible, ((empty, empty),) * len(memory))

    def next_scores(
        self, tokens: Tensor, state: DecoderState
    ) -> tuple[Tensor, DecoderState]:
        """Score what follows the newest tokens of the target.

        Args:
            tokens: the newest, of shape (batch,).

        Returns:
            Scores of shape (batch, num_tokens), and what decoding has seen then.
        """
        keys, _ = state.past[0]
        num_positions = keys.shape[2]
        # One position, the next one: (batch, 1, width).
        hidden = self._embedded(tokens.unsqueeze(1), num_positions)
        pasts = []
        for layer, seen, past in zip(
            self.decoder, state.memory, state.past, strict=True
        ):
            hidden, longer_past = layer(hidden, seen, state.visible, past)
            pasts.append(longer_past)
        scores: Tensor = self.output(self.decoder_norm(hidden.squeeze(1)))
        return scores, DecoderState(state.memory, state.visible, tuple(pasts))

    def _encode(self, source: Tensor) -> tuple[tuple[Past, ...], Tensor]:
        # Broadcasts over heads and queries: (batch, 1, 1, source).
        visible = (source != PAD)[:, None, None, :]
        hidden = self._embedded(source, 0)
        for layer in self.encoder:
            hidden = layer(hidden, visible)
        hidden = self.encoder_norm(hidden)
        pasts = []
        for layer in self.decoder:
            pasts.append(layer.cross.keys_and_values(hidden))  # type: ignore[operator, union-attr]
        return tuple(pasts), visible

    def _embedded(self, tokens: Tensor, first: int) -> Tensor:
        # As in section 3.4 of Vaswani et al.: embeddings are drawn with a deviation of width^-0.5,
        # and get one of 1 here.
        scaled = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim)
        return scaled + self.positions[first : first + tokens.shape[1]]  # type: ignore[no-any-return]


def gpt(
    input_shape: tuple[int, ...],
    num_classes: int,
    width: Count,
    num_heads: Count,
    num_layers: Count,
    feedforward: Count,
) -> nn.Module:
    """Build a decoder alone, as in GPT-2.

    Positions are learned, and one matrix is for embeddings and output.

    Args:
        width: of an embedding.
        feedforward: the hidden width of the part that looks at one position alone.
    """
    if len(input_shape) != 1:
        raise ValueError(
            f"gpt takes windows of a text, not samples of shape {input_shape}; give a task such as "
            "kjv_text"
        )
    if width % num_heads:
        raise ValueError(
            f"width must be a multiple of num_heads, not {width} with num_heads = {num_heads}"
        )
    return GPT(input_shape[0], num_classes, width, num_heads, num_layers, feedforward)


class GPT(nn.Module):
    """Scores of the next symbol at each position."""

    def __init__(
        self,
        length: int,
        num_symbols: int,
        width: int,
        num_heads: int,
        num_layers: int,
        feedforward: int,
    ) -> None:
        super().__init__()
        # Initial values are drawn in the order in which modules are made.
        self.embedding = nn.Embedding(num_symbols, width)
        self.positions = nn.Embedding(length, width)
        self.layers = nn.ModuleList(
            EncoderLayer(width, num_heads, feedforward) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        # 0.02 as in GPT-2's released code.
        for embedding in (self.embedding, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, inputs: Tensor) -> Tensor:
        """Score, in shape (batch, num_symbols, length), what follows inputs of (batch, length)."""
        hidden = (
            self.embedding(inputs.long()) + self.positions.weight[: inputs.shape[1]]
        )
        for layer in self.layers:
            # Windows are full, so no position is hidden but those that follow.
            hidden = layer(hidden, None, is_causal=True)
        # The embeddings are the output's weights too: scores = h E^T.
        return functional.linear(self.norm(hidden), self.embedding.weight).transpose(
            1, 2
        )


class EncoderLayer(nn.Module):
    """Each position looks at all of the source, or where causal up to itself, then at itself."""

    def __init__(self, width: int, num_heads: int, feedforward: int) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads)
        self.attention_norm = nn.LayerNorm(width)
        self.feedforward = _feedforward(width, feedforward)

    def forward(
        self, hidden: Tensor, visible: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        # h <- h + attention(norm(h));   h <- h + feedforward(norm(h))
        normed = self.attention_norm(hidden)
        hidden = hidden + self.attention(
            normed, self.attention.keys_and_values(normed), visible, is_causal
        )
        return hidden + self.feedforward(hidden)  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Each position looks at the target up to itself, then at the source, then at itself."""

    def __init__(self, width: int, num_heads: int, feedforward: int) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads)
        self.attention_norm = nn.LayerNorm(width)
        self.cross = Attention(width, num_heads)
        self.cross_norm = nn.LayerNorm(width)
        self.feedforward = _feedforward(width, feedforward)

    def forward(
        self, hidden: Tensor, memory: Past, visible: Tensor, past: Past | None
    ) -> tuple[Tensor, Past]:
        """Give the target's new values, and what has been seen of it by then.

        Args:
            past: None where `hidden` is a whole target, else what was before the one position that
                it is.
        """
        normed = self.attention_norm(hidden)
        seen = self.attention.keys_and_values(normed)
        if past is not None:
            keys, values = seen
            past_keys, past_values = past
            # Along positions.
            seen = torch.cat([past_keys, keys], 2), torch.cat([past_values, values], 2)
        # One newest position may look at all that was before: no mask.
        hidden = hidden + self.attention(normed, seen, None, is_causal=past is None)
        hidden = hidden + self.cross(self.cross_norm(hidden), memory, visible)
        return hidden + self.feedforward(hidden), seen


class Attention(nn.Module):
    """Attention of several heads.

    Queries come from one place, keys and values from another, or from the same.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)

    def keys_and_values(self, hidden: Tensor) -> Past:
        keys, values = self.key_value(hidden).chunk(2, dim=-1)
        return self._heads(keys), self._heads(values)

    def forward(
        self,
        hidden: Tensor,
        seen: Past,
        visible: Tensor | None,
        is_causal: bool = False,
    ) -> Tensor:
        # (batch, heads, positions, width / heads)
        queries = self._heads(self.query(hidden))
        if (
            is_causal
            and queries.device.type == "cpu"
            and queries.dtype == torch.bfloat16
        ):
            mixed = _causal(queries, *seen)
        else:
            mixed = functional.scaled_dot_product_attention(
                queries, *seen, attn_mask=visible, is_causal=is_causal
            )
        # Heads beside each other again: (batch, positions, width).
        result: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return result

    def _heads(self, hidden: Tensor) -> Tensor:
        return hidden.view(*hidden.shape[:2], self.num_heads, -1).transpose(1, 2)


def _causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend to positions up to one's own, written out.

    PyTorch's fused form is slow backward on a CPU in bf16.
    """
    # softmax(q k^T / sqrt(d)) v, with -inf where a key comes after the query.
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(
        1
    )
    mixed: Tensor = scores.masked_fill(later, -math.inf).softmax(-1) @ values
    return mixed


def _feedforward(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, width),
    )


def sines(length: int, width: int) -> Tensor:
    """Make each position's sines, then cosines, of section 3.5.

    Wavelengths are from 2 pi to 10000 * 2 pi.
    """
    # 10000^(-2i / width), one for each sine: (width / 2,).
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angles = torch.arange(length).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
