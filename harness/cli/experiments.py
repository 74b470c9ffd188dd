"""Commands on an experiment's runs: plan them, look whether all is there for them, do them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cser_bench.harness.cli.command import command
from cser_bench.harness.cli.exits import FAILURE, complain, loading, program
from cser_bench.harness.cli.numbers import counted
from cser_bench.harness.cli.options import EXPERIMENT, experiment_options, stage_option
from cser_bench.harness.cli.paths import report_text
from cser_bench.harness.cli.run_options import (
    infrastructure_options,
    launch_options,
    row_options,
)
from cser_bench.harness.cli.selection import Selection, selecting

if TYPE_CHECKING:
    from cser_bench.harness.plan.plan import Plan
    from cser_bench.harness.workers.launch import Options


@command(
    "plan",
    "print the runs of an experiment with bits, memory and time, or without a name the "
    "experiments that ship; touches no data",
    EXPERIMENT,
)
@experiment_options(is_optional=True)
@stage_option()
def plan(
    experiment: str | None,
    tuning: bool,
    results: Path,
    methods: tuple[str, ...],
    stage: str | None,
) -> int:
    """Print the runs, or without a name the experiments that ship.

    Nothing is read besides specifications and records, and nothing is written.
    """
    if experiment is None:
        from cser_bench.harness.cli.show import titles_text

        print(titles_text())
        return 0
    from cser_bench.harness.plan.show import show_plan

    show_plan(Selection(experiment, results, tuning, methods, stage).plan())
    return 0


@command(
    "preflight", "look at data, disk and GPUs before a long experiment", EXPERIMENT
)
@experiment_options()
@stage_option()
@row_options
@infrastructure_options
@selecting
def preflight(selection: Selection, **infrastructure: Any) -> int:
    """Say whether what a long experiment needs is there, and then how long it takes.

    Returns 1 where something is not there.
    """
    from cser_bench.harness.plan.forecast import (
        cost_sentences,
        effort_of,
        next_stage_sentence,
    )
    from cser_bench.harness.workers.preflight import checks, line_of

    planned = selection.plan()
    failed = 0
    for check in checks(planned, launch_options(selection.results, infrastructure)):
        print(line_of(check), flush=True)
        failed += not check.passed
    if failed:
        return FAILURE
    print(*cost_sentences(effort_of(planned)), sep="\n")
    if sentence := next_stage_sentence(planned):
        print(sentence)
    return 0


@command("run", "do the runs that are missing", EXPERIMENT)
@experiment_options()
@stage_option()
@row_options
@infrastructure_options
@selecting
def run(selection: Selection, **infrastructure: Any) -> int:
    """Do the runs that are missing.

    Returns 1 where one failed, or where a process of torchrun lost the others.
    """
    if os.environ.get("RANK", "0") == "0":
        # Before torch is loaded, which takes its time.
        # One of torchrun's processes speaks for all; without torchrun there is no RANK.
        print(f"{selection.experiment}: planning", flush=True)
    with loading():
        from cser_bench.algorithms import CollectiveError
        from cser_bench.harness.workers.torchrun import run_under_torchrun

    planned = selection.plan()
    options = launch_options(selection.results, infrastructure)
    # torchrun, or what starts workers as it does
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        try:
            run_under_torchrun(planned, options)
        except CollectiveError as error:
            return complain(error, FAILURE)
        return 0
    code, planned = run_missing(
        selection.plan,
        options,
        f"`{program()} status {selection.words()}` says why",
        can_grow=selection.tuning,
    )
    if code is not None:
        return code
    _show_done(planned, selection.results)
    print(f"`{selection.report_command()}` writes:")
    folder = selection.results / planned.experiment.name
    print(report_text(folder / "report.md"))
    return 0


def _show_done(planned: Plan, results: Path) -> None:
    """Print that all runs are done, and note and print what the next stage adds."""
    from cser_bench.harness.plan.forecast import next_stage_sentence
    from cser_bench.harness.records.ending import ending_in
    from cser_bench.harness.workers.prepare import note_next_stage

    part = "" if planned.stage is None else f"stage {planned.stage} of "
    folder = results / planned.experiment.name
    ends = [ending_in(folder / run) for run in planned.by_id]
    diverged = f", {count} diverged" if (count := ends.count("diverged")) else ""
    print(
        f"all {len(planned.by_id)} runs of {part}{planned.experiment.name} are done{diverged}"
    )
    sentence = next_stage_sentence(planned)
    note_next_stage(planned, results, sentence)
    if sentence:
        print(sentence)


def run_missing(
    plan_now: Callable[[], Plan], options: Options, why: str, can_grow: bool
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
    from cser_bench.harness.workers.launch import launch, places
    from cser_bench.harness.workers.prepare import prepare

    results = options.results
    planned = plan_now()
    # Too few GPUs are refused before anything is written or fetched.
    places(planned, options)
    # Before the first run, so that runs side by side do not each fetch it.
    if prepare(planned, results):
        find_task(planned.runs[0].config.task.name).prepare(options.data)
    while prepare(planned, results):
        with shown(can_grow) as progress:
            failures = launch(planned, options, partial(print, flush=True), progress)
        if failures:
            failed = counted(failures, "run")
            return complain(f"{failed} failed; {why}", FAILURE), planned
        if skipped := len(prepare(planned, results)):
            print(
                f"{counted(skipped, 'run')} left out, as another command is at work there; call "
                "again when it has ended"
            )
            return 0, planned
        planned = plan_now()  # A tuning's records say what it wants next.
    return None, planned
