"""What a task is: a data set with its two splits, known in size before anything is read."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from harness.seeds import generator
from harness.spec import SpecError, TaskSpec

Batch = tuple[Tensor, Tensor]
"""Inputs, float32 of shape (batch, *input_shape), and labels, int64 of shape (batch,)."""


class Samples(Protocol):
    """A loaded data set, shared by all workers of a process; reading it changes nothing."""

    @property
    def train_labels(self) -> Tensor:
        """Labels of the samples trained on, int64 of shape (num_train,)."""

    def training_batches(self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int) -> Iterator[Batch]:
        """The batches of these indices, augmented by randomness that depends on (seed, rank, step) alone."""

    def evaluation_batches(self, indices: Tensor) -> Iterator[Batch]:
        """These samples of the evaluated split, each once and in order."""


class Task(Protocol):
    """One data set. A module of this package holds it as `TASK`; nothing else lists it."""

    num_train: int
    num_test: int
    num_classes: int
    input_shape: tuple[int, ...]

    def prepare(self, data: Path | None) -> None:
        """Find, fetch if need be, and verify the data; `load` is then quick. Raises as `load`."""

    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> Samples:
        """Read the data from the folder `data`, or from where it is known to lie, and verify it.

        Raises:
            DataError: data missing or damaged; the message says where and what to do.
        """


EVALUATION_BATCH = 250
"""Small enough that activations stay in a core's cache: with 1000 the same took six times as long."""


@dataclass(frozen=True)
class TensorSamples:
    """A small data set held on the device, without augmentation."""

    train_inputs: Tensor
    train_labels: Tensor
    evaluation_inputs: Tensor
    evaluation_labels: Tensor

    def training_batches(self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int) -> Iterator[Batch]:
        for index in indices:
            yield self.train_inputs[index], self.train_labels[index]

    def evaluation_batches(self, indices: Tensor) -> Iterator[Batch]:
        for index in torch.split(indices, EVALUATION_BATCH):
            yield self.evaluation_inputs[index], self.evaluation_labels[index]


def split_sizes(task: Task, spec: TaskSpec) -> tuple[int, int]:
    """Number of samples trained on, and evaluated.

    Raises:
        SpecError: more samples are held out than there are.
    """
    if spec.held_out >= task.num_train:
        raise SpecError(f"task {spec.name}: held_out = {spec.held_out} leaves nothing of {task.num_train} to train on")
    return (task.num_train - spec.held_out, spec.held_out) if spec.held_out else (task.num_train, task.num_test)


def held_out_indices(num_train: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Indices to train on and to hold out: always the same choice, whatever the run's seed."""
    order = torch.randperm(num_train, generator=generator("held out", num_train))
    return order[held_out:].sort().values, order[:held_out].sort().values


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        SpecError: there is none; the message names those there are.
    """
    known = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    found = getattr(importlib.import_module(f"harness.tasks.{name}"), "TASK", None) if name in known else None
    if found is None:
        tasks = [each for each in known if hasattr(importlib.import_module(f"harness.tasks.{each}"), "TASK")]
        raise SpecError(f"unknown task {name!r}; the tasks are {', '.join(tasks)}")
    task: Task = found
    return task


def task_of(spec: TaskSpec) -> Task:
    """The task as the spec wants it.

    Raises:
        SpecError: there is none of that name, or it reads no image files and yet may meet undecodable ones.
    """
    task = find_task(spec.name)
    if not spec.max_undecodable:
        return task
    if not hasattr(task, "max_undecodable"):
        raise SpecError(f"task {spec.name} reads no image files; leave max_undecodable out")
    allowing: Task = replace(task, max_undecodable=spec.max_undecodable)  # type: ignore[type-var]
    return allowing
