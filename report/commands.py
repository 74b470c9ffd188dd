"""Commands that make pages of many experiments' records: answers and the site."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from cser_bench.harness.cli.command import command
from cser_bench.harness.cli.numbers import count
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


@command("site", "make a site of all reports, explorers, answers, methods and docs")
@results_option(OWN_RECORDS)
@click.option(
    "--output", type=folder, default="site", help="folder to write into (default: site)"
)
@click.option(
    "--only", multiple=True, metavar="EXPERIMENT...", help="take only these experiments"
)
@click.option("--jobs", type=count, help="reports at once (default: the cores)")
def site(results: Path, output: Path, only: tuple[str, ...], jobs: int | None) -> int:
    """Build the site, and say where it begins and which links of its texts lead nowhere."""
    from cser_bench.harness.cli.progress import shown
    from cser_bench.harness.places import OURS
    from cser_bench.report.site.build import build_site

    num_jobs = jobs or os.cpu_count() or 1
    with shown() as progress:
        made = build_site(
            known_folder(results), output, OURS, list(only), num_jobs, progress
        )
    say_what_is_taken(results)
    print(f"wrote {output / 'index.html'}; open it in a browser")
    missing = sorted(made.places.missing)
    # A site of some experiments lacks the others on purpose.
    if only:
        missing = []
    for page, target in missing:
        print(f"{page}: {target} leads to what is not in the site", file=sys.stderr)
    return 0
