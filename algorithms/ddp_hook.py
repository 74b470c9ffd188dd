"""Error feedback on gradients as a communication hook of DistributedDataParallel.

Source: `EFSGD` with `error_feedback_on="gradients"`, of one bucket of DDP's at a time:

    e_i <- e_i + g_i
    g   <- mean(C(e))
    e_i <- e_i - C(e_i)

A hook sees gradients before the optimiser does, so error feedback on gradients is all that a hook
can have. On updates, after momentum or moments, it is `EFSGD`, an optimiser.

Clipping and the optimiser see the mean of what was sent, the same on all workers. In `no_sync`
nothing is sent, and what adds up there is g_i of the pass that ends it. A bucket whose mean is not
finite leaves e_i as it was on all workers, so that no infinity enters it. Parameters and autocast in
fp16 are refused, as they need loss scaling: e_i would not follow the scale, and a step left out
would lose what it sent.
Cost: that of C for each bucket and step, one collective.
State: e_i, by parameter, since DDP makes other buckets after the first step.
"""

# No "from __future__ import annotations": DDP looks at the hook's annotations, which must be types.

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from cser_bench.algorithms.compressors.coordinates import TopK
from cser_bench.algorithms.compressors.quantisers import QuantisedBlocks
from cser_bench.algorithms.core import Compressor, Layout, Purpose, Traffic
from cser_bench.algorithms.core.agreement import check_agreement
from cser_bench.algorithms.core.by_traffic import (
    share_at_every_step,
    share_of,
    warn_of_dear_messages,
)
from cser_bench.algorithms.core.compressors import Draw
from cser_bench.algorithms.core.exchange import Sending
from cser_bench.algorithms.core.process_group import ProcessGroupCollectives

COMPRESSORS = (TopK, QuantisedBlocks)
"""Compressors that the hook takes; they draw nothing, and work on vectors of any length."""
NO_DRAW = Draw(0, 0, Purpose.GRADIENT.value)
NAME = "error_feedback_hook"


