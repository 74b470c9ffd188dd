"""How many steps a run has, and the learning rate at each of them."""

from __future__ import annotations

import math

from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import RunConfig, ScheduleSpec
from cser_bench.harness.tasks.task import find_task, split_sizes
from cser_bench.harness.train.order import shard_size


def num_steps_of(config: RunConfig) -> tuple[int, int]:
    """Return the steps per epoch, and the steps in all.

    Raises SpecError: more samples or steps are asked for than there are.
    """
    num_train, _ = split_sizes(find_task(config.task.name), config.task)
    per_epoch = (
        shard_size(config.partition, num_train, config.num_workers) // config.batch_size
    )
    if per_epoch == 0:
        more = (
            " or shards_per_worker" if config.partition.kind == "class_shards" else ""
        )
        raise SpecError(
            f"{config.num_workers} workers x {config.batch_size} samples are more than the "
            f"{num_train} training samples; lower num_workers or batch_size{more}"
        )
    most = per_epoch * config.num_epochs
    if config.num_steps is not None and config.num_steps > most:
        raise SpecError(
            f"num_steps = {config.num_steps:,} is more than num_epochs = {config.num_epochs} has "
            f"({most:,})"
        )
    return per_epoch, config.num_steps or most


def learning_rate_at(config: RunConfig, num_steps: int, step: int) -> float:
    """Return the learning rate of a step of a run, counted from 1 as optimisers do."""
    num_epochs = config.num_schedule_epochs
    steps_per_epoch = num_steps // num_epochs
    # The factor counts steps from 0, as the samples' order does.
    factor = learning_rate_factor(
        config.schedule, step - 1, steps_per_epoch, num_epochs
    )
    return config.learning_rate * factor


def learning_rate_factor(
    schedule: ScheduleSpec, step: int, steps_per_epoch: int, num_epochs: int
) -> float:
    """Return what the peak learning rate is multiplied with at `step`, counted from 0.

    Linear warm-up from 0, at the step's end, so that the first step is not lost; then 1, or 1/2 (1
    + cos(pi t)) with t the share of the steps after the warm-up that are done, or `factor` for each
    milestone that has passed.
    """
    epoch = step / steps_per_epoch
    warmup_epochs = schedule.warmup_epochs + schedule.warmup_share * num_epochs
    if epoch < warmup_epochs:
        epochs_done = (step + 1) / steps_per_epoch
        if schedule.staircase_warmup:
            epochs_done = math.floor(epoch) + 1
        # A warm-up of no whole number of steps, or of stairs, would else end above the peak.
        return min(1.0, epochs_done / warmup_epochs) * _milestones(schedule, epoch)
    if schedule.kind == "cosine":
        # Never by 0: where the warm-up is as long as the run, no step comes after it.
        share = (epoch - warmup_epochs) / (num_epochs - warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * share))
    return _milestones(schedule, epoch)


def _milestones(schedule: ScheduleSpec, epoch: float) -> float:
    if schedule.kind != "milestones":
        return 1.0
    num_passed = sum(epoch >= milestone for milestone in schedule.milestones)
    return schedule.factor**num_passed
