"""The values that specs are made of: names, numbers, lists of them, and strict tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# Names become those of folders and files: no sign that a shell or a file system reads otherwise.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

# Counters of 32 bits hold it.
MOST = 1_000_000_000

Count = Annotated[int, Field(ge=1, le=MOST)]

Seed = Annotated[int, Field(ge=0)]

Ratio = Annotated[float, Field(ge=1, allow_inf_nan=False)]

ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]

Finite = Annotated[float, Field(ge=-MOST, le=MOST)]

LocalStep = Name
"""Rule of a worker's step, by its name in `algorithms/local_steps`; a plan checks that it is one."""

CommunicationDtype = Literal["fp32", "fp16"]
"""Dtype of the numbers in messages, which decides how many bits are counted."""

Betas = Annotated[list[ShareBelowOne], Field(min_length=2, max_length=2)]


def once(values: list[Any]) -> list[Any]:
    """Refuse a list that holds a value twice.

    Rates are compared as the names of rows have them, with six digits.
    """
    if len(
        {f"{value:g}" if isinstance(value, float) else value for value in values}
    ) < len(values):
        raise ValueError("holds a value twice")
    return values


Seeds = Annotated[list[Seed], AfterValidator(once)]
"""Runs with the same seed would be the same run."""

Rates = Annotated[list[Positive], AfterValidator(once)]


def not_blank(text: str) -> str:
    """Refuse a text without any visible character."""
    if not text.strip():
        raise ValueError("is empty; say what people are to read there")
    return text


Text = Annotated[str, AfterValidator(not_blank)]


def finite(table: dict[str, Any]) -> dict[str, Any]:
    """Refuse numbers in a table that cannot be written or counted.

    They are nan and infinities, which JSON has no word for, and whole numbers that no counter
    holds.
    """
    for number in _numbers(table):
        # Put so that nan, which no comparison holds for, is refused too.
        if not abs(number) < math.inf or (
            isinstance(number, int) and abs(number) > MOST
        ):
            raise ValueError(
                f"holds {number}, which is no number that a setting can have; give a finite one"
            )
    return table


def _numbers(value: Any) -> Iterator[float]:
    """Return all numbers in a table, those of inner tables and lists too."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


Options = Annotated[dict[str, Any], AfterValidator(finite)]
"""A table whose keys are known only to the network that it is for."""


class Strict(BaseModel):
    """Frozen border type: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
