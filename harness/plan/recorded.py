"""The record of a plan, experiment.json: which key of the spec becomes which of the record."""

from __future__ import annotations

from typing import Any

from cser_bench.harness.plan.rows import PlannedRow
from cser_bench.harness.plan.tuning import tuning_name
from cser_bench.harness.records import store
from cser_bench.harness.records.experiment import (
    Contrast,
    Experiment,
    Exponent,
    OutsideMethod,
    PlannedEvidence,
    Prediction,
    Tuning,
)
from cser_bench.harness.spec.spec import Spec
from cser_bench.harness.spec.statistics import NO_CURVE
from cser_bench.harness.train.method import method_of

COMMON = {
    "task",
    "model",
    "num_workers",
    "batch_size",
    "schedule",
    "evaluation",
    "partition",
    "precision",
    "wire",
    "label_smoothing",
}
"""The fields of a run's config that all rows share, except for a row's own warm-up, partition or
number of workers."""


def record_of(
    spec: Spec, rows: list[PlannedRow], given_as: str, tuning: Tuning | None
) -> Experiment:
    """Return the record of an experiment's plan.

    Args:
        given_as: the words of a command that the spec was found by.
        tuning: where the rows' settings and rates came from.
    """
    statistics = spec.statistics
    # A floor that is not tuned yet may have been left out.
    has_floor = statistics.floor in [planned.row.row for planned in rows]
    return Experiment(
        **_common_fields(spec, rows, given_as),
        name=spec.name,
        title=spec.title,
        seeds=statistics.seeds,
        tuning=tuning,
        baseline=statistics.baseline,
        floor=statistics.floor if has_floor else None,
        margin=statistics.margin,
        margin_reason=statistics.margin_reason,
        main_ratio=statistics.main_ratio_group,
        declared=statistics.declared,
        contrasts=_contrasts(spec) or None,
        exponents=_exponents(spec) or None,
        predictions=_predictions(spec) or None,
        curve=None if statistics.curve == NO_CURVE else statistics.curve,
        evidence=_evidence(spec),
    )


def tuning_record_of(spec: Spec, rows: list[PlannedRow], given_as: str) -> Experiment:
    """Return the record of a tuning's plan; a tuning compares nothing."""
    assert spec.tuning is not None, "it has rows"
    return Experiment(
        **_common_fields(spec, rows, f"{given_as} --tuning"),
        name=tuning_name(spec),
        title=f"{spec.title}: tuning",
        seeds=spec.tuning.seeds,
        tuning=None,
    )


def _common_fields(spec: Spec, rows: list[PlannedRow], argument: str) -> dict[str, Any]:
    """Return the fields of both records; `argument` is what commands call the plan by."""
    # Any row's will do, as these fields are common to all.
    config = rows[0].runs[0].config.model_dump(mode="json", include=COMMON)
    # The experiment's, as a row may have its own of these; in full, as a report knows no defaults.
    config["schedule"] = spec.schedule.model_dump(mode="json")
    config["partition"] = spec.partition.model_dump(mode="json")
    return {
        "version": store.VERSION,
        "task": spec.task.name,
        "model": spec.model.name,
        "confidence": spec.statistics.confidence,
        "rows": [planned.row for planned in rows],
        "config": config,
        "commands": [
            f"python -m harness run {argument}",
            f"python -m harness report {argument}",
        ],
        "metric": None
        if spec.statistics.metric == "accuracy"
        else spec.statistics.metric,
        "families": _families(rows),
        "outside": _outside(rows),
    }


def _families(rows: list[PlannedRow]) -> dict[str, str]:
    families = {}
    for planned in rows:
        # By the class, which for a method from outside is in the config alone.
        families[planned.row.algorithm] = method_of(planned.runs[0].config).family
    return dict(sorted(families.items()))


def _outside(rows: list[PlannedRow]) -> dict[str, OutsideMethod]:
    """Return what the plan's record says of methods from outside; the runs have their sources."""
    outside = {}
    for planned in rows:
        source = planned.runs[0].config.method_source
        if source is not None:
            outside[planned.row.algorithm] = OutsideMethod(
                file=source.file, sha256=source.sha256, package=source.package
            )
    return outside


def _contrasts(spec: Spec) -> list[Contrast]:
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


def _exponents(spec: Spec) -> list[Exponent]:
    """Return the questions about exponents."""
    return [
        Exponent(rows=asked.rows, of=asked.of, than=asked.than, question=asked.question)
        for asked in spec.exponents
    ]


def _predictions(spec: Spec) -> list[Prediction]:
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


def _evidence(spec: Spec) -> PlannedEvidence | None:
    """Return what the experiment is about; None where it does not say."""
    about = spec.evidence
    if about is None:
        return None
    return PlannedEvidence(
        # The record has words, which need not be what a spec may say today.
        roles=list(about.roles),
        network=about.network,
        order=about.order,
        advice=about.advice,
    )
