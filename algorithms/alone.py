"""No communication: each worker trains alone, the reference that any method must beat.

Source: textbook.

    x_i <- x_i - p_i

What comes of a run is the single workers' own models. Their average would be another method, local
SGD with one average at the end.
Momentum, or AdamW's moments, are local: each worker's own, and never averaged.
Cost: 0 bits.
State: the momentum or the moments.
"""

from typing import Any, ClassVar

from cser_bench.algorithms.core import DistributedOptimizer, Layout, Replica


class Alone(DistributedOptimizer):
    """A worker that sends nothing: the floor that any method must beat.

    Begin with it as it is: it has no settings of its own.
    """

    name = "alone"
    family = "bounds"
    formula = "0"
    no_compression: ClassVar = None
    averages_models = False

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        raise ValueError(
            "alone sends nothing, whatever is asked for; take a method that communicates"
        )

    def _update(self, replica: Replica, step: int) -> None:
        replica.local_step_()
