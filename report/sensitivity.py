"""Whether an experiment is sensitive enough to call a drop small."""

import math

import pandas as pd

from cser_bench.report.frame import Frames
from cser_bench.report.statistics import contrasts_frame, rows_by_length

MARGINS = 3
DEVIATIONS = 10
"""An experiment is sensitive enough if the gap of no communication holds so many margins, and so many
standard deviations."""

NOT_CLAIMED = "inconclusive, not sensitive enough"
"""The verdict of an experiment that could not have told a drop."""


def assay_frame(frames: Frames) -> pd.DataFrame:
    """Return the gap between DDP and no communication, at each length.

    First the experiment's own length, then from the longest down. Sizes other than its own are left
    out.

    Columns: num_steps, ceiling, floor, gap (shares), deviation (between seeds, of the bound that
    spreads more), reason (why it is not sensitive enough; None where it is).
    """
    experiment = frames.experiment
    rows = frames.rows
    ceilings = rows_by_length(frames, experiment.baseline)
    floors = rows_by_length(frames, experiment.floor)
    here = rows[(rows["rule"] == "held_out") & rows["tunes"].isna()]
    # The first row has the experiment's own size.
    here = here[here["num_parameters"] == rows["num_parameters"].iloc[0]]
    lengths = [int(steps) for steps in here["num_steps"].unique()]
    lengths_of_baseline = {row: steps for steps, row in ceilings.items()}
    own_length = lengths_of_baseline.get(str(experiment.baseline))
    lines = []
    # False sorts before True: the own length first, then from the longest down.
    for steps in sorted(lengths, key=lambda steps: (steps != own_length, -steps)):
        # No row has an empty name: a bound that was not planned at this length has no scores.
        ceiling = frames.done(ceilings.get(steps, ""))
        floor = frames.done(floors.get(steps, ""))
        # The mean of no scores is NaN, and so is the gap.
        gap = ceiling.mean() - floor.mean()
        deviation = math.nan
        if min(len(ceiling), len(floor)) > 1:
            deviation = max(ceiling.std(ddof=1), floor.std(ddof=1))
        line = {
            "num_steps": steps,
            "ceiling": ceiling.mean(),
            "floor": floor.mean(),
            "gap": gap,
            "deviation": deviation,
            "reason": _reason(experiment.margin, gap, deviation),
        }
        lines.append(line)
    columns = ["num_steps", "ceiling", "floor", "gap", "deviation", "reason"]
    frame = pd.DataFrame(lines, columns=columns)
    # As objects: pandas would make texts of a column with some None, and NaN of None.
    reasons = [line["reason"] for line in lines]
    frame["reason"] = pd.Series(reasons, index=frame.index, dtype=object)
    return frame


def claimed_contrasts(frames: Frames) -> pd.DataFrame:
    """Return `contrasts_frame`, without its verdicts where the experiment is not sensitive enough."""
    lines = contrasts_frame(frames)
    if is_sensitive(frames):
        return lines
    return lines.assign(verdict=NOT_CLAIMED)


def is_sensitive(frames: Frames) -> bool:
    """Return whether an experiment is sensitive enough at its own length."""
    # `assay_frame` has the experiment's own length first; without any line nothing is known.
    return bool(assay_frame(frames)["reason"].head(1).isna().any())


def _reason(margin: float | None, gap: float, deviation: float) -> str | None:
    """Return why an experiment is not sensitive enough; None where it is."""
    if margin is None:
        return "the experiment sets no margin"
    if math.isnan(gap):
        return "finished runs of no communication, or of the baseline, are missing"
    if gap < MARGINS * margin:
        return f"the gap of no communication is {gap / margin:.2g} margins, where {MARGINS} are needed"
    if math.isnan(deviation) or gap < DEVIATIONS * deviation:
        return f"the gap of no communication is less than {DEVIATIONS} standard deviations between seeds"
    return None
