"""Small experiments, runs and doctored tasks that the tests of the harness share."""

from __future__ import annotations

import copy
import os
import stat
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import tomli_w
import torch
from torch import Tensor, nn

from cser_bench.__main__ import main
from cser_bench.algorithms import Compressor
from cser_bench.algorithms.check.threads import run_workers
from cser_bench.algorithms.registry import methods
from cser_bench.harness.cores import usable_cores
from cser_bench.harness.records.packs import read_pack
from cser_bench.harness.records.provenance import new_attempt
from cser_bench.harness.records.store import (
    RunRecord,
    digest_of,
    read_run,
    write_record,
)
from cser_bench.harness.spec.run import PlannedRun, RunConfig, TaskSpec, run_id
from cser_bench.harness.tasks.blobs import Blobs
from cser_bench.harness.tasks.samples import Batch
from cser_bench.harness.tasks.task import TensorSamples
from cser_bench.harness.train import checkpoint, training
from cser_bench.harness.train.train import train
from cser_bench.harness.train.training import Job
from cser_bench.harness.workers.attempt import attempt_stacked, prepare_thread, recorded
from cser_bench.harness.workers.launch import Options, Workers

ROOT = Path(__file__).parents[2]
Table = dict[str, Any]
Hook = Callable[[int, int], None]

BLOCK = {"kind": "block", "ratio": 4}
CSER = {
    "gradient_compressor": {"kind": "block", "ratio": 8},
    "error_compressor": {"kind": "block", "ratio": 4},
    "reset_interval": 3,
    "explicit_error": True,
}


def small_config(
    algorithm: str = "sgd", table: Table | None = None, **changes: Any
) -> RunConfig:
    """A run of 40 steps: scores after 20 and 40, a look at the loss after 25 too."""
    given: Table = {
        "task": {"name": "blobs"},
        "model": {"name": "small_cnn", "options": {"widths": [4, 8]}},
        "num_workers": 2,
        "batch_size": 20,
        "num_epochs": 1,
        "algorithm": algorithm,
        "settings": table or {},
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 1e-3,
        "schedule": {"kind": "cosine", "warmup_epochs": 0.25},
        "evaluation": {"per_epoch": 2},
        "seed": 1,
    }
    return RunConfig.model_validate(given | changes)


@cache
def shipped_run() -> dict[str, Any]:
    """The files of a run that was done once, as plain data."""
    pack = read_pack(ROOT / "results" / "fashion_mnist_tuning")
    return dict(pack[min(pack)])


def settings_of(name: str, compressor: Table) -> Table:
    """The settings that the method requires: this compressor wherever it takes one, and three steps
    for intervals.

    All others are what the method itself says that it is to be tried with.
    """
    method = methods()[name]
    table = Table()
    without_compression = method.no_compression or {}
    stated = {**without_compression, **method.tried_with}
    for key, setting in method.declared.items():
        kind = setting.declared
        required = setting.is_required
        if required:
            is_compressor = isinstance(kind, type) and issubclass(kind, Compressor)
            table[key] = (
                dict(compressor) if is_compressor else 3 if kind is int else stated[key]
            )
    return table


def job_for(config: RunConfig, results: Path, **changes: Any) -> Job:
    """An attempt at this run, in its folder under `results`, that saves at every opportunity."""
    identity = run_id(config)
    given: Table = {
        "experiment": "small",
        "folder": results / identity,
        "run": PlannedRun(identity, config.algorithm, config.seed, config),
        "attempt": new_attempt("stacked", "stacked", torch.device("cpu")),
        "data": None,
        "device": "cpu",
        "cores": tuple(usable_cores()),
        "checkpoint_minutes": 0.0,
        "timeout_seconds": 60.0,
    }
    return Job(**(given | changes))


def done(config: RunConfig, results: Path, **changes: Any) -> RunRecord:
    """The run, done by stacked workers, see `job_for`."""
    job = job_for(config, results, **changes)
    assert attempt_stacked(job)
    return read_run(job.folder)


