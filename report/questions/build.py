"""From records to answers.md and answers.pdf, and to README's cards."""

from pathlib import Path
from typing import Any

import pandas as pd

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.store import write_text_atomically
from cser_bench.report.frame import JUDGED, baseline_runs
from cser_bench.report.plotting import style
from cser_bench.report.questions.asked import QUESTIONS, Question
from cser_bench.report.questions.evidence import GPT, RESIDUAL, Answer, Evidence, evidence_of
from cser_bench.report.questions.speed import SCORED, gain
from cser_bench.report.render import environment, write_report
from cser_bench.report.speed.comparisons import AT, DDP

NAME = "answers"
RIVAL = "ddp_powersgd_1"
"""The best baseline: DDP with PyTorch's PowerSGD hook of rank 1."""

BEGIN, END = "<!-- begin: cards -->", "<!-- end: cards -->"


def build_answers(results: Path, output: Path | None = None, readme: Path | None = None) -> Path:
    """Write answers.md, answers.pdf, figures/ and csv/; the same records give the same bytes.
    Returns answers.md.

    Args:
        results: folder of one's own records; what is not there is taken from those that ship.
        output: where to write; None is the folder "answers" in `results`.
        readme: a file with marks between which the cards go; None for none.

    Raises:
        RecordError: a record is damaged or of another version; the message names the file.
        UsageError: `results` is no folder, or the readme has no marks.
        OSError: the output cannot be written.
    """
    evidence = evidence_of(results)
    with style():
        found = [(question, question.answer(evidence)) for question in QUESTIONS]
        answers = {question.number: answer for question, answer in found if answer}
        figures = {
            f"question_{number}": each.figure for number, each in answers.items() if each.figure
        }
        frames = {f"question_{number}": each.frame for number, each in answers.items()}
    output = output or results / NAME
    said = [
        {"number": q.number, "asked": q.asked, "command": q.command, "text": _said(q, a)}
        for q, a in found
    ]
    names = sorted(
        each.frames.experiment.name for each in evidence.known.values() if each and each.is_whole
    )
    context = {
        "questions": said,
        "num_answered": len(answers),
        "names": names,
        "sharing": _sharing(evidence),
    }
    path = write_report(output, NAME, "answers.md.j2", context, frames, figures)
    if readme:
        put_into(
            readme,
            environment().get_template("cards.md.j2").render(cards_of(evidence, answers)).strip(),
        )
    return path


def _sharing(evidence: Evidence) -> list[list[str]]:
    """Names of experiments with contrasts that have runs of their baseline in common, by group."""
    groups: list[tuple[list[str], set[str]]] = []
    for known in evidence.known.values():
        if known and known.frames.contrasts:
            names, runs = (
                [f"`{known.frames.experiment.name}`"],
                set(baseline_runs(known.frames.experiment)),
            )
            for group in [group for group in groups if group[1] & runs]:
                groups.remove(group)
                names += group[0]
                runs |= group[1]
            groups.append((names, runs))
    return sorted(sorted(names) for names, _ in groups if len(names) > 1)


def _said(question: Question, answer: Answer | None) -> str:
    """What the question's template says; empty where nothing was run."""
    if answer is None:
        return ""
    template = environment().get_template(f"questions/{question.number}.md.j2")
    rows = answer.frame if answer.rows is None else answer.rows
    return template.render(
        answer.numbers, rows=rows, figure=f"figures/question_{question.number}.png"
    ).strip()


def cards_of(evidence: Evidence, answers: dict[int, Answer]) -> dict[str, Any]:
    """The numbers of the cards; None for a card whose runs are missing."""
    judged = evidence.experiment(JUDGED)
    known = judged if judged and judged.has("mcser-96", "mcser_block-96", judged.baseline) else None
    steps = answers[5].frame if 5 in answers else pd.DataFrame(columns=["method", "gbits"])
    cells = steps[steps["gbits"] == AT / 1e9].set_index("method")
    has_speed = {SCORED, DDP, RIVAL} <= set(cells.index)
    return {
        "accuracy": known and known.contrast("mcser-96", known.baseline),
        "blocks": known and known.contrast("mcser_block-96", known.baseline),
        "ties": answers[1].numbers["ties"] if 1 in answers else [],
        "regime": known and known.regime,
        "elsewhere": evidence.elsewhere(
            {RESIDUAL: [("mcser_topk", "sgd")], GPT: [("cser-8", "adamw")]}
        ),
        "order": answers[9].numbers["order"] if 9 in answers else None,
        "sizes": answers[9].numbers["sizes"] if 9 in answers else None,
        "apart": answers[9].numbers["apart"] if 9 in answers else None,
        "over_best": gain(cells, SCORED, RIVAL) if has_speed else None,
        "over_ddp": gain(cells, SCORED, DDP) if has_speed else None,
        "gbits": AT / 1e9,
        "money": answers[7].numbers if 7 in answers else None,
    }


def put_into(readme: Path, cards: str) -> None:
    """Write the cards between the marks of a README.

    Raises:
        UsageError: it has no such marks.
        OSError: it cannot be read or written.
    """
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(
            f"{readme} has no lines {BEGIN} and {END}; put them where the cards belong"
        )
    write_text_atomically(readme, f"{before}{BEGIN}\n{cards}\n{END}{after}", durable=False)
