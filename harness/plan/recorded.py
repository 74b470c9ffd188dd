"""What an experiment's record keeps of its spec: which key of the spec becomes which of the record."""

from __future__ import annotations

from cser_bench.harness.records.experiment import (
    CompressorRows,
    Contrast,
    Exponent,
    Pair,
    PlannedEvidence,
    Prediction,
)
from cser_bench.harness.spec.spec import Spec


def contrasts(spec: Spec) -> list[Contrast]:
    """Return the comparisons, each with a margin: its own, or the experiment's."""
    return [
        Contrast(
            row=contrast.row,
            reference=contrast.reference,
            kind=contrast.kind,
            question=contrast.question,
            margin=contrast.margin or spec.statistics.margin,
        )
        for contrast in spec.contrasts
    ]


def exponents(spec: Spec) -> list[Exponent]:
    """Return the questions about exponents."""
    return [
        Exponent(rows=asked.rows, of=asked.of, than=asked.than, question=asked.question)
        for asked in spec.exponents
    ]


def predictions(spec: Spec) -> list[Prediction]:
    """Return the predictions of statistical efficiency."""
    return [
        Prediction(
            row=predicted.row,
            tolerance=predicted.tolerance,
            source=predicted.source,
            efficiency=predicted.efficiency,
            experiment=predicted.experiment,
        )
        for predicted in spec.predictions
    ]


def evidence(spec: Spec) -> PlannedEvidence | None:
    """Return what the experiment is about; None where it does not say."""
    about = spec.evidence
    if about is None:
        return None
    pairs = [
        Pair(
            row=pair.row,
            reference=pair.reference,
            called=pair.called,
            headline=pair.headline,
        )
        for pair in about.pairs
    ]
    compressors = [
        CompressorRows(
            compressor=rows.compressor,
            dropped=rows.dropped,
            feedback=rows.feedback,
            reset=rows.reset,
        )
        for rows in about.compressors
    ]
    return PlannedEvidence(
        # The record has words, which need not be what a spec may say today.
        roles=list(about.roles),
        network=about.network,
        data=about.data,
        dataset=about.dataset,
        kind=about.kind,
        task=about.task,
        setting=about.setting,
        note=about.note,
        order=about.order,
        in_readme=about.in_readme,
        asks_again=about.asks_again,
        advice=about.advice,
        rows={role: row for role, row in about.rows.items()},
        shown=about.shown,
        pairs=pairs,
        compressors=compressors,
    )
