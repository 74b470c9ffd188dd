"""What an experiment is about: the table [evidence] of a spec.

Advice and reports choose experiments by it.
"""

from __future__ import annotations

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


class EvidenceSpec(Strict):
    """What an experiment is evidence for.

    `network`: as a sentence has it, with its article; experiments on one network say the same.
    `order`: experiments stand in the order of this number.
    `advice`: the name of the network for `harness advise`.
    """

    roles: Annotated[list[Role], Field(min_length=1)]
    network: Text
    order: int = 1000
    advice: Name | None = None
