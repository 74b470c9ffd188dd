"""Tries on a GPU what experiments rely on there, and times it: a table for people, and a JSON to keep."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from harness.gpu_check.problem import Scale
from harness.gpu_check.record import CheckResult, Checks, as_table, record
from harness.records.provenance import new_attempt, output_of
from harness.records.store import write_text_atomically
from harness.workers.attempt import prepare_thread
from harness.workers.preflight import check_gpus

VERSION = 2
SUBJECTS = (
    "nccl",
    "mixed_precision",
    "memory_format",
    "host_waits",
    "workers",
    "training",
    "memory",
    "step_time",
)
"""Modules of this package, each with a function `checks`, in the order of the table."""


def run_checks(output: Path) -> int:
    """Make every check and write gpu_check.json into `output`; how many failed. Without a GPU none is made."""
    if not torch.cuda.is_available():
        print("gpu-check: skipped, since torch sees no GPU on this machine")
        return 0
    device = torch.device("cuda", 0)
    prepare_thread(str(device))
    records = []
    for each in make_checks(device, Scale()):
        print(f"gpu-check: {each.name}: {'ok' if each.passed else 'FAIL'}", flush=True)
        records.append(each)
    path = output / "gpu_check.json"
    write_text_atomically(path, document(records, machine(device)))
    print(f"{as_table(records)}; all of this is in {path}")
    return sum(not each.passed for each in records)


def make_checks(device: torch.device, scale: Scale) -> Iterator[CheckResult]:
    """The records of all checks, one after the other; a subject that cannot begin is a record of its own."""
    if device.type == "cuda":
        for found in check_gpus():
            yield CheckResult(found.what, found.passed, "a torch with code for it", {}, 0.0, found.detail)
    for subject in SUBJECTS:
        checks: Checks = importlib.import_module(f"harness.gpu_check.{subject}").checks(device, scale)
        for name, check in checks:
            yield record(name, check)
            if device.type == "cuda":
                torch.cuda.empty_cache()


def document(records: list[CheckResult], machine: dict[str, Any]) -> str:
    """What is kept, as JSON."""
    whole = {"version": VERSION, "machine": machine, "checks": [dataclasses.asdict(each) for each in records]}
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def machine(device: torch.device) -> dict[str, Any]:
    """The code, the packages and the GPUs that the records belong to."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    attempt = new_attempt("gpu-check", backend, device).model_dump(exclude={"attempt", "resumed_from_step", "launch"})
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {**attempt, "gpus": names, "cuda": torch.version.cuda, "driver": driver_version()}


def driver_version() -> str | None:
    """Of the NVIDIA driver; None where nvidia-smi does not say."""
    said = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return None if said is None else said.split("\n")[0]
