"""All results of an experiment as one table, a line per run."""

from __future__ import annotations

from pathlib import Path

import pandas

from harness.records.experiment import read_experiment
from harness.records.packs import open_runs


def collect_runs(folder: Path) -> Path:
    """Write <folder>/runs.csv and return its path.

    Raises:
        RecordError: there is no experiment in the folder, or a record is damaged.
    """
    read_experiment(folder)
    lines = []
    for record in open_runs(folder).values():
        line = {"run_id": record.run.run_id, "row": record.run.row, "seed": record.run.seed}
        config = record.run.config
        line |= {key: config[key] for key in ("algorithm", "learning_rate", "momentum", "num_workers", "batch_size")}
        if record.result is not None:
            result = record.result.model_dump()
            for group in ("traffic", "clock_seconds"):
                for key, value in result.pop(group).items():
                    line |= (
                        {f"{key}_{name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value}
                    )
            line |= result.pop("metrics", None) or {}
            for several in ("expected_traffic", "translations", "signatures"):
                result.pop(several, None)
            line |= result
        lines.append(line)
    target = folder / "runs.csv"
    pandas.DataFrame(lines).to_csv(target, index=False)
    return target
