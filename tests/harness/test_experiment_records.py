"""experiment.json: its keys are its own, so a spec may change while records that ship are read."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from cser_bench.harness.records.experiment import Experiment, read_experiment
from cser_bench.harness.records.shipped import shipped_experiments

TABLES = ("contrasts", "exponents", "predictions", "evidence")
"""What a record keeps of its spec in tables."""


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Each model in a type, and each in the types of its fields."""
    for part in get_args(annotation):
        yield from models_in(part)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_in(field.annotation)


def test_no_model_of_a_record_is_one_of_a_spec_or_inherits_from_one() -> None:
    models = set(models_in(Experiment))
    assert len(models) > len(TABLES)
    for model in models:
        for ancestor in model.__mro__:
            assert not ancestor.__module__.startswith("cser_bench.harness.spec"), model


def said(value: Any) -> Any:
    """A value of JSON without what says nothing: null, false, and tables and lists that are empty."""
    if isinstance(value, list):
        return [said(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {key: said(each) for key, each in value.items()}
    return {
        key: each for key, each in kept.items() if each not in (None, False, [], {})
    }


@pytest.mark.parametrize(
    "folder", shipped_experiments(), ids=lambda folder: folder.name
)
def test_what_a_shipped_record_keeps_of_its_spec_is_read_whole(folder: Path) -> None:
    on_disk = json.loads((folder / "experiment.json").read_text())
    read = read_experiment(folder).json_fields()
    for table in TABLES:
        assert said(read.get(table)) == said(on_disk.get(table)), table
