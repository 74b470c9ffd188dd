"""A GPU that is not there: tensors on it have shapes and no numbers, and what would make the host wait is written down.

Tensors on the CPU are real; those on "cuda" are torch's fake ones, which need no CUDA. A torch without CUDA refuses
some ways to that device before any mode sees them: these are led past its refusal. Gradients it refuses altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
READS = (aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default)
SHAPED_BY_NUMBERS = (aten.nonzero.default, aten._unique2.default, aten.masked_select.default)
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
IN_PLACE_ALONE = ("aten._fused_sgd_", "aten._amp_update_scale_", "aten._amp_foreach_non_finite_check_and_unscale_")
"""They give nothing new, and some versions of torch have no fake form of them."""


class _Device(TorchDispatchMode):
    """Writes down each wait of the host for "cuda". Lies above the fake mode, and spares real tensors that."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits, self.told = waits, 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        there = any(isinstance(each, FakeTensor) for each in tensors)
        if not there and torch.device(kwargs.get("device") or "cpu").type != "cuda":
            return _really(func, *args, **kwargs)
        self.told += 1
        moves_index = func in INDEXED and any(each.device.type == "cpu" and each.dim() for each in tensors)
        if func in (*READS, *SHAPED_BY_NUMBERS) or moves_index:
            self.waits.append(str(func))
        if func in READS:
            number = func is READS[0] and tensors[0].dtype.is_floating_point
            return 0.0 if number else False
        if func in COPIES:
            return self._copied(func, tensors, args, kwargs)
        if str(func).startswith(IN_PLACE_ALONE):
            return args[0] if func._schema.returns else None
        return func(*args, **kwargs)

    def _copied(self, func: Any, tensors: list[Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """To the device without numbers; from there, since nobody knows them, zeros."""
        source, into = tensors[-1], tensors[0] if func is aten.copy_.default else None
        target = torch.device(kwargs.get("device") or source.device) if into is None else into.device
        if source.device.type != target.type:
            on_cpu = source if source.device.type == "cpu" else into
            non_blocking = kwargs.get("non_blocking") or (into is not None and args[2:] == (True,))
            if not (non_blocking and on_cpu is not None and getattr(on_cpu, "is_pinned_here", False)):
                self.waits.append(f"{func} of {tuple(source.shape)} from {source.device} to {target}")
            if target.type == "cpu" and into is not None:
                return _really(into.zero_)
            if target.type == "cpu":
                return _really(torch.zeros, source.shape, dtype=kwargs.get("dtype") or source.dtype)
        return func(*args, **kwargs)


def _really(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with unset_fake_temporarily():
        return function(*args, **kwargs)


def _to(original: Callable[..., Tensor], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    non_blocking, copy = kwargs.pop("non_blocking", False), kwargs.pop("copy", False)
    for each in args:
        if isinstance(each, Tensor):
            kwargs |= {"device": each.device, "dtype": each.dtype}
        else:
            kwargs["dtype" if isinstance(each, torch.dtype) else "device"] = each
    device, dtype = torch.device(kwargs.pop("device", None) or tensor.device), kwargs.pop("dtype", None) or tensor.dtype
    if device.type == tensor.device.type == "cpu":
        return original(tensor, dtype=dtype, copy=copy, **kwargs)
    if (device.type, dtype) == (tensor.device.type, tensor.dtype) and not copy and not kwargs:
        return tensor
    moved: Tensor = aten._to_copy.default(tensor, dtype=dtype, device=device, non_blocking=non_blocking, **kwargs)
    return moved


def _pinned(tensor: Tensor) -> Tensor:
    assert tensor.device.type == "cpu", "only the CPU's memory can be pinned"
    copy = tensor.clone()
    copy.is_pinned_here = True  # type: ignore[attr-defined]
    return copy


def _item(tensor: Tensor, index: Any) -> Tensor:
    """What `tensor[index]` is."""
    entries = list(index) if isinstance(index, tuple) else [index]
    places = [place for place, entry in enumerate(entries) if entry is Ellipsis]
    rest = [slice(None)] * (tensor.dim() - sum(entry is not None and entry is not Ellipsis for entry in entries))
    for place in places or [len(entries)]:
        entries[place : place + 1] = rest
    dim = 0
    for entry in entries:
        if isinstance(entry, int):
            tensor = aten.select.int(tensor, dim, entry)
            continue
        if entry is None:
            tensor = aten.unsqueeze.default(tensor, dim)
        elif isinstance(entry, slice):
            tensor = aten.slice.Tensor(tensor, dim, entry.start, entry.stop, entry.step or 1)
        else:
            assert entry.dim() == 1, "no more is needed so far"
            tensor = aten.index.Tensor(tensor, [None] * dim + [entry])
        dim += 1
    return tensor


class _Stream:
    def __init__(self, device: _Device) -> None:
        self._device = device

    def wait_stream(self, other: _Stream) -> None: ...

    def wait_event(self, event: _Event) -> None: ...

    def record_event(self) -> _Event:
        event = _Event(self._device)
        event.record()
        return event


class _Event:
    def __init__(self, device: _Device) -> None:
        self._device = device

    def record(self, stream: _Stream | None = None) -> None:
        self._at = self._device.told

    def query(self) -> bool:
        return self._device.told > self._at

    def synchronize(self) -> None:
        if not self.query():
            self._device.waits.append("an event after which the GPU has nothing to do")

    def elapsed_time(self, end: _Event) -> float:
        return float(end._at - self._at)


@contextmanager
def host_waits() -> Iterator[list[str]]:
    """Inside, "cuda" may be used; the list grows by a line for each time that the host would wait for it."""
    waits, to, item = list[str](), Tensor.to, Tensor.__getitem__
    device, set_item = _Device(waits), Tensor.__setitem__

    def set_there(tensor: Tensor, index: Any, value: Any) -> None:
        if not isinstance(tensor, FakeTensor):
            set_item(tensor, index, value)
        elif isinstance(value, Tensor):
            aten.copy_.default(_item(tensor, index), value)
        else:
            aten.fill_.Scalar(_item(tensor, index), value)

    replaced: dict[str, Callable[..., Any]] = {
        "to": lambda tensor, *args, **kwargs: _to(to, tensor, *args, **kwargs),
        "cpu": lambda tensor: tensor.to("cpu"),
        "copy_": lambda tensor, *source, **kwargs: aten.copy_.default(tensor, *source, **kwargs),
        "pin_memory": _pinned,
        "record_stream": lambda tensor, stream: None,
        "__getitem__": lambda tensor, index: (_item if isinstance(tensor, FakeTensor) else item)(tensor, index),
        "__setitem__": set_there,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, function in replaced.items():
            patch.setattr(Tensor, name, function)
        patch.setattr(torch.cuda, "Event", lambda enable_timing=False: _Event(device))
        patch.setattr(torch.cuda, "Stream", lambda where: _Stream(device))
        patch.setattr(torch.cuda, "current_stream", lambda where: _Stream(device))
        patch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        with FakeTensorMode(allow_non_fake_inputs=True), device:
            yield waits


def on_gpu(model: nn.Module) -> nn.Module:
    """The model with its parameters and buffers on "cuda"; inside `host_waits`."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().to("cuda"))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to("cuda")
    return model


def missing() -> str | None:
    """Why this torch cannot do it, or None."""
    try:
        with host_waits() as waits:
            there = torch.ones(3, device="cuda").to(torch.float64)[..., :2]
            torch.ones(3).pin_memory().to("cuda", non_blocking=True)
            assert there.device.type == "cuda" and there.shape == (2,) and not waits, waits
            assert torch.ones(3).sum().item() == 3.0 and not waits, waits
            torch.ones(3).to("cuda")
            there.sum().item()
            there.cpu()
            assert len(waits) == 3, waits
    except Exception as error:
        return f"torch {torch.__version__} has no such fake GPU: {type(error).__name__}: {error}"
    return None
