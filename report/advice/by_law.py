"""What the law of size and length foretells of a job's losses, and how far the job lies beyond it."""

from cser_bench.report.frame import Frames
from cser_bench.report.law.fit import predicted
from cser_bench.report.law.gaps import cells_frame, gaps_frame
from cser_bench.report.law.section import interval_in, laws_for_advice, place_in_law
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
        sentences += sentences_of(known.frames, job)
    return sentences


def sentences_of(frames: Frames, job: TrainingJob) -> list[str]:
    """Return what the laws of one experiment say of a job."""
    cells = cells_frame(gaps_frame(frames))
    unit = frames.metric.loss_unit
    sentences = []
    for row, law in laws_for_advice(frames, cells).items():
        label = cells.loc[cells["row"] == row, "label"].iloc[0]
        interval = interval_in(cells, row)
        place = place_in_law(job.num_parameters, job.num_steps, interval)
        [line] = predicted(law, place).to_dict("records")
        name = f"{label} with all sent in {amount(interval)} steps"
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
