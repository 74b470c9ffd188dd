"""Between the CPU's memory and a GPU's without waiting: out of pinned memory, in the order of the GPU's own work."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. The host waits for no GPU: what it does there next comes after the transfer."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def on_its_way(tensor: Tensor) -> Callable[[], Tensor]:
    """A function that gives the tensor on the CPU. A GPU's is sent now, and waited for only when it is asked for."""
    if tensor.device.type != "cuda":
        return lambda: tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype).pin_memory()
    copy.copy_(tensor, non_blocking=True)
    sent = torch.cuda.current_stream(tensor.device).record_event()

    def arrived() -> Tensor:
        sent.synchronize()
        return copy

    return arrived
