"""Text as a task: pairs of a source and a target, their batches, and what answers score.

A source and a target are a sequence of tokens each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor, nn

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks.samples import (
    Answering,
    Batch,
    Measure,
    Modality,
    Samples,
    Scored,
)
from cser_bench.harness.tasks.task import to_device, training_and_validation_indices

PAD = 0
BEGIN = 1
END = 2
"""Tokens that every vocabulary begins with: what fills up a batch's shorter sentences, and stands
around each."""
NUM_SPECIAL = 3

IGNORED = -100
"""The label where no token is expected. PyTorch's losses know it by default."""

EVALUATION_POSITIONS = 12_000
"""Positions that are scored at once: each step of decoding is small, so many sentences share its
overhead."""

Tokens = Sequence[int]
Encoded = tuple[list[Tokens], list[Tokens], list[int]]
"""Sources, targets, and the groups that pairs belong to."""


def digest(texts: Iterable[str]) -> str:
    """Give the sha256 of lines in their order."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def shuffled(count: int, seed: int) -> list[int]:
    """Draw an order of `count` things.

    It depends on the seed alone, whatever the version of the libraries.
    """
    random = numpy.random.Generator(numpy.random.Philox(key=seed))
    return list(random.permutation(count).tolist())


def plain(tokens: Iterable[int]) -> list[int]:
    """Take what stands before the first END, without BEGIN."""
    sentence: list[int] = []
    for token in tokens:
        if token == END:
            break
        if token != BEGIN:
            sentence.append(token)
    return sentence


@dataclass(frozen=True)
class Pairs:
    """Sources and targets, on the device.

    Attributes:
        tokens: int32 of shape (pairs, 2, length): the source, and the target with BEGIN before it,
            each with END after it, filled up with PAD.
        groups: int64, which group each pair belongs to, for shards by group.
    """

    tokens: Tensor
    groups: Tensor

    @classmethod
    def of(cls, encoded: Encoded, index: Sequence[int], device: torch.device) -> Pairs:
        """Put the pairs of these numbers on the device, in this order."""
        sources, targets, groups = encoded
        longest_source = max(len(sources[number]) for number in index)
        longest_target = max(len(targets[number]) for number in index)
        # With END behind a source, and BEGIN and END around a target; and one place more, so that
        # what follows the last token of the longest is PAD.
        length = max(longest_source + 1, longest_target + 2) + 1
        tokens = numpy.full((len(index), 2, length), PAD, numpy.int32)
        for row, number in enumerate(index):
            source = [*sources[number], END]
            target = [BEGIN, *targets[number], END]
            tokens[row, 0, : len(source)] = source
            tokens[row, 1, : len(target)] = target
        chosen_groups = torch.tensor(
            [groups[number] for number in index], dtype=torch.int64
        )
        return cls(torch.from_numpy(tokens).to(device), chosen_groups)

    @cached_property
    def num_tokens(self) -> Tensor:
        """Tokens that a model is to predict of each pair, END among them; on the CPU."""
        # Less BEGIN, which is given and not predicted.
        return (self.tokens[:, 1] != PAD).sum(1).cpu() - 1

    @cached_property
    def lengths(self) -> Tensor:
        """Positions that each pair takes in a batch; on the CPU, where batches are planned."""
        return torch.maximum((self.tokens[:, 0] != PAD).sum(1).cpu(), self.num_tokens)

    def batch(self, index: Tensor) -> Batch:
        """Make a batch of these pairs, no longer than the longest of them.

        Returns:
            Inputs, int64 of shape (batch, 2, length): the source, and the target with BEGIN before
            it. Labels, int64 of shape (batch, length): the target with END after it, and IGNORED
            beyond.
        """
        # On the CPU, where a GPU need not be waited for.
        length = int(self.lengths[index].max())
        rows = to_device(index, self.tokens.device)
        # (batch, 2, length + 1): int32 is stored, and an embedding takes int64.
        chosen = self.tokens[rows, :, : length + 1].long()
        # The target one place on: what is to be said at each place.
        following = chosen[:, 1, 1:]
        return chosen[:, :, :-1], following.masked_fill(following == PAD, IGNORED)

    def sentences(self, side: int, index: Tensor) -> list[list[int]]:
        """List the sources (side 0) or targets (1) of these pairs, without BEGIN and END."""
        rows = self.tokens[index.to(self.tokens.device), side]
        return [plain(row) for row in rows.tolist()]


def chosen_pairs(
    train: Encoded, test: Encoded, spec: TaskSpec, device: torch.device
) -> tuple[Pairs, Pairs]:
    """Choose the pairs to train on, and those to score: the test set or the validation pairs.

    Those to score are shortest first. So batches hold sentences of like length, and fewer positions
    are filled up.
    """
    kept, validation = training_and_validation_indices(
        len(train[0]), spec.num_validation, spec.num_train
    )
    if spec.num_validation:
        scored = train
        index = validation.tolist()
    else:
        scored = test
        index = list(range(len(test[0])))
    sources, targets, _ = scored
    # The target first: decoding takes a step for each of its tokens.
    index.sort(key=lambda number: (len(targets[number]), len(sources[number])))
    return Pairs.of(train, kept.tolist(), device), Pairs.of(scored, index, device)


@dataclass(frozen=True)
class PairSamples:
    """A text task's data, held on the device.

    Attributes:
        train, evaluation: the two splits.
        measure: what is made of decoded sentences.
        max_length: tokens, END included, that a model may answer with.
        sha256: of all pairs of both splits, in their order: runs with the same digest saw the same
            data.
    """

    train: Pairs
    evaluation: Pairs
    measure: Measure
    max_length: int
    sha256: str

    @property
    def train_labels(self) -> Tensor:
        return self.train.groups

    @cached_property
    def modality(self) -> PairModality:
        num_groups = int(self.train.groups.max()) + 1
        return PairModality(
            self.measure, num_groups=num_groups, sha256=self.sha256, pairs=self
        )

    def training_batches(
        self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int
    ) -> Iterator[Batch]:
        return map(self.train.batch, indices)

    def evaluation_batches(self, indices: Tensor) -> Iterator[Batch]:
        return map(self.evaluation.batch, self.parts(indices))

    def parts(self, indices: Tensor) -> tuple[Tensor, ...]:
        """Divide the indices into batches that are scored at once."""
        # torch would split nothing into one part without sentences, which has no longest one.
        if not len(indices):
            return ()
        return torch.split(indices, max(1, EVALUATION_POSITIONS // self.max_length))


@dataclass(frozen=True)
class PairModality(Modality):
    """A model answers each source by a sentence, which is right if it is the target word for word."""

    pairs: PairSamples = field(kw_only=True)

    @property
    def lengths(self) -> Tensor:
        return self.pairs.train.lengths

    @property
    def loss_terms(self) -> Tensor:
        return self.pairs.train.num_tokens

    def sums(self, model: Answering, samples: Samples, indices: Tensor) -> Tensor:
        """Return sentences answered word for word, sentences, summed loss of tokens, tokens, and more.

        The rest are the measure's sums; all are float64, of shape (4 + measure.num_sums,), on the
        model's device.
        """
        pairs = self.pairs
        totals = torch.zeros(4 + pairs.measure.num_sums, dtype=torch.float64)
        for index in pairs.parts(indices):
            inputs, labels = pairs.evaluation.batch(index)
            outputs = model.outputs(inputs)
            # Outputs are (batch, tokens of the vocabulary, length).
            loss = nn.functional.cross_entropy(outputs, labels, reduction="sum").item()
            sentences = model.sentences(inputs[:, 0], pairs.max_length)
            expected = pairs.evaluation.sentences(1, index)
            correct = sum(map(list.__eq__, sentences, expected))
            num_tokens = int(pairs.evaluation.num_tokens[index].sum())
            measured = pairs.measure.sums(sentences, expected)
            sums = [correct, len(sentences), loss, num_tokens, *measured]
            totals += torch.tensor(sums, dtype=torch.float64)
        return totals.to(model.device)

    def scored(self, sums: Sequence[float]) -> Scored:
        # The loss is a mean over tokens, where the other counts are of sentences.
        correct, count, loss, num_tokens, *measured = sums
        metrics = self.pairs.measure.metrics(measured)
        return Scored(int(correct), int(count), loss / num_tokens, metrics)


class PhoneErrors:
    """Edit distance over the length of the reference, both summed over all words."""

    num_sums = 2

    def sums(
        self, predicted: Sequence[Tokens], expected: Sequence[Tokens]
    ) -> list[float]:
        errors = sum(map(Levenshtein.distance, predicted, expected))
        return [float(errors), float(sum(map(len, expected)))]

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        errors, phones = sums
        return {"phone_error_rate": errors / phones}
