"""What an experiment is about: the table [evidence] of a spec.

Advice and reports read its roles, names and note. Rows, pairs and compressors stay in the form for the
specs that ship, whose texts date declarations; nothing reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from cser_bench.harness.spec.values import Name, Strict, Text

Role = Literal[
    "reference",
    "search",
    "network",
    "task",
    "loads",
    "methods",
    "bounds",
    "rivals",
    "ties",
    "tail",
    "levels",
    "rules",
    "momentum",
    "released",
    "width",
    "size",
    "skew",
    "workers",
    "samples",
    "batch_norm",
    "group_norm",
]
"""What an experiment can be about. Advice shows rows of some, see `report.advice.runs.ROLES`."""

RowRole = Literal[
    "reset",
    "blocks",
    "topk",
    "local",
    "feedback",
    "feedback_blocks",
    "outer",
    "outer_baseline",
    "low_rank",
    "average_at_end",
    "tail",
]
"""What a row can speak for. `reset` is error reset in the form that did better in tuning, `blocks`
and `topk` are its two forms."""

RowName = Annotated[str, Field(min_length=1)]
"""A row's name, as [[rows]] or [[restarts]] make it."""


class PairSpec(Strict):
    """Two rows that an answer compares, one less the other.

    `called`: what a table calls the row, if not by its label. `headline`: what the answer's first
        line says of it; of a pair without one it says nothing.
    """

    row: RowName
    reference: RowName
    called: Text | None = None
    headline: Text | None = None


class CompressorSpec(Strict):
    """A compressor, and its row under each rule for what is not sent."""

    compressor: Text
    dropped: RowName
    feedback: RowName
    reset: RowName


class EvidenceSpec(Strict):
    """What an experiment is evidence for.

    `network`: as a sentence has it, with its article; experiments on one network say the same.
    `dataset`: as a sentence has it.
    `kind`: what tables call the network with its optimiser; without it, the network.
    `task`: what tables of tasks call it. `setting`: what is other than usual, as in "workers have
        ...".
    `note`: a sentence that an answer adds. `order`: experiments stand in the order of this number.
    `in_readme`: whether README holds other forms of error reset against the one that it has.
    `asks_again`: another experiment with the same questions.
    `advice`: the name of the network for `harness advise`.
    `rows`: the rows that speak for the families of methods. `shown`: rows that a table of an answer
        shows, where it cannot show all.
    """

    roles: Annotated[list[Role], Field(min_length=1)]
    network: Text
    data: Literal["images", "text"]
    dataset: Text
    kind: Text | None = None
    task: Text | None = None
    setting: Text | None = None
    note: Text | None = None
    order: int = 1000
    in_readme: bool = False
    asks_again: Name | None = None
    advice: Name | None = None
    rows: dict[RowRole, RowName] = {}
    shown: list[RowName] = []
    pairs: list[PairSpec] = []
    compressors: list[CompressorSpec] = []

    def named_rows(self) -> Iterator[str]:
        """Return every row that is named somewhere in the table."""
        yield from self.rows.values()
        yield from self.shown
        for pair in self.pairs:
            yield from (pair.row, pair.reference)
        for compressor in self.compressors:
            yield from (compressor.dropped, compressor.feedback, compressor.reset)
