"""What each command does with its options: an exit code, and what is printed."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

from cser_bench.harness.cli.exits import FAILURE, complain, loading, program
from cser_bench.harness.cli.paths import known_file, known_folder, report_text, shortest
from cser_bench.harness.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cser_bench.harness.plan.plan import Plan
    from cser_bench.harness.records.tracks import Entry
    from cser_bench.harness.workers.launch import Options

WAIT_SECONDS = 5.0
"""Between two looks at a campaign that is waited for."""


def _planned(options: argparse.Namespace) -> Plan:
    with loading():
        from cser_bench.harness.plan.plan import plan_experiment

        planned = plan_experiment(
            options.experiment, options.results, options.tuning, options.methods
        )
    if options.stage is not None:
        planned = planned.at_stage(options.stage)
    if options.rows or options.seeds:
        return planned.only(options.rows, options.seeds)
    return planned


def plan(options: argparse.Namespace) -> int:
    """Print the runs, or without a name the experiments that ship.

    Nothing is read besides specifications and records, and nothing is written.
    """
    if options.experiment is None:
        from cser_bench.harness.cli.show import titles_text

        print(titles_text())
        return 0
    from cser_bench.harness.plan.show import show_plan

    show_plan(_planned(options))
    return 0


def _launch_options(options: argparse.Namespace) -> Options:
    from cser_bench.harness.workers.launch import Options

    if options.data is not None:
        known_folder(options.data)
    return Options(**{field.name: getattr(options, field.name) for field in fields(Options)})


def preflight(options: argparse.Namespace) -> int:
    """Say whether what a long experiment needs is there, and then how long it takes.

    Returns 1 where something is not there.
    """
    from cser_bench.harness.plan.forecast import cost_sentences, effort_of, next_stage_sentence
    from cser_bench.harness.workers.preflight import checks, line_of

    planned = _planned(options)
    failed = 0
    for check in checks(planned, _launch_options(options)):
        print(line_of(check), flush=True)
        failed += not check.passed
    if failed:
        return FAILURE
    print(*cost_sentences(effort_of(planned)), sep="\n")
    if sentence := next_stage_sentence(planned):
        print(sentence)
    return 0


def run(options: argparse.Namespace) -> int:
    """Do the runs that are missing.

    Returns 1 where one failed, or where a process of torchrun lost the others.
    """
    if os.environ.get("RANK", "0") == "0":
        # Before torch is loaded, which takes its time.
        print(f"{options.experiment}: planning", flush=True)
    with loading():
        from cser_bench.algorithms import CollectiveError
        from cser_bench.harness.plan.forecast import next_stage_sentence
        from cser_bench.harness.workers.launch import note_next_stage, run_under_torchrun

    planned = _planned(options)
    launch_options = _launch_options(options)
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys():  # torchrun, or what starts workers as it does
        try:
            run_under_torchrun(planned, launch_options)
        except CollectiveError as error:
            return complain(error, FAILURE)
        return 0
    code, planned = _run_missing(
        lambda: _planned(options),
        launch_options,
        f"`{program()} status {_named(options)}` says why",
        can_grow=options.tuning,
    )
    if code is None:
        stage = "" if planned.stage is None else f"stage {planned.stage} of "
        print(f"all {len(planned.by_id)} runs of {stage}{planned.experiment.name} are done")
        sentence = next_stage_sentence(planned)
        note_next_stage(planned, options.results, sentence)
        if sentence:
            print(sentence)
        print(f"`{_report_command(options)}` writes:")
        print(report_text(options.results / planned.experiment.name / "report.md"))
    return code or 0


def _named(options: argparse.Namespace) -> str:
    """Return the words by which another command finds the same experiment."""
    words = [options.experiment]
    if options.methods:
        words += ["--methods", *options.methods]
    if options.stage is not None:
        words += ["--stage", options.stage]
    return shlex.join(words)


def _report_command(options: argparse.Namespace) -> str:
    """Return the command that writes the report of what was run."""
    words = f"{program()} report {_named(options)}"
    if options.results != Path("results"):
        words += f" --results {shlex.quote(str(options.results))}"
    return f"{words} --tuning" if options.tuning else words


def _run_missing(
    plan_now: Callable[[], Plan], launch_options: Options, why: str, can_grow: bool
) -> tuple[int | None, Plan]:
    """Do the runs that a plan lacks, until it wants no more.

    Args:
        plan_now: returns the plan as the records are by then.
        why: where it is said why runs failed.
        can_grow: whether the plan may want more runs once these are done, as a tuning's.

    Returns:
        The exit code where runs are left, else None; and the last plan.
    """
    from cser_bench.harness.cli.progress import shown
    from cser_bench.harness.tasks.task import find_task
    from cser_bench.harness.workers.launch import launch, places, prepare

    results = launch_options.results
    planned = plan_now()
    # Too few GPUs are refused before anything is written or fetched.
    places(planned, launch_options)
    # Before the first run, so that runs side by side do not each fetch it.
    if prepare(planned, results):
        find_task(planned.runs[0].config.task.name).prepare(launch_options.data)
    while prepare(planned, results):
        with shown(can_grow) as progress:
            failures = launch(planned, launch_options, partial(print, flush=True), progress)
        if failures:
            return complain(f"{failures} runs failed; {why}", FAILURE), planned
        if skipped := len(prepare(planned, results)):
            print(
                f"{skipped} runs were skipped, as another command is at them; call again when it "
                "has ended"
            )
            return 0, planned
        planned = plan_now()  # A tuning's records say what it wants next.
    return None, planned


def try_(options: argparse.Namespace) -> int:
    """Check a method of one's own, tune and run it, and rank it among the rows that ship.

    Returns 1 where it breaks a promise, or a run failed.
    """
    print(f"{options.file}: looking at it", flush=True)  # before torch is loaded
    with loading():
        from cser_bench.algorithms.check import Subject, check
        from cser_bench.harness.plan import trial
        from cser_bench.report.trial import verdict

    tried = trial.make_trial(
        options.file, options.network, options.method, options.settings, options.learning_rate
    )
    print(trial.duration_words(tried, trial.usual_jobs(options.jobs)), flush=True)
    slowness = trial.slowness_words(tried, options.device)
    if slowness is not None:
        print(slowness, flush=True)
    # Settings that cannot be used are refused before anything is checked or trained.
    tried.plan(options.results, tuning=tried.is_tuned)
    if not check(Subject(tried.source.source, tried.source.file, tried.name)):
        return complain(
            f"{tried.name} breaks a promise that its numbers would rest on, so nothing was "
            "trained; mend what is marked FAIL and call again",
            FAILURE,
        )
    launch_options = _launch_options(options)
    for tuning in (True, False) if tried.is_tuned else (False,):
        print("tuning the rate" if tuning else "the runs that count", flush=True)
        code, planned = _run_missing(
            partial(tried.plan, options.results, tuning),
            launch_options,
            "the failure.json of each says why",
            can_grow=tuning,
        )
        if code is not None:
            return code
    shipped = tried.shipped
    tried_in = options.results / planned.experiment.name
    print(f"\n{verdict(tried_in, shipped.runs, shipped.earlier_trials)}")
    if shipped.afterwards:
        print(shipped.afterwards)
    print(f"next: {program()} {tried.next_words(options.results)}")
    return 0


def submit(options: argparse.Namespace) -> int:
    """Submit the runs that are missing to a Slurm cluster.

    Returns 1 where the command waits, and some have no result then.
    """
    from cser_bench.slurm.campaign import Request, read_campaign
    from cser_bench.slurm.profile import load_profile
    from cser_bench.slurm.submit import check, left_to_submit, sbatch_texts, show
    from cser_bench.slurm.submit import submit as submit_runs

    planned = _planned(options)
    if options.cluster is None:
        folder = options.results / planned.experiment.name
        before = read_campaign(folder).submissions
        if not before:
            raise UsageError(f"{folder} holds no campaign; say on which --cluster (make: CLUSTER=)")
        options.cluster, options.data = before[-1].cluster, options.data or before[-1].data
        if options.stage is None and before[-1].stage is not None:
            options.stage = before[-1].stage
            planned = planned.at_stage(options.stage)
    request = Request(
        plan=planned,
        results=options.results.absolute(),
        data=Path(options.data).absolute() if options.data else None,
        cluster=options.cluster,
        profile=load_profile(options.cluster),
        preflight=not options.no_preflight,
    )
    check(request)
    if not options.dry_run and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UsageError(
            "sbatch is not on the path: call this on a login node of the cluster, or load its "
            "Slurm module (--dry-run needs none)"
        )
    left = left_to_submit(request)
    if options.dry_run or left:
        show(request, len(left))
    if options.dry_run:
        print(
            "",
            *sbatch_texts(request, len(left)) if left else ["nothing is left to submit"],
            sep="\n\n",
        )
        return 0
    if left and not options.yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody is here to confirm: give --yes (make: YES=1)")
        if input("submit? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was submitted")
            return 0
    jobs = submit_runs(request) if left else []
    said = (
        f"submitted {len(jobs)} runs as job "
        f"{', '.join(dict.fromkeys(job.split('_')[0] for job in jobs))}"
    )
    print(said if jobs else "nothing to submit: all runs are done, queued or running")
    if options.wait:
        return _wait(planned, request.folder)
    print(f"`{program()} status {_named(options)}` (make status) shows how far they are")
    return 0


def _wait(planned: Plan, folder: Path) -> int:
    """Wait until nothing is queued or running.

    Returns 1 where runs are left then.
    """
    from cser_bench.harness.cli.show import status_text, totals_text
    from cser_bench.slurm.campaign import statuses

    runs = statuses(folder, planned.runs)
    said = ""
    while {"queued", "running"} & {run.state for run in runs}:
        if totals_text(runs) != said:
            said = totals_text(runs)
            print(said, flush=True)
        sleep(WAIT_SECONDS)
        runs = statuses(folder, planned.runs)
    print(status_text(runs, planned.runs[0].config.num_workers))
    return 0 if all(run.state == "done" for run in runs) else FAILURE


def status(options: argparse.Namespace) -> int:
    """Say how far each row is, here and on a cluster."""
    from cser_bench.harness.cli.show import status_fields, status_text
    from cser_bench.harness.records.experiment import Experiment
    from cser_bench.harness.records.store import read_optional
    from cser_bench.slurm.campaign import statuses

    planned = _planned(options)
    folder = options.results / planned.experiment.name
    read_optional(folder / "experiment.json", Experiment)  # a damaged one is told
    runs = statuses(folder, planned.runs)
    text = status_text(runs, planned.runs[0].config.num_workers)
    if options.json:
        print(json.dumps(status_fields(runs), indent=1))
        return 0
    shipped = _shipped(options.results, planned.experiment.name)
    if shipped is not None and not folder.is_dir():
        print(_shipped_text(planned, shipped))
        return 0
    print(text)
    return 0


def _shipped_text(planned: Plan, shipped: Path) -> str:
    """Say how many of an experiment's runs ship, of which none was done here."""
    from cser_bench.harness.records.packs import read_runs

    num_shipped = len(planned.by_id.keys() & read_runs(shipped).keys())
    return (
        f"{num_shipped} of {len(planned.by_id)} runs ship with the project, in {shipped}, with "
        f"their report; none was run here.\n"
        f"`make reproduce EXPERIMENT={planned.experiment.name}` runs them anew."
    )


