"""Warnings that name a line of the user's script, whatever calls stand between it and here."""

import contextlib
import inspect
import os
import warnings
from pathlib import Path

import torch

_PASSED = (
    # As this file was imported: a checkout's package is reached through a link.
    f"{Path(__file__).parents[1]}{os.sep}",
    f"{Path(torch.__file__).parent}{os.sep}",
    contextlib.__file__,
)
"""Beginnings of files that are no script's: `torch.optim` wraps `step()`, as often as it likes."""


def warn_script(message: str) -> None:
    """Warn, with the innermost line that is neither of this package nor of torch."""
    frame = inspect.currentframe()
    # 1 stands for this function.
    level = 1
    while frame is not None and frame.f_code.co_filename.startswith(_PASSED):
        frame = frame.f_back
        level += 1
    warnings.warn(message, stacklevel=level)
