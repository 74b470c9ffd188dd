"""Texts by symbols: windows of a text, of which each next symbol is predicted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.samples import Batch, Modality
from cser_bench.harness.tasks.task import TensorSamples, subset


@dataclass(frozen=True)
class TextWindows(TensorSamples):
    """Windows of a text, labelled by the groups that they are of.

    Inputs are uint8 of shape (windows, labels_per_sample + 1). `sha256` is the text's digest, what
    is scored first.
    """

    num_groups: int
    labels_per_sample: int
    sha256: str

    @property
    def modality(self) -> Modality:
        return Modality(
            self.measure,
            labels_per_sample=self.labels_per_sample,
            num_groups=self.num_groups,
            joins_workers=True,
            sha256=self.sha256,
        )

    def batch(self, inputs: Tensor, labels: Tensor) -> Batch:
        """Return inputs and labels, int64 of shape (batch, labels_per_sample) each.

        A label is the symbol that follows.
        """
        symbols = inputs.long()
        return symbols[:, :-1], symbols[:, 1:]


def numbers_of(text: str, symbols: str, other: str) -> Tensor:
    """Give the number of each symbol of a text, uint8 of shape (length,).

    Args:
        symbols: those that have a number of their own, in the order of these.
        other: which of them stands for all that has none.
    """
    # NumPy keeps a string as code points of 32 bits each.
    codes = numpy.array([text]).view(numpy.uint32)
    largest = max(int(codes.max()), *map(ord, symbols))
    number_by_code = numpy.full(largest + 1, symbols.index(other), numpy.uint8)
    number_by_code[[ord(symbol) for symbol in symbols]] = range(len(symbols))
    # A table by code point: one look-up for the whole text.
    return torch.from_numpy(number_by_code[codes])


def windows_of(numbers: Tensor, length: int) -> Tensor:
    """Cut a text into windows that follow each other, of shape (windows, length + 1).

    A window's last symbol is the next one's first, so that each symbol but the first is predicted
    once. What is left at the end and fills no window is dropped.
    """
    # Windows share a symbol, so they are views until they are copied.
    return numbers.unfold(0, length + 1, length).contiguous()


@dataclass(frozen=True)
class Split:
    """Windows and groups to train on, those to score, and the text's digest."""

    train: Batch
    test: Batch
    sha256: str

    def check(
        self,
        num_train: int,
        num_test: int,
        sha256: str | None,
        problem: str,
        package: str,
    ) -> None:
        """Raise DataError where there are too few windows, or where the text is another one.

        Args:
            sha256: the known text's; None where any will do.
            problem: what is wrong then.
            package: Debian's, which has the known text.
        """
        num_train_there = len(self.train[0])
        num_test_there = len(self.test[0])
        is_known = sha256 in (None, self.sha256)
        if num_train_there >= num_train and num_test_there >= num_test and is_known:
            return
        raise DataError(
            f"{problem} ({num_train_there:,} windows to train on and {num_test_there:,} to score, "
            f"expected {num_train:,} and {num_test:,}); install the package {package} of Debian 13"
        )

    def first(self, num_train: int, num_test: int) -> Split:
        """Keep so many windows of each part."""
        windows, groups = self.train
        test_windows, test_groups = self.test
        train = windows[:num_train], groups[:num_train]
        test = test_windows[:num_test], test_groups[:num_test]
        return Split(train, test, self.sha256)

    def samples(
        self, spec: TaskSpec, device: torch.device, num_groups: int
    ) -> TextWindows:
        """Put what the spec asks for on the device."""
        # None: `subset` scores the validation samples.
        scored = None if spec.num_validation else self.test
        chosen = subset(self.train, spec, scored)
        length = self.train[0].shape[1] - 1
        return TextWindows(
            chosen.train_inputs.to(device),
            chosen.train_labels.to(device),
            chosen.evaluation_inputs.to(device),
            chosen.evaluation_labels.to(device),
            num_groups=num_groups,
            labels_per_sample=length,
            sha256=self.sha256,
        )
