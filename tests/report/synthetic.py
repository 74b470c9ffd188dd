"""Made-up records in the store's formats, for tests; nothing in them was measured."""

from __future__ import annotations

import hashlib
import json
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.records.store import VERSION

PARAMETERS = 100_000
STEPS = 1_200
WORKERS = 8


@dataclass(frozen=True)
class MadeUpMethod:
    """A made-up method: accuracy lost per tenfold ratio, whether it keeps an error, and what it compresses with."""

    algorithm: str
    label: str
    loss: float
    keeps_error: bool
    compressor: str = "block"

    @property
    def name(self) -> str:
        """What its rows are called, before the ratio."""
        return self.algorithm if self.compressor == "block" else f"{self.algorithm}_{self.compressor}"


METHODS = (
    MadeUpMethod("ef_sgd", "EF-SGD", 0.012, True),
    MadeUpMethod("qsparse_local_sgd", "QSparse-local-SGD", 0.010, True),
    MadeUpMethod("csea", "CSEA", 0.006, True),
    MadeUpMethod("cser_pl", "CSER-PL", 0.003, True),
    MadeUpMethod("cser", "CSER", 0.001, True),
    MadeUpMethod("mcser", "M-CSER", 0.0005, True),
    MadeUpMethod("local_sgd", "Local SGD", 0.008, False),
)
SGD = MadeUpMethod("sgd", "SGD", 0.0, False)
TOP_K = MadeUpMethod("ef_sgd", "EF-SGD top-k", 0.002, True, "top_k")
ACCUMULATE = MadeUpMethod("sgd_accumulate", "SGD accumulate", 0.02, False)
ALONE = MadeUpMethod("alone", "alone", 0.0, False)
FINAL_AVERAGE = MadeUpMethod("local_sgd", "Final average", 0.015, False)


@dataclass(frozen=True)
class Design:
    """What to make. Runs named in `diverged`, `missing`, `failed` and `resumed` are (row, seed).

    `regime` makes an experiment with a floor, bounds at each ratio, models sent, workers' own accuracies and candidate
    settings; its accuracies then depend on models sent, between a floor `gap` below and the ceiling. `lengths` are step
    counts at which all rows come again; `by_loss` names rows that least training loss chooses otherwise.
    """

    name: str = "made_up"
    methods: tuple[MadeUpMethod, ...] = METHODS
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
    regime: bool = False
    gap: float = 0.04
    steps: int = STEPS
    main_ratio: float | None = None
    lengths: tuple[int, ...] = ()
    length_seeds: tuple[int, ...] = (1, 2)
    by_loss: tuple[str, ...] = ()
    at_end: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Line:
    row: str
    method: MadeUpMethod
    ratio: float
    rate: float
    steps: int
    seeds: tuple[int, ...]
    tunes: str | None = None
    candidate: int | None = None
    base: str | None = None
    rule: str = "held_out"

    @property
    def settings(self) -> dict[str, Any]:
        if self.method is FINAL_AVERAGE:
            return {"sync_interval": "end"}
        return {"compressor": {"kind": self.method.compressor, "ratio": self.ratio}}

    @property
    def exchange(self) -> bool:
        """As Row.final_exchange."""
        agree = self.method.algorithm in ("sgd", "ef_sgd", "sgd_accumulate", "alone") or self.method is FINAL_AVERAGE
        return not agree

    @property
    def models_sent(self) -> float:
        return self.payload / (32 * PARAMETERS) + self.exchange

    @property
    def link_models(self) -> float:
        ring = 2 * (WORKERS - 1) / WORKERS
        each = WORKERS - 1 if self.method.compressor == "top_k" else ring
        return each * self.payload / (32 * PARAMETERS) + ring * self.exchange

    @property
    def payload(self) -> int:
        return round(32 * PARAMETERS * self.steps / self.ratio)


def make_experiment(folder: Path, design: Design) -> None:
    """Write an experiment of made-up runs: the baseline, every method at every ratio, and a single final average."""
    main = _main_lines(design)
    longer = [
        replace(line, row=f"{line.row}@{steps}", base=line.row, steps=steps, seeds=design.length_seeds)
        for steps in design.lengths
        for line in main
        if line.ratio < steps or line.method in (ALONE, FINAL_AVERAGE)
    ]
    other = [
        replace(line, row=f"{line.row}~loss", base=line.row, rule="training_loss", rate=line.rate / 2)
        for line in main
        if line.row in design.by_loss
    ]
    _write_experiment(folder, design, [*main, *longer, *other], "sgd")


