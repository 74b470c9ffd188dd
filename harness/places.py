"""Where the program's own files lie."""

from __future__ import annotations

from pathlib import Path

import cser_bench

PACKAGE = "cser_bench"
OURS = Path(cser_bench.__file__).absolute().parents[1]
"""The folder that our package lies in."""

PROGRAM = Path(__file__).resolve().parents[1]
"""The folder that holds `harness`, `results` and the others: the top of a checkout, in an
installation our package. Resolved: in a checkout `cser_bench/harness` may be a link."""

EXPERIMENTS = Path(__file__).parent / "experiments"
"""The experiments that come with the program."""

SHIPPED_TUNINGS = PROGRAM / "results"
"""Records that come with the program: in a checkout its results folder, in an installation the
packed experiments of it."""
