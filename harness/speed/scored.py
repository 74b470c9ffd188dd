"""Scored methods timed on emulated links: which they are, from the experiments' plans, and a session of them."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from harness.lab.ceiling import ceiling_bits_per_second
from harness.lab.inside import start_inside
from harness.lab.lab import Lab, LabTopology, lab
from harness.lab.topology import rate_text
from harness.plan.plan import plan_experiment
from harness.records.provenance import command_line, new_attempt
from harness.records.store import VERSION, Attempt, write_record
from harness.records.timings import (
    Fabric,
    LeftOut,
    Message,
    ScoredCell,
    ScoredMethod,
    ScoredSession,
    StepKind,
    Workload,
    ring_bytes,
)
from harness.spec import RunConfig, SpecError
from harness.spec_file import find_spec, load_spec
from harness.speed.describe import bare_seconds, codec_seconds, messages_of
from harness.speed.groups import Groups, make_groups, max_buckets
from harness.speed.layers import layers_of
from harness.speed.methods import METHODS, TimedMethod
from harness.speed.parts import Parts, RankStep, parts_of
from harness.speed.questions import Ask, asking
from harness.speed.request import ScoredRequest
from harness.speed.turn import Turn, TurnContext
from harness.speed.workloads import workload
from harness.train.stopwatch import there_and_back
from harness.workers.attempt import prepare_thread
from harness.workers.process_group import from_rank_0, joined
from harness.workers.processes import Worker

EXPERIMENTS = ("fashion_mnist_long", "fashion_mnist_regime")
WORKLOAD, NUM_WORKERS = "resnet50_v100", 8
LINKS = (1e9, 10e9, 25e9)
"""Bits a second, of the links that are emulated."""
BASELINES = {"ddp": "ddp", "ddp_fp16": "ddp_fp16", "ddp_powersgd_1": "powersgd_1"}
"""By name in a session: the baseline's in `METHODS`."""

NUM_VISITS, STEPS_PER_VISIT = 2, 5
SHARE_OF_CEILING = 0.5
"""Of what this machine's links reach in all; methods' own arithmetic does not run while links are at work."""
WANTED_SECONDS = 1.0
"""Of a slowed step. A message's latency, some 20 ms here, then is little beside it, whatever the dilation is."""
HIGHEST_DILATION = 28.0
WANTED_SECONDS_BEHIND, HIGHEST_DILATION_BEHIND = 3.0, 64.0
"""The same where a method encodes behind its backward pass: this host's cores take long, and a slow pass hides it."""
SILENT_DILATION = 8.0
"""Of steps that send nothing: they have no link to be slowed down for."""
ANSWERED_SECONDS = 120.0


@dataclass(frozen=True)
class TimedCell:
    """What is timed of a method in one place of a visit: steps of a kind, on links that stand for a rate."""

    kind: StepKind
    share: float
    bits_per_second: float | None
    dilation: float


def scored_methods(results: Path) -> list[tuple[TimedMethod, ScoredMethod]]:
    """The baselines, then each configuration that the experiments score: settings as their tuning chose them.

    Of a row that is there at several ratios, in `EXPERIMENTS[0]`, that of the experiment's main ratio is taken; rows of
    the other experiments are all taken.

    Raises:
        SpecError, RecordError: an experiment cannot be planned.
    """
    found: dict[str, tuple[RunConfig, str, int, list[str]]] = {}
    for experiment in EXPERIMENTS:
        plan = plan_experiment(experiment, results)
        rows = {row.row: row for row in plan.experiment.rows if row.base is None}
        main = load_spec(find_spec(experiment)).statistics.main_ratio if experiment == EXPERIMENTS[0] else None
        at_main = {row.label for row in rows.values() if row.ratio == main}
        for run in plan.runs:
            row = rows.get(run.row)
            if row is None or (main is not None and row.label in at_main and row.ratio != main):
                continue
            name = f"{experiment}/{row.row}"
            known = next((each for each in found.values() if _same(each[0], run.config)), None)
            if known is None:
                found[row.row] = (run.config, row.label, row.num_steps, [name])
            elif name not in known[3]:
                known[3].append(name)
    own = [_scored(name, *each) for name, each in found.items()]
    sgd = next(rows for config, _, _, rows in found.values() if config.algorithm == "sgd")
    return [*(_baseline(name, METHODS[each], sgd) for name, each in BASELINES.items()), *own]


def _same(one: RunConfig, other: RunConfig) -> bool:
    return (one.algorithm, one.settings, one.momentum) == (other.algorithm, other.settings, other.momentum)


def _scored(
    name: str, config: RunConfig, label: str, num_steps: int, rows: list[str]
) -> tuple[TimedMethod, ScoredMethod]:
    timed = TimedMethod(label, config.algorithm, config.settings, momentum=config.momentum, num_steps=num_steps)
    return timed, _bare_record(name, timed, rows)


