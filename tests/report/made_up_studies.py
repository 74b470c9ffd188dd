"""Made-up runs of the studies, in the store's format and with the ids that their settings have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from harness.plan.plan import make_plan
from harness.records.packs import open_runs
from harness.records.store import VERSION
from harness.spec_file import find_spec, load_spec

LONG = Path(__file__).parents[2] / "results" / "reference" / "fashion_mnist_long"
Accuracy = Callable[[str, int], float | None]
"""Of a row at a seed, as a share; None for a run that is missing."""


def made_up_accuracy(row: str, seed: int) -> float | None:
    """Between a floor of 83 % and a ceiling of 87 %, the same for the same row and seed."""
    noise = int(hashlib.sha256(f"{row} {seed}".encode()).hexdigest()[:4], 16) / 65535
    level = {"sgd": 0.87, "alone": 0.83}.get(row)
    own = int(hashlib.sha256(row.encode()).hexdigest()[:4], 16) / 65535
    return (0.855 + 0.012 * own if level is None else level) + 0.002 * noise


def write_study(results: Path, name: str, accuracy: Accuracy = made_up_accuracy, tuning: bool = False) -> Path:
    """Write the records of the study studies/`name`, at a rate that no tuning chose; returns its folder."""
    spec = load_spec(find_spec(f"studies/{name}"))
    rows = [row.model_copy(update={"learning_rate": row.learning_rate or 0.03}) for row in spec.rows]
    plan = make_plan(spec if tuning else spec.model_copy(update={"rows": rows, "tuning": None}), results, tuning)
    folder = results / plan.experiment.name
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps(plan.experiment.model_dump()))  # An infinite ratio stays one.
    template = next(iter(open_runs(LONG).values()))
    assert template.result
    for run in plan.runs:
        score = accuracy(run.row, run.seed)
        if score is None:
            continue
        correct = round(10_000 * score)
        events = [
            event.model_copy(
                update={"test_correct": correct, "test_accuracy": correct / 10_000, "worker_distance": 0.5}
            )
            for event in template.events
        ]
        result = template.result.model_copy(
            update={
                "run_id": run.run_id,
                "version": VERSION,
                "num_steps": 4675,
                "test_correct": correct,
                "test_count": 10_000,
                "test_accuracy": correct / 10_000,
                "attempt": template.run.attempts[-1].attempt,
            }
        )
        config = run.config.model_dump(mode="json")
        own = {"run_id": run.run_id, "experiment": plan.experiment.name, "row": run.row, "seed": run.seed}
        record = template.run.model_copy(update=own | {"config": config})
        (folder / run.run_id).mkdir()
        (folder / run.run_id / "run.json").write_text(record.model_dump_json())
        (folder / run.run_id / "events.jsonl").write_text("".join(event.model_dump_json() + "\n" for event in events))
        (folder / run.run_id / "result.json").write_text(result.model_dump_json())
    return folder


def edit(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change a JSON file in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
