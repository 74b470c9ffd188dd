"""`DistributedOptimizer`: what all methods share as `torch.optim.Optimizer`s: the local step, state, consensus."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from algorithms.core.adamw import AdamW
from algorithms.core.agreement import check_agreement, make_equal_, to_agree_on
from algorithms.core.arguments import LocalStepName, check_numbers, check_options, group_defaults
from algorithms.core.collectives import Collectives
from algorithms.core.compressors import Compressor
from algorithms.core.consensus import Errors, averaged, consensus_buffers, consensus_counts
from algorithms.core.description import described, in_words, overall_ratio
from algorithms.core.first_step import FirstStep, check_parameters
from algorithms.core.flat import FlatBuffers
from algorithms.core.grad_scaler import overflowed
from algorithms.core.layout import Layout, Windows
from algorithms.core.local_step import LocalOptimizer, LocalStep
from algorithms.core.nesterov import Nesterov
from algorithms.core.overlap import EarlyMessage, Reducer, early_messages
from algorithms.core.partial_sync import Exchanged, average, average_in_place_, exchange
from algorithms.core.process_group import default_collectives
from algorithms.core.randomness import Draw
from algorithms.core.saved_state import check_state, check_still_loaded, check_vectors, counts_of, flat_state
from algorithms.core.settings import check_compressors, own_defaults, own_parameters, require_interval
from algorithms.core.stacked import StackedCollectives
from algorithms.core.stages import Stage, equalises, traffic_of
from algorithms.core.topology import Topology
from algorithms.core.traffic import Entry, Purpose, Traffic


class DistributedOptimizer(Optimizer):
    """SGD with Nesterov momentum, or AdamW, on flat buffers, and a place for each method's communication.

    Args:
        params: trainable parameters or groups of them, real, of one type and on one device; worker 0's values are sent
            to all.
        lr: learning rate, per group.
        momentum: Nesterov momentum, per group; local, never averaged. By default 0, or 0.9 where the method needs it.
        weight_decay: added to the gradient, as in PyTorch, per group.
        collectives: how workers talk; by default the process group if there is one, else a group of one.
        seed: of the randomness that the workers share.
        wire: type of the numbers that are sent, by default the parameters' own. What rounding loses is kept as what a
            compressor leaves out is.
        model: what the parameters are of. Then the rest of it, frozen parameters and buffers, is sent from worker 0 to
            all as well, and a parameter that is replaced later is noticed.
        local_step: "sgd" or "adamw": by whose rule a worker steps. Its momentum or moments are state of its own.
        betas: of AdamW, per group; by default (0.9, 0.999).
        eps: of AdamW, per group; by default 1e-8.

    Raises:
        ValueError: values out of range, a compressor that the method or the model cannot take, or workers that differ
            in settings, seed or parameters.
        RuntimeError: several processes were started (`WORLD_SIZE` in the environment) and cannot talk to each other.

    `p.grad` is scratch space during `step()`.
    """

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
    needs_contiguous: ClassVar[bool] = False
    """Whether parameters must be contiguous; if not, images may lie channels last."""
    nesterov: ClassVar[bool] = True
    """Whether the momentum is Nesterov's; if not, it is the heavy ball's with dampening, v <- beta v + (1 - beta) g."""
    topology: Topology | None = None
    """Who mixes with whom, where workers talk to their neighbours alone."""
    _step_supports_amp_scaling = True  # a GradScaler then sets found_inf and grad_scale for the time of a step

    no_compression: ClassVar[Mapping[str, Any] | None]
    """Settings of its own with which the method is SGD on the mean gradient; None where no settings make it that."""
    tried_with: ClassVar[Mapping[str, Any]] = {}
    """Settings that tests try the method with beside compressors and intervals, where `no_compression` has others."""
    formula: ClassVar[str]
    """Payload bits of one worker per step, in words of d and the settings."""

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        momentum: float | None = None,
        weight_decay: float = 0.0,
        collectives: Collectives | None = None,
        seed: int = 0,
        wire: torch.dtype | None = None,
        model: nn.Module | None = None,
        local_step: LocalStepName = "sgd",
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
    ) -> None:
        given = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, group_defaults(self.name, local_step, given, self.without_momentum, self.sgd_alone))
        check_options(self.param_groups, local_step)
        self.collectives = collectives = default_collectives(self.param_groups) if collectives is None else collectives
        self.seed, self.num_steps, self.local_step = seed, 0, local_step
        stacked = isinstance(collectives, StackedCollectives)
        self.flat = FlatBuffers([group["params"] for group in self.param_groups], stacked)
        self.wire = None if wire == self.flat.parameters.dtype else wire
        self.float_bits = torch.finfo(torch.float32 if self.wire is None else self.wire).bits
        """Bits of a number on the wire, in the closed forms."""
        self._buffers: dict[str, Tensor] = {}
        self._common: dict[str, Tensor] = {}
        self.local: LocalOptimizer = (AdamW if local_step == "adamw" else Nesterov)(self.flat, self._buffers)
        self.local.buffers(self.param_groups)
        self._model = model
        self._first_step: FirstStep | None = FirstStep(self.flat, collectives, self.averages_in_backward)
        self._loaded: Tensor | None = None  # parameters that `load_state_dict` put there, until the next step
        if collectives.world_size > 1:
            if not stacked:
                fields = to_agree_on(self.name, seed, self.flat, self.param_groups, local_step, collectives)
                check_agreement(collectives, {**fields, **self._said()})
            make_equal_(collectives, self.flat, model)
        self._reducer: Reducer | None = None
        if collectives.early is not None:
            messages = lambda: self.early_messages(self.num_steps + 1)  # noqa: E731
            self._reducer = Reducer(self.flat, collectives, collectives.early, messages, self.wire)

    _given: dict[str, Any]

    def __new__(cls, *args: Any, **given: Any) -> Self:
        # Methods hand on to their base what they are made of; what the user gave is known here alone.
        self = super().__new__(cls)
        self._given = given
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings, as they were given or by default."""
        return {key: self._given.get(key, parameter.default) for key, parameter in own_parameters(type(self)).items()}

    def _said(self) -> dict[str, str]:
        return in_words(self.settings, self.wire, self.local_step)

    @property
    def traffic(self) -> Traffic:
        """Exact payload bits that this worker sent, and its number of collectives, by purpose."""
        return self.collectives.traffic

    @property
    def error(self) -> Tensor | None:
        """The error of the workers at this end, of shape (local workers, d), where the method keeps one."""
        return self._buffers.get("error")

    def stages(self) -> Sequence[Stage]:
        """What a step sends, in order; nothing by default.

        From them follow the closed form, what can be sent early and, where messages are averages over all workers,
        when these agree. A method of which that is not all says the rest itself: it has its own `expected_traffic`,
        `early_messages` or `agree_after`.
        """
        return ()

    def expected_traffic(self, num_steps: int) -> Traffic:
        """The closed form of what one worker sends in the first `num_steps` steps."""
        return traffic_of(self.stages(), num_steps, self.cost, self.topology, self.collectives.world_size)

    def agree_after(self, num_steps: int) -> bool:
        """Whether after that many steps all workers hold the same parameters, up to rounding in a sum.

        Where they do not, one full exchange must follow before anyone can use the average. False where it depends on
        what was drawn or trained; with shorter numbers on the wire, as each keeps what rounding took; and by default
        among neighbours.
        """
        if num_steps == 0 or not self.workers_differ:
            return True
        exact = self.wire is None and self.topology is None
        return exact and any(equalises(stage, num_steps, self.flat.layout, self.draw) for stage in self.stages())

    def early_messages(self, step: int) -> list[EarlyMessage]:
        """Messages of step number `step` that need the gradients of some tensors only, as they may be sent early."""
        return early_messages(self.stages(), step, self.flat, self.draw, self.float_bits)

    @classmethod
    def at_ratio(cls, ratio: int, params: Iterable[Tensor] | None = None) -> dict[str, Any]:
        """The method's own settings, for its constructor, at which SGD sends `ratio` times as much in the long run.

        Args:
            params: the model's parameters; needed where what is sent depends on their shapes.

        Raises:
            ValueError: no settings reach that ratio.
        """
        require_interval(cls.name, "ratio", ratio)
        return cls._at_ratio(ratio, None if params is None else Layout.of(params))

    @classmethod
    def _at_ratio(cls, ratio: int, layout: Layout | None) -> dict[str, Any]:
        """As `at_ratio`, for a ratio from 1 up."""
        raise ValueError(f"{cls.name} does not say how it reaches a ratio; give its settings themselves")

    @abstractmethod
    def _update(self, step: int) -> None:
        """Do step number `step`, counted from 1: gradients are in `flat.gradients`, parameters in `flat.parameters`."""

    def overall_ratio(self) -> float:
        """How many times as much SGD sends in the long run (32 d bits a step are 1); infinite where nothing is sent."""
        return overall_ratio(self.settings, self.flat.layout.numel, self.expected_traffic)

    def __repr__(self) -> str:
        """The method, its settings, the numbers of each group, d, the overall ratio and the workers, in one line."""
        given = {**self.settings, **({} if self.wire is None else {"wire": self.wire})}
        what = (type(self).__name__, given, self.local_step, self.param_groups, self.flat.layout.numel)
        return described(*what, self.overall_ratio(), self.collectives)

    def no_sync(self) -> AbstractContextManager[None]:
        """Wrap all but the last of several backward passes of a step in it, so that overlap sends nothing in vain."""
        return nullcontext() if self._reducer is None else self._reducer.pause()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. All workers must call it equally often.

        A gradient that is missing is zero: weight decay and momentum go on. A frozen parameter (`requires_grad` False,
        which all workers must say of the same) is left as it is: no update, no decay, no momentum.

        Raises:
            CollectiveError: another worker failed or did not come.
            RuntimeError: the model's parameters are not the optimiser's any more; or with overlap, something was
                changed since the backward pass.
            ValueError: a group's learning rate, momentum or weight decay is out of range.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        check_numbers(self.param_groups)
        self._adopt_moved()
        self.flat.collect_gradients()
        if self._loaded is not None:
            loaded, self._loaded = self._loaded, None
            check_still_loaded(loaded, self.flat.parameters)
        # Last of the checks, as it is a collective: what a worker sees alone it must say before it waits for others.
        if self._first_step is not None:
            first_step, self._first_step = self._first_step, None
            first_step.check(self._model)
        if not self._overflowed():
            if self._reducer is not None:
                self._reducer.begin_rest()
            self._update(self.num_steps + 1)
            self.num_steps += 1
        return loss

    def _overflowed(self) -> bool:
        return overflowed(self, self.flat.gradients, self.collectives, self._reducer)

    def _adopt_moved(self) -> None:
        """Take back parameters that someone moved, or raise RuntimeError where that cannot be."""
        if self.flat.moved():
            self._drop_early()
            self.flat.adopt(self._buffers.values())

    def _check_model(self) -> None:
        """Raises RuntimeError where what would be read is not the model's any more."""
        check_parameters(self._model, self.flat)
        self._adopt_moved()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients. They stay views of one vector, and read as zeros, whatever `set_to_none` says."""
        self._adopt_moved()
        self.flat.zero_gradients()
        self._drop_early()

    def _drop_early(self) -> None:
        if self._reducer is not None:
            self._reducer.drop()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if hasattr(self, "flat"):
            raise ValueError("the parameters lie in one flat vector; give all groups to the constructor")
        super().add_param_group(param_group)

    def consensus(self, model: nn.Module | None = None) -> AbstractContextManager[None]:
        """Inside, the parameters are the workers' average (all workers must enter); afterwards, what they were.

        Args:
            model: whose floating-point buffers, such as BatchNorm's running statistics, are averaged likewise; without
                it each worker keeps its own.
        """
        self._check_model()
        return averaged(self.flat.parameters, model, self.collectives)

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's, with the state of this worker under "flat". Each worker must save its own.

        Where workers' parameters may differ, it holds this worker's, and `load_state_dict` puts them back.
        """
        parameters = {"parameters": self.flat.parameters} if self.workers_differ else {}
        return self._state({**parameters, **self._buffers}, self.local.counts(), self.state_is_common)

    def consensus_state_dict(self, errors: Errors) -> dict[str, Any]:
        """A state that fits any worker and any number of workers. All workers must call it together.

        It holds the workers' average parameters and momentum or moments.

        Args:
            errors: what becomes of what workers have not sent yet: "average" sends the same in all from now on, "drop"
                forgets it.
        """
        self._check_model()
        with torch.no_grad():
            buffers = consensus_buffers({**self._buffers, "parameters": self.flat.parameters}, errors, self.collectives)
        counts = consensus_counts(self.local.counts(), self.flat.parameters, self.collectives)
        return self._state({"parameters": buffers.pop("parameters"), **buffers}, counts, is_common=True)

    def _state(self, vectors: dict[str, Tensor], counts: dict[str, list[int]], is_common: bool) -> dict[str, Any]:
        self._check_model()
        worker, vectors = None if is_common else self.collectives, {**vectors, **self._common}
        flat = flat_state(self.name, self.num_steps, self.seed, worker, self._said(), vectors, counts)
        return {**super().state_dict(), "flat": flat}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue, bit for bit, from a `state_dict` of the same method, settings, model and worker.

        Parameters that the state holds win over those that the model has.

        Raises:
            ValueError: the state is another method's, model's or worker's, or of other settings.
        """
        flat = dict(state_dict.get("flat", {}))
        check_state(flat, self.name, self.collectives, self._said(), own_defaults(type(self)))
        vectors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
        # States that were saved when a process had vectors without a first axis.
        flat_shape = self.flat.parameters[0].shape
        vectors |= {key: value.unsqueeze(0) for key, value in vectors.items() if value.shape == flat_shape}
        check_vectors(vectors, self._buffers, self._common, self.flat.parameters, self.name)
        counts = counts_of(flat, self.local.counts(), self.name)
        parameters = vectors.pop("parameters", None)
        self._adopt_moved()
        self._drop_early()
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "flat"})
        check_options(self.param_groups, self.local_step)
        self.num_steps, self.seed = flat["num_steps"], flat["seed"]
        self.local.restore(counts)
        if "momentum" in vectors and "momentum" not in self._buffers:
            self.new_buffer("momentum")
        for key, buffer in {**self._buffers, **self._common}.items():
            buffer.zero_() if key not in vectors else buffer.copy_(vectors[key])
        if parameters is not None:
            self.flat.parameters.copy_(parameters)
            self._loaded = self.flat.parameters.clone()

    def new_buffer(self, key: str, like: Tensor | None = None) -> Tensor:
        """Zeros of shape (local workers, d), or a copy of `like`, that belong to the state."""
        buffer = self._buffers[key] = self.flat.new_buffer() if like is None else like.clone()
        return buffer

    def new_common(self, key: str, values: Tensor) -> Tensor:
        """A copy of `values`, of any shape and the same on all workers, that belongs to the state."""
        common = self._common[key] = values.to(self.flat.parameters, copy=True)
        return common

    def memory_in_parameters(self) -> float:
        """State per worker in units of the parameters' own size, these and their gradients left out."""
        return len(self._buffers) + sum(map(Tensor.numel, self._common.values())) / self.flat.layout.numel

    def check_compressors(self, **compressors: Compressor) -> None:
        """Raises ValueError where one of them cannot work on this model; the message names the setting."""
        check_compressors(self.name, self.flat.layout, self.wire, compressors)

    def local_step_(self, target: Tensor | None = None, sign: int = -1) -> None:
        """target <- target + sign p, p being what the local optimiser would subtract; the target is x by default."""
        LocalStep(self.flat, self.param_groups, self.local, target, sign).do_()

    def after_local_step(self, support: Windows, target: Tensor | None = None, sign: int = -1) -> Tensor:
        """`support.gather(target)` as it will be after `local_step_(target, sign)`, to the bit; nothing is changed."""
        return LocalStep(self.flat, self.param_groups, self.local, target, sign).after(support)

    def average_gradients_(self) -> None:
        """g <- mean(g), for methods whose workers all take the same step."""
        self.average_in_place_(self.flat.gradients, Purpose.GRADIENT)

    def exchange(self, vector: Tensor, compressor: Compressor, step: int, purpose: Purpose) -> Exchanged:
        """Send C(vector) and average it; see `partial_sync.exchange`."""
        draw = self.draw(step, purpose)
        return exchange(vector, compressor, self.flat.layout, draw, purpose, self.collectives, self.wire)

    def average(self, payload: Tensor, purpose: Purpose) -> tuple[Tensor, Tensor]:
        """What of `payload` was sent, and its mean over workers; see `partial_sync.average`."""
        return average(payload, purpose, self.collectives, self.wire)

    def average_in_place_(self, vector: Tensor, purpose: Purpose) -> None:
        """vector <- mean(vector), rounded if the wire's numbers are shorter; without a copy if they are not."""
        average_in_place_(vector, purpose, self.collectives, self.wire)

    def cost(self, compressor: Compressor, purpose: Purpose, steps: range) -> Entry:
        """Closed form of what one worker sends at these steps; on a meta model, for plans, its mean over draws."""
        if self.flat.parameters.is_meta:
            return compressor.mean_cost(self.flat.layout, len(steps), self.float_bits)
        return compressor.cost(self.flat.layout, lambda step: self.draw(step, purpose), steps, self.float_bits)

    def draw(self, step: int, purpose: Purpose) -> Draw:
        return Draw(self.seed, step, purpose.value)