def _baseline(name: str, timed: TimedMethod, sgd: list[str]) -> tuple[TimedMethod, ScoredMethod]:
    return timed, _bare_record(name, timed, sgd if name == "ddp" else [])


def _bare_record(name: str, timed: TimedMethod, rows: list[str]) -> ScoredMethod:
    return ScoredMethod(
        name=name,
        label=timed.label,
        algorithm=timed.algorithm,
        settings=dict(timed.settings),
        momentum=timed.momentum,
        rows=rows,
        overlap=timed.overlap,
        period=timed.period,
        messages=[],
        codec_alone_seconds=None,
    )


def run_scored(output: Path, results: Path, names: Sequence[str], minutes: float, times_codec: bool) -> None:
    """Time a session and write its record.

    Args:
        output: the record's file.
        results: folder of the experiments' own records, if any: their tunings.
        names: of the methods; all if none is named.
        minutes: methods whose first turn would begin after half of these are left out, and said to be.
        times_codec: whether each method's codec is timed alone, before the session.

    Raises:
        SpecError: an unknown method, or this machine can have no network lab.
        WorkerError: a worker failed.
    """
    chosen = scored_methods(results)
    known = [record.name for _, record in chosen]
    if unknown := [name for name in names if name not in known]:
        raise SpecError(f"unknown method {unknown[0]!r}; the scored methods are {', '.join(known)}")
    chosen = [each for each in chosen if each[1].name in names or not names]
    load = workload(WORKLOAD, "cpu")
    most = SHARE_OF_CEILING * ceiling_bits_per_second(NUM_WORKERS)
    network = Fabric(
        kind="netlab",
        backend="gloo",
        num_machines=NUM_WORKERS,
        workers_per_machine=1,
        bits_per_second=most / NUM_WORKERS,
        inside_bits_per_second=None,
        dilation=1.0,
    )
    request = ScoredRequest(
        fabric=network, workload=load, trainee="waiting", times_codec=times_codec, layers=layers_of(WORKLOAD)
    )
    deadline = time.monotonic() + 60 * minutes
    described = [_described(request, timed, record) for timed, record in _in_group_of_one(chosen)]
    jobs = [(timed, record, cells_of(load, record, most)) for (timed, _), record in zip(chosen, described, strict=True)]
    print(f"speedups: {len(jobs)} scored methods, links up to {rate_text(most)} in all", flush=True)
    with lab(LabTopology(NUM_WORKERS, 1, most / NUM_WORKERS)) as there:
        attempt = new_attempt("processes", "gloo", torch.device("cpu"))
        cells, left_out = _timed(there, request, jobs, deadline)
    write_record(output, _record(attempt, load, described, cells, left_out))


def _record(
    attempt: Attempt, load: Workload, methods: list[ScoredMethod], cells: list[ScoredCell], left_out: list[str]
) -> ScoredSession:
    return ScoredSession(
        version=VERSION,
        attempt=attempt.model_copy(update={"command": command_line()}),
        workload=load,
        num_workers=NUM_WORKERS,
        methods=[method for method in methods if method.name not in left_out],
        cells=cells,
        left_out=[LeftOut(what=name, why="the session's minutes were over") for name in left_out],
    )


def _in_group_of_one(
    chosen: list[tuple[TimedMethod, ScoredMethod]],
) -> Iterator[tuple[TimedMethod, ScoredMethod]]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, joined("cpu", 60.0, f"file://{folder}/meet", 0, 1):
        yield from chosen


def _described(request: ScoredRequest, timed: TimedMethod, record: ScoredMethod) -> ScoredMethod:
    """The record with the method's messages and codec, as one worker alone shows them."""
    setting = TurnContext(request, torch.device("cpu"), Groups(None, [None] * 10), visible=True)
    print(f"speedups: looking at {record.name}", flush=True)
    turn = setting.turn(timed)
    turn.warm_up(request.num_warmup_steps)
    turn.trainee.waits = False
    messages = messages_of(turn, timed, request.fabric.num_workers)
    codec = codec_seconds(turn, timed, bare_seconds(setting)) if request.times_codec else None
    return record.model_copy(update={"messages": messages, "codec_alone_seconds": codec})


def cells_of(load: Workload, method: ScoredMethod, most_bits_per_second: float) -> list[TimedCell]:
    """What is timed of the method; `most_bits_per_second` is what this machine's links carry in all."""
    always = [message for message in method.messages if message.every == 1]
    kinds: list[tuple[StepKind, float, list[Message]]] = [("every", 1.0, always)]
    if method.period > 1:
        rare = 1 / method.period
        kinds = [("ordinary", 1 - rare, always), ("synchronising", rare, list(method.messages))]
    cells = []
    for kind, share, messages in kinds:
        for rate in LINKS if messages else (None,):
            cells.append(TimedCell(kind, share, rate, _dilation(load, method, messages, rate, most_bits_per_second)))
    return cells