def attempt_in_threads(
    job: Job, asked: Callable[[int], Callable[[], bool] | None] = lambda rank: None
) -> bool:
    """As a group of processes does the run, by threads of this process; True if it has a result.

    `asked`: by rank, the function that a worker asks whether to stop.
    """

    turn = threading.Lock()
    make = training.trainable

    def made_in_turn(config: RunConfig, device: torch.device) -> nn.Module:
        with turn:  # nn.Module draws from a generator that all threads share
            return make(config, device)

    def work() -> None:
        prepare_thread()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "trainable", made_in_turn)
            run_workers(
                lambda own: train(job, own, asked(own.rank)), job.run.config.num_workers
            )

    return recorded(job, work)


@dataclass(frozen=True)
class DoctoredSamples(TensorSamples):
    """Samples that call `hook(rank, step)` before each training batch."""

    hook: Hook = lambda rank, step: None

    def training_batches(
        self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int
    ) -> Iterator[Batch]:
        for number, batch in enumerate(
            super().training_batches(indices, seed, rank, first_step)
        ):
            self.hook(rank, first_step + number)
            yield batch


@dataclass(frozen=True)
class DoctoredBlobs(Blobs):
    """The task `blobs` with a hook before each training batch."""

    hook: Hook = lambda rank, step: None

    def load(
        self, data: Path | None, spec: TaskSpec, device: torch.device
    ) -> DoctoredSamples:
        samples = super().load(data, spec, device)
        names = [each.name for each in fields(samples)]
        tensors = {name: getattr(samples, name) for name in names}
        return DoctoredSamples(**tensors, hook=self.hook)


class Stopped(Exception):
    """Stands for whatever ends an attempt between two steps."""


def stop_before(last: int, rank: int, step: int) -> None:
    """A hook, but for its first argument: workers end before this step, counted from 0."""
    if step == last:
        raise Stopped(f"stopped before step {step}")


@contextmanager
def kept_checkpoints() -> Iterator[None]:
    """Inside, a run that is done keeps its checkpoints, so that a test can look at them, or go on
    from one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "discard", lambda folder: None)
        yield


def comparable(folder: Path) -> tuple[list[Table], Table]:
    """Events and result of a run without times and the digest that has them, the attempt's name, and
    what control sent, which checkpoints change."""
    record = read_run(folder)
    assert record.result is not None
    events = [event.model_dump(exclude={"wall_seconds"}) for event in record.events]
    result = record.result.model_dump(
        exclude={"attempt", "clock_seconds", "wall_seconds", "sha256"}
    )
    del result["traffic"]["control"]
    return events, result


SMALL_SPEC = """
format = 1
name = "small"
title = "Small"
task = { name = "blobs" }
model = { name = "small_cnn", options = { widths = [4, 8] } }
training = { num_workers = 2, batch_size = 20, num_epochs = 1, momentum = 0.9, weight_decay = 0.001 }
schedule = { kind = "cosine", warmup_epochs = 0.25 }
evaluation = { per_epoch = 2, batch_norm = "average" }
statistics = { baseline = "sgd", margin = 0.02, confidence = 0.95, seeds = [1, 2] }

[[rows]]
row = "sgd"
label = "SGD"
algorithm = "sgd"
ratio = 1
learning_rate = 0.05

[[rows]]
row = "cser"
label = "CSER"
algorithm = "cser"
ratio = 4.8
learning_rate = 0.05
momentum = 0.0

[[rows]]
row = "ef_sgd"
label = "EF-SGD"
algorithm = "ef_sgd"
ratio = 4
learning_rate = 0.05
settings = { compressor = { kind = "block", ratio = 4 } }
"""


TUNING: Table = {"grid": [0.01, 0.1], "seeds": [101], "held_out": 400}
"""A tuning for those that leave rates to one."""


def small_spec() -> Table:
    """A whole experiment of three rows and two seeds, each run of 40 steps."""
    spec = tomllib.loads(SMALL_SPEC)
    spec["rows"][1]["settings"] = copy.deepcopy(CSER)
    return spec


def changed(spec: Table, path: str, *value: Any) -> Table:
    """A copy of `spec` with another value at a path such as "rows.1.settings", or without it where
    none is given."""
    result = copy.deepcopy(spec)
    *parents, last = path.split(".")
    inner: Any = result
    for part in parents:
        inner = inner[int(part)] if isinstance(inner, list) else inner[part]
    key: Any = int(last) if isinstance(inner, list) else last
    if value:
        inner[key] = value[0]
    else:
        del inner[key]
    return result


def write_spec(folder: Path, spec: Table) -> Path:
    """The spec as a file in `folder`."""
    path = folder / "spec.toml"
    path.write_text(tomli_w.dumps(spec))
    return path


def command(*arguments: str | Path, module: str = "harness") -> list[str]:
    """The words of `python -m harness ...`."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def environment() -> dict[str, str]:
    """For subprocesses: the sources on the path, and one thread per operation."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def call(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` and keep what it says."""
    return subprocess.run(
        words,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )


