"""The declared questions about exponents, and their answers with Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from scipy import special

from cser_bench.harness.records.experiment import Exponent
from cser_bench.report.law.fit import Law, fit_law, fitted_cells, jackknife_error, why_no_law
from cser_bench.report.statistics import COVERAGE, holm

EXPONENT_OF = {"size": "num_parameters", "rounds": "rounds", "interval": "interval"}
"""By what a question asks of: the column of the cells."""

_COLUMNS = [
    "rows",
    "of",
    "than",
    "question",
    "estimate",
    "standard_error",
    "degrees",
    "low",
    "high",
    "p",
    "reason",
]


@dataclass(frozen=True)
class Answer:
    """An exponent, or how much it is above another; `reason` says why there is none."""

    estimate: float = math.nan
    standard_error: float = math.nan
    degrees: int = 0
    reason: str | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided, of 95 %; NaN where there is no answer."""
        if self.reason is not None:
            return math.nan, math.nan
        quantile = float(special.stdtrit(self.degrees, (1 + COVERAGE) / 2))
        half = quantile * self.standard_error
        return self.estimate - half, self.estimate + half

    @property
    def p_negative(self) -> float:
        """One-sided p of "the exponent is at least 0"; 1 where there is no answer."""
        if self.reason is not None:
            return 1.0
        # No cell misses the law at all, as only made-up ones can.
        if self.standard_error == 0:
            return 0.0
        return float(special.stdtr(self.degrees, self.estimate / self.standard_error))


def exponents_frame(
    cells: pd.DataFrame,
    asked: Sequence[Exponent],
    diverged: Mapping[str, str],
    baseline: str,
    level: float = 0.05,
    other_p_values: Sequence[float] = (),
) -> pd.DataFrame:
    """Return the declared questions and their answers, one line each.

    Args:
        cells: `cells_frame` of the experiment.
        asked: the questions.
        diverged: `diverged_rows` of the experiment; the gap of a run that diverged has no number,
            so its method has no law.
        baseline: the row that gaps are to; where a run of it diverged, no method has a law.
        level: of the family of all tests of the experiment.
        other_p_values: of the tests of that family that are not of exponents: those of its
            contrasts.

    Returns:
        The columns rows, of, than, question, estimate (the exponent, or how much it is above that
        of `than`), standard_error, degrees, low, high (two-sided 95 %), p (one-sided, that it is
        negative), p_holm, is_shown, reason (why there is no answer; None where there is). A
        question without an answer counts in Holm's family with a p of 1.
    """
    lines = []
    for question in asked:
        answer = _answer(cells, question, diverged, baseline)
        low, high = answer.interval
        lines.append(
            {
                "rows": " and ".join(question.rows),
                "of": question.of,
                "than": " and ".join(question.than),
                "question": question.question,
                "estimate": answer.estimate,
                "standard_error": answer.standard_error,
                "degrees": answer.degrees,
                "low": low,
                "high": high,
                "p": answer.p_negative,
                "reason": answer.reason,
            }
        )
    frame = pd.DataFrame(lines, columns=_COLUMNS)
    frame["p_holm"] = holm([*frame["p"], *other_p_values])[: len(frame)]
    frame["is_shown"] = (frame["p_holm"] <= level) & frame["reason"].isna()
    return frame


def _answer(
    cells: pd.DataFrame,
    question: Exponent,
    diverged: Mapping[str, str],
    baseline: str,
) -> Answer:
    # The mean gap of the other runs would be too small, by just the runs that lost most.
    for row in (baseline, *question.rows, *question.than):
        if row in diverged:
            return Answer(reason=f"a run of {diverged[row]} diverged")
    term = EXPONENT_OF[question.of]
    law = _law_with(cells, question.rows, term)
    if isinstance(law, str):
        return Answer(reason=law)
    if not question.than:
        estimate, error = law.exponent(term)
        return Answer(estimate, error, law.degrees)
    other = _law_with(cells, question.than, term)
    if isinstance(other, str):
        return Answer(reason=other)
    return _difference(law, other, term)


def _law_with(
    cells: pd.DataFrame,
    rows: Sequence[str],
    term: str,
) -> Law | str:
    """Return the law of these rows, with an exponent of the term; or why there is none."""
    chosen = fitted_cells(cells, rows)
    law = fit_law(chosen)
    if law is None or term not in law.terms:
        reason = why_no_law(chosen) or "the fit has no end: gaps cannot be told from nothing"
        return f"{' and '.join(rows)}: {reason}"
    return law


def _difference(law: Law, other: Law, term: str) -> Answer:
    """Return how much an exponent is above another, with the error that both cells leave."""
    estimate, _ = law.exponent(term)
    other_estimate, _ = other.exponent(term)
    left_out = pd.concat(
        [law.exponents_left_out(term), other.exponents_left_out(term)],
        axis=1,
        keys=["law", "other"],
    )
    # A cell that only one of them has changes nothing of the other.
    left_out = left_out.fillna({"law": estimate, "other": other_estimate})
    differences = left_out["law"] - left_out["other"]
    return Answer(
        estimate - other_estimate,
        jackknife_error(differences.to_numpy()),
        # The fewer have the larger quantile: the interval is too wide rather than too narrow.
        min(law.degrees, other.degrees),
    )
