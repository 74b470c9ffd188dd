"""Commands that change the form of records, and nothing that they say."""

from __future__ import annotations

from pathlib import Path

import click

from cser_bench.harness.cli.command import command
from cser_bench.harness.cli.numbers import counted
from cser_bench.harness.cli.paths import known_folder

FOLDER = "FOLDER is that of an experiment, as results/fashion_mnist"


@command(
    "pack",
    "put the finished runs of an experiment into one file, runs.jsonl in its folder",
    FOLDER,
)
@click.option(
    "--remove-folders",
    is_flag=True,
    help="afterwards remove the folders that the file gives back to the byte, logs and "
    "checkpoints with them",
)
@click.argument("folder", type=Path)
def pack(folder: Path, remove_folders: bool) -> int:
    """Add the finished runs in an experiment's folder to its pack, and say how many it has."""
    from cser_bench.harness.records.packs import pack_runs

    num_runs, num_folders = pack_runs(known_folder(folder), remove_folders)
    packed = counted(num_runs, "run")
    print(f"{folder}: {packed} in the pack, {num_folders} from folders")
    return 0


@command("unpack", "make folders of the runs in an experiment's runs.jsonl", FOLDER)
@click.argument("folder", type=Path)
def unpack(folder: Path) -> int:
    """Make folders of the runs in an experiment's pack, and say what was done."""
    from cser_bench.harness.records.packs import unpack_runs

    num_folders = unpack_runs(known_folder(folder))
    print(
        f"{folder}: {num_folders} folders written; those that were there stay as they are"
    )
    return 0