def make_tuning(folder: Path, design: Design) -> None:
    """Write the tuning experiment that belongs to it: every row at every learning rate of the grid.

    In a regime there are three candidates, and the rates away from the chosen one are tried with the first seed alone.
    """
    candidates = (0, 1, 2) if design.regime else (None,)
    lines = [
        replace(
            line,
            row=f"{line.row}_{rate:g}" if candidate is None else f"{line.row}_c{candidate}_{rate:g}",
            rate=rate,
            tunes=line.row,
            candidate=candidate,
            seeds=design.tuning_seeds[: 1 if design.regime and rate != line.rate else None],
        )
        for line in _main_lines(design)
        for candidate in candidates
        for rate in design.grid
    ]
    large = frozenset(
        (line.row, seed)
        for line in lines
        for seed in design.tuning_seeds
        if line.rate == max(design.grid) and line.ratio >= 256
    )
    tuned = replace(design, name=f"{design.name}_tuning", diverged=large, resumed=frozenset(), missing=frozenset())
    _write_experiment(folder, tuned, lines, None)


def _main_lines(design: Design) -> list[_Line]:
    def line(row: str, method: MadeUpMethod, ratio: float, rate: float = 0.1) -> _Line:
        return _Line(row, method, ratio, rate, design.steps, design.seeds)

    methods = (*design.methods, ACCUMULATE) if design.regime else design.methods
    return [
        line("sgd", SGD, 1.0),
        *(
            line(f"{method.name}_{ratio:g}", method, float(ratio), 0.1 if ratio < 256 else 0.05)
            for method in methods
            for ratio in design.ratios
        ),
        line("final_average", FINAL_AVERAGE, float(design.steps)),
        *((line("alone", ALONE, math.inf),) if design.regime else ()),
    ]


def _write_experiment(folder: Path, design: Design, lines: list[_Line], baseline: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_row(design, line) for line in lines]
    experiment = {
        "version": VERSION,
        "name": design.name,
        "title": "A made-up experiment",
        "task": "made up",
        "model": "made up",
        "baseline": baseline,
        "margin": design.margin if baseline else None,
        "confidence": 0.95,
        "seeds": list(design.seeds if baseline else design.tuning_seeds),
        "rows": rows,
        "tuning": _tuning(design, lines) if baseline else None,
        "config": {"num_workers": WORKERS, "precision": "fp32"},
        "commands": [f"python -m harness run {design.name}"],
    }
    if design.regime and baseline:
        experiment |= {"floor": "alone", "main_ratio": design.main_ratio, "margin_reason": "it is made up"}
    (folder / "experiment.json").write_text(json.dumps(experiment, indent=1))
    for line, row in zip(lines, rows, strict=True):
        for seed in line.seeds:
            if not design.none_run and (line.row, seed) not in design.missing:
                _write_run(folder / row["runs"][str(seed)], design, line, seed)


def _tuning(design: Design, lines: list[_Line]) -> dict[str, Any]:
    main = [line for line in lines if line.base is None]
    tuning = {
        "experiment": f"{design.name}_tuning",
        "grid": list(design.grid),
        "seeds": list(design.tuning_seeds),
        "selected": {line.row: line.rate for line in main},
    }
    if design.regime:
        chosen = {line.row: _choice(design, line, line.rate) for line in main}
        other = {line.row: _choice(design, line, line.rate / 2) for line in main if line.row in design.by_loss}
        tuning |= {"choices": chosen, "choices_by_training_loss": chosen | other}
    return tuning


def _choice(design: Design, line: _Line, rate: float) -> dict[str, Any]:
    same = {"candidate": 0, "num_trials": 3 * len(design.grid), "at_end": line.row in design.at_end}
    return {"learning_rate": rate, "settings": line.settings} | same


def _run_id(design: Design, line: _Line, seed: int) -> str:
    return hashlib.sha256(f"{design.name} {line.row} {seed}".encode()).hexdigest()[:12]


def _row(design: Design, line: _Line) -> dict[str, Any]:
    row: dict[str, Any] = {
        "row": line.row,
        "label": line.method.label,
        "algorithm": line.method.algorithm,
        "ratio": line.ratio,
        "learning_rate": line.rate,
        "tunes": line.tunes,
        "settings": line.settings,
        "local_step": "sgd",
        "momentum": 0.9,
        "nesterov": True,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.0005,
        "num_epochs": 3,
        "formula": "32 d" if line.ratio == 1 else "32 d / R",
        "num_steps": line.steps,
        "num_parameters": PARAMETERS,
        "expected_bits": line.payload,
        "runs": {str(seed): _run_id(design, line, seed) for seed in line.seeds},
    }
    if design.regime:
        row |= {"base": line.base, "rule": line.rule, "candidate": line.candidate, "final_exchange": line.exchange}
        row |= {"models_sent": line.models_sent, "link_models": line.link_models}
    return row


