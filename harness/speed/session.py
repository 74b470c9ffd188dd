"""A timing session as each worker goes through it: builds methods by turns, times their steps, writes the record."""

from __future__ import annotations

import gc

import torch
import torch.distributed as dist

from harness.records.provenance import new_attempt
from harness.records.store import VERSION, write_record
from harness.records.timings import Step, Timing
from harness.speed.describe import described
from harness.speed.groups import make_groups, max_buckets
from harness.speed.methods import METHODS
from harness.speed.parts import RankStep, parts_of
from harness.speed.questions import LIFT, LIMIT, Ask
from harness.speed.request import TimingRequest
from harness.speed.turn import Turn, TurnContext
from harness.train.stopwatch import there_and_back


def time_methods(request: TimingRequest, device: torch.device, launch: str, ask: Ask | None) -> None:
    """Go through the session as one worker of the group that stands; rank 0 writes the record.

    Args:
        ask: has the links limited or not, where the request wants that; None: nobody answers.
    """
    attempt = new_attempt(launch, dist.get_backend(), device)
    together, alone = make_groups(max_buckets(4 * request.workload.num_parameters))
    setting = TurnContext(request, device, together)
    steps: list[Step] = []
    for visit, name in there_and_back(request.methods, request.num_visits):
        steps += _visit(setting, request, visit, name, ask)
    methods = described(TurnContext(request, device, alone), request.methods) if dist.get_rank() == 0 else []
    dist.barrier()
    if dist.get_rank() == 0:
        record = Timing(
            version=VERSION,
            basis=request.basis,
            attempt=attempt.model_copy(update={"command": request.command or attempt.command}),
            fabric=request.fabric,
            workload=request.workload,
            num_warmup_steps=request.num_warmup_steps,
            methods=methods,
            steps=steps,
        )
        write_record(request.output, record)


def _visit(setting: TurnContext, request: TimingRequest, visit: int, name: str, ask: Ask | None) -> list[Step]:
    """One turn of a method; the steps on rank 0, nothing on the others."""
    turn = setting.turn(METHODS[name])
    _warm_up(turn, request, ask)
    gc.collect()
    steps = []
    kinds = kinds_of_steps(METHODS[name].period, request.steps_per_visit)
    for number, synchronises in enumerate(kinds, start=visit * len(kinds)):
        turn.method.go_to(number, synchronises)
        dist.barrier()
        own, _ = turn.timed_step()
        workers: list[RankStep] = [own] * dist.get_world_size()
        dist.all_gather_object(workers, own)
        parts = parts_of(workers)
        steps.append(
            Step(
                method=name,
                visit=visit,
                synchronises=synchronises,
                seconds=parts.total,
                compute_seconds=parts.compute,
                codec_seconds=parts.codec,
                waiting_seconds=parts.waiting,
                transfer_seconds=parts.transfer,
            )
        )
    return steps


def _warm_up(turn: Turn, request: TimingRequest, ask: Ask | None) -> None:
    """On a slow network most of a session would be this."""
    lifts = ask if request.lifts_limits else None
    if lifts is not None:
        lifts(LIFT)
    turn.warm_up(request.num_warmup_steps)
    if lifts is not None:
        lifts(LIMIT)


def kinds_of_steps(period: int, steps_per_visit: int) -> list[bool]:
    """Of a visit's steps: whether each is the synchronising one of its period; all are where none is ordinary."""
    return [True] * steps_per_visit if period == 1 else [False, True] * steps_per_visit
