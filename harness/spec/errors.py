"""Errors of specs that cannot be used."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails


class SpecError(ValueError):
    """A spec that cannot be used: the message says where, what is wrong and what to do."""

    exit_code = 2


def first_complaint(error: ValidationError) -> ErrorDetails:
    """Return one of pydantic's complaints.

    An unknown key comes before others, since what is missing may be there misspelt.
    """
    return min(
        error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden"
    )


def explain(error: ValidationError) -> str:
    """Return the first complaint as a sentence."""
    first = first_complaint(error)
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}; remove it or correct its name"
    # A grid's columns may have capitals, so of them this would be wrong.
    if (
        first["type"] == "string_pattern_mismatch"
        and "A-Z" not in first["ctx"]["pattern"]
    ):
        message = f"{first['input']!r} must have small letters, digits and the signs _ . - alone"
        if where.endswith("algorithm"):
            message += ", as mcser has for the class MCSER; docs/algorithms.md lists all methods"
    return f"{where}: {message}" if where else message