def _shipped(results: Path, name: str) -> Path | None:
    """Return the folder of an experiment's runs that ship with the project, where there is one."""
    from cser_bench.harness.spec.spec_file import is_file

    folder = results / "reference" / name
    return folder if is_file(folder / "runs.jsonl") else None


def pack(options: argparse.Namespace) -> int:
    """Add the finished runs in an experiment's folder to its pack, and say how many it has."""
    from cser_bench.harness.records.packs import pack_runs

    num_runs, num_folders = pack_runs(known_folder(options.folder), options.remove_folders)
    print(f"{options.folder}: {num_runs} runs in the pack, {num_folders} of them from folders")
    return 0


def unpack(options: argparse.Namespace) -> int:
    """Make folders of the runs in an experiment's pack, and say what was done."""
    from cser_bench.harness.records.packs import unpack_runs

    num_folders = unpack_runs(known_folder(options.folder))
    print(
        f"{options.folder}: {num_folders} folders written; those that were there stay as they are"
    )
    return 0


def _records(options: argparse.Namespace) -> tuple[Path, Path | None]:
    """Return the folder of records that is meant, and that of the tuning.

    The second is None where the tuning lies beside the records or above them.
    """
    from cser_bench.harness.plan.tuning import tuning_folder
    from cser_bench.harness.spec.spec_file import find_spec, is_file, load_spec

    given = Path(options.experiment)
    if is_file(given / "experiment.json") or is_file(given / "study.json"):
        return given, None
    spec = load_spec(find_spec(options.experiment))
    searched = tuning_folder(spec, options.results)
    folder = options.results / (f"{spec.name}_tuning" if options.tuning else spec.name)
    if not folder.is_dir():
        raise UsageError(f"there are no runs in {folder}: {_how_to_begin(options, spec.name)}")
    return folder, None if searched.parent == options.results else searched


