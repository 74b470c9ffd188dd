"""The README's three cards, and the list of what is taken back on the answers' first page."""

from __future__ import annotations

from pathlib import Path

from harness.records.store import write_text_atomically
from report.answers.answer import Answer, Number
from report.kit.document import Bullets, Section, Verdict

BEGIN, END = "<!-- begin: cards -->", "<!-- end: cards -->"

TAKEN_BACK = (
    "CSER's win over local AdamW on letters to phones is a learning rate: CSER ran at 0.01, all others at 0.003.",
    "English to Spanish was tuned in the same way, so its differences stand for nothing yet.",
    'Question 5\'s "models needed" is withdrawn: its interval was no interval of anything.',
    '"As far as can be told, yes" in question 25 took lack of evidence for equality. Not told apart is not equal.',
    "Step times are not those of the scored settings: no top-k was timed, and EF-SGD by blocks, which was, loses "
    "3.6 points.",
    "The bounds of questions 4 and 6 rest on 26.7 ms of compute a step. At the 44 to 52 ms of a V100 with 32 images "
    "they are lower.",
    "The factor for two machines of four GPUs in question 3 is modelled. The timed one is 6.0.",
    "Question 14 compares a grid of four decades with grids of one. In question 15 the rules ran at rates up to 100 "
    "times apart, so decay differs too.",
    "Question 16 sees no zero since scores fall between resets. Question 22's bound is read off a grid.",
    "In question 20 runs at rates below 0.1 did diverge: EF-SGD by blocks at 0.03 ended at a loss of 3e11.",
    "In question 10 CSER has no momentum and SGD has: most of its 5.35 points is the momentum.",
)


def first_page(answers: dict[int, Answer]) -> Section:
    """The first page of the document: what of the answers below is taken back."""
    return Section("Taken back", (Verdict("Read this first", (Bullets(TAKEN_BACK),)),))


def readme_block(answers: dict[int, Answer]) -> str:
    """The three cards as a table in Markdown."""
    numbers = {(n, number.key): number for n, answer in answers.items() for number in answer.numbers}
    lines = ["| | what holds | number | seen in |", "|---|---|---|---|"]
    if accuracy := numbers.get((1, "mcser-96")):
        lines.append(
            "| **Accuracy** | M-CSER at ratio 96, 292 models sent, is not told apart from SGD that sends everything. "
            f"| {accuracy.points()} | *measured*: Fashion-MNIST, 8 workers, {accuracy.count} seeds |"
        )
    if speed := numbers.get((2, "speed-up over DDP, PowerSGD rank 2")):
        over = numbers[2, "speed-up over DDP"]
        lines.append(
            f"| **Speed** | At 10 Gb/s M-CSER gains {over.value:.1f}x over plain DDP, and almost nothing over the best "
            f"baseline, PowerSGD. | {_times(speed)} | *modelled* from emulated steps: ResNet-50 on 8 V100s |"
        )
    place = "1 x p3.16xlarge, 25 Gb/s"
    if money := numbers.get((7, f"M-CSER, {place}")):
        change = 100 * (money.value / numbers[7, f"DDP, {place}"].value - 1)
        lines.append(
            "| **Money** | On one machine with eight GPUs, the cheapest of three layouts, M-CSER saves nothing. "
            f"| {change:+.1f} % of the bill | *modelled* from emulated steps and list prices of 2023 |"
        )
    return "\n".join((BEGIN, *lines, END))


def _times(number: Number) -> str:
    return f"{number.value:.2f}x the speed of PowerSGD"


def put_into(readme: Path, answers: dict[int, Answer]) -> None:
    """Write the cards between the marks of a README.

    Raises:
        ValueError: it has no such marks.
        OSError: it cannot be read or written.
    """
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no lines {BEGIN} and {END}; put them where the cards belong")
    write_text_atomically(readme, before + readme_block(answers) + after, durable=False)
