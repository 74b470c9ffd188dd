"""Where the program's own files lie."""

from __future__ import annotations

from pathlib import Path

PACKAGE = "cser_bench"
OURS = Path(__file__).absolute().parents[2]
"""The folder that our package lies in. Not resolved: in a checkout `cser_bench/harness` is a
link."""

EXPERIMENTS = Path(__file__).parent / "experiments"
"""The experiments that come with the program."""

SHIPPED_TUNINGS = Path(__file__).parent / "shipped"
"""Records of tunings that come with the program: in a checkout its results folder, in an
installation the tunings of it."""

TRACKS = OURS / PACKAGE / "tracks"
"""The open tracks: in a checkout all of them with their entries, in an installation the rules."""
