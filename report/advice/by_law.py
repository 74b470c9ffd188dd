"""What the laws of size and length foretell of a job's losses, and how far the job lies beyond them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cser_bench.report.frame import Frames
from cser_bench.report.law.fit import predicted
from cser_bench.report.law.section import interval_in, laws_for_advice, place_in_law
from cser_bench.report.questions.evidence import Evidence
from cser_bench.report.speed.job import TrainingJob
from cser_bench.report.verdicts import loss, loss_interval
from cser_bench.report.wording import amount

FURTHEST = 30.0
"""How many times off the nearest run, in parameters or rounds, a law still says anything."""


@dataclass(frozen=True)
class Foretold:
    """What one law says of a method in a job.

    Attributes:
        method: its label, and the steps in which it sends all.
        distance: from the nearest run of that law: by what factor the job's parameters or its rounds
            differ from it, the larger of the two.
        sentence: the loss with its interval, or that there is no evidence.
    """

    method: str
    distance: float
    sentence: str


def said_by_law(evidence: Evidence, maps: Frames, job: TrainingJob) -> list[str]:
    """Return a sentence for each method that has a law on this kind of network.

    Args:
        maps: the experiment that advice rests on, which says what kind of network it is.
    """
    about = maps.experiment.evidence
    if about is None:
        return []
    experiments = [known.frames for known in evidence.all_of("size", network=about.network)]
    return sentences_of(experiments, job)


def sentences_of(experiments: Sequence[Frames], job: TrainingJob) -> list[str]:
    """Return what the laws of experiments say of a job, a sentence a method.

    Of a method with several laws it is what the law says that has a run nearest to the job.
    """
    nearest: dict[str, Foretold] = {}
    for frames in experiments:
        for line in _foretold(frames, job):
            known = nearest.get(line.method)
            if known is None or line.distance < known.distance:
                nearest[line.method] = line
    return [line.sentence for line in nearest.values()]


def _foretold(frames: Frames, job: TrainingJob) -> list[Foretold]:
    """Return what the laws of one experiment say of a job."""
    laws, cells = laws_for_advice(frames)
    unit = frames.metric.loss_unit
    lines = []
    for row, law in laws.items():
        label = cells.loc[cells["row"] == row, "label"].iloc[0]
        interval = interval_in(cells, row)
        place = place_in_law(job.num_parameters, job.num_steps, interval)
        [said] = predicted(law, place).to_dict("records")
        method = f"{label} with all sent in {amount(interval)} steps"
        if interval == 1:
            # A compressed message is not all that there is to send.
            method = f"{label} at every step"
        distance = _from_nearest(cells[cells["row"] == row], place)
        source = f"({frames.experiment.name})"
        if distance > FURTHEST:
            sentence = (
                f"{method}: no evidence. This job is {amount(distance)} times off the nearest run, "
                f"in parameters or rounds {source}."
            )
        else:
            ends = loss_interval(-said["high"], -said["low"], unit)
            far = "as was run"
            if distance > 1:
                far = f"{amount(distance)} times off the nearest run"
            sentence = f"{method}: {loss(-said['gap'], unit)} {unit} ({ends}), {far} {source}."
        lines.append(Foretold(method, distance, sentence))
    return lines


def _from_nearest(cells: pd.DataFrame, place: pd.DataFrame) -> float:
    """Return the least factor, over cells, by which their size or rounds differ from a place."""
    factors = []
    for term in ("num_parameters", "rounds"):
        ratios = cells[term] / place[term].iloc[0]
        factors.append(np.maximum(ratios, 1 / ratios))
    return float(np.maximum(*factors).min())
