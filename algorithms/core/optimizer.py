"""`DistributedOptimizer`: what all methods share as `torch.optim.Optimizer`s: the local step, state, consensus."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from algorithms.core.agreement import check_agreement
from algorithms.core.arguments import check_numbers, check_options
from algorithms.core.collectives import Collectives, SoloCollectives
from algorithms.core.compressors import FLOAT_BITS, Compressor, Gathered, SharedSupport
from algorithms.core.flat import FlatBuffers
from algorithms.core.local_step import nesterov_step_
from algorithms.core.overlap import Foreteller, Foretold
from algorithms.core.partial_sync import Exchanged, average, exchange
from algorithms.core.process_group import ProcessGroupCollectives
from algorithms.core.randomness import Draw
from algorithms.core.saved_state import Errors, check_state, consensus_buffers
from algorithms.core.stacked import StackedCollectives
from algorithms.core.topology import Topology
from algorithms.core.traffic import Entry, Purpose, Traffic
from algorithms.core.watch import ReplacedParameters, refuse_ddp


class DistributedOptimizer(Optimizer):
    """SGD with Nesterov momentum on flat buffers, and a place for each method's communication.

    Args:
        params: trainable parameters or groups of them, real, of one type and on one device; worker 0's values are sent
            to all.
        lr: learning rate, per group.
        momentum: Nesterov momentum, per group; local, never averaged.
        weight_decay: added to the gradient, as in PyTorch, per group.
        collectives: how workers talk; by default the process group if there is one, else a group of one.
        seed: of the randomness that the workers share.
        wire: type of the numbers that are sent, by default the parameters' own. What rounding loses is kept as what a
            compressor leaves out is.
        model: what the parameters are of, where the rest of it, frozen parameters and buffers, is to be sent from
            worker 0 to all as well.

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
    workers_differ: ClassVar[bool] = True
    """Whether workers' parameters may differ after a step; then each worker's state holds its own."""
    state_is_common: ClassVar[bool] = False
    """Whether all workers' states are one and the same, and fit any number of workers."""
    topology: Topology | None = None
    """Who mixes with whom, where workers talk to their neighbours alone."""
    _step_supports_amp_scaling = True
    # Set by torch.amp.GradScaler for the time of a step; it multiplies a grad_scale that is there, so none is.
    found_inf: Tensor
    grad_scale: Tensor | None

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
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        collectives: Collectives | None = None,
        seed: int = 0,
        wire: torch.dtype | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self._flat: FlatBuffers | None = None
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        check_options(self.param_groups)
        self.collectives = collectives = self._group() if collectives is None else collectives
        self.seed = seed
        self.num_steps = 0
        stacked = isinstance(collectives, StackedCollectives)
        self._flat = FlatBuffers([group["params"] for group in self.param_groups], stacked)
        native = self.flat.parameters.dtype
        self.wire = None if wire == native else wire
        self.float_bits = torch.finfo(torch.float32 if self.wire is None else self.wire).bits
        """Bits of a number on the wire, in the closed forms."""
        self._buffers: dict[str, Tensor] = {}
        if any(group["momentum"] for group in self.param_groups):
            self.new_buffer("momentum")
        self._replaced = ReplacedParameters(self.flat)
        self._loaded: Tensor | None = None
        """Parameters that `load_state_dict` put there, until the next step."""
        if collectives.world_size > 1:
            if not stacked:
                check_agreement(collectives, self._to_agree_on())
            collectives.broadcast_(self.flat.parameters, Purpose.CONTROL)
            if model is not None:
                self._broadcast_rest(model)
        self._foreteller = None if collectives.early is None else Foreteller(self, collectives.early)

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

    def _plain_settings(self) -> dict[str, str]:
        """The settings, and the wire's type, in words."""
        return {key: repr(value) for key, value in {**self.settings, "wire": self.wire}.items()}

    def _group(self) -> Collectives:
        if dist.is_initialized():
            return ProcessGroupCollectives()
        num_processes = os.environ.get("WORLD_SIZE", "1")
        only_planned = any(parameter.is_meta for group in self.param_groups for parameter in group["params"])
        if num_processes not in ("", "1") and not only_planned:
            raise RuntimeError(
                f"WORLD_SIZE is {num_processes} in the environment, but there is no process group, so each process "
                "would train alone; call torch.distributed.init_process_group() before the optimiser is made, or give "
                "it collectives=SoloCollectives() if each is to be alone"
            )
        return SoloCollectives()

    def _to_agree_on(self) -> dict[str, object]:
        tensors = self.flat.layout.tensors
        shapes = "; ".join(f"{each.shape} strides {each.strides}" for each in tensors)
        kind = f"{str(self.flat.parameters.dtype).removeprefix('torch.')} on {self.flat.parameters.device.type}"
        hyper = [tuple(float(group[key]) for key in ("lr", "momentum", "weight_decay")) for group in self.param_groups]
        return {
            "method": self.name,
            "seed": self.seed,
            "parameters": f"{self.flat.layout.numel:,} in {len(tensors)} tensors, {kind}: {shapes}",
            "lr, momentum, weight_decay of each group": hyper,
            "overlap": self.collectives.early is not None,
            **self._plain_settings(),
        }

    def _broadcast_rest(self, model: nn.Module) -> None:
        """Send worker 0's values of all that is not trained."""
        trained = set(map(id, self.flat.tensors))
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                if id(tensor) not in trained:
                    message = tensor.detach().contiguous()
                    self.collectives.broadcast_(message, Purpose.CONTROL)
                    tensor.copy_(message)

    @property
    def flat(self) -> FlatBuffers:
        assert self._flat is not None
        return self._flat

    @property
    def traffic(self) -> Traffic:
        """Exact payload bits that this worker sent, and its number of collectives, by purpose."""
        return self.collectives.traffic

    @property
    def error(self) -> Tensor | None:
        """This worker's error, of shape (d,), where the method keeps one."""
        return self._buffers.get("error")

    @abstractmethod
    def expected_traffic(self, num_steps: int) -> Traffic:
        """The closed form of what one worker sends in the first `num_steps` steps."""

    def agree_after(self, num_steps: int) -> bool:
        """Whether after that many steps all workers hold the same parameters, up to rounding in a sum.

        Where they do not, one full exchange must follow before anyone can use the average. False where it depends on
        what was drawn or trained.
        """
        return True

    @abstractmethod
    def _update(self, step: int) -> None:
        """Do step number `step`, counted from 1: gradients are in `flat.gradients`, parameters in `flat.parameters`."""

    def overall_ratio(self) -> float:
        """How many times as much SGD sends on average, whose 32 d bits a step are 1; infinite where nothing is sent."""
        intervals = math.prod(value for value in self.settings.values() if type(value) is int)
        num_steps = intervals * math.ceil(100 / intervals)  # whole intervals; where draws differ, about their mean
        bits = self.expected_traffic(num_steps).training_bits
        return FLOAT_BITS * self.flat.layout.numel * num_steps / bits if bits else math.inf

    def __repr__(self) -> str:
        """The method, its settings, the numbers of each group, d, the overall ratio and the workers, in one line."""
        given = {**self.settings, **({} if self.wire is None else {"wire": self.wire})}
        groups = [{key: group[key] for key in ("lr", "momentum", "weight_decay")} for group in self.param_groups]
        own = ", ".join(f"{key}={value!r}" for key, value in {**given, **groups[0]}.items())
        others = "".join(f", group {number}: {group}" for number, group in enumerate(groups[1:], 1))
        ratio = self.overall_ratio()
        return (
            f"{type(self).__name__}({own}{others}; d = {self.flat.layout.numel:,}, "
            f"{'nothing is sent' if ratio == math.inf else f'overall ratio {ratio:,.4g}'}, "
            f"worker {self.collectives.rank} of {self.collectives.world_size})"
        )

    def foretold(self, step: int) -> list[Foretold]:
        """Messages of step number `step` that need the gradients of some tensors only, as they may be sent early."""
        return []

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Wrap all but the last of several backward passes of a step in it, so that overlap sends nothing in vain."""
        with nullcontext() if self._foreteller is None else self._foreteller.pause():
            yield

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. All workers must call it equally often.

        A parameter that no backward pass reached since gradients were cleared, or that was frozen, is left as it is: no
        update, no decay, no momentum. What other workers send of it arrives all the same.

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
        if self.num_steps == 0 or self._loaded is not None:
            self._check_first_step()
        if not self._overflowed():
            if self._foreteller is not None:
                self._foreteller.begin_rest()
            self._update(self.num_steps + 1)
            self.num_steps += 1
        self.flat.idle = ()
        return loss

    def _adopt_moved(self) -> None:
        """Take back parameters that someone moved, or raise RuntimeError where that cannot be."""
        self._replaced.check()
        if self.flat.moved():
            self._drop_foretold()
            self.flat.adopt(self._buffers.values())

    def _check_first_step(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None and not torch.allclose(loaded, self.flat.parameters, 0, 0, equal_nan=True):
            raise RuntimeError(
                "the parameters are not those of the state that this optimiser loaded, which are this worker's own; "
                "load the model first and then the optimiser (after a change that is meant, call "
                "optimizer.load_state_dict(optimizer.state_dict()))"
            )
        if isinstance(self.collectives, ProcessGroupCollectives) and self.collectives.world_size > 1:
            refuse_ddp(self.flat)
        if len(self.flat.idle) == len(self.flat.tensors):
            warnings.warn("no parameter has a gradient at the optimiser's first step", stacklevel=4)

    def _overflowed(self) -> bool:
        """Whether, under a `GradScaler`, any worker's gradients are not finite; if not, take the scale out of them.

        A worker that skipped alone would leave the others waiting, or drift from them.
        """
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is None:
            return False
        if self._foreteller is not None:
            self._foreteller.stop("a GradScaler takes the scale out of the gradients in step()")
        found = found_inf.detach().to(torch.float32).reshape(1).clone()
        self.collectives.all_reduce_sum_(found, Purpose.CONTROL)
        if found.item() > 0:
            return True
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        if grad_scale is not None:
            self.flat.gradients.div_(grad_scale)
        return False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients. They stay views of one vector, and read as zeros, whatever `set_to_none` says."""
        self._adopt_moved()
        self.flat.zero_gradients()
        self._drop_foretold()

    def _drop_foretold(self) -> None:
        if self._foreteller is not None:
            self._foreteller.drop()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self._flat is not None:
            raise ValueError("the parameters lie in one flat vector; give all groups to the constructor")
        super().add_param_group(param_group)

    @contextmanager
    def consensus(self, model: nn.Module | None = None) -> Iterator[None]:
        """Inside, the parameters are the workers' average (all workers must enter); afterwards, what they were.

        Args:
            model: whose floating-point buffers, such as BatchNorm's running statistics, are averaged likewise; without
                it each worker keeps its own.
        """
        self._adopt_moved()
        buffers = [] if model is None else [each for each in model.buffers() if each.is_floating_point()]
        averaged = [self.flat.parameters, *buffers]
        own = [tensor.clone() for tensor in averaged]
        try:
            with torch.no_grad():
                for tensor in averaged:
                    mean = tensor.contiguous()
                    self.collectives.all_reduce_mean_(mean, Purpose.EVALUATION)
                    tensor.copy_(mean)
            yield
        finally:
            with torch.no_grad():
                for tensor, values in zip(averaged, own, strict=True):
                    tensor.copy_(values)

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's, with the state of this worker under "flat". Each worker must save its own.

        Where workers' parameters may differ, it holds this worker's, and `load_state_dict` puts them back.
        """
        return self._state(self._buffers, self.flat.parameters if self.workers_differ else None, self.state_is_common)

    def consensus_state_dict(self, errors: Errors) -> dict[str, Any]:
        """A state that fits any worker and any number of workers. All workers must call it together.

        It holds the workers' average parameters and momentum.

        Args:
            errors: what becomes of what workers have not sent yet: "average" sends the same in all from now on, "drop"
                forgets it.
        """
        if errors not in ("average", "drop"):
            raise ValueError(f'errors must be "average" or "drop", not {errors!r}')
        self._adopt_moved()
        with torch.no_grad():
            buffers = consensus_buffers({**self._buffers, "parameters": self.flat.parameters}, errors, self.collectives)
        return self._state(buffers, buffers.pop("parameters"), is_common=True)

    def _state(self, buffers: dict[str, Tensor], parameters: Tensor | None, is_common: bool) -> dict[str, Any]:
        self._adopt_moved()
        state = super().state_dict()
        state["flat"] = {
            "method": self.name,
            "num_steps": self.num_steps,
            "seed": self.seed,
            "rank": None if is_common else self.collectives.rank,
            "world_size": None if is_common else self.collectives.world_size,
            "settings": self._plain_settings(),
            **({} if parameters is None else {"parameters": parameters}),
            **buffers,
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue, bit for bit, from a `state_dict` of the same method, settings, model and worker.

        Parameters that the state holds win over those that the model has.

        Raises:
            ValueError: the state is another method's, model's or worker's, or of other settings.
        """
        plain = {key: value for key, value in state_dict.items() if key != "flat"}
        flat = dict(state_dict.get("flat", {}))
        check_state(flat, self.name, self.collectives.rank, self.collectives.world_size, self._plain_settings())
        vectors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
        parameters = vectors.pop("parameters", None)
        self._check_vectors(vectors if parameters is None else {**vectors, "parameters": parameters})
        self._adopt_moved()
        self._drop_foretold()
        super().load_state_dict(plain)
        check_options(self.param_groups)
        self.num_steps, self.seed = flat["num_steps"], flat["seed"]
        if "momentum" in vectors and "momentum" not in self._buffers:
            self.new_buffer("momentum")
        for key, buffer in self._buffers.items():
            buffer.zero_() if key not in vectors else buffer.copy_(vectors[key])
        if parameters is not None:
            self.flat.parameters.copy_(parameters)
            self._loaded = self.flat.parameters.clone()

    def _check_vectors(self, vectors: dict[str, Tensor]) -> None:
        """Raises ValueError unless the state's vectors are as this optimiser's; momentum is made when it is needed."""
        shape = tuple(self.flat.parameters.shape)
        wrong = {key: tuple(value.shape) for key, value in vectors.items() if tuple(value.shape) != shape}
        different = (vectors.keys() ^ self._buffers.keys()) - {"momentum", "parameters"}
        if wrong or different:
            raise ValueError(
                f"this state does not fit {self.name}: it holds {wrong or sorted(vectors)}, this has "
                f"{sorted(self._buffers)} of shape {shape}"
            )

    def new_buffer(self, key: str, like: Tensor | None = None) -> Tensor:
        """A vector of shape (d,), zero or a copy of `like`, that belongs to the state."""
        buffer = self._buffers[key] = self.flat.new_buffer() if like is None else like.clone()
        return buffer

    def memory_in_parameters(self) -> int:
        """State per worker in units of the parameters' own size, these and their gradients left out."""
        return len(self._buffers)

    def check_compressors(self, **compressors: Compressor) -> None:
        """Raises ValueError where one of them cannot work on this model; the message names the setting."""
        for key, compressor in compressors.items():
            if not isinstance(compressor, Compressor):
                raise ValueError(f"{self.name}: {key} must be a compressor, not {compressor!r}")
            if self.wire is not None and isinstance(compressor, Gathered):
                raise ValueError(
                    f"{self.name}: {key}: messages of {compressor.kind} have a format of their own; wire is fp32"
                )
            try:
                compressor.check(self.flat.layout)
            except ValueError as error:
                raise ValueError(f"{self.name}: {key}: {error}") from None

    def local_step_(self, target: Tensor | None = None, sign: int = -1) -> None:
        """target <- target + sign eta u, with m <- beta m + g and then u = beta m + g; the target is x by default."""
        kept = self._idle_values(target)
        for part, group in zip(self.flat.parts, self.param_groups, strict=True):
            self.step_slice_(group, *self.slices(slice(part.start, part.stop), target), sign)
        for vector, here, values in kept:
            vector[here] = values

    def _idle_values(self, target: Tensor | None) -> list[tuple[Tensor, slice, Tensor]]:
        """Of tensors without a gradient, what a local step must not change: their place, and momentum."""
        vectors = [self.flat.parameters if target is None else target, self._buffers.get("momentum")]
        return [
            (vector, here, vector[here].clone())
            for here in self.flat.idle_slices()
            for vector in vectors
            if vector is not None
        ]

    def average_gradients_(self) -> None:
        """g <- mean(g), for methods whose workers all take the same step."""
        self.average_in_place_(self.flat.gradients, Purpose.GRADIENT)
        self.flat.keep_idle_everywhere()

    def slices(self, here: slice, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Views of x, g, m and the target, where there are these two."""
        momentum = self._buffers.get("momentum")
        if momentum is None and any(group["momentum"] for group in self.param_groups):
            momentum = self.new_buffer("momentum")  # a schedule has switched it on
        x, g, m, other = (
            None if vector is None else vector[..., here]
            for vector in (self.flat.parameters, self.flat.gradients, momentum, target)
        )
        assert x is not None and g is not None
        return x, g, m, other

    def step_slice_(
        self, group: dict[str, Any], x: Tensor, g: Tensor, m: Tensor | None, target: Tensor | None, sign: int
    ) -> None:
        """The arithmetic of `local_step_`, coordinate by coordinate, on one group's vectors or a slice of them."""
        nesterov_step_(group, x, g, m, target, sign)

    def exchange(self, vector: Tensor, compressor: Compressor, step: int, purpose: Purpose) -> Exchanged:
        """Send C(vector) and average it; see `partial_sync.exchange`."""
        draw = self.draw(step, purpose)
        return exchange(vector, compressor, self.flat.layout, draw, purpose, self.collectives, self.wire)

    def average(self, payload: Tensor, purpose: Purpose) -> tuple[Tensor, Tensor]:
        """What of `payload` was sent, and its mean over workers; see `partial_sync.average`."""
        return average(payload, purpose, self.collectives, self.wire)

    def average_in_place_(self, vector: Tensor, purpose: Purpose) -> None:
        """vector <- mean(vector), rounded if the wire's numbers are shorter; without a copy if they are not."""
        if self.wire is None:
            self.collectives.all_reduce_mean_(vector, purpose)
        else:
            vector.copy_(self.average(vector, purpose)[1])

    def cost(self, compressor: Compressor, purpose: Purpose, steps: range) -> Entry:
        """Closed form of what one worker sends at these steps; on a meta model, for plans, its mean over draws."""
        if self.flat.parameters.is_meta:
            return compressor.mean_cost(self.flat.layout, len(steps), self.float_bits)
        return compressor.cost(self.flat.layout, lambda step: self.draw(step, purpose), steps, self.float_bits)

    def draw(self, step: int, purpose: Purpose) -> Draw:
        return Draw(self.seed, step, purpose.value)


def own_parameters(algorithm: type[DistributedOptimizer]) -> dict[str, inspect.Parameter]:
    """The arguments that a method has and others have not, by name: its settings."""
    common = inspect.signature(DistributedOptimizer.__init__).parameters
    return {
        key: parameter
        for key, parameter in inspect.signature(algorithm.__init__).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and key not in common
    }


def require_interval(name: str, key: str, interval: int) -> None:
    """Raises ValueError unless `interval` is an integer from 1 up."""
    if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        raise ValueError(f"{name}: {key} must be an integer from 1 up, not {interval!r}")


def require_shared_support(name: str, **compressors: Compressor) -> None:
    """Raises ValueError for a compressor whose messages cannot be all-reduced."""
    for key, compressor in compressors.items():
        if not isinstance(compressor, SharedSupport):
            raise ValueError(
                f"{name}: {key} must have a support that all workers share (block, per-tensor block, random-k, "
                f"identity, zero), {type(compressor).__name__} has not"
            )
