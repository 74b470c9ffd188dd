"""Made-up records in the store's formats, for tests and for timing the report; nothing in them was measured."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.store import VERSION

PARAMETERS = 100_000
STEPS = 1_200
WORKERS = 8


@dataclass(frozen=True)
class Method:
    """A made-up method: accuracy lost per tenfold ratio, and whether it keeps an error."""

    algorithm: str
    label: str
    loss: float
    keeps_error: bool


METHODS = (
    Method("ef_sgd", "EF-SGD", 0.012, True),
    Method("qsparse_local_sgd", "QSparse-local-SGD", 0.010, True),
    Method("csea", "CSEA", 0.006, True),
    Method("cser_pl", "CSER-PL", 0.003, True),
    Method("cser", "CSER", 0.001, True),
    Method("m_cser", "M-CSER", 0.0005, True),
    Method("local_sgd", "Local SGD", 0.008, False),
)
FINAL_AVERAGE = Method("local_sgd", "Final average", 0.015, False)


@dataclass(frozen=True)
class Design:
    """What to make. Runs named in `diverged`, `missing`, `failed` and `resumed` are (row, seed)."""

    name: str = "made_up"
    methods: tuple[Method, ...] = METHODS
    ratios: tuple[float, ...] = (64, 256, 1024)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    evaluations: int = 12
    margin: float | None = 0.005
    grid: tuple[float, ...] = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
    tuning_seeds: tuple[int, ...] = (101, 102)
    diverged: frozenset[tuple[str, int]] = frozenset()
    missing: frozenset[tuple[str, int]] = frozenset()
    failed: frozenset[tuple[str, int]] = frozenset()
    resumed: frozenset[tuple[str, int]] = frozenset()
    none_run: bool = False


@dataclass(frozen=True)
class _Line:
    row: str
    method: Method
    ratio: float
    rate: float
    tunes: str | None = None


def make_experiment(folder: Path, design: Design) -> None:
    """Write an experiment of made-up runs: the baseline, every method at every ratio, and a single final average."""
    lines = [_Line("sgd", Method("sgd", "SGD", 0.0, False), 1.0, 0.1), *_compared(design)]
    _write_experiment(folder, design, lines, design.seeds, "sgd")


def make_tuning(folder: Path, design: Design) -> None:
    """Write the tuning experiment that belongs to it: every row at every learning rate of the grid."""
    main = [_Line("sgd", Method("sgd", "SGD", 0.0, False), 1.0, 0.1), *_compared(design)]
    lines = [
        replace(line, row=f"{line.row}_{rate:g}", rate=rate, tunes=line.row) for line in main for rate in design.grid
    ]
    large = frozenset(
        (line.row, seed)
        for line in lines
        for seed in design.tuning_seeds
        if line.rate == max(design.grid) and line.ratio >= 256
    )
    tuned = replace(design, name=f"{design.name}_tuning", diverged=large, resumed=frozenset(), missing=frozenset())
    _write_experiment(folder, tuned, lines, design.tuning_seeds, None)


def _compared(design: Design) -> Iterable[_Line]:
    for method in design.methods:
        for ratio in design.ratios:
            yield _Line(f"{method.algorithm}_{ratio:g}", method, float(ratio), 0.1 if ratio < 256 else 0.05)
    yield _Line("final_average", FINAL_AVERAGE, float(STEPS), 0.1)


def _write_experiment(
    folder: Path, design: Design, lines: list[_Line], seeds: tuple[int, ...], baseline: str | None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_row(design, line, seeds) for line in lines]
    tuning = {
        "experiment": f"{design.name}_tuning",
        "rule": "highest mean held-out accuracy; of equals, the smaller rate",
        "grid": list(design.grid),
        "seeds": list(design.tuning_seeds),
        "selected": {line.row: line.rate for line in lines},
    }
    experiment = {
        "version": VERSION,
        "name": design.name,
        "title": "A made-up experiment",
        "kind": "accuracy",
        "task": "made up",
        "model": "made up",
        "baseline": baseline,
        "margin": design.margin if baseline else None,
        "confidence": 0.95,
        "seeds": list(seeds),
        "rows": rows,
        "tuning": tuning if baseline else None,
        "settings": {"workers": str(WORKERS), "precision": "fp32", "batch norm": "none in the model"},
        "commands": [f"python -m harness run {design.name}"],
    }
    (folder / "experiment.json").write_text(json.dumps(experiment, indent=1))
    for line, row in zip(lines, rows, strict=True):
        for seed in seeds:
            if not design.none_run and (line.row, seed) not in design.missing:
                _write_run(folder / row["runs"][str(seed)], design, line, seed)


def _run_id(design: Design, line: _Line, seed: int) -> str:
    return hashlib.sha256(f"{design.name} {line.row} {seed}".encode()).hexdigest()[:12]


def _bits(ratio: float) -> int:
    return round(32 * PARAMETERS * STEPS / ratio)


def _row(design: Design, line: _Line, seeds: tuple[int, ...]) -> dict[str, Any]:
    return {
        "row": line.row,
        "label": line.method.label,
        "algorithm": line.method.algorithm,
        "ratio": line.ratio,
        "learning_rate": line.rate,
        "tunes": line.tunes,
        "settings": f"ratio {line.ratio:g}",
        "formula": "32 d" if line.ratio == 1 else "32 d / R",
        "num_steps": STEPS,
        "num_parameters": PARAMETERS,
        "expected_bits": _bits(line.ratio),
        "runs": {str(seed): _run_id(design, line, seed) for seed in seeds},
    }


def _write_run(folder: Path, design: Design, line: _Line, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    key = (line.row, seed)
    attempts = [_attempt("a1", 0)] + ([_attempt("a2", STEPS // 2)] if key in design.resumed else [])
    run = {
        "version": VERSION,
        "run_id": folder.name,
        "experiment": design.name,
        "row": line.row,
        "seed": seed,
        "config": {"algorithm": line.method.algorithm, "learning_rate": line.rate},
        "attempts": attempts,
    }
    (folder / "run.json").write_text(json.dumps(run))
    events = _events(design, line, seed)
    if key in design.failed:
        events = events[: len(events) // 2]
        failure = {"version": VERSION, "run_id": folder.name, "attempt": "a1", "kind": "oom", "step": STEPS // 2}
        failure |= {"message": "made up: no memory left", "traceback": "Traceback: made up"}
        (folder / "failure.json").write_text(json.dumps(failure))
    else:
        result = _result(folder.name, line, events[-1], diverged=key in design.diverged, attempts=len(attempts))
        (folder / "result.json").write_text(json.dumps(result))
    if key in design.resumed:
        half = len(events) // 2
        again = [event | {"wall_seconds": event["wall_seconds"] + 5.0} for event in events[half - 2 :]]
        events = events[:half] + again
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def _attempt(name: str, step: int) -> dict[str, Any]:
    return {
        "attempt": name,
        "started_at": "2030-01-01T00:00:00Z" if step == 0 else "2030-01-01T01:00:00Z",
        "resumed_from_step": step,
        "host": "made-up-host",
        "command": "python -m harness run made_up",
        "launch": "threads",
        "backend": "memory",
        "device": "cpu",
        "git_commit": "0" * 40,
        "git_diff_sha256": None,
        "python": "3.12.0",
        "packages": {"torch": "0.0", "numpy": "0.0"},
        "cpu": "made-up CPU",
        "num_cpus": 2,
    }


def _events(design: Design, line: _Line, seed: int) -> list[dict[str, Any]]:
    # The seed's own luck is shared by all rows, as pairing makes it in real runs.
    luck = random.Random(f"{seed}").gauss(0, 0.002)
    noise = random.Random(f"{design.name} {line.row} {seed}")
    tens = max(line.ratio, 1.0)
    lost = line.method.loss * math.log10(tens) + 0.01 * abs(math.log10(line.rate / 0.1))
    final = 0.91 + luck - lost + noise.gauss(0, 0.001)
    events = []
    for index in range(1, design.evaluations + 1):
        done = index / design.evaluations
        accuracy = final - 0.25 * (1 - done) ** 2 + noise.gauss(0, 0.001)
        correct = round(10_000 * accuracy)
        events.append(
            {
                "step": round(STEPS * done),
                "epoch": 10 * done,
                "learning_rate": line.rate * (1 - done),
                "train_loss": (1 - accuracy) * (1.6 - 0.7 * done) + noise.uniform(0, 0.003),
                "test_loss": (1 - accuracy) * 2.8,
                "test_correct": correct,
                "test_count": 10_000,
                "test_accuracy": correct / 10_000,
                "bits_sent": round(_bits(line.ratio) * done),
                "error_norm": ((0.02 + line.method.loss) * tens**0.5 * (1.2 - done))
                if line.method.keeps_error
                else None,
                "worker_distance": 0.0 if line.row == "sgd" else (0.05 + line.method.loss) * tens**0.4 * (1.2 - done),
                "wall_seconds": 3.0 * done,
            }
        )
    return events


def _result(run_id: str, line: _Line, event: dict[str, Any], diverged: bool, attempts: int) -> dict[str, Any]:
    purpose = {"sgd": "gradient", "ef_sgd": "gradient", "local_sgd": "model"}.get(line.method.algorithm, "error")
    training = {key: {"bits": 0, "collectives": 0} for key in ("gradient", "error", "model")}
    training |= {purpose: {"bits": _bits(line.ratio), "collectives": STEPS}}
    traffic = training | {
        "evaluation": {"bits": 32 * PARAMETERS * 12, "collectives": 12},
        "control": {"bits": 64 * attempts, "collectives": attempts},
    }
    scores = ("train_loss", "test_loss", "test_correct", "test_count", "test_accuracy")
    return {
        "version": VERSION,
        "run_id": run_id,
        "attempt": "a1",
        "status": "diverged" if diverged else "done",
        "diverged_at_step": STEPS // 3 if diverged else None,
        "num_steps": STEPS,
        "num_parameters": PARAMETERS,
        "world_size": WORKERS,
        **{score: None if diverged else event[score] for score in scores},
        "traffic": traffic,
        "expected_traffic": training,
        "overall_ratio": line.ratio,
        "clock_seconds": {"compute": 2.0, "communicate": 0.5, "evaluate": 0.5},
        "wall_seconds": 3.0,
        "parameters_sha256": hashlib.sha256(run_id.encode()).hexdigest(),
    }
