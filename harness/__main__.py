"""The command line: plan, preflight, run, status, collect, report, bench, gpu-check, netlab, time, speedups."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.spec import SpecError, find_spec, load_spec
from harness.store import RecordError
from harness.tasks.errors import DataError

if TYPE_CHECKING:
    from harness.launch import Options
    from harness.plan import Plan

USAGE, FAILURE = 2, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 2 for a user's mistake, 1 for a failure, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except SpecError as error:
        return _complain(error, USAGE)
    except (RecordError, DataError) as error:
        return _complain(error, FAILURE)
    except OSError as error:
        what = error.strerror or type(error).__name__
        where = f" at {error.filename}" if error.filename else ""
        return _complain(f"{what}{where}: what was recorded is kept; mend this and call again", FAILURE)
    except KeyboardInterrupt:
        print("interrupted: what was recorded is kept; the same command goes on from here", file=sys.stderr)
        return 130


def _complain(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="harness", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, what in (
        ("plan", _plan, "print the runs of an experiment with bits, memory and time; touches no data"),
        ("preflight", _preflight, "look at data, disk and GPUs before a long experiment"),
        ("run", _run, "do the runs that are missing"),
        ("status", _status, "say how far each row is"),
        ("collect", _collect, "write all results of an experiment as one CSV"),
        ("report", _report, "make report.md and report.pdf from the records"),
    ):
        sub = commands.add_parser(name, help=what, description=what)
        sub.set_defaults(command=command)
        sub.add_argument("experiment", help="name of a shipped experiment, or a TOML file")
        sub.add_argument("--tuning", action="store_true", help="the experiment's tuning instead of itself")
        sub.add_argument("--results", type=Path, default=Path("results"), help="folder of records (default: results)")
        if name in ("run", "preflight"):
            _add_run_options(sub)
    bench = commands.add_parser("bench", help="measure ratios of speed and memory")
    bench.add_argument("--output", type=Path, default=Path("results/bench"))
    bench.add_argument("--only", metavar="NAME", help="one benchmark by its name")
    bench.set_defaults(command=_bench)
    what = "try on this machine's GPUs what experiments rely on, and time it; skipped where there is none"
    gpu_check = commands.add_parser("gpu-check", help=what, description=what)
    gpu_check.add_argument("--output", type=Path, default=Path("results/gpu"))
    gpu_check.set_defaults(command=_gpu_check)
    speedups = commands.add_parser("speedups", help="time methods and baselines on an emulated network, and report it")
    speedups.add_argument("--output", type=Path, default=Path("results/speedups"))
    speedups.add_argument(
        "--accuracy", type=Path, action="append", default=[], metavar="FOLDER", help="of accuracy runs"
    )
    speedups.add_argument("--minutes", type=float, default=22.0, help="after which no timing is begun (default: 22)")
    speedups.set_defaults(command=_speedups)
    _add_netlab(commands.add_parser("netlab", help="time collectives on an emulated network of this machine's own"))
    _add_time(commands.add_parser("time", help="time training steps of methods and baselines, under torchrun or srun"))
    return parser


def _add_time(sub: argparse.ArgumentParser) -> None:
    sub.set_defaults(command=_time)
    sub.add_argument("--workload", default="resnet50", help="what is trained, or emulated (default: resnet50)")
    sub.add_argument("--methods", nargs="*", default=[], help="names of methods and baselines (default: all)")
    sub.add_argument("--visits", type=_positive, default=4, help="turns of each method (default: 4)")
    sub.add_argument("--steps", type=_positive, default=5, help="timed steps of a kind in each turn (default: 5)")
    sub.add_argument("--output", type=Path, default=Path("results/speedups_here"), help="folder of the study")


def _add_run_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", type=Path, help="folder with the data set; by default the places where it may lie")
    sub.add_argument("--jobs", type=_positive, help="runs at once (default: the cores, or what there are GPUs for)")
    sub.add_argument(
        "--workers",
        choices=("threads", "processes", "auto"),
        default="threads",
        help="what a worker is; auto: a process if each can have a GPU, else a thread (default: threads)",
    )
    sub.add_argument(
        "--device",
        type=_device,
        default="cpu",
        help="cpu; cuda, which gives each process the GPU of its local rank; or cuda:N for one GPU (default: cpu)",
    )
    sub.add_argument("--checkpoint-minutes", type=float, default=5.0, help="time between checkpoints (default: 5)")
    sub.add_argument("--timeout-seconds", type=float, default=300.0, help="how long a collective waits (default: 300)")


def _add_netlab(sub: argparse.ArgumentParser) -> None:
    sub.set_defaults(command=_netlab)
    sub.add_argument("--workers", type=_positive, default=8, help="gloo processes (default: 8)")
    sub.add_argument("--machines", type=_positive, help="machines they are on, as many on each (default: one each)")
    sub.add_argument(
        "--rates",
        type=_rates,
        default="10,50,100",
        metavar="LIST",
        help="Mb/s of a machine's link (default: 10,50,100)",
    )
    sub.add_argument("--output", type=Path, default=Path("results/netlab"))
    sub.add_argument("--prefix", default="cserlab", help="of the names of all namespaces (default: cserlab)")


def _rates(text: str) -> list[float]:
    """In bits a second, of a list in Mb/s."""
    try:
        return [float(rate) * 1e6 for rate in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers of Mb/s with commas between, not {text!r}") from None


def _device(text: str) -> str:
    if text not in ("cpu", "cuda") and not (text.startswith("cuda:") and text[5:].isdigit()):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, not {text!r}")
    return text


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _planned(options: argparse.Namespace) -> Plan:
    from harness.plan import make_plan

    return make_plan(load_spec(find_spec(options.experiment)), options.results, options.tuning, options.experiment)


def _plan(options: argparse.Namespace) -> int:
    from harness.show import show_plan

    show_plan(_planned(options))
    return 0


def _launch_options(options: argparse.Namespace, plan: Plan) -> Options:
    import torch

    from harness.devices import choose_workers
    from harness.launch import Options

    num_workers = max(run.config.num_workers for run in plan.runs)
    return Options(
        results=options.results,
        data=options.data,
        workers=choose_workers(options.workers, options.device, num_workers, torch.cuda.device_count()),
        device=options.device,
        jobs=options.jobs,
        checkpoint_minutes=options.checkpoint_minutes,
        timeout_seconds=options.timeout_seconds,
    )


def _preflight(options: argparse.Namespace) -> int:
    from harness.preflight import preflight

    plan = _planned(options)
    failed = 0
    for check in preflight(plan, _launch_options(options, plan)):
        print(f"{'ok  ' if check.passed else 'FAIL'} {check.what}: {check.detail}", flush=True)
        failed += not check.passed
    return FAILURE if failed else 0


def _run(options: argparse.Namespace) -> int:
    from harness.attempt import BusyError
    from harness.launch import launch, missing_runs, places, write_experiment
    from harness.progress import make_display
    from harness.tasks.task import configured_task

    plan = _planned(options)
    launch_options = _launch_options(options, plan)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from harness.torchrun import run_under_torchrun

        try:
            return FAILURE if run_under_torchrun(plan, launch_options) else 0
        except BusyError as error:
            return _complain(error, FAILURE)
    places(plan, launch_options)  # Too few GPUs are refused before anything is written or fetched.
    if not missing_runs(plan, write_experiment(plan, options.results)):
        print(f"all {len({run.run_id for run in plan.runs})} runs of {plan.experiment.name} are done")
        return 0
    # Before the first run, so that runs side by side do not each fetch it.
    configured_task(plan.runs[0].config.task).prepare(options.data)
    with make_display() as display:
        failures = launch(plan, launch_options, display)
    if failures:
        return _complain(f"{failures} runs failed; `harness status {options.experiment}` says why", FAILURE)
    return 0


def _status(options: argparse.Namespace) -> int:
    from harness.show import show_status

    show_status(_planned(options), options.results)
    return 0


def _collect(options: argparse.Namespace) -> int:
    from harness.collect import collect

    spec = load_spec(find_spec(options.experiment))
    print(collect(_folder(options, spec.name)))
    return 0


def _folder(options: argparse.Namespace, name: str) -> Path:
    folder: Path = options.results / (f"{name}_tuning" if options.tuning else name)
    return folder


def _report(options: argparse.Namespace) -> int:
    import subprocess

    spec = load_spec(find_spec(options.experiment))
    # A process of its own: the report knows the records alone, and the harness does not know the report.
    done = subprocess.run([sys.executable, "-m", "report", str(_folder(options, spec.name))], check=False)
    return done.returncode


def _bench(options: argparse.Namespace) -> int:
    from harness.bench import run_benchmarks

    run_benchmarks(options.output, options.only)
    return 0


def _gpu_check(options: argparse.Namespace) -> int:
    from harness.gpu_check import run_checks

    return FAILURE if run_checks(options.output) else 0


def _speedups(options: argparse.Namespace) -> int:
    import subprocess

    from harness.timing.spawn import WorkerError
    from harness.timing.study import run_study

    try:
        run_study(options.output, options.minutes)
    except WorkerError as error:
        return _complain(error, FAILURE)
    accuracy = [word for folder in options.accuracy for word in ("--accuracy", str(folder))]
    return subprocess.run([sys.executable, "-m", "report", str(options.output), *accuracy], check=False).returncode


def _netlab(options: argparse.Namespace) -> int:
    from harness.netlab.command import run

    run(options.workers, options.machines, options.rates, options.output, options.prefix)
    return 0


def _time(options: argparse.Namespace) -> int:
    from harness.timing.command import run

    try:
        run(options.workload, options.methods, options.visits, options.steps, options.output)
    except RuntimeError as error:
        return _complain(error, FAILURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
