"""The questions, as their templates say them.

A template's head says what was asked and what must have been run, and its body is the answer.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cser_bench.harness.records.experiment import Role
from cser_bench.report.questions import (
    local_steps,
    losses,
    networks,
    relatives,
    set_ups,
    speed,
    studies,
    tuning,
)
from cser_bench.report.questions.evidence import Answer, Evidence, Speaker
from cser_bench.report.render import TEMPLATES

COMPUTED: dict[int, Callable[[Evidence], Answer | None]] = {
    1: losses.what_is_lost,
    2: speed.which_baseline,
    3: speed.which_layout,
    4: speed.which_bandwidth,
    5: speed.over_older_methods,
    6: speed.what_headlines_ask,
    7: speed.does_it_save_money,
    8: set_ups.over_width,
    9: networks.other_networks,
    10: losses.other_tasks,
    12: studies.how_to_share_a_budget,
    13: tuning.is_least_loss_best,
    14: tuning.what_tuning_costs,
    15: studies.why_resets_help,
    16: studies.is_the_error_ever_zero,
    17: studies.which_compressors_work,
    18: set_ups.over_skew,
    19: set_ups.over_workers,
    20: tuning.which_learning_rate,
    22: speed.which_ratio_is_needed,
    23: relatives.the_relatives,
    25: local_steps.would_local_sgd_do,
}
"""Answers that take more than the pairs in an experiment's spec."""


@dataclass(frozen=True)
class Question:
    """What the head of a question's template says, in TOML within a comment of the template.

    Attributes:
        command: makes the runs that the answer needs.
        needs: by role of an experiment, what rows must speak for, and have finished runs, or there
            is no answer. The answer's numbers have the `regime` of the first experiment besides.
    """

    number: int
    asked: str
    command: str
    needs: Mapping[Role, Sequence[Speaker]] = field(default_factory=dict)

    def answer(self, evidence: Evidence) -> Answer | None:
        """Return the answer; None where what it needs was not run."""
        needed = []
        for role, speakers in self.needs.items():
            known = evidence.first(role)
            if known is None or not known.speaks_for(*speakers):
                return None
            needed.append(known)
        computed = COMPUTED.get(self.number)
        answer = computed(evidence) if computed else studies.compared_pairs(needed[0])
        if answer is None or not needed:
            return answer
        numbers = {"regime": needed[0].regime, **answer.numbers}
        return replace(answer, numbers=numbers)


def _questions() -> list[Question]:
    """Read the head of each question's template."""
    questions = []
    for path in (TEMPLATES / "questions").glob("*.md.j2"):
        text = path.read_text()
        # The head is a comment of the template, between {# and #}.
        end = text.index("#}")
        head = tomllib.loads(text[2:end])
        number, _, _ = path.name.partition(".")
        questions.append(Question(int(number), **head))
    return sorted(questions, key=lambda question: question.number)


QUESTIONS = _questions()
