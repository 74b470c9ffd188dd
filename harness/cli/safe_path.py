"""Keeps what lies in the current folder from being imported in place of our packages, here and in processes begun."""

from __future__ import annotations

import os
import sys
from pathlib import Path

OURS = Path(__file__).resolve().parents[2]
"""The folder that our packages lie in."""


def leave_out_current_folder() -> None:
    """Take the current folder off the path, unless our packages lie there; those that we start never look there."""
    if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == Path.cwd():  # put there by `python -m`
        if Path.cwd() == OURS:
            before = os.environ.get("PYTHONPATH")
            os.environ["PYTHONPATH"] = f"{OURS}{os.pathsep}{before}" if before else str(OURS)
        else:
            del sys.path[0]
    os.environ["PYTHONSAFEPATH"] = "1"
