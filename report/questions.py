"""The questions that careful readers of the paper asked, and which exhibit here, or which experiment, answers them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from report.document import Cell, Column, Figure, Table, exhibit_name
from report.wording import listed

SPEEDUPS = "the report results/speedups"
"""Where the questions on time and money are answered."""


@dataclass(frozen=True)
class Question:
    """A question by its number, the keys of the exhibits of this report that answer it (on this experiment's task),

    and the experiment, or the other report, that would answer it, or the rest of it.
    """

    number: int
    words: str
    exhibits: tuple[str, ...]
    experiment: str


QUESTIONS = (
    Question(1, "exact accuracies, and is there a loss", ("accuracy",), "the same on ResNet-50 and ImageNet"),
    Question(2, "what the baseline is", ("baseline",), SPEEDUPS),
    Question(3, "other topologies", (), SPEEDUPS),
    Question(4, "at which bandwidth it pays", (), SPEEDUPS),
    Question(5, "speed-up over the other methods", (), SPEEDUPS),
    Question(6, "what the published speed-ups imply", (), SPEEDUPS),
    Question(7, "does it save money", (), SPEEDUPS),
    Question(8, "accuracy per bit on smaller models", ("bits_figure", "bits"), "the same over model widths"),
    Question(9, "other networks", (), "an accuracy experiment over models"),
    Question(10, "another task", (), "an accuracy experiment on translation"),
    Question(11, "does the two-level scheme earn its keep", (), "an accuracy experiment with H = 1, C1 = 0, C2 = 0"),
    Question(12, "how H, R1 and R2 share a budget", (), "an accuracy experiment over (H, R1, R2) at equal bits"),
    Question(13, "is best training loss best accuracy", ("scatter", "tuning"), "all runs under both rules"),
    Question(14, "what tuning costs", ("tuning",), "a timing experiment, for hours of accelerators"),
    Question(15, "why error reset helps", ("drift", "progress"), "one compressor with only the rule changed"),
    Question(16, "is the error ever zero", ("drift",), "an accuracy experiment over R1 and H"),
    Question(17, "other compressors", (), "an accuracy experiment over compressors"),
    Question(18, "data that differ between workers", (), "an accuracy experiment over label skew"),
    Question(19, "how many workers", (), "an accuracy experiment over the number of workers"),
    Question(20, "which learning rate", ("tuning_figure",), ""),
    Question(21, "does momentum help M-CSER beyond CSER", (), "an accuracy experiment over momentum"),
    Question(22, "when are ratios of 256 to 1024 needed", (), SPEEDUPS),
    Question(23, "other methods", (), "an accuracy and a timing experiment with their rows"),
    Question(24, "is the released method the written one", (), "an accuracy experiment, switch by switch"),
    Question(25, "would local SGD or one final average do", ("equal_bits",), ""),
)


def questions_table(exhibits: Mapping[str, Table | Figure], experiment: str, number: int) -> Table:
    """The list of questions with the exhibits that are in this report.

    Args:
        exhibits: those that have something to show, by key.
        experiment: whose runs would fill an exhibit that is still empty.
    """
    rows = []
    answered = 0
    for question in QUESTIONS:
        names = [exhibit_name(exhibits[key]) for key in question.exhibits if key in exhibits]
        empty = bool(question.exhibits) and not names
        here = listed(names) if names else f"no runs yet: {experiment}" if empty else "not in this experiment"
        answered += bool(names)
        rows.append(
            (Cell(str(question.number)), Cell(question.words), Cell(here), Cell(question.experiment or "none needed"))
        )
    columns = (Column("no."), Column("question", "left"), Column("answered by", "left"), Column("what else", "left"))
    found = (
        f"This report has exhibits for {answered} of {len(QUESTIONS)} questions, each for this task and model alone; "
        "the last column names what would answer the rest."
    )
    return Table("Questions and exhibits", found, columns, tuple(rows), number)
