"""A loss that is a mean over the tokens of all workers, of whom each has a batch with another number of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def token_weights(
    num_tokens: Tensor, batches: Sequence[Iterator[Tensor]], ranks: Sequence[int]
) -> Iterator[list[float]]:
    """At each step, what the mean losses of workers `ranks` are multiplied with: n times their share of all tokens.

    The mean over workers of what comes of it is the sum over all tokens by their number. Nothing is sent for that,
    since everyone knows what everyone sees: it follows from the seed.

    Args:
        num_tokens: of each sample, int64, on the CPU.
        batches: the indices that each worker trains on, step by step, by rank.
    """
    for step in zip(*batches, strict=True):
        counts = num_tokens[torch.stack(step)].sum(1).tolist()
        yield [len(counts) * counts[rank] / sum(counts) for rank in ranks]
