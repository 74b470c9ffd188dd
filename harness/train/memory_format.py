"""In which order a convolutional model's numbers lie: channels last is what tensor cores want."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from harness.train.checkpoint import CheckpointError

MemoryFormat = Literal["contiguous", "channels_last"]
Wanted = Literal["auto", "contiguous", "channels_last"]


def choose_format(wanted: Wanted, model: nn.Module, device: torch.device) -> MemoryFormat:
    """What "auto" means: channels last on GPUs where the model has convolutions of images, else contiguous."""
    if wanted != "auto":
        return wanted
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return "channels_last" if device.type == "cuda" and convolves else "contiguous"


def lay_out(model: nn.Module, wanted: Wanted) -> MemoryFormat:
    """Bring a model that is on its device into the format, before an optimiser is made of it; which one that is.

    Kernels bring the layers' inputs along, since a convolution computes in the format of its weights.
    """
    chosen = choose_format(wanted, model, next(model.parameters()).device)
    if chosen == "channels_last":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return chosen


def format_of(model: nn.Module) -> MemoryFormat:
    """The format that a model is in."""
    images = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    return "contiguous" if all(parameter.is_contiguous() for parameter in images) else "channels_last"


def check_format(saved: MemoryFormat, model: nn.Module, folder: Path) -> None:
    """Raises CheckpointError where vectors that were saved in one format would be taken for those of another."""
    own = format_of(model)
    if saved != own:
        raise CheckpointError(
            f"the checkpoint in {folder} has its vectors in the order of the memory format {saved}, and this attempt "
            f"has {own}; give --memory-format {saved}, or delete the folder to start anew"
        )