def _how_to_begin(options: argparse.Namespace, name: str) -> str:
    """Say which command makes runs that are not there, and where such runs ship."""
    command = f"{program()} run {options.experiment}"
    if options.tuning:
        return f"begin them by `{command} --tuning`"
    also = f"begin them by `{command}`, or by `make reproduce EXPERIMENT={options.experiment}`"
    shipped = _shipped(options.results, name)
    return f"{also}; the report of runs that ship is in {shipped}" if shipped else also


def report(options: argparse.Namespace) -> int:
    """Build the report, and say where it is."""
    from cser_bench.harness.cli.progress import shown
    from cser_bench.report.build import build, summary

    folder, tuning = _records(options)
    _check_methods(folder, options.methods)
    with shown() as progress:
        path = build(folder, options.output, tuning, progress)
    table = summary(folder)
    if table is not None:
        print(f"\n{table}\n")
    print(f"wrote {shortest(path)} and report.pdf, report.html, figures/ and csv/ beside it")
    print(report_text(path, has_pictures=path.with_name("figures").is_dir()))
    return 0


def _check_methods(folder: Path, files: list[str]) -> None:
    """Raise UsageError where files of methods are not those that the records were made with.

    A report needs no such file: the records have all that it says.
    """
    if not files:
        return
    from cser_bench.harness.records.experiment import read_experiment
    from cser_bench.harness.train.methods import outside_methods

    recorded = read_experiment(folder).outside
    for name, source in outside_methods(files).items():
        if name not in recorded or recorded[name].sha256 != source.sha256:
            raise UsageError(
                f"the records in {folder} are not of this {source.file} (its digest differs, or "
                f"no row has {name!r}); leave --methods out, or run the experiment with it first"
            )


