"""Text as a task: pairs of a source and a target, each a sequence of tokens, and the batches made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy
import torch
from torch import Tensor

from harness.spec import TaskSpec
from harness.tasks.measures import Measure
from harness.tasks.task import Batch, held_out_indices, to_device
from harness.tokens import BEGIN, END, IGNORED, PAD

EVALUATION_POSITIONS = 12_000
"""Positions that are scored at once: each step of decoding is small, so many sentences share its overhead."""


@dataclass(frozen=True)
class Sentences:
    """Sequences of tokens, END included, one after the other.

    Attributes:
        tokens: int32 of shape (sum of lengths + 1,), on the device; the last is PAD.
        starts: int64 of shape (number of sentences,), on the device.
        lengths: int64 of the same shape, on the CPU, where batches are planned.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], device: torch.device, begin: bool = False) -> Sentences:
        """END is put after each sequence, and BEGIN before it if asked for."""
        first = [BEGIN] if begin else []
        tokens = (token for each in sequences for token in (*first, *each, END))
        lengths = torch.tensor([len(each) + 1 + begin for each in sequences], dtype=torch.int64)
        starts = lengths.cumsum(0) - lengths
        flat = numpy.fromiter(chain(tokens, [PAD]), dtype=numpy.int32, count=int(lengths.sum()) + 1)
        return cls(torch.from_numpy(flat).to(device), starts.to(device), lengths)

    def padded(self, index: Tensor, width: int) -> Tensor:
        """Sentences `index`, on the CPU, as int64 of shape (len(index), width), filled up with PAD."""
        device = self.tokens.device
        lengths, index = to_device(self.lengths[index], device), to_device(index, device)
        places = torch.arange(width, device=device)
        inside = places < lengths.unsqueeze(1)
        where = torch.where(inside, self.starts[index].unsqueeze(1) + places, len(self.tokens) - 1)
        return self.tokens[where].long()

    def sequences(self, index: Tensor) -> list[list[int]]:
        """The tokens of sentences `index`, without BEGIN and END."""
        width = int(self.lengths[index].max())
        return [plain(row) for row in self.padded(index, width).tolist()]


def plain(tokens: Iterable[int]) -> list[int]:
    """What stands before the first END, without BEGIN."""
    own: list[int] = []
    for token in tokens:
        if token == END:
            break
        if token != BEGIN:
            own.append(token)
    return own


Encoded = tuple[list[Sequence[int]], list[Sequence[int]], list[int]]
"""Sources, targets and groups."""


@dataclass(frozen=True)
class Pairs:
    """Sources and targets, and to which group each pair belongs (for shards by group), int64."""

    source: Sentences
    target: Sentences
    groups: Tensor

    @classmethod
    def of(cls, encoded: Encoded, index: Sequence[int], device: torch.device) -> Pairs:
        """The pairs of these numbers, in this order."""
        sources, targets, groups = encoded
        return cls(
            Sentences.of([sources[number] for number in index], device),
            Sentences.of([targets[number] for number in index], device, begin=True),
            torch.tensor([groups[number] for number in index], dtype=torch.int64),
        )

    @property
    def lengths(self) -> Tensor:
        """Positions that each pair takes in a batch."""
        return torch.maximum(self.source.lengths, self.target.lengths - 1)

    @property
    def num_tokens(self) -> Tensor:
        """Tokens that a model is to predict of each pair: those of the target, and END."""
        return self.target.lengths - 1

    def batch(self, index: Tensor) -> Batch:
        """Inputs, int64 of shape (batch, 2, length): the source, and the target with BEGIN before it.

        Labels, int64 of shape (batch, length), are the target with END after it, and IGNORED beyond.
        """
        width = int(self.lengths[index].max())
        source, target = self.source.padded(index, width), self.target.padded(index, width + 1)
        following = target[:, 1:]
        return torch.stack([source, target[:, :-1]], 1), following.masked_fill(following == PAD, IGNORED)


@dataclass(frozen=True)
class PairSamples:
    """A text task's data, held on the device.

    Attributes:
        train, evaluation: the two splits.
        measure: what is made of decoded sentences.
        text: a sentence of tokens as people read it; source first, then target.
        max_length: tokens, END included, that a model may answer with.
        sha256: of all pairs of both splits, in their order: runs with the same digest saw the same data.
        vocabulary_sha256: of the subwords, where the tokens are such.
    """

    train: Pairs
    evaluation: Pairs
    measure: Measure
    text: tuple[Callable[[list[int]], str], Callable[[list[int]], str]]
    max_length: int
    sha256: str
    vocabulary_sha256: str | None = None

    @property
    def train_labels(self) -> Tensor:
        return self.train.groups

    @property
    def num_groups(self) -> int:
        """Groups that shards may be made of."""
        return int(self.train.groups.max()) + 1

    @property
    def lengths(self) -> Tensor:
        """Lengths by which batches are made of sentences of like length."""
        return self.train.lengths

    @property
    def num_tokens(self) -> Tensor:
        """Tokens of each pair over which the loss is a mean."""
        return self.train.num_tokens

    def training_batches(self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int) -> Iterator[Batch]:
        for index in indices:
            yield self.train.batch(index)

    def evaluation_batches(self, indices: Tensor) -> Iterator[Batch]:
        for index in self.parts(indices):
            yield self.evaluation.batch(index)

    def parts(self, indices: Tensor) -> tuple[Tensor, ...]:
        """The indices by batches that are scored at once."""
        return torch.split(indices, max(1, EVALUATION_POSITIONS // self.max_length)) if len(indices) else ()


def chosen_pairs(train: Encoded, test: Encoded, spec: TaskSpec, device: torch.device) -> tuple[Pairs, Pairs]:
    """The pairs to train on, and those to score: the test set or those held out, shortest first.

    So batches that are scored hold sentences of like length, and fewer positions are filled up.
    """
    kept, held_out = held_out_indices(len(train[0]), spec.held_out, spec.num_train)
    scored, index = (train, held_out.tolist()) if spec.held_out else (test, range(len(test[0])))
    shortest_first = sorted(index, key=lambda each: (len(scored[1][each]), len(scored[0][each])))
    return Pairs.of(train, kept.tolist(), device), Pairs.of(scored, shortest_first, device)


def digest(texts: Iterable[str]) -> str:
    """The sha256 of lines in their order."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def shuffled(count: int, seed: int) -> list[int]:
    """An order of `count` things that depends on the seed alone, whatever the version of the libraries."""
    return list(numpy.random.Generator(numpy.random.Philox(key=seed)).permutation(count).tolist())
