"""A made-up experiment of several lengths, whose loss is a stated function of models sent, steps and ratio."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.records.experiment import Experiment, Row
from harness.records.store import VERSION, Attempt, Event, Result, RunFile, RunRecord, TrafficEntry
from harness.records.store import write_record as write
from report.accuracy.records import Records, RowRuns

PARAMETERS = 25_450
WORKERS = 8
STEPS_PER_EPOCH = 187
METHODS = {
    "sgd_accumulate": "SGD accumulate",
    "ef_block": "EF-SGD",
    "ef_topk": "EF-SGD top-k",
    "qsparse": "QSparse-local-SGD",
    "csea": "CSEA",
    "cser_pl": "CSER-PL",
    "cser": "CSER",
    "mcser": "M-CSER",
    "local_sgd": "local SGD",
}

ALGORITHMS = {
    "ef_block": "ef_sgd",
    "ef_topk": "ef_sgd",
    "qsparse": "qsparse_local_sgd",
    "final_average": "local_sgd",
}
SETTINGS = {"ef_topk": "compressor: top_k", "final_average": "sync interval: end"}

Lost = Callable[[str, float, int, float], float]
"""Share of the gap that a row loses, by method, models sent, steps and ratio."""


@dataclass(frozen=True)
class Map:
    """What to make. `seeds` by epochs; the longest is the main length."""

    lost: Lost
    seeds: Mapping[int, Sequence[int]] = field(
        default_factory=lambda: {150: (1, 2, 3, 4, 5), 75: (1, 2), 25: (1, 2), 7: (1, 2)}
    )
    methods: Mapping[str, str] = field(default_factory=lambda: dict(METHODS))
    ratios: Sequence[float] = (12, 96, 384, 1536)
    noise: float = 0.0005
    luck: float = 0.001
    floor: bool = True
    gap: float = 0.04
    diverged: frozenset[tuple[str, int]] = frozenset()


def records_of(made: Map, folder: Path = Path("made_up")) -> Records:
    """The records as they would be read from a folder."""
    main = max(made.seeds)
    lines = [line for epochs in sorted(made.seeds, reverse=True) for line in _lines(made, epochs, epochs == main)]
    rows = [_row(line, made.seeds[line.epochs]) for line in lines]
    experiment = Experiment(
        version=VERSION, name="made_up_regime", title="A made-up experiment of four lengths", kind="accuracy",
        task="made up", model="made up", baseline="sgd", margin=0.005, confidence=0.95, seeds=list(made.seeds[main]),
        rows=rows, tuning=None, config={"num_workers": 8}, settings={"workers": "8"}, commands=["none"],
        floor="alone" if made.floor else None, main_ratio=96,
    )  # fmt: skip
    runs = (
        RowRuns(row, {seed: _run(made, line, row, seed, folder) for seed in made.seeds[line.epochs]})
        for line, row in zip(lines, rows, strict=True)
    )
    return Records(folder, experiment, tuple(runs), 0)


def write_records(made: Map, folder: Path) -> None:
    """Write them as an experiment's folder."""
    records = records_of(made, folder)
    folder.mkdir(parents=True)
    write(folder / "experiment.json", records.experiment)
    for rows in records.rows:
        for run in rows.runs.values():
            assert run and run.result
            write(run.folder / "run.json", run.run, durable=False)
            write(run.folder / "result.json", run.result, durable=False)
            (run.folder / "events.jsonl").write_text("".join(f"{event.model_dump_json()}\n" for event in run.events))


@dataclass(frozen=True)
class _Line:
    name: str
    label: str
    ratio: float
    epochs: int
    main: bool
    models: float
    lost: float
    gathers: bool = False

    @property
    def steps(self) -> int:
        return STEPS_PER_EPOCH * self.epochs

    @property
    def row(self) -> str:
        return self.name if self.main else f"{self.name}@{self.epochs}"


