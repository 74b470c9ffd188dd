"""Workers step alone, and average their models every H steps (local SGD), ever more seldom (QSR), or never (alone).

Source: Stich, "Local SGD converges fast and communicates little", ICLR 2019; CSER with C2 = zero and C1 = identity.
With averaged moments: Iacob et al., "DES-LOC: Desynced low communication adaptive optimizers for training foundation
models", ICLR 2026 (arXiv 2505.22549); with K_u = K_v = H that is its Local Adam. QSR has its source in its class.

    x_i <- x_i - p_i
    every H steps:    x_i <- mean(x)
    every K_u steps:  m_i <- mean(m)       (AdamW's first moment, if asked for; else it is local and never averaged)
    every K_v steps:  v_i <- mean(v)       (its second)

With H the number of all steps this is a single final average. SGD's momentum is local and never averaged.
DES-LOC recommends K_u = 3 H and K_v = 6 H. It averages at the beginning of a step what here is averaged at the end of
the one before, and it clips gradients, which is the user's to do.
Cost: 32 d (1 / H + 1 / K_u + 1 / K_v) bits per step on average, an all-reduce of d for each average.
"""

import math
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from algorithms.core import Count, DistributedOptimizer, Layout, Purpose, Stage, Traffic, fixed
from algorithms.core.settings import NotNegative

Round = tuple[int, int, float]
"""The number of a round, counted from 1, its last step, and the learning rate at which it began."""
NONE: Round = (0, 0, 0.0)


class LocalSGD(DistributedOptimizer):
    """Local SGD.

    Args:
        sync_interval: H, steps between two averages.
        first_moment_interval, second_moment_interval: K_u and K_v, for `local_step = "adamw"`; None for never.
    """

    name = "local_sgd"
    formula = "32 d / H"
    no_compression: ClassVar = {"sync_interval": 1}

    sync_interval: Count
    first_moment_interval: Count | None = None
    second_moment_interval: Count | None = None

    def _set_up(self) -> None:
        intervals = (self.first_moment_interval, self.second_moment_interval)
        if any(intervals) and (self.local_step != "adamw" or self.communication_dtype is not None):
            first = "first" if self.first_moment_interval else "second"
            raise ValueError(
                f"{self.name}: {first}_moment_interval is for local_step = 'adamw' without a communication_dtype, in "
                "whose few bits second moments would be lost; leave it out"
            )
        moments = self.local.buffers(self.param_groups)
        self.averaged = [(self.flat.parameters, self.sync_interval)]
        self.averaged += [(moment, k) for moment, k in zip(moments, intervals, strict=False) if k is not None]

    def stages(self) -> list[Stage]:
        model, *moments = (Stage(Purpose.MODEL, every=interval) for _, interval in self.averaged)
        return [model, *(replace(moment, equalises=False) for moment in moments)]

    def _update(self, step: int) -> None:
        self.local_step_()
        for vector, interval in self.averaged:
            if step % interval == 0:
                self.average_(vector)

    def average_(self, vector: Tensor) -> None:
        """vector <- mean(vector); where messages are rounded, each worker keeps what that took from its own."""
        if self.communication_dtype is None:
            self.average_in_place_(vector, Purpose.MODEL)
        else:
            own, mean = self.average(vector, Purpose.MODEL)
            vector.sub_(own).add_(mean)


class QSR(LocalSGD):
    """QSR: local SGD whose workers average more and more seldom as the learning rate falls.

    Source: Gu et al., "A quadratic synchronization rule for distributed deep learning", ICLR 2024 (arXiv 2310.14423);
    its release, hmgxr128/QSR, `localopt.py`.

        a round that begins at learning rate eta_t:  H = max(H_base, floor((alpha / eta_t)^2))
        H times:    x_i <- x_i - p_i
        then:       x_i <- mean(x)

    eta is the first parameter group's. In the warm-up H is H_base, as released: that is the first round, and each that
    begins at a higher rate than the round before.
    Deviations: the release is told how long the warm-up is, and the run, with whose end it ends the last round.
    Cost: 32 d bits a round, an all-reduce.

    Args: sync_interval: H_base, in steps; alpha: from 0 up.
    """

    name = "qsr"
    formula = "32 d / H"
    no_compression: ClassVar = {"sync_interval": 1, "alpha": 0.0}
    tried_with: ClassVar = {"alpha": 0.25}
    traffic_follows_rate = True

    alpha: NotNegative
    first_moment_interval: int | None = fixed(None)
    second_moment_interval: int | None = fixed(None)

    def _set_up(self) -> None:
        super()._set_up()
        self.param_groups[0]["round"] = NONE  # there PyTorch saves and loads it

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        raise ValueError("qsr: what it sends depends on the learning rates; give sync_interval and alpha themselves")

    def stages(self) -> list[Stage]:
        return []  # none that takes place every so many steps

    def _expected_traffic(self, num_steps: int) -> Traffic:
        number, end, _ = self._round_at(num_steps)
        num_syncs = number if end == num_steps else number - 1
        traffic = Traffic()
        traffic.add(Purpose.MODEL, self.float_bits * self.flat.layout.numel * num_syncs, num_syncs)
        return traffic

    def _agree_after(self, num_steps: int) -> bool:
        return self.communication_dtype is None and self._round_at(num_steps)[1] == num_steps

    def _round_at(self, step: int) -> Round:
        """Returns the round that a step is in; of steps to come, at the rates of the schedule, or else at today's."""
        group = self.param_groups[0]
        now: Round = group["round"] if step >= self.num_steps else NONE
        while now[1] < step:
            now = self._after(now, group["lr"] if self.schedule is None else self.schedule(now[1] + 1))
        return now

    def _after(self, last: Round, rate: float) -> Round:
        """Returns the round after another one."""
        number, end, rate_before = last
        seldom = 0 if rate > rate_before or rate == 0 else math.floor((self.alpha / rate) ** 2)
        return number + 1, end + max(self.sync_interval, seldom), rate

    def _update(self, step: int) -> None:
        group = self.param_groups[0]
        if step > group["round"][1]:
            group["round"] = self._after(group["round"], group["lr"])
        self.local_step_()
        if step == group["round"][1]:
            self.average_(self.flat.parameters)


class Alone(DistributedOptimizer):
    """Each worker trains on its own data and never sends anything: the floor that any method must beat.

    What comes of a run is the single workers' own models. Their average would be another method, local SGD with one
    average at the end. Cost: 0 bits.
    """

    name = "alone"
    formula = "0"
    no_compression: ClassVar = None
    averages_models = False

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        raise ValueError("alone sends nothing, so it has no ratio; take a method that communicates")

    def _update(self, step: int) -> None:
        self.local_step_()
