"""From a study's records to report.md, report.pdf, figures/ and csv/: the order of the report is here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from report.accuracy.records import Records, UsageError, read_records
from report.kit.document import Block, Bullets, Cell, Column, Document, Figure, Paragraph, Section, Table
from report.kit.exhibits import Exhibits, write_document
from report.kit.wording import listed
from report.speed.exports import write_speed_exports
from report.speed.figure_bandwidth import (
    draw_groups,
    draw_others,
    draw_step_times,
    few_of,
    found_step_times,
    step_times_note,
)
from report.speed.figure_matrix import draw_matrix, found_matrix
from report.speed.ratios import ratios_table
from report.speed.records import STUDY, read_speed_records
from report.speed.study import Bench, SpeedStudy, study_of
from report.speed.tables_agreement import agreement_table, fits_table, prediction_table, wire_table
from report.speed.tables_codecs import codec_table
from report.speed.tables_gossip import gossip_table
from report.speed.tables_large import large_table
from report.speed.tables_latency import latencies_table
from report.speed.tables_modelled import break_even_table, headlines_table, layouts_table, main_bench
from report.speed.tables_neighbours import neighbours_table, relatives_table, relatives_timings
from report.speed.tables_published import published_links_table
from report.speed.tables_timed import cards_table, split_table, steps_table
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
    modelled = [bench for bench in study.benches if bench.is_modelled]
    main = main_bench(study)
    first = [bench for bench in study.benches if bench is main]
    rest = [bench for bench in study.benches if bench is not main]
    sections = (
        Section("Verdict", (speed_verdict(study),)),
        Section("Step time against bandwidth", _step_times(first, exhibits)),
        _each("Two latencies", [bench for bench in first if bench.latencies], latencies_table, exhibits),
        _each("Large ratios beside one another", study.benches, large_table, exhibits),
        Section("Methods against one another", tuple(_matrix(b, exhibits) for b in first if b in modelled) or _none()),
        _each("Break-even", [bench for bench in first if bench in modelled], break_even_table, exhibits),
        _each("Layouts", [bench for bench in first if bench in modelled], layouts_table, exhibits),
        Section("The published speed-ups", (exhibits.table(headlines_table(study)),) if modelled else _none()),
        Section("Neighbours", (exhibits.table(gossip_table(study)), exhibits.table(neighbours_table()))),
        _each("Relatives", [bench for bench in first if bench in modelled], relatives_table, exhibits),
        Section("A published measurement", (exhibits.table(published_links_table(main)),)),
        Section("Encoding", (exhibits.table(codec_table(study)),) if study.benches else _none()),
        Section("Time and cost to a target", _targets(study, accuracy, exhibits)),
        Section("Which ratio is needed", (exhibits.table(ratios_table(study)),) if modelled else _none()),
        Section("The model beside the clock", (exhibits.table(agreement_table(study)),)),
        _how_it_was_timed(study),
        *_other_workloads(rest, exhibits),
        *_all_methods(study, first, exhibits),
        Section("Appendix: the networks", (exhibits.table(fits_table(study)), exhibits.table(wire_table(study)))),
    )
    names = listed([f"{bench.workload.name} ({bench.basis})" for bench in study.benches])
    return Document(
        "Step times and speed-ups",
        f"Workloads: {names or 'none yet'}.",
        tuple(each for each in sections if each.blocks),
    )


def _none() -> tuple[Block, ...]:
    return (Paragraph(f"No records for this yet: {COMMAND} fills it."),)


def _each(title: str, benches: Sequence[Bench], build: Callable[[Bench], Table], exhibits: Exhibits) -> Section:
    """A table of each workload that has lines for it."""
    tables = [table for bench in benches if (table := build(bench)).rows]
    return Section(title, tuple(exhibits.table(table) for table in tables))


def _step_times(first: Sequence[Bench], exhibits: Exhibits) -> tuple[Block, ...]:
    """The figure of the first workload, and all of its timed steps."""
    if not first:
        return _none()
    [bench] = first
    figure = exhibits.figure(
        "step_times",
        "step_time_against_bandwidth.png",
        f"{bench.workload.name}: step time against bandwidth",
        lambda path: draw_step_times(bench, path),
        lambda: found_step_times(first),
        step_times_note(first),
    )
    return figure, exhibits.table(steps_table(bench))


def _matrix(bench: Bench, exhibits: Exhibits) -> Block:
    return exhibits.figure(
        f"matrix_{bench.workload.name}",
        f"speedups_{bench.workload.name}_{bench.basis}.png",
        f"{bench.workload.name}: speed-up of methods over one another",
        lambda path: draw_matrix(bench, few_of(bench), path),
        lambda: found_matrix(bench),
        "Modelled with encoding. Above 1 the row's method is the faster; orange is slower, purple faster. Of all "
        "methods: csv/modelled.csv.",
    )


def _other_workloads(rest: Sequence[Bench], exhibits: Exhibits) -> list[Section]:
    """What the first workload has in the report's body, of the others."""
    if not rest:
        return []
    modelled = [bench for bench in rest if bench.is_modelled]
    figure = exhibits.figure(
        "step_times_of_others",
        "step_time_of_others.png",
        "Other workloads: step time against bandwidth",
        lambda path: draw_others(rest, path),
        lambda: found_step_times(rest),
        step_times_note(rest),
    )
    return [
        Section("Appendix: other workloads", (figure, *_each("", rest, steps_table, exhibits).blocks)),
        Section("Appendix: their methods against one another", tuple(_matrix(bench, exhibits) for bench in modelled)),
        _each("Appendix: their break-even", modelled, break_even_table, exhibits),
        _each("Appendix: their layouts", modelled, layouts_table, exhibits),
        _each("Appendix: their relatives", [b for b in modelled if relatives_timings(b)], relatives_table, exhibits),
    ]


def _all_methods(study: SpeedStudy, first: Sequence[Bench], exhibits: Exhibits) -> list[Section]:
    """Every line of the first workload, what every method is, and of what its steps are made."""
    figures = [
        exhibits.figure(
            "step_times_of_all",
            "step_time_against_bandwidth_all.png",
            f"{bench.workload.name}: step time against bandwidth, all methods",
            partial(draw_groups, bench),
            lambda: found_step_times(first),
            step_times_note(first),
        )
        for bench in first
    ]
    floating = [replace(each, floats=True) if isinstance(each, Figure) else each for each in figures]
    return [
        Section("Appendix: all methods", (*floating, exhibits.table(cards_table(study)))),
        _each("Appendix: the model beside the clock, method by method", study.benches, prediction_table, exhibits),
        _each("Appendix: what a step is made of", study.benches, split_table, exhibits),
    ]


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
