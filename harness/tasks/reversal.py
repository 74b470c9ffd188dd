"""A made-up text task for trying things and for tests: words to be spelt backwards.

It needs no data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from cser_bench.harness.seeds import generator
from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks.pairs import (
    NUM_SPECIAL,
    Encoded,
    PairSamples,
    PhoneErrors,
    Tokens,
    chosen_pairs,
    digest,
)
from cser_bench.harness.tasks.task import Inputs

ALPHABET = "abcdefgh"
SHORTEST = 2
LONGEST = 7


@dataclass(frozen=True)
class Reversal:
    """Words of `SHORTEST` to `LONGEST` letters, of which the first is the group."""

    num_train: int = 1_600
    num_test: int = 100
    num_classes: int = NUM_SPECIAL + len(ALPHABET)
    input_shape: tuple[int, ...] = (2, LONGEST + 1)
    inputs: Inputs = "pairs"
    metrics: tuple[str, ...] = ("phone_error_rate",)

    def prepare(self, data: Path | None) -> None:
        pass

    def load(
        self, data: Path | None, spec: TaskSpec, device: torch.device
    ) -> PairSamples:
        train = self._made_up("train", self.num_train)
        test = self._made_up("test", self.num_test)
        sha256 = digest(map(_word, (*test[0], *train[0])))
        pairs = chosen_pairs(train, test, spec, device)
        return PairSamples(*pairs, PhoneErrors(), self.input_shape[1], sha256)

    def _made_up(self, split: str, count: int) -> Encoded:
        random = generator("reversal", split)
        lengths = torch.randint(
            SHORTEST, LONGEST + 1, (count,), generator=random
        ).tolist()
        shape = (count, LONGEST)
        letters = torch.randint(
            NUM_SPECIAL, self.num_classes, shape, generator=random
        ).tolist()
        sources: list[Tokens] = [
            row[:length] for row, length in zip(letters, lengths, strict=True)
        ]
        targets = [source[::-1] for source in sources]
        groups = [source[0] - NUM_SPECIAL for source in sources]
        return sources, targets, groups


def _word(tokens: Tokens) -> str:
    return "".join(ALPHABET[token - NUM_SPECIAL] for token in tokens)


TASK = Reversal()
