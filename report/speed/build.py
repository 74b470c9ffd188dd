"""From a study's records to report.md, report.pdf, figures/ and csv/: the order of the report is here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from report.accuracy.records import Records, UsageError, read_records
from report.kit.document import Block, Bullets, Cell, Column, Document, Figure, Paragraph, Section, Table
from report.kit.exhibits import Exhibits, write_document
from report.kit.wording import listed
from report.speed.exports import write_speed_exports
from report.speed.figure_bandwidth import draw_step_times, few_of, found_step_times, leaves_out, step_times_note
from report.speed.figure_matrix import draw_matrix, found_matrix
from report.speed.ratios import ratios_table
from report.speed.records import STUDY, read_speed_records
from report.speed.study import Bench, SpeedStudy, study_of
from report.speed.tables_agreement import fits_table, prediction_table, wire_table
from report.speed.tables_modelled import break_even_table, headlines_table, layouts_table
from report.speed.tables_neighbours import neighbours_table, relatives_table
from report.speed.tables_published import published_links_table
from report.speed.tables_timed import cards_table, codec_table, split_table
from report.speed.to_target import benches_for, cost_table, rentals, targets_of, time_table
from report.speed.units import milliseconds
from report.speed.verdict import COMMAND, speed_verdict


def is_speed_study(folder: Path) -> bool:
    """Whether the folder holds timings instead of an experiment."""
    return (folder / STUDY).exists()


def build_speed_report(folder: Path, accuracy: Sequence[Path] = (), output: Path | None = None) -> Path:
    """Write the report of a study; the same records give the same bytes. Returns the path of report.md.

    Args:
        folder: of the study.
        accuracy: folders of accuracy experiments whose runs are joined with the step times.
        output: where to write; None is the study's folder.

    Raises:
        UsageError: there is no such folder, no study in it, or no experiment in one of `accuracy`.
        RecordError: a record is damaged, or records of different machines are mixed; the message names the file.
        OSError: the output cannot be written.
    """
    study = study_of(read_speed_records(folder))
    joined = [read_records(path) for path in accuracy]
    if len({records.experiment.name for records in joined}) < len(joined):
        raise UsageError("--accuracy names the same experiment twice; give each once")
    output = output or folder
    output.mkdir(parents=True, exist_ok=True)
    document = speed_document(study, joined, output)
    write_speed_exports(output / "csv", study, joined)
    return write_document(document, output)


def speed_document(study: SpeedStudy, accuracy: Sequence[Records], output: Path) -> Document:
    """The whole report as one object; draws the figures under `output` on the way."""
    exhibits = Exhibits(output)
    benches = [bench for bench in study.benches if bench.is_modelled]
    sections = (
        Section("Verdict", (speed_verdict(study),)),
        Section("Step time against bandwidth", (_step_times(study, exhibits),)),
        Section("The baselines", (cards_table(study),)),
        Section("Methods against one another", tuple(_matrix(bench, exhibits) for bench in benches) or _none()),
        _each("Break-even", benches, break_even_table, exhibits),
        _each("Layouts", benches, layouts_table, exhibits),
        Section("The published speed-ups", (exhibits.table(headlines_table(study)),) if benches else _none()),
        Section("Time and cost to a target", _targets(study, accuracy, exhibits)),
        Section("Which ratio is needed", (exhibits.table(ratios_table(study)),) if benches else _none()),
        Section("Neighbours and relatives", _relatives(benches, exhibits)),
        Section("A published measurement", (exhibits.table(published_links_table()),)),
        _each("The model beside the clock", study.benches, prediction_table, exhibits),
        Section("All methods", _all_methods(study, benches, exhibits)),
        _each("What a step is made of", study.benches, split_table, exhibits),
        Section("Encoding", (exhibits.table(codec_table(study)),) if study.benches else _none()),
        Section("The networks", (exhibits.table(fits_table(study)), exhibits.table(wire_table(study)))),
        _how_it_was_timed(study),
    )
    names = listed([f"{bench.workload.name} ({bench.basis})" for bench in study.benches])
    return Document("Step times and speed-ups", f"Workloads: {names or 'none yet'}.", sections)


def _none() -> tuple[Block, ...]:
    return (Paragraph(f"No records for this yet: {COMMAND} fills it."),)


def _each(title: str, benches: Sequence[Bench], build: Callable[[Bench], Table], exhibits: Exhibits) -> Section:
    return Section(title, tuple(exhibits.table(build(bench)) for bench in benches) or _none())


def _relatives(benches: Sequence[Bench], exhibits: Exhibits) -> tuple[Block, ...]:
    return (exhibits.table(neighbours_table()), *(exhibits.table(relatives_table(bench)) for bench in benches))


def _step_times(study: SpeedStudy, exhibits: Exhibits, everything: bool = False) -> Block:
    figure = exhibits.figure(
        "step_times_of_all" if everything else "step_times",
        f"step_time_against_bandwidth{_ALL * everything}.png",
        "Step time against bandwidth" + ", all methods" * everything,
        lambda path: draw_step_times(study, path, everything),
        lambda: found_step_times(study),
        step_times_note(study),
    )
    return replace(figure, floats=True) if isinstance(figure, Figure) else figure


def _matrix(bench: Bench, exhibits: Exhibits, everything: bool = False) -> Block:
    figure = exhibits.figure(
        f"matrix_{bench.workload.name}{_ALL * everything}",
        f"speedups_{bench.workload.name}_{bench.basis}{_ALL * everything}.png",
        f"{bench.workload.name}: speed-up of methods over one another" + ", all methods" * everything,
        lambda path: draw_matrix(bench, bench.methods if everything else few_of(bench), path),
        lambda: found_matrix(bench),
        "Modelled. Above 1 the row's method is the faster; orange is slower, purple faster.",
    )
    return replace(figure, floats=True) if isinstance(figure, Figure) and everything else figure


_ALL = "_all"
"""At the end of the name of a picture with all methods."""


def _all_methods(study: SpeedStudy, benches: Sequence[Bench], exhibits: Exhibits) -> tuple[Block, ...]:
    """The figures that show few methods by default, with all of them."""
    if not leaves_out(study):
        return (Paragraph("The figures above show all methods that were timed."),)
    more = [bench for bench in benches if len(few_of(bench)) < len(bench.methods)]
    return (_step_times(study, exhibits, True), *(_matrix(bench, exhibits, True) for bench in more))


def _targets(study: SpeedStudy, accuracy: Sequence[Records], exhibits: Exhibits) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for records in accuracy:
        name, targets = records.experiment.name, targets_of(records)
        benches = benches_for(study, records)
        if not benches or not targets:
            why = (
                "its baseline has no finished run"
                if benches
                else f"no workload of its model {records.experiment.model}"
            )
            blocks.append(Paragraph(f"The accuracy runs of {name} are not joined: {why}."))
            continue
        blocks += [exhibits.table(time_table(b, records, t)) for b in benches for t in targets]
    for bench in study.benches:
        joined = [records for records in accuracy if bench in benches_for(study, records)]
        if not joined:
            name = bench.workload.name
            blocks.append(
                Paragraph(f"{name}: no accuracy runs of {bench.workload.model} are at hand (--accuracy FOLDER).")
            )
        if rentals(bench):
            blocks.append(exhibits.table(cost_table(bench, joined)))
    return tuple(blocks) or _none()


def _how_it_was_timed(study: SpeedStudy) -> Section:
    records = study.records
    columns = (Column("what", "left"), Column("which", "left"))
    rows = tuple((Cell(what), Cell(which)) for what, which in _machine(study).items())
    left_out = tuple(f"{entry.what}: {entry.why}" for entry in records.study.left_out)
    blocks: list[Block] = [
        Paragraph(
            "Methods took turns there and back again (A B C, C B A) in one allocation; warm-up steps are left out. A "
            "step is the slowest worker's. Intervals of medians in csv/step_times.csv: order statistics, 95 %, lowest "
            "to highest of fewer than six steps."
        ),
        Table("Machine and code", "" if rows else "Nothing was timed yet.", columns, rows),
        Paragraph("Left out:" if left_out else "Nothing was left out."),
    ]
    if left_out:
        blocks.append(Bullets(left_out))
    return Section("How it was timed", tuple(blocks))


def _machine(study: SpeedStudy) -> dict[str, str]:
    attempts = study.records.attempts
    if not attempts:
        return {}
    first = attempts[0]
    packages = ", ".join(f"{name} {version}" for name, version in sorted(first.packages.items()))
    workloads = {
        f"workload {work.name}": f"{work.model}, batch {work.batch_size}, {work.num_parameters:,} parameters, "
        f"{work.device}; forward {milliseconds(work.forward_seconds)} ms, backward "
        f"{milliseconds(work.backward_seconds)} ms ({work.source})"
        for work in (bench.workload for bench in study.benches)
    }
    return {
        "host": f"{first.host}: {first.cpu}, {first.num_cpus} CPUs, {first.accelerator or 'no accelerator'}",
        "Python and packages": f"{first.python}; {packages}",
        "commits": listed(sorted({(attempt.git_commit or "none")[:12] for attempt in attempts})),
        "commands": listed(list(dict.fromkeys(attempt.command for attempt in attempts))),
        "taken from": min(attempt.started_at for attempt in attempts),
        **workloads,
    }
