"""Scored methods timed on emulated links: which they are, from the experiments' plans, and the session's record."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from harness.plan.plan import plan_experiment
from harness.records.provenance import command_line, new_attempt
from harness.records.store import VERSION, write_record
from harness.records.timings import LeftOut, Message, ScoredCell, ScoredMethod, ScoredSession, Workload, ring_bytes
from harness.spec import RunConfig, SpecError
from harness.spec_file import find_spec, load_spec
from harness.timing.lab import lab
from harness.timing.layout import LabTopology, rate_text
from harness.timing.methods import METHODS, TimedMethod
from harness.timing.passes import workload
from harness.timing.session import Cell, Session, Timed, kinds_of, time_in_lab
from harness.timing.sweep import ceiling_bits_per_second

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

Scored = tuple[TimedMethod, list[str]]
"""A method, and the names ("experiment/row") of the rows that are so."""


def scored_methods(results: Path) -> dict[str, Scored]:
    """The baselines, then each configuration that the experiments score: settings as their tuning chose them.

    Of a row that is there at several ratios, in `EXPERIMENTS[0]`, that of the experiment's main ratio is taken; rows of
    the other experiments are all taken. DDP computes what SGD does, so SGD's rows are DDP's too.

    Raises:
        SpecError, RecordError: an experiment cannot be planned.
    """
    found: dict[str, tuple[RunConfig, Scored]] = {}
    for experiment in EXPERIMENTS:
        plan = plan_experiment(experiment, results)
        rows = {row.row: row for row in plan.experiment.rows if row.base is None}
        main = load_spec(find_spec(experiment)).statistics.main_ratio if experiment == EXPERIMENTS[0] else None
        at_main = {row.label for row in rows.values() if row.ratio == main}
        configs = {run.row: run.config for run in reversed(plan.runs) if run.row in rows}
        for name, row in rows.items():
            if main is not None and row.label in at_main and row.ratio != main:
                continue
            config, where = configs[name], f"{experiment}/{name}"
            if (known := next((each for own, each in found.values() if _same(own, config)), None)) is not None:
                known[1].append(where)
                continue
            timed = TimedMethod(
                row.label, config.algorithm, config.settings, momentum=config.momentum, num_steps=row.num_steps
            )
            found[name] = config, (timed, [where])
    own = {name: each for name, (_, each) in found.items()}
    sgd = next(rows for timed, rows in own.values() if timed.algorithm == "sgd")
    baselines = {name: (METHODS[each], sgd if name == "ddp" else []) for name, each in BASELINES.items()}
    return baselines | own


def _same(one: RunConfig, other: RunConfig) -> bool:
    return (one.algorithm, one.settings, one.momentum) == (other.algorithm, other.settings, other.momentum)


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
    deadline = time.monotonic() + 60 * minutes
    known = scored_methods(results)
    if unknown := [name for name in names if name not in known]:
        raise SpecError(f"unknown method {unknown[0]!r}; the scored methods are {', '.join(known)}")
    scored = {name: each for name, each in known.items() if name in names or not names}
    most = SHARE_OF_CEILING * ceiling_bits_per_second(NUM_WORKERS)
    print(f"speedups: {len(scored)} scored methods, links up to {rate_text(most)} in all", flush=True)
    session = Session(
        workload=workload(WORKLOAD, "cpu"),
        num_workers=NUM_WORKERS,
        methods={name: timed for name, (timed, _) in scored.items()},
        cells_of=partial(cells_of, most),
        trains=False,
        num_visits=NUM_VISITS,
        steps_per_visit=STEPS_PER_VISIT,
        times_codec=times_codec,
        deadline=deadline,
    )
    attempt = new_attempt("processes", "gloo", torch.device("cpu")).model_copy(update={"command": command_line()})
    with lab(LabTopology(NUM_WORKERS, 1, most / NUM_WORKERS)) as network:
        found = time_in_lab(session, network)
    record = ScoredSession(
        version=VERSION,
        attempt=attempt,
        workload=session.workload,
        num_workers=NUM_WORKERS,
        methods=[_method(name, *each, found) for name, each in scored.items() if name not in found.left_out],
        cells=[_cell(name, cell, found) for name in scored if name not in found.left_out for cell in found.cells[name]],
        left_out=[LeftOut(what=name, why="the session's minutes were over") for name in found.left_out],
    )
    write_record(output, record)


def cells_of(
    most_bits_per_second: float, load: Workload, timed: TimedMethod, messages: Sequence[Message]
) -> list[Cell]:
    """Kinds of steps, each on every link; those that send nothing once. The first is what links here carry in all."""
    encodes_behind = timed.overlap and timed.algorithm != "ddp"
    cells = []
    for kind, share, sent in kinds_of(timed.period, messages):
        cells += [
            Cell(kind, share, link, _dilation(load, encodes_behind, sent, link, most_bits_per_second))
            for link in LINKS
            if sent
        ] or [Cell(kind, share, None, SILENT_DILATION)]
    return cells


def _dilation(load: Workload, encodes_behind: bool, messages: Iterable[Message], link: float, most: float) -> float:
    wanted = WANTED_SECONDS_BEHIND if encodes_behind else WANTED_SECONDS
    highest = HIGHEST_DILATION_BEHIND if encodes_behind else HIGHEST_DILATION
    sent = sum(ring_bytes(each.collective, each.payload_bytes, NUM_WORKERS) for each in messages)
    step = load.forward_seconds + load.backward_seconds + 8 * sent / link
    return max(min(wanted / step, highest), NUM_WORKERS * link / most, 1.0)


def _method(name: str, timed: TimedMethod, rows: list[str], found: Timed) -> ScoredMethod:
    return ScoredMethod(
        name=name,
        label=timed.label,
        algorithm=timed.algorithm,
        settings=dict(timed.settings),
        momentum=timed.momentum,
        rows=rows,
        overlap=timed.overlap,
        period=timed.period,
        messages=found.described[name].messages,
        codec_alone_seconds=found.described[name].codec_seconds,
    )


def _cell(name: str, cell: Cell, found: Timed) -> ScoredCell:
    steps = found.of(name, cell)
    return ScoredCell(
        method=name,
        kind=cell.kind,
        share=cell.share,
        bits_per_second=cell.link,
        dilation=cell.dilation,
        visits=[visit for visit, _ in steps],
        seconds=[(parts.total - parts.codec) / cell.dilation for _, parts in steps],
        codec_seconds=[parts.codec for _, parts in steps],
        waiting_seconds=[(parts.waiting or 0.0) / cell.dilation for _, parts in steps],
        transfer_seconds=[parts.transfer / cell.dilation for _, parts in steps],
    )
