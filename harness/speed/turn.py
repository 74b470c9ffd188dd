"""One turn of a method on one worker: built anew, warmed up, and its steps taken with everything noted."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from harness.speed.build import BuiltMethod, build_method
from harness.speed.clock import Mark, clock_name, now_on, seconds_at
from harness.speed.groups import Groups
from harness.speed.layers import Layers, layers_of
from harness.speed.methods import TimedMethod
from harness.speed.parts import RankStep
from harness.speed.recorder import Recorded, recorded
from harness.speed.request import ScoredRequest, TimingRequest
from harness.speed.trainee import RealTrainee, TimedTrainee
from harness.speed.waiting import WaitingTrainee


@dataclass(frozen=True)
class TurnContext:
    """What all turns of one worker share.

    Attributes:
        visible: DDP's all-reduces are seen one by one, as they are in no timed step.
    """

    request: TimingRequest | ScoredRequest
    device: torch.device
    groups: Groups
    visible: bool = False

    @property
    def layers(self) -> Layers:
        return self.request.layers or layers_of(self.request.workload.name)

    def trainee(self) -> TimedTrainee:
        """A new model, with the same parameters on every worker."""
        workload, now = self.request.workload, now_on(self.device)
        if self.request.trainee == "real":
            return RealTrainee(workload.name, self.layers, self.device, dist.get_rank(), now)
        return WaitingTrainee(self.layers, workload, self.request.fabric.dilation, now)

    def turn(self, timed: TimedMethod) -> Turn:
        """A new model and a new optimiser of the method."""
        trainee = self.trainee()
        workload, num_workers = self.request.workload.name, self.request.fabric.num_workers
        method = build_method(timed, workload, trainee, self.groups, self.visible, num_workers)
        return Turn(trainee, method, self.layers, self.device)


@dataclass(frozen=True)
class Turn:
    """A method that is ready to train, and what it trains."""

    trainee: TimedTrainee
    method: BuiltMethod
    layers: Layers
    device: torch.device

    def warm_up(self, num_steps: int) -> None:
        """Steps that nobody times; those of a waiting trainee do not wait."""
        self.trainee.waits = False
        for _ in range(num_steps):
            self.method.step()
        self.trainee.waits = True

    def timed_step(self) -> tuple[RankStep, list[Recorded]]:
        """Take a step; its times on this worker, and what it sent."""
        now, watch = now_on(self.device), self.trainee.watch
        with recorded(lambda: watch.share_done, now) as seen:
            began = now()
            self.method.step()
            ended = now()
        while self.device.type == "cpu" and any(each.ended is None for each in seen):
            time.sleep(1e-3)  # DDP can go on before the end of its all-reduce is noted.
        intervals = {each.key: (each.began, each.ended) for each in seen if each.ended is not None}
        if self.method.hides_collectives or len(intervals) < len(seen):
            intervals = {("backward", 0): (watch.last_gradient, watch.returned)}

        def at(mark: Mark) -> float:
            return seconds_at(mark, began)

        step = RankStep(
            began=at(began),
            passes_began=at(watch.began),
            last_gradient=at(watch.last_gradient),
            ended=at(ended),
            collectives={key: (at(start), at(end)) for key, (start, end) in intervals.items()},
            scheduled_seconds=self.trainee.scheduled_seconds,
            clock=clock_name(self.device),
        )
        return step, seen
