"""One worker's training: what changes from step to step, how a step is taken, and how all of it is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from algorithms import Collectives, DistributedOptimizer, SoloCollectives, StackedCollectives
from harness.tasks.task import Batch, TensorSamples, find_task, split_sizes
from harness.train import checkpoint
from harness.train.build import build_optimizer, format_of, module_to_train, num_steps_of
from harness.train.checkpoint import CheckpointError
from harness.train.clock import Clock
from harness.train.evaluate import Score
from harness.train.order import worker_batches
from harness.train.partition import class_counts, worker_shards
from harness.train.precision import MixedPrecision
from harness.train.prefetch import Prefetched
from harness.train.restart import restart_if_due
from harness.train.schedule import learning_rate_factor
from harness.train.stacked import Replicas, batched_backward
from harness.train.tokens import token_weights
from harness.train.work import Work


@dataclass
class Found:
    """What is known of a run so far: its last mean loss and score, and the step at which it diverged."""

    train_loss: float | None = None
    score: Score | None = None
    diverged_at: int | None = None


class Training:
    """The state of one worker's training, resumed from the newest checkpoint if there is one."""

    def __init__(self, work: Work) -> None:
        self.work, self.models, self.found = work, work.models, Found()
        config, model, samples, collectives = work.config, work.model, work.samples, work.collectives
        self.num_train, self.num_evaluation = split_sizes(find_task(config.task.name), config.task)
        self.per_epoch, self.num_steps = num_steps_of(config)
        trained = nn.ParameterList(model.stacked) if isinstance(model, Replicas) else model
        self.optimizer: DistributedOptimizer = build_optimizer(config, trained, collectives, self.num_steps)
        if isinstance(model, Replicas):
            model.attach()
        self._passes = [partial(self._pass, module_to_train(self.optimizer, each)) for each in self.models]
        plain = config.precision == "fp32" and not config.label_smoothing
        stacks = isinstance(model, Replicas) and plain and isinstance(samples, TensorSamples)
        self._batched = batched_backward(model) if stacks and isinstance(model, Replicas) else None
        self.step = 0
        device = self.optimizer.flat.parameters.device
        self.precision = MixedPrecision(config.precision, device, config.label_smoothing)
        zero = torch.zeros(2, dtype=torch.float64, device=device)
        self.losses = torch.stack([zero] * len(self.models))
        """Sum and number of each worker's losses since the last evaluation."""
        shards = worker_shards(config.partition, samples.train_labels, config.num_workers, config.seed)
        self._shards = shards
        self._weights: Iterator[list[float]] | None = None
        """By step, of samples whose losses are means over tokens; see `token_weights`."""
        num_classes = getattr(samples, "num_groups", find_task(config.task.name).num_classes)
        self.class_counts = None if shards is None else class_counts(shards, samples.train_labels, num_classes)
        self.clock = Clock(collectives, device)
        self._resume()
        for each in self.models:
            each.train()

    def _resume(self) -> None:
        loaded = checkpoint.load(self.work.checkpoints.folder, self._savers)
        if loaded is not None:
            self.step, state = loaded
            self._check_state(state)
            for model, saved in zip(self.models, state["models"], strict=True):
                model.load_state_dict(saved)
            self.optimizer.load_state_dict(state["optimizer"])
            self.losses.copy_(state["losses"])
            self.precision.load_state_dict(state["precision"])
            self.work.collectives.traffic.load_state_dict(state["traffic"])
            self.clock = Clock(self.work.collectives, self.losses.device, state["clock_seconds"])

    def _check_state(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError for a state of other workers, or with its numbers in another order."""
        folder, own, saved = self.work.checkpoints.folder, len(self.models), len(state["models"])
        if saved != own:
            raise CheckpointError(checkpoint.of_others(folder, saved, own))
        order, saved_order = format_of(self.models[0]), state.get("memory_format", "contiguous")
        if saved_order != order:
            raise CheckpointError(
                f"the checkpoint in {folder} has its numbers in the memory format {saved_order}, and here they are "
                f"{order}: images lie channels last on GPUs; go on where it began, or delete it"
            )

    def save(self, allowed: Callable[[], None]) -> None:
        """Write a checkpoint; see `checkpoint.save`."""
        folder, attempt = self.work.checkpoints.folder, self.work.checkpoints.attempt
        checkpoint.save(folder, self.step, self._state(), self._savers, attempt, allowed)

    def _state(self) -> dict[str, Any]:
        return {
            "memory_format": format_of(self.models[0]),
            "models": [model.state_dict() for model in self.models],
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "precision": self.precision.state_dict(),
            "traffic": self.work.collectives.traffic.state_dict(),
            "clock_seconds": self.clock.seconds,
        }

    @property
    def _savers(self) -> Collectives:
        """Who writes checkpoints together: workers that are stacked are one process, and write one file."""
        collectives = self.work.collectives
        return SoloCollectives() if isinstance(collectives, StackedCollectives) else collectives

    def batches(self) -> Iterator[list[Batch]]:
        """The batches of the workers at this end, step by step; a joint one where they go through all at once."""
        config, samples, ranks = self.work.config, self.work.samples, self.work.collectives.own_ranks
        indices = [self._indices(rank) for rank in ranks]
        num_tokens: Tensor | None = getattr(samples, "num_tokens", None)
        if num_tokens is not None:
            everyone = [self._indices(rank) for rank in range(config.num_workers)]
            self._weights = token_weights(num_tokens, everyone, ranks)
        if self._batched is not None:
            joined = (torch.cat(each) for each in zip(*indices, strict=True))
            return ([batch] for batch in samples.training_batches(joined, config.seed, 0, self.step))
        sources = [
            samples.training_batches(own, config.seed, rank, self.step)
            for rank, own in zip(ranks, indices, strict=True)
        ]
        batches = (list(each) for each in zip(*sources, strict=True))
        device = self.losses.device
        return Prefetched(batches, device) if device.type == "cuda" else batches

    def _indices(self, rank: int) -> Iterator[Tensor]:
        """What a worker trains on from this step on."""
        config, lengths = self.work.config, getattr(self.work.samples, "lengths", None)
        steps, shard = range(self.step, self.num_steps), None if self._shards is None else self._shards[rank]
        sizes = config.num_workers, config.batch_size
        return worker_batches(config.seed, self.num_train, rank, *sizes, steps, shard, lengths)

    def take_step(self, batch: list[Batch], batches: Iterator[list[Batch]]) -> None:
        """One step of the workers at this end; `batches` is where the next ones come from."""
        config = self.work.config
        restart_if_due(config, self.optimizer, self.step, self.num_steps)
        factor = learning_rate_factor(config.schedule, self.step, self.per_epoch, config.num_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        self.optimizer.zero_grad()
        losses = self._backward(batch)
        self._prepare(batches)
        self.precision.step(self.optimizer)
        self.losses += self.precision.tally(losses)
        self.step += 1

    def _prepare(self, batches: Iterator[list[Batch]]) -> None:
        """On a GPU, make the next batches ready beside the backward pass, for which a step with loss scaling waits."""
        if isinstance(batches, Prefetched):
            self.clock.switch("data")
            batches.prepare()
            self.clock.switch("compute")

    def _backward(self, batches: list[Batch]) -> Tensor:
        """Forward and backward passes of the workers at this end; their mean losses, of shape (local workers,)."""
        if self._batched is not None:
            return self._batched(*batches[0])
        arguments: list[tuple[Any, ...]] = list(batches)
        if self._weights is not None:
            arguments = [(*batch, weight) for batch, weight in zip(batches, next(self._weights), strict=True)]
        return torch.stack([own(*each) for own, each in zip(self._passes, arguments, strict=True)])

    def _pass(self, model: nn.Module, inputs: Tensor, labels: Tensor, weight: float | None = None) -> Tensor:
        """Of one worker: adds to its gradients; its mean loss."""
        loss = self.precision.loss(model, inputs, labels)
        loss = loss if weight is None else weight * loss
        self.precision.backward(loss)
        return loss.detach()
