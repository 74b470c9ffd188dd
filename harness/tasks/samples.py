"""What a loaded data set is, what a model answers about its samples, and how answers are scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
"""Inputs, float32 of shape (batch, *input_shape), and labels, int64 of shape (batch,); of text see
`Pairs.batch`."""


class Samples(Protocol):
    """A loaded data set, shared by all workers of a process; reading it changes nothing."""

    @property
    def train_labels(self) -> Tensor:
        """Labels of the samples trained on, int64 of shape (num_train,)."""

    @property
    def modality(self) -> Modality:
        """What a model answers about the samples, and how that is scored."""

    def training_batches(
        self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int
    ) -> Iterator[Batch]:
        """Yield the batches of these indices, augmented.

        Randomness depends on (seed, rank, step) alone.
        """

    def evaluation_batches(self, indices: Tensor) -> Iterator[Batch]:
        """Yield these samples of the evaluated split, each once and in order."""


class Answering(Protocol):
    """A model that is scored, in the run's precision."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return what the model makes of a batch's inputs."""

    def sentences(self, source: Tensor, max_length: int) -> list[list[int]]:
        """Return the model's translations of sources, without BEGIN and END."""


class Measure(Protocol):
    """A score beside loss and accuracy, as sums over samples: so workers may each score a share."""

    @property
    def num_sums(self) -> int:
        """How many sums it needs."""

    def sums(self, answers: Any, expected: Any) -> Sequence[float]:
        """Sum over these samples.

        Of labels, answers are a model's outputs, of shape (batch, classes, ...), and `expected`
        the labels; of pairs both are sentences without BEGIN and END.
        """

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Make the metrics of sums, by name, as shares."""


@dataclass(frozen=True)
class Scored:
    """What a model scored: right answers, all answers, mean loss, and the measure's metrics."""

    correct: int
    count: int
    loss: float
    metrics: dict[str, float] | None


@dataclass(frozen=True)
class Modality:
    """What a model answers about a data set's samples: by default a label for each.

    Attributes:
        measure: a score beside loss and accuracy.
        labels_per_sample: answers that a sample asks for, each of which counts; of a window of a
            text one for each symbol.
        num_groups: how many groups `train_labels` has; None where these are the task's classes.
        joins_workers: whether the batch of all workers' indices is their batches, one after the
            other. It is not where samples are augmented by rank.
        data_name: the file that was read in place of a task's official release, for records.
        sha256: digest of the data, for records.
    """

    measure: Measure | None = None
    labels_per_sample: int = 1
    num_groups: int | None = None
    joins_workers: bool = False
    data_name: str | None = None
    sha256: str | None = None

    @property
    def lengths(self) -> Tensor | None:
        """Positions that each sample trained on takes, so that batches are of like ones.

        None where all take as many.
        """
        return None

    @property
    def loss_terms(self) -> Tensor | None:
        """Terms of a batch's mean loss that each sample trained on has; None where all have as many."""
        return None

    def sums(self, model: Answering, samples: Samples, indices: Tensor) -> Tensor:
        """Return the sums that the model's score on these samples is made of.

        They are right answers, answers, summed loss, and the measure's: float64, of one dimension,
        on the model's device.
        """
        measured = [0.0] * (0 if self.measure is None else self.measure.num_sums)
        # On the model's device throughout, since a look from the CPU would wait for every batch.
        totals = torch.zeros(3, dtype=torch.float64, device=model.device)
        for inputs, labels in samples.evaluation_batches(indices):
            outputs = model.outputs(inputs)
            # Outputs are (batch, classes), or (batch, classes, length) of windows: classes are axis
            # 1 in both.
            correct = (outputs.argmax(dim=1) == labels).sum().double()
            # A sum, as the last batch may be smaller: a mean of means would weigh its samples more.
            loss = nn.functional.cross_entropy(
                outputs, labels, reduction="sum"
            ).double()
            totals += torch.stack(
                [correct, torch.full_like(correct, labels.numel()), loss]
            )
            if self.measure is not None:
                own = self.measure.sums(outputs, labels)
                measured = [
                    before + more for before, more in zip(measured, own, strict=True)
                ]
        return torch.cat([totals, totals.new_tensor(measured)])

    def scored(self, sums: Sequence[float]) -> Scored:
        """Return the score of these sums, over one worker or all."""
        correct, count, loss, *measured = sums
        metrics = None if self.measure is None else self.measure.metrics(measured)
        return Scored(int(correct), int(count), loss / count, metrics)
