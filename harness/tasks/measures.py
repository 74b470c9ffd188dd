"""What decoded sentences are scored by, as sums over sentences, so that workers may each score a share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

Tokens = Sequence[int]


class Measure(Protocol):
    """Sums that can be added over any sentences, and the metrics that follow from them."""

    num_sums: int

    def sums(self, predicted: Sequence[Tokens], expected: Sequence[Tokens]) -> list[float]:
        """The sums over these sentences, which are without BEGIN and END."""

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """The metrics by name, as shares (a BLEU of 30 is 0.3)."""

    def signatures(self) -> dict[str, str]:
        """How each metric was computed, where that has a standard form."""


class PhoneErrors:
    """Edit distance over the length of the reference, both summed over all words."""

    num_sums = 2

    def sums(self, predicted: Sequence[Tokens], expected: Sequence[Tokens]) -> list[float]:
        errors = sum(edit_distance(*pair) for pair in zip(predicted, expected, strict=True))
        return [float(errors), float(sum(map(len, expected)))]

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        errors, phones = sums
        return {"phone_error_rate": errors / phones}

    def signatures(self) -> dict[str, str]:
        return {}


def edit_distance(first: Tokens, second: Tokens) -> int:
    """Fewest insertions, deletions and substitutions that make one of the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for number, left in enumerate(first, 1):
        diagonal, row[0] = row[0], number
        for place, right in enumerate(second, 1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (left != right))
    return row[-1]


class BleuAndChrf:
    """BLEU (Papineni et al., ACL 2002) and chrF (Popović, WMT 2015) of the whole split, by sacreBLEU (Post, WMT 2018).

    Args:
        text: of a sentence's tokens.
    """

    def __init__(self, text: Callable[[Tokens], str]) -> None:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        self._text = text
        # Sentences are passed to a corpus's score as if tokenised, which only silences a warning.
        self._metrics: dict[str, Any] = {"bleu": BLEU(force=True), "chrf": CHRF()}
        for metric in self._metrics.values():
            metric.corpus_score(["a"], [["a"]])  # says how many references there are, which signatures tell
        self._lengths = [len(self._statistics(name, ["a"], ["a"])[0]) for name in self._metrics]
        self.num_sums = sum(self._lengths)

    def sums(self, predicted: Sequence[Tokens], expected: Sequence[Tokens]) -> list[float]:
        texts = [[self._text(tokens) for tokens in sentences] for sentences in (predicted, expected)]
        columns: list[float] = []
        for name in self._metrics:
            columns += [float(sum(column)) for column in zip(*self._statistics(name, *texts), strict=True)]
        return columns

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        found, start = {}, 0
        for (name, metric), length in zip(self._metrics.items(), self._lengths, strict=True):
            own = [int(each) for each in sums[start : start + length]]
            found[name] = metric._compute_score_from_stats(own).score / 100
            start += length
        return found

    def signatures(self) -> dict[str, str]:
        return {name: str(metric.get_signature()) for name, metric in self._metrics.items()}

    def _statistics(self, name: str, predicted: list[str], expected: list[str]) -> list[list[float]]:
        """Statistics of each sentence; the library adds such up itself, and offers no public way to."""
        found: list[list[float]] = self._metrics[name]._extract_corpus_statistics(predicted, [expected])
        return found
