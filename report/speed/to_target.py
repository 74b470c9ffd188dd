"""Time and cost to a target accuracy: steps from accuracy runs, joined with step times and prices."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from harness.records.hardware import machines
from harness.records.store import RunRecord
from harness.records.timings import Method
from report.accuracy.records import Records, RowRuns
from report.kit.document import Cell, Column, Table
from report.kit.statistics import mean_of
from report.kit.wording import NONE, count_of, listed, percent, short, whole
from report.speed.cost_model import Algorithm, Network
from report.speed.study import Bench, SpeedStudy
from report.speed.units import rate

SAME_RATIO = 1.02
"""Ratios are the same if they differ by less than this factor, by which blocks of few parameters are rounded."""

MARGINS_BELOW = (1, 5)
"""The targets: the baseline's mean final accuracy less so many of the experiment's margins."""

_HOUR = 3600.0


@dataclass(frozen=True)
class Steps:
    """Steps that each seed's run needed, infinity for a miss; `planned` counts the runs that the row plans."""

    by_seed: dict[int, float]
    planned: int
    run_ids: tuple[str, ...]

    @property
    def middle(self) -> float | None:
        """Median over the seeds; None where a run is missing."""
        return median(self.by_seed.values()) if len(self.by_seed) == self.planned and self.by_seed else None


def steps_to(run: RunRecord, target: float) -> float:
    """The step of the first evaluation that reaches the accuracy (a share); infinity where none does."""
    return next((float(event.step) for event in run.events if event.test_accuracy >= target), math.inf)


def row_steps(rows: RowRuns, target: float) -> Steps:
    """Steps of every finished or diverged run of a row; a diverged one is a miss, whatever it reached before."""
    by_seed = {seed: steps_to(run, target) for seed, run in rows.finished.items()}
    by_seed |= dict.fromkeys(rows.diverged, math.inf)
    return Steps(by_seed, len(rows.runs), rows.run_ids)


def targets_of(records: Records) -> list[float]:
    """Accuracies (shares) to reach; none without a finished baseline run."""
    baseline = next((rows for rows in records.rows if rows.row.row == records.experiment.baseline), None)
    if baseline is None or not baseline.accuracy:
        return []
    margin = records.experiment.margin or 0.01
    return [mean_of(list(baseline.accuracy.values())) - count * margin for count in MARGINS_BELOW]


def rows_for(records: Records, method: Method) -> RowRuns | None:
    """The accuracy row of a timed method: of the same algorithm, kinds of compressors and ratio.

    A baseline without such rows that sends all of the gradient, as DDP does, computes what the experiment's does.
    """
    own = [rows for rows in records.main_rows if rows.row.algorithm == method.algorithm and rows.row.tunes is None]
    if not own and method.baseline and abs(method.ratio - 1) < 0.01:
        return next((rows for rows in records.rows if rows.row.row == records.experiment.baseline), None)
    rows = [each for each in own if _compresses_alike(each, method)]
    best = min(rows, key=lambda r: abs(math.log(r.row.ratio / method.ratio)), default=None)
    near = best is not None and max(best.row.ratio / method.ratio, method.ratio / best.row.ratio) < SAME_RATIO
    return best if near else None


def _compresses_alike(rows: RowRuns, method: Method) -> bool:
    """Whether no compressor of the row is of a kind that the timed method's settings, in words, do not name."""
    kinds = {kind.replace("_", "-") for kind in re.findall(r"compressor: (\w+)", rows.row.words)}
    return all(kind in method.settings for kind in kinds)


def benches_for(study: SpeedStudy, records: Records) -> list[Bench]:
    """The workloads that are of the experiment's model, and of its size."""
    sizes = {rows.row.num_parameters for rows in records.rows}
    return [
        bench
        for bench in study.benches
        if bench.workload.model == records.experiment.model and sizes == {bench.workload.num_parameters}
    ]


def time_table(bench: Bench, records: Records, target: float) -> Table:
    """Seconds to the target on every network that was timed."""
    columns = (
        Column("method", "left"),
        Column("steps"),
        *(Column(f"{bench.name_of(timing)}, {timing.basis}") for timing in bench.ordered),
    )
    seconds = {(id(point.timing), point.method.name): point.timed.seconds for point in bench.points}
    rows, reached = [], 0
    joined = [method for method in bench.methods if rows_for(records, method)]
    for method in joined:
        steps, said = _steps_cell(records, method, target)
        reached += steps is not None and math.isfinite(steps)
        per_step = [seconds.get((id(timing), method.name)) for timing in bench.ordered]
        times = (_time_text(steps, each) for each in per_step)
        rows.append((Cell(method.label), said, *(Cell(text, said.runs) for text in times)))
    found = (
        f"{count_of(reached, 'method')} of the {len(rows)} that were also run for accuracy reach {percent(target)} % "
        "in the median run."
    )
    notes = (
        _notes(records),
        "Seconds: median steps times the timed step; emulated steps are without the codec.",
        *_unjoined(records, bench),
    )
    title = f"{bench.workload.name}: time to {percent(target)} % test accuracy"
    return Table(title, found, columns, tuple(rows), notes)


