"""Commands on runs of a cluster: submit them, and say how far they are."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

import click

from cser_bench.harness.cli.command import command
from cser_bench.harness.cli.exits import FAILURE, program
from cser_bench.harness.cli.numbers import counted
from cser_bench.harness.cli.options import EXPERIMENT, experiment_options, stage_option
from cser_bench.harness.cli.paths import shipped_folder
from cser_bench.harness.cli.selection import Selection, selecting
from cser_bench.harness.errors import UsageError

if TYPE_CHECKING:
    from cser_bench.harness.plan.plan import Plan
    from cser_bench.slurm.campaign import Request, Submission

WAIT_SECONDS = 5.0
"""Between two looks at a campaign that is waited for."""


@command(
    "submit",
    "submit what is missing to a Slurm cluster, and return at once",
    EXPERIMENT,
)
@experiment_options()
@stage_option(" (default with no --cluster: as submitted before)")
@click.option(
    "--cluster",
    help="a profile of slurm/clusters, NAME or NAME:VARIANT, or a file (default: as submitted "
    "before, with its data)",
)
@click.option(
    "--data", type=Path, help="folder with the data set, as the compute nodes see it"
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="print counts, cost and what sbatch would get, no more",
)
@click.option("--yes", is_flag=True, help="do not ask before submitting")
@click.option(
    "--no-preflight", is_flag=True, help="do not check from compute nodes first"
)
@click.option(
    "--wait", is_flag=True, help="stay until nothing is queued or running any more"
)
@selecting
def submit(
    selection: Selection,
    cluster: str | None,
    data: Path | None,
    dry_run: bool,
    yes: bool,
    no_preflight: bool,
    wait: bool,
) -> int:
    """Submit the runs that are missing to a Slurm cluster.

    Returns 1 where the command waits, and some have no result then.
    """
    from cser_bench.slurm.submit import check_num_workers, left_to_submit, show
    from cser_bench.slurm.submit import submit as submit_runs

    selection, request = _request(selection, cluster, data, not no_preflight)
    check_num_workers(request)
    if not dry_run and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UsageError(
            "sbatch is not on the path: call this on a login node of the cluster, or load its "
            "Slurm module (--dry-run needs none)"
        )
    left = left_to_submit(request)
    if dry_run or left:
        show(request, len(left))
    if dry_run:
        _show_sbatch(request, len(left))
        return 0
    if left and not yes and not _is_confirmed():
        print("nothing was submitted")
        return 0
    jobs: list[str] = []
    if left:
        # It looks again at what is left, as another command may have submitted it meanwhile.
        jobs = submit_runs(request)
    print(_submitted(jobs))
    if wait:
        return _wait(request.plan, request.folder)
    print(
        f"`{program()} status {selection.words()}` (make status) shows how far they are"
    )
    return 0


def _request(
    selection: Selection, cluster: str | None, data: Path | None, preflight: bool
) -> tuple[Selection, Request]:
    """Return what is asked for, with what the last submission says where no cluster is named.

    The selection has the stage that was submitted last, if it names none.
    """
    from cser_bench.slurm.campaign import Request
    from cser_bench.slurm.profile import load_profile

    planned = selection.plan()
    # Without a cluster the command takes up what was submitted before, as it was.
    if cluster is None:
        before = _last_submission(selection.results / planned.experiment.name)
        cluster = before.cluster
        if data is None and before.data:
            data = Path(before.data)
        if selection.stage is None and before.stage is not None:
            selection = replace(selection, stage=before.stage)
            planned = planned.at_stage(before.stage)
    if data is not None:
        data = data.absolute()
    request = Request(
        plan=planned,
        # A job may run in another folder.
        results=selection.results.absolute(),
        data=data,
        cluster=cluster,
        profile=load_profile(cluster),
        preflight=preflight,
    )
    return selection, request


def _show_sbatch(request: Request, num_left: int) -> None:
    """Print what sbatch would get."""
    from cser_bench.slurm.submit import sbatch_texts

    texts = ["nothing is left to submit"]
    if num_left:
        texts = list(sbatch_texts(request, num_left))
    print("", *texts, sep="\n\n")


def _last_submission(folder: Path) -> Submission:
    """Return how the experiment was submitted last."""
    from cser_bench.slurm.campaign import read_campaign

    before = read_campaign(folder).submissions
    if not before:
        raise UsageError(
            f"{folder} holds no campaign; say on which --cluster (make: CLUSTER=)"
        )
    return before[-1]


def _is_confirmed() -> bool:
    """Ask whether to submit."""
    if not sys.stdin.isatty():
        raise UsageError("nobody is here to confirm: give --yes (make: YES=1)")
    return input("submit? [y/N] ").strip().lower() in ("y", "yes")


def _submitted(jobs: Sequence[str]) -> str:
    """Say how many runs were submitted, and as which job arrays."""
    if not jobs:
        return "nothing to submit: all runs are done, queued or running"
    # A task of an array is called ARRAY_TASK.
    arrays = dict.fromkeys(job.split("_")[0] for job in jobs)
    return f"submitted {counted(len(jobs), 'run')} as job {', '.join(arrays)}"


def _wait(planned: Plan, folder: Path) -> int:
    """Wait until nothing is queued or running.

    Returns 1 where runs are left then.
    """
    from cser_bench.harness.cli.show import status_text, totals_text
    from cser_bench.slurm.campaign import statuses

    runs = statuses(folder, planned.runs)
    said = ""
    while {"queued", "running"} & {run.state for run in runs}:
        # A line at each change: a wait of hours would else fill the screen.
        if totals_text(runs) != said:
            said = totals_text(runs)
            print(said, flush=True)
        sleep(WAIT_SECONDS)
        runs = statuses(folder, planned.runs)
    print(status_text(runs, planned.runs[0].config.num_workers))
    if all(run.state == "done" for run in runs):
        return 0
    return FAILURE


@command("status", "say how far each row is, here and on a cluster", EXPERIMENT)
@experiment_options()
@stage_option()
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@selecting
def status(selection: Selection, as_json: bool) -> int:
    """Say how far each row is, here and on a cluster."""
    from cser_bench.harness.cli.show import status_fields, status_text
    from cser_bench.harness.records.experiment import Experiment
    from cser_bench.harness.records.store import read_optional
    from cser_bench.slurm.campaign import statuses

    planned = selection.plan()
    folder = selection.results / planned.experiment.name
    read_optional(folder / "experiment.json", Experiment)  # a damaged one is told
    runs = statuses(folder, planned.runs)
    text = status_text(runs, planned.runs[0].config.num_workers)
    if as_json:
        print(json.dumps(status_fields(runs), indent=1))
        return 0
    shipped = shipped_folder(selection.results, planned.experiment.name)
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
