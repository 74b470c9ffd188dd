"""From records to answers.md and answers.pdf, and to README's cards."""

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.store import write_text_atomically
from cser_bench.report.frame import LOAD_TOLERANCE, baseline_runs
from cser_bench.report.plotting import style
from cser_bench.report.questions.asked import QUESTIONS, Question
from cser_bench.report.questions.evidence import (
    Answer,
    Compared,
    Evidence,
    evidence_for,
    evidence_of,
)
from cser_bench.report.questions.network_page import networks_of, sends_four_bits
from cser_bench.report.questions.one_load import link_load
from cser_bench.report.questions.speed import RIVAL, blocks_over_best, gain, scored_method
from cser_bench.report.render import TEMPLATES, environment, write_report
from cser_bench.report.speed.comparisons import AT, DDP
from cser_bench.report.verdicts import with_words
from cser_bench.report.wording import code

NAME = "answers"

PAGES = sorted(int(path.name.partition(".")[0]) for path in (TEMPLATES / "pages").glob("*.j2"))
"""Questions that have a page of their own besides."""

OF_NETWORKS = (
    "order",
    "apart",
    "datasets",
    "text",
    "shown",
    "more",
    "undecided",
    "kept_on",
    "num_ours",
    "other_orders",
)
"""What the cards take of the answer on other networks."""

BEGIN = "<!-- begin: cards -->"
END = "<!-- end: cards -->"


def build_answers(
    results: Path,
    output: Path | None = None,
    readme: Path | None = None,
    progress: Callable[[float, float, str], None] = lambda done, total, what: None,
) -> Path:
    """Write answers.md, networks.md, pages of long answers, PDFs, figures/, csv/; return answers.md.

    The same records give the same bytes. The pages and the cards that ship are of what ships alone.

    Args:
        results: folder of one's own records; what is not done there is taken from those that ship.
        output: where to write; None is the folder "answers" in `results`.
        readme: a file with marks between which the cards go; None for none.
        progress: takes the parts that are done, how many there are, and the one that is next. To write
            the answers takes about as long as to find them.

    Raises:
        RecordError: a record is damaged or of another version; the message names the file.
        UsageError: `results` is no folder, or the readme has no marks.
        OSError: the output cannot be written.
    """
    folder = output or results / NAME
    evidence = evidence_for(folder, results)
    answers = _answers_from(evidence, progress)
    progress(len(QUESTIONS), 2 * len(QUESTIONS), "writing the answers")
    frames = {}
    figures = {}
    for number, answer in answers.items():
        name = f"question_{number}"
        frames[name] = answer.frame
        if answer.figure is not None:
            figures[name] = answer.figure
    sections = [_section(question, answers.get(question.number)) for question in QUESTIONS]
    # After all answers: only what they were drawn from has been read by now.
    names = [known.name for known in _read(evidence) if known.is_whole]
    context = {
        "questions": sections,
        "num_answered": len(answers),
        "names": sorted(names),
        "sharing": _sharing(evidence),
    }
    # Before the answers, whose PDF leads to theirs.
    for question in QUESTIONS:
        if question.number in answers and question.number in PAGES:
            _write_page(folder, question, answers[question.number])
    path = write_report(folder, NAME, "answers.md.j2", context, frames, figures)
    networks = environment().get_template("networks.md.j2").render(networks_of(evidence, root=".."))
    write_text_atomically(path.with_name("networks.md"), networks.strip() + "\n", durable=False)
    if readme:
        shipped = evidence_of(None)
        if shipped.folders == evidence.folders:
            put_into(readme, _cards_text(evidence, answers))
        else:
            put_into(readme, _cards_text(shipped, _answers_from(shipped)))
    return path


def _answers_from(
    evidence: Evidence,
    progress: Callable[[float, float, str], None] = lambda done, total, what: None,
) -> dict[int, Answer]:
    """Return the answers there are, by the number of the question."""
    answers = {}
    with style():
        for place, question in enumerate(QUESTIONS):
            progress(place, 2 * len(QUESTIONS), f"question {question.number}")
            answer = question.answer(evidence)
            if answer is not None:
                answers[question.number] = answer
    return answers


def _cards_text(evidence: Evidence, answers: dict[int, Answer]) -> str:
    template = environment().get_template("cards.md.j2")
    return template.render(cards_of(evidence, answers)).strip()


def _read(evidence: Evidence) -> list[Compared]:
    """Return the experiments that answers were drawn from."""
    return [known for known in evidence.known.values() if known]


def _write_page(output: Path, question: Question, answer: Answer) -> None:
    """Write an answer that is too long to stand among the others on a page of its own."""
    context = {**words_of(answer), "number": question.number, "asked": question.asked}
    name = str(question.number)
    write_report(output, name, f"pages/{name}.md.j2", context, {}, {})


def words_of(answer: Answer) -> dict[str, Any]:
    """Return what the templates of an answer name, with the rows of its table in words."""
    rows = answer.frame if answer.rows is None else answer.rows
    # A table that is no comparison has no words for one.
    if {"estimate", "unit"} <= set(rows.columns):
        rows = with_words(rows)
    return {**answer.numbers, "rows": rows}


