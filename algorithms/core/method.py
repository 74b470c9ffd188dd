"""What a method's file is written in: what it says of itself, what follows from that, and the parts of an update."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self, dataclass_transform

import torch
from torch import Tensor

from algorithms.core.collectives import Collectives
from algorithms.core.compressors import FLOAT_BITS, Compressor, Draw, checked
from algorithms.core.exchange import Exchanged, Mixed, Sending
from algorithms.core.flat import FlatBuffers, GroupsOfOneType
from algorithms.core.layout import Layout, Windows
from algorithms.core.local_step import LocalStep
from algorithms.core.settings import (
    FROM_1_UP,
    NUMBERS,
    LocalStepName,
    Setting,
    argument,
    check_arguments,
    fixed,
)
from algorithms.core.stages import EarlyMessage, Stage, early_messages, equalises, traffic_of
from algorithms.core.state import check_state
from algorithms.core.topology import Mixing, Topology
from algorithms.core.traffic import Entry, Purpose, Traffic


@dataclass_transform(kw_only_default=True, field_specifiers=(fixed, argument))
class Method:
    """The half of a `DistributedOptimizer` that a method uses or overrides; the other half is what scripts call."""

    name: ClassVar[str]
    """What a spec calls the method."""
    averages_models: ClassVar[bool] = True
    """Whether the method's result is the workers' average; if not, it is each worker's own model."""
    averages_in_backward: ClassVar[bool] = False
    """Whether gradients are averaged already when a step begins."""
    workers_differ: ClassVar[bool] = True
    """Whether workers' parameters may differ after a step; then each worker's state holds its own."""
    state_is_common: ClassVar[bool] = False
    """Whether all workers' states are one and the same, and fit any number of workers."""
    without_momentum: ClassVar[str | None] = None
    """What the method is called without momentum, where that is another one: then the momentum must not be 0."""
    sgd_alone: ClassVar[str | None] = None
    """Why the method has no local step but SGD's, as the end of a sentence; None where it has others."""
    keeps_rounding: ClassVar[bool] = True
    """Whether what rounding takes from messages of 16 bits is sent later; if not, it is lost."""
    needs_contiguous: ClassVar[bool] = False
    """Whether parameters must be contiguous; if not, images may lie channels last."""
    nesterov: ClassVar[bool] = True
    """Whether the momentum is Nesterov's; if not, it is the heavy ball's with dampening, v <- beta v + (1 - beta) g."""
    traffic_follows_rate: ClassVar[bool] = False
    """Whether what is sent depends on the learning rate."""
    network: Topology | None = None
    """Who mixes with whom, where workers talk to their neighbours alone."""
    schedule: Callable[[int], float] | None = None
    """The first group's learning rate at each step, counted from 1, where it is known beforehand."""

    no_compression: ClassVar[Mapping[str, Any] | None]
    """Settings of its own with which the method is SGD on the mean gradient; None where no settings make it that."""
    tried_with: ClassVar[Mapping[str, Any]] = {}
    """Settings that tests try the method with beside compressors and intervals, where `no_compression` has others."""
    formula: ClassVar[str]
    """Payload bits of one worker per step, in words of d and the settings."""
    declared: ClassVar[Mapping[str, Setting]] = {}
    """The settings of its own, which the class annotates, by name."""

    collectives: Collectives
    communication_dtype: torch.dtype | None
    """The type of numbers in messages, None for the parameters' own."""
    flat: FlatBuffers
    local: LocalStep
    local_step: LocalStepName
    param_groups: list[dict[str, Any]]
    num_steps: int
    seed: int
    _siblings: list[Self]
    """Where parameters have several types, the optimisers alike for each type but the first."""
    _given: dict[str, Any]
    _buffers: dict[str, Tensor]
    """The state, of shape (local workers, d), by name."""
    _common: dict[str, Tensor]
    """What all workers have in common of it, of any shape."""
    _anchors: list[Tensor]
    """Those of the buffers that began as the parameters."""
    _loaded: Tensor | None
    """Parameters that a state put there, until the next step."""

    def __new__(cls, *args: Any, **given: Any) -> Self:
        check_arguments(cls, given)
        self = super().__new__(cls)
        self._given = given
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings, as they were given or by default."""
        return {key: self._given.get(key, setting.default) for key, setting in self.declared.items()}

    @property
    def _of_each_type(self) -> list[Self]:
        """Itself and its siblings, at this step, with these groups."""
        for each in self._siblings:
            each.param_groups, each.num_steps, each.schedule = self.param_groups, self.num_steps, self.schedule
        return [self, *self._siblings]

    @property
    def _is_sibling(self) -> bool:
        return isinstance(self._given.get("params"), GroupsOfOneType)

    @property
    def num_parameters(self) -> int:
        """d, over all types."""
        return sum(each.flat.layout.numel for each in self._of_each_type)

    def _compared(self) -> dict[str, str]:
        """Returns what workers and saved states must have in common, in words."""
        stepping = {} if self.local_step == "sgd" else {"local_step": self.local_step}
        compared = {**self.settings, "communication_dtype": self.communication_dtype, **stepping}
        return {key: repr(value) for key, value in compared.items()}

    def __repr__(self) -> str:
        """Returns the method, its settings, the groups' numbers, d, the overall ratio and the worker, in one line."""
        own, ratio = dict(self.settings), self.overall_ratio()
        own |= {} if self.communication_dtype is None else {"communication_dtype": self.communication_dtype}
        own |= {} if self.local_step == "sgd" else {"local_step": self.local_step}
        first, *others = [{key: group[key] for key in NUMBERS[self.local_step]} for group in self.param_groups]
        given = ", ".join(f"{key}={value!r}" for key, value in (own | first).items())
        given += "".join(f", group {number}: {each}" for number, each in enumerate(others, 1))
        sent = "nothing is sent" if ratio == math.inf else f"overall ratio {ratio:,.4g}"
        worker = f"worker {self.collectives.rank} of {self.collectives.world_size}"
        return f"{type(self).__name__}({given}; d = {self.num_parameters:,}, {sent}, {worker})"

    # What is sent.

    def stages(self) -> Sequence[Stage]:
        """Returns what a step sends, in order; nothing by default.

        From them follow the closed form, what can be sent early and, where messages are averages over all workers,
        when these agree. A method of which that is not all says the rest itself: it has its own `_expected_traffic`,
        `early_messages` or `_agree_after`.
        """
        return ()

    def expected_traffic(self, num_steps: int) -> Traffic:
        """Returns what one worker sends in the first `num_steps` steps, in closed form."""
        return sum((each._expected_traffic(num_steps) for each in self._of_each_type), Traffic())

    def _expected_traffic(self, num_steps: int) -> Traffic:
        """Does what `expected_traffic` says, for the parameters of one type."""
        return traffic_of(self.stages(), num_steps, self.cost)

    def early_messages(self, step: int) -> list[EarlyMessage]:
        """Returns the messages of step number `step` that need some tensors' gradients only, so may be sent early."""
        return early_messages(self.stages(), step, self.flat, self.draw, self.float_bits)

    def agree_after(self, num_steps: int) -> bool:
        """Returns whether after that many steps all workers hold the same parameters, up to rounding in a sum.

        Where they do not, one full exchange must follow before anyone can use the average. False where it depends on
        what was drawn or trained; where messages are rounded, as each worker keeps what rounding took; and by default
        among neighbours.
        """
        if num_steps == 0 or not self.workers_differ:
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
        """Returns what one worker sends at these steps; on a meta model, for plans, the mean over draws of it."""
        layout, compressor = stage.layout or self.flat.layout, stage.compressor
        if self.flat.parameters.is_meta:
            entry = compressor.mean_cost(layout, len(steps), self.float_bits)
        else:
            entry = compressor.cost(layout, lambda step: self.draw(step, stage.purpose), steps, self.float_bits)
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
        """Returns the compressor to use for a setting: scaled where what it leaves out is fed back and would else grow.

        Raises:
            ValueError: it cannot work on this model, or with these messages; the message names the setting.
        """
        try:
            return checked(compressor, self.flat.layout, self.communication_dtype, self.feeds_back, self._is_sibling)
        except ValueError as error:
            raise ValueError(f"{self.name}: {setting}: {error}") from None

    # Ratios.

    @classmethod
    def at_ratio(cls, ratio: int, params: Iterable[Tensor] | None = None) -> dict[str, Any]:
        """Returns settings of its own, for the constructor, at which SGD sends `ratio` times as much in the long run.

        Args:
            params: the model's parameters; needed where what is sent depends on their shapes.

        Raises:
            ValueError: no settings reach that ratio.
        """
        FROM_1_UP.check(f"{cls.name}: ratio", ratio)
        return cls._at_ratio(ratio, None if params is None else Layout.of(params))

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        """Does what `at_ratio` says, for a ratio from 1 up."""
        raise ValueError(f"{cls.name} does not say how it reaches a ratio; give its settings themselves")

    def overall_ratio(self) -> float:
        """Returns how many times as much SGD sends in the long run (32 d bits a step); infinite for nothing."""
        intervals = math.prod(value for value in self.settings.values() if type(value) is int and value)
        num_steps = intervals * math.ceil(100 / intervals)  # whole intervals; where draws differ, about their mean
        sent = [self.expected_traffic(steps).training_bits for steps in (num_steps, 2 * num_steps)]
        bits = sent[1] - sent[0]  # without what is sent but once, at the start
        return FLOAT_BITS * self.num_parameters * num_steps / bits if bits else math.inf

    # What an update is written in.

    def new_buffer(self, key: str, like: Tensor | None = None) -> Tensor:
        """Returns zeros of shape (local workers, d), or a copy of `like`, that belong to the state.

        A copy of the parameters is an anchor: it becomes other parameters where these begin anew, as in `reanchor`.
        """
        buffer = self._buffers[key] = self.flat.new_buffer() if like is None else like.clone()
        if like is self.flat.parameters:
            self._anchors.append(buffer)
        return buffer

    def new_common(self, key: str, values: Tensor) -> Tensor:
        """Returns a copy of `values`, of any shape and the same on all workers, that belongs to the state."""
        common = self._common[key] = values.to(self.flat.parameters, copy=True)
        return common

    def local_step_(self, target: Tensor | None = None, sign: int = -1) -> None:
        """target <- target + sign p, p being what the local optimiser would subtract; the target is x by default."""
        self.local.apply_(self.param_groups, target, sign)

    def after_local_step(self, support: Windows, target: Tensor | None = None, sign: int = -1) -> Tensor:
        """Returns `support.gather(target)` as `local_step_(target, sign)` will leave it, to the bit."""
        return self.local.after(self.param_groups, support, target, sign)

    def average_gradients_(self) -> None:
        """g <- mean(g), for methods whose workers all take the same step."""
        self.average_in_place_(self.flat.gradients, Purpose.GRADIENT)

    def exchange(self, vector: Tensor, compressor: Compressor, step: int, purpose: Purpose) -> Exchanged:
        """Sends C(vector) and averages it; see `Sending`."""
        return self.sending.exchange(vector, compressor, self.flat.layout, self.draw(step, purpose), purpose)

    def mix(self, vector: Tensor, compressor: Compressor, mixing: Mixing, step: int, purpose: Purpose) -> Mixed:
        """Sends C(vector) to neighbours and mixes what these send; see `Sending`."""
        return self.sending.mix(vector, compressor, mixing, self.flat.layout, self.draw(step, purpose), purpose)

    def average(self, payload: Tensor, purpose: Purpose) -> tuple[Tensor, Tensor]:
        """Returns what of `payload` was sent, and its mean over workers; see `Sending`."""
        return self.sending.average(payload, purpose)

    def average_in_place_(self, vector: Tensor, purpose: Purpose) -> None:
        """vector <- mean(vector), rounded if messages have another type; without a copy if they have not."""
        if self.communication_dtype is None:
            self.collectives.all_reduce_mean_(vector, purpose)
        else:
            vector.copy_(self.average(vector, purpose)[1])

    @property
    def sending(self) -> Sending:
        """How vectors are sent."""
        return Sending(self.collectives, self.communication_dtype)

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

    def _read(self, state: dict[str, Any]) -> dict[str, Tensor]:
        """Returns a flat state's vectors by name; only momentum, which is made when it is needed, may be missing.

        Raises:
            ValueError: the state does not fit.
        """
        defaults = {key: each.default for key, each in self.declared.items() if not each.is_required}
        check_state(state, self.name, self.collectives, self._compared(), defaults)
        refused, held = f"this state does not fit {self.name}", self._buffers | self._common
        shape = tuple(self.flat.parameters.shape)
        vectors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        shapes = dict.fromkeys(vectors, shape) | {key: tuple(value.shape) for key, value in self._common.items()}
        wrong = {key: tuple(value.shape) for key, value in vectors.items() if tuple(value.shape) != shapes[key]}
        if wrong or (vectors.keys() ^ held) - {"momentum", "parameters"}:
            found = wrong or sorted(vectors)
            raise ValueError(f"{refused}: it holds {found}, this has {sorted(held)} of shape {shape}")
        for key, counts in self.local.counts().items():
            saved = state.get(key)
            if not isinstance(saved, list) or len(saved) != len(counts):
                raise ValueError(f"{refused}: its {key} is {saved}, not {len(counts)} numbers")
        return vectors

    def _restore(self, state: dict[str, Any]) -> None:
        vectors = self._read(state)
        parameters = vectors.pop("parameters", None)
        self.seed = state["seed"]
        self.local.restore(state)
        if "momentum" in vectors and "momentum" not in self._buffers:
            self.new_buffer("momentum")
        for key, buffer in (self._buffers | self._common).items():
            buffer.zero_() if key not in vectors else buffer.copy_(vectors[key])
        if parameters is not None:
            self.flat.parameters.copy_(parameters)
            self._loaded = self.flat.parameters.clone()
