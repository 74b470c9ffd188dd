"""Runs the benchmarks, prints one table of their figures and writes bench.json."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from harness.bench.measurement import Measurement, not_measured, show
from harness.records.provenance import new_attempt
from harness.records.store import write_text_atomically
from harness.spec import SpecError
from harness.workers.attempt import num_cores, prepare_thread

VERSION = 1
SUBJECTS = ("optimizer_step", "memory", "workers", "bare_loop", "report_time", "run_shares", "pipelines")
"""Modules of this package, each with a function `measure`, in the order of the table."""

BUSY = 0.3
"""Load per core from which figures are not to be trusted: even two threads of one process then share a core."""


def run_benchmarks(output: Path, only: str | None = None) -> None:
    """Measure every subject, or `only` one, and write bench.json (bench_<only>.json) into the folder `output`.

    Records of runs are looked for beside that folder. A subject that cannot be measured says why in the table.

    Raises:
        SpecError: there is no such subject.
    """
    if only is not None and only not in SUBJECTS:
        raise SpecError(f"no benchmark {only!r}; the benchmarks are {', '.join(SUBJECTS)}")
    prepare_thread()
    machine = _machine()
    figures: list[Measurement] = []
    for name in SUBJECTS if only is None else (only,):
        print(f"bench: {name}", flush=True)
        figures += _measured(name, output.parent)
    path = output / ("bench.json" if only is None else f"bench_{only}.json")
    write_text_atomically(path, json.dumps(document(figures, machine), indent=1, allow_nan=False) + "\n")
    print(table(figures))
    if machine["load_before"] > BUSY * num_cores():
        load = f"the load was {machine['load_before']:.1f} before this began"
        print(f"\n{load}: the machine had other work, so measure again when it is idle")
    print(f"\nevery timing is in {path}")


def _measured(name: str, results: Path) -> list[Measurement]:
    try:
        measure: Callable[[Path], list[Measurement]] = importlib.import_module(f"harness.bench.{name}").measure
        return measure(results)
    except Exception as error:
        return [not_measured(name, "", f"{type(error).__name__}: {error}")]


def table(figures: Sequence[Measurement]) -> str:
    """The figures for people."""
    headers = ["figure", "measured", "aim", "met", "what was compared"]
    return tabulate(
        [show(figure) for figure in figures], headers, disable_numparse=True, maxcolwidths=[36, 24, 8, 4, 72]
    )


def document(figures: Sequence[Measurement], machine: dict[str, Any]) -> dict[str, Any]:
    """The figures with the machine and the code that they belong to, as JSON has it."""
    return {"version": VERSION, "machine": machine, "figures": [figure.as_json() for figure in figures]}


def _machine() -> dict[str, Any]:
    """Machine, packages and commit, and the load before the benchmarks add theirs."""
    unset = {"attempt", "resumed_from_step", "launch", "backend", "accelerator", "nccl"}
    attempt = new_attempt("bench", "none", torch.device("cpu")).model_dump(mode="json", exclude=unset)
    return {**attempt, "load_before": os.getloadavg()[0]}
