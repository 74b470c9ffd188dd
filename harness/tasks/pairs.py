"""Text as a task: pairs of a source and a target, each a sequence of tokens, their batches, and
what answers score."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks.task import Batch, held_out_indices, to_device

PAD, BEGIN, END = 0, 1, 2
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
    """The sha256 of lines in their order."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def shuffled(count: int, seed: int) -> list[int]:
    """An order of `count` things that depends on the seed alone, whatever the version of the
    libraries."""
    return list(numpy.random.Generator(numpy.random.Philox(key=seed)).permutation(count).tolist())


def plain(tokens: Iterable[int]) -> list[int]:
    """What stands before the first END, without BEGIN."""
    own: list[int] = []
    for token in tokens:
        if token == END:
            break
        if token != BEGIN:
            own.append(token)
    return own


@dataclass(frozen=True)
class Pairs:
    """Sources and targets on the device, and the group that each pair belongs to (for shards by
    group), int64.

    Attributes:
        tokens: int32 of shape (pairs, 2, length): the source, and the target with BEGIN before it,
            each with END after it, filled up with PAD.
    """

    tokens: Tensor
    groups: Tensor

    @classmethod
    def of(cls, encoded: Encoded, index: Sequence[int], device: torch.device) -> Pairs:
        """The pairs of these numbers, in this order."""
        sources, targets, groups = encoded
        longest = max(max(len(sources[number]) + 1, len(targets[number]) + 2) for number in index)
        tokens = numpy.full((len(index), 2, longest + 1), PAD, numpy.int32)
        for (source, target), number in zip(tokens, index, strict=True):
            own, following = sources[number], targets[number]
            source[: len(own)], source[len(own)] = own, END
            target[0], target[1 : len(following) + 1], target[len(following) + 1] = (
                BEGIN,
                following,
                END,
            )
        chosen = torch.tensor([groups[number] for number in index], dtype=torch.int64)
        return cls(torch.from_numpy(tokens).to(device), chosen)

    @cached_property
    def num_tokens(self) -> Tensor:
        """Tokens that a model is to predict of each pair: those of the target, and END; on the
        CPU."""
        return (self.tokens[:, 1] != PAD).sum(1).cpu() - 1

    @cached_property
    def lengths(self) -> Tensor:
        """Positions that each pair takes in a batch; on the CPU, where batches are planned."""
        return torch.maximum((self.tokens[:, 0] != PAD).sum(1).cpu(), self.num_tokens)

    def batch(self, index: Tensor) -> Batch:
        """Inputs, int64 of shape (batch, 2, length): the source, and the target with BEGIN before
        it.

        Labels, int64 of shape (batch, length), are the target with END after it, and IGNORED
        beyond.
        """
        chosen = self.tokens[
            to_device(index, self.tokens.device), :, : int(self.lengths[index].max()) + 1
        ].long()
        following = chosen[:, 1, 1:]
        return chosen[:, :, :-1], following.masked_fill(following == PAD, IGNORED)

    def sentences(self, side: int, index: Tensor) -> list[list[int]]:
        """The sources (side 0) or targets (1) of these pairs, without BEGIN and END."""
        return [plain(row) for row in self.tokens[index.to(self.tokens.device), side].tolist()]


def chosen_pairs(
    train: Encoded, test: Encoded, spec: TaskSpec, device: torch.device
) -> tuple[Pairs, Pairs]:
    """The pairs to train on, and those to score: the test set or those held out, shortest first.

    So batches that are scored hold sentences of like length, and fewer positions are filled up.
    """
    kept, held_out = held_out_indices(len(train[0]), spec.held_out, spec.num_train)
    scored, index = (train, held_out.tolist()) if spec.held_out else (test, range(len(test[0])))
    shortest_first = sorted(index, key=lambda each: (len(scored[1][each]), len(scored[0][each])))
    return Pairs.of(train, kept.tolist(), device), Pairs.of(scored, shortest_first, device)


@dataclass(frozen=True)
class PairSamples:
    """A text task's data, held on the device.

    Attributes:
        train, evaluation: the two splits.
        measure: what is made of decoded sentences.
        max_length: tokens, END included, that a model may answer with.
        sha256: of all pairs of both splits, in their order: runs with the same digest saw the same
            data.
        vocabulary_sha256: of the subwords, where the tokens are such.
    """

    train: Pairs
    evaluation: Pairs
    measure: Measure
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

    def training_batches(
        self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int
    ) -> Iterator[Batch]:
        return map(self.train.batch, indices)

    def evaluation_batches(self, indices: Tensor) -> Iterator[Batch]:
        return map(self.evaluation.batch, self.parts(indices))

    def parts(self, indices: Tensor) -> tuple[Tensor, ...]:
        """The indices by batches that are scored at once."""
        return (
            torch.split(indices, max(1, EVALUATION_POSITIONS // self.max_length))
            if len(indices)
            else ()
        )


class PhoneErrors:
    """Edit distance over the length of the reference, both summed over all words."""

    num_sums = 2

    def sums(self, predicted: Sequence[Tokens], expected: Sequence[Tokens]) -> list[float]:
        """The sums over these sentences, which are without BEGIN and END; so workers may each score
        a share."""
        errors = sum(map(Levenshtein.distance, predicted, expected))
        return [float(errors), float(sum(map(len, expected)))]

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """The metrics by name, as shares (a BLEU of 30 is 0.3)."""
        errors, phones = sums
        return {"phone_error_rate": errors / phones}

    def signatures(self) -> dict[str, str]:
        """How each metric was computed, where that has a standard form."""
        return {}


class BleuAndChrf:
    """BLEU (Papineni et al., ACL 2002) and chrF (Popović, WMT 2015) of a whole split, by sacreBLEU
    (Post, 2018)."""

    def __init__(self, text: Callable[[Tokens], str]) -> None:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        self.text = text
        # Sentences are passed to a corpus's score as if tokenised, which only silences a warning.
        self._metrics: dict[str, Any] = {"bleu": BLEU(force=True), "chrf": CHRF()}
        for metric in self._metrics.values():
            metric.corpus_score(
                ["a"], [["a"]]
            )  # says how many references there are, which signatures tell
        self._lengths = [len(self._statistics(name, ["a"], ["a"])[0]) for name in self._metrics]
        self.num_sums = sum(self._lengths)

    def sums(self, predicted: Sequence[Tokens], expected: Sequence[Tokens]) -> list[float]:
        texts = [[self.text(tokens) for tokens in sentences] for sentences in (predicted, expected)]
        statistics = [self._statistics(name, *texts) for name in self._metrics]
        return [float(sum(column)) for metric in statistics for column in zip(*metric, strict=True)]

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        left, found = iter(map(int, sums)), {}
        for (name, metric), length in zip(self._metrics.items(), self._lengths, strict=True):
            found[name] = (
                metric._compute_score_from_stats([next(left) for _ in range(length)]).score / 100
            )
        return found

    def signatures(self) -> dict[str, str]:
        return {name: str(metric.get_signature()) for name, metric in self._metrics.items()}

    def _statistics(
        self, name: str, predicted: list[str], expected: list[str]
    ) -> list[list[float]]:
        """Statistics of each sentence; the library adds such up itself, and offers no public way
        to."""
        found: list[list[float]] = self._metrics[name]._extract_corpus_statistics(
            predicted, [expected]
        )
        return found


Measure = PhoneErrors | BleuAndChrf
"""What decoded sentences score, as sums over sentences."""
