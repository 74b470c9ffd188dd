"""The questions: a template's head says what was asked and what must have been run, and its body is
the answer."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cser_bench.report.questions import losses, networks, speed, studies, tuning
from cser_bench.report.questions.evidence import Answer, Evidence
from cser_bench.report.render import TEMPLATES

COMPUTED: dict[int, Callable[[Evidence], Answer | None]] = {
    1: losses.what_is_lost, 2: speed.which_baseline, 3: speed.which_layout, 4: speed.which_bandwidth,
    5: speed.over_older_methods, 6: speed.what_headlines_ask, 7: speed.does_it_save_money, 8: studies.over_width,
    9: networks.other_networks, 10: losses.other_tasks, 12: studies.how_to_share_a_budget,
    13: tuning.is_least_loss_best, 14: tuning.what_tuning_costs, 15: studies.why_resets_help,
    16: studies.is_the_error_ever_zero, 17: studies.which_compressors_work, 18: studies.over_skew,
    19: studies.over_workers, 20: tuning.which_learning_rate, 22: speed.which_ratio_is_needed,
    23: losses.the_relatives, 25: losses.would_local_sgd_do,
}  # fmt: skip
"""Answers that take more than the contrasts in the head of their template."""


@dataclass(frozen=True)
class Question:
    """What the head of a question's template says, in TOML within a comment of the template.

    Attributes:
        command: makes the runs that the answer needs.
        needs: by experiment, rows without whose finished runs there is no answer. The answer's
            numbers have the `regime` of the first experiment besides.
        pairs: contrasts of that experiment: row, reference, and what the table calls the row if not
            by its label.
    """

    number: int
    asked: str
    command: str
    needs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pairs: Sequence[Sequence[str]] = ()

    def answer(self, evidence: Evidence) -> Answer | None:
        """The answer; None where what it needs was not run."""
        known = [(evidence.experiment(name), rows) for name, rows in self.needs.items()]
        if not all(each and each.has(*rows) for each, rows in known):
            return None
        found = COMPUTED.get(self.number, self._contrasts)(evidence)
        regimes = [each.regime for each, _ in known if each]
        return found and replace(
            found, numbers={"regime": next(iter(regimes), None), **found.numbers}
        )

    def _contrasts(self, evidence: Evidence) -> Answer:
        """All pairs in a table; for sentences, `by` has each one's line by its row."""
        frame = evidence[next(iter(self.needs))].contrasts_of(
            (row, reference) for row, reference, *_ in self.pairs
        )
        names = {row: name[0] for row, _, *name in self.pairs if name}
        frame["label"] = frame["row"].map(names).fillna(frame["label"])
        return Answer(frame, {"by": frame.set_index("row").to_dict("index")})


def _questions() -> list[Question]:
    heads = {
        int(path.name.split(".")[0]): path.read_text()
        for path in (TEMPLATES / "questions").glob("*.md.j2")
    }
    read = {
        number: tomllib.loads(text[2 : text.index("#}")]) for number, text in sorted(heads.items())
    }
    return [Question(number, **head) for number, head in read.items()]


QUESTIONS = _questions()
