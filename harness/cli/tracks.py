"""Commands of the open track on the side of runs: enter a method, verify an entry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cser_bench.harness.cli.command import command
from cser_bench.harness.cli.exits import FAILURE, program
from cser_bench.harness.cli.numbers import whole
from cser_bench.harness.cli.options import data_option, track_options
from cser_bench.harness.cli.paths import known_file, known_folder
from cser_bench.harness.errors import UsageError

if TYPE_CHECKING:
    from cser_bench.harness.records.tracks import TrackEntry


def _entry_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", text):
        raise click.BadParameter(
            f"must be of small letters, digits, and _ . - between them, not {text!r}"
        )
    return text


@command(
    "enter",
    "enter a method and its runs in the open track",
    "METHOD.py is the file of the method",
)
@track_options
@click.argument("method", type=Path, metavar="METHOD.py")
@click.option(
    "--records",
    type=Path,
    metavar="FOLDER",
    help="folder of the runs (default: where `try --network gpt` leaves the row's)",
)
@click.option(
    "--row", help="the method's row in the records (default: the method's name)"
)
@click.option(
    "--name",
    type=_entry_name,
    metavar="NAME",
    help="name of the entry (default: the row's)",
)
@click.option("--author", required=True, help="author shown on the leaderboard")
@click.option(
    "--description", required=True, help="what the method does, in a sentence"
)
def enter(
    track: str,
    tracks: Path,
    method: Path,
    records: Path | None,
    row: str | None,
    name: str | None,
    author: str,
    description: str,
) -> int:
    """Make an entry of a track from a method's file and its runs, and say where it is."""
    from cser_bench.harness.tracks.enter import EntryRequest, name_in
    from cser_bench.harness.tracks.enter import enter as make_entry

    row = row or name_in(known_file(method))
    if records is None:
        # Where `try --network gpt` leaves the runs of a method.
        records = Path("results", f"try_{row}_gpt")
        if not records.is_dir():
            raise UsageError(
                f"there is no folder {records}: the track takes runs of its GPT alone, which "
                f"`{program()} try {method} --network gpt` does; if yours lie elsewhere, "
                "say so by --records"
            )
    folder = make_entry(
        EntryRequest(
            method=method,
            records=known_folder(records),
            row=row,
            tracks=tracks,
            track=track,
            rules=_rules_folder(tracks, track),
            name=name or row,
            author=author,
            description=description,
        )
    )
    print(
        f"wrote {folder}; next: {program()} verify {folder} --rerun SEED, without --rerun for its "
        "first steps alone"
    )
    return 0


@command(
    "verify",
    "verify entries of the open track: form, bits, and steps by processes",
    "NAME is an entry to verify, or its folder (default: all)",
)
@track_options
@click.argument("entries", nargs=-1, metavar="[NAME]...")
@click.option("--form-only", is_flag=True, help="check digests, rules and bits only")
@click.option(
    "--rerun", type=whole, metavar="SEED", help="also do the run of this seed again"
)
@data_option
def verify(
    track: str,
    tracks: Path,
    entries: tuple[str, ...],
    form_only: bool,
    rerun: int | None,
    data: Path | None,
) -> int:
    """Verify entries of a track, and say what was found of each and what was not checked.

    Returns 1 where a re-run contradicts an entry.
    """
    from cser_bench.harness.records.tracks import read_track
    from cser_bench.harness.tracks.form import check_form
    from cser_bench.harness.tracks.processes import compare_workers
    from cser_bench.harness.tracks.rerun import not_checked
    from cser_bench.harness.tracks.rerun import rerun as do_again

    rules = read_track(_rules_folder(tracks, track), track)
    code = 0
    chosen = _entries(tracks, track, entries)
    if not chosen:
        print(f"{tracks / track} has no entries, so nothing was verified")
        return 0
    for entry in chosen:
        checked = check_form(rules, entry)
        print(
            f"{entry.name}: digests, rules and bits hold; class {checked.load.name}",
            flush=True,
        )
        if form_only:
            continue
        found = compare_workers(
            entry.name, checked.configs[rules.seeds[0]], rules.verification, data
        )
        print(
            f"{entry.name}: after {found.num_steps} steps processes are {found.share_of_way:.2g} "
            "of the way from stacked workers, and sent the same bits",
            flush=True,
        )
        if rerun is None:
            continue
        again = do_again(rules, entry, checked, rerun, data)
        print(
            f"{entry.name}: seed {again.seed} gives {again.loss} nats here and {again.loss_entered} as "
            f"entered: {again.agreement}",
            flush=True,
        )
        if again.agreement == "contradicted":
            code = FAILURE
    print(not_checked(rules, form_only, rerun))
    return code


def _rules_folder(tracks: Path, track: str) -> Path:
    """Return the folder of tracks with the rules: one's own, or where that has none the program's."""
    from cser_bench.harness.places import TRACKS
    from cser_bench.harness.records.tracks import RULES

    if (tracks / track / RULES).is_file():
        return tracks
    return TRACKS


def _entries(tracks: Path, track: str, names: tuple[str, ...]) -> list[TrackEntry]:
    """Return the entries that are named, by name or folder; all of the track where none is."""
    from cser_bench.harness.records.tracks import ENTRY, read_entries, read_entry

    if not names:
        return read_entries(tracks, track)
    entries = []
    for name in names:
        folder = Path(name)
        if not (folder / ENTRY).is_file():
            folder = tracks / track / "entries" / name
        entries.append(read_entry(folder))
    return entries
