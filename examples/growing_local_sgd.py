"""A method of one's own in a file of its own: local SGD whose interval grows from round to round.

    H times:    x_i <- x_i - p_i
    then:       x_i <- mean(x),  and the next round has H + growth steps

Try it by `python -m harness try examples/growing_local_sgd.py`.
Cost: 32 d bits a round, an all-reduce.
"""

from typing import Any, ClassVar

from cser_bench.algorithms.core import (
    Count,
    DistributedOptimizer,
    Layout,
    Purpose,
    Replica,
    Traffic,
)
from cser_bench.algorithms.core.settings import NotNegative


class GrowingLocalSGD(DistributedOptimizer):
    """Args: sync_interval: H, steps of the first round; growth: steps that each next one has more."""

    name = "growing_local_sgd"
    family = "local steps"
    formula = "32 d / H"
    no_compression: ClassVar = {"sync_interval": 1, "growth": 0.0}
    tried_with: ClassVar = {"growth": 0.5}
    keeps_rounding = False

    sync_interval: Count
    growth: NotNegative = 0.125

    # At twice the traffic at first, so that in a few hundred rounds it sends about as much.
    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        return {"sync_interval": max(1, round(0.5 / share))}

    def _end_of(self, rounds: int) -> int:
        """Return the step that this many rounds end with."""
        return int(
            rounds * self.sync_interval + self.growth * rounds * (rounds - 1) / 2
        )

    def _rounds_until(self, step: int) -> int:
        rounds = 0
        while self._end_of(rounds + 1) <= step:
            rounds += 1
        return rounds

    def _agree_after(self, replica: Replica, num_steps: int) -> bool:
        return self._end_of(self._rounds_until(num_steps)) == num_steps

    def _expected_traffic(self, replica: Replica, num_steps: int) -> Traffic:
        rounds = self._rounds_until(num_steps)
        traffic = Traffic()
        traffic.add(
            Purpose.MODEL,
            replica.float_bits * replica.flat.layout.numel * rounds,
            rounds,
        )
        return traffic

    def _update(self, replica: Replica, step: int) -> None:
        replica.local_step_()
        if self._agree_after(replica, step):
            replica.average_in_place_(replica.flat.parameters, Purpose.MODEL)