def _dilation(
    load: Workload, method: ScoredMethod, messages: Iterable[Message], rate: float | None, most: float
) -> float:
    if rate is None:
        return SILENT_DILATION
    encodes_behind = method.overlap and method.algorithm != "ddp"
    wanted = WANTED_SECONDS_BEHIND if encodes_behind else WANTED_SECONDS
    highest = HIGHEST_DILATION_BEHIND if encodes_behind else HIGHEST_DILATION
    sent = sum(ring_bytes(each.collective, each.payload_bytes, NUM_WORKERS) for each in messages)
    step = load.forward_seconds + load.backward_seconds + 8 * sent / rate
    return max(min(wanted / step, highest), NUM_WORKERS * rate / most)


Job = tuple[TimedMethod, ScoredMethod, list[TimedCell]]


def _timed(there: Lab, request: ScoredRequest, jobs: list[Job], deadline: float) -> tuple[list[ScoredCell], list[str]]:
    """The cells, and the names of the methods for which there was no time."""
    arguments = [(request, jobs, deadline)] * NUM_WORKERS
    fastest = there.topology.bits_per_second
    with start_inside(there, work_scored, arguments) as workers:
        while isinstance(heard := workers.hear(0), float):
            there.set_rate(min(heard, fastest))
            workers.tell(0, None)
        for rank in range(1, NUM_WORKERS):
            workers.hear(rank)
    cells, left_out = heard
    return cells, left_out


def work_scored(
    worker: Worker, request: ScoredRequest, jobs: list[Job], deadline: float
) -> tuple[list[ScoredCell], list[str]] | None:
    """As a worker of the lab: all visits. What rank 0 asks is a rate, which is answered when links have it."""
    prepare_thread()
    ask = asking(worker)
    with joined("cpu", request.timeout_seconds, worker.init_method, worker.rank, worker.world_size):
        together, _ = make_groups(max_buckets(4 * request.workload.num_parameters))
        setting = TurnContext(request, torch.device("cpu"), together)
        steps: dict[tuple[str, StepKind, float | None], list[tuple[int, Parts]]] = {}
        by_name = {record.name: (timed, cells) for timed, record, cells in jobs}
        begins, left_out = time.monotonic(), list[str]()
        for visit, name in there_and_back(list(by_name), NUM_VISITS):
            late = time.monotonic() > begins + (deadline - begins) / NUM_VISITS
            if name in left_out or (visit == 0 and from_rank_0(late)):
                left_out += [name] if visit == 0 else []
                continue
            timed, cells = by_name[name]
            turn = setting.turn(timed)
            ask(request.fabric.bits_per_second)
            turn.warm_up(request.num_warmup_steps)
            gc.collect()
            for cell in cells:
                key = (name, cell.kind, cell.bits_per_second)
                own = _steps_of(turn, cell, visit, ask)
                steps.setdefault(key, []).extend((visit, parts) for parts in own)
            del turn
        if worker.rank:
            return None
        recorded = [
            _cell(record.name, cell, steps[record.name, cell.kind, cell.bits_per_second])
            for _, record, own_cells in jobs
            for cell in own_cells
            if record.name not in left_out
        ]
        return recorded, left_out


def _steps_of(turn: Turn, cell: TimedCell, visit: int, ask: Ask) -> list[Parts]:
    turn.trainee.slow_down(cell.dilation)
    if cell.bits_per_second is not None:
        ask(cell.bits_per_second / cell.dilation)
    found = []
    for number in range(visit * STEPS_PER_VISIT, (visit + 1) * STEPS_PER_VISIT):
        turn.method.go_to(number, cell.kind != "ordinary")
        dist.barrier()
        own, _ = turn.timed_step()
        workers: list[RankStep] = [own] * dist.get_world_size()
        dist.all_gather_object(workers, own)
        found.append(parts_of(workers))
    return found


def _cell(name: str, cell: TimedCell, steps: list[tuple[int, Parts]]) -> ScoredCell:
    return ScoredCell(
        method=name,
        kind=cell.kind,
        share=cell.share,
        bits_per_second=cell.bits_per_second,
        dilation=cell.dilation,
        visits=[visit for visit, _ in steps],
        seconds=[(parts.total - parts.codec) / cell.dilation for _, parts in steps],
        codec_seconds=[parts.codec for _, parts in steps],
        waiting_seconds=[(parts.waiting or 0.0) / cell.dilation for _, parts in steps],
        transfer_seconds=[parts.transfer / cell.dilation for _, parts in steps],
    )
