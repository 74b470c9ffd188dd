"""Made-up sweeps and timings of a network whose alpha and beta are known; nothing in them was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALPHA = 100e-6
EFFICIENCY = 0.9
WORKERS = 8
DEVICES: dict[str, dict[str, Any]] = {
    "fashion_mnist": {"model": "made up", "device": "CPU", "num_parameters": 100_000, "dilation": 1.0},
    "resnet50_v100": {"model": "resnet50", "device": "V100-16GB", "num_parameters": 25_557_032, "dilation": 20.0},
    "wide_resnet_40_8_v100": {"model": "wide", "device": "V100-16GB", "num_parameters": 35_727_000, "dilation": 20.0},
}
FORWARD, BACKWARD, CODEC = 0.010, 0.020, 0.004


@dataclass(frozen=True)
class Made:
    """A method to make up: its messages as (share of the gradient, every, ready)."""

    name: str
    baseline: bool
    messages: Sequence[tuple[float, int, float]]
    period: int = 1
    algorithm: str = "ddp"


_BUCKETS = [(0.25, 1, 0.25), (0.25, 1, 0.5), (0.25, 1, 0.75), (0.25, 1, 1.0)]
METHODS = (
    Made("all_reduce", True, [(1.0, 1, 1.0)], algorithm="sgd"),
    Made("ddp", True, _BUCKETS),
    Made("ddp_fp16", True, [(share / 2, every, ready) for share, every, ready in _BUCKETS]),
    Made("ddp_no_overlap", True, [(share, every, 1.0) for share, every, _ in _BUCKETS], algorithm="ddp"),
    Made("powersgd_4", True, [(1 / 60, 1, 0.5), (1 / 60, 1, 0.5), (1 / 60, 1, 1.0), (1 / 60, 1, 1.0)]),
    Made("ef_sgd", False, [(1 / 256, 1, 1.0)], algorithm="ef_sgd"),
    Made("csea", False, [(1 / 256, 1, 1.0)], algorithm="csea"),
    Made("csea_overlap", False, [(1 / 256, 1, 0.5)], algorithm="csea"),
    Made("mcser", False, [(1 / 512, 1, 1.0), (1 / 16, 32, 1.0)], 32, "mcser"),
    Made("mcser_32", False, [(1 / 64, 1, 1.0), (1 / 4, 16, 1.0)], 16, "mcser"),
)


def attempt(**changes: Any) -> dict[str, Any]:
    """Who and where, as a record has it."""
    plain = {
        "attempt": "a1",
        "started_at": "2030-01-01T00:00:00Z",
        "resumed_from_step": 0,
        "host": "made-up-host",
        "command": "python -m harness speedups",
        "launch": "processes",
        "backend": "gloo",
        "device": "cpu",
        "git_commit": "0" * 40,
        "git_diff_sha256": None,
        "python": "3.12.0",
        "packages": {"torch": "0.0", "numpy": "0.0"},
        "cpu": "made-up CPU",
        "num_cpus": 2,
    }
    return plain | changes


def fabric(bits_per_second: float, dilation: float = 1.0, machines: int = WORKERS) -> dict[str, Any]:
    """A lab's network; machines of several workers have links ten times as fast inside."""
    workers = WORKERS // machines
    return {
        "kind": "netlab",
        "backend": "gloo",
        "num_machines": machines,
        "workers_per_machine": workers,
        "bits_per_second": bits_per_second,
        "inside_bits_per_second": None if workers == 1 else 10 * bits_per_second,
        "dilation": dilation,
    }


def ring_seconds(num_bytes: float, bits_per_second: float) -> float:
    """Of an all-reduce on the made-up network: 14 hops, each of an eighth of the bytes."""
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
            points.append(
                {
                    "collective": collective,
                    "payload_bytes": size,
                    "seconds": [seconds, 0.99 * seconds, 1.01 * seconds],
                    "wire_bytes": 1.0 * wire + 66 * wire / 1448 + 0.002 * wire,
                    "formula_bytes": wire,
                    "wire_frames": wire / 1448,
                }
            )
    return {"version": 1, "attempt": attempt(), "fabric": fabric(bits_per_second), "points": points}


