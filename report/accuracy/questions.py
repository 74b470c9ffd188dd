"""The questions that careful readers of the paper asked, and which exhibit here, or which experiment, answers them."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from report.kit.document import Cell, Figure, Table, exhibit_name, numbers, texts
from report.kit.wording import listed

SPEEDUPS = "the report results/speedups"
"""Where the questions on time and money are answered."""


@dataclass(frozen=True)
class ReaderQuestion:
    """A question by its number, the keys of the exhibits of this report that answer it (on this experiment's task),

    and the experiment, or the other report, that would answer it, or the rest of it. `algorithms` are those whose rows
    must all be there, or the exhibits do not answer it.
    """

    number: int
    words: str
    exhibits: tuple[str, ...]
    experiment: str
    algorithms: frozenset[str] = frozenset()


QUESTIONS = (
    ReaderQuestion(
        1, "exact accuracies, and is there a loss", ("accuracy", "assay"), "the same on ResNet-50 and ImageNet"
    ),
    ReaderQuestion(2, "what the baseline is", ("baseline",), SPEEDUPS),
    ReaderQuestion(3, "other topologies", (), SPEEDUPS),
    ReaderQuestion(4, "at which bandwidth it pays", (), SPEEDUPS),
    ReaderQuestion(5, "speed-up over the other methods", (), SPEEDUPS),
    ReaderQuestion(6, "what the published speed-ups imply", (), SPEEDUPS),
    ReaderQuestion(7, "does it save money", (), SPEEDUPS),
    ReaderQuestion(
        8,
        "accuracy per bit on smaller models",
        ("bits_figure", "equal_bits"),
        "the same over model widths",
    ),
    ReaderQuestion(9, "other networks", (), "an accuracy experiment over models"),
    ReaderQuestion(10, "another task", ("metrics", "translations"), "an accuracy experiment on translation"),
    ReaderQuestion(
        11,
        "does the two-level scheme earn its keep (CSEA: H = 1, C2 = 0; CSER-PL: C2 = 0; local SGD: C1 all, C2 = 0)",
        ("equal_bits", "pairs"),
        "C1 = 0",
        frozenset({"cser", "csea", "cser_pl", "local_sgd"}),
    ),
    ReaderQuestion(
        12, "how H, R1 and R2 share a budget", ("splits",), "an accuracy experiment over (H, R1, R2) at equal bits"
    ),
    ReaderQuestion(13, "is best training loss best accuracy", ("scatter", "rules", "tuning"), ""),
    ReaderQuestion(14, "what tuning costs", ("tuning", "best_of"), "a timing experiment, for hours of accelerators"),
    ReaderQuestion(
        15,
        "why error reset helps",
        ("drift", "progress", "pairs"),
        "one compressor with only the rule changed",
        frozenset({"ef_sgd", "csea"}),
    ),
    ReaderQuestion(16, "is the error ever zero", ("drift",), "an accuracy experiment over R1 and H"),
    ReaderQuestion(17, "other compressors", ("compressors",), "an accuracy experiment over compressors"),
    ReaderQuestion(18, "data that differ between workers", (), "an accuracy experiment over label skew"),
    ReaderQuestion(19, "how many workers", (), "an accuracy experiment over the number of workers"),
    ReaderQuestion(20, "which learning rate", ("tuning_figure",), ""),
    ReaderQuestion(
        21,
        "does momentum help M-CSER beyond CSER",
        ("equal_bits", "pairs"),
        "an accuracy experiment over momentum",
        frozenset({"cser", "mcser"}),
    ),
    ReaderQuestion(22, "when are ratios of 256 to 1024 needed", (), SPEEDUPS),
    ReaderQuestion(23, "other methods", (), "an accuracy and a timing experiment with their rows"),
    ReaderQuestion(24, "is the released method the written one", (), "an accuracy experiment, switch by switch"),
    ReaderQuestion(
        25, "would local SGD or one final average do", ("equal_bits", "pairs"), "", frozenset({"local_sgd"})
    ),
)


EXPECTED = {"accuracy", "bits_figure", "scatter", "tuning", "tuning_figure", "drift", "equal_bits"}
"""Exhibits that every experiment has once it has runs; others, as a table of both rules, need rows of their own."""


def questions_table(exhibits: Mapping[str, Table | Figure], experiment: str, algorithms: Set[str]) -> Table:
    """The list of questions with the exhibits that are in this report.

    Args:
        exhibits: those that have something to show, by key.
        experiment: whose runs would fill an exhibit that is still empty.
        algorithms: those that the experiment has rows of.
    """
    rows = []
    answered = 0
    for question in QUESTIONS:
        keys = question.exhibits if question.algorithms <= algorithms else ()
        names = list(dict.fromkeys(exhibit_name(exhibits[key]) for key in keys if key in exhibits))
        empty = bool(set(keys) & EXPECTED) and not names
        here = listed(names) if names else f"no runs yet: {experiment}" if empty else "not in this experiment"
        answered += bool(names)
        rows.append(
            (Cell(str(question.number)), Cell(question.words), Cell(here), Cell(question.experiment or "none needed"))
        )
    columns = (*numbers("no."), *texts("question", "answered by", "what else"))
    found = (
        f"This report has exhibits for {answered} of {len(QUESTIONS)} questions, each for this task and model alone; "
        "the last column names what would answer the rest."
    )
    return Table("Questions and exhibits", found, columns, tuple(rows))