def advise(options: argparse.Namespace) -> int:
    """Print the efficiency that each method needs in a job, and what is known of it."""
    from cser_bench.report.advice.advise import advice
    from cser_bench.report.collection import collection_of
    from cser_bench.report.speed.job import TrainingJob

    num_machines, workers_per_machine = options.layout
    job = TrainingJob(
        num_parameters=options.parameters,
        num_steps=options.steps,
        num_machines=num_machines,
        workers_per_machine=workers_per_machine,
        compute_seconds=options.compute_ms / 1e3,
        bits_per_second=options.bandwidth,
        inside_bits_per_second=options.inside,
        latency_seconds=options.latency_us / 1e6,
    )
    # Without runs of one's own there is no such folder, and advice needs none.
    results = options.results if options.results.is_dir() else None
    text = advice(job, options.network, collection_of(results), options.all)
    _say_what_is_taken(results)
    print(text)
    return 0


def answers(options: argparse.Namespace) -> int:
    """Answer the readers' questions from records, without training."""
    from cser_bench.harness.cli.progress import shown
    from cser_bench.report.advice.which_method import build_which_method
    from cser_bench.report.answers.build import NAME, build_answers
    from cser_bench.report.first_screen import write_first_screen

    results = known_folder(options.results)
    if options.readme is not None:
        write_first_screen(known_file(options.readme))
    with shown() as progress:
        path = build_answers(
            options.output or results / NAME,
            # The rest of the time goes into the page on which method to use.
            lambda done, total, what: progress(0.75 * done / total, 1.0, what),
        )
        progress(0.75, 1.0, "which method to use")
        build_which_method(results, path.parent)
    _say_what_is_taken(results, path.parent)
    print(f"wrote {path}, and answers.pdf, accuracy-per-bit.md and which-method.md beside it")
    return 0


