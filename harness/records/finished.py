"""Whether the records of a finished run agree with each other, and with the config of its id.

Ids, scores, bits and digests are held against each other, so an edited or torn record is noticed
before a report is made of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cser_bench.harness.records import store
from cser_bench.harness.records.store import RecordError, Result, RunRecord
from cser_bench.harness.spec.errors import explain
from cser_bench.harness.spec.run import RunConfig, run_id

OF_BOTH = (
    "train_loss",
    "test_loss",
    "test_correct",
    "test_count",
    "test_accuracy",
    "metrics",
)
"""What a result says as the last event does."""


def finished_run(files: Mapping[str, Any], folder: Path, where: object) -> RunRecord:
    """Return the run in the files of this folder, packed or not.

    Raises RecordError: it is damaged, not done, or another run.
    """
    record = store.parse_run(files, folder)
    check_run(record, where)
    return record


def check_run(record: RunRecord, where: object) -> None:
    """Raise RecordError where a run's records are not those of a run that is done, in its folder.

    Its id is that of its config and its folder's name, and its records agree with each other.
    """
    config = config_of(record, where)
    id_of_config = run_id(config)
    folder = record.folder
    # Three names of one run: where one differs, it was edited, moved or torn.
    if record.result is None or not id_of_config == record.run.run_id == folder.name:
        with_result = "and" if record.result else "without"
        raise RecordError(
            f"{where} was edited or moved: it stands for run {folder.name}, holds run "
            f"{record.run.run_id} {with_result} a result, and its config is that of run "
            f"{id_of_config}; restore it from where it came from"
        )
    check_records(record, record.result, config)


def config_of(record: RunRecord, where: object) -> RunConfig:
    """Return the config in a run's record.

    Raises RecordError: it cannot be read.
    """
    try:
        return RunConfig.model_validate_json(json.dumps(record.run.config))
    except ValidationError as error:
        raise RecordError(
            f"{where} has a config that this program cannot read ({explain(error)})"
        ) from None


def check_records(record: RunRecord, result: Result, config: RunConfig) -> None:
    """Raise RecordError where the records of a run that is over contradict each other.

    It lacks scores on its way, its last one is not the result's, its bits do not add up, its seed
    is not the config's, or its digest differs. A record without a digest, made by an earlier
    version, may have been edited unseen in what nothing else says: scores on the way and bits that
    still rise.
    """
    folder = record.folder
    if record.run.seed not in _seeds_of(config):
        raise RecordError(
            f"{folder}/run.json says seed = {record.run.seed}, and its config {config.seed}: it was "
            "edited; restore it, or delete the folder and run again"
        )
    scored = {event.step for event in record.events}
    missing = _scored_steps(record, result, config) - scored
    if missing:
        raise RecordError(
            f"{folder}/events.jsonl lacks {len(missing)} of {len(missing | scored)} scores, first "
            f"that after step {min(missing)}: it was cut or lost; restore it, or delete the folder "
            "and run again"
        )
    _check_bits(record, result)
    if result.sha256 not in (
        None,
        store.digest_of(result, record.events, record.run),
        # Of a record that was made before the digest took in run.json.
        store.digest_of(result, record.events),
    ):
        raise RecordError(
            f"{folder}/result.json has another digest than it, events.jsonl and run.json give: one "
            "of them was edited; restore all three, or delete the folder and run again"
        )
    if result.status == "diverged":
        return
    # The last score is taken after the last step, so both tell of the same model.
    for key in OF_BOTH:
        last = getattr(record.events[-1], key)
        final = getattr(result, key)
        if last != final:
            raise RecordError(
                f"{folder}/result.json says {key} = {final}, and the last line of events.jsonl "
                f"{last}: one of them was edited; restore both, or delete the folder and run again"
            )


def _seeds_of(config: RunConfig) -> tuple[int, ...]:
    """Return the seeds that the row of a run of this config can have.

    Runs that share a seed are numbered by `repeat`, from 0 or another number.
    """
    return (config.repeat,) if config.repeat else (config.seed, config.repeat)


def _check_bits(record: RunRecord, result: Result) -> None:
    """Raise RecordError where what was sent by each event does not rise to what was sent in all."""
    total = sum(
        entry.bits for name, entry in result.traffic.items() if name in store.TRAINING
    )
    before = 0
    for event in record.events:
        if not before <= event.bits_sent <= total:
            raise RecordError(
                f"{record.folder}/events.jsonl says that {event.bits_sent} bits were sent by step "
                f"{event.step}, after {before} before it and of {total} in result.json: one of them "
                "was edited; restore both, or delete the folder and run again"
            )
        # Bits never fall: each event has those of all steps up to it.
        before = event.bits_sent
    if result.status == "done" and before != total:
        raise RecordError(
            f"{record.folder}/result.json says that {total} bits were sent, and the last line of "
            f"events.jsonl {before}: one of them was edited; restore both, or delete the folder and "
            "run again"
        )


def _scored_steps(record: RunRecord, result: Result, config: RunConfig) -> set[int]:
    """Return the steps after which a run that is over was scored.

    They are known as far as its records say how long an epoch was.
    """
    num_epochs = config.num_schedule_epochs
    if result.status == "done":
        return config.evaluation.steps(num_epochs, result.num_steps // num_epochs)
    # A run that is cut to a number of steps is one epoch of that length to its schedule.
    per_epoch = config.num_steps or _steps_per_epoch(record)
    if per_epoch is None:
        return set()
    planned = config.evaluation.steps(num_epochs, per_epoch)
    # Not after its last step: there it was seen to diverge, and such a step leaves no score.
    return {step for step in planned if step < result.num_steps}


def _steps_per_epoch(record: RunRecord) -> int | None:
    """Return the steps per epoch by the first score.

    None where the run diverged before it, so that nobody can tell.
    """
    if not record.events or not record.events[0].epoch:
        return None
    first = record.events[0]
    # `epoch` is step / steps per epoch, in floating point.
    return round(first.step / first.epoch)
