"""What one worker is given to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from algorithms import Collectives
from harness.records.recorder import Recorder
from harness.spec import RunConfig
from harness.tasks.task import Samples
from harness.train.stacked import Replicas


class Preempted(RuntimeError):
    """The run was asked to stop; its state is saved, and another attempt can go on from there."""


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often checkpoints are written, and by which attempt; the folder belongs to the run."""

    folder: Path
    every_seconds: float
    attempt: str


@dataclass(frozen=True)
class Work:
    """A run, as one worker takes part in it.

    `model` is the worker's, or all workers' replicas, which go with `StackedCollectives`. `recorder` is None but for
    one worker. `stop_requested` is asked between steps, by all workers or by none; where it is true for one, all stop.
    """

    config: RunConfig
    model: nn.Module | Replicas
    samples: Samples
    collectives: Collectives
    recorder: Recorder | None
    checkpoints: Checkpoints
    stop_requested: Callable[[], bool] | None = None

    @property
    def models(self) -> list[nn.Module]:
        """Of the workers at this end, see `Collectives.own_ranks`."""
        return list(self.model.models) if isinstance(self.model, Replicas) else [self.model]
