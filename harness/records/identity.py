"""Holds a record to its id, which is the hash of its scientific fields."""

from __future__ import annotations

import json

from pydantic import ValidationError

from harness.records.store import RecordError, RunFile
from harness.spec import RunConfig, explain, run_id


def check_id(run: RunFile, where: object) -> None:
    """Raises RecordError where a record bears another id than its config has."""
    try:
        own = run_id(RunConfig.model_validate_json(json.dumps(run.config)))
    except ValidationError as error:
        raise RecordError(f"{where} has a config that this program cannot read ({explain(error)})") from None
    if own != run.run_id:
        raise RecordError(
            f"{where} was edited: it is called {run.run_id}, and its config is that of run {own}; "
            "restore the file from where it came from"
        )
