"""A benchmark's figure: a number with its spread, its aim, and what it compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any, Literal


@dataclass(frozen=True)
class Aim:
    """What the figure ought to be."""

    kind: Literal["at most", "at least"]
    value: float

    def met_by(self, measured: float) -> bool:
        return measured <= self.value if self.kind == "at most" else measured >= self.value


@dataclass(frozen=True)
class Measurement:
    """One line of the table. `measured` is None where it could not be measured; `reason` then says why.

    `samples` are the repetitions' values, of which `measured` is the median; `raw` holds the timings behind them.
    """

    name: str
    compared: str
    measured: float | None
    unit: str
    aim: Aim | None = None
    samples: Sequence[float] = ()
    raw: Mapping[str, Sequence[float]] = field(default_factory=dict)
    reason: str | None = None

    @property
    def met(self) -> bool | None:
        return None if self.aim is None or self.measured is None else self.aim.met_by(self.measured)

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """The middle half of the samples lies between these; None for fewer than two."""
        if len(self.samples) < 2:
            return None
        lower, _, upper = quantiles(self.samples, n=4, method="inclusive")
        return lower, upper

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "met": self.met, "quartiles": self.quartiles}


def ratio(
    name: str,
    compared: str,
    timings: Mapping[str, Sequence[float]],
    above: str,
    below: str,
    aim: Aim | None = None,
) -> Measurement:
    """The median over repetitions of timings[above] / timings[below], each taken within one repetition.

    Neighbours in time share the machine's mood, so their ratio varies less than either.
    """
    samples = [a / b for a, b in zip(timings[above], timings[below], strict=True)]
    raw = {above: timings[above], below: timings[below]}
    return Measurement(name, compared, median(samples), "x", aim, samples, raw)


def not_measured(name: str, compared: str, reason: str, aim: Aim | None = None) -> Measurement:
    """A figure that this machine or this checkout cannot give now."""
    return Measurement(name, compared, None, "", aim, reason=reason)


def show(figure: Measurement) -> list[str]:
    """The figure's cells in the table."""
    if figure.measured is None:
        return [figure.name, "not measured", _aim(figure.aim), "", figure.reason or ""]
    measured = f"{figure.measured:.3g} {figure.unit}"
    if figure.quartiles is not None:
        measured += " ({:.3g} to {:.3g})".format(*figure.quartiles)
    repetitions = f"; median (quartiles) of {len(figure.samples)}" if len(figure.samples) > 1 else ""
    met = {None: "", True: "yes", False: "no"}[figure.met]
    return [figure.name, measured, _aim(figure.aim), met, figure.compared + repetitions]


def _aim(aim: Aim | None) -> str:
    return "" if aim is None else f"{'<=' if aim.kind == 'at most' else '>='} {aim.value:g}"
