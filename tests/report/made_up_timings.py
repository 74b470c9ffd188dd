"""Made-up sweeps and timings of a network whose alpha and beta are known; nothing in them was
measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RECORD = json.loads(
    (
        Path(__file__).parents[2]
        / "results/speedups/timing-resnet50_v100-8x1-10000mbps.json"
    ).read_text()
)
"""Who and where, on which kind of network, and what was trained, are as this has them."""
ALPHA = 100e-6
EFFICIENCY = 0.9
NUM_PARAMETERS = RECORD["workload"]["num_parameters"]
FORWARD = 0.010
BACKWARD = 0.020
METHODS = {
    "all_reduce": (True, [1.0]),
    "ddp": (True, [0.25, 0.5, 0.75, 1.0]),
    "csea": (False, [1.0]),
    "mcser": (False, [1.0]),
}
"""By name: whether it is a baseline, and when each of its messages gets ready; others than
baselines send a 256th."""


def fabric(
    bits_per_second: float, dilation: float = 1.0, machines: int = 8
) -> dict[str, Any]:
    """Eight workers, on as many machines or fewer."""
    place = {
        "num_machines": machines,
        "workers_per_machine": 8 // machines,
        "dilation": dilation,
    }
    inside = None if machines == 8 else 1e9
    found: dict[str, Any] = RECORD["fabric"] | place
    return found | {
        "bits_per_second": bits_per_second,
        "inside_bits_per_second": inside,
    }


def ring_seconds(num_bytes: float, bits_per_second: float) -> float:
    """An all-reduce on the made-up network: 14 hops, each of an eighth of the bytes."""
    return 14 * (ALPHA + num_bytes / 8 * 8 / (EFFICIENCY * bits_per_second))


def sweep(bits_per_second: float) -> dict[str, Any]:
    """All-reduces and all-gathers of five sizes, exactly as alpha and beta say."""
    points = []
    for size in (1_000, 10_000, 100_000, 1_000_000, 10_000_000):
        gathered = 7 * (ALPHA + size * 8 / (EFFICIENCY * bits_per_second))
        for collective, seconds, wire in (
            ("all_reduce", ring_seconds(size, bits_per_second), 14 * size / 8),
            ("all_gather", gathered, 7.0 * size),
        ):
            point = {
                "collective": collective,
                "payload_bytes": size,
                "formula_bytes": wire,
            }
            counted = {
                "wire_bytes": 1.0 * wire + 66 * wire / 1448 + 0.002 * wire,
                "wire_frames": wire / 1448,
            }
            points.append(
                point | counted | {"seconds": [seconds, 0.99 * seconds, 1.01 * seconds]}
            )
    return {
        "version": 1,
        "attempt": RECORD["attempt"],
        "fabric": fabric(bits_per_second),
        "points": points,
    }


def timing(
    stands_for: float, basis: str = "emulated", dilation: float = 20.0
) -> dict[str, Any]:
    """A timing record of ResNet-50 on links that stand for this rate; all steps take as long."""
    zeros = [0.0, 0.0]
    plain = {
        "kind": "every",
        "share": 1.0,
        "bits_per_second": stands_for,
        "dilation": dilation,
        "visits": [0, 1],
    }
    times = {"seconds": [0.1, 0.1], "compute_seconds": [FORWARD + BACKWARD] * 2}
    times |= {
        "codec_seconds": zeros,
        "waiting_seconds": zeros,
        "transfer_seconds": zeros,
    }
    record: dict[str, Any] = RECORD | {
        "basis": basis,
        "fabric": fabric(stands_for / dilation, dilation),
        "workload": RECORD["workload"]
        | {"forward_seconds": FORWARD, "backward_seconds": BACKWARD},
        "methods": [
            _method(name, baseline, ready)
            for name, (baseline, ready) in METHODS.items()
        ],
        "cells": [plain | times | {"method": name} for name in METHODS],
    }
    return record


def _method(name: str, baseline: bool, ready: list[float]) -> dict[str, Any]:
    ratio = 1 if baseline else 256
    size = round(4 * NUM_PARAMETERS / ratio / len(ready))
    messages = [
        {"collective": "all_reduce", "payload_bytes": size, "every": 1, "ready": each}
        for each in ready
    ]
    plain = {
        "name": name,
        "label": name.upper(),
        "algorithm": name,
        "settings": {},
        "momentum": 0.9,
        "rows": [],
    }
    told = {
        "overlap": len(ready) > 1,
        "period": 1,
        "messages": messages,
        "codec_alone_seconds": None,
    }
    return plain | told | {"baseline": baseline}


def write_study(
    folder: Path, sweeps: Sequence[dict[str, Any]], timings: Sequence[dict[str, Any]]
) -> Path:
    """Write records and the study that names them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, list[str]] = {"sweep": [], "timing": []}
    for kind, records in (("sweep", sweeps), ("timing", timings)):
        for index, record in enumerate(records):
            names[kind].append(f"{kind}-{index}.json")
            name = names[kind][-1]
            (folder / name).write_text(json.dumps(record))
    left_out = [
        {
            "what": "100 Gb/s",
            "why": "above the ceiling of 2.5 Gb/s in all that was measured here",
        }
    ]
    study = {
        "version": 1,
        "sweeps": names["sweep"],
        "timings": names["timing"],
        "left_out": left_out,
    }
    (folder / "study.json").write_text(json.dumps(study))
    return folder