def _say_what_is_taken(results: Path | None, pages: Path | None = None) -> None:
    """Say of each experiment of the user's own that counts whether it was taken.

    Args:
        results: folder of the user's own records; None where there is none.
        pages: the folder that was written into, if any.
    """
    from cser_bench.harness.cli.show import taken_lines
    from cser_bench.harness.records.shipped import ships, take

    only_shipped = pages is not None and ships(pages)
    for line in taken_lines(take(results), only_shipped):
        print(line)


def site(options: argparse.Namespace) -> int:
    """Build the site, and say where it begins and which links of its texts lead nowhere."""
    from cser_bench.harness.cli.progress import shown
    from cser_bench.harness.places import OURS
    from cser_bench.report.site.build import build_site

    num_jobs = options.jobs or os.cpu_count() or 1
    with shown() as progress:
        made = build_site(
            known_folder(options.results), options.output, OURS, options.only, num_jobs, progress
        )
    _say_what_is_taken(options.results)
    print(f"wrote {options.output / 'index.html'}; open it in a browser")
    # A site of some experiments lacks the others on purpose.
    missing = () if options.only else sorted(made.places.missing)
    for page, target in missing:
        print(f"{page}: {target} leads to what is not in the site", file=sys.stderr)
    return 0


def enter(options: argparse.Namespace) -> int:
    """Make an entry of a track from a method's file and its runs, and say where it is."""
    from cser_bench.harness.tracks.enter import Request, name_in
    from cser_bench.harness.tracks.enter import enter as make_entry

    row = options.row or name_in(known_file(options.method))
    records = options.records
    if records is None:
        # Where `try --network gpt` leaves the runs of a method.
        records = Path("results", f"try_{row}_gpt")
        if not records.is_dir():
            raise UsageError(
                f"there is no folder {records}: the track takes runs of its GPT alone, which "
                f"`{program()} try {options.method} --network gpt` does; if yours lie elsewhere, "
                "say so by --records"
            )
    folder = make_entry(
        Request(
            method=options.method,
            records=known_folder(records),
            row=row,
            tracks=options.tracks,
            track=options.track,
            rules=_rules_folder(options),
            name=options.name or row,
            author=options.author,
            description=options.description,
        )
    )
    print(
        f"wrote {folder}; next: {program()} verify {folder} --rerun SEED, without --rerun for its "
        "first steps alone"
    )
    return 0