class CommandLine:
    """Commands that are called in this process, and what they say."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def out(self, *words: str | Path, code: int = 0) -> str:
        """What a command prints that ends with this code; it complains of nothing if that is 0."""
        ended = main(list(map(str, words)))
        said = self._capsys.readouterr()
        assert ended == code and (code or not said.err), said
        return said.out

    def refused(self, *words: str | Path, code: int = 2) -> str:
        """The one sentence with which a command refuses."""
        ended = main(list(map(str, words)))
        said = self._capsys.readouterr()
        assert (
            ended == code
            and said.err.startswith("error: ")
            and said.err.count("\n") == 1
        ), said
        return said.err.strip().removeprefix("error: ")


class Quiet:
    """Takes what a launch says, and knows from it which runs ended how; None: done."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, sentence: str) -> None:
        self.said.append(sentence)

    @property
    def ends(self) -> dict[str, str | None]:
        lines = [
            each.partition("] ")[2].partition(": ")
            for each in self.said
            if each.startswith("[")
        ]
        verdicts = {
            name.replace(" seed", ""): verdict.removeprefix("FAILED, ")
            for name, _, verdict in lines
        }
        return {
            name: None if verdict == "done" else verdict
            for name, verdict in verdicts.items()
        }


def launch_options(
    results: Path, workers: Workers | Literal["auto"] = "stacked", **changes: Any
) -> Options:
    """As the command's defaults, for two runs at once."""
    fields: Table = {
        "results": results,
        "data": None,
        "workers": workers,
        "device": "cpu",
        "jobs": 2,
        "checkpoint_minutes": 5.0,
        "timeout_seconds": 60.0,
    }
    return Options(**(fields | changes))


def only(spec: Table, row: str, **changes: Any) -> Table:
    """The spec with this row alone and one seed."""
    rows = [each | changes for each in spec["rows"] if each["row"] == row]
    return spec | {
        "rows": rows,
        "statistics": spec["statistics"] | {"baseline": row, "seeds": [1]},
    }


class Killed(BaseException):
    """Stands for the end of the process: no handler of exceptions stops it."""


MOMENTS = ("mkdir", "open", "fsync", "chmod", "replace", "unlink", "rmdir")
"""What changes the disk; writes are torn where they should be flushed."""


def digest_anew(folder: Path) -> None:
    """Write the digest that fits a run's records, some of which a test has edited."""
    record = read_run(folder)
    assert record.result is not None
    digest = digest_of(record.result, record.events, record.run)
    result = record.result.model_copy(update={"sha256": digest})
    write_record(folder / "result.json", result)


@contextmanager
def killed_at(moment: int) -> Iterator[list[str]]:
    """Inside, nothing reaches the disk from change number `moment` on, counted from 0; yields the
    changes so far."""
    done: list[str] = []
    lock = threading.Lock()

    def watched(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            with lock:
                if len(done) >= moment:
                    if name == "fsync" and stat.S_ISREG(os.fstat(arguments[0]).st_mode):
                        os.ftruncate(
                            arguments[0], max(0, os.fstat(arguments[0]).st_size - 10)
                        )
                    done.append("killed")
                    raise Killed(f"killed before change {moment}, {name}")
                done.append(name)
            return act(*arguments, **options)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for name in MOMENTS:
            call = getattr(os, name)
            patch.setattr(os, name, watched(name, call))
        yield done
