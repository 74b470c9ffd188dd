"""The command that makes pages of many experiments' records: answers."""

from __future__ import annotations

from pathlib import Path

import click

from cser_bench.harness.cli.command import command
from cser_bench.harness.cli.options import OWN_RECORDS, results_option
from cser_bench.harness.cli.paths import folder, known_file, known_folder
from cser_bench.harness.cli.show import say_what_is_taken


@command(
    "answers",
    "write the answers to readers' questions and which-method.md from records",
)
@results_option(OWN_RECORDS)
@click.option(
    "--output",
    type=folder,
    help="folder to write into (default: answers/ in the results); answers are of the records "
    "that ship, and which-method.md takes yours too, unless its folder ships",
)
@click.option(
    "--readme",
    type=Path,
    help="README to write the first page's tables and figure into, too",
)
def answers(results: Path, output: Path | None, readme: Path | None) -> int:
    """Answer the readers' questions from records, without training."""
    from cser_bench.harness.cli.progress import shown
    from cser_bench.report.advice.which_method import build_which_method
    from cser_bench.report.answers.build import NAME, build_answers
    from cser_bench.report.collection import collection_of
    from cser_bench.report.first_screen import write_first_screen

    results = known_folder(results)
    if readme is not None:
        write_first_screen(known_file(readme))
    with shown() as progress:
        path = build_answers(
            output or results / NAME,
            collection_of(None),
            # The rest of the time goes into the page on which method to use.
            lambda done, total, what: progress(0.75 * done / total, 1.0, what),
        )
        progress(0.75, 1.0, "which method to use")
        build_which_method(results, path.parent)
    say_what_is_taken(results, path.parent)
    print(
        f"wrote {path}, and answers.pdf, accuracy-per-bit.md and which-method.md beside it"
    )
    return 0
