"""Workers that train on random images: what is timed, estimated and checked where no data set is wanted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algorithms import Collectives
from algorithms.registry import methods
from harness.spec import RunConfig
from harness.tasks.pairs import NUM_SPECIAL
from harness.tasks.task import Task, find_task
from harness.train.build import build_model, lay_out, module_to_train
from harness.train.local_workers import local_workers
from harness.train.precision import MixedPrecision


def random_batch(task: Task, batch_size: int, generator: torch.Generator, like: Tensor) -> tuple[Tensor, Tensor]:
    """Standard normal images of the task's shape, of the type and on the device of `like`, and labels for them.

    They are drawn on the CPU, so they are the same on every device. Of a text task they are windows, or pairs of full
    length, as `harness.tasks.pairs.Pairs.batch` gives them.
    """
    if len(task.input_shape) == 1:
        windows = (batch_size, task.input_shape[0] + 1)
        symbols = torch.randint(task.num_classes, windows, generator=generator).to(like.device)
        return symbols[:, :-1], symbols[:, 1:]
    if len(task.input_shape) == 2:
        shape = (batch_size, 2, task.input_shape[1] + 1)
        tokens = torch.randint(NUM_SPECIAL, task.num_classes, shape, generator=generator).to(like.device)
        return tokens[:, :, :-1], tokens[:, 1, 1:]
    inputs = torch.randn((batch_size, *task.input_shape), generator=generator).to(like)
    labels = torch.randint(task.num_classes, (batch_size,), generator=generator).to(like.device)
    return inputs, labels


def use_device(device: str) -> None:
    """Make a GPU this thread's own, and fp32 on it fp32, where cuDNN would round to 10 bits (TF32).

    Batches of a run are of one shape, so cuDNN may try its algorithms on it once and keep the fastest.
    """
    if device != "cpu":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True


def trainable(config: RunConfig, device: torch.device) -> nn.Module:
    """The run's model as training has it on the device: its numbers in the format that is chosen there.

    Raises:
        SpecError: unknown model or options.
    """
    use_device(str(device))
    model = build_model(config.model, find_task(config.task.name), config.seed, device)
    lay_out(model, methods()[config.algorithm].needs_contiguous)
    return model


class Trainee:
    """The workers at this end, one or all of them stacked, with random batches of their own.

    Args:
        config: names the method, its settings, batch size and precision.
        model: is trained, or copied where workers are stacked; floating, on the device to train on.
        num_batches: of each worker, that steps go through in turn.
    """

    def __init__(self, config: RunConfig, model: nn.Module, collectives: Collectives, num_batches: int = 1) -> None:
        self.models, self.optimizer = local_workers(config, model, collectives, num_steps=0)
        self._trained = [module_to_train(self.optimizer, each) for each in self.models]
        like = self.optimizer.flat.parameters
        self.precision = MixedPrecision(config.precision, like.device, config.label_smoothing)
        task, generators = (
            find_task(config.task.name),
            [torch.Generator().manual_seed(r) for r in collectives.own_ranks],
        )
        self.batches = [
            [random_batch(task, config.batch_size, generator, like) for generator in generators]
            for _ in range(num_batches)
        ]
        """Each worker's batches, turn by turn."""
        self._next = 0

    def step(self) -> Tensor:
        """Train once, each worker on its next batch; the workers' losses before, of shape (local workers,)."""
        batches = self.batches[self._next]
        self._next = (self._next + 1) % len(self.batches)
        self.optimizer.zero_grad()
        each = zip(self._trained, batches, strict=True)
        losses = torch.stack([self.precision.both_passes(model, *batch) for model, batch in each])
        self.precision.step(self.optimizer)
        return losses
