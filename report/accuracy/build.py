"""From records to report.md, report.pdf, figures/ and csv/: the order of the report is here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from report.accuracy.exports import write_exports
from report.accuracy.exports_comparisons import write_comparisons
from report.accuracy.exports_regime import write_regime
from report.accuracy.figure_bits import draw_accuracy_against_bits, found_accuracy_against_bits
from report.accuracy.figure_curves import CUT, panels_note
from report.accuracy.figure_drift import draw_drift, drift_notes, drift_of, found_drift
from report.accuracy.figure_models import draw_accuracy_against_models, found_accuracy_against_models
from report.accuracy.figure_paper import PAPER_NOTE
from report.accuracy.figure_progress import draw_progress, found_progress
from report.accuracy.figure_regime import REGIME_NOTE, draw_regime, found_regime
from report.accuracy.figure_scatter import draw_loss_against_accuracy, found_loss_against_accuracy
from report.accuracy.figure_tuning import draw_tuning, found_tuning, tuning_notes
from report.accuracy.findings import Study, study_of
from report.accuracy.pairs import Pair, pairs_of
from report.accuracy.provenance import how_it_was_run
from report.accuracy.questions import questions_table
from report.accuracy.records import Records, UsageError, read_records
from report.accuracy.regime import regime_of
from report.accuracy.row_cells import has_models
from report.accuracy.sections import found_sections
from report.accuracy.tables import accuracy_table, baseline_card, seeds_table
from report.accuracy.tables_assay import assay_table
from report.accuracy.tables_bits import bits_table, equal_bits_table
from report.accuracy.tables_metrics import metrics_of, metrics_table, translations_table
from report.accuracy.tables_pairs import pairs_table, shown_groups
from report.accuracy.tables_regime import needed_table, predictors_table, regime_table, residuals_table
from report.accuracy.tables_tuning import best_of_table, points_table, rules_table, tuning_table
from report.accuracy.tuning import Tuned, is_tuning, tuned_alone, tuned_rows
from report.accuracy.verdict import progress_of, verdict_of
from report.kit.document import Block, Document, Figure, Paragraph, Section, Table
from report.kit.exhibits import Exhibits, write_document


def build_report(folder: Path, tuning_folder: Path | None = None, output: Path | None = None) -> Path:
    """Write the report of an experiment; the same records give the same bytes. Returns the path of report.md.

    Args:
        folder: of the experiment.
        tuning_folder: of its tuning experiment; None takes the sibling that the experiment names, if it is there.
        output: where to write; None is the experiment's folder.

    Raises:
        UsageError: there is no such folder or no experiment in it.
        RecordError: a record is damaged; the message names the file.
        OSError: the output cannot be written.
    """
    records = read_records(folder)
    if not records.experiment.rows:
        raise UsageError(f"{folder / 'experiment.json'} plans no rows; plan the experiment again")
    tuning = _tuning_records(records, tuning_folder)
    tuned = tuned_rows(records, tuning) if tuning else ()
    study = study_of(records)
    output = output or folder
    output.mkdir(parents=True, exist_ok=True)
    if is_tuning(records):
        tuned = tuned_alone(records)
        document = tuning_document_of(study, tuned, output)
    else:
        document = document_of(study, tuning, tuned, output)
    write_exports(output / "csv", study, tuned, [records] + ([tuning] if tuning else []))
    write_regime(output / "csv", study)
    write_comparisons(output / "csv", study, pairs_of(study))
    return write_document(document, output)


def _tuning_records(records: Records, folder: Path | None) -> Records | None:
    if folder is not None:
        return read_records(folder)
    named = records.experiment.tuning
    sibling = records.folder.parent / named.experiment if named else None
    return read_records(sibling) if sibling and (sibling / "experiment.json").exists() else None


def document_of(study: Study, tuning: Records | None, tuned: Sequence[Tuned], output: Path) -> Document:
    """The whole report as one object; draws the figures under `output` on the way."""
    exhibits, pairs = Exhibits(output, {"baseline": baseline_card(study)}), pairs_of(study)
    experiment = study.records.experiment
    sections = (
        Section("The baseline", (exhibits.shown["baseline"],)),
        Section("Can it tell?", (_table(study, exhibits, "assay", assay_table),)),
        Section("Accuracy", _accuracy(study, exhibits)),
        Section("Equal bits", _equal_bits(study, exhibits)),
        *_all_pairs(study, pairs, exhibits),
        *_regime(study, exhibits),
        Section("Bits", (_table(study, exhibits, "bits", bits_table),)),
        Section("Over the steps", _over_steps(study, tuning, exhibits)),
        Section("Training loss and accuracy", (_scatter(study, exhibits),)),
        *_learning_rates(study, tuning, tuned, exhibits),
        *found_sections(study, exhibits),
    )
    # The verdict comes first in the report and last here, since its answers name the exhibits.
    verdict = Section("Verdict", (verdict_of(study, pairs, exhibits.shown),))
    algorithms = {finding.records.row.algorithm for finding in study.findings}
    questions = exhibits.table(questions_table(_by_question(study, exhibits), experiment.name, algorithms))
    tail = (Section("Questions", (questions,)), how_it_was_run(study.records, tuning))
    subtitle = f"Experiment {experiment.name}: {experiment.task}, {experiment.model}."
    return Document(experiment.title, subtitle, (verdict, *sections, *tail))


def _by_question(study: Study, exhibits: Exhibits) -> dict[str, Table | Figure]:
    """The exhibits, and those that answer one more question where the rows are of several compressors."""
    shown = dict(exhibits.shown)
    kinds = {kind for f in study.compared for kind in ("block", "top_k") if f": {kind}" in f.records.row.words}
    if "equal_bits" in shown and len(kinds) > 1:
        shown["compressors"] = shown["equal_bits"]
    return shown


def _table(study: Study, exhibits: Exhibits, key: str, build: Callable[[Study], Table]) -> Table:
    return exhibits.table(build(study), key, study.records.ended > 0)


def _accuracy(study: Study, exhibits: Exhibits) -> tuple[Block, ...]:
    table = _table(study, exhibits, "accuracy", accuracy_table)
    blocks: tuple[Block, ...] = (
        (table, _table(study, exhibits, "seeds", seeds_table)) if has_models(study) else (table,)
    )
    if metrics_of(study):
        blocks = (*blocks, exhibits.table(metrics_table(study), "metrics"))
    said = translations_table(study)
    return blocks if said is None else (*blocks, exhibits.table(said, "translations"))


def _all_pairs(study: Study, pairs: Sequence[Pair], exhibits: Exhibits) -> tuple[Section, ...]:
    groups = shown_groups(study)
    if not groups:
        return ()
    main = next((group for group in groups if group is study.main_group), groups[0])
    shown = main if study.records.ended else None
    tables = (exhibits.table(pairs_table(study, pairs, g), "pairs", filled=g is shown) for g in groups)
    return (Section("All pairs", tuple(tables)),)


def _equal_bits(study: Study, exhibits: Exhibits) -> tuple[Block, ...]:
    table = _table(study, exhibits, "equal_bits", equal_bits_table)
    return _against_models(study, exhibits) if has_models(study) else _against_bits(study, exhibits), table


def _against_models(study: Study, exhibits: Exhibits) -> Block:
    return exhibits.figure(
        "bits_figure",
        "accuracy_against_models.png",
        "Accuracy against models sent",
        lambda path: draw_accuracy_against_models(study, path),
        lambda: found_accuracy_against_models(study),
        "Markers: means; bars: 95 % t intervals; faint dots: single seeds; lines with bands: ceiling and floor with "
        f"theirs. {PAPER_NOTE}",
    )


def _against_bits(study: Study, exhibits: Exhibits) -> Block:
    return exhibits.figure(
        "bits_figure",
        "accuracy_against_bits.png",
        "Accuracy against bits sent",
        lambda path: draw_accuracy_against_bits(study, path),
        lambda: found_accuracy_against_bits(study),
        "Markers: means; bars: 95 % t intervals; faint dots: single seeds; grey line and band: the baseline's mean and "
        "interval.",
    )


def _regime(study: Study, exhibits: Exhibits) -> tuple[Section, ...]:
    regime = regime_of(study)
    if regime is None:
        return ()
    figure = exhibits.figure(
        "regime_figure",
        "regime.png",
        "The loss against models sent, at every length",
        lambda path: draw_regime(regime, path),
        lambda: found_regime(regime),
        f"{REGIME_NOTE} {PAPER_NOTE}",
    )
    needed = exhibits.table(needed_table(regime), "needed")
    predictors = exhibits.table(predictors_table(regime), "predictors")
    residuals = exhibits.table(residuals_table(regime), "residuals")
    points = exhibits.table(regime_table(regime), "regime")
    return (Section("How many models are enough?", (needed, predictors, figure, residuals, points)),)


def _over_steps(study: Study, tuning: Records | None, exhibits: Exhibits) -> tuple[Block, ...]:
    band = f"Lines: mean over seeds; bands: lowest to highest seed; log axes end at {CUT} times the median."
    progress = exhibits.figure(
        "progress",
        "progress.png",
        "Test accuracy and training loss over steps",
        lambda path: draw_progress(study, path),
        lambda: found_progress(study),
        band,
        panels_note(study),
    )
    found = drift_of(study, tuning)
    drift = exhibits.figure(
        "drift",
        "drift.png",
        "Error norm and distance between workers over steps",
        lambda path: draw_drift(found, path),
        lambda: found_drift(found),
        f"{band} Both are roots of the mean over workers of a squared 2-norm; zeros cannot be shown on a log axis.",
        *drift_notes(study, found),
        panels_note(study),
    )
    return progress, drift


def _scatter(study: Study, exhibits: Exhibits) -> Block:
    return exhibits.figure(
        "scatter",
        "loss_against_accuracy.png",
        "Best training loss against test accuracy",
        lambda path: draw_loss_against_accuracy(study, path),
        lambda: found_loss_against_accuracy(study),
        "Markers: means of a row; faint dots: single runs.",
    )


def _learning_rates(
    study: Study, tuning: Records | None, tuned: Sequence[Tuned], exhibits: Exhibits
) -> tuple[Section, ...]:
    named = study.records.experiment.tuning
    if tuning is None or not tuned:
        where = f"run the experiment {named.experiment}" if named else "the experiment names none"
        sections: tuple[Section, ...] = (
            Section("Learning rates", (Paragraph(f"No tuning records are at hand: {where}."),)),
        )
    else:
        sections = _tuning_sections(study, tuned, exhibits)
    rules = rules_table(study)
    if rules is None:
        return sections
    rules = exhibits.table(rules, "rules", study.records.ended > 0)
    return (*sections, Section("Two rules of selection", (rules,)))


def tuning_document_of(study: Study, tuned: Sequence[Tuned], output: Path) -> Document:
    """The report of a tuning experiment itself: what was tried, and how it was run."""
    experiment = study.records.experiment
    note = Paragraph("A tuning experiment holds no selection; the highest mean held-out accuracy stands for it here.")
    sections = (
        Section("What was found", (Paragraph(progress_of(study)), note)),
        *_tuning_sections(study, tuned, Exhibits(output)),
        how_it_was_run(study.records, None),
    )
    return Document(experiment.title, f"Experiment {experiment.name}: {experiment.task}, {experiment.model}.", sections)


def _tuning_sections(study: Study, tuned: Sequence[Tuned], exhibits: Exhibits) -> tuple[Section, ...]:
    figure = exhibits.figure(
        "tuning_figure",
        "tuning.png",
        "Held-out accuracy over the learning rate",
        lambda path: draw_tuning(tuned, path, study.records.metric.score_label),
        lambda: found_tuning(tuned),
        *tuning_notes(tuned),
    )
    filled = any(entry.has_results for entry in tuned)
    several = any(entry.num_candidates > 1 for entry in tuned)
    took = exhibits.table(tuning_table(study, tuned), "tuning", filled)
    best = exhibits.table(best_of_table(study, tuned), "best_of", filled)
    trials = exhibits.table(points_table(tuned), "splits", filled and several)
    return (
        Section("Learning rates", (took, figure)),
        Section("Fewer trials", (best,)),
        Section("Every trial", (trials,)),
    )
