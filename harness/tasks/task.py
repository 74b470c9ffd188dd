"""What a task is: a data set with its two splits, known in size before anything is read."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from cser_bench.harness import tasks
from cser_bench.harness.seeds import generator
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks.samples import Batch, Measure, Modality, Samples


class PreflightCheck(NamedTuple):
    """One line of a preflight.

    It says what was looked at, whether it is well, and what was seen or is to be done.
    """

    what: str
    passed: bool
    detail: str


Inputs = Literal["images", "symbols", "pairs"]
"""What a model is given: images of shape `input_shape`, windows of a text, or pairs of a source and
a target."""


class Task(Protocol):
    """One data set. A module of this package holds it as `TASK`; nothing else lists it."""

    num_train: int
    num_test: int
    num_classes: int
    input_shape: tuple[int, ...]
    inputs: Inputs
    metrics: tuple[str, ...]
    """What samples are scored by beside loss and accuracy, as `measures/metrics.py` names it."""

    def prepare(self, data: Path | None) -> None:
        """Find, fetch if need be, and verify the data; `load` is then quick. Raises as `load`."""

    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> Samples:
        """Read the data from the folder `data`, or where it is known to lie, and verify it.

        Raises:
            DataError: missing, damaged, or other data.
        """


EVALUATION_BATCH = 250
"""Small enough that activations stay in a core's cache: with 1000 the same took six times as
long."""


@dataclass(frozen=True)
class TensorSamples:
    """A small data set held on the device, without augmentation.

    `batch` is what is made of chosen samples. `measure` is a score beside loss and accuracy.
    """

    train_inputs: Tensor
    train_labels: Tensor
    evaluation_inputs: Tensor
    evaluation_labels: Tensor
    measure: Measure | None = field(default=None, kw_only=True)

    @property
    def modality(self) -> Modality:
        return Modality(self.measure, joins_workers=True)

    def training_batches(
        self, indices: Iterable[Tensor], seed: int, rank: int, first_step: int
    ) -> Iterator[Batch]:
        for index in indices:
            # Nothing is drawn here, so seed, rank and step change no batch.
            yield self._chosen(self.train_inputs, self.train_labels, index)

    def evaluation_batches(self, indices: Tensor) -> Iterator[Batch]:
        for index in torch.split(indices, EVALUATION_BATCH):
            yield self._chosen(self.evaluation_inputs, self.evaluation_labels, index)

    def _chosen(self, inputs: Tensor, labels: Tensor, index: Tensor) -> Batch:
        index = to_device(index, inputs.device)
        # `index_select` copies, so a batch may be changed and the data stay.
        return self.batch(inputs.index_select(0, index), labels.index_select(0, index))

    def batch(self, inputs: Tensor, labels: Tensor) -> Batch:
        return inputs, labels


def split_sizes(task: Task, spec: TaskSpec) -> tuple[int, int]:
    """Count the samples trained on, and those evaluated.

    Raises:
        SpecError: more samples are asked for than there are.
    """
    if spec.num_validation >= task.num_train:
        raise SpecError(
            f"task {spec.name}: held_out = {spec.num_validation} leaves nothing of {task.num_train} to "
            "train on"
        )
    if spec.num_train + spec.num_validation > task.num_train:
        raise SpecError(
            f"task {spec.name}: num_train = {spec.num_train} and held_out = {spec.num_validation} are "
            f"together more than the {task.num_train} training samples; lower one of them"
        )
    # 0 stands for all but the validation samples.
    num_train = spec.num_train or task.num_train - spec.num_validation
    return num_train, spec.num_validation or task.num_test


def training_and_validation_indices(
    num_samples: int, num_validation: int, num_train: int = 0
) -> tuple[Tensor, Tensor]:
    """Choose indices to train on and to validate on: the same whatever the run's seed.

    The two are taken from the two ends of one order, so neither choice depends on how large the
    other is.

    Args:
        num_train: how many to train on; 0 for all that are left.
    """
    # By no run's seed: what one run is validated on must be unseen by all.
    order = torch.randperm(num_samples, generator=generator("held out", num_samples))
    first = -num_train if num_train else num_validation
    # Sorted, as the order of training is drawn from the run's seed later.
    return order[first:].sort().values, order[:num_validation].sort().values


def subset(train: Batch, spec: TaskSpec, test: Batch | None = None) -> TensorSamples:
    """Choose the samples to train on and, where there is no test set, those to score."""
    inputs, labels = train
    kept, validation = training_and_validation_indices(
        len(labels), spec.num_validation, spec.num_train
    )
    if test is None:
        test = inputs[validation], labels[validation]
    return TensorSamples(inputs[kept], labels[kept], *test)


def cache_folder(name: str) -> Path:
    """Name the folder of data that nobody named a place for.

    It is $XDG_CACHE_HOME/cser-bench/`name`, or the same in ~/.cache.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "cser-bench" / name


def find_task(name: str) -> Task:
    """Find the task of that name.

    Raises:
        SpecError: there is none; the message names those there are.
    """
    # By the folder, so that a new task is a new file and no entry in a list.
    modules = sorted(module.name for module in pkgutil.iter_modules(tasks.__path__))
    if name in modules:
        task = _task_in(name)
        if task is not None:
            return task
    names = [module for module in modules if _task_in(module) is not None]
    raise SpecError(f"unknown task {name!r}; the tasks are {', '.join(names)}")


def _task_in(module: str) -> Task | None:
    return getattr(
        importlib.import_module(f"cser_bench.harness.tasks.{module}"), "TASK", None
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Put the tensor on the device.

    The host waits for no GPU: what it does there next comes after the transfer.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    # Only from pinned memory does a transfer go on by itself.
    return tensor.pin_memory().to(device, non_blocking=True)
