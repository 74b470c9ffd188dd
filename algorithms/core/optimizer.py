"""`DistributedOptimizer`: a method as the `torch.optim.Optimizer` that a script makes and steps.

What stands behind its calls is a file for each subject: how it is made (`core.construction`), what
is checked at a step (`core.step_checks`), what is sent in advance (`core.plan_ahead`), the average
model (`core.consensus`) and the saved state (`core.replicas`, `core.state`). What a method's class
overrides is in `core.method`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import InitVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.optim.optimizer import Optimizer, ParamsT

from cser_bench.algorithms.core.agreement import (
    DIGEST,
    are_apart,
    digest_of_parameters,
    enter_together,
    in_step,
)
from cser_bench.algorithms.core.by_traffic import warn_of_dear_messages
from cser_bench.algorithms.core.collectives import Collectives
from cser_bench.algorithms.core.consensus import Consensus, averaged_beside
from cser_bench.algorithms.core.construction import (
    check_compressors,
    check_groups,
    dtypes_of,
    make_equal,
    naming_dtype,
    replica_of,
    send_first_workers,
)
from cser_bench.algorithms.core.finite import FiniteWatch
from cser_bench.algorithms.core.group_numbers import (
    DEFAULT,
    RANGES,
    check_numbers,
    check_options,
    check_options_now,
    group_defaults,
)
from cser_bench.algorithms.core.left_out import any_not_finite, any_overflowed
from cser_bench.algorithms.core.local_step import local_step_named
from cser_bench.algorithms.core.method import Method
from cser_bench.algorithms.core.overlap import Reducer
from cser_bench.algorithms.core.parameters import (
    check_model,
    check_parameters,
    refuse_module,
    refuse_other_model,
)
from cser_bench.algorithms.core.plan_ahead import gathers
from cser_bench.algorithms.core.process_group import collectives_of
from cser_bench.algorithms.core.replicas import (
    error_of,
    memory_in_parameters,
    numel_of,
    state_of,
    states_for,
    tensors_of,
)
from cser_bench.algorithms.core.settings import (
    FROM_0_UP,
    argument,
    arguments_of,
    declared_settings,
    plain_boolean,
    signature_of,
)
from cser_bench.algorithms.core.state import check_still_loaded
from cser_bench.algorithms.core.step_checks import StepChecks
from cser_bench.algorithms.core.topology import Topology, rounds_of
from cser_bench.algorithms.core.traffic import Traffic
from cser_bench.algorithms.core.warn import warn_script


class DistributedOptimizer(Method, Optimizer):
    """SGD, AdamW or Muon on flat buffers, and a place for each method's communication.

    Args:
        params: trainable parameters or groups of them, real and on one device; worker 0's values
            are sent to all. Each type has flat vectors, state and messages of its own; overlap
            sends those of the type of most numbers early. All workers must give them in the same
            order, which they compare by shapes, by the values that they begin with, and by names
            where `named_parameters()` or `model` has them. Without names the order of parameters of
            one shape is not seen where workers begin with values of their own.
        lr: learning rate, per group.
        momentum: Nesterov momentum, per group; local, never averaged. By default 0, or 0.9 where
            the method needs it; Muon's by default 0.95.
        weight_decay: added to the gradient, as in PyTorch, per group.
        collectives: how workers talk: a process group, a `DeviceMesh` of one dimension, or
            `Collectives`; by default the group of all processes if there is one, else a group of
            one, of which there is a warning.
        seed: where the randomness that the workers share begins, an integer from 0 up.
        communication_dtype: type of the numbers that are sent, by default the parameters' own.
            Numbers of 16 bits are added in 32, and the mean is rounded once. Rounding errors are
            treated like what a compressor leaves out: each worker keeps those of its own numbers,
            and one worker a coordinate keeps that of the mean. Methods that keep no error, such as
            SGD, lose them.
        model: the model that has the parameters. Then the rest of it, frozen parameters and
            buffers, is sent from worker 0 to all as well, and a parameter that is replaced later is
            noticed.
        local_step: "sgd", "adamw" or "muon", the rule by which a worker steps. Its momentum or
            moments are state of its own. Muon takes matrices, and AdamW all else and groups with
            muon = False; see `muon_groups`.
        betas: AdamW's, per group; by default (0.9, 0.999).
        eps: AdamW's, per group; by default 1e-8.
        skip_nonfinite: all workers leave a step out, and say whose fault it is, where a gradient of
            one of them is not finite: nothing is changed, sent or counted. To agree they send 72
            bits each before every step, as control, and the host waits for them, on a GPU too.

    Raises:
        ValueError: values out of range or that do not go together, a compressor that the method or
            the model cannot take, a topology that does not fit, or workers that differ in settings,
            seed or parameters.
        RuntimeError: several processes were started (`WORLD_SIZE` in the environment) and cannot
            talk to each other.

    `p.grad` is scratch space during `step()`.
    """

    # A GradScaler then sets found_inf and grad_scale for the time of a step.
    _step_supports_amp_scaling = True

    # The first arguments of every method's constructor; its own settings follow. They are declared
    # as a dataclass declares them, so that type checkers know the constructor of each method
    # (`dataclass_transform`); `signature_of` reads them, and no attribute is made of them.
    params: InitVar[ParamsT] = argument(kw_only=False)
    lr: InitVar[float]
    momentum: InitVar[float | None] = None
    weight_decay: InitVar[float] = 0.0
    collectives: InitVar[Collectives | ProcessGroup | DeviceMesh | None] = None
    seed: InitVar[int] = 0
    communication_dtype: InitVar[torch.dtype | None] = None
    model: InitVar[nn.Module | None] = None
    local_step: InitVar[str] = DEFAULT
    betas: InitVar[tuple[float, float] | None] = None
    eps: InitVar[float | None] = None
    skip_nonfinite: InitVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.declared = declared_settings(cls, cls.declared)
        cls.__signature__ = signature_of(DistributedOptimizer, cls)  # type: ignore[attr-defined]

    def __init__(self, params: ParamsT, *unnamed: object, **given: Any) -> None:
        refuse_module(type(self).__name__, params)
        arguments = arguments_of(type(self), unnamed, given)
        # As given: a script may change the attributes, and a state has the settings of the start.
        self.settings = {key: arguments[key] for key in self.declared}
        for key, value in self.settings.items():
            setattr(self, key, value)
        self.seed = FROM_0_UP.checked(f"{self.name}: seed", arguments["seed"])
        self.local_step = arguments["local_step"]
        self.skip_nonfinite = plain_boolean(
            f"{self.name}: skip_nonfinite", arguments["skip_nonfinite"]
        )
        self.num_steps = 0
        # Empty while torch's constructor adds the groups; see add_param_group.
        self.replicas = []
        self._communication_dtype: torch.dtype | None = arguments["communication_dtype"]
        self._model: nn.Module | None = arguments["model"]
        check_model(self._model)
        self._consensus = Consensus()

        numbers = {key: arguments[key] for key in RANGES}
        super().__init__(params, group_defaults(self, numbers))
        check_groups(self)
        self.collectives = collectives_of(arguments["collectives"], self.param_groups)
        self._build()
        if self.caution is not None:
            warn_script(f"{self.name}: {self.caution}")
        is_gathered = any(gathers(each, self.stages(each)) for each in self.replicas)
        if self.collectives.world_size > 1 and is_gathered:
            share = self.traffic_share()
            warn_of_dear_messages(self.name, share, self.collectives.world_size)

    def _build(self) -> None:
        """Make replicas, equal on all workers, and what watches their steps; then `_set_up` each."""
        refuse_other_model(self._model, self.param_groups)
        dtypes = dtypes_of(self)
        watch = FiniteWatch(self.name, self.collectives)
        self._finite_watch = watch
        self.replicas = [
            replica_of(
                self, dtype, dtype == dtypes[0], self._communication_dtype, watch
            )
            for dtype in dtypes
        ]
        # The dtype of most numbers comes first; only its messages may go early.
        first = self.replicas[0]
        self.flat = first.flat
        """The parameters and gradients of the first type."""
        # Before anything is copied from the parameters, as anchors are in _set_up.
        make_equal(self, self.replicas, self._model)
        flats = [replica.flat for replica in self.replicas]
        self._step_checks = StepChecks(
            self.name, flats, self.collectives, self.averages_in_backward
        )
        self._reducer = Reducer(
            self.flat,
            self.collectives.early,
            self.collectives.traffic,
            list_messages=lambda: self.early_messages(self.num_steps + 1),
            message_of=first.sending.message,
        )
        # A message may not leave before it is known whether the step takes place.
        if self.skip_nonfinite:
            self._reducer.stop("skip_nonfinite looks at all gradients in step()")
        for key, setting in self.declared.items():
            if setting.declared == Topology:
                self.rounds = rounds_of(getattr(self, key), self.collectives.world_size)
        for replica in self.replicas:
            with naming_dtype(replica, is_first=replica is first):
                check_compressors(self, replica)
                self._set_up(replica)

    # What a script calls: steps.

    def no_sync(self) -> AbstractContextManager[None]:
        """Return a context for all but the last of a step's backward passes.

        Inside, overlap sends nothing.
        """
        return self._reducer.pause()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step, and return the closure's loss. All workers must call it equally often.

        A gradient that is missing is zero: weight decay and momentum go on. A frozen parameter
        (`requires_grad` False) and its state are left as they are; only where workers differ in it
        may an average over workers change it.

        Raises:
            CollectiveError: another worker failed or did not come.
            RuntimeError: the model's parameters are not the optimiser's any more; with overlap,
                something was changed since the backward pass; or it is called inside `consensus()`.
            ValueError: a group's learning rate, momentum or weight decay is out of range, or workers
                differ in them, in the steps that they have done or in what is frozen. They compare
                at the first step, then at steps that get rarer, up to every 256th.
        """
        self._consensus.refuse_inside("step()")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # After the closure, which may change learning rates and parameters.
        self._take_in_changes()
        self._compare_workers()
        # The check has passed: from now on a script may change loaded parameters.
        for replica in self.replicas:
            replica.loaded = None
        if self._leave_out():
            self._drop_early()
            return loss
        self._reducer.begin_rest()
        self._finite_watch.begin_step(self.num_steps + 1)
        # One type after the other, in one order on all workers, so that their collectives match.
        for replica in self.replicas:
            self._update(replica, self.num_steps + 1)
        self.num_steps += 1
        self._step_checks.step_done()
        self._finite_watch.end_step()
        return loss

    def _take_in_changes(self) -> None:
        """Collect gradients, and check what the script did to numbers and parameters.

        Nothing is sent: an error that one worker sees alone is raised before it waits for others.
        """
        check_numbers(self.param_groups)
        check_options_now(self.param_groups, self.local_step)
        self._adopt_moved()
        for replica in self.replicas:
            replica.flat.collect_gradients()
            check_still_loaded(replica.loaded, replica.flat.parameters)

    def _compare_workers(self) -> None:
        """Compare with the other workers what the next step rests on; the first step, the whole model."""
        is_changed = self._step_checks.before_step(
            self._model, self.workers_differ, self.num_steps, self._in_step
        )
        if is_changed:
            self.reanchor()

    def _leave_out(self) -> bool:
        """Return, on all workers, whether the step is left out; else take a `GradScaler`'s scale out."""
        gradients = [replica.flat.gradients for replica in self.replicas]
        # Attributes that a GradScaler sets for the time of a step.
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None:
            self._reducer.stop(
                "a GradScaler takes the scale out of the gradients in step()"
            )
            grad_scale: Tensor | None = getattr(self, "grad_scale", None)
            return any_overflowed(gradients, found_inf, grad_scale, self.collectives)
        if not self.skip_nonfinite:
            return False
        return any_not_finite(
            self.name, self.num_steps + 1, gradients, self._in_step(), self.collectives
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients.

        They stay views of one vector, and read as zeros, whatever `set_to_none` says.
        """
        self._adopt_moved()
        for replica in self.replicas:
            replica.flat.zero_gradients()
        self._drop_early()

    def _drop_early(self) -> None:
        """Forget what was sent early for a step that is not taken, or not with these gradients."""
        self._reducer.drop()

    def _adopt_moved(self) -> None:
        """Move parameters that a script moved back into the flat vector; RuntimeError if impossible."""
        for replica in self.replicas:
            if replica.flat.moved():
                self._drop_early()
                replica.flat.adopt(replica.buffers.values())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group before the first step, and begin anew with it. All workers must call it.

        Raises:
            ValueError: a step was done, or a state loaded; and as the constructor.
        """
        if not self.replicas:  # torch's constructor adds each group
            return super().add_param_group(param_group)
        if not self._step_checks.is_at_start:
            raise ValueError(
                "no group can be added after the first step or a loaded state, as a state must "
                "not depend on when one came; add it at the start, frozen (requires_grad_(False)) "
                "until it is to be trained"
            )
        # What is made below replaces these attributes. After an error they are put back.
        before = dict(self.__dict__)
        checks = self._step_checks
        groups = list(self.param_groups)
        try:
            super().add_param_group(param_group)
            check_groups(self)
            self._build()
        except Exception:
            if self._step_checks is not checks:
                self._step_checks.close()
            self.__dict__ = before
            # In place: the list that `before` holds is the one that torch has added to.
            self.param_groups[:] = groups
            raise
        checks.close()

    @torch.no_grad()
    def reanchor(self) -> None:
        """Restart from worker 0's parameters, which are sent to all workers.

        Call it on all workers after other weights were loaded. Anchors and estimates of parameters
        become these parameters. Unsent errors and messages under way are dropped. Everything else
        stays. The first step does this by itself if parameters changed since the optimiser was made.
        """
        self._consensus.refuse_inside("reanchor()")
        check_parameters(self._model, tensors_of(self.replicas))
        self._adopt_moved()
        self._reducer.drop()
        self._finite_watch.begin_anew()
        # A message under way cannot be cancelled: it arrives, and is then forgotten.
        for replica in self.replicas:
            self._settle(replica)
        if self.collectives.world_size > 1:
            send_first_workers(self, self.replicas, self._model)
        for replica in self.replicas:
            replica.begin_anew()
        self._step_checks.parameters_replaced()

    def _in_step(self) -> dict[str, object]:
        """Return what must be equal on all workers whenever they meet, as far as the host knows it."""
        return in_step(
            self.num_steps,
            self.param_groups,
            local_step_named(self.local_step).numbers,
            [replica.flat.frozen for replica in self.replicas],
        )

    # What a script reads.

    @contextmanager
    def consensus(
        self, model: nn.Module | None = None, averages: Iterable[nn.Module] = ()
    ) -> Iterator[None]:
        """Return a context inside which the parameters are the workers' average.

        All workers must enter it. On leaving, each has its own parameters back. Inside, `step()`
        and states are refused.

        Args:
            model: the model, whose floating-point buffers, such as BatchNorm's running statistics,
                are averaged likewise; without it each worker keeps its own.
            averages: each worker's moving averages of the model (EMA, SWA), whose numbers are
                averaged likewise.

        Raises:
            CollectiveError: another worker did something else, or did not come, or workers differ in
                the steps that they have done, in a group's numbers, in what is frozen or, where
                the method keeps them equal, in parameters.
            RuntimeError: the model does not hold the optimiser's parameters.
            TypeError: the model is none.
        """
        check_model(model)
        tensors = tensors_of(self.replicas)
        check_parameters(self._model, tensors)
        self._adopt_moved()
        check_parameters(model, tensors)
        if are_apart(self.collectives):
            fields = self._in_step()
            if not self.workers_differ:
                fields[DIGEST] = digest_of_parameters(
                    replica.flat for replica in self.replicas
                )
            enter_together(self.collectives, "consensus()", fields)
        others = averaged_beside(tensors, model, averages)
        parameters = [replica.flat.parameters for replica in self.replicas]
        with self._consensus.average(parameters, others, self.collectives):
            yield

    @property
    def traffic(self) -> Traffic:
        """Exact payload bits and collectives of this worker so far, by purpose.

        Reading it waits for messages under way, which are counted when they have arrived.
        """
        for replica in self.replicas:
            self._settle(replica)
        return self.collectives.traffic

    @property
    def error(self) -> Tensor | None:
        """Errors of the local workers, of shape (local workers, d); None if the method keeps none."""
        return error_of(self.replicas)

    def memory_in_parameters(self) -> float:
        """Return the size of a worker's state, parameters and gradients aside, in parameters' sizes."""
        return memory_in_parameters(self.replicas)

    def __repr__(self) -> str:
        """Return the method, settings, the groups' numbers, d, what is sent, and the worker."""
        chosen = self.replicas[0].chosen
        if chosen["communication_dtype"] is None:
            del chosen["communication_dtype"]
        first, *others = [
            {key: group[key] for key in local_step_named(self.local_step).numbers}
            for group in self.param_groups
        ]
        given = ", ".join(f"{key}={value!r}" for key, value in (chosen | first).items())
        for number, numbers in enumerate(others, 1):
            given += f", group {number}: {numbers}"
        ratio = self.overall_ratio()
        sent = "nothing is sent" if ratio == math.inf else f"overall ratio {ratio:,.4g}"
        if ratio < math.inf and self.collectives.world_size > 1:
            sent += f", {self.traffic_share():.4g} of DDP's traffic in fp32"
        worker = f"worker {self.collectives.rank} of {self.collectives.world_size}"
        num_parameters = numel_of(self.replicas)
        return (
            f"{type(self).__name__}({given}; d = {num_parameters:,}, {sent}, {worker})"
        )

    # What is saved.

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled, as it holds the model's "
            "parameters and talks to other workers; save its state_dict(), and make another one "
            "for a copied model"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return PyTorch's state, with this worker's own as "flat" in the first group.

        Each worker must save its own.

        Where workers' parameters may differ, it holds this worker's, and `load_state_dict` puts
        them back.
        """
        self._consensus.refuse_inside("a state")
        check_parameters(self._model, tensors_of(self.replicas))
        self._adopt_moved()
        # A message under way cannot be saved; wait for it, and save its content.
        for replica in self.replicas:
            self._settle(replica)
        flat = state_of(self.replicas)
        state = super().state_dict()
        # In a group: torch.distributed.checkpoint keeps groups, and no other keys of a state.
        state["param_groups"][0]["flat"] = flat
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue, bit for bit, from a state of the same method, settings, model and worker.

        Parameters that the state holds win over those that the model has.

        Raises:
            ValueError: the state is another method's, model's or worker's, or of other settings.
        """
        self._consensus.refuse_inside("load_state_dict()")
        groups = [dict(group) for group in state_dict.get("param_groups", [{}])]
        # Removed from the groups, which torch copies deeply, vectors included.
        flat = groups[0].pop("flat", None) or state_dict.get("flat", {})
        # All are checked before any is restored: a state that does not fit changes nothing.
        states = states_for(self.replicas, flat, self.name)
        self._adopt_moved()
        self._drop_early()
        super().load_state_dict({"state": {}, "param_groups": groups})
        check_options(self.param_groups, self.local_step)
        self.num_steps = flat["num_steps"]
        self.seed = flat["seed"]
        self._step_checks.state_loaded()
        self._finite_watch.begin_anew()
        for replica, state in zip(self.replicas, states, strict=True):
            # First, or a message under way would be written into the restored state on arrival.
            self._settle(replica)
            replica.restore(state)
