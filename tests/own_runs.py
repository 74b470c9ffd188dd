"""Made-up runs of the user's own: a shipped experiment, of which some runs are done again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cser_bench.harness.records.packs import NAME, read_pack, render_pack
from cser_bench.harness.records.shipped import SHIPPED


def begin(
    results: Path, experiment: str, num_done: int, name: str | None = None
) -> Path:
    """Make a folder with the plan of a shipped experiment and this many of its runs; return it.

    The folder has another name where one is given.
    """
    shipped = SHIPPED / "reference" / experiment
    folder = results / (name or experiment)
    folder.mkdir(parents=True)
    shutil.copy(shipped / "experiment.json", folder)
    runs = sorted(read_pack(shipped).items())
    if num_done:
        (folder / NAME).write_text(render_pack(experiment, dict(runs[:num_done])))
    return folder


def keep_rows(folder: Path, *names: str) -> None:
    """Plan these rows alone, without contrasts, and keep their runs."""
    path = folder / "experiment.json"
    plan = json.loads(path.read_text())
    rows = [row for row in plan["rows"] if row["row"] in names]
    plan["evidence"]["rows"] = {
        role: name for role, name in plan["evidence"]["rows"].items() if name in names
    }
    path.write_text(json.dumps(plan | {"rows": rows, "contrasts": []}))
    kept = {run_id for row in rows for run_id in row["runs"].values()}
    runs = {run: files for run, files in read_pack(folder).items() if run in kept}
    (folder / NAME).write_text(render_pack(plan["name"], runs))


def rename(folder: Path, name: str) -> None:
    """Plan the same under another name, which is to be the folder's."""
    path = folder / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": name}))