def _write_run(folder: Path, design: Design, line: _Line, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    key = (line.row, seed)
    attempts = [_attempt("a1", 0)] + ([_attempt("a2", line.steps // 2)] if key in design.resumed else [])
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
        failure = {"version": VERSION, "run_id": folder.name, "attempt": "a1", "kind": "oom", "step": line.steps // 2}
        failure |= {"message": "made up: no memory left", "traceback": "Traceback: made up"}
        (folder / "failure.json").write_text(json.dumps(failure))
    else:
        result = _result(design, folder.name, line, events[-1], diverged=key in design.diverged, attempts=len(attempts))
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
    tens = min(max(line.ratio, 1.0), 1e6)
    lost = line.method.loss * math.log10(tens) + 0.01 * abs(math.log10(line.rate / 0.1))
    final = 0.91 + luck - (_lost_in_regime(design, line) if design.regime else lost) + noise.gauss(0, 0.001)
    events = []
    for index in range(1, design.evaluations + 1):
        done = index / design.evaluations
        accuracy = final - 0.25 * (1 - done) ** 2 + noise.gauss(0, 0.001)
        correct = round(10_000 * accuracy)
        events.append(
            {
                "step": round(line.steps * done),
                "epoch": 10 * done * line.steps / STEPS,
                "learning_rate": line.rate * (1 - done),
                "train_loss": (1 - accuracy) * (1.6 - 0.7 * done) + noise.uniform(0, 0.003),
                "test_loss": (1 - accuracy) * 2.8,
                "test_correct": correct,
                "test_count": 10_000,
                "test_accuracy": correct / 10_000,
                "bits_sent": round(line.payload * done),
                "error_norm": ((0.02 + line.method.loss) * tens**0.5 * (1.2 - done))
                if line.method.keeps_error
                else None,
                "worker_distance": 0.0 if line.row == "sgd" else (0.05 + line.method.loss) * tens**0.4 * (1.2 - done),
                "wall_seconds": 3.0 * done,
            }
        )
    return events


def _lost_in_regime(design: Design, line: _Line) -> float:
    """Accuracy below endless training's: a share of the gap that falls with models sent, and what a short run loses."""
    models = line.payload / (32 * PARAMETERS)
    share = 0.0 if line.method is SGD else math.exp(-(models**0.5) / (1 + 300 * line.method.loss))
    return design.gap * share + 0.02 * math.exp(-line.steps / 400) + 0.01 * abs(math.log10(line.rate / 0.1))


def _result(
    design: Design, run_id: str, line: _Line, event: dict[str, Any], diverged: bool, attempts: int
) -> dict[str, Any]:
    purpose = {"sgd": "gradient", "ef_sgd": "gradient", "local_sgd": "model"}.get(line.method.algorithm, "error")
    training = {key: {"bits": 0, "collectives": 0} for key in ("gradient", "error", "model")}
    training |= {purpose: {"bits": line.payload, "collectives": line.steps}}
    traffic = training | {
        "evaluation": {"bits": 32 * PARAMETERS * 12, "collectives": 12},
        "control": {"bits": 64 * attempts, "collectives": attempts},
    }
    own = [event["test_accuracy"] - 0.002 * rank * line.exchange for rank in range(WORKERS)]
    scores = ("train_loss", "test_loss", "test_correct", "test_count", "test_accuracy")
    return {
        "version": VERSION,
        "run_id": run_id,
        "attempt": "a1",
        "status": "diverged" if diverged else "done",
        "diverged_at_step": line.steps // 3 if diverged else None,
        "num_steps": line.steps,
        "num_parameters": PARAMETERS,
        "world_size": WORKERS,
        **{score: None if diverged else event[score] for score in scores},
        "traffic": traffic,
        "expected_traffic": training,
        "overall_ratio": line.ratio,
        "clock_seconds": {"compute": 2.0, "communicate": 0.5, "evaluate": 0.5},
        "wall_seconds": 3.0,
        "parameters_sha256": hashlib.sha256(run_id.encode()).hexdigest(),
        "class_counts": [[300] * 10] * WORKERS if design.regime else None,
        "worker_accuracy": own if design.regime and not diverged else None,
    }
