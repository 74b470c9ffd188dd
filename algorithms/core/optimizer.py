"""`DistributedOptimizer`: what all methods share as `torch.optim.Optimizer`s: the local step,
state, consensus."""

import inspect
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import InitVar, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from cser_bench.algorithms.core.checks import (
    FirstStep,
    check_agreement,
    check_frozen,
    check_parameters,
    enter_together,
    equalise_,
    types_of,
)
from cser_bench.algorithms.core.collectives import Collectives, StackedCollectives
from cser_bench.algorithms.core.compressors import Compressor, Draw
from cser_bench.algorithms.core.finite import named_workers, rows_not_finite
from cser_bench.algorithms.core.method import Method
from cser_bench.algorithms.core.overlap import Reducer
from cser_bench.algorithms.core.process_group import default_collectives
from cser_bench.algorithms.core.settings import (
    NUMBERS,
    REQUIRED,
    LocalStepName,
    argument,
    check_arguments,
    check_no_settings,
    check_numbers,
    check_options,
    declared_settings,
    group_defaults,
)
from cser_bench.algorithms.core.state import OTHER_TYPES, UNSENT, averaged, check_still_loaded
from cser_bench.algorithms.core.topology import Topology, rounds_of
from cser_bench.algorithms.core.traffic import Purpose, Traffic


