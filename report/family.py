"""The declared tests of an experiment as one family, over which Holm's correction runs once."""

import pandas as pd

from cser_bench.report.frame import Frames
from cser_bench.report.law.exponents import exponents_frame
from cser_bench.report.law.gaps import diverged_rows
from cser_bench.report.law.section import whole_cells
from cser_bench.report.statistics import judged_contrasts


def contrasts_frame(frames: Frames) -> pd.DataFrame:
    """Return `judged_contrasts`, in one family with the experiment's questions of exponents."""
    return judged_contrasts(frames, _exponent_p_values(frames))


def _exponent_p_values(frames: Frames) -> list[float]:
    asked = frames.experiment.exponents
    if not asked:
        return []
    answers = exponents_frame(
        whole_cells(frames), asked, diverged_rows(frames), str(frames.experiment.baseline)
    )
    p_values: list[float] = answers["p"].tolist()
    return p_values
