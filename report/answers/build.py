"""From records to answers.md and answers.pdf: the first page, then every question, then how it was run."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from harness.records.store import write_text_atomically
from report.accuracy.findings import Study
from report.answers.answer import Answer, Picture
from report.answers.evidence import Evidence, evidence_of
from report.answers.first_page import first_page, put_into
from report.answers.questions import ASKED, Asked
from report.kit.document import Block, Bullets, Cell, Code, Column, Document, Paragraph, Section, Table
from report.kit.exhibits import Exhibits, write_document
from report.kit.wording import count_of, listed

NAME = "answers"


def build_answers(results: Path, output: Path | None = None, readme: Path | None = None) -> Path:
    """Write answers.md, answers.pdf, figures/ and csv/; the same records give the same bytes. Returns answers.md.

    Args:
        results: folder of one's own records; what is not there is taken from those that ship.
        output: where to write; None is the folder "answers" in `results`.
        readme: a file with marks between which the first page goes in short; None for none.

    Raises:
        RecordError: a record is damaged or of another version; the message names the file.
        UsageError: `results` is no folder.
        ValueError: the readme has no marks.
        OSError: the output cannot be written.
    """
    evidence = evidence_of(results)
    answers = {asked.question.number: asked.answer(evidence) for asked in ASKED}
    output = output or results / NAME
    output.mkdir(parents=True, exist_ok=True)
    write_numbers(output / "csv" / "numbers.csv", answers)
    if readme:
        put_into(readme, answers)
    return write_document(document_of(evidence, answers, output), output, NAME)


def document_of(evidence: Evidence, answers: dict[int, Answer], output: Path) -> Document:
    """The whole document as one object."""
    exhibits = Exhibits(output)
    states = [answer.state for answer in answers.values()]
    counts = listed([f"{states.count(state)} {state}" for state in ("answered", "in part", "open") if state in states])
    subtitle = f"{len(ASKED)} questions: {counts}. Every sentence is made from the records named under it."
    sections = tuple(_section(asked, answers[asked.question.number], exhibits) for asked in ASKED)
    return Document(
        "Answers",
        subtitle,
        (
            first_page(answers),
            Section("All questions", (_overview(answers),)),
            *sections,
            _how_it_was_run(evidence, answers),
        ),
    )


def _overview(answers: dict[int, Answer]) -> Table:
    rows = []
    for asked in ASKED:
        question, answer = asked.question, answers[asked.question.number]
        rows.append((Cell(str(question.number)), Cell(question.asked), Cell(answer.state)))
    columns = (Column("no."), Column("question", "left"), Column("state", "left"))
    found = "In part and open: runs are missing, and the command that makes them stands under the question."
    return Table("All questions", found, columns, tuple(rows))


def _section(asked: Asked, answer: Answer, exhibits: Exhibits) -> Section:
    question = asked.question
    blocks: list[Block] = [Paragraph(" ".join(answer.said))] if answer.said else []
    if answer.open:
        blocks.append(Paragraph(f"{answer.open} This fills it: {answer.command or question.command}"))
    if block := _exhibit(question.number, answer.exhibit, exhibits):
        blocks.append(block)
    if answer.said:
        blocks.append(Bullets((f"Seen in: {answer.regime}", f"What would change it: {question.changes}")))
    return Section(f"{question.number}. {question.asked}", tuple(blocks))


def _exhibit(number: int, exhibit: Table | Picture | None, exhibits: Exhibits) -> Block | None:
    """The table, or the figure by its question's name; an older picture of that name is removed where none is drawn."""
    name = f"question_{number}.png"
    if isinstance(exhibit, Picture):
        picture = exhibit
        return exhibits.figure(name, name, picture.title, picture.draw, lambda: picture.found, *picture.notes)
    for suffix in (".png", ".pdf"):
        (exhibits.output / "figures" / name).with_suffix(suffix).unlink(missing_ok=True)
    return exhibits.table(exhibit) if exhibit else None


def _how_it_was_run(evidence: Evidence, answers: dict[int, Answer]) -> Section:
    studies = [study for study in evidence.read.values() if study]
    rows = [_experiment_row(study) for study in studies]
    columns = (
        Column("experiment", "left"),
        Column("runs"),
        Column("diverged"),
        Column("left out"),
        Column("commits", "left"),
    )
    lacking = [(asked.question, answers[asked.question.number]) for asked in ASKED]
    commands = sorted({a.command or question.command for question, a in lacking if a.state != "answered"})
    text = (
        "Intervals are t intervals of 95 % of means, or of means of differences paired by seed; Holm's correction "
        "where it "
        "is named. The experiments' own reports hold every seed, all pairs and all trials: "
        "results/reference/*/report.md, "
        "results/study_*/report.md and results/speedups/report.md. All numbers of this document: csv/numbers.csv."
    )
    found = (
        f"{count_of(len(rows), 'experiment')} and the study of step times."
        if evidence.speed
        else f"{len(rows)} experiments."
    )
    blocks: list[Block] = [Paragraph(text), Table("Records", found, columns, tuple(rows))]
    blocks += [Paragraph("What is missing would be made by:"), Code("\n".join(commands))] if commands else []
    return Section("How it was run", tuple(blocks))


def _experiment_row(study: Study) -> tuple[Cell, ...]:
    records = study.records
    runs = [run for rows in records.rows for run in rows.runs.values() if run]
    commits = sorted({(attempt.git_commit or "none")[:12] for run in runs for attempt in run.run.attempts})
    diverged = sum(len(rows.diverged) for rows in records.rows)
    done = f"{records.ended} of {records.planned}"
    return tuple(
        Cell(x) for x in (records.experiment.name, done, str(diverged), str(records.unplanned), listed(commits))
    )


def write_numbers(path: Path, answers: dict[int, Answer]) -> None:
    """Every number of every answer, unrounded: question, key, value, low, high, count."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("question", "key", "value", "low", "high", "count"))
    for number, answer in answers.items():
        for each in answer.numbers:
            values = (repr(each.value), *("" if x is None else repr(x) for x in (each.low, each.high, each.count)))
            writer.writerow((number, each.key, *values))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, text.getvalue(), durable=False)
