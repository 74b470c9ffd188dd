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
        text = render_pack(experiment, dict(runs[:num_done]))
        (folder / NAME).write_text(text)
    return folder


def keep_rows(folder: Path, *names: str) -> None:
    """Plan these rows alone, without contrasts, and keep their runs."""
    path = folder / "experiment.json"
    plan = json.loads(path.read_text())
    rows = [row for row in plan["rows"] if row["row"] in names]
    own_plan = plan | {"rows": rows, "contrasts": []}
    path.write_text(json.dumps(own_plan))
    kept = set()
    for row in rows:
        kept |= set(row["runs"].values())
    pack = read_pack(folder)
    runs = {run: files for run, files in pack.items() if run in kept}
    text = render_pack(plan["name"], runs)
    (folder / NAME).write_text(text)


def rename(folder: Path, name: str) -> None:
    """Plan the same under another name, which is to be the folder's."""
    path = folder / "experiment.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"name": name}))
