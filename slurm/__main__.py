"""The command line of campaigns: submit, status, resubmit."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.cli import exits

WAIT_SECONDS = 5.0


def command_line() -> int:
    """What `python -m slurm` and the installed command do."""
    exits.leave_out_current_folder()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 2 for a user's mistake, 1 for a failure, 130 when interrupted."""

    def command() -> int:
        options = _parser().parse_args(arguments)
        return int(options.command(options))

    interrupted = f"what was submitted goes on; `{exits.program('slurm')} status` shows it"
    return exits.end_of(command, "mend this and call again", interrupted)


def _parser() -> argparse.ArgumentParser:
    import shtab

    parser = argparse.ArgumentParser(prog=exits.program("slurm"), description=__doc__, allow_abbrev=False)
    shtab.add_argument_to(parser, "--print-completion")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        sub.set_defaults(command=command)
        sub.add_argument("--results", type=Path, default=Path("results"), help="folder of records (default: results)")
        return sub

    submit = add("submit", _submit, "submit what is missing of an experiment, and return at once")
    submit.add_argument("experiment", help="name of a shipped experiment, or a TOML file")
    submit.add_argument("--cluster", required=True, help="a profile of slurm/clusters, NAME or NAME:VARIANT, or a file")
    submit.add_argument("--data", type=Path, help="folder with the data set, as the compute nodes see it")
    submit.add_argument("--dry-run", action="store_true", help="print counts, cost and what sbatch would get, no more")
    resubmit = add("resubmit", _resubmit, "submit what is left of a campaign, as it was submitted before")
    resubmit.add_argument("experiment", nargs="?", help="which (default: the only one that was submitted)")
    for sub in (submit, resubmit):
        sub.add_argument("--tuning", action="store_true", help="the experiment's tuning instead of itself")
        sub.add_argument("--yes", action="store_true", help="do not ask before submitting")
        sub.add_argument("--no-preflight", action="store_true", help="do not check from compute nodes first")
        sub.add_argument("--wait", action="store_true", help="stay until nothing is queued or running any more")
    status = add("status", _status, "say how far campaigns are")
    status.add_argument("experiment", nargs="*", help="names of experiments (default: all that were submitted)")
    status.add_argument("--json", action="store_true", help="for machines")
    return parser


def _submit(options: argparse.Namespace) -> int:
    from harness.plan.plan import plan_experiment
    from slurm.profile import load_profile
    from slurm.status import campaign_status
    from slurm.submit import Request, check, left_to_submit, sbatch_texts, show, submit

    request = Request(
        plan=plan_experiment(options.experiment, options.results, options.tuning),
        results=options.results.absolute(),
        data=options.data.absolute() if options.data else None,
        cluster=options.cluster,
        profile=load_profile(options.cluster),
        command=shlex.join(["python", "-m", "slurm", *sys.argv[1:]]),
        preflight=not options.no_preflight,
    )
    check(request)
    if not options.dry_run and not (shutil.which("sbatch") and shutil.which("srun")):
        raise exits.UsageError(
            "sbatch is not on the path: call this on a login node of the cluster, or load its Slurm module (--dry-run "
            "needs none)"
        )
    left = left_to_submit(request)
    if options.dry_run or left:
        show(request, len(left))
    if options.dry_run:
        print("", *sbatch_texts(request, len(left)) if left else ["nothing is left to submit"], sep="\n\n")
        return 0
    if left and not options.yes:
        if not sys.stdin.isatty():
            raise exits.UsageError("nobody is here to confirm: give --yes (make: YES=1)")
        if input("submit? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was submitted")
            return 0
    if jobs := submit(request) if left else []:
        print(f"submitted {len(jobs)} runs as job {', '.join(dict.fromkeys(job.split('_')[0] for job in jobs))}")
    else:
        totals = campaign_status(request.folder).totals
        in_hand = totals["queued"] + totals["running"]
        print(f"nothing to submit: {totals['done']} runs done, {in_hand} queued or running")
    if options.wait:
        return _wait(request.folder)
    print(f"`{exits.program('slurm')} status {request.name}` (make status) shows how far they are")
    return 0


def _wait(folder: Path) -> int:
    """Until nothing is queued or running; 1 where runs are left then."""
    from slurm.status import as_text, campaign_status

    said = None
    while (status := campaign_status(folder)).in_hand():
        if status.totals != said:
            said = status.totals
            print(", ".join(f"{count} {state}" for state, count in said.items() if count), flush=True)
        time.sleep(WAIT_SECONDS)
    print(as_text(status))
    return 0 if status.totals["done"] == len(status.runs) else exits.FAILURE


def _resubmit(options: argparse.Namespace) -> int:
    from slurm.campaign import read_campaign

    there = [folder.name for folder in _campaigns(options.results)]
    if options.experiment is None and len(there) != 1:
        names = ", ".join(there) or "no campaigns"
        raise exits.UsageError(f"say which experiment (make: EXPERIMENT=); {options.results} holds {names}")
    options.experiment = options.experiment or there[0]
    folder = options.results / (_name(options.experiment) + ("_tuning" if options.tuning else ""))
    submissions = read_campaign(folder).submissions
    if not submissions:
        raise exits.UsageError(f"{folder} holds no campaign; submit it first")
    last = submissions[-1]
    options.cluster, options.data, options.dry_run = last.cluster, Path(last.data) if last.data else None, False
    return _submit(options)


def _status(options: argparse.Namespace) -> int:
    from slurm.status import as_json, as_text, campaign_status

    there = _campaigns(options.results)
    folders = [options.results / _name(each) for each in options.experiment] or there
    for folder in folders:
        if folder not in there:
            raise exits.UsageError(
                f"{folder} holds no campaign; those there are: {', '.join(each.name for each in there)}"
            )
    states = [campaign_status(folder) for folder in folders]
    if options.json:
        print(json.dumps([as_json(status) for status in states], indent=1))
    else:
        print("\n\n".join(map(as_text, states)) or f"no campaigns in {options.results}")
    return 0


def _campaigns(results: Path) -> list[Path]:
    """The folders of the experiments that were submitted."""
    return sorted(path.parent for path in results.glob("*/campaign.json"))


def _name(experiment: str) -> str:
    """The name of an experiment that is given by it or as a file."""
    from harness.spec_file import find_spec, load_spec

    return load_spec(find_spec(experiment)).name if experiment.endswith(".toml") else experiment


if __name__ == "__main__":
    sys.exit(command_line())
