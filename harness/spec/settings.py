"""The settings that a spec gives a method: numbers, words and compressors, by name.

A file has them as a table. They stay as they were written, 8 apart from 8.0, since a run's id is a
hash of them. `harness.train.method` holds them against the method's class; nothing here needs
torch, as records are read by reports.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, RootModel

from cser_bench.harness.spec.values import finite

RUN_LENGTH = "end"
"""What a spec writes for an interval that is as long as the run."""

Plain = bool | int | float | str | None


class CompressorSettings(BaseModel):
    """A compressor of a spec, for instance {kind = "block", ratio = 512}.

    `kind` is the compressor's name in `algorithms/compressors`. All other keys are its options,
    such as its compression ratio R, that of one message.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """The options of the compressor's class, as they were given."""
        return dict(self.model_extra or {})


def _as_value(given: Any) -> Any:
    """Return a value of a table as a setting; a table in it is a compressor."""
    finite({"value": given})
    if not isinstance(given, dict):
        return given
    if not isinstance(given.get("kind"), str):
        raise ValueError(
            f'{given!r} is no compressor; give its kind, as in {{ kind = "top_k", ratio = 192 }}'
        )
    return CompressorSettings(**given)


Value = Annotated[Plain | list[Plain] | CompressorSettings, BeforeValidator(_as_value)]


class MethodSettings(RootModel[dict[str, Value]]):
    """All settings that a spec gives a method; those left at their defaults are absent."""

    model_config = ConfigDict(frozen=True, strict=True)

    root: dict[str, Value] = {}

    @property
    def table(self) -> dict[str, Any]:
        """The settings as files and records have them."""
        table: dict[str, Any] = self.model_dump(mode="json")
        return table

    def __bool__(self) -> bool:
        return bool(self.root)

    def changed_by(self, other: MethodSettings) -> MethodSettings:
        """Return these settings, and the other ones in their place where both have a name."""
        return MethodSettings(self.root | other.root)

    def filled_in(self, numbers: dict[str, float]) -> MethodSettings:
        """Return the settings with a number for each word that names one."""
        return MethodSettings(_filled_in(self.table, numbers))


def _filled_in(table: dict[str, Any], numbers: dict[str, float]) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            filled[key] = _filled_in(value, numbers)
        elif isinstance(value, str):
            filled[key] = numbers.get(value, value)
        else:
            filled[key] = value
    return filled