class ErrorFeedbackState:
    """The state of `error_feedback_hook`: what was not sent yet of each parameter's gradient.

        model = DistributedDataParallel(model)
        model.register_comm_hook(ErrorFeedbackState(model, TopK(192)), error_feedback_hook)

    All workers must make it together. It makes a second process group of the same workers, so that
    messages travel beside the backward pass and never between DDP's own.

    Args:
        model: the model in DDP, whose hook it is for.
        compressor: C, one of `COMPRESSORS`.

    Raises:
        ValueError: the hook cannot work on this model or with this compressor, or workers have
            different ones.
    """

    def __init__(self, model: DistributedDataParallel, compressor: Compressor) -> None:
        _check_model(model)
        parameters = {}
        for name, parameter in model.module.named_parameters():
            if parameter.requires_grad:
                parameters[name] = parameter
        _check_parameters(parameters)
        _check_compressor(compressor, Layout.of(parameters.values()))
        self.compressor = compressor
        self.num_steps = 0
        self.errors = {name: torch.zeros_like(p) for name, p in parameters.items()}
        """e_i by parameter, of its shape; where a bucket has come, views of the bucket's vector."""
        self._names: dict[Tensor, str] = {p: name for name, p in parameters.items()}
        self._vectors: dict[tuple[str, ...], Tensor] = {}
        """e_i of each bucket, by the names of its parameters in order."""
        overlapping = ProcessGroupCollectives(model.process_group, overlap=True)
        assert overlapping.early is not None
        self.beside = overlapping.early.beside
        """Has work done beside the backward pass; see `EarlyMeans`."""
        self.collectives = overlapping.twin
        # On the twin's own group: DDP's collectives and these need no common order.
        self._sending = Sending(self.collectives)
        check_agreement(self.collectives, {"compressor": compressor})
        _first_with_parameters(model).register_forward_pre_hook(_refuse_fp16_autocast)
        world_size = self.collectives.world_size
        if world_size > 1:
            share = share_at_every_step(compressor, world_size)
            warn_of_dear_messages(NAME, share, world_size)

    @property
    def traffic(self) -> Traffic:
        """What this worker has sent so far; read it between backward passes."""
        return self.collectives.traffic

    def traffic_share(self) -> float:
        """Return what a link has carried so far, as a share of DDP's in fp32; 0 before a step."""
        if not self.num_steps:
            return 0.0
        numel = sum(error.numel() for error in self.errors.values())
        sent = self.traffic[Purpose.GRADIENT]
        return share_of(sent, self.collectives.world_size, numel, self.num_steps)

    def error_of(self, bucket: GradBucket) -> Tensor:
        """Return e_i of the bucket's parameters, laid out as its buffer.

        Where DDP has made other buckets since, the errors move to where their parameters are now.
        """
        names = tuple(self._name_of(parameter) for parameter in bucket.parameters())
        if names not in self._vectors:
            self._vectors[names] = self._moved(names, bucket)
        return self._vectors[names]

    def _name_of(self, parameter: Tensor) -> str:
        name = self._names.get(parameter)
        if name is None:
            raise ValueError(
                f"{NAME}: a parameter of shape {tuple(parameter.shape)} is not one of the model "
                "that the state was made for; make a state for each model in DDP"
            )
        return name

    def _moved(self, names: tuple[str, ...], bucket: GradBucket) -> Tensor:
        """Return a new vector for these parameters, with the errors that they have."""
        vector = torch.empty_like(bucket.buffer())
        # As in the buffer: one after the other, channels last where the parameter is.
        layout = Layout.of(bucket.parameters())
        for name, window in zip(names, layout.tensors, strict=True):
            place = window.view(vector)
            place.copy_(self.errors[name])
            self.errors[name] = place
        # Vectors of former buckets with one of these parameters, whose memory nobody needs now.
        for former in [key for key in self._vectors if not set(names).isdisjoint(key)]:
            del self._vectors[former]
        return vector

    def average_(self, gradient: Tensor, error: Tensor) -> None:
        """Do e <- e + g; g <- mean(C(e)); e <- e - C(e), of one bucket's vectors."""
        layout = Layout.flat(slice(0, gradient.numel()))
        vector = (error + gradient).unsqueeze(0)  # (this worker, numbers of the bucket)
        sent = self._sending.exchange(
            vector, self.compressor, layout, NO_DRAW, Purpose.GRADIENT
        )
        gradient.copy_(sent.mean[0])
        # g <- mean(C(e)), and what is left of e + g is e - C(e).
        unsent = vector.sub_(sent.own)[0]
        # The mean is the same on all workers, and so is this. On a GPU the host does not ask for it.
        is_finite = torch.linalg.vector_norm(gradient, torch.inf).isfinite()
        torch.where(is_finite, unsent, error, out=error)

    def state_dict(self) -> dict[str, Any]:
        """Return this worker's state, to be saved in a file of its own.

        It fits the same worker of as many workers.
        """
        return {
            "compressor": repr(self.compressor),
            "rank": self.collectives.rank,
            "world_size": self.collectives.world_size,
            # The tensors themselves, as torch's own states hold them: who saves them copies them.
            "errors": dict(self.errors),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the errors of a saved state.

        Raises:
            ValueError: it is another worker's, of another number of workers, or of another
                compressor or model.
        """
        self._check_state(state_dict)
        for name, error in self.errors.items():
            error.copy_(state_dict["errors"][name])

    def _check_state(self, state_dict: dict[str, Any]) -> None:
        refused = f"this state does not fit {NAME}"
        world_size = self.collectives.world_size
        rank = self.collectives.rank
        if state_dict["world_size"] != world_size:
            raise ValueError(
                f"{refused}: it is one of {state_dict['world_size']} workers', here are "
                f"{world_size}; begin with a new state, which forgets what was not sent yet"
            )
        if state_dict["rank"] != rank:
            raise ValueError(
                f"{refused}: it is worker {state_dict['rank']}'s, this is worker {rank}; each "
                "worker must save a file of its own and load that"
            )
        if state_dict["compressor"] != repr(self.compressor):
            raise ValueError(
                f"{refused}: it was saved with {state_dict['compressor']}, this has "
                f"{self.compressor}; make the state with the former"
            )
        saved = _shapes(state_dict["errors"])
        own = _shapes(self.errors)
        if saved != own:
            differing = sorted(name for name, _ in saved.items() ^ own.items())[0]
            raise ValueError(
                f"{refused}: its {differing} is of shape {saved.get(differing)}, this model's of "
                f"{own.get(differing)}; load the state of this model"
            )


def error_feedback_hook(
    state: ErrorFeedbackState, bucket: GradBucket
) -> torch.futures.Future[Tensor]:
    """Begin to average a bucket's gradients with error feedback; see `ErrorFeedbackState`.

    The host waits for nothing: on a CPU a thread of its own does the work, on a GPU a stream.
    """
    gradient = bucket.buffer()
    if gradient.layout is not torch.strided:
        raise ValueError(
            f"{NAME}: a gradient is sparse, as nn.Embedding(sparse=True) makes them; make them "
            "dense"
        )
    error = state.error_of(bucket)
    devices: list[int | str | torch.device] = (
        [gradient.device] if gradient.is_cuda else []
    )
    done = torch.futures.Future[Tensor](devices=devices)

    def average() -> tuple[Tensor]:
        try:
            state.average_(gradient, error)
        except Exception as problem:
            done.set_exception(problem)  # type: ignore[arg-type]
        else:
            # In the stream that did the work, so that DDP's waits for it.
            done.set_result(gradient)
        return (gradient,)

    state.beside(average, gradient)
    if bucket.is_last():
        state.num_steps += 1
    # `value` raises what was raised above; DDP would take the exception for a tensor.
    return done.then(lambda finished: finished.value())


def _check_model(model: object) -> None:
    if not isinstance(model, DistributedDataParallel):
        raise ValueError(
            f"{NAME}: the model must be in DistributedDataParallel, and this is "
            f"{type(model).__name__}; wrap it first"
        )
    if model.find_unused_parameters and not model.static_graph:
        raise ValueError(
            f"{NAME}: what is sent of a parameter that no worker has used is dropped by DDP; "
            "leave find_unused_parameters out, or give DDP static_graph=True where the same are "
            "unused at every step"
        )


def _check_parameters(parameters: dict[str, Parameter]) -> None:
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise ValueError(
                f"{NAME}: {name} is {parameter.dtype}, and only real numbers are compressed; take "
                "DDP's own hook for this model"
            )
        if parameter.dtype == torch.float16:
            raise ValueError(_loss_scaling(f"{name} is torch.float16"))


def _check_compressor(compressor: object, layout: Layout) -> None:
    if not isinstance(compressor, COMPRESSORS):
        kinds = " or ".join(each.__name__ for each in COMPRESSORS)
        raise ValueError(f"{NAME}: the compressor must be {kinds}, not {compressor!r}")
    try:
        compressor.check(layout)
    except ValueError as error:
        raise ValueError(f"{NAME}: {error}") from None


def _first_with_parameters(model: nn.Module) -> nn.Module:
    """Return the first module with parameters of its own.

    Inside it, autocast is on also where the model's own forward pass enters it, as accelerate has it.
    """
    return next(
        each for each in model.modules() if list(each.parameters(recurse=False))
    )


def _refuse_fp16_autocast(module: nn.Module, inputs: object) -> None:
    device_type = next(module.parameters()).device.type
    if not torch.is_autocast_enabled(device_type):
        return
    if torch.get_autocast_dtype(device_type) == torch.float16:
        raise RuntimeError(_loss_scaling("autocast is in torch.float16"))


def _loss_scaling(what: str) -> str:
    return (
        f"{NAME}: {what}, which needs loss scaling, and the error would not follow the scale; "
        "train in bfloat16 or float32, or take EFSGD"
    )


def _shapes(errors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(error.shape) for name, error in errors.items()}
