"""What the law of size and length foretells of a job's losses, and how far the job lies beyond it."""

import pandas as pd

from cser_bench.report.frame import Frames
from cser_bench.report.law.fit import fit_law, fitted_cells, predicted
from cser_bench.report.law.gaps import cells_frame, diverged_rows, gaps_frame
from cser_bench.report.questions.evidence import Evidence
from cser_bench.report.speed.job import TrainingJob
from cser_bench.report.verdicts import loss, loss_interval
from cser_bench.report.wording import amount

FURTHEST = 30.0
"""How many times beyond what was fitted, in parameters or rounds, a law still says anything."""


def said_by_law(evidence: Evidence, maps: Frames, job: TrainingJob) -> list[str]:
    """Return a sentence for each method that has a law on this kind of network.

    Args:
        maps: the experiment that advice rests on, which says what kind of network it is.
    """
    about = maps.experiment.evidence
    if about is None:
        return []
    sentences = []
    for known in evidence.all_of("size", network=about.network):
        sentences += _of_experiment(known.frames, job)
    return sentences


def _of_experiment(frames: Frames, job: TrainingJob) -> list[str]:
    cells = cells_frame(gaps_frame(frames))
    unit = frames.metric.loss_unit
    diverged = diverged_rows(frames)
    sentences = []
    for row, own in cells.groupby("row", sort=False):
        law = fit_law(fitted_cells(own, [str(row)]))
        if law is None or row in diverged:
            continue
        interval = float(own["interval"].iloc[0])
        place = {
            "num_parameters": float(job.num_parameters),
            "num_steps": float(job.num_steps),
            "rounds": job.num_steps / interval,
            "interval": interval,
            "steps_a_parameter": job.num_steps / job.num_parameters,
        }
        [line] = predicted(law, pd.DataFrame([place])).to_dict("records")
        name = f"{own['label'].iloc[0]} with all sent in {amount(interval)} steps"
        source = f"({frames.experiment.name})"
        if line["beyond"] > FURTHEST:
            sentences.append(
                f"{name}: no evidence. This job is {amount(line['beyond'])} times beyond the "
                f"sizes and rounds that were run {source}."
            )
            continue
        ends = loss_interval(-line["high"], -line["low"], unit)
        beyond = ""
        if line["beyond"] > 1:
            beyond = f", {amount(line['beyond'])} times beyond what was run"
        sentences.append(f"{name}: {loss(-line['gap'], unit)} {unit} ({ends}){beyond} {source}.")
    return sentences
