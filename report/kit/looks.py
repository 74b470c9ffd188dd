"""One colour, marker and dash per method, the same in every figure of every report."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

Dashes = tuple[float, ...]

BASELINE = "#555555"
"""Colour of what the others are compared with."""


@dataclass(frozen=True)
class LineStyle:
    """How one method is drawn."""

    colour: str
    marker: str
    dashes: Dashes


_SOLID: Dashes = ()
_DASHED: Dashes = (4, 1.5)
_DOTTED: Dashes = (1.2, 1.2)
_MIXED: Dashes = (5, 1.5, 1.2, 1.5)

LOOKS = {
    # Bounds are greys and baselines of speed too, so that colour means a method that is judged.
    "SGD": LineStyle(BASELINE, "o", _SOLID),
    "SGD accumulate": LineStyle("#777777", "s", _DASHED),
    "final average": LineStyle("#8a8a8a", "D", _DOTTED),
    "alone": LineStyle("#a0a0a0", "v", _MIXED),
    "DDP": LineStyle("#000000", "o", _SOLID),
    "DDP, fp16": LineStyle("#8c8c8c", "^", _SOLID),
    # Found by a search: each two at least 22 apart in Lab, to the usual eye and to three kinds of colour-blind ones.
    "EF-SGD": LineStyle("#A62C06", "s", _MIXED),
    "EF-SGD top-k": LineStyle("#E061BA", "v", _MIXED),
    "PowerSGD": LineStyle("#F84D00", "p", _MIXED),
    "QSparse-local-SGD": LineStyle("#700C99", "D", _DASHED),
    "local SGD": LineStyle("#BC9B83", "X", _DASHED),
    "CSEA": LineStyle("#1484FA", "^", _SOLID),
    "CSER-PL": LineStyle("#023617", "P", _SOLID),
    "CSER": LineStyle("#4FBD48", "h", _SOLID),
    "M-CSER": LineStyle("#1A28FC", "o", _SOLID),
}
"""By method. A label that goes on after a name, as "EF-SGD, overlapped", is a variant: the same but for its dashes."""

_ALIASES = {
    "SGD accumulated": "SGD accumulate",
    "worker alone": "alone",
    "one worker alone": "alone",
    "EF-SGD block": "EF-SGD",
    "EF-SGD blocks": "EF-SGD",
    "DDP, PowerSGD": "PowerSGD",
    "QSparse": "QSparse-local-SGD",
    "MCSER": "M-CSER",
    "CSERPL": "CSER-PL",
}
_VARIANTS: dict[str, Dashes] = {
    "overlapped": (7, 1.5),
    "no overlap": (2.5, 1),
    "rank 1": (1, 1),
    "rank 2": (5, 1, 1, 1),
    "rank 4": (8, 1.5, 1, 1.5),
    "ratio 32": (1.5, 1.5),
    "ratio 1024": (3, 1, 1, 1, 1, 1),
}
_OTHER_DASHES: tuple[Dashes, ...] = ((6, 1), (2, 2), (6, 1, 2, 1), (3, 3))
_OTHER_COLOURS = ("#7B4B2A", "#B5179E", "#5F7A00", "#006D77")
_OTHER_MARKERS = ("<", ">", "d", "*", "8", "H")


def look_of(label: str) -> LineStyle:
    """The look of a method by its label; one that is not in the table gets one of its own by its name."""
    known = {_words(name): look for name, look in LOOKS.items()}
    known |= {_words(alias): LOOKS[name] for alias, name in _ALIASES.items()}
    words = _words(label)
    for count in range(len(words), 0, -1):
        if look := known.get(words[:count]):
            rest = " ".join(words[count:])
            return replace(look, dashes=_variant(rest)) if rest else look
    number = _number(" ".join(words))
    return LineStyle(
        _OTHER_COLOURS[number % 4], _OTHER_MARKERS[number // 4 % 6], _OTHER_DASHES[number // 24 % len(_OTHER_DASHES)]
    )


def looks_of(labels: Sequence[str]) -> dict[str, LineStyle]:
    """A look per label."""
    return {label: look_of(label) for label in labels}


def _variant(rest: str) -> Dashes:
    return _VARIANTS.get(rest, _OTHER_DASHES[_number(rest) % len(_OTHER_DASHES)])


def _words(label: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z0-9]+", label.lower()))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