def _lines(made: Map, epochs: int, main: bool) -> list[_Line]:
    steps = STEPS_PER_EPOCH * epochs
    lines = [_Line("sgd", "SGD", 1.0, epochs, main, float(steps), 0.0)]
    if made.floor:
        lines.append(_Line("alone", "alone", float(steps), epochs, main, 0.0, 1.0))
    lines.append(_Line("final_average", "final average", float(steps), epochs, main, 1.0, 0.95))
    for name, label in made.methods.items():
        for ratio in made.ratios:
            models = steps / ratio + (name not in ("sgd_accumulate", "ef_block", "ef_topk"))
            if models >= 1:
                lost = made.lost(label, models, steps, steps / models)
                lines.append(_Line(f"{name}-{ratio:g}", label, ratio, epochs, main, models, lost, name == "ef_topk"))
    return lines


def _row(line: _Line, seeds: Sequence[int]) -> Row:
    ids = {str(seed): hashlib.sha256(f"{line.row} {seed}".encode()).hexdigest()[:12] for seed in seeds}
    name = line.name.split("-")[0]
    ring = 2 * (WORKERS - 1) / WORKERS
    return Row(
        row=line.row, label=line.label, algorithm=ALGORITHMS.get(name, name), ratio=line.ratio, learning_rate=0.01,
        settings={}, words=SETTINGS.get(name, "made up"), local_step="sgd", momentum=0.9, nesterov=True,
        betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0005, num_epochs=line.epochs, formula="32 d / R",
        num_steps=line.steps, num_parameters=PARAMETERS,
        expected_bits=round(32 * PARAMETERS * line.models), runs=ids, base=None if line.main else line.name,
        models_sent=line.models, link_models=line.models * (WORKERS - 1 if line.gathers else ring),
    )  # fmt: skip


def _run(made: Map, line: _Line, row: Row, seed: int, folder: Path) -> RunRecord:
    run_id = row.runs[str(seed)]
    noise = random.Random(f"{line.row} {seed}").gauss(0, made.noise)
    accuracy = 0.86 + random.Random(f"{line.epochs} {seed}").gauss(0, made.luck) - made.gap * line.lost + noise
    diverged = (line.row, seed) in made.diverged
    events = [
        Event(
            step=line.steps * i // 4, epoch=line.epochs * i / 4, learning_rate=0.01, train_loss=0.5 - 0.08 * i,
            test_loss=0.5, test_correct=0, test_count=10_000, test_accuracy=accuracy - 0.02 * (4 - i), bits_sent=0,
            error_norm=None if line.models in (0, line.steps) else (1 + line.ratio**0.5) * (1.1 - i / 4),
            worker_distance=0.0 if line.name == "sgd" else (1 + line.ratio**0.4) * (1.1 - i / 4), wall_seconds=1.0 * i,
        )
        for i in range(1, 5)
    ]  # fmt: skip
    traffic = {"gradient": TrafficEntry(bits=row.expected_bits, collectives=line.steps)}
    result = Result(
        version=VERSION, run_id=run_id, attempt="a1", status="diverged" if diverged else "done",
        diverged_at_step=7 if diverged else None, num_steps=line.steps, num_parameters=PARAMETERS,
        world_size=WORKERS, train_loss=0.2, test_loss=0.5, test_correct=0, test_count=10_000,
        test_accuracy=None if diverged else accuracy, traffic=traffic, expected_traffic=traffic,
        overall_ratio=line.ratio, clock_seconds={}, wall_seconds=4.0, parameters_sha256="0" * 64,
    )  # fmt: skip
    attempt = Attempt(
        attempt="a1", started_at="2030-01-01T00:00:00Z", resumed_from_step=0, host="made-up-host", command="none",
        launch="threads", backend="memory", device="cpu", git_commit=None, git_diff_sha256=None, python="3",
        packages={}, cpu="made-up CPU", num_cpus=2,
    )  # fmt: skip
    run = RunFile(
        version=VERSION, run_id=run_id, experiment="made_up_regime", row=line.row, seed=seed, config={},
        attempts=[attempt],
    )  # fmt: skip
    return RunRecord(folder / run_id, run, events, result, None, None)
