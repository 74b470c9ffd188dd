"""A worker's forward and backward pass, as a session sees it: the real model's, or one that waits in its place."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import nn

from harness.speed.clock import Mark, Now
from harness.speed.layers import Layers
from harness.speed.workloads import computes_in, problem_of
from harness.tasks.task import find_task
from harness.train.build import build_model, lay_out
from harness.train.precision import MixedPrecision
from harness.train.trainee import random_batch


class TimedTrainee(Protocol):
    """What takes forward and backward passes.

    Attributes:
        module: has the parameters; a method may wrap it.
        scheduled_seconds: what the two passes take where they are waits; infinite where they take what they take.
        watch: how far the backward pass is.
        waits: whether it waits at all; a real one never does.
    """

    module: nn.Module
    scheduled_seconds: float
    watch: Watch
    waits: bool

    def slow_down(self, dilation: float) -> None:
        """Let passes that are waits take so many times the device's time from now on; others take what they take."""

    def passes(self, wrapped: nn.Module | None = None) -> None:
        """The forward pass through `wrapped`, which contains `module` (or through that), and the backward pass."""


class Watch:
    """Notes when gradients are there, by a hook on every parameter that fires before anybody uses the gradient."""

    def __init__(self, module: nn.Module, layers: Layers, now: Now) -> None:
        self._now = now
        self.share_done = 0.0
        """Of the backward pass, by the layers' arithmetic."""
        self.began: Mark = now()
        self.last_gradient: Mark = self.began
        self.returned: Mark = self.began
        """When the backward pass gave back control, whatever was waited for in it."""
        for parameter, share in zip(module.parameters(), layers.parameter_shares(), strict=True):
            parameter.register_hook(lambda _, share=share: self._gradient(share))  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        self.share_done = 0.0
        self.began = self._now()

    def end(self) -> None:
        self.returned = self._now()

    def _gradient(self, share: float) -> None:
        self.share_done = min(1.0, self.share_done + share)
        self.last_gradient = self._now()


class RealTrainee:
    """The workload's model on random images or sentences of its task's shape, as `computes_in` says."""

    def __init__(self, workload: str, layers: Layers, device: torch.device, rank: int, now: Now) -> None:
        problem = problem_of(workload)
        task = find_task(problem.task)
        self.module = build_model(problem.model, task, 0, device)
        lay_out(self.module)
        self.scheduled_seconds = math.inf
        self.waits = False
        self.watch = Watch(self.module, layers, now)
        self._precision = MixedPrecision(computes_in(workload, device), device, scales=False)
        generator = torch.Generator().manual_seed(rank)
        like = torch.empty(0, device=device)
        self._inputs, self._labels = random_batch(task, problem.batch_size, generator, like)

    def slow_down(self, dilation: float) -> None:
        pass

    def passes(self, wrapped: nn.Module | None = None) -> None:
        self.watch.begin()
        self._precision.backward(self._precision.loss(wrapped or self.module, self._inputs, self._labels))
        self.watch.end()