def verify(options: argparse.Namespace) -> int:
    """Verify entries of a track, and say what was found of each and what was not checked.

    Returns 1 where a re-run contradicts an entry.
    """
    from cser_bench.harness.records.tracks import read_track
    from cser_bench.harness.tracks.form import check_form
    from cser_bench.harness.tracks.processes import compare_workers
    from cser_bench.harness.tracks.rerun import not_checked, rerun

    track = read_track(_rules_folder(options), options.track)
    code = 0
    entries = _entries(options)
    if not entries:
        print(f"{options.tracks / options.track} has no entries, so nothing was verified")
        return 0
    for entry in entries:
        checked = check_form(track, entry)
        print(f"{entry.name}: digests, rules and bits hold; class {checked.load.name}", flush=True)
        if options.form_only:
            continue
        found = compare_workers(
            entry.name, checked.configs[track.seeds[0]], track.verification, options.data
        )
        print(
            f"{entry.name}: after {found.num_steps} steps processes are {found.share_of_way:.2g} "
            "of the way from stacked workers, and sent the same bits",
            flush=True,
        )
        if options.rerun is None:
            continue
        again = rerun(track, entry, checked, options.rerun, options.data)
        print(
            f"{entry.name}: seed {again.seed} gives {again.loss} nats here and {again.loss_entered} as "
            f"entered: {again.agreement}",
            flush=True,
        )
        if again.agreement == "contradicted":
            code = FAILURE
    print(not_checked(track, options.form_only, options.rerun))
    return code


def leaderboard(options: argparse.Namespace) -> int:
    """Write the page of a track from its entries, and say where it is."""
    from cser_bench.report.leaderboard import build_leaderboard

    print(f"wrote {build_leaderboard(known_folder(options.tracks), options.track)}")
    return 0


def _rules_folder(options: argparse.Namespace) -> Path:
    """Return the folder of tracks with the rules: one's own, or where that has none the program's."""
    from cser_bench.harness.places import TRACKS
    from cser_bench.harness.records.tracks import RULES

    if (options.tracks / options.track / RULES).is_file():
        return Path(options.tracks)
    return TRACKS


def _entries(options: argparse.Namespace) -> list[Entry]:
    """Return the entries that are named, by name or folder; all of the track where none is."""
    from cser_bench.harness.records.tracks import ENTRY, read_entries, read_entry

    if not options.entries:
        return read_entries(options.tracks, options.track)
    entries = []
    for name in options.entries:
        folder = Path(name)
        if not (folder / ENTRY).is_file():
            folder = options.tracks / options.track / "entries" / name
        entries.append(read_entry(folder))
    return entries


def speedups(options: argparse.Namespace) -> int:
    """Do the study of speed-ups and build its report.

    Returns 1 where a worker failed.
    """
    from cser_bench.harness.timing.study import SESSIONS, record, run_study
    from cser_bench.report.build import build

    if options.methods and not options.only:
        raise UsageError(
            "--methods chooses among those of --only; give that too, or leave --methods out"
        )
    if options.only:
        for session in SESSIONS[options.only](options.output, options.methods):
            record(session, options.output)
        return 0
    run_study(options.output, options.minutes)
    print(f"wrote {build(options.output)} and report.pdf, report.html, figures/ and csv/ beside it")
    return 0


def netlab(options: argparse.Namespace) -> int:
    """Sweep networks of the rates asked for.

    Returns 1 where a worker failed.
    """
    from cser_bench.harness.timing.sweep import netlab

    netlab(options.workers, options.machines, options.rates, options.output)
    return 0


def time(options: argparse.Namespace) -> int:
    """Be one of the workers that time steps.

    Returns 1 where a collective failed.
    """
    from cser_bench.harness.timing.study import time_here

    try:
        time_here(options.workload, options.methods, options.visits, options.steps, options.output)
    except RuntimeError as error:
        return complain(error, FAILURE)
    return 0
