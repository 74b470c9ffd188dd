"""`Method`: what a method does in a step, and what it will send, in advance.

What its class declares is in `core.facts`; who calls its operations is `core.optimizer`.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, dataclass_transform

from torch import Tensor

from cser_bench.algorithms.core.by_traffic import (
    advice_for,
    nearest_count,
    share_of,
    warn_of_dear_messages,
)
from cser_bench.algorithms.core.facts import MethodFacts
from cser_bench.algorithms.core.layout import Layout
from cser_bench.algorithms.core.plan_ahead import (
    any_equalises,
    long_run,
    overall_ratio,
    talks_to_neighbours,
    traffic_of_stages,
)
from cser_bench.algorithms.core.replica import Replica
from cser_bench.algorithms.core.replicas import numel_of
from cser_bench.algorithms.core.settings import FROM_0_TO_1, FROM_2_UP, argument, fixed
from cser_bench.algorithms.core.stages import EarlyMessage, Stage, early_messages
from cser_bench.algorithms.core.traffic import Traffic


# So that type checkers know the constructors, which are made of the classes' annotations.
@dataclass_transform(kw_only_default=True, field_specifiers=(fixed, argument))
class Method(MethodFacts):
    """A method: the update of a step, what it sends, and the buffers that it keeps.

    `_update` is all that a method must have. `_set_up` makes its buffers. `stages` says what a step
    sends, and from it follow the closed form, what overlap may send early and when workers agree.
    """

    replicas: list[Replica]
    """A replica for each dtype of the parameters, the dtype of most numbers first."""

    # What a class overrides, asked for the parameters of one dtype at a time.

    def _set_up(self, replica: Replica) -> None:
        """Make the method's buffers; raise ValueError for settings that do not work.

        The settings are attributes already. Settings that are allowed but will go wrong are no
        error: set `caution` to a sentence about them.
        """

    @abstractmethod
    def _update(self, replica: Replica, step: int) -> None:
        """Do step number `step`, counted from 1, on `replica.flat.parameters`.

        Gradients are in `replica.flat.gradients`. Both are of shape (local workers, d).
        """

    def stages(self, replica: Replica) -> Sequence[Stage]:
        """Return what a step sends, in order; nothing by default.

        From them follow the closed form, what can be sent early and, where messages are averages
        over all workers, when these agree. A method of which that is not all says the rest itself:
        it has its own `_expected_traffic`, `early_messages` or `_agree_after`.
        """
        return ()

    def _settle(self, replica: Replica) -> None:
        """Wait for messages sent for later steps, and keep their content in the state."""

    def _expected_traffic(self, replica: Replica, num_steps: int) -> Traffic:
        """Return `expected_traffic` of the parameters of one dtype."""
        return traffic_of_stages(replica, self.stages(replica), num_steps)

    def _agree_after(self, replica: Replica, num_steps: int) -> bool:
        """Return `agree_after` of the parameters of one dtype, for one step or more."""
        return any_equalises(replica, self.stages(replica), num_steps)

    @classmethod
    def _at_traffic(
        cls, share: float, world_size: int, layout: Layout | None
    ) -> dict[str, Any]:
        """Do what `at_traffic` says, for a share in (0, 1] and two workers or more.

        By default only methods whose one required setting is `sync_interval` have an answer.
        """
        required = [key for key, setting in cls.declared.items() if setting.is_required]
        # 32 d bits every `sync_interval` steps are 1 / sync_interval of DDP's traffic.
        if required == ["sync_interval"]:
            return {"sync_interval": nearest_count(cls.name, 1.0, share)}
        raise ValueError(
            f"{cls.name} does not choose its settings by traffic; {advice_for(cls)}, and ask "
            "traffic_share(world_size) what links then carry"
        )

    # What follows from that in advance, for the parameters of all dtypes.

    def expected_traffic(self, num_steps: int) -> Traffic:
        """Return what one worker sends in the first `num_steps` steps, in closed form."""
        total = Traffic()
        for replica in self.replicas:
            total += self._expected_traffic(replica, num_steps)
        return total

    def early_messages(self, step: int) -> list[EarlyMessage]:
        """Return the messages of step number `step` that may be sent during the backward pass.

        They need the gradients of some tensors only.
        """
        # Only the dtype of most numbers overlaps; see `replica_of`.
        first = self.replicas[0]
        return early_messages(
            self.stages(first), step, first.flat, first.draw, first.float_bits
        )

    def agree_after(self, num_steps: int) -> bool:
        """Return whether all workers hold the same parameters then, up to rounding in a sum.

        Where they do not, one full exchange must follow before anyone can use the average. False
        where it depends on what was drawn or trained; where messages are rounded, as each worker
        keeps what rounding took; and by default among neighbours.
        """
        # All start from worker 0's parameters.
        if num_steps == 0 or not self.workers_differ:
            return True
        stages = self.stages(self.replicas[0])
        if talks_to_neighbours(stages) and self.collectives.world_size == 1:
            return True
        return all(self._agree_after(replica, num_steps) for replica in self.replicas)

    @classmethod
    def at_traffic(
        cls, share: float, *, world_size: int, params: Iterable[Tensor] | None = None
    ) -> dict[str, Any]:
        """Return settings at which links carry this share of DDP's traffic (an all-reduce in fp32).

        They are for the constructor, as in `EFSGD(params, lr=0.1, **EFSGD.at_traffic(1 / 24,
        world_size=8))`. Each class says which form they have. Integers among them, such as an
        interval, are the nearest by factor; `traffic_share(world_size)` of the optimiser says what
        links carry then. A share above 1/2, which DDP has with its fp16 hook, is warned of.

        Args:
            share: above 0 and up to 1.
            world_size: the number of workers, from 2 up.
            params: the model's parameters; needed where what is sent depends on their shapes.

        Raises:
            ValueError: no settings come near that share, or the method does not choose them by it.
        """
        share = FROM_0_TO_1.checked(f"{cls.name}: share", share)
        world_size = FROM_2_UP.checked(f"{cls.name}: world_size", world_size)
        layout = None if params is None else Layout.of(params)
        settings = cls._at_traffic(share, world_size, layout)
        warn_of_dear_messages(cls.name, share, world_size)
        return settings

    def overall_ratio(self) -> float:
        """Return SGD's bits (32 d a step) over this method's in the long run.

        It is infinite where nothing is sent. It is the ratio of messages, whatever the number of
        workers; `traffic_share` is that of what links carry.
        """
        sent, num_steps = long_run(self.settings, self.expected_traffic)
        return overall_ratio(sent, num_steps, numel_of(self.replicas))

    def traffic_share(self, world_size: int | None = None) -> float:
        """Return what a worker's link carries in the long run, as a share of DDP's in fp32.

        DDP's is an all-reduce of 32 d bits a step. Messages that are all-gathered, as top-k's are,
        take a larger share the more workers there are; those that are all-reduced do not.

        Args:
            world_size: the number of workers, from 2 up; by default as many as there are.

        Raises:
            ValueError: it is no such number, or workers talk to neighbours, and it is not the
                number of those that there are.
        """
        if world_size is None:
            world_size = self.collectives.world_size
        world_size = FROM_2_UP.checked(f"{self.name}: world_size", world_size)
        stages = [stage for replica in self.replicas for stage in self.stages(replica)]
        # A ring of two has one neighbour, and "exponential" has more with more workers.
        if talks_to_neighbours(stages) and world_size != self.collectives.world_size:
            raise ValueError(
                f"{self.name}: how many neighbours a worker has depends on the number of workers, "
                f"and here are {self.collectives.world_size}; ask where there are {world_size}"
            )
        sent, num_steps = long_run(self.settings, self.expected_traffic)
        return share_of(sent, world_size, numel_of(self.replicas), num_steps)