def _section(question: Question, answer: Answer | None) -> dict[str, Any]:
    """Return a question, and what its template says; that is empty where nothing was run."""
    section = {"number": question.number, "asked": question.asked, "command": question.command}
    if answer is None:
        return section | {"text": ""}
    template = environment().get_template(f"questions/{question.number}.md.j2")
    figure = f"figures/question_{question.number}.png"
    text = template.render(words_of(answer), figure=figure)
    return section | {"text": Markup(text.strip())}


def _sharing(evidence: Evidence) -> list[list[str]]:
    """Return the names of experiments that have runs of their baseline in common, by group.

    Experiments without contrasts are left out.
    """
    groups: list[tuple[list[str], set[str]]] = []
    for known in _read(evidence):
        if not known.frames.contrasts:
            continue
        names = [code(known.name)]
        runs = set(baseline_runs(known.frames.experiment))
        # An experiment may join groups that had nothing in common before.
        apart = []
        for group in groups:
            group_names, group_runs = group
            if group_runs.isdisjoint(runs):
                apart.append(group)
            else:
                names += group_names
                runs |= group_runs
        groups = [*apart, (names, runs)]
    return sorted(sorted(names) for names, _ in groups if len(names) > 1)


def cards_of(evidence: Evidence, answers: dict[int, Answer]) -> dict[str, Any]:
    """Return the numbers of the cards; None for a card whose runs are missing."""
    cards: dict[str, Any] = {"order": None, "apart": None, "shown": None, "beside_local": None}
    if 9 in answers:
        numbers = answers[9].numbers
        for name in OF_NETWORKS:
            cards[name] = numbers.get(name)
    if 25 in answers:
        cards["beside_local"] = answers[25].numbers
    experiments = evidence.all_of("network", "loads")
    in_readme = [known for known in experiments if known.about.in_readme]
    # The largest network first: it is nearest to what people train.
    in_readme.sort(key=lambda known: -known.num_parameters)
    return {
        **cards,
        **networks_of(evidence, root="results"),
        "losses": [line for known in in_readme for line in _loss_of_reset(evidence, known)],
        "gbits": AT / 1e9,
        **_speed_of(evidence, answers.get(5)),
    }


def _loss_of_reset(evidence: Evidence, known: Compared) -> list[dict[Hashable, Any]]:
    """Return what error reset loses in an experiment.

    `least` is the form that loses less there than this one and all others, None where none does.
    Empty where error reset was not run.
    """
    lines = []
    for line in evidence.elsewhere([known], ("reset", "baseline")):
        beside = {"least": _form_that_loses_least(evidence, known, line)}
        lines.append(line | beside)
    return lines


def _form_that_loses_least(
    evidence: Evidence, known: Compared, line: Mapping[Hashable, Any]
) -> dict[Hashable, Any] | None:
    """Return the form of error reset that loses least by mean, of all experiments on methods.

    Those on the same network, of the same length and at about the same load alone; None where none
    loses less than `line`.
    `is_of_four_bits`: whether all that it sends is in 4 bits a number. `asked`: what was declared of
    it beside other methods that send less than everything, each with its `family`, empty for a
    method of none.
    """
    least: dict[Hashable, Any] | None = None
    for other in evidence.all_of("methods", "rivals", network=known.about.network):
        if not other.is_whole or other.regime["num_steps"] != known.regime["num_steps"]:
            continue
        resets = [
            row
            for row in other.rows_of_family("error reset")
            if abs(link_load(other, row) / line["link_models"] - 1) <= LOAD_TOLERANCE
        ]
        lost = other.contrasts_of((row, other.baseline) for row in resets)
        if lost.empty:
            continue
        form = max(lost.to_dict("records"), key=lambda each: each["estimate"])
        if form["estimate"] > (least or line)["estimate"]:
            least = form | {
                "asked": _asked_beside_others(other, form["row"]),
                "is_of_four_bits": sends_four_bits(other, form["row"]),
            }
    return least


def _asked_beside_others(known: Compared, row: str) -> list[dict[str, Any]]:
    """Return what was declared of a row beside others than the baseline, each with its family."""
    families = known.frames.experiment.families
    asked = []
    for mine, reference in known.contrasts:
        if mine == row and reference != known.baseline:
            family = families.get(known.value(reference, "algorithm"), "")
            asked.append({**known.contrast(mine, reference), "family": family})
    return asked


def _speed_of(evidence: Evidence, answer: Answer | None) -> dict[str, Any]:
    """Return what M-CSER's timed step gains over the best baseline and over DDP.

    Both are None where one of the three was not timed; `blocks` is the same over the best baseline
    of the form with the paper's blocks, None where that was not.
    """
    nothing = {"over_best": None, "over_ddp": None, "blocks": None}
    scored = scored_method(evidence)
    if answer is None or scored is None:
        return nothing
    frame = answer.frame
    cells: pd.DataFrame = frame[frame["gbits"] == AT / 1e9]
    cells = cells.set_index("method")
    if not {scored, DDP, RIVAL} <= set(cells.index):
        return nothing
    return {
        "over_best": gain(cells, scored, RIVAL),
        "over_ddp": gain(cells, scored, DDP),
        "blocks": blocks_over_best(evidence, cells),
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
    text = f"{before}{BEGIN}\n{cards}\n{END}{after}"
    write_text_atomically(readme, text, durable=False)
