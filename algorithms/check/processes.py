"""Two processes that train a method as workers of a process group.

They are started as `python -m cser_bench.algorithms.check.processes RANK FOLDER`.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import astuple
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import cser_bench
from cser_bench.algorithms.check.problem import (
    INTERVAL,
    Rows,
    flat,
    make_model,
    make_optimizer,
    settings_for,
    taken_compressors,
    train,
)
from cser_bench.algorithms.check.subject import Subject
from cser_bench.algorithms.core.collectives import Collectives, StackedCollectives
from cser_bench.algorithms.core.process_group import ProcessGroupCollectives

WORLD_SIZE = 2
NUM_STEPS = 12
PATIENCE_SECONDS = 240

FinalState = tuple[Tensor, dict[str, list[int]]]
"""The parameters of the workers at an end, of shape (local workers, d), and what each sent."""


def final_states(subject: Subject, collectives: Collectives) -> dict[str, FinalState]:
    """Return what a short training by each of the method's compressors ends with, by its name."""
    method = subject.method
    states = {}
    for name, compressor in taken_compressors(method).items():
        settings = settings_for(method, [compressor], INTERVAL)
        ends: list[Tensor] = []
        # One group serves all compressors, so what was counted for the one before is forgotten.
        collectives.traffic.load_state_dict(type(collectives.traffic)().state_dict())
        if isinstance(collectives, StackedCollectives):
            rows = Rows(method, settings, collectives, seed=3)
            rows.train(range(1, NUM_STEPS + 1))
            ends = [rows.parameters_of(row) for row in range(collectives.world_size)]
            optimizer = rows.optimizer
        else:
            model = make_model(seed=collectives.rank)
            optimizer = make_optimizer(
                method, model.parameters(), settings, collectives, seed=3
            )
            train(optimizer, model, collectives.rank, range(1, NUM_STEPS + 1))
            # A process has its own row alone.
            ends = [flat(model.parameters())]
        training = optimizer.traffic.training()
        sent = {purpose: list(astuple(entry)) for purpose, entry in training.items()}
        states[name] = (torch.stack(ends), sent)
    return states


def trained_by_processes(subject: Subject) -> list[dict[str, FinalState]]:
    """Return what each process of a group of two ends with, by rank; see `final_states`.

    Raises RuntimeError: one failed, with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="cser-check-") as name:
        folder = Path(name)
        fields = {"source": subject.source, "file": subject.file, "name": subject.name}
        (folder / "subject.json").write_text(json.dumps(fields))
        _run_processes(folder)
        return [
            torch.load(folder / f"{rank}.pt", weights_only=True)
            for rank in range(WORLD_SIZE)
        ]


def _run_processes(folder: Path) -> None:
    """Run this module as each process of a group of two, with its rank and a folder.

    Raises RuntimeError: one failed, with its last words.
    """
    started = [_start(rank, folder) for rank in range(WORLD_SIZE)]
    try:
        for process in started:
            _, errors = process.communicate(timeout=PATIENCE_SECONDS)
            if process.returncode:
                # The last line of a traceback names the error.
                words = errors.strip().splitlines() or ["it said nothing"]
                raise RuntimeError(f"a process failed: {words[-1]}")
    finally:
        # One that failed leaves the other waiting for it.
        for process in started:
            process.kill()


def _start(rank: int, folder: Path) -> subprocess.Popen[str]:
    ours = str(Path(cser_bench.__file__).absolute().parents[1])
    paths = [ours, os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # Sums then add in one order, whatever the number of cores.
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(rank), str(folder)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def main(arguments: list[str]) -> None:
    """Be one of the processes."""
    rank = int(arguments[0])
    folder = Path(arguments[1])
    fields: dict[str, Any] = json.loads((folder / "subject.json").read_text())
    _join_group(rank, folder)
    states = final_states(Subject(**fields), ProcessGroupCollectives())
    torch.save(states, folder / f"{rank}.pt")
    dist.destroy_process_group()


def _join_group(rank: int, folder: Path) -> None:
    """Become a process of the group that meets in a folder."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD_SIZE,
        timeout=timedelta(seconds=PATIENCE_SECONDS),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
