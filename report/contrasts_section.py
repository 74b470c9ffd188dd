"""The comparisons that an experiment declared, as a report prints them: the row minus its reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from cser_bench.report.declared import begun_when_declared
from cser_bench.report.frame import Frames, sharing_baseline
from cser_bench.report.sensitivity import NOT_CLAIMED, assay_frame
from cser_bench.report.statistics import (
    LESS,
    UNKNOWN,
    SeedCorrelation,
    difference,
    num_tests,
    seed_correlation,
)
from cser_bench.report.wording import (
    INCONCLUSIVE_VERDICTS,
    SIGNIFICANT,
    amount,
    answer,
    count,
    declaration,
    gap,
    gap_cell,
    gap_in_prose,
    margin_text,
)


@dataclass(frozen=True)
class ContrastsSection:
    """What the template shows of the declared comparisons.

    Attributes:
        table: a line each: question, compared ("row − reference"), gap (with its interval), answer, p_holm, same_rate
            (the gap at the same learning rate), declared.
        of_margin: those of the table that ask for a drop below the margin. of_two: those that ask which row is better.
        inconclusive_of_margin, inconclusive_of_two: what these compared where the tests leave their question open.
        num_significant: of the tests that were corrected together.
        num_tests: one-sided tests that share the error. num_exponents: of old questions, which are corrected with them.
        error: what they share, in percent.
        declared: when they were declared, in the spec's words.
        margin: with its unit; None where there is none. margin_reason: why it is that.
        no_communication: the gap of sending nothing; how many margins it is stands in `margins`.
        insensitive: why a drop could not be told; None where it could.
        has_same_rate: whether some comparison was taken at the same learning rate too.
        has_equivalence, has_late, has_kept: whether some asked for equality; came after runs of both rows;
            or did and was published before that was told apart.
        correlation: of scores at the same seed. sharing: other experiments with runs of the baseline.
        few_seeds: whether there are fewer seeds than the rule was simulated for.
    """

    table: pd.DataFrame
    of_margin: pd.DataFrame
    of_two: pd.DataFrame
    inconclusive_of_margin: list[str]
    inconclusive_of_two: list[str]
    num_significant: int
    num_tests: int
    num_exponents: int
    error: float
    declared: str | None
    margin: str | None
    margin_reason: str | None
    no_communication: str | None
    margins: float | None
    insensitive: str | None
    has_same_rate: bool
    has_equivalence: bool
    has_late: bool
    has_kept: bool
    correlation: SeedCorrelation | None
    sharing: list[str]
    few_seeds: bool


def contrasts_section(
    frames: Frames, contrasts: pd.DataFrame
) -> ContrastsSection | None:
    """Return the section; None where an experiment declares no comparison.

    Args:
        contrasts: as `contrasts_frame` has it.
    """
    if contrasts.empty:
        return None
    experiment = frames.experiment
    begun = begun_when_declared(frames)
    # How sensitive the experiment is at its own length, which comes first.
    assay: dict[str, Any] = {"reason": "it has no rows"}
    lengths = assay_frame(frames).to_dict("records")
    if lengths:
        assay = {str(key): value for key, value in lengths[0].items()}
    is_sensitive = assay["reason"] is None
    no_communication = margins = None
    if is_sensitive:
        no_communication = _of_floor(frames)
        # A margin of 0 has no multiples.
        if experiment.margin:
            margins = assay["gap"] / experiment.margin
    # Lines as those of `contrasts`, so that masks of the one hold for the other.
    table = _contrasts_table(frames, contrasts, is_sensitive)
    compared = table["compared"]
    is_of_margin = contrasts["kind"] == "non-inferiority"
    is_inconclusive = contrasts["verdict"].isin(INCONCLUSIVE_VERDICTS)
    return ContrastsSection(
        table=table,
        of_margin=table[is_of_margin],
        of_two=table[~is_of_margin],
        inconclusive_of_margin=compared[is_inconclusive & is_of_margin].tolist(),
        inconclusive_of_two=compared[is_inconclusive & ~is_of_margin].tolist(),
        num_significant=_num_significant(contrasts["verdict"], is_sensitive),
        num_tests=num_tests(frames),
        num_exponents=len(experiment.exponents or []),
        error=100 * (1 - experiment.confidence),
        declared=experiment.declared,
        margin=margin_of(frames),
        margin_reason=experiment.margin_reason,
        no_communication=no_communication,
        margins=margins,
        insensitive=assay["reason"],
        has_same_rate=bool(contrasts["at_equal_rate"].notna().any()),
        has_equivalence=bool((contrasts["kind"] == "equivalence").any()),
        has_late=any(each is not None and each.num_rows == 2 for each in begun),
        has_kept=any(contrast.is_verdict_kept for contrast in frames.contrasts),
        correlation=seed_correlation(frames),
        sharing=sharing_baseline(frames),
        # docs/statistics.md has the error of the rule by simulation, from three seeds on.
        few_seeds=len(experiment.seeds) < 3,
    )


def margin_of(frames: Frames) -> str | None:
    """Return an experiment's margin with its unit; None where it sets none."""
    margin = frames.experiment.margin
    if margin is None:
        return None
    return margin_text(margin, frames.metric.loss_unit)


