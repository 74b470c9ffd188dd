"""What a method's file is written in: what it says of itself, what follows from that, and the parts
of an update."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import Any, ClassVar, Self, dataclass_transform

import numpy as np
import torch
from torch import Tensor

from cser_bench.algorithms.core.collectives import Collectives, StackedCollectives
from cser_bench.algorithms.core.compressors import (
    FLOAT_BITS,
    Compressor,
    Draw,
    Encoded,
    Gathered,
    Identity,
    Scaled,
    digest_of_draws,
)
from cser_bench.algorithms.core.exchange import Exchanged, Mixed, Sending
from cser_bench.algorithms.core.finite import FiniteWatch
from cser_bench.algorithms.core.flat import FlatBuffers
from cser_bench.algorithms.core.layout import Layout, Windows
from cser_bench.algorithms.core.local_step import AdamW, LocalStep, Muon, Nesterov
from cser_bench.algorithms.core.settings import (
    FROM_1_UP,
    NUMBERS,
    LocalStepName,
    Setting,
    argument,
    fixed,
)
from cser_bench.algorithms.core.stages import EarlyMessage, Stage, early_messages, equalises
from cser_bench.algorithms.core.state import check_state
from cser_bench.algorithms.core.topology import Mixing
from cser_bench.algorithms.core.traffic import Entry, Purpose, Traffic


@dataclass_transform(kw_only_default=True, field_specifiers=(fixed, argument))
class Method:
    """The half of a `DistributedOptimizer` that a method uses or overrides; the other half is what
    scripts call."""

    name: ClassVar[str]
    """What a spec calls the method."""
    averages_models: ClassVar[bool] = True
    """Whether the method's result is the workers' average; if not, it is each worker's own
    model."""
    averages_in_backward: ClassVar[bool] = False
    """Whether gradients are averaged already when a step begins."""
    workers_differ: ClassVar[bool] = True
    """Whether workers' parameters may differ after a step; then each worker's state holds its
    own."""
    state_is_common: ClassVar[bool] = False
    """Whether all workers' states are one and the same, and fit any number of workers."""
    without_momentum: ClassVar[str | None] = None
    """What the method is called without momentum, where that is another one: then the momentum must
    not be 0."""
    sgd_alone: ClassVar[str | None] = None
    """Why the method has no local step but SGD's, as the end of a sentence; None where it has
    others."""
    keeps_rounding: ClassVar[bool] = True
    """Whether what rounding takes from messages of 16 bits is sent later; if not, it is lost."""
    needs_contiguous: ClassVar[bool] = False
    """Whether parameters must be contiguous; if not, images may lie channels last."""
    nesterov: ClassVar[bool] = True
    """Whether the momentum is Nesterov's; if not, it is the heavy ball's with dampening, v <- beta
    v + (1 - beta) g."""
    traffic_follows_rate: ClassVar[bool] = False
    """Whether what is sent depends on the learning rate."""
    caution: str | None = None
    """What will go wrong with settings that are allowed, in a sentence: a warning, and a line of a
    plan."""
    rounds: tuple[Mixing, ...] = ()
    """The mixings of steps 1, 2, ..., after which they begin anew, where a setting is a
    topology."""
    schedule: Callable[[int], float] | None = None
    """The first group's learning rate at each step, counted from 1, where it is known
    beforehand."""

    no_compression: ClassVar[Mapping[str, Any] | None]
    """Settings of its own with which the method is SGD on the mean gradient; None where no settings
    make it that."""
    tried_with: ClassVar[Mapping[str, Any]] = {}
    """Settings that tests try the method with beside compressors and intervals, where
    `no_compression` has others."""
    formula: ClassVar[str]
    """Payload bits of one worker per step, in words of d and the settings."""
    declared: ClassVar[Mapping[str, Setting]] = {}
    """The settings of its own, which the class annotates, by name."""

    collectives: Collectives
    local_step: LocalStepName
    param_groups: list[dict[str, Any]]
    num_steps: int
    seed: int
    skip_nonfinite: bool
    _siblings: list[Self]
    """Where parameters have several types, the optimisers alike for each type but the first."""
    _sibling_type: torch.dtype | None = None
    """The type of a sibling's parameters."""
    _given: dict[str, Any]

    def _lay_out(self, dtype: torch.dtype, communication_dtype: torch.dtype | None) -> None:
        """Moves the parameters of this type into a flat vector, and makes the local step's
        state."""
        of_type = [
            [each for each in group["params"] if each.dtype == dtype] for group in self.param_groups
        ]
        self.flat = FlatBuffers(of_type, isinstance(self.collectives, StackedCollectives))
        self.communication_dtype = None if communication_dtype == dtype else communication_dtype
        """The type of numbers in messages, None for the parameters' own."""
        self.watch = FiniteWatch(self.name, self.collectives)
        self.sending = Sending(self.collectives, self.communication_dtype, self.watch)
        self._buffers: dict[str, Tensor] = {}
        """The state, of shape (local workers, d), by name."""
        self._common: dict[str, Tensor] = {}
        """What all workers have in common of it, of any shape."""
        self._anchors: list[Tensor] = []
        """Those of the buffers that began as the parameters."""
        self._loaded: Tensor | None = None
        """Parameters that a state put there, until the next step."""
        rules: dict[str, type[LocalStep]] = {"sgd": Nesterov, "adamw": AdamW, "muon": Muon}
        self.local = rules[self.local_step](self.flat, self._buffers)
        self.local.buffers(self.param_groups)

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings, as they were given or by default."""
        return {
            key: self._given.get(key, setting.default) for key, setting in self.declared.items()
        }

    @property
    def _of_each_type(self) -> list[Self]:
        """Itself and its siblings, at this step, with these groups."""
        for each in self._siblings:
            each.param_groups, each.num_steps, each.schedule = (
                self.param_groups,
                self.num_steps,
                self.schedule,
            )
        return [self, *self._siblings]

    @property
    def num_parameters(self) -> int:
        """d, over all types."""
        return sum(each.flat.layout.numel for each in self._of_each_type)

    def _compared(self) -> dict[str, str]:
        """Returns what workers and saved states must have in common, in words."""
        return {key: repr(value) for key, value in self._chosen.items()}

    def _to_agree_on(self) -> dict[str, object]:
        """Returns what workers must have in common beside settings: what is trained, and with which
        numbers."""
        tensors, own, numbers = (
            self.flat.layout.tensors,
            self.flat.parameters,
            NUMBERS[self.local_step],
        )
        kind = f"{str(own.dtype).removeprefix('torch.')} on {own.device.type}"
        shapes = "; ".join(f"{each.shape} strides {each.strides}" for each in tensors)
        plain = [
            [np.asarray(group[key], float).tolist() for key in numbers]
            for group in self.param_groups
        ]
        return {
            "method": self.name,
            "seed": self.seed,
            "parameters": f"{self.flat.layout.numel:,} in {len(tensors)} tensors, {kind}: {shapes}",
            f"{', '.join(numbers)} of each group": plain,
            "frozen parameters": self.flat.frozen,
            "overlap": self.collectives.early is not None,
            "skip_nonfinite": self.skip_nonfinite,
            "what numpy draws from one seed": digest_of_draws(),
        }

    @property
    def _chosen(self) -> dict[str, Any]:
        stepping = {} if self.local_step == "sgd" else {"local_step": self.local_step}
        return {**self.settings, "communication_dtype": self.communication_dtype, **stepping}

    def __repr__(self) -> str:
        """Returns the method, its settings, the groups' numbers, d, the overall ratio and the
        worker, in one line."""
        own, ratio = self._chosen, self.overall_ratio()
        if self.communication_dtype is None:
            del own["communication_dtype"]
        first, *others = [
            {key: group[key] for key in NUMBERS[self.local_step]} for group in self.param_groups
        ]
        given = ", ".join(f"{key}={value!r}" for key, value in (own | first).items())
        given += "".join(f", group {number}: {each}" for number, each in enumerate(others, 1))
        sent = "nothing is sent" if ratio == math.inf else f"overall ratio {ratio:,.4g}"
        worker = f"worker {self.collectives.rank} of {self.collectives.world_size}"
        return f"{type(self).__name__}({given}; d = {self.num_parameters:,}, {sent}, {worker})"

    # What is sent.

    def stages(self) -> Sequence[Stage]:
        """Returns what a step sends, in order; nothing by default.

        From them follow the closed form, what can be sent early and, where messages are averages
        over all workers, when these agree. A method of which that is not all says the rest itself:
        it has its own `_expected_traffic`, `early_messages` or `_agree_after`.
        """
        return ()

    def expected_traffic(self, num_steps: int) -> Traffic:
        """Returns what one worker sends in the first `num_steps` steps, in closed form."""
        return sum((each._expected_traffic(num_steps) for each in self._of_each_type), Traffic())

    def _expected_traffic(self, num_steps: int) -> Traffic:
        """Does what `expected_traffic` says, for the parameters of one type."""
        traffic = Traffic()
        for stage in self.stages():
            traffic.add_entry(stage.purpose, self.cost(stage, stage.steps(num_steps)))
            if (
                stage.except_every is not None
            ):  # taken off again, so that mean costs are rounded once for each
                out = self.cost(stage, range(stage.except_every, num_steps + 1, stage.except_every))
                traffic.add(stage.purpose, *(-each for each in astuple(out)))
        return traffic

    def early_messages(self, step: int) -> list[EarlyMessage]:
        """Returns the messages of step number `step` that need some tensors' gradients only, so may
        be sent early."""
        return early_messages(self.stages(), step, self.flat, self.draw, self.float_bits)

    def agree_after(self, num_steps: int) -> bool:
        """Returns whether after that many steps all workers hold the same parameters, up to
        rounding in a sum.

        Where they do not, one full exchange must follow before anyone can use the average. False
        where it depends on what was drawn or trained; where messages are rounded, as each worker
        keeps what rounding took; and by default among neighbours.
        """
        alone = self.collectives.world_size == 1 and any(
            stage.neighbours is not None for stage in self.stages()
        )
        if num_steps == 0 or not self.workers_differ or alone:
            return True
        return all(each._agree_after(num_steps) for each in self._of_each_type)

    def _agree_after(self, num_steps: int) -> bool:
        """Does what `agree_after` says, for the parameters of one type and one step or more."""
        return self.communication_dtype is None and any(
            equalises(stage, num_steps, self.flat.layout, self.draw) for stage in self.stages()
        )

    @property
    def float_bits(self) -> int:
        """Bits of a number in a message, in the closed forms."""
        return torch.finfo(self.communication_dtype or self.flat.parameters.dtype).bits

    def cost(self, stage: Stage, steps: range) -> Entry:
        """Returns what one worker sends at these steps; on a meta model, for plans, the mean over
        draws of it."""
        layout, compressor = stage.layout or self.flat.layout, stage.compressor
        draw = None if self.flat.parameters.is_meta else lambda step: self.draw(step, stage.purpose)
        entry = compressor.cost(layout, draw, steps, self.float_bits)
        if stage.neighbours is None:
            return entry
        bits = entry.bits * stage.neighbours
        return Entry(bits, entry.collectives if stage.neighbours else 0, neighbour_bits=bits)

    def draw(self, step: int, purpose: Purpose) -> Draw:
        """Returns the randomness of this step and purpose, which all workers share."""
        return Draw(self.seed, step, purpose.value)

    @property
    def feeds_back(self) -> bool:
        """Whether what compressors leave out is sent later."""
        return True

    def checked(self, setting: str, compressor: Compressor) -> Compressor:
        """Returns the compressor to use for a setting: scaled where what it leaves out is fed back
        and would else grow.

        Raises:
            ValueError: it cannot work on this model, or with these messages; the message names the
                setting.
        """
        where, layout = f"{self.name}: {setting}", self.flat.layout
        if not isinstance(compressor, Compressor):
            raise ValueError(f"{where}: it must be a compressor, not {compressor!r}")
        if self.communication_dtype is not None and isinstance(compressor, Encoded):
            raise ValueError(
                f"{where}: messages of {compressor.kind} have a format of their own; leave the "
                "communication dtype (a spec's wire) at fp32"
            )
        try:
            compressor.check(layout)
        except ValueError as error:
            if self._sibling_type is not None:  # too few numbers of this type: all are sent
                return Identity()
            raise ValueError(f"{where}: {error}") from None
        if (
            self.feeds_back
            and isinstance(compressor, Gathered)
            and (omega := compressor.variance(layout))
        ):
            return Scaled(compressor, omega)
        return compressor

    # Ratios.

    @classmethod
    def at_ratio(cls, ratio: int, params: Iterable[Tensor] | None = None) -> dict[str, Any]:
        """Returns settings of its own, for the constructor, at which SGD sends `ratio` times as
        much in the long run.

        Args:
            params: the model's parameters; needed where what is sent depends on their shapes.

        Raises:
            ValueError: no settings reach that ratio.
        """
        FROM_1_UP.check(f"{cls.name}: ratio", ratio)
        return cls._at_ratio(ratio, None if params is None else Layout.of(params))

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        """Does what `at_ratio` says, for a ratio from 1 up, which is the interval if nothing else
        must be given."""
        if [key for key, each in cls.declared.items() if each.is_required] == ["sync_interval"]:
            return {"sync_interval": ratio}
        raise ValueError(
            f"{cls.name} does not say how it reaches a ratio; give its settings themselves"
        )

    def overall_ratio(self) -> float:
        """Returns how many times as much SGD sends in the long run (32 d bits a step); infinite for
        nothing."""
        intervals = math.prod(
            value for value in self.settings.values() if type(value) is int and value
        )
        num_steps = intervals * math.ceil(
            100 / intervals
        )  # whole intervals; where draws differ, about their mean
        sent = [self.expected_traffic(steps).training_bits for steps in (num_steps, 2 * num_steps)]
        bits = sent[1] - sent[0]  # without what is sent but once, at the start
        return FLOAT_BITS * self.num_parameters * num_steps / bits if bits else math.inf

    # What an update is written in.

    def new_buffer(self, key: str, like: Tensor | None = None) -> Tensor:
        """Returns zeros of shape (local workers, d), or a copy of `like`, that belong to the state.

        A copy of the parameters is an anchor: it becomes other parameters where these begin anew,
        as in `reanchor`.
        """
        buffer = self._buffers[key] = self.flat.new_buffer() if like is None else like.clone()
        if like is self.flat.parameters:
            self._anchors.append(buffer)
        return buffer

    def new_common(self, key: str, values: Tensor) -> Tensor:
        """Returns a copy of `values`, of any shape and the same on all workers, that belongs to the
        state."""
        common = self._common[key] = values.to(self.flat.parameters, copy=True)
        return common

    def local_step_(self, target: Tensor | None = None) -> None:
        """x <- x - p, p being what the local optimiser would subtract; or target <- target + p."""
        self.local.apply_(self.param_groups, target)

    def after_local_step(self, support: Windows, target: Tensor | None = None) -> Tensor:
        """Returns `support.gather` of x or the target as `local_step_(target)` will leave it, to
        the bit."""
        return self.local.after(self.param_groups, support, target)

    def average_gradients_(self) -> None:
        """g <- mean(g), for methods whose workers all take the same step."""
        self.average_in_place_(self.flat.gradients, Purpose.GRADIENT)

    def exchange(
        self, vector: Tensor, compressor: Compressor, step: int, purpose: Purpose
    ) -> Exchanged:
        """Sends C(vector) and averages it; see `Sending`."""
        return self.sending.exchange(
            vector, compressor, self.flat.layout, self.draw(step, purpose), purpose
        )

    def mixing(self, step: int) -> Mixing:
        """Returns who mixes with whom at a step, by the topology."""
        return self.rounds[(step - 1) % len(self.rounds)]

    def mix(
        self, vector: Tensor, compressor: Compressor, mixing: Mixing, step: int, purpose: Purpose
    ) -> Mixed:
        """Sends C(vector) to neighbours and mixes what these send; see `Sending`."""
        return self.sending.mix(
            vector, compressor, mixing, self.flat.layout, self.draw(step, purpose), purpose
        )

    def average(self, payload: Tensor, purpose: Purpose) -> tuple[Tensor, Tensor]:
        """Returns what of `payload` was sent, and its mean over workers; see `Sending`."""
        return self.sending.average(payload, purpose)

    def average_in_place_(self, vector: Tensor, purpose: Purpose) -> None:
        """vector <- mean(vector), rounded if messages have another type; without a copy if they
        have not."""
        if self.communication_dtype is None:
            self.sending.look_at(vector)
            self.collectives.all_reduce_mean_(vector, purpose)
        else:
            vector.copy_(self.average(vector, purpose)[1])

    def _drop_under_way(self) -> None:
        """Waits for messages that were sent for later steps, which are counted, and sees to it that
        none arrives."""

    # What is saved of it, for the parameters of one type.

    def _flat_state(self) -> dict[str, Any]:
        return {
            "method": self.name,
            "num_steps": self.num_steps,
            "seed": self.seed,
            "rank": None if self.state_is_common else self.collectives.rank,
            "world_size": None if self.state_is_common else self.collectives.world_size,
            "settings": self._compared(),
            **({"parameters": self.flat.parameters} if self.workers_differ else {}),
            **self._buffers,
            **self._common,
            **self.local.counts(),
        }

    def _check_state(self, state: dict[str, Any]) -> None:
        """Raises ValueError where a flat state does not fit."""
        defaults = {
            key: each.default for key, each in self.declared.items() if not each.is_required
        }
        check_state(state, self._flat_state(), defaults, tuple(self.flat.parameters.shape))

    def _restore(self, state: dict[str, Any]) -> None:
        """Goes on from a flat state that fits."""
        self.seed = state["seed"]
        self.local.restore(state)
        if "momentum" in state and "momentum" not in self._buffers:
            self.new_buffer("momentum")
        for key, buffer in (self._buffers | self._common).items():
            buffer.zero_() if key not in state else buffer.copy_(state[key])
        if "parameters" in state:
            self.flat.parameters.copy_(state["parameters"])
            self._loaded = self.flat.parameters.clone()
