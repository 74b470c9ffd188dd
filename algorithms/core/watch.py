"""Notices what scripts do to a model that its optimiser cannot see: parameters replaced, a DDP left around it."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parallel import DistributedDataParallel

from algorithms.core.collectives import Collectives
from algorithms.core.flat import FlatBuffers
from algorithms.core.process_group import ProcessGroupCollectives
from algorithms.core.saved_state import check_still_loaded


class ReplacedParameters:
    """Remembers which module replaced a parameter by another one, which no optimiser then trains.

    PyTorch calls one hook for all modules whenever a parameter is registered; it goes on only where the module had one
    of that name.
    """

    _alive: ClassVar[weakref.WeakSet[ReplacedParameters]] = weakref.WeakSet()

    def __init__(self, flat: FlatBuffers) -> None:
        self._flat = flat
        self._ids = set(map(id, flat.tensors))
        self.first: str | None = None
        self._alive.add(self)

    @classmethod
    def registered(cls, module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        before = module._parameters.get(name)
        if before is not None and before is not parameter:
            for each in list(cls._alive):
                if id(before) in each._ids and each.first is None:
                    each.first = f"{type(module).__name__}.{name}"

    def check(self) -> None:
        """Raises RuntimeError where a parameter was replaced."""
        if self.first is not None:
            raise RuntimeError(
                f"{self.first} is another Parameter now than when the optimiser was made (load_state_dict with "
                "assign=True, or an assignment), so this optimiser would train one that the model does not have any "
                "more; make the optimiser afterwards, or load with assign=False"
            )


_wrappers = weakref.WeakSet(each for each in gc.get_objects() if issubclass(type(each), DistributedDataParallel))
"""All that there are: those made before this module was imported, and those that take a module in later."""


def _note_wrapper(module: nn.Module, name: str, inner: nn.Module | None) -> None:
    if isinstance(module, DistributedDataParallel):
        _wrappers.add(module)


register_module_parameter_registration_hook(ReplacedParameters.registered)
register_module_module_registration_hook(_note_wrapper)


def check_first_step(loaded: Tensor | None, flat: FlatBuffers, collectives: Collectives) -> None:
    """Before the first step, or the first after `loaded` were put in the parameters' place, if they were.

    Raises:
        RuntimeError: as `check_still_loaded` and `refuse_ddp`.
    """
    check_still_loaded(loaded, flat.parameters)
    refuse_ddp(flat, collectives)
    if len(flat.idle) == len(flat.tensors):
        warnings.warn("no parameter has a gradient at the optimiser's first step", stacklevel=4)


def allow_ddp(wrapper: DistributedDataParallel) -> None:
    """This one is an optimiser's own way to average."""
    _wrappers.discard(wrapper)


def refuse_ddp(flat: FlatBuffers, collectives: Collectives) -> None:
    """Raises RuntimeError where workers are processes and a DistributedDataParallel holds one of the parameters."""
    if not isinstance(collectives, ProcessGroupCollectives) or collectives.world_size == 1:
        return
    ours = set(map(id, flat.tensors))
    for wrapper in list(_wrappers):
        if any(id(parameter) in ours for parameter in wrapper.parameters()):
            raise RuntimeError(
                "the model is in a DistributedDataParallel, which averages every gradient in full in each backward "
                "pass, so that nothing is saved; take the wrapper off: call the module itself (ddp.module)"
            )