def _contrasts_table(
    frames: Frames, contrasts: pd.DataFrame, is_sensitive: bool
) -> pd.DataFrame:
    """Return `ContrastsSection.table`, in the order of declaration."""
    unit = frames.metric.loss_unit
    lines = []
    begun = begun_when_declared(frames)
    for line, of_declaration in zip(contrasts.to_dict("records"), begun, strict=True):
        found = answer(line | {"unit": unit})
        # Where even sending nothing costs little, a small drop is no finding.
        if line["verdict"] == LESS and not is_sensitive:
            found = NOT_CLAIMED
        lines.append(
            {
                "question": line["question"],
                "compared": compared_name(frames, line["row"], line["reference"]),
                "gap": gap_cell(line["estimate"], line["low"], line["high"], unit),
                "answer": found,
                "p_holm": line["p_holm"],
                "same_rate": gap(line["at_equal_rate"], unit),
                "declared": declaration(of_declaration),
            }
        )
    names = ["question", "compared", "gap", "answer", "p_holm", "same_rate", "declared"]
    return pd.DataFrame(lines, columns=names)


def _num_significant(verdicts: pd.Series[str], is_sensitive: bool) -> int:
    """Count the significant verdicts, without those that an insensitive experiment cannot claim."""
    is_significant = verdicts.isin(SIGNIFICANT)
    if not is_sensitive:
        is_significant &= verdicts != LESS
    return int(is_significant.sum())


def _of_floor(frames: Frames) -> str:
    """Write the gap of sending nothing at the experiment's own size and length."""
    experiment = frames.experiment
    assert experiment.floor is not None and experiment.baseline is not None, (
        "it is sensitive"
    )
    found = difference(frames, experiment.floor, experiment.baseline) or UNKNOWN
    return gap_in_prose(found.estimate, *found.interval(), frames.metric.loss_unit)


def compared_name(frames: Frames, row: str, reference: str) -> str:
    """Return what a comparison of two rows is called: "M-CSER blocks − local SGD"."""
    return f"{row_name(frames, row)} − {row_name(frames, reference)}"


def row_name(frames: Frames, row: str) -> str:
    """Return a row's label, with its ratio, or its size and length, where that tells which it is."""
    line = frames.row(row)
    label = str(line["label"])
    if frames.rows["num_parameters"].nunique() > 1:
        place = f"{count(line['num_parameters'])} parameters, {count(line['num_steps'])} steps"
        return f"{label} ({place})"
    if frames.rows["num_steps"].nunique() > 1 and isinstance(line["base"], str):
        return f"{label} ({count(line['num_steps'])} steps)"
    ratio = line["ratio"]
    rows = frames.rows
    # Rows of its own that print the same label: only then must the ratio tell them apart.
    alike = rows[(rows["label"] == label) & rows["base"].isna()]
    main_ratio = frames.experiment.main_ratio_group
    is_main = main_ratio is not None and ratio in (1.0, main_ratio)
    if is_main or alike["ratio"].nunique() < 2:
        return label
    return f"{label} at ratio {amount(ratio)}"
