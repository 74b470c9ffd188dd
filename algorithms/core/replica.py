"""`Replica`: the parameters of one dtype, a method's state, and the operations of a step."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cser_bench.algorithms.core.collectives import Collectives, StackedCollectives
from cser_bench.algorithms.core.compressors import (
    Compressor,
    Draw,
    Encoded,
    Gathered,
    Identity,
    Scaled,
)
from cser_bench.algorithms.core.exchange import Exchanged, Mixed, Sending
from cser_bench.algorithms.core.facts import MethodFacts
from cser_bench.algorithms.core.finite import FiniteWatch
from cser_bench.algorithms.core.flat import FlatBuffers
from cser_bench.algorithms.core.group_numbers import DEFAULT
from cser_bench.algorithms.core.layout import Windows
from cser_bench.algorithms.core.local_step import local_step_named
from cser_bench.algorithms.core.stages import Stage
from cser_bench.algorithms.core.state import UNSENT, check_state
from cser_bench.algorithms.core.topology import Mixing
from cser_bench.algorithms.core.traffic import Entry, Purpose

DROPPED_UNTIL = "dropped_until"
"""The key of `Replica.dropped_until` in a state; left out where that is 0."""


class Replica:
    """The local workers' copies of the parameters of one dtype, and the operations of a step.

    An optimiser has one for each dtype of its parameters. Vectors have shape (local workers, d): a
    process has one row, stacked workers have all.

    Args:
        method: the optimiser, whose groups and numbers are read when they are needed.
        groups: the parameters of this dtype in each of the optimiser's groups.
        collectives: how the workers communicate.
        seed: seed of the randomness that the workers share.
        communication_dtype: dtype of numbers in messages; None for the parameters' own.
        watch: reports messages that are not finite.
        is_first: whether this dtype has the most numbers. For the other dtypes, a compressor that
            does not fit so few numbers is replaced by Identity; for the first it is an error.
    """

    def __init__(
        self,
        method: MethodFacts,
        groups: Sequence[Sequence[Parameter]],
        collectives: Collectives,
        seed: int,
        communication_dtype: torch.dtype | None,
        watch: FiniteWatch,
        is_first: bool,
    ) -> None:
        self._method = method
        self._is_first = is_first
        self.collectives = collectives
        self.seed = seed
        self.flat = FlatBuffers(groups, isinstance(collectives, StackedCollectives))
        self.dtype = self.flat.parameters.dtype
        # Nothing is rounded then, so nothing is copied either, and no rest is kept.
        if communication_dtype == self.dtype:
            communication_dtype = None
        self.communication_dtype = communication_dtype
        self.float_bits = torch.finfo(communication_dtype or self.dtype).bits
        """Bits of a number in a message, in the closed forms."""
        self.sending = Sending(collectives, communication_dtype, watch)
        self.buffers: dict[str, Tensor] = {}
        """The method's state by name, each of shape (local workers, d)."""
        self.common: dict[str, Tensor] = {}
        """The part of the state that is equal on all workers, by name, of any shape."""
        self.under_way = deque[tuple[int, Callable[[], Exchanged]]]()
        """Messages begun for later steps: the step that began each, and a function that waits."""
        self.dropped_until = 0
        """Messages begun up to this step are dropped when they arrive."""
        self.loaded: Tensor | None = None
        """Parameters from a loaded state, until the next step."""
        self._anchors: list[Tensor] = []
        """Buffers that began as copies of the parameters."""
        # What `fitted` returned, by what it was asked for.
        self._fitted: dict[Compressor, Compressor] = {}
        self.local = local_step_named(method.local_step)(self.flat, self.buffers)
        # Makes them, so that the state is complete before the first step.
        self.local.buffers(method.param_groups)

    # The state.

    def new_buffer(
        self, key: str, like: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return zeros of shape (local workers, d), or a copy of `like`, saved with the state.

        A copy of the parameters is an anchor: `reanchor` sets it to the new parameters.

        Args:
            dtype: of zeros; None for the parameters' own.
        """
        buffer = self.flat.new_buffer(dtype) if like is None else like.clone()
        self.buffers[key] = buffer
        if like is self.flat.parameters:
            self._anchors.append(buffer)
        return buffer

    def new_common(self, key: str, values: Tensor) -> Tensor:
        """Return a copy of `values`, of any shape and equal on all workers, saved with the state."""
        self.common[key] = values.to(self.flat.parameters, copy=True)
        return self.common[key]

    def begin_anew(self) -> None:
        """Set anchors to the parameters, and drop unsent errors and messages under way."""
        # Other buffers, such as momentum, stay.
        for anchor in self._anchors:
            anchor.copy_(self.flat.parameters)
        for key in self.buffers.keys() & set(UNSENT):
            self.buffers[key].zero_()
        # Messages sent up to now are about the old parameters, whenever they arrive.
        self.dropped_until = self._method.num_steps
        self.loaded = None

    @property
    def chosen(self) -> dict[str, Any]:
        """The method's settings, dtype of messages and local step, by name."""
        chosen = {
            **self._method.settings,
            "communication_dtype": self.communication_dtype,
        }
        # Left out for SGD, as in states from before there were other local steps.
        if self._method.local_step != DEFAULT:
            chosen["local_step"] = self._method.local_step
        return chosen

    def state(self) -> dict[str, Any]:
        """Return the state to save for the parameters of this dtype."""
        method = self._method
        state = {
            "method": method.name,
            "num_steps": method.num_steps,
            "seed": self.seed,
            # None where every worker has the same state, which any worker may load.
            "rank": None,
            "world_size": None,
            "settings": described(self.chosen),
        }
        # A worker's own state fits that worker only.
        if not method.state_is_common:
            state["rank"] = self.collectives.rank
            state["world_size"] = self.collectives.world_size
        # Where workers agree, the model's own checkpoint has the parameters.
        if method.workers_differ:
            state["parameters"] = self.flat.parameters
        if self.dropped_until:
            state[DROPPED_UNTIL] = self.dropped_until
        # The tensors themselves, as torch's own states hold them: who saves them copies them.
        return state | self.buffers | self.common | self.local.counts()

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError if a saved state does not fit."""
        declared = self._method.declared.items()
        defaults = {
            key: setting.default for key, setting in declared if not setting.is_required
        }
        may_be_missing = dict.fromkeys(
            ("parameters", *self.local.made_later), tuple(self.flat.parameters.shape)
        )
        check_state(state, self.state(), defaults, may_be_missing)

    def restore(self, state: dict[str, Any]) -> None:
        """Load a saved state that fits."""
        self.seed = state["seed"]
        self.local.restore(state)
        for key, buffer in (self.buffers | self.common).items():
            if key in state:
                buffer.copy_(state[key])
            else:
                # Only a buffer that is made later may be missing: the saved run had none yet.
                buffer.zero_()
        self.dropped_until = state.get(DROPPED_UNTIL, 0)
        if "parameters" in state:
            self.flat.parameters.copy_(state["parameters"])
            # To see at the next step whether a script has replaced them.
            self.loaded = self.flat.parameters.clone()

    # What a worker does alone.

    def local_step_(self, target: Tensor | None = None) -> None:
        """Do x <- x - p, where p is the local optimiser's update; or target <- target + p."""
        self.local.apply_(self._method.param_groups, target)

    def after_local_step(
        self, support: Windows, target: Tensor | None = None
    ) -> Tensor:
        """Predict, to the bit, `support.gather` of x (or of `target`) after `local_step_(target)`."""
        return self.local.after(self._method.param_groups, support, target)

    def draw(self, step: int, purpose: Purpose) -> Draw:
        """Return the draw of this step and purpose, equal on all workers."""
        return Draw(self.seed, step, purpose.value)

    # What workers send.

    def exchange(
        self, vector: Tensor, compressor: Compressor, step: int, purpose: Purpose
    ) -> Exchanged:
        """Send C(vector) to all workers, and return what was sent and its mean; see `Exchanged`."""
        return self.sending.exchange(
            vector,
            self.fitted(compressor),
            self.flat.layout,
            self.draw(step, purpose),
            purpose,
        )

    def mix(
        self,
        vector: Tensor,
        compressor: Compressor,
        mixing: Mixing,
        step: int,
        purpose: Purpose,
    ) -> Mixed:
        """Send C(vector) to neighbours, and return what was sent and their pull; see `Mixed`."""
        return self.sending.mix(
            vector,
            self.fitted(compressor),
            mixing,
            self.flat.layout,
            self.draw(step, purpose),
            purpose,
        )

    def average(self, payload: Tensor, purpose: Purpose) -> tuple[Tensor, Tensor]:
        """Average `payload`; return what was sent of it after rounding, and the mean; see `Sending`."""
        return self.sending.average(payload, purpose)

    def average_in_place_(self, vector: Tensor, purpose: Purpose) -> None:
        """Do vector <- mean(vector): in place, or by a rounded copy for messages of another type."""
        if self.communication_dtype is None:
            self.sending.look_at(vector)
            self.collectives.all_reduce_mean_(vector, purpose)
        else:
            _, mean = self.average(vector, purpose)
            vector.copy_(mean)

    def average_gradients_(self) -> None:
        """Do g <- mean(g), for methods whose workers all take the same step."""
        self.average_in_place_(self.flat.gradients, Purpose.GRADIENT)

    # Compressors, and what their messages cost.

    def fitted(self, compressor: Compressor) -> Compressor:
        """Return the compressor that is used in place of this one.

        Under error feedback an unbiased compressor of variance omega is scaled by 1 / (1 + omega);
        otherwise the error could grow. In dtypes other than the first, a compressor that does not
        fit is replaced by Identity.

        Raises:
            ValueError: it cannot work on this model.
        """
        # Computed once, since every step asks.
        if compressor not in self._fitted:
            self._fitted[compressor] = self._fit(compressor)
        return self._fitted[compressor]

    def _fit(self, compressor: Compressor) -> Compressor:
        layout = self.flat.layout
        try:
            compressor.check(layout)
        except ValueError:
            if self._is_first:
                raise
            # An error here would refuse the whole model because of a dtype of few numbers.
            return Identity()
        # Without feedback nothing accumulates, so an unbiased compressor stays as it is.
        if isinstance(compressor, Gathered) and not self._method.drop_rest:
            omega = compressor.variance(layout)
            if omega:
                return Scaled(compressor, omega)
        return compressor

    def check_compressor(self, setting: str, compressor: object) -> None:
        """Raise ValueError, naming the setting, if a compressor cannot work on this model."""
        where = f"{self._method.name}: {setting}"
        if not isinstance(compressor, Compressor):
            raise ValueError(f"{where}: it must be a compressor, not {compressor!r}")
        if self.communication_dtype is not None and isinstance(compressor, Encoded):
            raise ValueError(
                f"{where}: messages of {compressor.kind} have a format of their own; leave the "
                "communication dtype (a spec's wire) at fp32"
            )
        try:
            self.fitted(compressor)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def cost(self, stage: Stage, steps: range) -> Entry:
        """Return what one worker sends at these steps; on a meta model the mean over draws."""
        layout = stage.layout or self.flat.layout
        # A meta model stands for a plan, whose bits must not depend on a seed.
        draw: Callable[[int], Draw] | None = None
        if not self.flat.parameters.is_meta:
            draw = lambda step: self.draw(step, stage.purpose)  # noqa: E731
        entry = self.fitted(stage.compressor).cost(layout, draw, steps, self.float_bits)
        # Averaged over all workers: one message each.
        if stage.neighbours is None:
            return entry
        bits = entry.bits * stage.neighbours
        # A worker without neighbours takes part in no collective.
        num_collectives = entry.collectives if stage.neighbours else 0
        return Entry(bits, num_collectives, neighbour_bits=bits)


def described(chosen: dict[str, Any]) -> dict[str, str]:
    """Return settings as texts, to compare between workers and with saved states."""
    return {key: repr(value) for key, value in chosen.items()}
