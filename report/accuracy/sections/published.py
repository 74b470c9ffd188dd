"""What others published, read from report/published/, each figure with its source."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from report.accuracy.findings import Study
from report.kit.document import Cell, Section, Table, texts
from report.kit.exhibits import Exhibits

FOLDER = Path(__file__).parents[2] / "published"
NOT_AT_HAND = "not at hand"


@dataclass(frozen=True)
class Claim:
    """One published figure, in its source's words."""

    quantity: str
    value: str
    source: str
    place: str


def read_claims() -> tuple[Claim, ...]:
    """All claims of all files of FOLDER, in the order of the files' names.

    Raises:
        ValueError: a file is no TOML or a claim lacks a field or has one too many; the message names the file.
    """
    claims: list[Claim] = []
    for path in sorted(FOLDER.glob("*.toml")):
        try:
            claims += [Claim(**entry) for entry in tomllib.loads(path.read_text())["claim"]]
        except (tomllib.TOMLDecodeError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no file of claims ({error}); see the format in cser2020.toml") from None
    return tuple(claims)


def published_table(claims: tuple[Claim, ...]) -> Table:
    """The claims as they stand, "not at hand" where nobody has entered them."""
    missing = sum(claim.value == NOT_AT_HAND for claim in claims)
    found = f"Of {len(claims)} published figures {missing} are not at hand; none of them was measured here."
    rows = tuple((Cell(c.quantity), Cell(c.value), Cell(c.source), Cell(c.place)) for c in claims)
    return Table("What was published", found, texts("quantity", "published", "source", "place"), rows)


def section(study: Study, exhibits: Exhibits) -> Section:
    """The claims that `report/published` holds."""
    return Section("What was published", (exhibits.table(published_table(read_claims())),))