class DistributedOptimizer(Method, Optimizer):
    """SGD with Nesterov momentum, AdamW or Muon on flat buffers, and a place for each method's
    communication.

    Args:
        params: trainable parameters or groups of them, real and on one device; worker 0's values
            are sent to all. Each type has flat vectors, state and messages of its own; overlap
            sends those of the type of most numbers early.
        lr: learning rate, per group.
        momentum: Nesterov momentum, per group; local, never averaged. By default 0, or 0.9 where
            the method needs it; Muon's by default 0.95.
        weight_decay: added to the gradient, as in PyTorch, per group.
        collectives: how workers talk; by default the process group if there is one, else a group of
            one.
        seed: where the randomness that the workers share begins.
        communication_dtype: type of the numbers that are sent, by default the parameters' own.
            Numbers of 16 bits are added in 32, and the mean is rounded once. What rounding takes
            from numbers and mean is kept as what a compressor leaves out is, the mean's by one
            worker for each coordinate; where a method keeps nothing, as SGD, it is gone.
        model: the model that has the parameters. Then the rest of it, frozen parameters and
            buffers, is sent from worker 0 to all as well, and a parameter that is replaced later is
            noticed.
        local_step: "sgd", "adamw" or "muon", the rule by which a worker steps. Its momentum or
            moments are state of its own. Muon takes matrices, and AdamW all else and groups with
            muon = False; see `muon_groups`.
        betas: AdamW's, per group; by default (0.9, 0.999).
        eps: AdamW's, per group; by default 1e-8.
        skip_nonfinite: all workers leave a step out, and say whose fault it is, where a gradient of
            one of them is not
            finite: nothing is changed, sent or counted. To agree they send 8 bits each before every
            step, as control, and the host waits for them, on a GPU too.

    Raises:
        ValueError: values out of range or that do not go together, a compressor that the method or
            the model cannot take, a topology that does not fit, or workers that differ in settings,
            seed or parameters.
        RuntimeError: several processes were started (`WORLD_SIZE` in the environment) and cannot
            talk to each other.

    `p.grad` is scratch space during `step()`.
    """

    _step_supports_amp_scaling = (
        True  # a GradScaler then sets found_inf and grad_scale for the time of a step
    )

    # The first arguments of every method's constructor; its own settings follow.
    params: InitVar[ParamsT] = argument(kw_only=False)
    lr: InitVar[float]
    momentum: InitVar[float | None] = None
    weight_decay: InitVar[float] = 0.0
    collectives: InitVar[Collectives | None] = None
    seed: InitVar[int] = 0
    communication_dtype: InitVar[torch.dtype | None] = None
    model: InitVar[nn.Module | None] = None
    local_step: InitVar[LocalStepName] = "sgd"
    betas: InitVar[tuple[float, float] | None] = None
    eps: InitVar[float | None] = None
    skip_nonfinite: InitVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.declared = declared_settings(cls, cls.declared)
        common = inspect.get_annotations(DistributedOptimizer)
        given = {
            key: (getattr(DistributedOptimizer, key, REQUIRED), each.type)
            for key, each in common.items()
        }
        given |= {key: (each.default, each.declared) for key, each in cls.declared.items()}
        params, *by_name = (
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for key, (default, kind) in given.items()
        )
        params = params.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD, default=REQUIRED)
        cls.__signature__ = inspect.Signature([params, *by_name])  # type: ignore[attr-defined]

    def __init__(self, params: ParamsT, **given: Any) -> None:
        check_arguments(type(self), given)
        self._given = {"params": params, **given}
        given = {
            key: each.default for key, each in inspect.signature(type(self)).parameters.items()
        } | given
        self._siblings = []
        for key, setting in self.declared.items():
            setting.check(f"{self.name}: {key}", given[key])
            setattr(self, key, given[key])
        self.seed, self.num_steps, self.local_step = given["seed"], 0, given["local_step"]
        self.skip_nonfinite = given["skip_nonfinite"]
        numbers = {key: given[key] for key in NUMBERS["muon"]}
        super().__init__(params, group_defaults(self, numbers))
        check_no_settings(self.param_groups, given.keys() - {"params", *numbers})
        check_options(self.param_groups, self.local_step)
        collectives: Collectives = given["collectives"] or default_collectives(self.param_groups)
        self.collectives, stacked = collectives, isinstance(collectives, StackedCollectives)
        own, *others = (
            types_of(self.param_groups) if self._sibling_type is None else [self._sibling_type]
        )
        self._lay_out(own, given["communication_dtype"])
        self._model: nn.Module | None = given["model"]
        self._shows_average = False
        if collectives.world_size > 1:
            if not stacked:
                check_agreement(
                    collectives, {**self._to_agree_on(), "other types": others, **self._compared()}
                )
            equalise_(collectives, self.flat, self.param_groups, self._model)
        siblings = [self._sibling(dtype) for dtype in others]
        self._frozen = [each.flat.frozen for each in (self, *siblings)]
        """The numbers of the frozen tensors, of each type, as all workers had them when they last
        compared."""
        self._first_step: FirstStep | None = None
        if self._sibling_type is None:
            flats = [self.flat, *(each.flat for each in siblings)]
            self._first_step = FirstStep(flats, collectives, self.averages_in_backward)
        next_messages = lambda: self.early_messages(self.num_steps + 1)  # noqa: E731
        early, traffic = collectives.early, collectives.traffic
        self._reducer = Reducer(self.flat, early, traffic, next_messages, self.sending.message)
        if self.skip_nonfinite:
            self._reducer.stop("skip_nonfinite looks at all gradients in step()")
        for key, setting in self.declared.items():
            if setting.declared == Topology:
                self.rounds = rounds_of(given[key], collectives.world_size)
            is_left_out = given[key] is None and setting.admits(type(None))
            if setting.admits(Compressor) and not is_left_out:
                setattr(self, key, self.checked(key, given[key]))
        self._siblings = siblings  # type: ignore[assignment]
        self._set_up()
        if self.caution is not None and self._sibling_type is None:
            warnings.warn(f"{self.name}: {self.caution}", stacklevel=2)

    def _set_up(self) -> None:
        """Makes what a method holds beside the settings, which are attributes by now, and says
        where these are wrong.

        Compressors are checked, and scaled where need be. What is allowed and still will go wrong
        is `caution`.
        """

    def __setattr__(self, key: str, value: Any) -> None:
        """Gives a setting that a script changes to the optimisers of all types."""
        super().__setattr__(key, value)
        if key in self.declared:
            for each in self._siblings:
                setattr(
                    each, key, each.checked(key, value) if isinstance(value, Compressor) else value
                )

    def _sibling(self, dtype: torch.dtype) -> Self:
        """Returns an optimiser alike, for the same groups' parameters of another type; its draws
        are its own."""
        if self.averages_in_backward:
            raise ValueError(
                f"{self.name}: parameters must have one type, and here are {dtype} besides"
            )
        of_type = [
            [each for each in group["params"] if each.dtype == dtype] for group in self.param_groups
        ]
        groups = [
            {**group, "params": tensors}
            for group, tensors in zip(self.param_groups, of_type, strict=True)
        ]
        seed = Draw(self.seed, 0, str(dtype)).key()
        own = {
            "params": groups,
            "seed": seed,
            "collectives": self.collectives.without_overlap(),
            "model": None,
        }
        sibling = type(self).__new__(type(self))
        sibling._sibling_type = dtype
        try:
            sibling.__init__(**self._given | own)  # type: ignore[misc]
        except ValueError as error:
            raise ValueError(
                f"{error} (of the parameters of type {dtype}, which have messages of their own)"
            ) from None
        sibling.watch, sibling.sending = self.watch, replace(sibling.sending, watch=self.watch)
        return sibling

    @property
    def traffic(self) -> Traffic:
        """The exact payload bits that this worker sent, and its number of collectives, by
        purpose."""
        return self.collectives.traffic

    @property
    def error(self) -> Tensor | None:
        """The error of the workers at this end, of shape (local workers, d), where the method keeps
        one."""
        errors = [each._buffers["error"] for each in self._of_each_type if "error" in each._buffers]
        return torch.cat(errors, dim=1) if len(errors) > 1 else next(iter(errors), None)

    @abstractmethod
    def _update(self, step: int) -> None:
        """Does step number `step`, counted from 1, from `flat.gradients` on `flat.parameters`."""

    def no_sync(self) -> AbstractContextManager[None]:
        """Returns a context for all but the last of a step's backward passes: inside, overlap sends
        nothing."""
        return self._reducer.pause()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Does one step, and returns the closure's loss. All workers must call it equally often.

        A gradient that is missing is zero: weight decay and momentum go on. A frozen parameter
        (`requires_grad` False) is left where it is, with what is held for it, but for averages of
        it over workers that differ in it.

        Raises:
            CollectiveError: another worker failed, did not come, or froze other parameters.
            RuntimeError: the model's parameters are not the optimiser's any more; with overlap,
                something was changed since the backward pass; or it is called inside `consensus()`.
            ValueError: a group's learning rate, momentum or weight decay is out of range.
        """
        self._refuse_inside_consensus("step()")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        check_numbers(self.param_groups)
        self._adopt_moved()
        of_each_type = self._of_each_type
        for each in of_each_type:
            each.flat.collect_gradients()
            check_still_loaded(each._loaded, each.flat.parameters)
        # Last of the checks, as it is a collective: what a worker sees alone it must say before it
        # waits for others.
        if self._first_step is not None:
            is_changed = self._first_step.check(self._model, self.workers_differ, self.num_steps)
            self._first_step.close()
            self._first_step = None
            if is_changed:
                self.reanchor()
        frozen = [each.flat.frozen for each in of_each_type]
        if frozen != self._frozen:
            check_frozen(self.collectives, frozen)
            self._frozen = frozen
        for each in of_each_type:
            each._loaded = None
        if not self._overflowed():
            self._reducer.begin_rest()
            self.watch.begin_step(self.num_steps + 1)
            for each in of_each_type:
                each._update(self.num_steps + 1)
            self.num_steps += 1
            self.watch.end_step()
        return loss

    def _overflowed(self) -> bool:
        """Returns whether, under a `GradScaler`, any worker's gradients overflowed; if none, takes
        the scale out.

        A worker that skipped alone would leave the others waiting, or drift from them. For the time
        of a step the scaler sets `found_inf`, above 0 where this worker's gradients are not finite,
        and `grad_scale`, by which they were multiplied, None where they no longer are.
        """
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is None:
            return self.skip_nonfinite and self._is_skipped()
        self._reducer.stop("a GradScaler takes the scale out of the gradients in step()")
        found = found_inf.detach().float().reshape(1, 1).repeat(len(self.flat.gradients), 1)
        self.collectives.all_reduce_sum_(found, Purpose.CONTROL)
        if found[0].item() > 0:
            return True
        scale: Tensor | None = getattr(self, "grad_scale", None)
        if scale is not None:
            for each in self._of_each_type:
                each.flat.gradients.div_(scale)
        return False

    def _is_skipped(self) -> bool:
        """Returns whether any worker's gradients are not finite, so that all leave this step out,
        and says whose."""
        of_each_type = [rows_not_finite(each.flat.gradients) for each in self._of_each_type]
        flags = torch.stack(of_each_type).any(0).to(torch.uint8).unsqueeze(1)
        if len(flags) < self.collectives.world_size:
            flags = self.collectives.all_gather(flags, Purpose.CONTROL)
        workers = named_workers(flags, self.collectives)
        if workers:
            warnings.warn(
                f"{self.name}: all workers left step {self.num_steps + 1} out, since gradients of "
                f"{workers} are not finite; where that goes on, look at the data there, or lower "
                "the learning rate",
                stacklevel=6,
            )
        return bool(workers)

    def _adopt_moved(self) -> None:
        """Takes back parameters that someone moved, or raises RuntimeError where that cannot be."""
        for each in self._of_each_type:
            if each.flat.moved():
                self._drop_early()
                each.flat.adopt(each._buffers.values())

    def _check_model(self) -> None:
        """Raises RuntimeError where what would be read is not the model's any more."""
        check_parameters(self._model, self._tensors)
        self._adopt_moved()

    @property
    def _tensors(self) -> list[Tensor]:
        return [tensor for each in self._of_each_type for tensor in each.flat.tensors]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears all gradients. They stay views of one vector, and read as zeros, whatever
        `set_to_none` says."""
        self._adopt_moved()
        for each in self._of_each_type:
            each.flat.zero_gradients()
        self._drop_early()

    def _drop_early(self) -> None:
        self._reducer.drop()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Makes the optimiser anew with one more group, before its first step. All workers must
        call it.

        Raises:
            ValueError: a step was done, or a state loaded; and as the constructor.
        """
        if not hasattr(self, "flat"):  # torch's constructor adds each group
            return super().add_param_group(param_group)
        if self._first_step is None or self._first_step.was_loaded:
            raise ValueError(
                "no group can be added after the first step or a loaded state, as a state must "
                "not depend on when one came; add it at the start, frozen (requires_grad_(False)) "
                "until it is to be trained"
            )
        before, groups = dict(self.__dict__), [*self.param_groups, param_group]
        del self.flat
        try:
            self.__init__(**self._given | {"params": groups, "collectives": self.collectives})  # type: ignore[misc]
        except Exception:
            self.__dict__ = before
            raise
        before["_first_step"].close()

    @torch.no_grad()
    def reanchor(self) -> None:
        """Begins anew from worker 0's parameters, which go to all: call it where other weights were
        loaded meanwhile.

        Anchors and estimates of parameters become these, and what was not sent yet or has not
        arrived is forgotten; all else stays. All workers must call it. The first step does so where
        parameters were changed since the optimiser was made.
        """
        self._refuse_inside_consensus("reanchor()")
        self._check_model()
        self._reducer.drop()
        self.watch.begin_anew()
        for each in self._of_each_type:
            each._drop_under_way()
            if self.collectives.world_size > 1:
                equalise_(self.collectives, each.flat, self.param_groups, each._model)
            for anchor in each._anchors:
                anchor.copy_(each.flat.parameters)
            for key in each._buffers.keys() & set(UNSENT):
                each._buffers[key].zero_()
            each._loaded = None

    @contextmanager
    def consensus(
        self, model: nn.Module | None = None, averages: Iterable[nn.Module] = ()
    ) -> Iterator[None]:
        """Returns a context, which all workers must enter: the parameters are the workers' average
        inside.

        Afterwards they are what they were. Inside, `step()` and states are refused.

        Args:
            model: the model, whose floating-point buffers, such as BatchNorm's running statistics,
                are averaged likewise; without it each worker keeps its own.
            averages: each worker's moving averages of the model (EMA, SWA), whose numbers are
                averaged likewise.

        Raises:
            CollectiveError: another worker did something else, or did not come.
            RuntimeError: the model does not hold the optimiser's parameters.
        """
        self._check_model()
        check_parameters(model, self._tensors)
        enter_together(self.collectives, "consensus()")
        held = set(map(id, self._tensors))
        others = [each for module in averages for each in (*module.parameters(), *module.buffers())]
        others += [] if model is None else model.buffers()
        unique = {id(each): each for each in others if id(each) not in held}
        before, self._shows_average = self._shows_average, True
        try:
            parameters = [each.flat.parameters for each in self._of_each_type]
            with averaged(parameters, unique.values(), self.collectives):
                yield
        finally:
            self._shows_average = before

    def _refuse_inside_consensus(self, call: str) -> None:
        if self._shows_average:
            raise RuntimeError(
                f"{call} inside consensus(), where parameters are averages for a while; call it "
                "outside"
            )

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled, as it holds the model's "
            "parameters and talks to other workers; save its state_dict(), and make another one "
            "for a copied model"
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns PyTorch's state, with this worker's own as "flat" in the first group. Each worker
        must save its own.

        Where workers' parameters may differ, it holds this worker's, and `load_state_dict` puts
        them back.
        """
        self._refuse_inside_consensus("a state")
        self._check_model()
        own, *others = [each._flat_state() for each in self._of_each_type]
        names = [str(each.flat.parameters.dtype) for each in self._siblings]
        siblings = {OTHER_TYPES: dict(zip(names, others, strict=True))} if others else {}
        state = super().state_dict()
        # In a group, as torch.distributed.checkpoint keeps these, and nothing beside them.
        state["param_groups"][0]["flat"] = {**own, **siblings}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues, bit for bit, from a `state_dict` of the same method, settings, model and
        worker.

        Parameters that the state holds win over those that the model has.

        Raises:
            ValueError: the state is another method's, model's or worker's, or of other settings.
        """
        self._refuse_inside_consensus("load_state_dict()")
        groups = [dict(group) for group in state_dict.get("param_groups", [{}])]
        flat = dict(groups[0].pop("flat", None) or state_dict.get("flat", {}))
        others = flat.pop(OTHER_TYPES, {})
        if list(others) != (names := [str(each.flat.parameters.dtype) for each in self._siblings]):
            raise ValueError(
                f"this state does not fit {self.name}: beside most parameters it has some of "
                f"{list(others)}, this has of {names}"
            )
        states = list(zip(self._of_each_type, [flat, *others.values()], strict=True))
        for each, state in states:
            each._check_state(state)
        self._adopt_moved()
        self._drop_early()
        super().load_state_dict({"state": {}, "param_groups": groups})
        check_options(self.param_groups, self.local_step)
        self.num_steps = flat["num_steps"]
        self.watch.begin_anew()
        if self._first_step is not None:
            self._first_step.was_loaded = True
        for each, state in states:
            each._restore(state)

    def memory_in_parameters(self) -> float:
        """Returns a worker's state in units of the parameters' own size, these and their gradients
        left out."""
        of_each_type = self._of_each_type
        buffers = [buffer[0] for each in of_each_type for buffer in each._buffers.values()]
        common = [tensor for each in of_each_type for tensor in each._common.values()]
        held = sum(each.flat.parameters[0].nbytes for each in of_each_type)
        return sum(each.nbytes for each in (*buffers, *common)) / held
