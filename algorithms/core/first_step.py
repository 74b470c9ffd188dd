"""What is looked at once, at the first step: whether gradients arrive, of this model, and of each worker its own."""

from __future__ import annotations

import warnings
from functools import partial

import torch
from torch import Tensor, nn

from algorithms.core.collectives import Collectives
from algorithms.core.flat import FlatBuffers
from algorithms.core.process_group import ProcessGroupCollectives
from algorithms.core.traffic import Purpose


class FirstStep:
    """The checks of the first step, and what must be noted before it for them.

    Args:
        averaged: the method's own backward pass averages gradients, so that they may be equal on all workers.
    """

    def __init__(self, flat: FlatBuffers, collectives: Collectives, averaged: bool) -> None:
        self._flat, self._collectives = flat, collectives
        self._own = torch.zeros(len(flat.tensors), dtype=torch.float64, device=flat.parameters.device)
        """Of each gradient the sum of its numbers, as the backward pass left it on this worker."""
        several = isinstance(collectives, ProcessGroupCollectives) and collectives.world_size > 1
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._note, number))  # type: ignore[no-untyped-call]
            for number, parameter in enumerate(flat.tensors)
            if several and not averaged
        ]

    @torch.no_grad()
    def _note(self, number: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._own[number] = parameter.grad.sum(dtype=torch.float64)

    def check(self, model: nn.Module | None) -> None:
        """Warns where parameters have no gradient.

        Raises:
            RuntimeError: the model has other parameters by now, or its gradients are averaged already.
        """
        for hook in self._hooks:
            hook.remove()
        check_parameters(model, self._flat)
        gradients = self._flat.gradients
        if type(gradients) is Tensor and not gradients.is_meta and not gradients.any():
            warnings.warn(
                "no parameter has a gradient at the optimiser's first step; where the model got other ones since it "
                "was made (load_state_dict with assign=True, to_empty), make the optimiser afterwards",
                stacklevel=4,
            )
        if self._hooks:
            self._hooks = []
            self._check_own()

    def _check_own(self) -> None:
        """Sums that differed between workers after the backward pass, and are equal now, were averaged by someone."""
        windows = self._flat.layout.tensors
        now = torch.stack([window.view(self._flat.gradients[0]).sum(dtype=torch.float64) for window in windows])
        sums = self._collectives.all_gather(torch.stack([self._own, now]).unsqueeze(0), Purpose.CONTROL)
        before, after = (bool((part == part[0]).all()) for part in sums.unbind(1))
        if after and not before:
            raise RuntimeError(
                "every worker has the same gradients, though the backward pass gave each its own: they are averaged in "
                "full before this optimiser sees them, so that nothing is saved; where the model is in a "
                "DistributedDataParallel, take the wrapper off: call the module itself (ddp.module)"
            )


def check_parameters(model: nn.Module | None, flat: FlatBuffers) -> None:
    """Raises RuntimeError where the model, if it is known, does not hold the optimiser's parameters any more."""
    if model is None:
        return
    held = set(map(id, model.parameters()))
    missing = [number for number, parameter in enumerate(flat.tensors) if id(parameter) not in held]
    if missing:
        raise RuntimeError(
            f"the model has another Parameter in place of number {missing[0]} than when the optimiser was made "
            "(load_state_dict with assign=True, or an assignment), so this optimiser would train one that the "
            "model lost; make the optimiser afterwards, or load with assign=False"
        )
