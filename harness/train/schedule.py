"""What depends on the step alone: the learning rate, and whether the average is scored."""

from __future__ import annotations

import math

from harness.spec import RunConfig, ScheduleSpec


def learning_rate_factor(schedule: ScheduleSpec, step: int, steps_per_epoch: int, num_epochs: int) -> float:
    """What the peak learning rate is multiplied with at `step`, counted from 0.

    Linear warm-up from 0, at the step's end, so that the first step is not lost; then 1, or 1/2 (1 + cos(pi t)) with t
    the share of the steps after the warm-up that are done, or `factor` for each milestone that has passed, or the root
    of the warm-up's share of what is done.
    """
    epoch = step / steps_per_epoch
    warmup_epochs = schedule.warmup_epochs + schedule.warmup_share * num_epochs
    if epoch < warmup_epochs:
        done = math.floor(epoch) + 1 if schedule.staircase_warmup else (step + 1) / steps_per_epoch
        return min(1.0, done / warmup_epochs) * _milestones(schedule, epoch)
    if schedule.kind == "cosine":
        share = (epoch - warmup_epochs) / (num_epochs - warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * share))
    if schedule.kind == "inverse_sqrt":
        return math.sqrt(warmup_epochs / epoch)
    return _milestones(schedule, epoch)


def _milestones(schedule: ScheduleSpec, epoch: float) -> float:
    if schedule.kind != "milestones":
        return 1.0
    return schedule.factor ** sum(1 for milestone in schedule.milestones if epoch >= milestone)


def evaluation_steps(config: RunConfig, per_epoch: int) -> set[int]:
    """The steps, counted from 1, after which the average is scored; the last one is always among them."""
    scores = config.evaluation.num_scores or config.evaluation.per_epoch * config.num_epochs
    return {round(number * per_epoch * config.num_epochs / scores) for number in range(1, scores + 1)} - {0}
