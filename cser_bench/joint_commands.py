"""Commands that need both the harness and the report: what they run or look up, they report."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from cser_bench.harness.cli.command import command
from cser_bench.harness.cli.exits import FAILURE, complain, loading, program
from cser_bench.harness.cli.experiments import run_missing
from cser_bench.harness.cli.numbers import above_0
from cser_bench.harness.cli.options import (
    EXPERIMENT,
    experiment_options,
    results_option,
    timing_methods_option,
    timing_output_option,
)
from cser_bench.harness.cli.paths import folder, report_text, shipped_folder, shortest
from cser_bench.harness.cli.run_options import infrastructure_options, launch_options
from cser_bench.harness.errors import UsageError


@command(
    "report",
    "make report.md, report.pdf and report.html from the records",
    f"{EXPERIMENT}, or a folder of records",
)
@experiment_options()
@click.option(
    "--output", type=folder, help="folder to write into (default: that of the records)"
)
def report(
    experiment: str,
    tuning: bool,
    results: Path,
    methods: tuple[str, ...],
    output: Path | None,
) -> int:
    """Build the report, and say where it is."""
    from cser_bench.harness.cli.progress import shown
    from cser_bench.report.build import build, summary

    records, searched = _records(experiment, results, tuning)
    _check_methods(records, methods)
    with shown() as progress:
        path = build(records, output, searched, progress)
    table = summary(records)
    if table is not None:
        print(f"\n{table}\n")
    print(
        f"wrote {shortest(path)} and report.pdf, report.html, figures/ and csv/ beside it"
    )
    print(report_text(path, has_pictures=path.with_name("figures").is_dir()))
    return 0


def _records(experiment: str, results: Path, tuning: bool) -> tuple[Path, Path | None]:
    """Return the folder of records that is meant, and that of the tuning.

    The second is None where the tuning lies beside the records or above them.
    """
    from cser_bench.harness.spec.spec_file import find_spec, is_file, load_spec

    given = Path(experiment)
    if is_file(given / "experiment.json") or is_file(given / "study.json"):
        return given, None
    # A plan loads torch, which the report of a folder does not need.
    from cser_bench.harness.plan.tuning import tuning_folder, tuning_name

    spec = load_spec(find_spec(experiment))
    searched = tuning_folder(spec, results)
    records = results / (tuning_name(spec) if tuning else spec.name)
    if not records.is_dir():
        raise UsageError(
            f"there are no runs in {records}: {_how_to_begin(experiment, results, tuning, spec.name)}"
        )
    return records, None if searched.parent == results else searched


def _how_to_begin(experiment: str, results: Path, tuning: bool, name: str) -> str:
    """Say which command makes runs that are not there, and where such runs ship."""
    command = f"{program()} run {experiment}"
    if tuning:
        return f"begin them by `{command} --tuning`"
    also = f"begin them by `{command}`, or by `make reproduce EXPERIMENT={experiment}`"
    shipped = shipped_folder(results, name)
    return f"{also}; the report of runs that ship is in {shipped}" if shipped else also


def _check_methods(records: Path, files: tuple[str, ...]) -> None:
    """Raise UsageError where files of methods are not those that the records were made with.

    A report needs no such file: the records have all that it says.
    """
    if not files:
        return
    from cser_bench.harness.plan.outside import outside_methods
    from cser_bench.harness.records.experiment import read_experiment

    recorded = read_experiment(records).outside
    for name, source in outside_methods(files).items():
        if name not in recorded or recorded[name].sha256 != source.sha256:
            raise UsageError(
                f"the records in {records} are not of this {source.file} (its digest differs, or "
                f"no row has {name!r}); leave --methods out, or run the experiment with it first"
            )


@command(
    "try",
    "rank a method of your own among five that ship, on README's small CNN",
    "FILE.py is the file of the method, or an entry point's name",
)
@click.argument("file", metavar="FILE.py")
@click.option(
    "--method", metavar="NAME", help="method to take, if the file has several"
)
@click.option(
    "--settings",
    metavar="TOML",
    help="settings of the method to change, as 'sync_interval = 24'; those not named stay at "
    "what sends a twenty-fourth of DDP's traffic",
)
@click.option(
    "--learning-rate",
    type=above_0,
    metavar="NUMBER",
    help="learning rate, not tuned (default: the best of nine, as the others had)",
)
@results_option()
@infrastructure_options
def try_(
    file: str,
    method: str | None,
    settings: str | None,
    learning_rate: float | None,
    results: Path,
    **infrastructure: Any,
) -> int:
    """Check a method of one's own, tune and run it, and rank it among the rows that ship.

    Returns 1 where it breaks a promise, or a run failed.
    """
    # Before torch is loaded.
    print(
        f"{file}: two convolutions on Fashion-MNIST, 8 workers, two seeds", flush=True
    )
    with loading():
        from cser_bench.algorithms.check import Subject, keeps_promises
        from cser_bench.harness.plan import trial
        from cser_bench.report.trial import RIVALS, verdict

    tried = trial.make_trial(file, method, settings, learning_rate)
    print(
        trial.duration_words(tried, trial.usual_jobs(infrastructure["jobs"])),
        flush=True,
    )
    # Settings that cannot be used are refused before anything is checked or trained.
    tried.plan(results, tuning=tried.is_tuned)
    if not keeps_promises(Subject(tried.source.source, tried.source.file, tried.name)):
        return complain(
            f"{tried.name} breaks a promise that its numbers would rest on, so nothing was "
            "trained; fix what is marked FAIL and call again",
            FAILURE,
        )
    options = launch_options(results, infrastructure)
    for tuning in (True, False) if tried.is_tuned else (False,):
        print("tuning the rate" if tuning else "the runs that count", flush=True)
        code, planned = run_missing(
            partial(tried.plan, results, tuning),
            options,
            "the failure.json of each says why",
            can_grow=tuning,
        )
        if code is not None:
            return code
    print(f"\n{verdict(results / planned.experiment.name, RIVALS)}")
    return 0


@command("speedups", "time methods and baselines on an emulated network, and report it")
@timing_output_option("own/speedups")
@click.option(
    "--minutes",
    type=above_0,
    default=90.0,
    help="start no new timing after this many minutes (default: 90)",
)
@click.option(
    "--only",
    type=click.Choice(("scored", "table", "wide", "consecutive", "text")),
    help="time only this, and write no report: what accuracy runs score; the settings of README's "
    "table; links of several latencies; steps in a row, with slow workers and without; or what the "
    "experiment on text scores",
)
@timing_methods_option
def speedups(
    output: Path, minutes: float, only: str | None, methods: tuple[str, ...]
) -> int:
    """Do the study of speed-ups and build its report.

    Returns 1 where a worker failed.
    """
    from cser_bench.harness.timing.study import SESSIONS, record, run_study
    from cser_bench.report.build import build

    if methods and not only:
        raise UsageError(
            "--methods chooses among those of --only; give that too, or leave --methods out"
        )
    if only:
        for session in SESSIONS[only](output, list(methods)):
            record(session, output)
        return 0
    run_study(output, minutes)
    print(
        f"wrote {build(output)} and report.pdf, report.html, figures/ and csv/ beside it"
    )
    return 0