def _unjoined(records: Records, bench: Bench) -> list[str]:
    """Which timed methods are in no row, since nothing was run of the same method and ratio."""
    missing = [f"{m.label} ({short(m.ratio, 3)})" for m in bench.methods if rows_for(records, m) is None]
    joined = "Steps and times are joined where method, compressor and ratio are the same"
    return [f"{joined}; no accuracy runs at the ratio of {listed(missing)}." if missing else f"{joined}."]


def _notes(records: Records) -> str:
    below = listed([str(count) for count in MARGINS_BELOW])
    return (
        f"Steps: the first evaluation of the workers' average that reaches the target, median over "
        f"{count_of(len(records.experiment.seeds), 'seed')} of {records.experiment.name}; a run that misses it or "
        f"diverges counts as infinite. Targets: the baseline's mean less {below} margins. Evaluations are as far apart "
        "as the experiment set them."
    )


def _steps_cell(records: Records, method: Method, target: float) -> tuple[float | None, Cell]:
    rows = rows_for(records, method)
    if rows is None:
        return None, Cell(f"no accuracy runs at ratio {short(method.ratio, 3)}")
    steps = row_steps(rows, target)
    if steps.middle is None:
        return None, Cell(f"{len(steps.by_seed)} of {steps.planned} runs", steps.run_ids)
    text = whole(int(steps.middle)) if math.isfinite(steps.middle) else "infinite"
    return steps.middle, Cell(text, steps.run_ids)


def _time_text(steps: float | None, seconds: float | None) -> str:
    if seconds is None:
        return "not timed"
    if steps is None:
        return NONE
    return f"{steps * seconds:.3g}" if math.isfinite(steps) else "infinite"


@dataclass(frozen=True)
class Rental:
    """Machines of one kind that hold all workers."""

    name: str
    count: int
    dollars_per_hour: float
    network: Network
    source: str
    head: str


def rentals(bench: Bench) -> list[Rental]:
    """What the price table has for the workload's device, as many machines as the workers need."""
    found = []
    workers = bench.main.fabric.num_workers
    for machine in machines():
        if machine.device not in bench.workload.device or workers % machine.gpus:
            continue
        count = workers // machine.gpus
        algorithm: Algorithm = "hierarchical" if count > 1 and machine.gpus > 1 else "ring"
        inside = machine.inside_bits_per_second or None
        network = bench.network(machine.bits_per_second, (count, machine.gpus), inside, algorithm)
        if network:
            head = f"{count} x {machine.name}, {rate(machine.bits_per_second)}"
            hourly = count * machine.dollars_per_hour
            found.append(Rental(machine.name, count, hourly, network, machine.source, head))
    return found


def cost_table(bench: Bench, joined: Sequence[Records]) -> Table:
    """Dollars per thousand steps on rented machines, and to the target where accuracy runs are at hand."""
    machines = rentals(bench)
    goals = [(records, target) for records in joined for target in targets_of(records)[:1]]
    heads = [Column(machine.head) for machine in machines]
    heads += [Column(f"to {percent(target)} %, {machine.head}") for _, target in goals for machine in machines]
    rows = []
    for method in bench.methods:
        costs = [1000 * _dollars(bench, method, machine) for machine in machines]
        cells = [Cell(f"{cost:.3f}") for cost in costs]
        for records, target in goals:
            steps, said = _steps_cell(records, method, target)
            cells += [Cell(_cost_text(steps, cost / 1000), said.runs) for cost in costs]
        if not goals:
            cells.append(Cell("no accuracy runs"))
        rows.append((Cell(method.label), *cells))
    if not goals:
        heads.append(Column("to a target", "left"))
    sources = "; ".join(f"{machine.name}: {machine.source}" for machine in machines)
    hourly = listed([f"{m.count} x {m.name} {m.dollars_per_hour:.2f}" for m in machines])
    notes = (f"Modelled. Dollars an hour: {hourly}. {sources}.",) if machines else ()
    title = f"{bench.workload.name}: dollars per thousand steps"
    found = _cost_found(bench, machines)
    return Table(title, found, (Column("method", "left"), *heads), tuple(rows), notes=notes)


def _dollars(bench: Bench, method: Method, machine: Rental) -> float:
    """Of one step."""
    return bench.seconds(method, machine.network) / _HOUR * machine.dollars_per_hour


def _cost_text(steps: float | None, dollars: float) -> str:
    if steps is None:
        return NONE
    return f"{steps * dollars:.2f}" if math.isfinite(steps) else "infinite"


def _cost_found(bench: Bench, machines: Sequence[Rental]) -> str:
    if not machines:
        return f"The price table has no machine with {bench.workload.device}, or nothing was swept."
    base = bench.method("ddp")
    costs = [(_dollars(bench, m, machine), m.label, machine) for m in bench.methods for machine in machines]
    cheapest, label, machine = min(costs, key=lambda cost: cost[:2])
    text = (
        f"The cheapest step is {label}'s on {machine.count} x {machine.name}, {1000 * cheapest:.3f} dollars a thousand"
    )
    if base:
        own, where = min((_dollars(bench, base, m), f"{m.count} x {m.name}") for m in machines)
        text += f"; overlapped DDP's cheapest is {1000 * own:.3f}, on {where}"
    return f"{text}."