def step_seconds(messages: Sequence[tuple[float, float]], bits_per_second: float, dilation: float) -> float:
    """A step by the clock of a made-up network: messages as (bytes, ready), in order of their readiness."""
    free = 0.0
    for num_bytes, ready in messages:
        began = max(free, dilation * (FORWARD + ready * BACKWARD))
        free = began + ring_seconds(num_bytes, bits_per_second)
    return max(dilation * (FORWARD + BACKWARD), free) + CODEC


def timing(name: str, stands_for: float, methods: Sequence[Made] = METHODS, factor: float = 1.0) -> dict[str, Any]:
    """A timing record of a workload on a network that stands for this rate; steps are `factor` times the model's."""
    device = DEVICES[name]
    dilation = device["dilation"]
    size, cells = 4 * device["num_parameters"], []
    for made in methods:
        last = 1 / made.period
        shares = {"every": 1.0} if made.period == 1 else {"ordinary": 1 - last, "synchronising": last}
        for kind, kind_share in shares.items():
            sent = [
                (round(share * size), ready)
                for share, every, ready in made.messages
                if every == 1 or kind == "synchronising"
            ]
            seconds = factor * step_seconds(sent, stands_for / dilation, dilation)
            transfer = seconds - dilation * (FORWARD + BACKWARD) - CODEC
            cells.append(
                {
                    "method": made.name,
                    "kind": kind,
                    "share": kind_share,
                    "bits_per_second": stands_for,
                    "dilation": dilation,
                    "visits": [0, 1],
                    "seconds": [seconds if dilation == 1 else (seconds - CODEC) / dilation] * 2,
                    "compute_seconds": [FORWARD + BACKWARD] * 2,
                    "codec_seconds": [CODEC] * 2,
                    "waiting_seconds": [0.25 * transfer / dilation] * 2,
                    "transfer_seconds": [0.75 * transfer / dilation] * 2,
                }
            )
    return {
        "version": 1,
        "basis": "measured" if dilation == 1 else "emulated",
        "attempt": attempt(),
        "fabric": fabric(stands_for / dilation, dilation),
        "workload": _workload(name),
        "num_warmup_steps": 3,
        "methods": [_method(made, size) for made in methods],
        "cells": cells,
    }


def _workload(name: str) -> dict[str, Any]:
    device = DEVICES[name]
    return {
        "name": name,
        "model": device["model"],
        "batch_size": 16,
        "num_parameters": device["num_parameters"],
        "device": device["device"],
        "forward_seconds": FORWARD,
        "backward_seconds": BACKWARD,
        "source": "made up",
    }


def _method(made: Made, size: int) -> dict[str, Any]:
    messages = [
        {"collective": "all_reduce", "payload_bytes": round(share * size), "every": every, "ready": ready}
        for share, every, ready in made.messages
    ]
    return {
        "name": made.name,
        "label": made.name.replace("_", " "),
        "baseline": made.baseline,
        "algorithm": made.algorithm,
        "settings": {},
        "momentum": 0.9,
        "rows": [],
        "overlap": any(ready < 1 for _, _, ready in made.messages),
        "period": made.period,
        "messages": messages,
        "codec_alone_seconds": None,
    }


def write_study(folder: Path, sweeps: Sequence[dict[str, Any]], timings: Sequence[dict[str, Any]]) -> Path:
    """Write records and the study that names them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, list[str]] = {"sweep": [], "timing": []}
    for kind, records in (("sweep", sweeps), ("timing", timings)):
        for index, record in enumerate(records):
            names[kind].append(f"{kind}-{index}.json")
            (folder / names[kind][-1]).write_text(json.dumps(record))
    left_out = [{"what": "100 Gb/s", "why": "above the ceiling of 2.5 Gb/s in all that was measured here"}]
    study = {"version": 1, "sweeps": names["sweep"], "timings": names["timing"], "left_out": left_out}
    (folder / "study.json").write_text(json.dumps(study))
    return folder


RATES = (20e6, 100e6, 500e6)
"""Bits per second of the made-up lab, by its own clock."""


def write_full(folder: Path) -> Path:
    """A study of three workloads on three networks each."""
    sweeps = [sweep(rate) for rate in RATES]
    timings = [timing(name, rate * DEVICES[name]["dilation"]) for name in DEVICES for rate in RATES]
    return write_study(folder, sweeps, timings)
