"""QSR: local SGD whose workers average more and more seldom as the learning rate falls.

Source: Gu et al., "A quadratic synchronization rule for distributed deep learning", ICLR 2024
(arXiv 2310.14423); its release, hmgxr128/QSR, `localopt.py`.

    a round that begins at learning rate eta_t takes H steps, at most to the run's end:
        H = max(H_base, floor((alpha / eta_t)^2))
    H times:    x_i <- x_i - p_i
    then:       x_i <- mean(x)

eta is the first parameter group's. In the warm-up H is H_base, as released: that is the first
round, and each that begins at a higher rate than the round before. Momentum, or AdamW's moments,
are local and never averaged.

Deviations: the release is told how long the warm-up is. It is told the run's length, too; here that
may be left out, and then the last round is as long as the rule says, and may end after the run.
Cost: 32 d bits a round, an all-reduce.
State: the momentum or the moments.
"""

import math
from typing import Any, ClassVar

from cser_bench.algorithms.core import (
    Count,
    Layout,
    Purpose,
    Replica,
    Stage,
    Traffic,
    fixed,
)
from cser_bench.algorithms.core.settings import NotNegative
from cser_bench.algorithms.local_sgd import LocalSGD

Round = tuple[int, int, float]
"""The number of a round, counted from 1, its last step, and the learning rate at which it began."""
NONE: Round = (0, 0, 0.0)
GREATEST = 2.0**31
"""Largest alpha / eta that is told apart: its square is more steps than any run has, and still a
finite float."""


class QSR(LocalSGD):
    """QSR.

    Begin with `sync_interval=4, alpha=0.25`.

    Args:
        sync_interval: H_base, in steps.
        alpha: from 0 up.
        total_steps: of the run, with whose end its last round ends; steps after it are in rounds by
            the rule again.
    """

    name = "qsr"
    formula = "32 d / H"
    no_compression: ClassVar = {"sync_interval": 1, "alpha": 0.0}
    tried_with: ClassVar = {"alpha": 0.25}
    traffic_follows_rate = True

    alpha: NotNegative
    total_steps: Count | None = None
    first_moment_interval: int | None = fixed(None)
    second_moment_interval: int | None = fixed(None)

    def _set_up(self, replica: Replica) -> None:
        super()._set_up(replica)
        self.param_groups[0]["round"] = NONE  # there PyTorch saves and loads it

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        raise ValueError(
            "qsr: what it sends depends on the learning rates; give sync_interval and alpha "
            "themselves"
        )

    def stages(self, replica: Replica) -> list[Stage]:
        return []  # none that takes place every so many steps

    def _expected_traffic(self, replica: Replica, num_steps: int) -> Traffic:
        num_syncs, end, _ = self._round_at(num_steps)
        if end != num_steps:  # the last round has not ended
            num_syncs -= 1
        # 32 d bits a round that has ended, or as many as a message's numbers have.
        traffic = Traffic()
        bits = replica.float_bits * replica.flat.layout.numel * num_syncs
        traffic.add(Purpose.MODEL, bits, num_syncs)
        return traffic

    def _agree_after(self, replica: Replica, num_steps: int) -> bool:
        _, end, _ = self._round_at(num_steps)
        return replica.communication_dtype is None and end == num_steps

    def _round_at(self, step: int) -> Round:
        """Return the round that a step is in.

        Rounds of steps to come follow the schedule's learning rates, or without one today's.
        """
        group = self.param_groups[0]
        now: Round = NONE
        # A step in the past is in no later round than today's, so rounds are counted from the
        # first.
        if step >= self.num_steps:
            now = group["round"]
        while now[1] < step:
            rate = group["lr"]
            if self.schedule is not None:
                rate = self.schedule(now[1] + 1)
            now = self._after(now, rate)
        return now

    def _after(self, last: Round, rate: float) -> Round:
        """Return the round after another one."""
        number, end_before, rate_before = last
        length = self.sync_interval
        # A rate that has risen is a warm-up's.
        if 0 < rate <= rate_before:
            root = min(self.alpha / rate, GREATEST)
            # floor((alpha / eta)^2)
            by_rule = math.floor(root**2)
            length = max(length, by_rule)
        end = end_before + length
        if self.total_steps is not None and end_before < self.total_steps:
            end = min(end, self.total_steps)
        return number + 1, end, rate

    def _update(self, replica: Replica, step: int) -> None:
        group = self.param_groups[0]
        _, end, _ = group["round"]
        if step > end:
            group["round"] = self._after(group["round"], group["lr"])
            _, end, _ = group["round"]
        replica.local_step_()
        if step == end:
            self.average_(replica, replica.flat.parameters)
