"""`DistributedOptimizer`: what all methods share as `torch.optim.Optimizer`s: the local step, state, consensus."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from algorithms.core.collectives import Collectives, SoloCollectives
from algorithms.core.compressors import Compressor, Gathered, SharedSupport
from algorithms.core.flat import FlatBuffers
from algorithms.core.local_step import nesterov_step_
from algorithms.core.overlap import Foreteller, Foretold
from algorithms.core.partial_sync import Exchanged, average, exchange
from algorithms.core.process_group import ProcessGroupCollectives
from algorithms.core.randomness import Draw
from algorithms.core.stacked import StackedCollectives
from algorithms.core.traffic import Entry, Purpose, Traffic


class DistributedOptimizer(Optimizer):
    """SGD with Nesterov momentum on flat buffers, and a place for each method's communication.

    Args:
        params: trainable parameters or groups of them; worker 0's values are sent to all.
        lr: learning rate, per group.
        momentum: Nesterov momentum, per group; local, never averaged.
        weight_decay: added to the gradient, as in PyTorch, per group.
        collectives: how workers talk; by default the process group if there is one, else a group of one.
        seed: of the randomness that the workers share.
        wire: type of the numbers that are sent, by default the parameters' own. What rounding loses is kept as what a
            compressor leaves out is.

    Raises:
        ValueError: values out of range, or a compressor that the method or the model cannot take.

    `p.grad` is scratch space during `step()`.
    """

    name: ClassVar[str]
    """What a spec calls the method."""
    averages_models: ClassVar[bool] = True
    """Whether the method's result is the workers' average; if not, it is each worker's own model."""
    _step_supports_amp_scaling = True
    # Set by torch.amp.GradScaler for the time of a step; it multiplies a grad_scale that is there, so none is.
    found_inf: Tensor
    grad_scale: Tensor | None

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
    ) -> None:
        if not 0 <= lr < float("inf"):
            raise ValueError(f"the learning rate must be a number from 0 up, not {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"the momentum must lie in [0, 1), not {momentum}")
        if not 0 <= weight_decay < float("inf"):
            raise ValueError(f"the weight decay must be a number from 0 up, not {weight_decay}")
        if collectives is None:
            collectives = ProcessGroupCollectives() if dist.is_initialized() else SoloCollectives()
        self._flat: FlatBuffers | None = None
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.collectives = collectives
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
        if collectives.world_size > 1:
            collectives.broadcast_(self.flat.parameters, Purpose.CONTROL)
        self._foreteller = None if collectives.early is None else Foreteller(self, collectives.early)

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

        Raises:
            CollectiveError: another worker failed or did not come.
            RuntimeError: with overlap, something was changed since the backward pass.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.flat.collect_gradients()
        if not self._overflowed():
            if self._foreteller is not None:
                self._foreteller.begin_rest()
            self._update(self.num_steps + 1)
            self.num_steps += 1
        return loss

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
        """Set all gradients to zero. They stay views of one vector, whatever `set_to_none` says."""
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
    def consensus(self) -> Iterator[None]:
        """Inside, the parameters are the workers' average (all workers must enter); afterwards, what they were."""
        parameters = self.flat.parameters
        own = parameters.clone()
        with torch.no_grad():
            self.collectives.all_reduce_mean_(parameters, Purpose.EVALUATION)
        try:
            yield
        finally:
            with torch.no_grad():
                parameters.copy_(own)

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's, with the flat state of this worker under "flat". Each worker saves its own."""
        state = super().state_dict()
        state["flat"] = {"method": self.name, "num_steps": self.num_steps, "seed": self.seed, **self._buffers}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue, bit for bit, from a `state_dict` of the same method and model.

        Raises:
            ValueError: the state is another method's or another model's.
        """
        plain = {key: value for key, value in state_dict.items() if key != "flat"}
        flat = dict(state_dict.get("flat", {}))
        if flat.get("method") != self.name:
            raise ValueError(f"this state does not fit {type(self).__name__}: its method is {flat.get('method')!r}")
        shapes = {key: tuple(value.shape) for key, value in flat.items() if isinstance(value, Tensor)}
        if shapes != {key: tuple(value.shape) for key, value in self._buffers.items()}:
            raise ValueError(f"this state does not fit {type(self).__name__}: it holds {shapes}")
        self._drop_foretold()
        super().load_state_dict(plain)
        self.num_steps, self.seed = flat["num_steps"], flat["seed"]
        for key, buffer in self._buffers.items():
            buffer.copy_(flat[key])

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
        for part, group in zip(self.flat.parts, self.param_groups, strict=True):
            self.step_slice_(group, *self.slices(slice(part.start, part.stop), target), sign)

    def slices(self, here: slice, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Views of x, g, m and the target, where there are these two."""
        momentum = self._buffers.get("momentum")
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
